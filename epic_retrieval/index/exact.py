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
# Candidates of as many queries are scored at once as stay in the processor's cache.
_CACHED_BYTES = 512 << 10
# So many more than k are scored in double precision, unless single precision leaves more.
_EXTRA = 6
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
    whole = len(queries) == 1
    for numbers, vectors, counted in _blocks(rows, allowed, start, at_once, whole=whole):
        for first in range(0, len(queries), _QUERIES_AT_ONCE):
            part = slice(first, first + _QUERIES_AT_ONCE)
            found = Found(best.cosines[part], best.rows[part])
            better = _improved(found, queries[part], numbers, vectors, counted)
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
    if not (candidates.size and len(rows)):
        return padded(nothing(len(queries), k))
    # In order, so that a stable sort leaves equal cosines by row.
    numbers = np.sort(candidates, axis=1)
    again = numbers[:, 1:] == numbers[:, :-1]
    complete = int(numbers[:, 0].min()) >= 0
    if again.any():
        complete = False
        numbers[:, 1:][again] = -1
    if numbers.shape[1] > k + _EXTRA:
        numbers = _likely(rows, queries, numbers, k)
    at_once = max(1, _CACHED_BYTES // (8 * rows.dimension * numbers.shape[1]))
    if len(queries) <= at_once:
        return _scored(rows, queries, numbers, k, complete=complete)
    edges = [(first, first + at_once) for first in range(0, len(queries), at_once)]
    parts = [
        _scored(rows, queries[first:stop], numbers[first:stop], k, complete=complete)
        for first, stop in edges
    ]
    return Found(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _blocks(
    rows: VectorRows, allowed: Allowed | None, start: int, at_once: int, *, whole: bool
) -> Iterator[tuple[Rows, Vectors, Allowed | None]]:
    """(row numbers, their vectors, which of them count or None for all) in order.

    With `whole`, blocks may hold rows that do not count: to copy the others takes longer than
    FAISS needs for one query, but less than it needs to pass over rows for several.
    """
    if allowed is not None and np.count_nonzero(allowed[start:]) <= _FEW * (len(rows) - start):
        wanted = np.flatnonzero(allowed[start:]) + start
        for first in range(0, len(wanted), at_once):
            numbers = wanted[first : first + at_once]
            yield numbers, rows.take(numbers), None
        return
    for first, vectors in rows.blocks(at_once, start):
        numbers = np.arange(first, first + len(vectors))
        if allowed is None:
            yield numbers, vectors, None
            continue
        counted = allowed[first : first + len(vectors)]
        if counted.all():
            yield numbers, vectors, None
        elif counted.any() and whole:
            yield numbers, vectors, counted
        elif counted.any():
            yield numbers[counted], vectors[counted], None


def _improved(
    best: Found, queries: Vectors, numbers: Rows, vectors: Vectors, counted: Allowed | None
) -> Found:
    """The best of `best` and of a block, of which the rows in `counted` count."""
    k = best.rows.shape[1]
    total = len(vectors) if counted is None else int(np.count_nonzero(counted))
    width = min(k + _SPARE, total)
    scores, places = _near(queries, vectors, width, counted)
    floor = best.cosines[:, -1]
    if width >= k:
        # k rows of this block reach at least this in double precision.
        floor = np.maximum(floor, np.minimum(scores[:, k - 1], 1.0) - _MARGIN)
    query_of, column = np.nonzero(scores >= (floor - _MARGIN)[:, None])
    best = _joined(best, queries, numbers, vectors, query_of, places[query_of, column])
    if width == total:
        return best
    # Where so many scores are near-equal (copies of one passage, say) that some were left out.
    for query in np.flatnonzero(scores[:, -1] >= best.cosines[:, -1] - _MARGIN):
        close = vectors @ queries[query] >= best.cosines[query, -1] - _MARGIN
        near = np.flatnonzero(close if counted is None else close & counted)
        more = np.setdiff1d(near, places[query])
        best = _joined(best, queries, numbers, vectors, np.full(len(more), query), more)
    return best


def _near(
    queries: Vectors, vectors: Vectors, width: int, counted: Allowed | None
) -> tuple[Vectors, Rows]:
    """Inner products in single precision and places of the best, (n, width) each."""
    faiss = load_faiss()
    if counted is None:
        found: tuple[Vectors, Rows] = faiss.knn(queries, vectors, width, faiss.METRIC_INNER_PRODUCT)
        return found
    queries, vectors = np.ascontiguousarray(queries), np.ascontiguousarray(vectors)
    # FAISS holds no reference to the bits; they live until this returns.
    bits = np.packbits(counted, bitorder="little")
    scores = np.empty((len(queries), width), np.float32)
    places = np.empty((len(queries), width), np.int64)
    faiss.knn_inner_product(
        *(faiss.swig_ptr(array) for array in (queries, vectors)),
        vectors.shape[1],
        len(queries),
        len(vectors),
        width,
        *(faiss.swig_ptr(array) for array in (scores, places)),
        faiss.IDSelectorBitmap(len(counted), faiss.swig_ptr(bits)),
    )
    return scores, places


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


def _likely(rows: VectorRows, queries: Vectors, numbers: Rows, k: int) -> Rows:
    """Of each query's rows, (n, c), the k and some more that single precision finds best.

    All of them, where it leaves more in question.
    """
    scores = rows.products(queries, numbers)
    width = numbers.shape[1] - k - _EXTRA
    order = np.argpartition(scores, (width - 1, width + _EXTRA), axis=1)
    queries_of = np.arange(len(order))[:, None]
    edges = scores[queries_of, order[:, [width - 1, width + _EXTRA]]]
    if not np.all(edges[:, 0] < np.minimum(edges[:, 1], 1.0) - 2 * _MARGIN):
        return numbers
    return numbers[queries_of, np.sort(order[:, width:], axis=1)]


def _scored(rows: VectorRows, queries: Vectors, numbers: Rows, k: int, *, complete: bool) -> Found:
    """The k best of each query's rows, (n, c), in order; -1 stands for none unless `complete`."""
    flat = (numbers if complete else np.maximum(numbers, 0)).ravel()
    products = rows.take(flat).astype(np.float64).reshape(*numbers.shape, rows.dimension)
    products *= queries[:, None, :]
    # Multiplied and then summed along the row: a matrix product would round by position.
    cosines = np.add.reduce(products, axis=2)
    np.minimum(cosines, 1.0, out=cosines)
    np.maximum(cosines, -1.0, out=cosines)
    if not complete:
        cosines[numbers < 0] = -np.inf
    order = (-cosines).argsort(axis=1, kind="stable")[:, :k]
    if len(order) == 1:
        found = Found(cosines[:, order[0]], numbers[:, order[0]])
    else:
        queries_of = np.arange(len(order))[:, None]
        found = Found(cosines[queries_of, order], numbers[queries_of, order])
    if complete and order.shape[1] == k:
        return found
    best = nothing(len(order), k)
    best.cosines[:, : order.shape[1]], best.rows[:, : order.shape[1]] = found
    return padded(best)


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
