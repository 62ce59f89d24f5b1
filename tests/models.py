"""Tiny random models of every supported family, and encoders around them. No downloads.

Weights are drawn larger than usual, so that attention is far from uniform and a wrong mask or
position shows.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GemmaConfig,
    GemmaModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    OPTConfig,
    OPTModel,
    Phi3Config,
    Phi3Model,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)

from epic_retrieval import EpicEncoder
from epic_retrieval.backbone import Backbone
from epic_retrieval.checkpoint import Checkpoint
from epic_retrieval.checkpoint_config import EpicConfig
from epic_retrieval.projector import Projector
from epic_retrieval.prompt import TEMPLATES, Mode
from epic_retrieval.prompt_cache import PromptCache
from epic_retrieval.tokenization import TextTokenizer

SHAPE: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
OPT: dict[str, Any] = {
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "init_std": 0.2,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    # Not entries of its own.
    "intermediate_size": None,
    "num_key_value_heads": None,
}
BUILDERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaModel, LlamaConfig, {}),
    # A window shorter than most prompts of the tests.
    "mistral": (MistralModel, MistralConfig, {"sliding_window": 12}),
    "mistral-full": (MistralModel, MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2Model, Qwen2Config, {}),
    "qwen3": (Qwen3Model, Qwen3Config, {"head_dim": 8}),
    "gemma": (GemmaModel, GemmaConfig, {"head_dim": 8}),
    "phi3": (Phi3Model, Phi3Config, {}),
    "opt": (OPTModel, OPTConfig, OPT),
    # As the bundled model is.
    "opt-norm-after": (OPTModel, OPTConfig, OPT | {"do_layer_norm_before": False}),
}
FAMILIES = tuple(BUILDERS)


def tiny_model(family: str, *, seed: int = 0) -> PreTrainedModel:
    """A random model with 3 layers and 32 dimensions, in evaluation mode."""
    torch.manual_seed(seed)
    model_class, config_class, extra = BUILDERS[family]
    model: PreTrainedModel = model_class(config_class(**SHAPE | extra)).eval()
    return model


def tiny_tokenizer(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE with 400 tokens; <pad> 0, <s> 1, </s> 2, <mark> 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = "Instruct: given a question, retrieve passages that answer it\nQuery: what is a passage"
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>", "<mark>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text] * 10, trainer)
    names = {"pad_token": "<pad>", "eos_token": "</s>"} | ({"bos_token": "<s>"} if bos else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def tiny_encoder(
    family: str = "qwen3", *, projector: bool = True, template: str = "epic", bos: bool = True
) -> EpicEncoder:
    """An encoder in memory whose prompts are kept in memory only."""
    model = tiny_model(family)
    backbone = Backbone(model)
    g = None
    if projector:
        torch.manual_seed(1)
        g = Projector(backbone.dimension).eval()
        g.scale_to(torch.randn(64, backbone.dimension), backbone.embedding_rms())
    modes: tuple[Mode, ...] = ("epic", "none") if projector else ("none",)
    config = EpicConfig(TEMPLATES[template], 1 if bos else None, 2, max_length=64, modes=modes)
    tokenizer = TextTokenizer(tiny_tokenizer(bos=bos), bos_id=config.bos_token_id, eos_id=2)
    return EpicEncoder(
        Checkpoint(f"tiny-{family}", backbone, tokenizer, g, config), PromptCache(None)
    )


def save_tiny_encoder(folder: Path, family: str = "qwen3") -> Path:
    """A complete checkpoint folder of `tiny_encoder`."""
    tiny_encoder(family).save_pretrained(folder)
    return folder
