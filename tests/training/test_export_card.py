"""Model cards, and the way to the hub."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from epic_retrieval import CheckpointError, InputError
from epic_retrieval.errors import EpicError
from epic_training.export import export_checkpoint
from epic_training.export_hub import push_to_hub
from tests.training.adapters import save_adapted

# peft asks transformers by a name that transformers 5 is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


RUN = {"commit": "abc123", "hardware": "one | GPU", "gpu": None, "versions": {"torch": "2.13"}}
MIX = """
datasets:
  gsm8k: {path: /home/me/gsm8k, ratio: 0.5, instruction: Solve}
  nli: {}
"""
SCORES = {
    "mean": {"none": 0.61234, "shown": 0.7},
    "datasets": [
        {"name": "gsm8k", "pairs": 80, "none": 0.6, "shown": [0.5, 0.7]},
        {"name": "nli", "pairs": 9, "none": 0.6, "shown": []},
    ],
}


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    head, text = (folder / "README.md").read_text(encoding="utf-8")[4:].split("\n---\n", 1)
    return yaml.safe_load(head), text


def test_the_card_says_what_is_known(tmp_path: Path) -> None:
    source = save_adapted(tmp_path / "run")
    config = json.loads((source / "epic_config.json").read_text())
    # What `epic train` leaves behind.
    (tmp_path / "mix.yaml").write_text(MIX)
    config["training"] = {
        "base": str(source.parent / "base"),
        "mix": str(tmp_path / "mix.yaml"),
        "data": str(tmp_path),
        "optimizer": {"steps": 1000},
        "log": str(tmp_path / "log"),
    }
    (source / "epic_config.json").write_text(json.dumps(config))
    (source / "run.json").write_text(json.dumps(RUN))
    (source / "scores.json").write_text(json.dumps(SCORES))
    out = export_checkpoint(source, tmp_path / "my-model", licence="mit")
    head, text = card_of(out)
    assert head["license"] == "mit"
    assert "base_model" not in head, "a folder is no name on the hub"
    assert text.startswith("\n# my-model\n")
    assert "- base model: base\n- commit: abc123\n- hardware: one \\| GPU\n" in text
    assert "- versions: torch 2.13\n" in text
    assert "```yaml\nbase: base\noptimizer:\n  steps: 1000\nlog: log\n```" in text
    assert "| data set | ratio | instruction |\n|---|---|---|\n| gsm8k | 0.5 | Solve |" in text
    assert (
        "| gsm8k | 80 | 0.6 | 0.5, 0.7 |\n| nli | 9 | 0.6 |  |\n| mean |  | 0.6123 | 0.7 |" in text
    )
    assert 'EpicEncoder.from_pretrained("my-model")' in text
    assert "mit. The terms of the base model, base, apply too." in text
    assert str(tmp_path) not in text
    assert "/home/me" not in text
    # The next export knows it again.
    head, text = card_of(export_checkpoint(out, tmp_path / "again"))
    assert head["license"] == "mit"
    assert "- base model: base\n- commit: abc123\n" in text
    assert "| mean |  | 0.6123 | 0.7 |" in text


def test_the_card_of_the_bundled_model(tmp_path: Path) -> None:
    out = export_checkpoint(
        None, tmp_path / "out", layout="sentence-transformers", task="web-search"
    )
    head, text = card_of(out)
    assert head["license"] == "apache-2.0"
    assert head["library_name"] == "sentence-transformers"
    assert "model.encode_query" in text
    assert "| medquad | 147 | 0.9" in text
    assert "| data set | " in text


def test_a_card_of_little(tmp_path: Path, tiny_encoder_folder: Path) -> None:
    head, text = card_of(export_checkpoint(tiny_encoder_folder, tmp_path / "out"))
    assert "license" not in head
    assert "Not stated: ask whoever gave you this model" in text
    assert text.count("Nothing is recorded.") == 2
    broken = tmp_path / "broken"
    shutil.copytree(tiny_encoder_folder, broken)
    (broken / "scores.json").write_text("3")
    with pytest.raises(InputError, match=r"scores\.json: expected"):
        export_checkpoint(broken, tmp_path / "b")
    (broken / "scores.json").write_text('{"a": {"ndcg@10": 0.71234}, "b": 0.5}')
    (broken / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run\.json cannot be read"):
        export_checkpoint(broken, tmp_path / "b")
    (broken / "run.json").write_text('{"base_model": "Qwen/Qwen3-0.6B", "data": ["a", "b"]}')
    head, text = card_of(export_checkpoint(broken, tmp_path / "b"))
    assert head["base_model"] == "Qwen/Qwen3-0.6B"
    assert "| a | 0.7123 |  |\n| b |  | 0.5 |" in text
    assert "- a\n- b" in text


class FakeApi:
    """Stands for the hub, which tests cannot ask; notes what it is asked for."""

    private = True
    error: Exception | None = None

    def __init__(self, token: str | None = None) -> None:
        self.token = token

    def _note(self, what: str, *given: object, **named: object) -> None:
        if self.error is not None:
            raise self.error
        ASKED.append((what, *given, {k: v for k, v in named.items() if k != "commit_message"}))

    def create_repo(self, repo_id: str, **named: object) -> None:
        self._note("create_repo", repo_id, **named)

    def repo_info(self, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def create_branch(self, repo_id: str, **named: object) -> None:
        self._note("create_branch", repo_id, **named)

    def upload_folder(self, **named: object) -> SimpleNamespace:
        self._note("upload_folder", **named)
        return SimpleNamespace(commit_url="https://hub/commit/1")


ASKED: list[tuple[object, ...]] = []


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    ASKED.clear()
    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "private", True)
    monkeypatch.setattr(FakeApi, "error", None)
    return FakeApi


def test_push(hub: type[FakeApi], tiny_encoder_folder: Path) -> None:
    assert push_to_hub(tiny_encoder_folder, "me/model") == "https://hub/commit/1"
    push_to_hub(tiny_encoder_folder, "me/model", private=False, revision="v1")
    model = {"repo_type": "model"}
    upload = {"repo_id": "me/model", "folder_path": tiny_encoder_folder, **model}
    expected: list[tuple[object, ...]] = [
        ("create_repo", "me/model", {"private": True, "exist_ok": True, **model}),
        ("upload_folder", upload | {"revision": None}),
        ("create_repo", "me/model", {"private": False, "exist_ok": True, **model}),
        ("create_branch", "me/model", {"branch": "v1", "exist_ok": True, **model}),
        ("upload_folder", upload | {"revision": "v1"}),
    ]
    assert expected == ASKED


def test_nothing_private_becomes_public(
    hub: type[FakeApi], tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "private", False)
    with pytest.raises(EpicError, match="exists and is public, but a private upload was asked"):
        push_to_hub(tiny_encoder_folder, "me/model")
    assert [asked[0] for asked in ASKED] == ["create_repo"]


def test_a_hub_that_fails(
    hub: type[FakeApi], tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    from huggingface_hub.errors import HfHubHTTPError

    http: Any = HfHubHTTPError.__bases__[0]
    for error in (http("401 Unauthorized.\nmore"), ConnectionError("401 Unauthorized")):
        monkeypatch.setattr(hub, "error", error)
        with pytest.raises(EpicError, match=r"to me/model: 401 Unauthorized\. The folder is com"):
            push_to_hub(tiny_encoder_folder, "me/model")


def test_offline_is_said(tiny_encoder_folder: Path) -> None:
    # The real client: tests run with HF_HUB_OFFLINE=1.
    with pytest.raises(EpicError, match="HF_HUB_OFFLINE is set"):
        push_to_hub(tiny_encoder_folder, "me/model")


@pytest.mark.parametrize("name", ["model", "a/b/c", "https://huggingface.co/a/b", "me/ model", ""])
def test_a_name_that_is_no_repository(
    hub: type[FakeApi], tiny_encoder_folder: Path, name: str
) -> None:
    with pytest.raises(InputError, match='expected "owner/name"'):
        push_to_hub(tiny_encoder_folder, name)
    assert not ASKED


def test_only_models_are_uploaded(hub: type[FakeApi], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no model"):
        push_to_hub(tmp_path, "me/model")
    assert not ASKED
