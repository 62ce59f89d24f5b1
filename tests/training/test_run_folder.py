"""The folder of a run: refused for another configuration, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from epic_retrieval import InputError, Task
from epic_training.batch import Batch
from epic_training.config import TrainConfig
from epic_training.development import DevelopmentScore
from epic_training.run_folder import RunFolder

SCORES = [DevelopmentScore("toy", 9, 0.5, (0.25, 0.75))]


def settings(**changes: object) -> dict[str, Any]:
    return TrainConfig.model_validate({"base": "b", "mix": "m.yaml"} | changes).to_dict()


def test_configuration_and_surroundings_are_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new" / "run", settings(base="Basis ü"))
    written = yaml.safe_load((folder.path / "config.yaml").read_text(encoding="utf-8"))
    assert written == settings(base="Basis ü")
    run = json.loads((folder.path / "run.json").read_text(encoding="utf-8"))
    assert run["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"commit", "python", "machine", "threads", "gpu"} <= set(run)


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, settings(), write=False)
    folder.save_batch(0, Batch(Task("t", "find"), [[1, 2]], [[3, 2]]), {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base": "other"}, "base: 'b' is now 'other'"),
        ({"optimizer": {"steps": 9}}, "optimizer.steps: 800 is now 9"),
        ({"lora": None}, "lora: {'rank': 64, 'alpha': 32.0, 'dropout': 0.0} is now None"),
        ({"loss": {"matryoshka": [8]}}, r"loss.matryoshka: \[\] is now \[8\]"),
        ({"template": "e5"}, "template: None is now 'e5'"),
        ({"batches": {"size": 4, "workers": 0}}, "batches.size: 512 is now 4"),
    ],
)
def test_another_configuration_is_refused(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    RunFolder(tmp_path, settings())
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(InputError, match=rf"another configuration \({said}\); take another folder"):
        RunFolder(tmp_path, settings(**change))
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_the_first_three_changes_are_named(tmp_path: Path) -> None:
    RunFolder(tmp_path, settings())
    changes = {"base": "x", "mix": "y", "max_length": 9, "regime": "plain"}
    with pytest.raises(InputError) as caught:
        RunFolder(tmp_path, settings(**changes))
    assert str(caught.value).count("is now") == 3


def test_how_a_run_is_watched_may_change(tmp_path: Path) -> None:
    RunFolder(tmp_path, settings())
    watched = settings(batches={"workers": 7}, run={"save_every": 3, "log_every": 9})
    RunFolder(tmp_path, watched)
    written = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert written["batches"]["workers"] == 7


def test_a_state_without_a_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a run without config\.yaml; take another folder"):
        RunFolder(tmp_path, settings())


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a note")
    with pytest.raises(InputError, match="out cannot be a folder for a run"):
        RunFolder(tmp_path / "out", settings())


@pytest.mark.parametrize("content", [b"\xff", b"{", b"a: [b"])
def test_a_damaged_configuration_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(
        InputError, match=r"(?s)config\.yaml cannot be read .*; take another folder"
    ):
        RunFolder(tmp_path, settings())


def test_a_checkpoint_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, settings())

    def write(text: str, path: Path) -> None:
        path.mkdir()
        (path / text).write_text(text)

    folder.save("best", lambda path: write("old", path), SCORES)
    folder.save("best", lambda path: write("new", path), [])
    assert {path.name for path in (tmp_path / "best").iterdir()} == {"new", "run.json"}
    assert folder.finished() == tmp_path / "best"

    def broken(path: Path) -> None:
        write("half", path)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        folder.save("best", broken, SCORES)
    assert {path.name for path in (tmp_path / "best").iterdir()} == {"new", "run.json"}
    folder.save("best", lambda path: write("newer", path), SCORES)
    names = {path.name for path in (tmp_path / "best").iterdir()}
    assert names == {"newer", "run.json", "scores.json"}
    assert not [path for path in tmp_path.iterdir() if path.suffix in {".partial", ".old"}]


def test_the_result_without_scores_is_the_last(tmp_path: Path) -> None:
    assert RunFolder(tmp_path, settings()).finished() == tmp_path / "checkpoint"
