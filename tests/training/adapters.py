"""A LoRA checkpoint as training writes it."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from epic_retrieval import EpicEncoder
from epic_retrieval.backbone import Backbone
from epic_retrieval.checkpoint import Checkpoint
from epic_retrieval.prompt_cache import PromptCache
from tests.models import tiny_encoder, tiny_model


def save_adapted(root: Path) -> Path:
    """The folder of a checkpoint that holds an adapter and names its base, `root / "base"`."""
    model = tiny_model("llama")
    model.save_pretrained(root / "base")
    torch.manual_seed(5)
    adapter = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    )
    for name, weights in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.2)
    made = tiny_encoder("llama").checkpoint
    unmerged = Checkpoint(
        "unmerged",
        Backbone(model),
        made.tokenizer,
        made.projector,
        made.config,
        adapter=adapter.eval(),
        folders=(root / "base",),
    )
    EpicEncoder(unmerged, PromptCache(None)).save_pretrained(root / "checkpoint")
    return root / "checkpoint"
