"""nDCG, the bootstrap and the ways to find candidates, against other people's code or by hand."""

import ir_measures
import numpy as np
import pytest
from ir_measures import Qrel, ScoredDoc, nDCG
from scipy.stats import bootstrap

from epic_retrieval.demonstrations import paired_bootstrap
from epic_retrieval.demonstrations.candidates import candidates, farthest_first, medoids
from epic_retrieval.demonstrations.ranking import ndcg
from epic_retrieval.errors import InputError
from tests.demonstrations.samples import pool


def unit(vectors: np.ndarray) -> np.ndarray:
    found: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found.astype(np.float32)


def test_ndcg_agrees_with_ir_measures() -> None:
    draw = np.random.default_rng(0)
    queries, passages = unit(draw.normal(size=(40, 6))), unit(draw.normal(size=(50, 6)))
    relevant = [
        {int(row): int(draw.integers(1, 4)) for row in draw.permutation(50)[: 1 + n % 15]}
        for n in range(40)
    ]
    judged = [Qrel(str(n), str(p), g) for n, one in enumerate(relevant) for p, g in one.items()]
    scores = queries @ passages.T
    run = [ScoredDoc(str(n), str(p), float(scores[n, p])) for n in range(40) for p in range(50)]
    expected = {one.query_id: one.value for one in ir_measures.iter_calc([nDCG @ 10], judged, run)}
    found = ndcg(queries, passages, relevant)
    np.testing.assert_allclose(found, [expected[str(n)] for n in range(40)], atol=1e-9)


def test_of_equal_scores_the_first_passage_ranks_first() -> None:
    query, passages = np.ones((1, 2), np.float32), np.ones((30, 2), np.float32)
    assert ndcg(query, passages, [{0: 1}])[0] == 1
    assert ndcg(query, passages, [{9: 1}])[0] == pytest.approx(1 / np.log2(11))
    assert ndcg(query, passages, [{10: 1}])[0] == 0


def test_the_bootstrap_agrees_with_scipy() -> None:
    draw = np.random.default_rng(1)
    before = draw.uniform(size=200)
    after = before + draw.normal(0.02, 0.2, size=200)
    found = paired_bootstrap(before, after, seed=3)
    expected = bootstrap(
        (after - before,), np.mean, n_resamples=10_000, method="percentile", random_state=3
    ).confidence_interval
    assert found.mean == pytest.approx(float((after - before).mean()))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-3)
    assert paired_bootstrap(before, after, seed=3) == found
    assert paired_bootstrap(before, after, seed=4) != found
    narrow = paired_bootstrap(before, after, confidence=0.5)
    assert found.low < narrow.low < narrow.high < found.high


def test_a_gain_is_certain_only_above_zero() -> None:
    before, better = np.zeros(50), np.full(50, 0.1)
    assert paired_bootstrap(before, better).certain
    assert not paired_bootstrap(before, before).certain
    assert not paired_bootstrap(better, before).certain
    one_of_many = np.zeros(50)
    one_of_many[7] = 1.0
    assert not paired_bootstrap(before, one_of_many).certain, "one query proves nothing"
    with pytest.raises(ValueError, match=r"shape \(1,\)"):
        paired_bootstrap(np.zeros(1), np.zeros(1))


def test_the_interval_holds_what_it_promises() -> None:
    """Nineteen times in twenty, near enough, over many samples of no gain."""
    draw = np.random.default_rng(2)
    gains = [
        paired_bootstrap(np.zeros(60), draw.normal(size=60), resamples=500) for _ in range(400)
    ]
    held = sum(one.low <= 0 <= one.high for one in gains) / len(gains)
    assert 0.91 < held < 0.98


# --- candidates

# Three tight groups of 10, 6 and 4, and one row of its own.
CENTRES = unit(np.array([[1.0, 0, 0.1], [0, 1, 0], [0.1, 0, 1], [-1, -1, 0]]))
GROUPS = np.repeat([0, 1, 2, 3], [10, 6, 4, 1])
VECTORS = unit(CENTRES[GROUPS] + np.random.default_rng(5).normal(0, 0.01, size=(21, 3)))


def test_diverse_takes_one_of_each_group() -> None:
    rows = farthest_first(VECTORS, 4)
    assert sorted(GROUPS[rows]) == [0, 1, 2, 3]
    assert GROUPS[rows[0]] == 0, "it begins in the middle"
    assert len(set(farthest_first(VECTORS, 21))) == 21


def test_typical_takes_the_middle_of_groups_the_largest_first() -> None:
    rows = medoids(VECTORS[:20], 3, seed=2)
    assert GROUPS[rows].tolist() == [0, 1, 2]
    for row in rows:
        members = VECTORS[GROUPS[row] == GROUPS]
        assert VECTORS[row] @ members.sum(axis=0) == pytest.approx(
            (members @ members.sum(axis=0)).max()
        )
    assert len(set(medoids(VECTORS, 21, seed=0))) == 21
    assert len(set(medoids(np.ones((8, 3), np.float32), 5, seed=0))) == 5, "all the same"


def test_candidates_are_every_combination_once() -> None:
    pairs = pool(21)
    found = candidates(
        pairs, lambda: VECTORS, counts=(2, 3), draws=2, seed=7, modes=("epic", "text")
    )
    kinds = {(one.strategy, one.k, one.seed, one.mode) for one in found}
    assert len(found) == len(kinds) == 2 * 2 * (2 + 1 + 1)
    assert ("random", 3, 8, "text") in kinds
    assert ("diverse", 2, 7, "epic") in kinds
    again = candidates(
        pairs, lambda: VECTORS, counts=(2, 3), draws=2, seed=7, modes=("epic", "text")
    )
    assert found == again
    assert all(len({pair.query for pair in one.demonstrations}) == one.k for one in found)
    draws = [one.demonstrations for one in found if one.strategy == "random" and one.k == 3]
    assert len(set(draws)) == 2


def test_random_draws_look_at_no_vectors() -> None:
    def never() -> np.ndarray:
        raise AssertionError

    assert len(candidates(pool(9), never, strategies=("random",), draws=4)) == 4
    one = candidates(pool(1), never, strategies=("random",), draws=4, counts=(1,))
    assert len(one) == 1, "the same set is tried once"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategies": ("best",)}, "strategy is 'best'; expected one of random, diverse, typical"),
        ({"counts": (0,)}, "expected at least one"),
        ({"counts": ()}, "expected at least one"),
        ({"draws": 0}, "expected at least one"),
        ({"counts": (5, 22)}, "21 pairs to choose 22 demonstrations from"),
    ],
)
def test_candidates_refuse(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        candidates(pool(21), lambda: VECTORS, **change)  # type: ignore[arg-type]
