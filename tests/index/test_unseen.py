"""Queries that are made where none are given."""

from pathlib import Path

import numpy as np
import pytest

from epic_retrieval.index.ann import Ann, train_and_add
from epic_retrieval.index.exact import nearest, rescore
from epic_retrieval.index.rows import ArrayRows
from epic_retrieval.index.tune import recall_of, tune
from epic_retrieval.index.unseen import unseen_queries
from tests.index.clustered import clustered


def test_they_lie_beside_the_rows_that_they_are_made_from() -> None:
    rows = ArrayRows(clustered(3000, 48))
    counted = np.arange(0, 3000, 3)
    made = unseen_queries(rows, counted, 200, 0)
    assert made.shape == (200, 48)
    assert made.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
    best = nearest(rows, made, 1).cosines[:, 0]
    # Half of such a query is the row, half is chance.
    assert 0.6 < best.mean() < 0.85
    assert best.max() < 0.999
    np.testing.assert_array_equal(made, unseen_queries(rows, counted, 200, 0))
    assert not np.array_equal(made, unseen_queries(rows, counted, 200, 1))


def test_few_rows_and_rows_that_are_alike() -> None:
    alike = ArrayRows(np.repeat(clustered(100, 16)[:1], 30, axis=0))
    np.testing.assert_allclose(
        unseen_queries(alike, np.arange(30), 5, 0), alike.take(np.arange(5)), atol=1e-4
    )
    one = ArrayRows(clustered(100, 16)[:1])
    assert unseen_queries(one, np.arange(1), 256, 0).shape == (1, 16)
    assert unseen_queries(one, np.arange(0), 256, 0).shape == (0, 16)


@pytest.mark.parametrize("factory", ["HNSW16_SQ8", "IVF128,Flat", "IVF128,SQ8", "IVF128,PQ24x4fs"])
def test_what_is_promised_is_kept_for_queries_that_nobody_saw(tmp_path: Path, factory: str) -> None:
    rows = ArrayRows(clustered(12_000, 48, clusters=40))
    path = train_and_add(rows, factory, memory=64 << 20, folder=tmp_path / "made")
    ann = Ann.read(path, factory, len(rows), 48, mmap=True)
    tuned = tune(rows, ann, target=0.9)
    assert tuned.reached
    assert 0.9 <= tuned.least <= tuned.recall
    new = clustered(3000, 48, seed=7, clusters=40)  # many: the figure itself is to be exact
    proposed = ann.propose(new, tuned.parameters["candidates"], tuned.parameters)
    assert recall_of(rescore(rows, new, proposed, 10), nearest(rows, new, 10)) > 0.89
