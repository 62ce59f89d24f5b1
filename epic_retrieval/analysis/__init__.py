"""What a prompt costs, and what the end token looks at behind it."""

from epic_retrieval.analysis.attention import AttentionShares, attention_shares
from epic_retrieval.analysis.prompt_size import (
    SHAPES,
    KeyValueShape,
    PromptSize,
    key_value_shape,
    prompt_size,
)
from epic_retrieval.analysis.segments import SEGMENTS, prompt_segments

__all__ = [
    "SEGMENTS",
    "SHAPES",
    "AttentionShares",
    "KeyValueShape",
    "PromptSize",
    "attention_shares",
    "key_value_shape",
    "prompt_segments",
    "prompt_size",
]
