"""Guards against typos in the configuration: every key is one that the code reads."""

import ast
import inspect
from dataclasses import MISSING, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from transformers import LlamaConfig, Qwen3Config

from epic_retrieval.tasks import Task
from epic_training import bundled, distilled, kinds, second, teacher
from epic_training.distil import DistilConfig
from epic_training.experts import LikenessConfig
from epic_training.kinds import ShownConfig
from epic_training.made import MAKERS, WRITTEN
from epic_training.objective import Objective
from epic_training.pretrain import PretrainConfig
from epic_training.stages import SCHEDULE
from epic_training.static_embeddings import StaticConfig
from epic_training.step import StepConfig
from tests.conftest import ROOT


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return found


CONFIG = read("training/configs/bundled.yaml")
DISTILLED = read("training/configs/bundled-distilled.yaml")
INHERITED = read("training/configs/bundled-inherited.yaml")
SHOWN = bundled.read_recipe(ROOT / "training/configs/bundled-shown.yaml")
RECIPES = {"bundled": CONFIG, "distilled": DISTILLED, "inherited": INHERITED, "shown": SHOWN}
DISTILLING = {
    "distilled": DISTILLED,
    "inherited": INHERITED,
    "shown": SHOWN,
    "study": read("benchmarks/replication/base.yaml"),
}
EACH = pytest.mark.parametrize("config", RECIPES.values(), ids=RECIPES)


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
            case (
                ast.comprehension(iter=ast.Tuple(elts=elements))
                | ast.For(iter=ast.Tuple(elts=elements))
            ):
                found |= {str(e.value) for e in elements if isinstance(e, ast.Constant)}
            case _:
                pass
    return found


READ = keys_read_by(bundled) | set(SCHEDULE)


def names(config_class: type[Any]) -> set[str]:
    return {field.name for field in fields(config_class)}


def required(config_class: type[Any]) -> set[str]:
    return {field.name for field in fields(config_class) if field.default is MISSING}


@EACH
def test_top_level(config: dict[str, Any]) -> None:
    stages = {*distilled.STAGES, *bundled._LATER_STAGES}
    assert set(config) <= READ | keys_read_by(distilled) | stages


def test_tokenizer() -> None:
    assert set(CONFIG["tokenizer"]) <= READ
    assert set(CONFIG["tokenizer"]["whole"]) <= set(CONFIG["data"])


@EACH
def test_model(config: dict[str, Any]) -> None:
    settings = config["contrastive"]
    longest = config["max_length"] + 100  # and some room for a prompt
    if "inherit" in config:
        assert set(config["inherit"]) <= keys_read_by(distilled)
        positions = config["inherit"]["positions"]
    else:
        assert set(config["model"]) <= names(LlamaConfig if "teacher" in config else Qwen3Config)
        positions = config["model"]["max_position_embeddings"]
    assert positions >= longest
    assert max(settings["passage_tokens"]) <= config["max_tokens"] <= config["max_length"]


def test_pretraining() -> None:
    chosen = set(CONFIG["pretrain"])
    assert required(PretrainConfig) <= chosen <= names(PretrainConfig) - {"seed"}


@pytest.mark.parametrize("config", DISTILLING.values(), ids=DISTILLING)
def test_distillation(config: dict[str, Any]) -> None:
    chosen = set(config["distil"])
    known = names(DistilConfig) | set(SCHEDULE) | keys_read_by(distilled) | READ
    assert required(DistilConfig) | {"max_tokens"} <= chosen <= known
    assert set(config["teacher"]) <= keys_read_by(teacher)
    teacher_sets = {*config["teacher"]["shares"], *config["teacher"].get("whole", ())}
    written = set(config.get("second", {}).get("written", ()))
    shown = config.get("kinds", {}).get("shown", {})
    taught = teacher_sets | written
    assert taught <= set(config["data"])
    assert taught | {name for one in shown.values() for name in one["of"]} == set(config["data"])
    assert set(config["teacher"].get("long_of", ())) <= teacher_sets
    assert config["distil"]["max_tokens"] <= config["teacher"]["max_tokens"] - 2
    if "prompts" in config:  # what it does not say is as in distil
        assert set(config["prompts"]) <= names(DistilConfig) | set(SCHEDULE)
        assert {"steps", "bare"} <= set(config["prompts"])
    if "second" in config:
        chosen = set(config["second"])
        assert chosen <= keys_read_by(second) | names(DistilConfig) | set(SCHEDULE)
        assert {"steps", "model", "texts", "written"} <= chosen
        for one in config["second"]["written"].values():
            assert set(one) == {"share", "pull"}
        assert sum(one["share"] for one in config["second"]["written"].values()) < 0.7
    if "kinds" in config:
        check_kinds(config)
    if "inherit" in config:
        return
    assert set(config["static"]) <= names(StaticConfig) - {"seed"}
    # The start as a mean needs a value for every coordinate.
    model = config["model"]
    assert model["num_key_value_heads"] * model["head_dim"] == model["hidden_size"]


