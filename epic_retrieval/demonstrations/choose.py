"""Which demonstrations a task gets, and whether it gets any.

The best candidate on one half of the development queries is compared with the instruction alone on
the other half: the best of many always looks good where it was chosen. Knows no model; scores come
from a function.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from epic_retrieval.demonstrations.bootstrap import Gain, paired_bootstrap
from epic_retrieval.demonstrations.candidates import Candidate
from epic_retrieval.demonstrations.ranking import METRIC
from epic_retrieval.demonstrations.scoring import Scorer
from epic_retrieval.errors import InputError
from epic_retrieval.tasks import Selection, Task

RESAMPLES = 10_000


@dataclass(frozen=True)
class Choice:
    """What came of a selection.

    Attributes:
        task: with the best candidate's demonstrations or without any, and the record.
        best: the best candidate on the choosing queries.
        gain: of the best candidate over none, on the deciding queries.
        none: mean score with the instruction alone on the choosing queries.
        scores: (candidate, mean score on the choosing queries), in the order tried.
    """

    task: Task
    best: Candidate
    gain: Gain
    none: float
    scores: tuple[tuple[Candidate, float], ...]


@dataclass(frozen=True)
class Setting:
    """What was scored on, for the record.

    Attributes:
        queries: to choose and to decide on, those that choose first.
        choosing: how many choose.
        passages: to be found.
        model: the encoder's name.
        fingerprint: of the model.
    """

    queries: int
    choosing: int
    passages: int
    model: str
    fingerprint: str


def choose(
    task: Task,
    candidates: Sequence[Candidate],
    score: Scorer,
    setting: Setting,
    *,
    keep: bool = False,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 42,
    tried: Callable[[], object] | None = None,
) -> Choice:
    """Choose the best candidate, and decide whether to use it.

    Args:
        task: instruction and kind; its own demonstrations count for nothing.
        candidates: at least one.
        score: of queries behind a prompt.
        setting: what `score` scores on.
        keep: keep the demonstrations also where the interval of their gain reaches 0 or less.
        confidence: of the interval.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        tried: called after each candidate.

    Raises:
        InputError: without candidates.
    """
    if not candidates:
        raise InputError("there are no candidates; give at least one set of demonstrations")
    bare = task.without_demonstrations()
    choosing, deciding = slice(0, setting.choosing), slice(setting.choosing, setting.queries)
    none = float(score(bare, "none", choosing).mean())
    scores = []
    for candidate in candidates:
        shown = task.with_demonstrations(candidate.demonstrations)
        scores.append((candidate, float(score(shown, candidate.mode, choosing).mean())))
        if tried is not None:
            tried()
    # Of equals, the one with the fewest demonstrations, then the first.
    best, _ = max(scores, key=lambda pair: (pair[1], -pair[0].k))
    shown = task.with_demonstrations(best.demonstrations)
    before = score(bare, "none", deciding)
    after = score(shown, best.mode, deciding)
    gain = paired_bootstrap(before, after, resamples=resamples, confidence=confidence, seed=seed)
    used = gain.certain or keep
    record = Selection(
        outcome="with" if used else "without",
        forced=used and not gain.certain,
        mode=best.mode,
        strategy=best.strategy,
        k=best.k,
        seed=best.seed,
        candidates=len(candidates),
        metric=METRIC,
        score_without=_rounded(before.mean()),
        score_with=_rounded(after.mean()),
        gain=_rounded(gain.mean),
        interval=(_rounded(gain.low), _rounded(gain.high)),
        confidence=confidence,
        queries_choosing=setting.choosing,
        queries_deciding=setting.queries - setting.choosing,
        passages=setting.passages,
        model=setting.model,
        fingerprint=setting.fingerprint,
    )
    chosen = replace(shown if used else bare, selection=record)
    return Choice(chosen, best, gain, none, tuple(scores))


def _rounded(value: float | np.float64) -> float:
    """For people who read the file; the sixth digit of a score means nothing."""
    return round(float(value), 6)
