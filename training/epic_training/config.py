"""The configuration of a training run: one or more YAML files, later ones on top of earlier ones.

The defaults are the paper's recipe (section 3.1 and appendix A.1). Knows no model and no data.
"""

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from epic_retrieval.errors import InputError
from epic_retrieval.method import Method
from epic_retrieval.prompt import Template, get_template
from epic_training.objective import Objective
from epic_training.step import StepConfig

Regime = Literal["epic", "text", "plain"]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Lora(_Settings):
    """Low-rank adapters on all linear layers of the base model; its own weights stay."""

    rank: Count = 64
    alpha: Positive = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Batches(_Settings):
    """What a step sees.

    `size` counts queries over all processes; `workers` tokenise ahead, 0 in the training process.
    """

    size: Annotated[int, Field(ge=2)] = 512
    negatives: Annotated[int, Field(ge=0)] = 1
    workers: Annotated[int, Field(ge=0)] = 2


class Demonstrations(_Settings):
    """How demonstrations are drawn from a batch and shown; see `StepConfig`."""

    prompts: Literal["group", "sample"] = "group"
    groups: Annotated[int, Field(ge=2)] = 4
    most: Annotated[int, Field(ge=0)] = 5
    detach: bool = False
    text_share: Share = 0.0
    tokens: Count = 128


class Loss(_Settings):
    """InfoNCE and what may join it; see `Objective` and, for `plain_weight`, `StepConfig`."""

    temperature: Positive = 0.05
    plain_weight: NotNegative = 0.0
    distillation_weight: NotNegative = 0.0
    teacher_temperature: Positive = 1.0
    matryoshka: tuple[Count, ...] = ()


class Optimizer(_Settings):
    """AdamW; the rates rise linearly over `warmup` steps and fall linearly to zero.

    `projector_learning_rate` is that of g and of everything else that is new beside the model; None
    takes `learning_rate`.
    """

    steps: Count = 800
    warmup: Annotated[int, Field(ge=0)] = 300
    learning_rate: Positive = 1e-4
    projector_learning_rate: Positive | None = None
    weight_decay: NotNegative = 0.0
    betas: tuple[Share, Share] = (0.9, 0.999)
    max_gradient_norm: Positive = 1.0


class Memory(_Settings):
    """What fits where.

    `precision` "auto" takes bfloat16 on a GPU that has it, else float32. `rows_at_once` counts rows
    per forward pass of one process; with `gradient_cache` it bounds the memory whatever the batch.
    `attention` names one of transformers' implementations; None leaves the choice to it.
    """

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    rows_at_once: Count = 32
    gradient_cache: bool = True
    checkpoint_layers: bool = False
    attention: str | None = None


class Run(_Settings):
    """The course of a run. Steps between saves, log lines and scores; 0 scores at the end only."""

    seed: Annotated[int, Field(ge=0)] = 42
    save_every: Count = 50
    log_every: Count = 1
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    development_pairs: Count = 300


