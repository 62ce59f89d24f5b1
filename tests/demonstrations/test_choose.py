"""The decision, with made-up scores: what is chosen where, and when it is used."""

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from epic_retrieval.demonstrations.candidates import Candidate
from epic_retrieval.demonstrations.choose import Choice, Setting, choose
from epic_retrieval.errors import InputError
from epic_retrieval.prompt import Mode
from epic_retrieval.tasks import Demonstration, Task
from tests.demonstrations.samples import pool

SETTING = Setting(queries=200, choosing=100, passages=999, model="made-up", fingerprint="f00")
TASK = Task("t", "Find it", (Demonstration("its own", "is not looked at"),))
PAIRS = pool(10)
NOISE = np.random.default_rng(0).uniform(0.3, 0.5, size=200)


def candidate(*numbers: int, mode: Mode = "epic") -> Candidate:
    return Candidate("random", numbers[0], mode, tuple(PAIRS[number] for number in numbers))


class MadeUp:
    """The score of the instruction alone, plus a gain per query for some demonstrations."""

    def __init__(self, gains: Mapping[int, NDArray[np.float64]]) -> None:
        self.gains = {PAIRS[number]: gain for number, gain in gains.items()}
        self.asked: list[tuple[int, Mode, slice]] = []

    def __call__(self, task: Task, mode: Mode, queries: slice) -> NDArray[np.float64]:
        assert (mode == "none") == (not task.demonstrations)
        self.asked.append((len(task.demonstrations), mode, queries))
        found = NOISE.copy()
        for one in task.demonstrations:
            found += self.gains.get(one, np.zeros(200))
        return found[queries]


def halves(choosing: float, deciding: float, spread: float = 0.05) -> NDArray[np.float64]:
    gains = np.random.default_rng(1).normal(0, spread, size=200)
    gains -= np.repeat([gains[:100].mean(), gains[100:].mean()], 100)
    planted: NDArray[np.float64] = gains + np.repeat([choosing, deciding], 100)
    return planted


def chosen(scorer: MadeUp, *candidates: Candidate, keep: bool = False) -> Choice:
    return choose(TASK, candidates, scorer, SETTING, keep=keep, resamples=2000)


def test_a_planted_demonstration_is_found_and_used() -> None:
    scorer = MadeUp({3: halves(0.1, 0.1), 5: halves(-0.1, 0.3)})
    result = chosen(scorer, *(candidate(number) for number in range(10)))
    assert result.task.demonstrations == (PAIRS[3],)
    assert result.best == candidate(3)
    record = result.task.selection
    assert record is not None
    assert (record.outcome, record.forced, record.k, record.seed) == ("with", False, 1, 3)
    assert (record.candidates, record.queries_choosing, record.queries_deciding) == (10, 100, 100)
    assert record.gain == pytest.approx(0.1, abs=1e-6)
    assert record.score_with - record.score_without == pytest.approx(record.gain, abs=2e-6)
    assert 0 < record.interval[0] < record.gain < record.interval[1]
    assert (record.model, record.fingerprint, record.passages) == ("made-up", "f00", 999)


def test_what_looked_good_where_it_was_chosen_is_not_used() -> None:
    result = chosen(MadeUp({3: halves(0.2, 0.0)}), candidate(2), candidate(3))
    record = result.task.selection
    assert record is not None
    assert result.best == candidate(3)
    assert dict(result.scores)[candidate(3)] > result.none
    assert record.outcome == "without"
    assert record.interval[0] < 0 < record.interval[1]
    assert result.task == TASK.without_demonstrations()


def test_no_gain_and_a_loss_are_not_used() -> None:
    for gains in ({}, {1: halves(-0.1, -0.1)}):
        result = chosen(MadeUp(gains), candidate(1))
        assert result.task.demonstrations == ()
        assert result.task.selection is not None
        assert result.task.selection.outcome == "without"


def test_keep_keeps_and_says_so() -> None:
    result = chosen(MadeUp({1: halves(-0.1, -0.1)}), candidate(1), keep=True)
    record = result.task.selection
    assert record is not None
    assert result.task.demonstrations == (PAIRS[1],)
    assert (record.outcome, record.forced) == ("with", True)
    certain = chosen(MadeUp({1: halves(0.1, 0.1)}), candidate(1), keep=True).task.selection
    assert certain is not None
    assert not certain.forced


def test_of_equals_the_shorter_prompt_wins() -> None:
    result = chosen(MadeUp({}), candidate(1, 2, 3), candidate(4, 5), candidate(6, 7))
    assert result.best == candidate(4, 5)


def test_only_the_best_is_scored_where_it_is_decided() -> None:
    scorer = MadeUp({2: halves(0.1, 0.1)})
    chosen(scorer, candidate(1), candidate(2, 3, mode="text"), candidate(4))
    deciding = [one for one in scorer.asked if one[2] == slice(100, 200)]
    assert deciding == [(0, "none", slice(100, 200)), (2, "text", slice(100, 200))]
    assert len(scorer.asked) == 1 + 3 + 2


def test_without_candidates() -> None:
    with pytest.raises(InputError, match="there are no candidates"):
        chosen(MadeUp({}))
