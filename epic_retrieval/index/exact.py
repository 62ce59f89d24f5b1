"""Exact search over rows of vectors, and exact scores for candidates that something else proposed.

Single precision finds who may belong among the k best, double precision decides: cosines are
computed row by row, so that a query's answer is the same in whatever company it is asked, and
equal ones are ordered by row. Knows nothing of passages, nor of approximate search.
"""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.errors import InputError
from epic_retrieval.index._faiss import load_faiss
from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index.ranking import Cosines, Found, merged, nothing, padded, ranked
from epic_retrieval.index.rows import Rows, VectorRows

__all__ = ["Allowed", "Found", "merged", "nearest", "rescore"]

Allowed: TypeAlias = NDArray[np.bool_]

# Single precision errs by about 1e-7 on cosines: what scores within this of the k-th best may
# belong before it.
_MARGIN = 1e-5
_SPARE = 16
_BLOCK_BYTES = 64 << 20
_PAIR_BYTES = 16 << 20
_QUERIES_AT_ONCE = 512
# Below this share of wanted rows, taking them one by one beats reading all.
_FEW = 1 / 8


def nearest(
    rows: VectorRows,
    queries: Vectors,
    k: int,
    allowed: Allowed | None = None,
    *,
    start: int = 0,
    rows_at_once: int | None = None,
) -> Found:
    """For each query the k rows of highest cosine: exactly those that double precision gives.

    In memory at once: one block of rows, and about 12 bytes times n times k.

    Args:
        rows: Vectors of length 1.
        queries: (n, dimension) float32, rows of length 1; n may be 0.
        k: At least 1.
        allowed: (len(rows),) bool: only these rows count; None means all.
        start: Rows before this one do not count.
        rows_at_once: Rows to a block; by default 64 MiB of them.

    Raises:
        InputError: `allowed` has another length than `rows`.
    """
    if allowed is not None and allowed.shape != (len(rows),):
        raise InputError(
            f"allowed has the shape {allowed.shape}: expected ({len(rows)},), a bool for each row."
        )
    best = nothing(len(queries), k)
    at_once = rows_at_once or max(1, _BLOCK_BYTES // (4 * rows.dimension))
    for numbers, vectors in _blocks(rows, allowed, start, at_once):
        for first in range(0, len(queries), _QUERIES_AT_ONCE):
            part = slice(first, first + _QUERIES_AT_ONCE)
            found = Found(best.cosines[part], best.rows[part])
            better = _improved(found, queries[part], numbers, vectors)
            best.cosines[part], best.rows[part] = better
    return padded(best)


def rescore(rows: VectorRows, queries: Vectors, candidates: Rows, k: int) -> Found:
    """The k best of each query's candidates, by cosines in double precision.

    Args:
        rows: Vectors of length 1.
        queries: (n, dimension) float32, rows of length 1.
        candidates: (n, c) int64 rows; -1 stands for none, and repeats count once.
        k: At least 1.
    """
    best = nothing(len(queries), k)
    width = max(1, candidates.shape[1])
    at_once = max(1, _BLOCK_BYTES // (4 * rows.dimension * width))
    for first in range(0, len(queries), at_once):
        part = slice(first, first + at_once)
        best.cosines[part], best.rows[part] = _rescored(rows, queries[part], candidates[part], k)
    return padded(best)


def _blocks(
    rows: VectorRows, allowed: Allowed | None, start: int, at_once: int
) -> Iterator[tuple[Rows, Vectors]]:
    """(row numbers, their vectors) for all rows that count, in order."""
    if allowed is not None and np.count_nonzero(allowed[start:]) <= _FEW * (len(rows) - start):
        wanted = np.flatnonzero(allowed[start:]) + start
        for first in range(0, len(wanted), at_once):
            numbers = wanted[first : first + at_once]
            yield numbers, rows.take(numbers)
        return
    for first, vectors in rows.blocks(at_once, start):
        numbers = np.arange(first, first + len(vectors))
        if allowed is None:
            yield numbers, vectors
            continue
        counted = allowed[first : first + len(vectors)]
        if counted.all():
            yield numbers, vectors
        elif counted.any():
            yield numbers[counted], vectors[counted]


def _improved(best: Found, queries: Vectors, numbers: Rows, vectors: Vectors) -> Found:
    """The best of `best` and of a block."""
    faiss = load_faiss()
    k = best.rows.shape[1]
    width = min(k + _SPARE, len(vectors))
    scores, places = faiss.knn(queries, vectors, width, faiss.METRIC_INNER_PRODUCT)
    floor = best.cosines[:, -1]
    if width >= k:
        # k rows of this block reach at least this in double precision.
        floor = np.maximum(floor, np.minimum(scores[:, k - 1], 1.0) - _MARGIN)
    query_of, column = np.nonzero(scores >= (floor - _MARGIN)[:, None])
    best = _joined(best, queries, numbers, vectors, query_of, places[query_of, column])
    if width == len(vectors):
        return best
    # Where so many scores are near-equal (copies of one passage, say) that some were left out.
    for query in np.flatnonzero(scores[:, -1] >= best.cosines[:, -1] - _MARGIN):
        near = np.flatnonzero(vectors @ queries[query] >= best.cosines[query, -1] - _MARGIN)
        more = np.setdiff1d(near, places[query])
        best = _joined(best, queries, numbers, vectors, np.full(len(more), query), more)
    return best


def _joined(
    best: Found,
    queries: Vectors,
    numbers: Rows,
    vectors: Vectors,
    query_of: Rows,
    place_of: Rows,
) -> Found:
    """The best of `best` and of pairs of a query and a place in `vectors`."""
    if not len(query_of):
        return best
    old_query, column = np.nonzero(best.rows >= 0)
    cosines = _cosines(queries, vectors, query_of, place_of)
    return ranked(
        np.concatenate([old_query, query_of]),
        np.concatenate([best.rows[old_query, column], numbers[place_of]]),
        np.concatenate([best.cosines[old_query, column], cosines]),
        *best.rows.shape,
    )


def _rescored(rows: VectorRows, queries: Vectors, candidates: Rows, k: int) -> Found:
    faiss = load_faiss()
    distinct, places = np.unique(candidates, return_inverse=True)
    # Some releases of numpy give the inverse flat.
    places = places.reshape(candidates.shape)
    missing = int(np.searchsorted(distinct, 0))
    vectors = rows.take(distinct[missing:])
    places = np.sort(np.maximum(places - missing, -1), axis=1)
    places[:, 1:][places[:, 1:] == places[:, :-1]] = -1
    queries = np.ascontiguousarray(queries)
    scores = np.empty(places.shape, np.float32)
    faiss.fvec_inner_products_by_idx(
        *(faiss.swig_ptr(array) for array in (scores, queries, vectors, places)),
        rows.dimension,
        *places.shape,
    )
    scores[places < 0] = -np.inf
    width = places.shape[1]
    if width > k:
        kth = np.minimum(np.partition(scores, width - k, axis=1)[:, width - k], 1.0)
        chosen = (scores >= (kth - 2 * _MARGIN)[:, None]) & (places >= 0)
    else:
        chosen = places >= 0
    query_of, column = np.nonzero(chosen)
    place_of = places[query_of, column]
    cosines = _cosines(queries, vectors, query_of, place_of)
    return ranked(query_of, distinct[missing:][place_of], cosines, len(queries), k)


def _cosines(queries: Vectors, vectors: Vectors, query_of: Rows, place_of: Rows) -> Cosines:
    """Cosines of pairs, one for each entry of `query_of` and `place_of`."""
    exact = queries.astype(np.float64)
    cosines = np.empty(len(query_of), np.float64)
    at_once = max(1, _PAIR_BYTES // (8 * queries.shape[1]))
    for first in range(0, len(query_of), at_once):
        part = slice(first, first + at_once)
        # Multiplied and then summed along the row: a matrix product would round by position.
        cosines[part] = (vectors[place_of[part]] * exact[query_of[part]]).sum(axis=1)
    return np.clip(cosines, -1.0, 1.0, out=cosines)
