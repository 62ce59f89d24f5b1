"""The model of a training run: a base model with adapters, g, and what a method adds.

Knows nothing of data and of the course of a run.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from epic_retrieval.backbone import Backbone
from epic_retrieval.checkpoint import BUNDLED_MODEL, Checkpoint, load_checkpoint
from epic_retrieval.checkpoint_config import EpicConfig
from epic_retrieval.errors import InputError
from epic_retrieval.pooling import LatentPooling, Pooling, pool_eos, pool_mean
from epic_retrieval.projector import LearnedTokens, Projector
from epic_retrieval.prompt import Mode, Template, get_template, passage_prompt
from epic_training.config import Lora, TrainConfig

BUNDLED = "bundled"
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def precision_of(config: TrainConfig) -> str:
    """The precision that "auto" stands for on this machine."""
    if config.memory.precision != "auto":
        return config.memory.precision
    gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bfloat16" if gpu else "float32"


def build_checkpoint(config: TrainConfig, device: torch.device, texts: Sequence[str]) -> Checkpoint:
    """The checkpoint to train, as the configuration says; new weights come from its seed.

    A base that is an EPIC checkpoint keeps its template and projector.

    Args:
        config: of the run.
        device: where to train.
        texts: some passages, on whose states a new projector is scaled.

    Raises:
        CheckpointError: when the base cannot be loaded.
        InputError: when base and configuration do not fit together.
    """
    torch.manual_seed(config.run.seed)
    # Under adapters the base stays as it is, so half precision costs nothing; weights that are
    # trained need the digits that small updates have.
    dtype = DTYPES[precision_of(config)] if config.lora else torch.float32
    base = load_checkpoint(
        base_path(config),
        device=device,
        dtype=dtype,
        max_length=config.max_length,
    )
    if base.adapter is not None:
        raise InputError(
            f"{config.base} is a LoRA checkpoint; merge it first (epic export), so that new"
            " adapters have a base of their own"
        )
    model = base.backbone.model
    _check_fit(config, base)
    _set_attention(config, model)
    adapter = _with_adapters(model, config.lora, _base_name(config.base)) if config.lora else None
    backbone = Backbone(model, pooling=_pooling(config, base), causal=config.method.causal)
    checkpoint = Checkpoint(
        name=config.base,
        backbone=backbone,
        tokenizer=base.tokenizer,
        projector=_projector(config, base),
        config=_epic_config(config, base),
        learned=_learned(config, base),
        adapter=adapter,
        folders=(),  # its weights are in memory: fingerprints must follow them
    )
    if base.projector is None:
        _scale_projector(checkpoint, texts)
    return checkpoint


def _scale_projector(checkpoint: Checkpoint, texts: Sequence[str]) -> None:
    """Give the vectors of a new projector the size of token embeddings, on some texts' states."""
    if checkpoint.projector is not None:
        prompt = passage_prompt(checkpoint.config.template)
        limit = checkpoint.config.max_length
        rows = checkpoint.tokenizer.text_ids(texts, prompt, limit)
        with torch.no_grad():
            start = checkpoint.tokenizer.start_ids(prompt)
            states = checkpoint.backbone.encode_behind(start, rows)
            checkpoint.projector.scale_to(states, checkpoint.backbone.embedding_rms())


def _check_fit(config: TrainConfig, base: Checkpoint) -> None:
    limit = base.backbone.max_positions
    if config.max_length >= limit:
        raise InputError(
            f"max_length is {config.max_length}, but {config.base} has {limit} positions for"
            " prompt and text together; lower it"
        )
    longest = max(config.loss.matryoshka, default=0)
    if longest > base.backbone.dimension:
        raise InputError(
            f"loss.matryoshka names {longest} dimensions, but {config.base} has"
            f" {base.backbone.dimension}; leave out what is longer"
        )


def _set_attention(config: TrainConfig, model: PreTrainedModel) -> None:
    name = config.memory.attention
    if not config.method.causal:
        # These take the mask that says who sees whom; others would leave it out, silently.
        if name not in (None, "sdpa", "eager"):
            raise InputError(
                f"memory.attention is {name!r}; bidirectional attention needs sdpa or eager"
            )
        name = name or "sdpa"
    if name is not None:
        try:
            model.set_attn_implementation(name)
        except (ValueError, ImportError) as error:
            raise InputError(f"memory.attention {name!r} cannot be had here: {error}") from error


def _with_adapters(model: PreTrainedModel, lora: Lora, base: str) -> Any:  # noqa: ANN401 (of peft)
    from peft import LoraConfig, TaskType, get_peft_model

    linear = (nn.Linear, Conv1D)
    # By the last part of their names: a list of all names would tie the adapter to this depth.
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, linear)
    }
    settings = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=lora.rank,
        lora_alpha=int(lora.alpha) if lora.alpha == int(lora.alpha) else cast("int", lora.alpha),
        lora_dropout=lora.dropout,
        target_modules=sorted(names),
    )
    adapter = get_peft_model(model, settings)
    adapter.peft_config["default"].base_model_name_or_path = base
    return adapter


def _epic_config(config: TrainConfig, base: Checkpoint) -> EpicConfig:
    modes: dict[str, tuple[Mode, ...]] = {
        "epic": ("epic", "none", "text") if config.demonstrations.text_share else ("epic", "none"),
        "text": ("text", "none"),
        "plain": ("none",),
    }
    return replace(
        base.config,
        template=template_of(config, base.config),
        max_length=config.max_length,
        modes=modes[config.regime],
        base_model=_base_name(config.base) if config.lora else None,
        instruct_demonstration_passages=config.instruct_demonstration_passages,
        method=config.method,
        training=config.to_dict(),
    )


def _base_name(base: str) -> str:
    """How an adapter finds its base again from any working directory."""
    if base == BUNDLED:
        return str(BUNDLED_MODEL)
    folder = Path(base).expanduser()
    return str(folder.resolve()) if folder.is_dir() else base


def template_of(config: TrainConfig, base: EpicConfig) -> Template:
    """The wording of prompts for a base with these settings."""
    if isinstance(config.template, Template):
        return config.template
    if config.template is not None:
        return get_template(config.template)
    trained = bool(base.training) or "epic" in base.modes  # else it was guessed from the folder
    return base.template if trained else get_template("epic")


def base_path(config: TrainConfig) -> str | None:
    """What to load; None is the bundled model."""
    return None if config.base == BUNDLED else config.base


def _projector(config: TrainConfig, base: Checkpoint) -> Projector | None:
    if config.regime != "epic" or config.method.source != "encoded":
        return None
    found = base.projector or Projector(base.backbone.dimension)
    return found.to(base.backbone.device, torch.float32).requires_grad_(True)


def _learned(config: TrainConfig, base: Checkpoint) -> LearnedTokens | None:
    source = config.method.source
    if config.regime != "epic" or source == "encoded":
        return None
    each = len(config.method.vectors)
    count = config.demonstrations.most * each if source == "learned" else config.learned_tokens
    tokens = LearnedTokens(count, base.backbone.dimension)
    tokens.scale_to(base.backbone.embedding_rms())
    return tokens.to(base.backbone.device)


def _pooling(config: TrainConfig, base: Checkpoint) -> Pooling:
    if config.method.pooling == "latent":
        made = LatentPooling(base.backbone.dimension, config.latents)
        return made.to(base.backbone.device)
    return pool_mean if config.method.pooling == "mean" else pool_eos
