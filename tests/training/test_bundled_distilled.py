"""The recipe with a teacher on toy data, through the command: made, run again, told of."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from epic_retrieval import EpicEncoder
from epic_retrieval.int8_file import INT8_NAME
from epic_training import bundled
from tests.training.samples import write_toy_data
from tests.training.teachers import write_teacher
from tests.training.test_bundled import CONFIG, TASK

FILES = (".jsonl", "-aims.safetensors")  # that are kept of an expert

DISTILLED: dict[str, Any] = {
    key: value for key, value in CONFIG.items() if key not in ("pretrain", "tokenizer", "text")
} | {
    "teacher": {
        "package": "tiny_teacher",
        "texts": 400,
        "whole": ["twins"],
        "sentences": 20,
        "families": 60,
        "variants": 1,
        "long": 5,
        "long_of": ["animals"],
        "max_tokens": 32,
        "shares": {"animals": 1.0, "twins": 0.5},
    },
    "attention": "eager",
    "static": {"epochs": 4, "batch": 32},
    "model": {**CONFIG["model"], "num_key_value_heads": 2},
    "distil": {
        "steps": 6,
        "batch": 16,
        "warmup": 1,
        "learning_rate": 1.0e-3,
        "table_learning_rate": 1.0e-3,
        "max_tokens": 30,
        "projector_learning_rate": 1.0e-2,
        "family": 2,
        "textual": 2,
        "shown": 3,
        "noticed": 0.6,
        "bfloat16": True,
    },
    "contrastive": {
        **CONFIG["contrastive"],
        "own": 0.5,
        "replay": 0.5,
        "mixed": 0.5,
    },
    "projector": {
        "steps": 3,
        "warmup": 1,
        "learning_rate": 0.0,
        "projector_learning_rate": 1.0e-2,
        "own": 0.5,
        "mixed": 0.5,
    },
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distilled")
    write_toy_data(folder / "data")
    write_teacher(folder / "packages")
    (folder / "config.yaml").write_text(yaml.safe_dump(DISTILLED))
    return folder


def train(
    home: Path, monkeypatch: pytest.MonkeyPatch, config: str = "config.yaml", out: str = "out"
) -> Result:
    monkeypatch.syspath_prepend(home / "packages")
    app = typer.Typer()
    app.command()(bundled.main)
    options = ["--data", str(home / "data"), "--out", str(home / out)]
    return CliRunner().invoke(app, [str(home / config), *options])


def test_the_recipe(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = train(home, monkeypatch)
    assert done.exit_code == 0, done.output
    encoder = EpicEncoder.from_pretrained(home / "out" / "checkpoint")
    texts = ["where does the cat hide", "</s>"]
    queries = [encoder.encode_queries(texts, TASK, mode) for mode in ("none", "epic")]
    assert not np.allclose(queries[0], queries[1], atol=1e-3)
    assert all(np.isfinite(vectors).all() for vectors in queries)

    distil = json.loads((home / "out" / "distil.jsonl").read_text())
    assert distil["step"] == 6
    assert 0.3 < distil["cosine"] <= 1  # it starts as a static embedder, not at nothing
    contrastive = json.loads((home / "out" / "contrastive.jsonl").read_text())
    assert {"loss", "plain_loss", "cosine", "divergence"} <= set(contrastive)

    # Distillation trains the projector too; the last stage that and nothing else.
    assert "weights/projector.output.weight" in load_file(home / "out" / "distil.safetensors")
    before = load_file(home / "out" / "instructions.safetensors")
    after = load_file(home / "out" / "projector.safetensors")
    trained = {name for name in after if name.startswith("weights/")}
    assert {name.split(".")[0] for name in trained} == {"weights/projector"}
    assert any(not torch.equal(before[name], after[name]) for name in trained)
    model: Any = encoder.checkpoint.backbone.model
    table = before["weights/model.embed_tokens.weight"]
    assert torch.equal(model.get_input_embeddings().weight, table.half().float())

    card = (home / "out" / "checkpoint" / "README.md").read_text()
    assert "steps of the projector alone" in card
    assert "6 steps of distillation, 16 texts each" in card
    assert "the model in the package `tiny_teacher`" in card
    assert encoder.checkpoint.config.training["distil"]["temperature"] == 0.05

    # Run again, it trains nothing.
    kept = {p: p.stat().st_mtime_ns for p in (home / "out").glob("*.safetensors")}
    assert train(home, monkeypatch).exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in (home / "out").glob("*.safetensors")} == kept


def states(out: Path) -> dict[Path, int]:
    """When each state of a training, and what is kept of each expert, was written."""
    files = [*out.glob("*.safetensors"), *(out / "experts").glob("*.safetensors")]
    return {file: file.stat().st_mtime_ns for file in files}


def check_experts(out: Path) -> None:
    """Demonstrations were shown, and of each expert no more is kept than is needed."""
    for stage, steps in (("kinds", 2), ("settled", 3)):
        shown = json.loads((out / f"{stage}.jsonl").read_text())
        assert shown["step"] == steps
        assert {"cosine", "shown_cosine", "read"} <= set(shown)
    names = {file.name for file in (out / "experts").iterdir()}
    kept = {f"{kind}{end}" for kind in ("question", "alike") for end in FILES}
    assert names == kept | {"plain.safetensors"}


def test_the_recipe_that_inherits_layers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_out = ("static", "model", "instructions")
    config = {key: value for key, value in DISTILLED.items() if key not in left_out}
    config["inherit"] = {"layers": [0], "positions": 600}
    config["distil"] = {
        key: value for key, value in config["distil"].items() if key != "noticed"
    } | {"anchors": 50, "bare": 2, "learning_rate": 1.0e-4}
    config["prompts"] = {
        "steps": 2, "warmup": 1, "learning_rate": 1.0e-4, "projector_learning_rate": 1.0e-3,
        "bare": 0, "apart": True, "alike": -1.0, "long": 0.1, "shown_tokens": [4, 8],
    }  # fmt: skip
    config["second"] = {
        "model": str(home / "packages" / "tiny_teacher" / "model"), "texts": 40, "max_tokens": 32,
        "written": {"twins": {"share": 0.5, "pull": 1.0}},
        "steps": 2, "warmup": 1, "learning_rate": 1.0e-4, "projector_learning_rate": 1.0e-3,
    }  # fmt: skip
    config["kinds"] = {
        "shown": {
            "question": {"of": ["animals"]},
            "alike": {"of": ["twins", "animals"], "hard": False},
        },
        "experts": {"steps": 3, "warmup": 1, "learning_rate": 1.0e-3, "batch": 6, "kept": 4},
        "texts": 30, "strength": 2.0,
        "step": {"texts": 4, "opening": 1},
        "weight": 0.5, "apart": False, "batch": 8,
        "steps": 2, "warmup": 1, "learning_rate": 1.0e-4, "projector_learning_rate": 1.0e-3,
    }  # fmt: skip
    config["settled"] = {
        "strength": 1.0, "step": {"texts": 2},
        "steps": 3, "warmup": 1, "learning_rate": 1.0e-4, "projector_learning_rate": 1.0e-3,
    }  # fmt: skip
    (home / "inherited.yaml").write_text(yaml.safe_dump(config))
    done = train(home, monkeypatch, "inherited.yaml", "inherited")
    assert done.exit_code == 0, done.output
    folder = home / "inherited" / "checkpoint"
    assert (folder / INT8_NAME).is_file()
    assert not (folder / "model.safetensors").exists()
    distil = json.loads((home / "inherited" / "distil.jsonl").read_text())
    assert 0.5 < distil["cosine"] <= 1  # it starts as the teacher, not at nothing
    again = json.loads((home / "inherited" / "prompts.jsonl").read_text())
    assert again["step"] == 2
    assert 0.3 < again["cosine"] < 1
    last = json.loads((home / "inherited" / "second.jsonl").read_text())
    assert last["step"] == 2
    assert 0.3 < last["cosine"] < 1

    check_experts(home / "inherited")

    encoder = EpicEncoder.from_pretrained(folder)
    assert encoder.checkpoint.backbone.model.config.model_type == "opt"
    assert encoder.dimension == 48  # the teacher's
    trained = load_file(home / "inherited" / "contrastive.safetensors")
    for name, weight in encoder.checkpoint.backbone.model.state_dict().items():
        before = trained[f"weights/model.{name}"]  # after it only the projector learns
        assert (weight - before).abs().max() <= 0.01 * before.abs().max() + 1e-3, name
    queries = [encoder.encode_queries(["where is it"], TASK, mode) for mode in ("none", "epic")]
    assert not np.allclose(queries[0], queries[1], atol=1e-3)

    card = (folder / "README.md").read_text()
    assert "MB in 8 bits" in card
    assert "1 of its layers (from 0: 0)," in card
    assert "3. 2 steps more" in card
    assert "4. 2 steps more" in card
    assert "and, 50% of those of a step, of what was written for training" in card
    assert "training/configs/bundled-shown.yaml" in card
    assert "5. 2 steps more" in card
    assert "2 kinds of pairs (alike, question)" in card
    assert "of the model so far that 3 steps of pairs of this kind alone have trained" in card
    assert "each behind every kind; from step 1 on beside\n   what the stage before did" in card
    assert "and 3 steps again (1 minute), with 1.0 times that change in place of 2.0;" in card
    assert "6. 5 steps of EPIC" in card
    # Once more, from what it kept.
    kept = states(home / "inherited")
    assert train(home, monkeypatch, "inherited.yaml", "inherited").exit_code == 0
    assert states(home / "inherited") == kept
    assert "these weights began as its own" in card
