"""Search parameters, tried one after another against exact search.

Knows nothing of which of them to take.
"""

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

# Candidates to try, in units of k.
_WIDTHS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_TIMED = 64
# More effort that gains less than this, so many times in a row, will not reach the target.
_GAIN = 0.001
_PATIENCE = 3


@dataclass(frozen=True)
class Trial:
    """Parameters that were tried, and what came of it; not timed where the target was missed."""

    parameters: Mapping[str, int]
    recall: float
    milliseconds: float | None


class Task(NamedTuple):
    """What parameters are tried on.

    Attributes:
        rows: The vectors.
        ann: The structure.
        queries: (n, dimension) float32.
        own: (n,) int64: the rows that the queries are, where they are stored vectors; else None.
        truth: The k best of each query, without its own row.
        k: Of the recall.
        allowed: (ann.rows,) bool, or None.
    """

    rows: VectorRows
    ann: Ann
    queries: Vectors
    own: Rows | None
    truth: Found
    k: int
    allowed: Allowed | None


def recall_of(found: Found, truth: Found) -> float:
    """The share of the true best that was found; another row of the same cosine counts as well."""
    known = truth.rows >= 0
    least = np.where(known, truth.cosines, np.inf).min(axis=1, keepdims=True)
    hits = ((found.rows >= 0) & (found.cosines >= least)).sum(axis=1)
    total = int(known.sum())
    return float(np.minimum(hits, known.sum(axis=1)).sum() / total) if total else 1.0


def task_of(
    rows: VectorRows,
    ann: Ann,
    queries: Vectors | None,
    k: int,
    allowed: Allowed | None,
    sample: int,
    seed: int,
) -> Task:
    """The task for these arguments of `tune`.

    Raises:
        InputError: There are no queries, nor rows that could be some.
    """
    counted = np.zeros(len(rows), np.bool_)
    counted[: ann.rows] = True if allowed is None else allowed
    own = None
    if queries is None:
        living = np.flatnonzero(counted)
        random = np.random.default_rng(seed)
        own = np.sort(random.choice(living, min(sample, len(living)), replace=False))
        queries = rows.take(own)
    if not len(queries):
        raise InputError("There is nothing to tune with: give queries, or rows that are alive.")
    if own is None:
        truth = nearest(rows, queries, k, counted)
    else:
        truth = nearest(rows, queries, k + 1, counted)
        order = _own_last(truth.rows, own)
        cosines = np.take_along_axis(truth.cosines, order, 1)[:, :-1]
        truth = Found(cosines, np.take_along_axis(truth.rows, order, 1)[:, :-1])
    return Task(rows, ann, queries, own, truth, k, allowed)


def _own_last(found: Rows, own: Rows) -> Rows:
    """For each query the columns, its own row's moved to the end."""
    return np.argsort(found == own[:, None], axis=1, kind="stable")


def trials_of(task: Task, target: float) -> Iterator[Trial]:
    """Trials from the least effort on, until more of it is in vain; endless it never is."""
    before, vain = -1.0, 0
    for effort in _efforts(task):
        parameters = {} if task.ann.effort is None else {task.ann.effort: effort}
        widths = _widths(task, effort)
        proposed = _proposed(task, parameters, widths[-1])
        recall = _recall(task, proposed)
        if recall < target:
            yield Trial({**parameters, CANDIDATES: widths[-1]}, recall, None)
            vain = vain + 1 if recall - before < _GAIN else 0
            before = max(before, recall)
            if vain == _PATIENCE:
                return
            continue
        for width in widths:
            if _recall(task, proposed[:, :width]) < target:
                continue
            # Codes for fast-scan are ordered a little differently when fewer are asked for.
            recall = _recall(task, _proposed(task, parameters, width))
            if recall >= target:
                chosen = {**parameters, CANDIDATES: width}
                yield Trial(chosen, recall, milliseconds(task, chosen))
                break


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
    if task.own is None:
        return task.ann.propose(task.queries, count, parameters, task.allowed)
    found = task.ann.propose(task.queries, count + 1, parameters, task.allowed)
    return np.take_along_axis(found, _own_last(found, task.own), 1)[:, :-1]


def _recall(task: Task, proposed: Rows) -> float:
    return recall_of(rescore(task.rows, task.queries, proposed, task.k), task.truth)
