"""Search parameters found by trying, and the recall that is said of them."""

from pathlib import Path

import numpy as np
import pytest

from epic_retrieval.errors import InputError
from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index.ann import Ann, train_and_add
from epic_retrieval.index.exact import nearest, rescore
from epic_retrieval.index.ranking import Found
from epic_retrieval.index.rows import ArrayRows
from epic_retrieval.index.tune import Trial, Tuned, recall_of, tune
from tests.index.clustered import clustered

COUNT, DIMENSION = 6000, 32


@pytest.fixture(scope="module")
def rows() -> ArrayRows:
    # Few clusters, so that the nearest rows lie in several lists.
    return ArrayRows(clustered(COUNT, DIMENSION, clusters=8))


@pytest.fixture(scope="module")
def queries() -> Vectors:
    return clustered(60, DIMENSION, seed=9, clusters=8)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("structures")


def opened(kept: Path, rows: ArrayRows, factory: str) -> Ann:
    folder = kept / factory.replace(",", "-")
    path = train_and_add(rows, factory, memory=32 << 20, folder=folder)
    return Ann.read(path, factory, len(rows), DIMENSION, mmap=True)


def measured(rows: ArrayRows, ann: Ann, queries: Vectors, tuned: Tuned) -> float:
    proposed = ann.propose(queries, tuned.parameters["candidates"], tuned.parameters)
    found = rescore(rows, queries, proposed, tuned.k)
    return recall_of(found, nearest(rows, queries, tuned.k))


@pytest.mark.parametrize(
    "factory", ["HNSW16_SQ8", "IVF64,SQ8", "IVF64,PQ16x4fs", "PQ16x4fs", "PCA24,IVF64,Flat"]
)
@pytest.mark.parametrize("target", [0.8, 0.95])
def test_the_target_is_reached(
    kept: Path, rows: ArrayRows, queries: Vectors, factory: str, target: float
) -> None:
    ann = opened(kept, rows, factory)
    tuned = tune(rows, ann, queries, target=target)
    assert tuned.reached
    assert tuned.recall >= target
    assert tuned.recall == measured(rows, ann, queries, tuned)
    names = {"candidates"} if ann.effort is None else {"candidates", ann.effort}
    assert set(tuned.parameters) == names
    assert (tuned.queries, tuned.made, tuned.k) == (60, False, 10)
    # No trial that reached the target was clearly faster.
    times = [trial.milliseconds for trial in tuned.trials if trial.recall >= target]
    assert tuned.milliseconds <= min(time for time in times if time) / 0.95 + 1e-9
    assert str(tuned).endswith(" ms a query (60 queries)")


def test_less_recall_takes_less_effort(kept: Path, rows: ArrayRows, queries: Vectors) -> None:
    ann = opened(kept, rows, "IVF64,SQ8")
    least = []
    for target in (0.5, 0.99):
        trials = tune(rows, ann, queries, target=target).trials
        assert trials[0].parameters["nprobe"] == 1
        least.append(next(t.parameters["nprobe"] for t in trials if t.recall >= target))
    assert least[0] < least[1]


def test_queries_are_made_where_none_are_given(kept: Path, rows: ArrayRows) -> None:
    ann = opened(kept, rows, "IVF64,SQ8")
    tuned = tune(rows, ann, target=0.9, sample=100, k=3)
    assert (tuned.queries, tuned.made) == (100, True)
    assert str(tuned).endswith("(100 queries made from stored vectors)")
    assert f"(with 95 % confidence at least {tuned.least:.3f})" in str(tuned)
    assert 0.9 <= tuned.least < tuned.recall
    again = tune(rows, ann, target=0.9, sample=100, k=3)
    # Times differ, but the same is tried.
    same = min(len(tuned.trials), len(again.trials))
    assert [(t.parameters, t.recall) for t in tuned.trials[:same]] == [
        (t.parameters, t.recall) for t in again.trials[:same]
    ]
    few = str(tune(rows, ann, target=0.9, sample=49, k=3))
    assert "confidence" not in few
    assert "(of fewer than 50 queries, which says little of others)" in few
    # Few rows, all of them alike or not, will do.
    alone = ArrayRows(np.eye(DIMENSION, dtype=np.float32)[:3])
    one = train_and_add(alone, "SQfp16", memory=1 << 20, folder=kept / "alone")
    found = tune(alone, Ann.read(one, "SQfp16", 3, DIMENSION, mmap=True), k=1)
    assert found.recall == 1.0
    assert found.parameters["candidates"] <= 3


