"""Search parameters, tried one after another against exact search.

Knows nothing of which of them to take.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from epic_retrieval.errors import InputError
from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index.ann import CANDIDATES, EF_SEARCH, Ann
from epic_retrieval.index.exact import Allowed, nearest, rescore
from epic_retrieval.index.ranking import Found
from epic_retrieval.index.rows import Rows, VectorRows
from epic_retrieval.index.unseen import unseen_queries

# Candidates to try, in units of k.
_WIDTHS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_TIMED = 64
# How many queries to make where none are given.
SAMPLE = 256
# More effort that gains less than this, so many times in a row, will not reach the target.
_GAIN = 0.001
_PATIENCE = 3


@dataclass(frozen=True)
class Trial:
    """Parameters that were tried, and what came of it; not timed where the target was missed.

    Attributes:
        parameters: What was tried.
        recall: Over all queries.
        least: What the recall of other such queries falls below once in 20 times, or less often:
            this is compared with the target.
        milliseconds: For one query alone, median.
    """

    parameters: Mapping[str, int]
    recall: float
    least: float
    milliseconds: float | None


class Task(NamedTuple):
    """What parameters are tried on.

    Attributes:
        rows: The vectors.
        ann: The structure.
        queries: (n, dimension) float32.
        made: Whether the queries are made-up.
        truth: The k best of each query.
        k: Of the recall.
        allowed: (ann.rows,) bool, or None.
    """

    rows: VectorRows
    ann: Ann
    queries: Vectors
    made: bool
    truth: Found
    k: int
    allowed: Allowed | None


def recall_of(found: Found, truth: Found) -> float:
    """The share of the true best that was found; another row of the same cosine counts as well."""
    return _recalls(found, truth)[0]


def _recalls(found: Found, truth: Found) -> tuple[float, float]:
    """The recall, and what that of as many other queries is unlikely to fall below."""
    known = truth.rows >= 0
    least = np.where(known, truth.cosines, np.inf).min(axis=1, keepdims=True)
    hits = ((found.rows >= 0) & (found.cosines >= least)).sum(axis=1)
    total = known.sum(axis=1)
    if not total.any():
        return 1.0, 1.0
    hits, total = np.minimum(hits, total)[total > 0], total[total > 0]
    recall = float(hits.sum() / total.sum())
    # Of one side, 95 %, by the spread between queries.
    return recall, recall - 1.645 * float(np.std(hits / total)) / math.sqrt(len(hits))


def task_of(
    rows: VectorRows,
    ann: Ann,
    queries: Vectors | None = None,
    *,
    k: int,
    allowed: Allowed | None = None,
    sample: int = SAMPLE,
    seed: int = 0,
) -> Task:
    """The task for these arguments of `tune`.

    Raises:
        InputError: There are no queries, nor rows that could be some.
    """
    counted = np.zeros(len(rows), np.bool_)
    counted[: ann.rows] = True if allowed is None else allowed
    made = queries is None
    if queries is None:
        queries = unseen_queries(rows, np.flatnonzero(counted), sample, seed)
    if not len(queries):
        raise InputError("There is nothing to tune with: give queries, or rows that are alive.")
    return Task(rows, ann, queries, made, nearest(rows, queries, k, counted), k, allowed)


def trials_of(task: Task, target: float) -> Iterator[Trial]:
    """Trials from the least effort on, until more of it is in vain; endless it never is."""
    before, vain = -1.0, 0
    for effort in _efforts(task):
        parameters = {} if task.ann.effort is None else {task.ann.effort: effort}
        widths = _widths(task, effort)
        proposed = _proposed(task, parameters, widths[-1])
        recall, least = _measured(task, proposed)
        if least < target:
            yield Trial({**parameters, CANDIDATES: widths[-1]}, recall, least, None)
            vain = vain + 1 if recall - before < _GAIN else 0
            before = max(before, recall)
            if vain == _PATIENCE:
                return
            continue
        for width in widths:
            if _measured(task, proposed[:, :width])[1] < target:
                continue
            # Codes for fast-scan are ordered a little differently when fewer are asked for.
            recall, least = _measured(task, _proposed(task, parameters, width))
            if least >= target:
                chosen = {**parameters, CANDIDATES: width}
                yield Trial(chosen, recall, least, milliseconds(task, chosen))
                break


def measured(task: Task, parameters: Mapping[str, int]) -> float:
    """The recall with these parameters."""
    count = max(task.k, parameters.get(CANDIDATES, 1))
    return _measured(task, _proposed(task, parameters, count))[0]


def milliseconds(task: Task, parameters: Mapping[str, int]) -> float:
    """Of one query alone, the median; its candidates are scored in it."""
    times = []
    for place in range(min(_TIMED, len(task.queries))):
        query = task.queries[place : place + 1]
        begun = time.perf_counter()
        proposed = task.ann.propose(query, parameters[CANDIDATES], parameters, task.allowed)
        rescore(task.rows, query, proposed, task.k)
        times.append(time.perf_counter() - begun)
    return float(np.median(times) * 1000)


def _efforts(task: Task) -> Iterator[int]:
    """1, 2, 3, 4, 6, 8, 12 and so on; once if there is nothing to set."""
    if task.ann.effort is None:
        yield 1
        return
    # A graph looks at as many nodes as it proposes rows, at the least.
    effort = task.k if task.ann.effort == EF_SEARCH else 1
    while effort < task.ann.most_effort:
        yield effort
        effort += max(1, effort // 2) if effort & (effort - 1) == 0 else effort // 3
    yield task.ann.most_effort


def _widths(task: Task, effort: int) -> list[int]:
    most = min(task.ann.rows, effort) if task.ann.effort == EF_SEARCH else task.ann.rows
    wished = (round(width * task.k) for width in _WIDTHS)
    return sorted({min(width, max(most, 1)) for width in wished})


def _proposed(task: Task, parameters: Mapping[str, int], count: int) -> Rows:
    return task.ann.propose(task.queries, count, parameters, task.allowed)


def _measured(task: Task, proposed: Rows) -> tuple[float, float]:
    return _recalls(rescore(task.rows, task.queries, proposed, task.k), task.truth)
