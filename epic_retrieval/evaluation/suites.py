"""Which tasks are evaluated: benchmarks of mteb, the paper's subset, single tasks, local sets.

Knows nothing of models. Nothing is downloaded before a task runs.
"""

from collections.abc import Sequence
from copy import deepcopy
from difflib import get_close_matches
from typing import TYPE_CHECKING

import mteb
from mteb.abstasks import AbsTask

from epic_retrieval.errors import InputError
from epic_retrieval.evaluation.local import LocalSet
from epic_retrieval.evaluation.local_tasks import local_task

if TYPE_CHECKING:
    from mteb.benchmarks.benchmark import Benchmark

_PAPER = "MTEB(eng, v1)"
_KNOWN = (_PAPER, "MTEB(eng, v2)")
PAPER_SUBSET = "paper-26"
# Appendix B.2.
_SUBSET = (
    *("BIOSSES", "STS12", "STS13", "STS14", "STS15", "STS16", "STS17", "STS22"),
    *("STSBenchmark", "SICK-R"),
    *("AmazonReviewsClassification", "MTOPDomainClassification"),
    *("TweetSentimentExtractionClassification", "ImdbClassification"),
    *("TwitterSemEval2015", "TwitterURLCorpus"),
    *("SciFact", "NFCorpus", "FiQA2018", "SCIDOCS"),
    *("BiorxivClusteringS2S", "MedrxivClusteringS2S", "TwentyNewsgroupsClustering"),
    *("AskUbuntuDupQuestions", "StackOverflowDupQuestions", "SciDocsRR"),
)


def benchmark_tasks(name: str) -> list[AbsTask]:
    """All tasks of a benchmark, each with the subsets and splits that count in it.

    Args:
        name: a name of mteb's, such as "MTEB(eng, v1)"; or "paper-26", the subset that the
            paper's ablations were measured on.

    Raises:
        InputError: mteb knows no such benchmark.
    """
    if name == PAPER_SUBSET:
        by_name = {task.metadata.name: task for task in _benchmark(_PAPER).tasks}
        return [deepcopy(by_name[one]) for one in _SUBSET]
    # mteb hands out the same objects to everyone, and they carry random states and chosen splits.
    return [deepcopy(task) for task in _benchmark(name).tasks]


def named_tasks(names: Sequence[str]) -> list[AbsTask]:
    """Tasks of mteb by name, in English, as the benchmarks of English have them.

    Raises:
        InputError: mteb knows no such task; with names that come close.
    """
    listed = {
        task.metadata.name: task
        for benchmark in reversed(_KNOWN)
        for task in _benchmark(benchmark).tasks
    }
    return [deepcopy(listed.get(name) or _one_task(name)) for name in names]


def local_tasks(sets: Sequence[LocalSet]) -> list[AbsTask]:
    """Local sets as tasks, after one look at all of their data, so that no run stops at it later.

    Raises:
        InputError: a file breaks a rule.
    """
    tasks = [local_task(found) for found in sets]
    for task in tasks:
        task.load_data()
        task.unload_data()
    return tasks


def with_split(tasks: Sequence[AbsTask], split: str | None) -> None:
    """Evaluate this split of all tasks in place of their own; None leaves them.

    Raises:
        InputError: one of them is not evaluated on such a split.
    """
    if split is None:
        return
    for task in tasks:
        there = task.metadata.eval_splits
        if split not in there:
            raise InputError(
                f"{task.metadata.name} has no split {split!r} for evaluation; it has"
                f" {', '.join(there)}"
            )
        task.filter_eval_splits([split])


def check_names(tasks: Sequence[AbsTask]) -> None:
    """Refuse two tasks of one name: their results would be taken for each other's.

    Raises:
        InputError: naming it.
    """
    seen: set[str] = set()
    for task in tasks:
        name = task.metadata.name
        if name.casefold() in seen:
            raise InputError(
                f"two tasks are called {name!r}; leave one out, or give a local folder another"
                ' name: {"name": "..."} in its meta.json'
            )
        seen.add(name.casefold())


def _benchmark(name: str) -> "Benchmark":
    try:
        return mteb.get_benchmark(name)
    except KeyError:
        raise InputError(
            f"mteb has no benchmark {name!r}; expected one such as {', '.join(_KNOWN)}, or"
            f" {PAPER_SUBSET}"
        ) from None


def _one_task(name: str) -> AbsTask:
    try:
        return mteb.get_task(name, languages=["eng"])
    except (KeyError, ValueError):
        known = [task.metadata.name for task in mteb.get_tasks(languages=["eng"])]
        close = get_close_matches(name, known)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise InputError(f"mteb has no English task {name!r}{hint}") from None
