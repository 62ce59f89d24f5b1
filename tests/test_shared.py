"""One model a process for whoever asks, and tasks from what users of adapters write."""

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from epic_retrieval import (
    CheckpointError,
    Demonstration,
    EpicEncoder,
    InputError,
    Task,
    as_task,
    load_task,
    open_encoder,
    shared,
    shared_encoder,
)
from epic_retrieval.checkpoint import BUNDLED_MODEL
from epic_retrieval.encoder import DEFAULT_TASK
from tests.models import tiny_encoder

PAIR = Demonstration("one", "two")


def test_the_same_names_lead_to_the_same_encoder(tiny_encoder_folder: Path) -> None:
    one = shared_encoder(tiny_encoder_folder)
    assert shared_encoder(str(tiny_encoder_folder)) is one
    assert shared_encoder(one.name) is one
    assert shared_encoder(tiny_encoder_folder, dtype="float32") is not one
    assert shared_encoder(tiny_encoder_folder, device="cpu") is not one


def test_a_device_that_is_not_there(tiny_encoder_folder: Path) -> None:
    for device in ("bogus", "cpu:x", 3.5):
        with pytest.raises(InputError, match="is no device that torch knows"):
            shared_encoder(tiny_encoder_folder, device=device)  # type: ignore[arg-type]
    with pytest.raises(InputError, match='device="cuda:99" cannot be used here'):
        open_encoder(model=tiny_encoder_folder, device="cuda:99")


def test_the_bundled_model_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = shared_encoder()
    assert bundled.name == BUNDLED_MODEL.name
    assert shared_encoder(bundled.name) is bundled
    # A folder of that name is what somebody means who works beside it.
    monkeypatch.chdir(tmp_path)
    (tmp_path / bundled.name).mkdir()
    with pytest.raises(CheckpointError, match=r"neither config\.json"):
        shared_encoder(bundled.name)


def test_threads_that_want_the_same_model_load_it_once(
    tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load = EpicEncoder.from_pretrained

    def counted(*given: Any, **options: Any) -> EpicEncoder:  # noqa: ANN401
        loads.append("")
        return load(*given, **options)

    monkeypatch.setattr(EpicEncoder, "from_pretrained", counted)
    found: list[EpicEncoder] = []
    folder = str(tiny_encoder_folder) + "/."  # a name that nobody used before
    threads = [
        threading.Thread(target=lambda: found.append(shared_encoder(folder))) for _ in range(8)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(loads) == 1
    assert len(set(map(id, found))) == 1


def test_what_nobody_uses_is_let_go(tiny_encoder_folder: Path) -> None:
    gone = weakref.ref(shared_encoder(str(tiny_encoder_folder) + "/./."))
    gc.collect()
    assert gone() is None


def test_an_encoder_that_was_given_is_taken(tiny_encoder_folder: Path) -> None:
    mine = tiny_encoder()
    assert open_encoder(mine) is mine
    assert open_encoder(model=tiny_encoder_folder) is open_encoder(model=tiny_encoder_folder)
    with pytest.raises(InputError, match="together with model, dtype; pass either"):
        open_encoder(mine, model="x", dtype="float32")
    with pytest.raises(InputError, match=r"encoder is 'a/b'; expected an EpicEncoder.*use model="):
        open_encoder("a/b")  # type: ignore[arg-type]


def test_tasks_in_every_form(tmp_path: Path) -> None:
    task = Task("mine", "Find it", (PAIR,), symmetric=True)
    task.save(tmp_path / "mine.yaml")
    for given in (task, tmp_path / "mine.yaml", str(tmp_path / "mine.yaml"), task.to_dict()):
        assert as_task(given) == task
    assert as_task("Python-Docs") == load_task("python-docs")
    assert as_task() == load_task(DEFAULT_TASK) == load_task(shared._DEFAULT_TASK)


@pytest.mark.parametrize(
    "demonstrations",
    [
        [PAIR],
        (("one", "two"),),
        [["one", "two"]],
        [{"query": "one", "passage": "two"}],
        iter([("one", "two")]),
    ],
)
def test_demonstrations_in_every_form(demonstrations: Any) -> None:  # noqa: ANN401
    task = as_task(instruction="Find it", demonstrations=demonstrations)
    assert task == Task("custom", "Find it", (PAIR,))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": 7}, r"task is 7 \(int\); expected a Task, the name"),
        ({"task": ["web-search"]}, "expected a Task, the name"),
        ({"task": "web-serch"}, "no built-in task 'web-serch'; did you mean 'web-search'"),
        ({"task": {"name": "x"}}, "missing key 'instruction'"),
        ({"task": "web-search", "instruction": "x"}, "pass either a task, or instruction"),
        ({"task": "web-search", "demonstrations": []}, "with_demonstrations replaces"),
        ({"demonstrations": [PAIR]}, "without an instruction"),
        ({"instruction": " "}, "instruction is ' '"),
        ({"instruction": 3}, "instruction is 3"),
        ({"instruction": "x", "demonstrations": "ab"}, r"expected a list of \(query, passage\)"),
        ({"instruction": "x", "demonstrations": {"a": "b"}}, "expected a list of"),
        ({"instruction": "x", "demonstrations": 3}, "expected a list of"),
        ({"instruction": "x", "demonstrations": [PAIR, "ab"]}, "demonstration 2: got 'ab'"),
        ({"instruction": "x", "demonstrations": [("a", "b", "c")]}, "demonstration 1: got"),
        ({"instruction": "x", "demonstrations": [("a", None)]}, "1: passage is None"),
        ({"instruction": "x", "demonstrations": [{"query": "a"}]}, "1: missing key 'passage'"),
    ],
)
def test_what_is_no_task(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_task(**given)
