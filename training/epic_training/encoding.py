"""Rows to states for the training step: in slices of like length, behind prompts or bare.

Knows nothing of demonstrations, losses and processes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epic_retrieval.backbone import sampled_counts
from epic_retrieval.checkpoint import Checkpoint
from epic_retrieval.errors import InputError
from epic_retrieval.prefix import Prefix
from epic_retrieval.prompt import Prompt, passage_prompt
from epic_training.batch import Row
from epic_training.gradient_cache import in_chunks, rerun_in_backward
from epic_training.memory import whole_layers

Runner = Callable[..., Tensor]  # rows, and `every`, to states


class States:
    """Raw states of n rows, in order: one each, or several, of which the last is the embedding's.

    Args:
        flat: (sum of counts, d).
        counts: states per row.
    """

    def __init__(self, flat: Tensor, counts: Sequence[int]) -> None:
        self.flat, self.counts = flat, list(counts)
        self._ends = list(accumulate(counts))

    @property
    def pooled(self) -> Tensor:
        """(n, d)."""
        return self.flat[torch.tensor(self._ends, dtype=torch.long, device=self.flat.device) - 1]

    def __getitem__(self, index: int) -> Tensor:
        """(v, d) of row `index`."""
        return self.flat[self._ends[index] - self.counts[index] : self._ends[index]]


class RowEncoder:
    """Runs a checkpoint's model on many rows, with gradients.

    Args:
        checkpoint: the model in training.
        rows_at_once: rows per forward pass.
        cached: keep states only, and compute activations again in the backward pass.
    """

    def __init__(self, checkpoint: Checkpoint, rows_at_once: int, *, cached: bool) -> None:
        self.checkpoint, self.rows_at_once, self.cached = checkpoint, rows_at_once, cached
        start = checkpoint.tokenizer.start_ids(passage_prompt(checkpoint.config.template))
        self.bare: Runner = partial(checkpoint.backbone.encode_behind, start)

    def embed(self, prompt: Prompt) -> Tensor:
        """(P, d) of a prompt.

        Raises:
            InputError: when it leaves too few positions for a text.
        """
        embeddings = self.checkpoint.embed_prompt(prompt)
        taken, text = len(embeddings), self.checkpoint.config.max_length
        if taken + text > self.checkpoint.backbone.max_positions:
            raise InputError(
                f"a prompt takes {taken} tokens and texts up to {text}, but the model has"
                f" {self.checkpoint.backbone.max_positions} positions; show fewer demonstrations,"
                " cut them shorter, or lower max_length"
            )
        return embeddings

    def behind(self, embeddings: Tensor) -> Runner:
        """What encodes rows that share a prompt (P, d)."""
        backbone = self.checkpoint.backbone
        if not backbone.causal:
            return partial(backbone.encode_unshared, prompts=embeddings)
        if self.cached:
            return partial(backbone.encode, prefix=rerun_in_backward(self._prefix, embeddings))
        return partial(backbone.encode, prefix=self._prefix(embeddings))

    def encode(self, rows: Sequence[Row], run: Runner, every: int = 0) -> Tensor:
        """States of rows, in their order: (n, d), or with `every` several a row."""
        return self._in_slices(rows, rows, lambda part: run(part, every=every), every)

    def encode_each(self, rows: Sequence[Row], prompts: Sequence[Tensor]) -> Tensor:
        """(n, d) states of rows that stand behind a prompt of their own each."""

        def run(part: Sequence[tuple[Row, Tensor]]) -> Tensor:
            own, before = zip(*part, strict=True)
            return self.checkpoint.backbone.encode_unshared(own, before)

        items = list(zip(rows, prompts, strict=True))
        lengths = [range(len(row) + len(prompt)) for row, prompt in items]
        return self._in_slices(items, lengths, run, 0)

    def _prefix(self, embeddings: Tensor) -> Prefix:
        # Keys and values are written here, which checkpointed layers would do twice.
        with whole_layers(self.checkpoint.backbone.model):
            return self.checkpoint.backbone.prefix(embeddings)

    def _in_slices(
        self,
        items: Sequence[Any],
        sized: Sequence[Sequence[Any]],
        run: Callable[[Sequence[Any]], Tensor],
        every: int,
    ) -> Tensor:
        order = sorted(range(len(items)), key=lambda i: len(sized[i]))
        size = self.rows_at_once
        slices = [[items[i] for i in order[s : s + size]] for s in range(0, len(order), size)]
        states = in_chunks(run, slices, cached=self.cached)
        split = states.split(sampled_counts([sized[i] for i in order], every))
        return torch.cat([split[i] for i in np.argsort(order)])
