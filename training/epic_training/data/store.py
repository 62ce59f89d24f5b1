"""A data set, checked and written as one Arrow file on first use, then memory-mapped.

Training needs no more memory than a batch, whatever the size of the data set. The file's name says
what it was made from: format, paths, sizes, times of change. A changed source makes a new file; old
ones may be deleted at any time. A first pass that was interrupted is done again.

Knows nothing of what formats look like, of mixes and of batches.
"""

import logging
import os
import re
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from epic_retrieval.errors import InputError
from epic_retrieval.storage import digest_of
from epic_training.data.formats import read_rows, source_files
from epic_training.data.row_file import LAYOUT, RowBatch, RowFile, write_row_file
from epic_training.data.rows import TrainingRow

logger = logging.getLogger(__name__)

_ENDINGS = re.compile(r"(\.(jsonl|json|csv|tsv|parquet))?(\.gz)?\Z", re.IGNORECASE)
_ABANDONED = 24 * 3600  # seconds since the last write


class RowStore:
    """The rows of a data set, by number from 0.

    Holds a path: the file is mapped on first use, in every process that uses it, so a store can be
    handed to the workers of a DataLoader.

    Args:
        path: of a file that `open_rows` wrote.

    Raises:
        InputError: on first use, when the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: RowFile | None = None
        self._process = 0

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_file": None, "_process": 0}

    def __len__(self) -> int:
        return self._open().ends[-1]

    def __getitem__(self, number: int) -> TrainingRow:
        """The whole row.

        Raises:
            IndexError: there is no such row.
        """
        batch, at = self._at(number)
        return TrainingRow(
            batch.query[at],
            batch.positives[at],
            batch.negatives[at],
            batch.positive_scores[at],
            batch.negative_scores[at],
            batch.instruction[at].as_py(),
            batch.kind[at].as_py(),
        )

    def select(self, number: int, positive: int, negatives: Sequence[int]) -> TrainingRow:
        """A row with one of its positives, some of its negatives, and their scores.

        The other texts are not read.

        Raises:
            IndexError: there is no such row, positive or negative.
        """
        batch, at = self._at(number)
        scored = batch.positive_scores.count(at) > 0
        return TrainingRow(
            batch.query[at],
            batch.positives.pick(at, [positive]),
            batch.negatives.pick(at, negatives),
            batch.positive_scores.pick(at, [positive] if scored else []),
            batch.negative_scores.pick(at, negatives if scored else []),
        )

    def query(self, number: int) -> str:
        """The query of a row alone."""
        batch, at = self._at(number)
        return batch.query[at]

    def counts(self, number: int) -> tuple[int, int]:
        """How many positives and negatives a row has."""
        batch, at = self._at(number)
        return batch.positives.count(at), batch.negatives.count(at)

    def negative_counts(self) -> NDArray[np.int64]:
        """(rows,) how many negatives each row has."""
        return np.concatenate([batch.negatives.counts() for batch in self._open().batches])

    def constant(self, column: Literal["instruction", "kind"]) -> str | None:
        """What all rows say in this column; None when none of them says anything.

        Raises:
            InputError: naming the first row that differs from row 1.
        """
        expected = getattr(self[0], column)
        start = 0
        for batch in self._open().batches:
            values = batch.instruction if column == "instruction" else batch.kind
            if values.unique().to_pylist() != [expected]:
                found = values.to_pylist()
                at = next(at for at, value in enumerate(found) if value != expected)
                raise InputError(
                    f"row {start + at + 1} has the {column} {found[at]!r}, but row 1 has"
                    f" {expected!r}"
                )
            start += len(values)
        return expected if isinstance(expected, str) else None

    def _at(self, number: int) -> tuple[RowBatch, int]:
        file = self._open()
        if not 0 <= number < file.ends[-1]:
            raise IndexError(f"row {number} of {file.ends[-1]}")
        index = bisect_right(file.ends, number)
        return file.batches[index], int(number) - (file.ends[index - 1] if index else 0)

    def _open(self) -> RowFile:
        if self._file is None or self._process != os.getpid():
            self._file, self._process = RowFile.open(self.path), os.getpid()
        return self._file


def open_rows(source: Path, format: str, cache: Path) -> RowStore:  # noqa: A002 (users call it so)
    """The rows of a data set, from the cache if it was read before; else it is read now.

    Several processes may do this at once: each writes a file of its own, and the last one stays.

    Args:
        source: file, folder or hub id (see `read_rows`). A hub id is not looked up again once it
            was read: delete its file to do so.
        format: one of `formats.FORMATS`.
        cache: folder for the file, `<name>-<digest>.arrow`; made if there is none.

    Raises:
        InputError: the source cannot be read, breaks a rule, has no rows, or changes meanwhile.
    """
    before = _state(source, format)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", _ENDINGS.sub("", source.resolve().name)) or "rows"
    path = cache / f"{name}-{digest_of(before)[:16]}.arrow"
    if not path.is_file():
        _sweep(cache)
        rows = tqdm(_whole(source, format, before), desc=name, unit=" rows", mininterval=1)
        count = write_row_file(path, rows)
        logger.info("%s: %d rows in %s", source, count, path)
    return RowStore(path)


def _whole(source: Path, format: str, before: list[object]) -> Iterator[TrainingRow]:  # noqa: A002
    """All rows; raises at the end, before the file gets its name, when they are not to be kept."""
    row = None
    for row in read_rows(source, format):
        yield row
    if row is None:
        raise InputError(f"{source}: has no rows; expected some")
    if _state(source, format) != before:
        raise InputError(f"{source}: was changed while it was read; read it again")


def _state(source: Path, format: str) -> list[object]:  # noqa: A002
    """What decides the rows, short of the contents of files."""
    state: list[object] = [LAYOUT, format]
    files = source_files(source, format)
    for file in files:
        status = file.stat()
        state.append([str(file.resolve()), status.st_size, status.st_mtime_ns])
    return state if files else [*state, source.as_posix()]


def _sweep(cache: Path) -> None:
    """Remove what first passes left that were killed."""
    for part in cache.glob(".*.arrow.*.part"):
        try:
            if time.time() - part.stat().st_mtime > _ABANDONED:
                part.unlink()
        except OSError:  # another process was quicker, or the folder is not ours
            continue
