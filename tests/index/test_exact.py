"""Exact search against a twin that sorts all cosines in double precision."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from epic_retrieval.errors import InputError
from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index.exact import nearest, rescore
from epic_retrieval.index.ranking import Found, merged
from epic_retrieval.index.rows import ArrayRows


class RaggedRows(ArrayRows):
    """Blocks end where they like, as those of shards do."""

    def blocks(self, rows_at_once: int, start: int = 0) -> Iterator[tuple[int, Vectors]]:
        while start < len(self):
            size = 1 + (start * 7) % rows_at_once
            vectors = self.take(np.arange(start, min(start + size, len(self))))
            yield start, vectors
            start += len(vectors)


def unit(vectors: NDArray[np.float64]) -> Vectors:
    found: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return found


def draw(seed: int, count: int, dimension: int, *, distinct: int | None = None) -> Vectors:
    """Unit vectors; with `distinct`, copies of so many, some of them off by a last bit."""
    random = np.random.default_rng(seed)
    if distinct is None:
        return unit(random.standard_normal((count, dimension)))
    vectors = unit(random.standard_normal((distinct, dimension)))
    vectors = vectors[random.integers(0, distinct, count)]
    vectors[random.random(count) < 0.2, 0] *= np.float32(1 + 2**-22)
    return vectors


def twin(
    vectors: Vectors, queries: Vectors, k: int, allowed: NDArray[np.bool_] | None = None
) -> Found:
    cosines = np.full((len(queries), k), np.nan)
    rows = np.full((len(queries), k), -1)
    for place, query in enumerate(queries):
        pairs = []
        for row, vector in enumerate(vectors):
            if allowed is None or allowed[row]:
                product = vector.astype(np.float64) * query.astype(np.float64)
                pairs.append((-float(np.clip(product.sum(), -1, 1)), row))
        for rank, (minus, row) in enumerate(sorted(pairs)[:k]):
            cosines[place, rank], rows[place, rank] = -minus, row
    return Found(cosines, rows)


def some(found: Found, queries: slice) -> Found:
    return Found(found.cosines[queries], found.rows[queries])


def check_same(found: Found, expected: Found) -> None:
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.cosines, expected.cosines)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_nearest_equals_the_twin(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 10**6))
    count = data.draw(st.integers(1, 90))
    dimension = data.draw(st.sampled_from([1, 2, 5, 24, 65]))
    distinct = data.draw(st.sampled_from([None, 1, 2, 30]))
    k = data.draw(st.sampled_from([1, 3, 10, 100]))
    vectors = draw(seed, count, dimension, distinct=distinct)
    queries = np.concatenate([draw(seed + 1, 2, dimension), vectors[:2]])
    share = data.draw(st.sampled_from([None, 0.0, 0.05, 0.5, 1.0]))
    allowed = None if share is None else np.random.default_rng(seed).random(count) < share
    at_once = data.draw(st.sampled_from([1, 7, 40, None]))
    rows = data.draw(st.sampled_from([ArrayRows, RaggedRows]))(vectors)
    expected = twin(vectors, queries, k, allowed)
    check_same(nearest(rows, queries, k, allowed, rows_at_once=at_once), expected)
    start = data.draw(st.integers(0, count))
    for place in range(len(queries)):
        # Alone, rows are passed over where several queries have the others copied.
        alone = slice(place, place + 1)
        found = nearest(rows, queries[alone], k, allowed, rows_at_once=at_once)
        check_same(found, some(expected, alone))
    late = np.arange(count) >= start
    both = late if allowed is None else late & allowed
    found = nearest(rows, queries, k, allowed, start=start, rows_at_once=at_once)
    check_same(found, twin(vectors, queries, k, both))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rescore_equals_the_twin(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 10**6))
    random = np.random.default_rng(seed)
    count, width, k = (data.draw(st.integers(1, 60)) for _ in range(3))
    distinct = data.draw(st.sampled_from([None, 1, 4]))
    vectors = draw(seed, count, 24, distinct=distinct)
    queries = draw(seed + 1, 3, 24)
    candidates = random.integers(-1, count, (3, width))
    found = rescore(ArrayRows(vectors), queries, candidates, k)
    for place in range(3):
        allowed = np.isin(np.arange(count), candidates[place])
        expected = twin(vectors, queries[place : place + 1], k, allowed)
        check_same(some(found, slice(place, place + 1)), expected)


@pytest.mark.parametrize("distinct", [None, 3])
def test_answers_do_not_depend_on_the_other_queries(distinct: int | None) -> None:
    vectors = draw(0, 3000, 48, distinct=distinct)
    queries = draw(1, 700, 48)
    rows = ArrayRows(vectors)
    together = nearest(rows, queries, 10, rows_at_once=1000)
    candidates = np.random.default_rng(2).integers(0, 3000, (700, 64))
    scored = rescore(rows, queries, candidates, 10)
    for place in (0, 1, 350, 699):
        alone = slice(place, place + 1)
        check_same(nearest(rows, queries[alone], 10), some(together, alone))
        one = rescore(rows, queries[alone], candidates[alone], 10)
        check_same(one, some(scored, alone))


def test_half_precision_rows_and_no_queries() -> None:
    vectors = draw(0, 50, 16).astype(np.float16)
    queries = draw(1, 3, 16)
    check_same(
        nearest(ArrayRows(vectors), queries, 5), twin(vectors.astype(np.float32), queries, 5)
    )
    nothing = nearest(ArrayRows(vectors), queries[:0], 5)
    assert nothing.rows.shape == nothing.cosines.shape == (0, 5)
    assert rescore(ArrayRows(vectors), queries[:0], np.empty((0, 4), np.int64), 5).rows.size == 0
    assert (rescore(ArrayRows(vectors), queries, np.full((3, 4), -1), 5).rows == -1).all()
    assert (rescore(ArrayRows(vectors), queries, np.empty((3, 0), np.int64), 5).rows == -1).all()


def test_answers_over_parts_are_merged() -> None:
    vectors = draw(0, 90, 8, distinct=20)
    queries = draw(1, 4, 8)
    rows = ArrayRows(vectors)
    first = np.arange(90) < 40
    parts = [nearest(rows, queries, 7, first), nearest(rows, queries, 7, start=40)]
    check_same(merged(parts, 7), nearest(rows, queries, 7))
    check_same(merged(parts[:1], 60), _wide(parts[0], 60))


def _wide(found: Found, k: int) -> Found:
    missing = k - found.rows.shape[1]
    return Found(
        np.pad(found.cosines, ((0, 0), (0, missing)), constant_values=np.nan),
        np.pad(found.rows, ((0, 0), (0, missing)), constant_values=-1),
    )


def test_allowed_of_another_length_is_refused() -> None:
    vectors = draw(0, 10, 8)
    with pytest.raises(InputError, match=r"allowed has the shape \(9,\): expected \(10,\)"):
        nearest(ArrayRows(vectors), vectors, 1, np.ones(9, np.bool_))
