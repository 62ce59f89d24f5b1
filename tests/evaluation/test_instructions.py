"""Which task an evaluation task is read with."""

import json
from pathlib import Path

import mteb
import pytest

from epic_retrieval import InputError, Task, builtin_tasks
from epic_retrieval.evaluation.instructions import (
    Instructions,
    paper_name,
    read_demonstrations,
    read_tasks,
    task_name,
)
from epic_retrieval.evaluation.suites import benchmark_tasks, named_tasks
from tests.evaluation import sets

NOTHING = Instructions()


def test_every_task_of_the_papers_benchmark_has_its_instruction() -> None:
    tasks = benchmark_tasks("MTEB(eng, v1)")
    assert len(tasks) == 56
    for task in tasks:
        found = NOTHING.task_for(task.metadata)
        assert found == builtin_tasks()[task.metadata.name]


def test_later_versions_have_the_instruction_of_the_first() -> None:
    for task in benchmark_tasks("MTEB(eng, v2)"):
        found = NOTHING.task_for(task.metadata)
        assert found.name == paper_name(task.metadata.name) in builtin_tasks()
    assert paper_name("TwentyNewsgroupsClustering.v2") == "TwentyNewsgroupsClustering"
    assert paper_name("CQADupstackGamingRetrieval") == "CQADupstackRetrieval"
    assert paper_name("SciFact") == "SciFact"


def test_other_tasks_have_mtebs_prompt_and_the_symmetry_of_their_type() -> None:
    retrieval, sts = named_tasks(["LegalBenchCorporateLobbying", "SemRel24STS"])
    found = NOTHING.task_for(retrieval.metadata)
    assert found.symmetric is False
    assert found.instruction
    assert NOTHING.task_for(sts.metadata) == Task(
        "SemRel24STS", "Retrieve semantically similar text.", symmetric=True
    )
    assert task_name("a (b) c") == "a-b-c"
    assert task_name("..") == "task"


def test_demonstrations_by_any_of_the_names(tmp_path: Path) -> None:
    shown = [{"query": "q", "response": "r"}]
    (tmp_path / "SciFact.json").write_text(json.dumps(shown))
    (tmp_path / "TwentyNewsgroupsClustering.json").write_text(json.dumps(shown))
    Task("mine", "Find it", sets.SHOWN).save(tmp_path / "some file.yaml")
    (tmp_path / "LICENSE").write_text("no demonstrations")
    found = read_demonstrations(tmp_path)
    assert found.keys() == {"SciFact", "TwentyNewsgroupsClustering", "mine"}
    book = Instructions(demonstrations=found, tasks={"MSMARCO": Task("mine", "Find it")})
    first, second, third, fourth = named_tasks(
        ["SciFact", "TwentyNewsgroupsClustering.v2", "MSMARCO", "NFCorpus"]
    )
    assert book.task_for(first.metadata).demonstrations == found["SciFact"]
    assert book.task_for(second.metadata).demonstrations[0].passage == "r"
    assert book.task_for(third.metadata) == Task("mine", "Find it", sets.SHOWN)
    assert not book.task_for(fourth.metadata).demonstrations
    without = Instructions(tasks={"MSMARCO": Task("m", "Find", sets.SHOWN)}, without=True)
    assert not without.task_for(third.metadata).demonstrations


def test_a_folder_without_demonstrations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder with demonstrations"):
        read_demonstrations(tmp_path / "absent")
    Task("bare", "Find it").save(tmp_path / "bare.yaml")
    with pytest.raises(InputError, match="no folder with demonstrations"):
        read_demonstrations(tmp_path)
    for name in ("one.yaml", "two.json"):
        Task("same", "Find it", sets.SHOWN).save(tmp_path / name)
    with pytest.raises(InputError, match=r"two\.json: demonstrations of 'same' stand in another"):
        read_demonstrations(tmp_path)


def test_a_task_for_what_is_not_evaluated_is_an_error() -> None:
    book = Instructions(tasks={"MSMARCO": Task("mine", "Find it"), "scifact": Task("s", "Find it")})
    book.check_used(["MSMARCO"])
    book.check_used(["MSMARCO.v2", "other"])  # which the paper's table knows as MSMARCO
    NOTHING.check_used(["notes"])
    with pytest.raises(InputError, match="names MSMARCO, scifact, and none of that is evaluated"):
        book.check_used(["notes"])


def test_a_task_file_names_builtins_files_and_tasks(tmp_path: Path) -> None:
    Task("own", "Find it", sets.SHOWN).save(tmp_path / "own.yaml")
    path = tmp_path / "tasks.yaml"
    path.write_text(
        "scifact: scientific-claims\nset: own.yaml\nthird: {name: t, instruction: Do it}\n"
    )
    found = read_tasks(path)
    assert found["scifact"] == builtin_tasks()["scientific-claims"]
    assert found["set"].demonstrations == sets.SHOWN
    assert found["third"] == Task("t", "Do it")
    assert read_tasks(tmp_path / "own.yaml").keys() == {"own"}
    for text, message in (
        ("- a\n", "expected a mapping of names"),
        ("scifact: scientific-clams\n", "scifact: there is no built-in task 'scientific-clams'"),
        ("scifact: 3\n", "scifact: got 3"),
        ("scifact: absent.yaml\n", "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_tasks(path)


def test_demonstrations_of_bge_en_icl_fit_all_tasks(data_root: Path) -> None:
    folder = data_root / "bge-en-icl-demonstrations"
    book = Instructions(demonstrations=read_demonstrations(folder))
    for benchmark in ("MTEB(eng, v1)", "MTEB(eng, v2)"):
        for task in mteb.get_benchmark(benchmark).tasks:
            assert book.task_for(task.metadata).demonstrations, task.metadata.name
