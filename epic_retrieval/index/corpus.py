"""Reads a corpus, streaming: JSON Lines, CSV, TSV, Parquet, folders of text, BEIR folders.

Knows nothing of vectors, encoders or indexes.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from epic_retrieval.errors import InputError
from epic_retrieval.index._rows import Row, RowReader, rows_of
from epic_retrieval.index._tables import csv_cells, jsonl_cells, parquet_cells, reading
from epic_retrieval.index._texts import text_files, text_passages
from epic_retrieval.index._types import check_types
from epic_retrieval.index._words import counted
from epic_retrieval.index.passage import JSON, Passage

__all__ = ["JSON", "Passage", "read_corpus"]

_ENDINGS = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
_BEIR = ("corpus.jsonl", "corpus.jsonl.gz")
_LOG = logging.getLogger(__name__)


def read_corpus(
    path: str | Path,
    *,
    max_chars: int = 100_000,
    passage_chars: int = 2_000,
    skip_empty: bool = False,
    types: Mapping[str, str] | None = None,
) -> Iterator[Passage]:
    r"""The passages of a corpus, one by one, in the order of the file.

    `.jsonl`, `.csv` and `.tsv` (each also with `.gz`) and `.parquet`: the column `_id` or `id` is
    the id (text or a whole number), `text` the text, `title` the title; all other columns become
    metadata, and an object called `metadata` is merged into them. Columns of numbers called
    `vector`, `embedding` or the like are left out, which is logged. If *no* row has an id, ids are
    the line numbers ("1", "2", ...; in Parquet the row numbers), so that an id leads back to its
    line; a file where only some rows have one is an error. CSV and TSV start with a header line,
    and both know quotes: a field with a tab, a line break or a quote stands in quotes, with
    quotes inside it doubled. Their cells are texts, which no
    filter on numbers finds: `types` says what else they stand for. A Parquet file of
    `export_parquet` gives the passages that were exported.

    A folder with `corpus.jsonl` or `corpus.jsonl.gz` is read as BEIR lays it out. Any other
    folder: its `.txt` and `.md` files, hidden ones left out, in the order of their relative posix
    paths, which are the ids. The title of an `.md` file is its first heading. If such
    a file begins with front matter (YAML between two lines of `---`), that is no part of the text:
    its `title` is the title, and fields with a scalar or a list of scalars become metadata, dates
    as ISO texts. A longer file is cut at paragraph borders into passages of at most
    `passage_chars` characters, called `path#1`, `path#2`, ...; metadata holds `path`, and `part`
    for those.

    Ids are kept in memory while reading, to find duplicates.

    Args:
        path: File or folder.
        max_chars: A longer passage (title and text) is an error. What a model reads of one is
            less as a rule: its `max_length` counts tokens.
        passage_chars: The size of passages from text files.
        skip_empty: Leave out passages whose text and title are blank (and log how many) instead
            of raising.
        types: Of metadata columns, such as {"year": "int", "price": "float", "free": "bool"}:
            texts become what they stand for, and blank ones None. Other values stay.

    Raises:
        InputError: The corpus breaks a rule; the message names file, line and what to do. A path
            that cannot be read raises at once, all else while iterating.
        MissingExtraError: Parquet without pyarrow.
    """
    for name, value in (("max_chars", max_chars), ("passage_chars", passage_chars)):
        if value < 1:
            raise InputError(f"{name} is {value}: expected at least 1.")
    path, types = Path(path), dict(types or {})
    check_types(types)
    with reading(path):
        is_folder = path.is_dir()
        path.stat()
    placed: Iterator[tuple[str, Passage | None]]
    if is_folder:
        beir = [path / name for name in _BEIR if (path / name).is_file()]
        if len(beir) > 1:
            raise InputError(f"{path} holds both {_BEIR[0]} and {_BEIR[1]}: remove one of them.")
        if beir:
            path = beir[0]
            placed = _from_table(path, max_chars, types, skip_empty=skip_empty)
        else:
            if types:
                raise InputError(f"{path}: texts in a folder have no columns; leave out the types.")
            placed = _from_folder(path, passage_chars, skip_empty=skip_empty)
    else:
        _check_ending(path)
        placed = _from_table(path, max_chars, types, skip_empty=skip_empty)
    return _checked(path, placed, max_chars)


def _checked(
    path: Path, placed: Iterator[tuple[str, Passage | None]], max_chars: int
) -> Iterator[Passage]:
    places: dict[str, str] = {}
    skipped = 0
    for place, passage in placed:
        if passage is None:
            skipped += 1
            continue
        if passage.id in places:
            raise InputError(
                f'{path}: the id "{passage.id}" stands twice, at {places[passage.id]} and at '
                f"{place}. Give every passage its own id."
            )
        if (length := len(passage.content)) > max_chars:
            raise InputError(
                f'{path}, {place}: passage "{passage.id}" has {length:,} characters, more than '
                f"{max_chars:,}. Split it into passages, or raise max_chars."
            )
        places[passage.id] = place
        yield passage
    if skipped:
        told = counted(skipped, "passage")
        _LOG.warning("%s: skipped %s with neither text nor title", path, told)
    if not places:
        raise InputError(f"{path}: no passages{' but blank ones' if skipped else ''}. Add some.")


def _from_table(
    path: Path, max_chars: int, types: Mapping[str, str], *, skip_empty: bool
) -> Iterator[tuple[str, Passage | None]]:
    reader = RowReader(skip_empty=skip_empty, types=types)
    told: set[str] = set()
    for row in _rows(path, max_chars):
        try:
            passage = reader.passage(row)
        except InputError as error:
            raise InputError(f"{path}, {row.place}: {error}{_hint(str(error))}") from error
        for name in reader.left_out - told:
            told.add(name)
            _LOG.warning('%s: left out the vectors in "%s"; an index makes its own', path, name)
        absent = sorted(types.keys() - row.cells.keys())
        if absent and not path.name.lower().endswith((".jsonl", ".jsonl.gz")):
            raise InputError(
                f'{path}: a type is given for the column "{absent[0]}", which is not there; there '
                f"are {', '.join(row.cells)}."
            )
        yield row.place, passage
    unmet = sorted(types.keys() - reader.met)
    if unmet:
        _LOG.warning('%s: no row has the column "%s" that was given a type', path, unmet[0])


def _from_folder(
    root: Path, passage_chars: int, *, skip_empty: bool
) -> Iterator[tuple[str, Passage | None]]:
    names = text_files(root)
    if not names:
        raise InputError(
            f"{root}: the folder has no .txt or .md file, and no {_BEIR[0]}[.gz]. "
            f"Give a folder with one of these, or a file ({', '.join(_ENDINGS)})."
        )
    for name in names:
        passages = text_passages(root, name, passage_chars)
        if not passages and not skip_empty:
            raise InputError(
                f"{root / name}: the file has no text. Remove it, or pass skip_empty=True "
                "(--skip-empty)."
            )
        if not passages:
            yield name, None
        for passage in passages:
            yield name, passage


def _rows(path: Path, max_chars: int) -> Iterator[Row]:
    # A character takes at most 12 bytes in JSON (two \uXXXX); metadata stands on the same line.
    limit = max(16 * 2**20, 12 * max_chars)
    ending = path.name.lower().removesuffix(".gz")
    if ending.endswith(".parquet"):
        return rows_of(parquet_cells(path), "row")
    if ending.endswith(".jsonl"):
        return rows_of(jsonl_cells(path, limit), "line")
    delimiter = "," if ending.endswith(".csv") else "\t"
    return rows_of(csv_cells(path, delimiter, limit, max_chars), "line")


def _check_ending(path: Path) -> None:
    if not path.name.lower().endswith(_ENDINGS):
        raise InputError(
            f"{path}: unknown kind of file. Expected one of {', '.join(_ENDINGS)}, a folder of "
            ".txt and .md files, or a BEIR folder; convert or rename the file."
        )


def _hint(message: str) -> str:
    return (
        " To leave such passages out, pass skip_empty=True (--skip-empty)."
        if "neither text" in message
        else ""
    )
