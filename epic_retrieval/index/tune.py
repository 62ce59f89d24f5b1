"""Finds the fastest search parameters that reach a wished recall, by trying.

Truth is exact search over the same rows. Knows nothing of passages or folders.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from epic_retrieval.errors import InputError
from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index.ann import Ann
from epic_retrieval.index.exact import Allowed
from epic_retrieval.index.rows import VectorRows
from epic_retrieval.index.trials import SAMPLE, Trial, milliseconds, recall_of, task_of, trials_of

__all__ = ["Trial", "Tuned", "recall_of", "tune"]

# What gets slower than the fastest by this much is followed no further.
_HOPELESS = 1.5
# The spread between fewer queries says little of others.
_TELLING = 50
# Less gain of time than this may be chance.
_WORTH = 0.95


@dataclass(frozen=True)
class Tuned:
    """The outcome.

    Attributes:
        parameters: The fastest that reach the target; else those of the best recall.
        recall: With them: the share of the true k best that is found, in [0, 1].
        k: Of that recall.
        milliseconds: For one query alone, median; its candidates are scored in it.
        target: The wished recall.
        queries: How many were asked.
        made: Whether these were made-up, from stored vectors.
        least: What the recall of other such queries falls below once in 20 times, or less often:
            the parameters are the fastest for which it reaches the target. Fewer than 50 queries
            are too few to rely on it.
        trials: All that was tried.
    """

    parameters: Mapping[str, int]
    recall: float
    k: int
    milliseconds: float
    target: float
    queries: int
    made: bool
    least: float
    trials: tuple[Trial, ...]

    @property
    def reached(self) -> bool:
        """Whether the recall is as wished."""
        return self.recall >= self.target

    def __str__(self) -> str:
        chosen = ", ".join(f"{name} {value}" for name, value in self.parameters.items())
        missed = "" if self.reached else f", short of {self.target:g}: the best that was found"
        least = f" (with 95 % confidence at least {max(self.least, 0.0):.3f})"
        if self.queries < _TELLING:
            least = f" (of fewer than {_TELLING} queries, which says little of others)"
        asked = "queries made from stored vectors" if self.made else "queries"
        return (
            f"{chosen}: recall@{self.k} {self.recall:.3f}{least}{missed}, "
            f"{self.milliseconds:.2f} ms a query ({self.queries} {asked})"
        )


def tune(
    rows: VectorRows,
    ann: Ann,
    queries: Vectors | None = None,
    *,
    target: float = 0.95,
    k: int = 10,
    allowed: Allowed | None = None,
    sample: int = SAMPLE,
    seed: int = 0,
    progress: Callable[[Trial], None] | None = None,
) -> Tuned:
    """Try parameters, from the fastest on.

    Args:
        rows: Vectors, of which the first are in `ann`; only those count.
        ann: The structure.
        queries: (n, dimension) float32, rows of length 1: held-out queries. None makes some from
            stored vectors; see `epic_retrieval.index.unseen`.
        target: The wished recall, in (0, 1].
        k: Of the recall.
        allowed: (ann.rows,) bool: the rows that are alive; ignored if `ann` takes no filter.
        sample: How many queries to make.
        seed: Of making them.
        progress: Called after each trial.

    Raises:
        InputError: The target is no share, or there is nothing to search.
    """
    if not 0 < target <= 1:
        raise InputError(f"The wished recall is {target!r}: expected more than 0, at most 1.")
    if allowed is not None and not ann.supports_filter:
        allowed = None
    task = task_of(rows, ann, queries, k=k, allowed=allowed, sample=sample, seed=seed)
    trials: list[Trial] = []
    best: Trial | None = None
    for trial in trials_of(task, target):
        trials.append(trial)
        if progress is not None:
            progress(trial)
        if trial.milliseconds is None:
            continue
        if best is None or trial.milliseconds < _WORTH * (best.milliseconds or 0):
            best = trial
        elif trial.milliseconds > _HOPELESS * (best.milliseconds or 0):
            break
    if best is None:
        best = max(trials, key=lambda trial: trial.recall)
        best = replace(best, milliseconds=milliseconds(task, best.parameters))
    return Tuned(
        parameters=best.parameters,
        recall=best.recall,
        k=k,
        milliseconds=best.milliseconds or 0.0,
        target=target,
        queries=len(task.queries),
        made=task.made,
        least=best.least,
        trials=tuple(trials),
    )
