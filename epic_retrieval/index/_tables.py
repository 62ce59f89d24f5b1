"""Readers for JSON Lines, CSV, TSV and Parquet: a file in, numbered rows out, streaming.

Know nothing of passages: which column means what is decided elsewhere.
"""

import csv
import datetime as dt
import gzip
import json
import math
import textwrap
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NoReturn, cast

from epic_retrieval.errors import InputError, MissingExtraError

# The standard library's own limit for a CSV field; ours never goes below it.
_CSV_FIELD = 131_072
# What `export_parquet` notes in its files as epic_retrieval.format.
EXPORT_FORMAT = b"epic-retrieval vectors 1"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the system says about an unreadable file into an InputError."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path}: the gzip data is damaged or cut short ({error}). Copy or compress it again."
        ) from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}). "
            "Check that the path exists and that you may read it."
        ) from error


def text_lines(path: Path, limit: int) -> Iterator[tuple[int, str]]:
    r"""Numbered lines (from 1) of a UTF-8 file, `.gz` or not, each with its line break.

    Only "\n" ends a line, since U+2028 and its like are ordinary characters in JSON and CSV. A
    byte order mark is dropped. `limit` is the most bytes that a line may have.
    """
    with reading(path), _opened(path) as file:
        number = offset = 0
        while raw := file.readline(limit + 1):
            number += 1
            if len(raw) > limit:
                raise InputError(
                    f"{path}, line {number}: longer than {limit:,} bytes. One passage a line is "
                    "expected: is this one big JSON document, or a file of another kind?"
                )
            yield number, decoded(raw, path, number, offset)
            offset += len(raw)


def decoded(raw: bytes, path: Path, line: int = 1, offset: int = 0) -> str:
    """Bytes as UTF-8 text; errors name the line and the byte. `raw` starts at `line`, `offset`."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise InputError(
            f"{path}, line {line}: byte 0x{raw[error.start]:02X} at offset "
            f"{offset + error.start} is not UTF-8. Save the file as UTF-8."
        ) from error
    if "\0" in text:
        at = raw.index(0)
        raise InputError(
            f"{path}, line {line + raw.count(10, 0, at)}: a NUL byte at offset {offset + at}. "
            "Is this a binary or a UTF-16 file? Save it as UTF-8 text."
        )
    return text.removeprefix("\ufeff") if offset == 0 else text


def jsonl_cells(path: Path, limit: int) -> Iterator[tuple[int, Mapping[str, object]]]:
    """(line number, object) for every line of a JSON Lines file; blank lines are passed over."""
    for number, line in text_lines(path, limit):
        if not line.strip():
            continue
        try:
            cells = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number}: not valid JSON ({error}). Expected one JSON object a line."
            ) from error
        if not isinstance(cells, dict):
            raise InputError(
                f"{path}, line {number}: a JSON {type(cells).__name__}. Expected one object a "
                'line, such as {"id": "1", "text": "..."}.'
            )
        yield number, cells


def csv_cells(
    path: Path, delimiter: str, limit: int, max_chars: int
) -> Iterator[tuple[int, Mapping[str, object]]]:
    """(line number where the record starts, cells) for every record under the header."""
    field = max(_CSV_FIELD, max_chars)
    # The limit belongs to the whole process: only ever raise it.
    csv.field_size_limit(max(field, csv.field_size_limit()))
    reader = csv.reader(
        (line for _, line in text_lines(path, limit)), delimiter=delimiter, strict=True
    )
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{path}, line {start}: {error}. Quotes inside a quoted field are doubled, and "
                f"every quote is closed; a field has at most {field:,} characters (max_chars)."
            ) from error
        if record is None:
            return
        if header is None:
            header = _header(record, path) if record else None
        elif record:
            if len(record) != len(header):
                raise InputError(
                    f"{path}, line {start}: {len(record)} fields, but the header has "
                    f"{len(header)}. Quote fields that hold the delimiter or a line break."
                )
            yield start, dict(zip(header, record, strict=True))


def parquet_cells(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    """(row number from 1, cells) for every row of a Parquet file.

    Dates and times become ISO 8601 text, NaN becomes None. Of a file that `export_parquet` wrote
    the vectors are not read, and metadata are objects again.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: reading Parquet needs pyarrow. In epic-retrieval's source folder run "
            'pip install ".[parquet]".'
        ) from error
    number = 0
    try:
        with reading(path), pq.ParquetFile(path) as file:
            own = (file.schema_arrow.metadata or {}).get(b"epic_retrieval.format") == EXPORT_FORMAT
            names = [name for name in file.schema_arrow.names if not own or name != "vector"]
            for batch in file.iter_batches(batch_size=1024, columns=names):
                for cells in batch.to_pylist():
                    number += 1
                    if own and isinstance(cells.get("metadata"), str):
                        cells["metadata"] = _exported(path, number, cells["metadata"])
                        yield number, cells
                    else:
                        yield number, {name: _plain(value) for name, value in cells.items()}
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}, after row {number}: not a readable Parquet file ({error}). Write it again."
        ) from error


def _exported(path: Path, number: int, text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}, row {number}: the metadata of this export are not valid JSON ({error}). "
            "Export the index again."
        ) from error


def _opened(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number; use null")


def _header(record: list[str], path: Path) -> list[str]:
    names = [name.strip() for name in record]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or "text" not in names:
        fault = f'has the column "{twice[0]}" twice' if twice else 'has no column "text"'
        raise InputError(
            f"{path}, line 1: the header {fault}; its columns are "
            f"{textwrap.shorten(', '.join(names), 200)}. "
            "Expected a header line with id and text, perhaps title, and any other columns."
        )
    return names


def _plain(value: object) -> object:
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
