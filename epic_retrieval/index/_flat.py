"""Exact search in a Flat index: the same answer for the same query, in whatever company.

FAISS alone computes a query's scores on different paths, with different rounding, depending on
how many queries come together, and returns equal scores in any order. Here it proposes, and
double precision decides. Knows nothing of passages.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.index._vectors import Vectors

# Single precision errs by about 1e-7 on cosines: what scores within this of the k-th best may
# belong before it.
_MARGIN = 1e-5
_SPARE = 16
_BLOCK = 4096


class FlatIndex(Protocol):
    """What is used of a FAISS IndexFlat of inner products."""

    ntotal: int

    def search(self, x: Vectors, k: int) -> tuple[Vectors, NDArray[np.int64]]:
        """Scores and rows, (n, k) each, best first."""

    def range_search(
        self, x: Vectors, thresh: float
    ) -> tuple[NDArray[np.int64], Vectors, NDArray[np.int64]]:
        """Borders between queries, scores and rows of all that score above the threshold."""

    def reconstruct_batch(self, key: NDArray[np.int64]) -> Vectors:
        """The vectors of these rows, (n, dimension)."""


def nearest(index: FlatIndex, queries: Vectors, k: int) -> list[list[tuple[int, float]]]:
    """For each query the k best (row, cosine), best first, equal ones by row.

    Args:
        index: Holds at least k vectors.
        queries: (n, dimension) float32, rows of length 1.
        k: At least 1.
    """
    return [
        _ranked(index, query, rows, k)
        for query, rows in zip(queries, _candidates(index, queries, k), strict=True)
    ]


def _candidates(index: FlatIndex, queries: Vectors, k: int) -> Iterator[NDArray[np.int64]]:
    """For each query the rows that may be among the k best, in any order."""
    if not len(queries):
        return
    width = min(k + _SPARE, index.ntotal)
    scores, rows = index.search(queries, width)
    for place, score in enumerate(scores):
        bound = float(score[k - 1]) - _MARGIN
        if width < index.ntotal and score[-1] >= bound:
            # So many near-equal scores (copies of one passage, say) that some may be left out.
            yield index.range_search(queries[place : place + 1], bound)[2]
        else:
            yield rows[place]


def _ranked(
    index: FlatIndex,
    query: Vectors,
    rows: NDArray[np.int64],
    k: int,
) -> list[tuple[int, float]]:
    rows = np.sort(rows)
    # Row by row and then summed along the row: a matrix product would round by position.
    blocks = [
        (index.reconstruct_batch(rows[start : start + _BLOCK]) * query.astype(np.float64)).sum(1)
        for start in range(0, len(rows), _BLOCK)
    ]
    cosines = np.clip(np.concatenate(blocks), -1.0, 1.0)
    best = np.argsort(-cosines, kind="stable")[:k]
    return [(int(rows[place]), float(cosines[place])) for place in best]
