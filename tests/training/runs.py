"""Toy training runs: a folder with a base model, data, a mix and a configuration; and its log."""

import json
from pathlib import Path
from typing import Any

import yaml

from epic_training.config import TrainConfig, load_config
from tests.models import tiny_model, tiny_tokenizer
from tests.training.samples import write_toy_data

ASKED = "Given a question, find the passage that answers it"
CONFIG: dict[str, Any] = {
    "base": "base",
    "mix": "animals.yaml",
    "max_length": 64,
    "lora": None,
    "batches": {"size": 8, "workers": 0},
    "demonstrations": {"groups": 2, "most": 2},
    "optimizer": {"steps": 4, "warmup": 1, "learning_rate": 2e-3},
    "memory": {"rows_at_once": 5},
    "run": {"development_pairs": 4},
    "latents": 4,
    "learned_tokens": 3,
}


def write_toy_run(folder: Path, family: str = "qwen3") -> Path:
    """`base/`, `data/`, `animals.yaml`, `both.yaml` and `config.yaml` in a folder; the latter.

    The base is a plain transformers model. `animals.yaml` names one data set without held-out rows,
    `both.yaml` another, symmetric one beside it, and holds rows out.
    """
    tiny_model(family).save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    write_toy_data(folder / "data")
    animals = {"instruction": ASKED}
    write_mix(folder / "animals.yaml", {"animals": animals})
    twins = {"instruction": "Find the sentence that says the same", "symmetric": True}
    write_mix(folder / "both.yaml", {"animals": animals, "twins": twins}, development=5)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG | {"base": str(folder / "base")}), encoding="utf-8")
    return config


def write_mix(path: Path, datasets: dict[str, Any], development: float = 0) -> Path:
    content = {"root": "data", "development_percent": development, "datasets": datasets}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def configured(folder: Path, *overrides: str, mix: str | None = None) -> TrainConfig:
    """The folder's configuration with overrides as on the command line."""
    other = folder / mix if mix else None
    return load_config([folder / "config.yaml"], overrides, mix=other)


def records(out: Path) -> list[dict[str, Any]]:
    """The log's lines, which must all be whole."""
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def losses(out: Path) -> list[float]:
    """One per step; every step must stand in the log once and in order."""
    steps = [record for record in records(out) if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, len(steps) + 1))
    return [record["loss"] for record in steps]