def check_kinds(config: dict[str, Any]) -> None:
    chosen, step, experts = (config["kinds"], *(config["kinds"][k] for k in ("step", "experts")))
    own = {"shown", "experts", "strength", "texts", "step", "weight"}
    assert own | {"steps"} <= set(chosen) <= names(DistilConfig) | set(SCHEDULE) | own
    assert set(step) <= names(ShownConfig)
    assert step["opening"] < chosen["steps"]
    again = config["settled"]
    own = {"strength", "step"}
    assert {"steps"} <= set(again) <= names(DistilConfig) | set(SCHEDULE) | own
    assert set(again["step"]) <= names(ShownConfig)
    assert {"steps"} <= set(experts) <= names(LikenessConfig) | set(SCHEDULE)
    for one in chosen["shown"].values():
        assert {"of"} <= set(one) <= keys_read_by(kinds)


@EACH
def test_contrastive_training(config: dict[str, Any]) -> None:
    assert set(config["contrastive"]) <= READ | names(StepConfig) | names(Objective)
    # With passages shorter than that there would be nothing to crop.
    assert min(config["contrastive"]["passage_tokens"]) >= 40


@EACH
@pytest.mark.parametrize("stage", bundled._LATER_STAGES)
def test_later_stages(config: dict[str, Any], stage: str) -> None:
    if stage in config:
        assert set(config[stage]) <= READ
        assert 0 < config[stage]["own"] < 1


@EACH
@pytest.mark.parametrize("name", SHOWN["data"])
def test_dataset(config: dict[str, Any], name: str, data_root: Path) -> None:
    if name not in config["data"]:
        return
    chosen = config["data"][name]
    assert set(chosen) <= {"instruction", "symmetric", "lm", "weight", "crop", "made"}
    Task(name, chosen["instruction"], symmetric=chosen.get("symmetric", False))
    shown = [
        name for one in config.get("kinds", {}).get("shown", {}).values() for name in one["of"]
    ]
    assert chosen["weight"] > 0 or name in shown
    assert 0 <= chosen.get("lm", 1.0) <= 1
    if "made" in chosen:
        assert chosen["made"] in MAKERS
        ours = chosen["made"] in {"written", "groups", "functions"}
        assert not ours or (WRITTEN / f"{name}.tsv").is_file()
        return
    folder = data_root / "train_clean" / name
    assert (folder / "pairs.jsonl.gz").is_file()
    assert (folder / "meta.json").is_file()


def test_a_recipe_that_extends_another(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("a: 1\nb: {c: 2, d: 3}\ne: {f: 4}\n")
    (tmp_path / "more.yaml").write_text("extends: base.yaml\nb: {c: 5, d: null, g: [6]}\nh: 7\n")
    found = bundled.read_recipe(tmp_path / "more.yaml")
    assert found == {"a": 1, "b": {"c": 5, "g": [6]}, "e": {"f": 4}, "h": 7}
    assert SHOWN["contrastive"] == {
        key: value for key, value in INHERITED["contrastive"].items() if key != "replayed"
    } | {"steps": 100}


def test_the_guard_would_notice() -> None:
    assert not {"wieght", "symetric", "max_tokns"} & READ