class TrainConfig(_Settings):
    """Everything that decides a training run.

    Attributes:
        base: folder or hub id of a causal language model or EPIC checkpoint; "bundled" is the model
            of the package.
        mix: the mix file of the data (`epic_training.data.mix`).
        data: folder that the mix file's paths are relative to; None: as the mix file says.
        regime: "epic"; "text": demonstrations as text, as bge-en-icl; "plain": instructions only.
        method: ablations of EPIC (`epic_retrieval.method.Method`).
        template: wording of prompts, by name or spelled out; None: the base's own, else "epic".
        instruct_demonstration_passages: Eq. 3 to the letter; see `EpicConfig`.
        learned_tokens: vectors of a soft prompt (Table 5); learned demonstrations have as many as
            `demonstrations.most` pairs need.
        latents: of latent-attention pooling (Table 6).
        max_length: most tokens of a text, end token included; its prompt not.
        lora: adapters; None trains all weights.
    """

    base: str
    mix: Path
    data: Path | None = None
    regime: Regime = "epic"
    method: Method = Method()
    template: str | Template | None = None
    instruct_demonstration_passages: bool = False
    learned_tokens: Count = 10
    latents: Count = 512
    max_length: Annotated[int, Field(ge=8)] = 512
    lora: Lora | None = Lora()
    batches: Batches = Batches()
    demonstrations: Demonstrations = Demonstrations()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    memory: Memory = Memory()
    run: Run = Run()

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainConfig":
        if self.regime != "epic" and self.method.source != "encoded":
            raise ValueError(f'method.source "{self.method.source}" needs regime "epic"')
        if self.regime != "epic" and (self.method.every or self.demonstrations.text_share):
            raise ValueError('method.every and demonstrations.text_share need regime "epic"')
        if self.method.source == "learned" and not self.demonstrations.most:
            raise ValueError('method.source "learned" needs demonstrations.most of at least 1')
        if isinstance(self.template, str):
            get_template(self.template)
        return self

    def step_config(self) -> StepConfig:
        """The settings of the training step."""
        shown, loss = self.demonstrations, self.loss
        return StepConfig(
            mode="none" if self.regime == "plain" else self.regime,
            prompts=shown.prompts,
            groups=shown.groups,
            max_demonstrations=shown.most,
            plain_weight=loss.plain_weight,
            detach_demonstrations=shown.detach,
            text_share=shown.text_share,
            demonstration_tokens=shown.tokens,
            rows_at_once=self.memory.rows_at_once,
            gradient_cache=self.memory.gradient_cache,
            objective=Objective(
                temperature=loss.temperature,
                distillation_weight=loss.distillation_weight,
                teacher_temperature=loss.teacher_temperature,
                matryoshka=loss.matryoshka,
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, defaults spelled out, as `load_config` reads it."""
        plain: dict[str, Any] = self.model_dump(mode="json")
        return plain


def load_config(
    files: Sequence[Path],
    overrides: Sequence[str] = (),
    *,
    mix: Path | None = None,
    data: Path | None = None,
) -> TrainConfig:
    """Read a configuration.

    Args:
        files: YAML files; mappings are merged key by key, anything else is replaced.
        overrides: "key=value" with dots for sections ("optimizer.steps=100"); values are YAML.
        mix: takes the place of the files' `mix`, whose path is relative to the file that names it.
        data: takes the place of the files' `data`, whose path is relative in the same way.

    Raises:
        InputError: naming file or key, what was given and what was expected.
    """
    merged: dict[str, Any] = {}
    for file in files:
        document = _read(file)
        for key in ("mix", "data"):
            if document.get(key) is not None:
                document[key] = str((file.parent / str(document[key])).resolve())
        merged = _merge(merged, document)
    for override in overrides:
        merged = _merge(merged, _parse_override(override))
    for key, path in (("mix", mix), ("data", data)):
        if path is not None:
            merged[key] = str(path.resolve())
    where = ", ".join(map(str, files)) or "the configuration"
    try:
        return TrainConfig.model_validate(merged)
    except ValidationError as error:
        faults = "; ".join(map(_fault, error.errors()))
        raise InputError(f"{where}: {faults}; see epic_training.config.TrainConfig") from None
    except InputError as error:  # from a template's or method's own checks
        raise InputError(f"{where}: {error}") from None


def _fault(error: Mapping[str, Any]) -> str:
    place = ".".join(map(str, error["loc"])) or "settings"
    if error["type"] == "extra_forbidden":
        return f"{place}: unknown key; expected {', '.join(_known(error['loc'][:-1]))}"
    given = f" (given: {reprlib.repr(error['input'])})" if error["type"] != "missing" else ""
    return f"{place}: {error['msg']}{given}"


def _known(section: Sequence[int | str]) -> list[str]:
    """The keys of a section; those of the top for an empty one."""
    found: type[BaseModel] = TrainConfig
    for name in section:
        inner = found.model_fields[str(name)].annotation
        kinds = [kind for kind in (inner, *get_args(inner)) if isinstance(kind, type)]
        models = [kind for kind in kinds if issubclass(kind, BaseModel)]
        if not models:
            return ["the keys that epic_training.config.TrainConfig documents"]
        found = models[0]
    return sorted(found.model_fields)


def _read(file: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read: {_one_line(error)}") from error
    if not isinstance(document, dict):
        raise InputError(f"{file} holds {type(document).__name__}; expected settings by name")
    return document


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _parse_override(text: str) -> dict[str, Any]:
    key, separator, value = text.partition("=")
    if not (separator and key.strip()):
        raise InputError(f"{text!r} sets nothing; expected key=value, as optimizer.steps=100")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"{text!r}: the value is not YAML: {_one_line(error)}") from error
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return dict(nested)
