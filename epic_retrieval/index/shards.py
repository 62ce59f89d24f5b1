"""All shards of an index as one: vectors, passages, ids and filters by global row.

A global row is a place in the concatenation of the shards, in their order; deleted rows count.
Knows nothing of generations, of what is deleted, or of FAISS.
"""

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._connections import Connections
from epic_retrieval.index._fields import Mask
from epic_retrieval.index._span import SUPPORTED, Span
from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index.manifest import REBUILD, SHARDS, ShardInfo, check_folder
from epic_retrieval.index.passage import JSON, Passage
from epic_retrieval.index.rows import Rows, checked_rows, products_of_copies
from epic_retrieval.index.shard import Shard, hashes_of
from epic_retrieval.index.where import Condition, parse

_T = TypeVar("_T")
_CONNECTIONS = 64
# Up to so many bytes of vectors stay mapped after reading through them: the next time is quicker.
_KEEP_MAPPED = 2**30


class Shards:
    """Open shards in their order. Reading is thread-safe.

    Opening looks at sizes and the first bytes of vectors alone. No file stays open but those that
    SQLite reads, at most 64 at a time.

    Args:
        folder: Holds `shards/<name>/` for each shard.
        infos: What was built; the same shard may stand twice.
        dimension: Width that the vectors should have; None takes the first shard's.
        dtype: That they should be stored as; None takes the first shard's.

    Raises:
        InputError: There are no shards, and no dimension.
        PassageIndexError: From here and every method: a file is missing, a link, damaged, or not
            of the size it was built with; or the index is closed.
    """

    def __init__(
        self,
        folder: Path,
        infos: Iterable[ShardInfo],
        *,
        dimension: int | None = None,
        dtype: str | None = None,
    ) -> None:
        self._connections = Connections(_CONNECTIONS)
        self._shards: list[Shard] = []
        self._closed = False
        for info in infos:
            if not self._shards:
                check_folder(folder / SHARDS)
            shard = Shard.open(folder / SHARDS / info.name, info, self._connections)
            dimension = shard.dimension if dimension is None else dimension
            dtype = shard.dtype.name if dtype is None else dtype
            if (shard.dimension, shard.dtype.name) != (dimension, dtype):
                raise PassageIndexError(
                    f"{folder / SHARDS / info.name}: vectors of {shard.dimension} dimensions in "
                    f"{shard.dtype.name}, expected {dimension} in {dtype}. {REBUILD}"
                )
            self._shards.append(shard)
        if dimension is None:
            raise InputError("There are no shards: expected at least one, or a dimension.")
        self._dimension = dimension
        # Where each shard begins, and at the end the number of rows.
        self._starts = np.cumsum([0, *(shard.rows for shard in self._shards)])
        self._begins: list[int] = self._starts.tolist()
        self._count: int = self._begins[-1]
        self._span: Span | None = None
        self._lock = threading.Lock()

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self._dimension

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[int, Shard]]:
        """(first global row, shard) in order."""
        return zip(self._starts[:-1].tolist(), self._shards, strict=True)

    def take(self, rows: Rows) -> Vectors:
        """The vectors of these global rows, (n, dimension) float32; any order, repeats allowed.

        Sorted rows are taken some three times as fast.
        """
        self._check_open()
        wanted = checked_rows(rows, self._count)
        span = self._span or self._spanned()
        if span is not None:
            return span.take(wanted)
        found = np.empty((len(wanted), self._dimension), dtype=np.float32)
        for shard, places, local in self._parted(wanted):
            found[places] = shard.vectors[local]
        return found

    def products(self, queries: Vectors, rows: Rows) -> Vectors:
        """Inner products of each query with rows of its own, (n, c) float32; -inf for row -1."""
        self._check_open()
        span = self._span or self._spanned()
        if span is None or span.dtype != np.float32:
            return products_of_copies(self, queries, rows)
        wanted = checked_rows(np.maximum(rows, 0), self._count).reshape(rows.shape)
        found = span.products(queries, wanted)
        found[rows < 0] = -np.inf
        return found

    def blocks(self, rows_at_once: int, start: int = 0) -> Iterator[tuple[int, Vectors]]:
        """(first row, (n, dimension) float32) from `start` on, in order; ends of shards end blocks.

        Of more than a gigabyte of vectors, only one shard's stay in memory.
        """
        if rows_at_once < 1 or start < 0:
            raise InputError(f"rows_at_once is {rows_at_once}, start {start}: expected 1 and 0.")
        size = sum(shard.rows * shard.dtype.itemsize for shard in self._shards) * self._dimension
        for first, shard in self:
            self._check_open()
            if first + shard.rows <= start:
                continue
            vectors = shard.vectors if size <= _KEEP_MAPPED else shard.map_vectors()
            for local in range(max(start - first, 0), shard.rows, rows_at_once):
                block = vectors[local : local + rows_at_once]
                yield first + local, block.astype(np.float32, copy=False)

    def fetch(self, rows: Sequence[int] | Rows) -> list[Passage]:
        """The passages of these global rows, in the order asked for; repeats allowed."""
        return self._looked_up(rows, _fetched)

    def ids(self, rows: Sequence[int] | Rows) -> list[str]:
        """The ids of these global rows, in the order asked for; repeats allowed."""
        return self._looked_up(rows, lambda shard, local: shard.store.ids(local))

    def find(self, ids: Iterable[str], deleted: Rows | None = None) -> dict[str, int]:
        """The global rows of these ids, in the order of the ids; absent ones are left out.

        Args:
            ids: What to look for.
            deleted: Global rows that do not count, sorted. Of several rows that do count the last
                is given.
        """
        self._check_open()
        wanted = list(dict.fromkeys(ids))
        hashes = hashes_of(wanted)
        found: dict[str, int] = {}
        for start, shard in reversed(list(self)):
            if len(found) == len(wanted):
                break
            for key, row in shard.find(wanted, hashes).items():
                if key not in found and not _is_in(start + row, deleted):
                    found[key] = start + row
        return {key: found[key] for key in wanted if key in found}

    def where(self, condition: Mapping[str, JSON] | Condition) -> Rows:
        """The global rows whose passages match, sorted; deleted rows included.

        Raises:
            InputError: The condition is not as `epic_retrieval.index.where.parse` describes.
        """
        parsed = _parsed(condition)
        self._check_open()
        parts = [shard.store.where(parsed) + start for start, shard in self]
        return np.concatenate([np.empty(0, dtype=np.int64), *parts])

    def mask(self, condition: Mapping[str, JSON] | Condition) -> Mask:
        """For each global row, (rows,), whether its passage matches; deleted rows included.

        Raises:
            InputError: The condition is not as `epic_retrieval.index.where.parse` describes.
        """
        parsed = _parsed(condition)
        self._check_open()
        found = np.empty(len(self), dtype=np.bool_)
        for start, shard in self:
            found[start : start + shard.rows] = shard.store.mask(parsed)
        return found

    def close(self) -> None:
        """Let go of memory and files; a second call does nothing."""
        self._closed = True
        self._span = None
        self._connections.close()
        for shard in self._shards:
            shard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise PassageIndexError("The index is closed. Open it again.")

    def _spanned(self) -> Span | None:
        """The vectors of all shards as one; None on systems where that cannot be."""
        if not (SUPPORTED and self._shards):
            return None
        with self._lock:
            if self._span is None:
                self._span = Span(
                    [shard.vectors_path for shard in self._shards],
                    [shard.rows for shard in self._shards],
                    self._dimension,
                    self._shards[0].dtype,
                )
            return self._span

    def _parted(self, rows: Rows) -> Iterator[tuple[Shard, Rows, Rows]]:
        """For each shard that has some of these rows: it, their places in `rows`, its own rows."""
        if len(self._shards) == 1:
            yield self._shards[0], np.arange(len(rows)), rows
            return
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        edges = np.searchsorted(ordered, self._starts)
        for number in np.flatnonzero(edges[1:] > edges[:-1]).tolist():
            part = slice(edges[number], edges[number + 1])
            yield self._shards[number], order[part], ordered[part] - self._starts[number]

    def _looked_up(
        self, rows: Sequence[int] | Rows, look_up: Callable[[Shard, list[int]], list[_T]]
    ) -> list[_T]:
        self._check_open()
        wanted = checked_rows(np.asarray(rows, dtype=np.int64), self._count).tolist()
        # In Python alone: for the few rows of an answer that is the quickest.
        parts: dict[int, tuple[list[int], list[int]]] = {}
        for place, row in enumerate(wanted):
            number = bisect_right(self._begins, row) - 1
            part = parts.get(number)
            if part is None:
                part = parts[number] = [], []
            part[0].append(row - self._begins[number])
            part[1].append(place)
        found: dict[int, _T] = {}
        for number, (local, places) in parts.items():
            found.update(zip(places, look_up(self._shards[number], local), strict=True))
        return [found[place] for place in range(len(wanted))]


def _fetched(shard: Shard, rows: list[int]) -> list[Passage]:
    return shard.store.fetch(rows) if len(rows) > 1 else [shard.store.fetch_one(rows[0])]


def _parsed(condition: Mapping[str, JSON] | Condition) -> Condition:
    return condition if isinstance(condition, Condition) else parse(condition)


def _is_in(row: int, rows: Rows | None) -> bool:
    if rows is None:
        return False
    place = int(np.searchsorted(rows, row))
    return place < len(rows) and int(rows[place]) == row
