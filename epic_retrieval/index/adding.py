"""Adds rows to a trained structure in memory, block by block, each time in the same way.

Knows nothing of files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from epic_retrieval.errors import InputError
from epic_retrieval.index._faiss import load_faiss
from epic_retrieval.index.rows import VectorRows
from epic_retrieval.index.structure import FAISS_ERRORS, Parts, reason_of
from epic_retrieval.index.training import exchanged, quantizer_on_gpu, row_bytes

_MOST_AT_ONCE = 65_536
# Of the memory, so much at most is for vectors that are being added.
_SHARE = 8


@dataclass(frozen=True)
class Adder:
    """Adds rows to a structure; make one with `Adder.of`.

    Attributes:
        parts: The structure.
        rows: Where vectors come from.
        factory: For messages.
        seed: Of the levels of a graph.
        at_once: Rows that are added together, at the most.
        helper: Finds lists on a GPU; None without one.
    """

    parts: Parts
    rows: VectorRows
    factory: str
    seed: int
    at_once: int
    helper: Any

    @classmethod
    def of(cls, parts: Parts, rows: VectorRows, factory: str, memory: int, seed: int) -> "Adder":
        """One that keeps to a share of the memory, in bytes."""
        at_once = min(memory // _SHARE // row_bytes(parts), _MOST_AT_ONCE)
        return cls(parts, rows, factory, seed, max(1, at_once), quantizer_on_gpu(parts))

    def add(self, first: int, stop: int) -> Iterator[int]:
        """Add the rows first to stop - 1; after each block, the row that comes next.

        Raises:
            InputError: FAISS cannot add them.
        """
        if first >= stop:
            return
        for start, block in self.rows.blocks(self.at_once, first):
            vectors = block[: stop - start]
            try:
                self._add(start, vectors)
            except FAISS_ERRORS as error:
                raise InputError(
                    f'FAISS cannot add rows to "{self.factory}" ({reason_of(error)}).'
                ) from error
            yield start + len(vectors)
            if start + len(vectors) >= stop:
                return

    def _add(self, first: int, vectors: np.ndarray) -> None:
        whole, inner = self.parts.whole, self.parts.inner
        if self.parts.graph:
            # Files do not hold how far FAISS's own random numbers are.
            inner.hnsw.rng = load_faiss().RandomGenerator((self.seed + first) % 2**31)
        with exchanged(self.parts, self.helper):
            if self.parts.lists:
                whole.add_with_ids(vectors, np.arange(first, first + len(vectors)))
            else:
                whole.add(vectors)
