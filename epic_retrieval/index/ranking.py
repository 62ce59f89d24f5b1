"""The best rows for queries: their shape, their order, and how several answers become one.

Knows nothing of vectors.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.index.rows import Rows

Cosines: TypeAlias = NDArray[np.float64]


class Found(NamedTuple):
    """The best rows for each query, best first, equal cosines by row.

    Attributes:
        cosines: (n, k) float64, in [-1, 1]; NaN where there are fewer than k rows.
        rows: (n, k) int64; -1 where there are fewer.
    """

    cosines: Cosines
    rows: Rows


def merged(parts: Sequence[Found], k: int) -> Found:
    """The k best of several answers to the same queries, over rows that no two of them share."""
    cosines = np.concatenate([part.cosines for part in parts], axis=1)
    rows = np.concatenate([part.rows for part in parts], axis=1)
    query_of, column = np.nonzero(rows >= 0)
    return padded(ranked(query_of, rows[query_of, column], cosines[query_of, column], len(rows), k))


def ranked(query_of: Rows, rows: Rows, cosines: Cosines, count: int, k: int) -> Found:
    """The k best of each of `count` queries, from pairs of a query and a row.

    Args:
        query_of: (pairs,) int64.
        rows: (pairs,) int64; a pair stands once.
        cosines: (pairs,) float64.
        count: Number of queries.
        k: At least 1.

    Returns:
        Of shape (count, k); not yet `padded`.
    """
    best = nothing(count, k)
    order = np.lexsort((rows, -cosines, query_of))
    query_of = query_of[order]
    rank = np.arange(len(order)) - np.searchsorted(query_of, query_of)
    kept = rank < k
    place = query_of[kept], rank[kept]
    best.cosines[place] = cosines[order[kept]]
    best.rows[place] = rows[order[kept]]
    return best


def nothing(count: int, k: int) -> Found:
    """No rows for any query: cosines are -inf, so that any other is better."""
    return Found(np.full((count, k), -np.inf), np.full((count, k), -1, np.int64))


def padded(best: Found) -> Found:
    """The same, with NaN for the cosines of missing rows."""
    best.cosines[best.rows < 0] = np.nan
    return best
