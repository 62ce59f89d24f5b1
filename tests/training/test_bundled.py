"""The whole pipeline on toy data: through the command, killed, resumed, and run once more."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from epic_retrieval import Demonstration, EpicEncoder, Task
from epic_training import bundled, stages
from epic_training.optimization import set_rate
from epic_training.pairs import is_development, open_pairs
from tests.training.samples import write_toy_data

CONFIG: dict[str, Any] = {
    "seed": 7,
    "dev_percent": 8.0,
    "max_tokens": 64,
    "max_length": 64,
    "tokenizer": {"vocabulary": 500, "every": 2, "whole": ["twins"]},
    "model": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "pretrain": {"steps": 4, "batch": 4, "length": 16, "warmup": 2, "candidates": 50},
    "contrastive": {
        "steps": 5,
        "batch": 8,
        "negatives": 3,
        "query_tokens": 20,
        "passage_tokens": [40, 50],
        "learning_rate": 1.0e-2,
        "projector_learning_rate": 1.0e-2,
        "weight_decay": 0.01,
        "warmup": 2,
        "groups": 2,
        "max_demonstrations": 3,
        "plain_weight": 0.5,
    },
    "instructions": {
        "steps": 2,
        "warmup": 1,
        "learning_rate": 1.0e-3,
        "projector_learning_rate": 1.0e-3,
        "own": 0.0,
    },
    "text": {
        "steps": 2,
        "warmup": 1,
        "learning_rate": 1.0e-3,
        "projector_learning_rate": 1.0e-3,
        "own": 0.5,
        "text_share": 1.0,
    },
    "data": {
        "animals": {"instruction": "Given a question, find it", "weight": 2.0},
        "twins": {"instruction": "Find twins", "symmetric": True, "lm": 0.5, "weight": 1.0},
    },
}
TASK = Task("animals", "Given a question, find it", (Demonstration("what barks?", "A dog barks."),))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    write_toy_data(folder / "data")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


def train(home: Path, out: Path) -> Result:
    app = typer.Typer()
    app.command()(bundled.main)
    options = ["--data", str(home / "data"), "--out", str(out)]
    return CliRunner().invoke(app, [str(home / "config.yaml"), *options])


@pytest.fixture(scope="module")
def out(home: Path) -> Path:
    done = train(home, home / "out")
    assert done.exit_code == 0, done.output
    return home / "out"


def test_the_checkpoint_encodes_in_both_modes(out: Path) -> None:
    encoder = EpicEncoder.from_pretrained(out / "checkpoint")
    texts = ["where does the cat hide", "</s>"]
    found = [encoder.encode_queries(texts, TASK, mode) for mode in ("none", "epic")]
    found.append(encoder.encode_passages(texts))
    for vectors in found:
        assert vectors.shape == (2, 32)
        assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert not np.allclose(found[0], found[1], atol=1e-3)


def test_the_checkpoint_says_how_it_was_made(out: Path) -> None:
    config = EpicEncoder.from_pretrained(out / "checkpoint").checkpoint.config
    given = {key: value for key, value in CONFIG.items() if key not in ("pretrain", "contrastive")}
    assert {key: config.training[key] for key in given} == given
    # What the configuration leaves to defaults is written down too.
    assert config.training["pretrain"] == {
        **CONFIG["pretrain"],
        "muon_lr": 0.01,
        "adam_lr": 0.002,
        "save_every": 100,
    }
    assert config.training["contrastive"] == {
        **CONFIG["contrastive"],
        "mode": "epic",
        "prompts": "group",
        "temperature": 0.05,
        "detach_demonstrations": False,
        "text_share": 0.0,
        "demonstration_tokens": 128,
        "rows_at_once": 64,
        "gradient_cache": False,
        "distillation_weight": 0.0,
        "teacher_temperature": 1.0,
        "matryoshka": [],
    }
    assert config.max_length == 64
    scores = json.loads((out / "checkpoint" / "development.json").read_text(encoding="utf-8"))
    gain = sum(sum(score["shown"]) / len(score["shown"]) - score["none"] for score in scores)
    assert config.modes == (*(("epic", "none") if gain >= 0 else ("none", "epic")), "text")
    for name in ("model", "projector"):
        weights = load_file(out / "checkpoint" / f"{name}.safetensors")
        assert {value.dtype for value in weights.values()} == {torch.float16}
        assert all(torch.isfinite(value).all() for value in weights.values())


def test_card_and_scores_lie_beside_the_weights(out: Path) -> None:
    card = (out / "checkpoint" / "README.md").read_text()
    assert "- twins: 300 pairs, made for this test" in card
    scores = json.loads((out / "checkpoint" / "development.json").read_text())
    assert [score["name"] for score in scores] == ["animals", "twins"]
    for score in scores:
        assert 5 < score["pairs"] < 60
        assert len(score["shown"]) == 3
        assert all(0 <= value <= 1 for value in (score["none"], *score["shown"]))


def test_both_stages_keep_a_log(out: Path) -> None:
    [pretraining] = json.loads((out / "pretrain.json").read_text())
    assert (pretraining["step"], pretraining["loss"] > 0) == (4, True)
    contrastive = json.loads((out / "contrastive.jsonl").read_text())  # one line
    assert contrastive["step"] == 5
    assert contrastive["loss"] > 0
    assert contrastive["plain_loss"] > 0
    assert contrastive["demonstrations"] > 0


def test_training_never_sees_held_out_queries(out: Path) -> None:
    tokenizer = EpicEncoder.from_pretrained(out / "checkpoint").checkpoint.tokenizer.hf
    for name in CONFIG["data"]:
        counts = json.loads((out / "tokens" / name / "done.json").read_text())
        assert sum(counts.values()) == 300
        column = open_pairs(out / "tokens" / name, "train").query
        assert not any(
            is_development(str(tokenizer.decode(column[i].tolist())), CONFIG["dev_percent"])
            for i in range(len(column))
        )
    text = bundled.running_text(CONFIG, out)
    assert (text[0], text[-1]) == (1, 2)
    documents = int((text == 1).sum())
    trained = [len(open_pairs(out / "tokens" / name, "train")) for name in CONFIG["data"]]
    assert trained[0] < documents < sum(trained)  # of the twins about a half


def test_a_second_run_trains_nothing(home: Path, out: Path) -> None:
    def files() -> dict[str, tuple[int, bytes]]:
        made = [path for path in out.rglob("*") if path.is_file()]
        found = {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in made}
        saved_again = str(out / "checkpoint")
        return {k: (0 if k.startswith(saved_again) else t, c) for k, (t, c) in found.items()}

    before = files()
    done = train(home, out)
    assert done.exit_code == 0, done.output
    assert files() == before


class KilledError(Exception):
    pass


def test_a_killed_run_ends_with_the_same_weights(
    home: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed = tmp_path / "out"
    shutil.copytree(out, resumed, ignore=shutil.ignore_patterns("checkpoint", "contrastive.*"))
    monkeypatch.setattr(stages, "_SAVE_EVERY", 2)
    steps: list[int] = []

    def until_step_3(optimizer: torch.optim.Optimizer, step: int, *lengths: int) -> None:
        steps.append(step)
        if len(steps) == 4:
            raise KilledError
        set_rate(optimizer, step, *lengths)

    monkeypatch.setattr(stages, "set_rate", until_step_3)
    assert isinstance(train(home, resumed).exception, KilledError)
    assert not (resumed / "checkpoint").exists()
    done = train(home, resumed)
    assert done.exit_code == 0, done.output
    assert steps == [0, 1, 2, 3, 2, 3, 4]
    for name in ("model.safetensors", "projector.safetensors"):
        whole, parts = (load_file(folder / "checkpoint" / name) for folder in (out, resumed))
        assert all(torch.equal(parts[key], value) for key, value in whole.items())
    lines = (resumed / "contrastive.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 5]