def test_copies_of_one_vector_count_for_each_other(kept: Path) -> None:
    vectors = np.repeat(clustered(100, DIMENSION), 40, axis=0)
    rows = ArrayRows(vectors)
    ann = opened(kept, rows, "IVF32,Flat")
    first = tune(rows, ann, vectors[::80], target=1.0).trials[0]
    assert (first.parameters["nprobe"], first.recall) == (1, 1.0)


def test_a_target_out_of_reach(kept: Path, rows: ArrayRows, queries: Vectors) -> None:
    ann = opened(kept, rows, "PQ4x4fs")
    seen: list[Trial] = []
    tuned = tune(rows, ann, queries, target=0.999, progress=seen.append)
    assert not tuned.reached
    assert tuned.trials == tuple(seen)
    assert tuned.recall == max(trial.recall for trial in seen)
    assert tuned.milliseconds > 0
    assert "short of 0.999: the best that was found" in str(tuned)


def test_only_living_rows_count(kept: Path, rows: ArrayRows) -> None:
    ann = opened(kept, rows, "IVF64,SQ8")
    alive = np.arange(COUNT) % 3 == 0
    tuned = tune(rows, ann, target=0.95, allowed=alive)
    queries = rows.take(np.flatnonzero(alive)[:50])
    proposed = ann.propose(queries, tuned.parameters["candidates"], tuned.parameters, alive)
    assert alive[proposed].all()
    truth = nearest(rows, queries, 10, alive)
    assert recall_of(rescore(rows, queries, proposed, 10), truth) > 0.9


def test_later_rows_do_not_count(kept: Path, rows: ArrayRows, queries: Vectors) -> None:
    ann = opened(kept, rows, "IVF64,SQ8")
    longer = ArrayRows(np.concatenate([rows.take(np.arange(COUNT)), queries]))
    assert tune(longer, ann, queries, target=0.95).reached


def test_recall_against_its_definition() -> None:
    truth = Found(
        np.array([[0.9, 0.8, 0.8], [0.5, 0.4, np.nan], [np.nan] * 3]),
        np.array([[4, 1, 2], [7, 3, -1], [-1, -1, -1]]),
    )
    found = Found(
        # Row 8 is as near as rows 1 and 2; row 3 is missed; nothing can be found for the last.
        np.array([[0.9, 0.8, 0.7], [0.5, np.nan, np.nan], [np.nan] * 3]),
        np.array([[4, 8, 9], [7, -1, -1], [-1, -1, -1]]),
    )
    assert recall_of(found, truth) == 3 / 5
    assert recall_of(truth, truth) == 1.0


@pytest.mark.parametrize("target", [0.0, 1.5, float("nan")])
def test_wrong_targets(kept: Path, rows: ArrayRows, target: float) -> None:
    with pytest.raises(InputError, match="expected more than 0, at most 1"):
        tune(rows, opened(kept, rows, "IVF64,SQ8"), target=target)


def test_nothing_to_tune_with(kept: Path, rows: ArrayRows, queries: Vectors) -> None:
    ann = opened(kept, rows, "IVF64,SQ8")
    with pytest.raises(InputError, match="nothing to tune with"):
        tune(rows, ann, queries[:0])
    with pytest.raises(InputError, match="nothing to tune with"):
        tune(rows, ann, allowed=np.zeros(COUNT, np.bool_))
