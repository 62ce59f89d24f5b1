"""Configurations: files on top of each other, overrides, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from epic_retrieval import InputError
from epic_retrieval.method import Method
from epic_retrieval.prompt import Template
from epic_training.config import Lora, TrainConfig, load_config
from epic_training.step import StepConfig

LEAST = {"base": "bundled", "mix": "mix.yaml"}


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture
def least(tmp_path: Path) -> Path:
    return write(tmp_path / "least.yaml", LEAST)


def test_defaults_are_the_papers(least: Path, tmp_path: Path) -> None:
    config = load_config([least])
    assert config.mix == tmp_path / "mix.yaml"
    assert (config.regime, config.method, config.max_length) == ("epic", Method(), 512)
    assert config.lora == Lora(rank=64, alpha=32)
    assert (config.batches.size, config.batches.negatives) == (512, 1)
    assert (config.optimizer.steps, config.optimizer.warmup) == (800, 300)
    assert config.optimizer.learning_rate == 1e-4
    assert (config.loss.temperature, config.demonstrations.most) == (0.05, 5)


def test_later_files_and_overrides_win_key_by_key(tmp_path: Path) -> None:
    first = write(
        tmp_path / "a" / "first.yaml",
        LEAST | {"optimizer": {"steps": 5, "warmup": 1}, "loss": {"matryoshka": [64, 128]}},
    )
    second = write(
        tmp_path / "b" / "second.yaml",
        {"data": "rows", "optimizer": {"steps": 7}, "loss": {"matryoshka": [32]}, "lora": None},
    )
    config = load_config([first, second], ["optimizer.steps=9", "run.seed=3"])
    assert config.mix == tmp_path / "a" / "mix.yaml", "relative to the file that names it"
    assert config.data == tmp_path / "b" / "rows"
    assert (config.optimizer.steps, config.optimizer.warmup) == (9, 1)
    assert config.loss.matryoshka == (32,), "lists are replaced"
    assert config.lora is None
    assert config.run.seed == 3
    again = load_config([first, second], ["lora.rank=8"])
    assert again.lora == Lora(rank=8), "a section that was switched off is on again"


def test_arguments_stand_above_the_files(
    least: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config([least], mix=Path("other.yaml"), data=Path("here"))
    assert (config.mix, config.data) == (tmp_path / "other.yaml", tmp_path / "here")


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("loss.matryoshka=[64, 32]", lambda c: c.loss.matryoshka == (64, 32)),
        ("method.vectors=[passage]", lambda c: c.method.vectors == ("passage",)),
        ("lora=null", lambda c: c.lora is None),
        ("lora=", lambda c: c.lora is None),
        ("lora={rank: 2, alpha: 1}", lambda c: c.lora == Lora(rank=2, alpha=1)),
        ("optimizer.learning_rate=1e-5", lambda c: c.optimizer.learning_rate == 1e-5),
        ("memory.attention=eager", lambda c: c.memory.attention == "eager"),
        ("base=a=b", lambda c: c.base == "a=b"),
        (" run.seed = 7", lambda c: c.run.seed == 7),
        ('base="ü 模型"', lambda c: c.base == "ü 模型"),
        ("demonstrations.detach=true", lambda c: c.demonstrations.detach),
        ('template={name: x, query: "{instruction} {query}"}', lambda c: c.template.name == "x"),
    ],
)
def test_overrides_are_yaml(override: str, found: Callable[[Any], bool], least: Path) -> None:
    assert found(load_config([least], [override]))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.step=3", "optimizer.step: unknown key; expected betas, learning_rate"),
        ("optimiser.steps=3", "optimiser: unknown key; expected base, batches"),
        ("method.evry=3", "method.evry: "),
        ("template={name: x, qury: y}", "template"),
        ("run.seed=-1", "run.seed: .*greater than or equal to 0"),
        ("run.seed=[1]", r"run.seed: .*integer.*given: \[1\]"),
        ("optimizer.steps=2.5", "optimizer.steps: .*integer"),
        ("optimizer.steps=", "optimizer.steps: .*integer"),
        ("optimizer.steps=0", "optimizer.steps: "),
        ("optimizer=7", "optimizer: "),
        ("optimizer.betas=[0.9]", "optimizer.betas.1: Field required"),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate: .*finite"),
        ("loss.temperature=0", "loss.temperature: "),
        ("loss.matryoshka=[0]", "loss.matryoshka.0: "),
        ("batches.size=1", "batches.size: "),
        ("demonstrations.text_share=1.5", "demonstrations.text_share: "),
        ("demonstrations.prompts=each", "demonstrations.prompts: .*'group' or 'sample'"),
        ("regime=icl", "regime: .*'epic', 'text' or 'plain'"),
        ("lora.rank=0", "lora.rank: "),
        ("lora.dropout=1", "lora.dropout: "),
        ("base=3", "base: .*string"),
        ("base=", "base: "),
        ("memory.precision=int8", "memory.precision: "),
        ("max_length=7", "max_length: "),
        ("method.every=-1", "every is -1; expected 0 or a number of tokens"),
        ("method.vectors=[passage, query]", "vectors is .* in this order"),
        ("method.source=learnt", "source"),
        ("template=epoc", "unknown template 'epoc'; expected one of"),
        ("template={name: x, query: y}", "query is 'y'; expected"),
    ],
)
def test_what_is_wrong_is_named(override: str, said: str, least: Path) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_config([least], [override])
    assert str(caught.value).startswith(f"{least}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["regime=text", "method.source=learned"], '"learned" needs regime "epic"'),
        (["regime=plain", "method.every=4"], 'method.every .* need regime "epic"'),
        (["regime=text", "demonstrations.text_share=0.5"], 'text_share need regime "epic"'),
        (["method.source=learned", "demonstrations.most=0"], "most of at least 1"),
        (["method.every=4", "method.pooling=mean"], "every is 4"),
    ],
)
def test_settings_must_fit_together(overrides: list[str], said: str, least: Path) -> None:
    with pytest.raises(InputError, match=said):
        load_config([least], overrides)


@pytest.mark.parametrize("override", ["steps", "=3", " =3", "a=[", "a={"])
def test_what_sets_nothing(override: str, least: Path) -> None:
    with pytest.raises(InputError, match=r"expected key=value|not YAML"):
        load_config([least], [override])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds NoneType; expected settings by name"),
        (b"- base", "holds list; expected settings by name"),
        (b"a: [", "cannot be read"),
        (b"\xff\xfe\xff", "cannot be read"),
        (b"3: x\nbase: b\nmix: m", "3: "),
        (b"base: bundled", "mix: Field required"),
        (b"base: bundled\nmix: 3", None),
        (b"base: b\nmix: m\nbase: c", None),
    ],
)
def test_files(content: bytes, said: str | None, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    if said is None:
        load_config([path])
        return
    with pytest.raises(InputError, match=said) as caught:
        load_config([path])
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml cannot be read"):
        load_config([tmp_path / "none.yaml"])


def test_all_faults_are_named_at_once(least: Path) -> None:
    with pytest.raises(InputError, match=r"optimizer\.steps: .*; run\.seed: "):
        load_config([least], ["run.seed=x", "optimizer.steps=x"])


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["lora=null", "data=/somewhere", "memory.attention=eager"],
        ["method={vectors: [instruction, passage], every: 8}", "loss.matryoshka=[8, 16]"],
        ['template={name: x, query: "{instruction}\\n{query} ü"}'],
        ["template=e5", "regime=text", "optimizer.projector_learning_rate=3e-4"],
    ],
)
def test_plain_data_is_read_again_as_the_same(
    overrides: list[str], least: Path, tmp_path: Path
) -> None:
    config = load_config([least], overrides)
    again = load_config([write(tmp_path / "again" / "c.yaml", config.to_dict())])
    assert again == config
    assert again.to_dict() == config.to_dict()
    if overrides and "name: x" in overrides[0]:
        assert isinstance(again.template, Template)


def test_the_steps_settings(least: Path) -> None:
    chosen = ["demonstrations.most=3", "loss.temperature=0.1", "memory.rows_at_once=7"]
    found = load_config([least], [*chosen, "demonstrations.tokens=9"]).step_config()
    assert isinstance(found, StepConfig)
    assert (found.max_demonstrations, found.objective.temperature) == (3, 0.1)
    assert (found.rows_at_once, found.gradient_cache) == (7, True)
    assert (found.mode, found.demonstration_tokens) == ("epic", 9)
    modes = {regime: load_config([least], [f"regime={regime}"]) for regime in ("text", "plain")}
    assert [config.step_config().mode for config in modes.values()] == ["text", "none"]


def test_a_configuration_stays_as_it_is() -> None:
    config = TrainConfig.model_validate(LEAST)
    with pytest.raises(ValueError, match="frozen"):
        config.base = "x"
