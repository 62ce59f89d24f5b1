"""Choosing tasks: benchmarks, the paper's subset, names, splits."""

from pathlib import Path

import pytest

from epic_retrieval import InputError
from epic_retrieval.evaluation.local import find_local
from epic_retrieval.evaluation.suites import (
    benchmark_tasks,
    check_names,
    local_tasks,
    named_tasks,
    with_split,
)
from tests.evaluation import sets


def test_the_papers_subset() -> None:
    tasks = benchmark_tasks("paper-26")
    counts: dict[str, int] = {}
    for task in tasks:
        counts[task.metadata.type] = counts.get(task.metadata.type, 0) + 1
    assert counts == {
        "STS": 10,
        "Classification": 4,
        "PairClassification": 2,
        "Retrieval": 4,
        "Clustering": 3,
        "Reranking": 3,
    }
    assert {task.metadata.name: task.hf_subsets for task in tasks}["STS17"] == ["en-en"]


def test_names_are_those_of_the_benchmarks() -> None:
    sts, marco = named_tasks(["STS22", "MSMARCO"])
    assert sts.hf_subsets == ["en"]
    assert list(marco.eval_splits) == ["dev"]
    with pytest.raises(InputError, match="no English task 'SciFacts'; did you mean SciFact"):
        named_tasks(["SciFacts"])
    with pytest.raises(InputError, match="no benchmark 'BEER'; expected one such as MTEB"):
        benchmark_tasks("BEER")


def test_a_split_is_chosen_where_it_exists_and_for_us_alone() -> None:
    (task,) = named_tasks(["NFCorpus"])
    with_split([task], None)
    with pytest.raises(InputError, match="NFCorpus has no split 'dev' for evaluation; it has test"):
        with_split([task], "dev")
    with_split([task], "test")
    assert list(task.eval_splits) == ["test"]
    (other,) = named_tasks(["NFCorpus"])
    assert other is not task
    assert other.rng_state is not task.rng_state


def test_names_that_would_share_a_result_are_refused(tmp_path: Path) -> None:
    tasks = local_tasks([find_local(str(sets.sts(tmp_path / "sts12")))])
    check_names(tasks)
    with pytest.raises(InputError, match="two tasks are called 'STS12'"):
        check_names([*tasks, *named_tasks(["STS12"])])
