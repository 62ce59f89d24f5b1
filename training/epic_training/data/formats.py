"""Training rows from the formats in which data sets are published, streaming.

    pairs          JSON Lines `{"query", "positive", "negative"?}` (E5, Echo embeddings). Positive
                   and negative may be lists; "" or null is no negative. A folder with
                   `pairs.jsonl[.gz]` counts as that file.
    flagembedding  JSON Lines `{"query", "pos": [], "neg": [], "pos_scores"?, "neg_scores"?,
                   "prompt"?, "type"?}`.
    beir           A folder with corpus, queries and judgements (see `epic_training.data.beir`).
    triplets       Columns by name: anchor, query, sentence1 or question; positive, sentence2,
                   answer or response; negative, negative_1, ... In JSON Lines, CSV, TSV, a folder
                   that `datasets` saved, or a hub id `owner/name[:config]`, of which split "train"
                   is read: the only case that may use the network. An empty cell is no negative.
    parquet        A file, or a folder with `.parquet` files at any depth, with the columns of
                   pairs, flagembedding or triplets.

Text files may be compressed (`.gz`), start with a byte order mark, end lines in CRLF and hold empty
lines. Every row is checked; the first that breaks a rule raises with file, line (or row) and why.

Knows nothing of mixes, batches or tokens.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import cast

from epic_retrieval.errors import InputError
from epic_retrieval.tasks.task import located
from epic_training.data.beir import beir_files, beir_rows
from epic_training.data.columns import RowKind, check_columns, kind_of, row_of
from epic_training.data.files import PlacedCells, csv_rows, ending, json_rows
from epic_training.data.rows import TrainingRow
from epic_training.data.tables import (
    hub_rows,
    is_hub_id,
    is_saved_dataset,
    parquet_columns,
    parquet_rows,
    saved_dataset_rows,
)

FORMATS = ("pairs", "flagembedding", "beir", "triplets", "parquet")

_JSON = (".jsonl", ".json")
_CSV = (".csv", ".tsv")
_PAIRS = ("pairs.jsonl.gz", "pairs.jsonl")


def read_rows(path: Path, format: str) -> Iterator[TrainingRow]:  # noqa: A002 (what users call it)
    """The rows of a data set, one by one, in the order of the source.

    Args:
        path: file, folder or, for "triplets", hub id.
        format: one of `FORMATS`.

    Raises:
        InputError: while iterating: an unknown format, a path that does not fit it, a bad row.
    """
    files = source_files(path, format)
    if format == "beir":
        yield from beir_rows(path)
        return
    for source, kind, rows in _tables(path, format, files):
        for place, cells in rows:
            try:
                row = row_of(cells, kind)
            except InputError as error:
                raise InputError(f"{source}, {place}: {error}") from error.__cause__
            yield row


def source_files(path: Path, format: str) -> tuple[Path, ...]:  # noqa: A002
    """The files that make a data set: what changes when it does. None for a hub id.

    Raises:
        InputError: an unknown format, or a path that does not exist or does not fit it.
    """
    if format not in FORMATS:
        raise InputError(f"unknown format {format!r}; expected one of {', '.join(FORMATS)}")
    if format == "triplets" and is_hub_id(path):
        return ()
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder; correct the path")
    if format == "beir":
        return beir_files(path)
    if path.is_dir():
        return _inside(path, format)
    endings = {"triplets": _JSON + _CSV, "parquet": (".parquet",)}.get(format, _JSON)
    if ending(path) not in endings:
        raise InputError(
            f"{path}: format {format!r} is read from files that end in {', '.join(endings)}; name"
            " the right format, or convert or rename the file"
        )
    return (path,)


def guess_format(path: Path) -> str:
    """The format of a file or folder, by its name and, for JSON Lines, its first row.

    Raises:
        InputError: nothing there, or nothing that a format fits. A hub id is never guessed: say
            "triplets" for one.
    """
    if not path.exists():
        hint = "; for a data set on the hub, name the format: triplets" if is_hub_id(path) else ""
        raise InputError(f"{path}: there is no such file or folder; correct the path{hint}")
    if path.is_dir():
        for fits, found in (
            (any((path / name).is_file() for name in _PAIRS), "pairs"),
            (any((path / f"corpus.jsonl{gz}").is_file() for gz in ("", ".gz")), "beir"),
            (is_saved_dataset(path), "triplets"),
            (any(path.rglob("*.parquet")), "parquet"),
        ):
            if fits:
                return found
    elif ending(path) == ".parquet":
        return "parquet"
    elif ending(path) in _CSV:
        return "triplets"
    elif ending(path) in _JSON:
        for _, cells in islice(json_rows(path), 1):
            return kind_of(cells)
        raise InputError(f"{path}: no rows; expected one JSON object a line")
    raise InputError(
        f"{path}: cannot tell its format; name one of {', '.join(FORMATS)}, or correct the path"
    )


def _inside(folder: Path, format: str) -> tuple[Path, ...]:  # noqa: A002
    """The files of a folder, for the formats whose data set may be one."""
    if format == "pairs":
        found = [folder / name for name in _PAIRS if (folder / name).is_file()]
        if len(found) != 1:
            fault = "holds both" if found else "holds neither"
            raise InputError(f"{folder} {fault} {' and '.join(_PAIRS)}; expected one of them")
    elif format == "parquet":
        found = sorted(folder.rglob("*.parquet"))
        if not found:
            raise InputError(f"{folder}: holds no .parquet file; correct the path or the format")
    elif format == "triplets":
        if not is_saved_dataset(folder):
            raise InputError(
                f"{folder}: not a folder that datasets' save_to_disk wrote; name a file of it, or"
                " another format"
            )
        found = sorted(path for path in folder.rglob("*") if path.suffix in (".arrow", ".json"))
    else:
        raise InputError(
            f"{folder} is a folder, but format {format!r} is read from a file; each file is a data"
            " set of its own"
        )
    return tuple(found)


def _tables(
    path: Path,
    format: str,  # noqa: A002
    files: tuple[Path, ...],
) -> Iterator[tuple[Path, RowKind, Iterator[PlacedCells]]]:
    if not files:
        yield path, "triplets", hub_rows(path)
    elif format == "triplets" and path.is_dir():
        yield path, "triplets", saved_dataset_rows(path)
    else:
        for file in files:
            if format == "parquet":
                columns = parquet_columns(file)
                kind = kind_of(columns)
                with located(str(file)):
                    check_columns(kind, columns)
                yield file, kind, parquet_rows(file)
            else:
                rows = csv_rows(file) if ending(file) in _CSV else json_rows(file)
                yield file, cast("RowKind", format), rows
