"""The record of a selection: in files, and out of everything that decides a vector."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from epic_retrieval.errors import InputError
from epic_retrieval.tasks import Demonstration, Selection, Task
from tests.models import tiny_encoder

RECORD = Selection(
    outcome="with",
    forced=False,
    mode="epic",
    strategy="random",
    k=1,
    seed=43,
    candidates=5,
    metric="ndcg@10",
    score_without=0.5,
    score_with=0.625,
    gain=0.125,
    interval=(0.01, 0.25),
    confidence=0.95,
    queries_choosing=100,
    queries_deciding=90,
    passages=1000,
    model="epic-mini",
    fingerprint="ab" * 32,
)
BARE = Task("t", "Find it", (Demonstration("q", "p"),), symmetric=True)
TASK = dataclasses.replace(BARE, selection=RECORD)


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_a_file_gives_the_record_back(ending: str, tmp_path: Path) -> None:
    TASK.save(tmp_path / f"t.{ending}")
    found = Task.load(tmp_path / f"t.{ending}")
    assert found == TASK
    assert found.selection == RECORD
    assert Task.from_dict(TASK.to_dict()).selection == RECORD


def test_files_of_tasks_without_a_record_have_no_word_of_it() -> None:
    assert "selection" not in BARE.to_dict()
    assert Task.from_dict(BARE.to_dict()).selection is None
    assert Task.from_dict(BARE.to_dict() | {"selection": None}) == BARE


def test_other_demonstrations_have_no_record() -> None:
    assert TASK.with_demonstrations([Demonstration("a", "b")]).selection is None
    assert TASK.without_demonstrations().selection is None


def test_no_vector_and_no_key_depends_on_it() -> None:
    encoder = tiny_encoder()
    assert hash(TASK) == hash(BARE)
    assert TASK == BARE
    for mode in ("none", "text", "epic"):
        assert encoder._compute_key(TASK, mode) == encoder._compute_key(BARE, mode)
        assert encoder.passage_fingerprint(TASK, mode) == encoder.passage_fingerprint(BARE, mode)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcome": "maybe"}, 'outcome is .maybe.; expected "with" or "without"'),
        ({"forced": 1}, "forced is 1; expected true or false"),
        ({"k": True}, "k is True; expected a whole number"),
        ({"mode": 3}, "mode is 3; expected a text"),
        ({"gain": "big"}, "gain is 'big'; expected a finite number"),
        ({"gain": float("nan")}, "gain is nan"),
        ({"interval": [0.1]}, r"interval is \[0.1\]; expected two numbers"),
        ({"interval": [0.1, None]}, "interval is None; expected a finite number"),
        ({"surprise": 1}, "unknown key 'surprise'"),
    ],
)
def test_a_record_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"selection: {message}"):
        Task.from_dict(BARE.to_dict() | {"selection": RECORD.to_dict() | change})


def test_a_record_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"selection: got 'yes'; expected a mapping"):
        Task.from_dict(BARE.to_dict() | {"selection": "yes"})
    with pytest.raises(InputError, match="selection is 'yes'; expected a Selection"):
        Task("t", "Find it", selection="yes")  # type: ignore[arg-type]
