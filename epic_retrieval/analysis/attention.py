"""Where the end token looks: the attention sink of the paper's Table 9, and what is left of it.

The end token's state is the embedding, so what it attends to is what the embedding is made of. The
share of the first token is the table's figure; the other segments say who gets the rest.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.analysis.segments import SEGMENTS, Segment, prompt_segments
from epic_retrieval.errors import CheckpointError, InputError
from epic_retrieval.prompt import Mode, Prompt, query_prompt
from epic_retrieval.tasks import Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from epic_retrieval.encoder import EpicEncoder


@dataclass(frozen=True, eq=False)
class AttentionShares:
    """Shares of the end token's attention, means over heads and queries.

    Attributes:
        mode: what became of the demonstrations.
        queries: how many were averaged.
        shares: (layers, segments), in the order of `SEGMENTS`; rows add up to 1.
        tokens: (segments,) mean number of positions.
    """

    mode: Mode
    queries: int
    shares: NDArray[np.float64]
    tokens: NDArray[np.float64]

    def of(self, segment: Segment) -> NDArray[np.float64]:
        """(layers,) the share of one segment."""
        found: NDArray[np.float64] = self.shares[:, SEGMENTS.index(segment)]
        return found


def attention_shares(
    encoder: "EpicEncoder", task: Task, queries: Sequence[str], mode: Mode
) -> AttentionShares:
    """Measure on some queries of a task; a few dozen are enough.

    While this runs, nobody else may use the encoder: its attention is switched to one that tells
    its weights.

    Args:
        encoder: the model.
        task: its prompt.
        queries: texts, at least one.
        mode: what becomes of the demonstrations.

    Raises:
        InputError: no queries, or what `encode_queries` refuses.
        CheckpointError: a model whose tokens also look ahead.
    """
    import torch

    if not queries:
        raise InputError("there are no queries to measure attention on; give some")
    checkpoint = encoder.checkpoint
    if not checkpoint.backbone.causal:
        raise CheckpointError(
            f"{encoder.name} attends in both directions; this analysis is for causal models"
        )
    prompt, template = encoder.prompt(task, mode), checkpoint.config.template
    before = prompt_segments(checkpoint.tokenizer, template, task.instruction, prompt)
    wording = query_prompt(template, task, "none")
    rows = checkpoint.tokenizer.text_ids(queries, wording, checkpoint.config.max_length)
    after = _suffix_length(encoder, wording.suffix)
    shares, tokens = [], []
    with torch.no_grad():
        embeddings = checkpoint.embed_prompt(prompt)  # (P, d)
        for row in rows:
            own: list[Segment] = ["query"] * (len(row) - after - 1)
            segments = [*before, *own, *["instruction"] * after, "end"]
            weights = end_attention(encoder, embeddings, row)  # (layers, T)
            members = np.array([[one == kind for kind in SEGMENTS] for one in segments])
            shares.append(weights @ members)
            tokens.append(members.sum(axis=0))
    return AttentionShares(mode, len(rows), np.mean(shares, axis=0), np.mean(tokens, axis=0))


def end_attention(
    encoder: "EpicEncoder", prompt: "torch.Tensor", row: Sequence[int]
) -> NDArray[np.float64]:
    """(layers, T) the last token's attention to all T positions, a mean over heads; rows sum to 1.

    All but the last token go through the model's usual attention; only that one's weights are
    needed, and only they are kept.

    Args:
        encoder: the model, causal.
        prompt: (P, d) what precedes the text, P > 0.
        row: the text's token ids, the end token last.
    """
    import torch

    backbone = encoder.checkpoint.backbone
    own = backbone.token_embeddings(row[:-1])
    past = backbone.prefix(torch.cat([prompt, own]))
    with _eager(backbone.model):
        output = backbone.model(
            input_ids=torch.tensor([[row[-1]]], device=backbone.device),
            attention_mask=torch.ones(1, past.length + 1, dtype=torch.long, device=backbone.device),
            past_key_values=past.as_cache(),
            use_cache=False,
            output_attentions=True,
        )
    layers = [layer[0, :, -1].double().mean(dim=0) for layer in output.attentions]
    weights = torch.stack(layers)
    # Half precision rounds each weight, so that they would not quite add up.
    found: NDArray[np.float64] = (weights / weights.sum(dim=1, keepdim=True)).cpu().numpy()
    return found


@contextmanager
def _eager(model: "PreTrainedModel") -> Iterator[None]:
    """The one attention of transformers that returns its weights."""
    usual = model.config._attn_implementation  # noqa: SLF001 (there is no public name for it)
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def _suffix_length(encoder: "EpicEncoder", suffix: str) -> int:
    """How many tokens a template puts between a text and the end token."""
    tokenizer = encoder.checkpoint.tokenizer
    [bare], [followed] = (
        tokenizer.text_ids(["a"], Prompt(suffix=end), 1 << 20) for end in ("", suffix)
    )
    return len(followed) - len(bare)
