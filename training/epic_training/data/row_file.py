"""Training rows in an Arrow IPC file: how they are written, and read at random without copies.

Texts are decoded straight from the mapped bytes, one by one: a row may have a hundred long
negatives of which a batch wants one, and Arrow's own scalars are slow.

Knows nothing of where rows come from and what files are called.
"""

import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from epic_retrieval.errors import InputError
from epic_training.data.rows import TrainingRow

LAYOUT = 1  # raise it when SCHEMA or the meaning of a column changes
SCHEMA = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),
        pa.field("positives", pa.list_(pa.string()), nullable=False),
        pa.field("negatives", pa.list_(pa.string()), nullable=False),
        pa.field("positive_scores", pa.list_(pa.float64()), nullable=False),
        pa.field("negative_scores", pa.list_(pa.float64()), nullable=False),
        pa.field("instruction", pa.string()),
        pa.field("kind", pa.string()),
    ]
)
# A record batch ends at so many rows or characters: what the writer holds in memory.
_BATCH_ROWS = 4096
_BATCH_CHARACTERS = 8 * 2**20


def write_row_file(path: Path, rows: Iterable[TrainingRow]) -> int:
    """Write all rows, or no file at all; returns how many there are.

    The file gets its name when it is complete and on the disk. Whatever interrupts the writing
    leaves at most `.NAME.*.part`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".{path.name}.{uuid.uuid4().hex}.part"
    count = 0
    try:
        with part.open("xb") as file:
            with pa.ipc.new_file(file, SCHEMA) as writer:
                for batch in _batches(rows):
                    writer.write_batch(batch)
                    count += len(batch)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return count


def _batches(rows: Iterable[TrainingRow]) -> Iterable[pa.RecordBatch]:
    columns: dict[str, list[object]] = {name: [] for name in SCHEMA.names}
    characters = 0
    for row in rows:
        for name, column in columns.items():
            column.append(getattr(row, name))
        characters += len(row.query) + sum(map(len, row.positives)) + sum(map(len, row.negatives))
        if characters >= _BATCH_CHARACTERS or len(columns["query"]) == _BATCH_ROWS:
            yield pa.RecordBatch.from_pydict(columns, SCHEMA)
            columns = {name: [] for name in SCHEMA.names}
            characters = 0
    if columns["query"]:
        yield pa.RecordBatch.from_pydict(columns, SCHEMA)


Item_co = TypeVar("Item_co", str, float, covariant=True)


class _Items(Protocol[Item_co]):
    def __getitem__(self, at: int) -> Item_co: ...


class Texts:
    """Texts of one record batch."""

    def __init__(self, column: pa.StringArray) -> None:
        _, offsets, content = column.buffers()
        known = np.frombuffer(offsets, np.int32) if offsets else np.zeros(1, np.int32)
        self._offsets = known[column.offset : column.offset + len(column) + 1]
        self._content = memoryview(content or b"")

    def __getitem__(self, at: int) -> str:
        start, end = self._offsets[at : at + 2].tolist()
        return str(self._content[start:end], "utf-8")


class Lists(Generic[Item_co]):
    """Lists of one record batch, whose items are read when they are asked for."""

    def __init__(self, column: pa.ListArray, items: _Items[Item_co]) -> None:
        self._offsets: NDArray[np.int32] = column.offsets.to_numpy()
        self._items: _Items[Item_co] = items

    def __getitem__(self, at: int) -> tuple[Item_co, ...]:
        return self.pick(at, range(self.count(at)))

    def pick(self, at: int, chosen: Sequence[int]) -> tuple[Item_co, ...]:
        """Some of the items of list `at`, in the order chosen."""
        start = int(self._offsets[at])
        if chosen and not (min(chosen) >= 0 and max(chosen) < self.count(at)):
            raise IndexError(f"items {list(chosen)} of {self.count(at)}")
        return tuple([self._items[start + item] for item in chosen])

    def count(self, at: int) -> int:
        """Length of list `at`."""
        return int(self._offsets[at + 1] - self._offsets[at])

    def counts(self) -> NDArray[np.int64]:
        """(lists,) the length of each."""
        return np.diff(self._offsets).astype(np.int64)


@dataclass(frozen=True, eq=False)
class RowBatch:
    """The columns of one record batch; rows count from 0 in each."""

    query: Texts
    positives: Lists[str]
    negatives: Lists[str]
    positive_scores: Lists[float]
    negative_scores: Lists[float]
    instruction: pa.StringArray
    kind: pa.StringArray

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> "RowBatch":
        """The columns of an Arrow record batch with `SCHEMA`; copies no text."""

        def texts(name: str) -> Lists[str]:
            return Lists(batch[name], Texts(batch[name].values))

        def numbers(name: str) -> Lists[float]:
            return Lists(batch[name], batch[name].values.to_numpy())

        return cls(
            Texts(batch["query"]),
            texts("positives"),
            texts("negatives"),
            numbers("positive_scores"),
            numbers("negative_scores"),
            batch["instruction"],
            batch["kind"],
        )


@dataclass(frozen=True, eq=False)
class RowFile:
    """A mapped file.

    Attributes:
        batches: its record batches.
        ends: batch i holds the rows from `ends[i - 1]` (0 for the first) up to `ends[i]`.
    """

    batches: tuple[RowBatch, ...]
    ends: tuple[int, ...]

    @classmethod
    def open(cls, path: Path) -> "RowFile":
        """Map a file that `write_row_file` wrote.

        Raises:
            InputError: there is none, or it was damaged since.
        """
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            if reader.schema != SCHEMA:
                raise pa.ArrowInvalid("other columns than expected")
            found = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{path}: not a readable file of training rows ({error}); delete it, and it is made"
                " again"
            ) from error
        return cls(tuple(map(RowBatch.of, found)), tuple(accumulate(map(len, found))))
