"""JSON Lines and CSV as placed rows of cells, streaming: `.gz` or not, one line in memory.

Only LF and CRLF end a line, since U+2028 and its like are ordinary characters in JSON. A byte order
mark is dropped, blank lines are passed over.

Knows nothing of training: which column means what is decided elsewhere.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from epic_retrieval.errors import InputError

Cells = Mapping[str, object]
# Where a row stands ("line 7", "row 7"; from 1), and its values by column name.
PlacedCells = tuple[str, Cells]

# Far more than a row with a hundred long passages; a whole file on one line is a JSON document.
_LONGEST_LINE = 256 * 2**20  # bytes
_CSV_FIELD = 2**30  # characters


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the system says about an unreadable file into an InputError."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path}: the gzip data is damaged or cut short ({error}); copy or compress it again"
        ) from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check that the path exists and"
            " that you may read it"
        ) from error


def ending(path: Path) -> str:
    """The ending that says what a file holds, in lower case: ".jsonl" for `a.jsonl.gz`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1) of a UTF-8 file, each with its line break.

    Raises:
        InputError: with file and line, for what cannot be read or is not UTF-8.
    """
    with reading(path), _opened(path) as file:
        number = 0
        while raw := file.readline(_LONGEST_LINE + 1):
            number += 1
            if len(raw) > _LONGEST_LINE:
                raise InputError(
                    f"{path}, line {number}: longer than {_LONGEST_LINE:,} bytes; expected one row"
                    " a line: is this one big JSON document, or a file of another kind?"
                )
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}, line {number}: byte 0x{raw[error.start]:02X} at position"
                    f" {error.start} is not UTF-8; save the file as UTF-8"
                ) from error


def json_rows(path: Path) -> Iterator[PlacedCells]:
    """The objects of a JSON Lines file.

    Raises:
        InputError: with file and line, for a line that is no JSON object.
    """
    for number, line in text_lines(path):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number}: not valid JSON ({error}); expected one JSON object a line"
            ) from error
        if not isinstance(cells, dict):
            raise InputError(
                f"{path}, line {number}: a JSON {type(cells).__name__}; expected one object a line"
            )
        yield f"line {number}", cells


def csv_rows(path: Path) -> Iterator[PlacedCells]:
    """The records of a CSV (or, by its ending, TSV) file with a header line; every cell is text.

    A field that holds the delimiter, a quote or a line break stands in quotes, with quotes inside
    doubled.

    Raises:
        InputError: with file and line, for broken quotes or another number of fields than in the
            header.
    """
    # The limit belongs to the whole process: only ever raise it.
    csv.field_size_limit(max(_CSV_FIELD, csv.field_size_limit()))
    delimiter = "\t" if ending(path) == ".tsv" else ","
    lines = (line for _, line in text_lines(path))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{path}, {place}: {error}; close every quote, and double quotes inside a field"
            ) from error
        if record is None:
            return
        if not record:
            continue
        if header is None:
            header = _header(record, f"{path}, {place}")
        elif len(record) != len(header):
            raise InputError(
                f"{path}, {place}: {len(record)} fields, but the header has {len(header)}; quote"
                " fields that hold the delimiter or a line break"
            )
        else:
            yield place, dict(zip(header, record, strict=True))


def _header(record: list[str], where: str) -> list[str]:
    names = [name.strip() for name in record]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{where}: the header names {twice[0]!r} twice; rename one column")
    return names


def _opened(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return path.open("rb")
