"""Rows of vectors that may be too many for memory: taken by number, or read through in blocks.

Knows nothing of where they lie.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index._vectors import Vectors

Rows = NDArray[np.int64]
_COPIED_BYTES = 16 << 20


class VectorRows(Protocol):
    """Vectors by row, from 0 on. Reading is thread-safe."""

    @property
    def dimension(self) -> int:
        """Width of the vectors."""

    def __len__(self) -> int:
        """How many rows there are."""

    def take(self, rows: Rows) -> Vectors:
        """The vectors of these rows, (n, dimension) float32, a copy; any order, repeats allowed.

        Raises:
            PassageIndexError: A row is not there (negative ones never are).
        """

    def products(self, queries: Vectors, rows: Rows) -> Vectors:
        """Inner products of each query with rows of its own, in single precision.

        Args:
            queries: (n, dimension) float32.
            rows: (n, c); -1 stands for none.

        Returns:
            (n, c) float32, -inf for none.

        Raises:
            PassageIndexError: A row is not there.
        """

    def blocks(self, rows_at_once: int, start: int = 0) -> Iterator[tuple[int, Vectors]]:
        """(first row, (n, dimension) float32) from `start` on, in order, 1 <= n <= rows_at_once.

        A block may be read-only and may end earlier than asked for.
        """


class ArrayRows:
    """The rows of one array.

    Args:
        vectors: (n, dimension) float32 or float16; may be memory-mapped.
    """

    def __init__(self, vectors: NDArray[np.float32] | NDArray[np.float16]) -> None:
        if vectors.ndim != 2:
            raise ValueError(f"vectors have the shape {vectors.shape}: expected (n, dimension).")
        self._vectors = vectors

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return int(self._vectors.shape[1])

    def __len__(self) -> int:
        return len(self._vectors)

    def take(self, rows: Rows) -> Vectors:
        """The vectors of these rows, (n, dimension) float32; any order, repeats allowed.

        Raises:
            PassageIndexError: A row is not there.
        """
        wanted = checked_rows(rows, len(self))
        return np.asarray(self._vectors[wanted], dtype=np.float32)

    def products(self, queries: Vectors, rows: Rows) -> Vectors:
        """Inner products of each query with rows of its own, (n, c) float32; -inf for row -1.

        Raises:
            PassageIndexError: A row is not there.
        """
        return products_of_copies(self, queries, rows)

    def blocks(self, rows_at_once: int, start: int = 0) -> Iterator[tuple[int, Vectors]]:
        """(first row, (n, dimension) float32) from `start` on, in order."""
        if rows_at_once < 1 or start < 0:
            raise ValueError(f"rows_at_once is {rows_at_once}, start {start}: expected 1 and 0.")
        for first in range(start, len(self), rows_at_once):
            block = self._vectors[first : first + rows_at_once]
            yield first, np.ascontiguousarray(block, dtype=np.float32)


def checked_rows(rows: Rows, count: int) -> Rows:
    """The rows as a flat int64 array.

    Raises:
        PassageIndexError: One is not in 0 to count - 1.
    """
    wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
    # Negative rows are large ones there.
    if wanted.size and int(wanted.view(np.uint64).max()) >= count:
        low, high = int(wanted.min()), int(wanted.max())
        bad = low if low < 0 else high
        raise PassageIndexError(
            f"There is no row {bad}; there are {count:,}, counted from 0. If it comes from a "
            "search, the index is damaged: build it again."
        )
    return wanted


def products_of_copies(held: VectorRows, queries: Vectors, rows: Rows) -> Vectors:
    """`VectorRows.products` by way of `VectorRows.take`."""
    found = np.full(rows.shape, -np.inf, np.float32)
    if not len(held):
        return found
    at_once = max(1, _COPIED_BYTES // (4 * held.dimension * max(1, rows.shape[1])))
    for first in range(0, len(queries), at_once):
        part = slice(first, first + at_once)
        taken = held.take(np.maximum(rows[part], 0).ravel())
        vectors = taken.reshape(*rows[part].shape, held.dimension)
        found[part] = np.matmul(vectors, queries[part, :, None])[:, :, 0]
    found[rows < 0] = -np.inf
    return found
