"""Guards against typos in the configuration: every key is one that the code reads."""

import ast
import inspect
from dataclasses import MISSING, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from transformers import Qwen3Config

from epic_retrieval.tasks import Task
from epic_training import bundled
from epic_training.objective import Objective
from epic_training.pretrain import PretrainConfig
from epic_training.step import StepConfig
from tests.conftest import ROOT

CONFIG: dict[str, Any] = yaml.safe_load(
    (ROOT / "training" / "configs" / "bundled.yaml").read_text(encoding="utf-8")
)


def keys_read_by(module: ModuleType) -> set[str]:
    """Strings that a module takes out of mappings: x["key"], x.get("key"), x.pop("key"), tuples."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        match node:
            case ast.Subscript(slice=ast.Constant(value=str(key))):
                found.add(key)
            case ast.Call(
                func=ast.Attribute(attr="get" | "pop"), args=[ast.Constant(value=str(key)), *_]
            ):
                found.add(key)
            case ast.comprehension(iter=ast.Tuple(elts=elements)):
                found |= {str(e.value) for e in elements if isinstance(e, ast.Constant)}
            case _:
                pass
    return found


READ = keys_read_by(bundled)


def names(config_class: type[Any]) -> set[str]:
    return {field.name for field in fields(config_class)}


def required(config_class: type[Any]) -> set[str]:
    return {field.name for field in fields(config_class) if field.default is MISSING}


def test_top_level_and_tokenizer() -> None:
    assert set(CONFIG) <= READ | set(bundled._LATER_STAGES)
    assert set(CONFIG["tokenizer"]) <= READ
    assert set(CONFIG["tokenizer"]["whole"]) <= set(CONFIG["data"])


def test_model() -> None:
    assert set(CONFIG["model"]) <= names(Qwen3Config)
    settings = CONFIG["contrastive"]
    longest = CONFIG["max_length"] + 100  # and some room for a prompt
    assert CONFIG["model"]["max_position_embeddings"] >= longest
    assert max(settings["passage_tokens"]) <= CONFIG["max_tokens"] <= CONFIG["max_length"]


def test_pretraining() -> None:
    chosen = set(CONFIG["pretrain"])
    assert required(PretrainConfig) <= chosen <= names(PretrainConfig) - {"seed"}


def test_contrastive_training() -> None:
    assert set(CONFIG["contrastive"]) <= READ | names(StepConfig) | names(Objective)
    # With passages shorter than that there would be nothing to crop.
    assert min(CONFIG["contrastive"]["passage_tokens"]) >= 40


@pytest.mark.parametrize("stage", ["instructions", "text"])
def test_later_stages(stage: str) -> None:
    assert set(CONFIG[stage]) <= READ
    assert 0 < CONFIG[stage]["own"] < 1


@pytest.mark.parametrize("name", CONFIG["data"])
def test_dataset(name: str, data_root: Path) -> None:
    chosen = CONFIG["data"][name]
    assert set(chosen) <= {"instruction", "symmetric", "lm", "weight", "crop"} <= READ
    Task(name, chosen["instruction"], symmetric=chosen.get("symmetric", False))
    assert chosen["weight"] > 0
    assert 0 <= chosen.get("lm", 1.0) <= 1
    folder = data_root / "train_clean" / name
    assert (folder / "pairs.jsonl.gz").is_file()
    assert (folder / "meta.json").is_file()


def test_the_guard_would_notice() -> None:
    assert not {"wieght", "symetric", "max_tokns"} & READ
