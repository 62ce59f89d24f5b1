"""EPIC's contrastive training step (section 2.3 of the paper), with prompts shared per group.

One step: embed the queries behind their instruction, the positives and the hard negatives; draw
demonstrations for each group of queries from the other groups' pairs, as vectors g(f(Q)), g(f(P));
embed the queries again behind them; InfoNCE. Gradients reach the demonstration vectors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from epic_retrieval.backbone import Backbone
from epic_retrieval.projector import Projector
from epic_retrieval.prompt import Prompt, Template, Vectors, passage_prompt, query_prompt
from epic_retrieval.tasks import Demonstration, Task
from epic_retrieval.tokenization import TextTokenizer
from epic_training.batches import Batch, Row
from epic_training.loss import false_negatives, info_nce


@dataclass(frozen=True)
class ContrastiveConfig:
    """Decisions of one training, all stored in the checkpoint.

    Attributes:
        groups: a batch's queries form this many groups; each shares one prompt, drawn from the
            other groups' pairs. As many groups as queries means a prompt per query.
        max_demonstrations: K; the number shown is uniform on 0..K.
        temperature: tau.
        plain_weight: weight of the loss of the queries behind their instruction alone.
        detach_demonstrations: stop gradients at the demonstration vectors.
        text_share: probability that a group sees its demonstrations as text, not as vectors.
        rows_at_once: rows per forward pass, sorted by length; less padding, less memory.
    """

    groups: int = 4
    max_demonstrations: int = 5
    temperature: float = 0.05
    plain_weight: float = 0.0
    detach_demonstrations: bool = False
    text_share: float = 0.0
    rows_at_once: int = 64


@dataclass(frozen=True)
class ContrastiveStep:
    """Computes the loss of one batch with the code that inference runs."""

    backbone: Backbone
    projector: Projector
    tokenizer: TextTokenizer
    template: Template
    config: ContrastiveConfig

    def __call__(self, batch: Batch, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss, and its parts as numbers: `epic` and `plain`."""
        # 1. Raw states of queries and passages, without demonstrations: (n, d), (m, d).
        plain_prefix = self.backbone.prefix(self._prompt(batch.task, []))
        plain = self._encode(batch.queries, lambda rows: self.backbone.encode(rows, plain_prefix))
        passages = self._passages(batch, lambda rows: self.backbone.encode(rows, plain_prefix))
        # 2. Queries again, each group behind demonstrations from outside of it: (n, d).
        groups = np.array_split(rng.permutation(len(plain)), min(self.config.groups, len(plain)))
        shown = torch.empty_like(plain)
        for group in groups:
            pairs = self._draw(group, len(plain), rng)
            if len(pairs) == 0:
                shown[group] = plain[group]
                continue
            if self.config.text_share and rng.random() < self.config.text_share:
                prompt = self._text_prompt(batch, pairs)
            else:
                prompt = self._prompt(batch.task, self._vectors(plain[pairs], passages[pairs]))
            prefix = self.backbone.prefix(prompt)
            rows = [batch.queries[i] for i in group]
            shown[group] = self._encode(rows, lambda r, p=prefix: self.backbone.encode(r, p))  # type: ignore[misc]
        # 3. Contrast.
        masked = false_negatives(*batch.keys())
        temperature = self.config.temperature
        epic_loss = info_nce(shown, passages, masked, temperature)
        if not self.config.plain_weight:
            return epic_loss, {"epic": epic_loss.item()}
        plain_loss = info_nce(plain, passages, masked, temperature)
        weight = self.config.plain_weight
        parts = {"epic": epic_loss.item(), "plain": plain_loss.item()}
        return (epic_loss + weight * plain_loss) / (1 + weight), parts

    def _draw(self, group: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """Indices of the pairs to show to a group: k of them, k uniform on 0..K, none its own."""
        others = np.setdiff1d(np.arange(n), group)
        count = int(rng.integers(0, self.config.max_demonstrations + 1))
        return rng.choice(others, size=min(count, len(others)), replace=False)

    def _vectors(self, queries: Tensor, passages: Tensor) -> list[tuple[Tensor, Tensor]]:
        """q_i and p_i of k demonstrations from raw states (k, d)."""
        states = torch.stack([queries, passages], dim=1)  # (k, 2, d)
        if self.config.detach_demonstrations:
            states = states.detach()
        return [(pair[:1], pair[1:]) for pair in self.projector(states)]

    def _prompt(self, task: Task, vectors: list[tuple[Tensor, Tensor]]) -> Tensor:
        """(P, d) embeddings of a prompt with these demonstrations."""
        # The texts of the demonstrations do not enter a prompt of vectors; their number does.
        stand_ins = [Demonstration(str(i), str(i)) for i in range(len(vectors))]
        prompt = query_prompt(
            self.template,
            task.with_demonstrations(stand_ins),
            "epic" if vectors else "none",
            vectors,
        )
        return self._embedded(prompt)

    def _embedded(self, prompt: Prompt) -> Tensor:
        pieces = self.tokenizer.prompt_ids(prompt)
        return self.backbone.embed(
            [piece.values if isinstance(piece, Vectors) else piece for piece in pieces]
        )

    def _text_prompt(self, batch: Batch, pairs: np.ndarray) -> Tensor:
        """(P, d) embeddings of a prompt that shows these pairs as text."""
        decode = self.tokenizer.hf.decode
        texts = [(str(decode(batch.queries[i])), str(decode(batch.positives[i]))) for i in pairs]
        shown = dict.fromkeys(Demonstration(q, p) for q, p in texts if q.strip() and p.strip())
        task = batch.task.with_demonstrations(tuple(shown))
        prompt = query_prompt(self.template, task, "text" if shown else "none")
        return self._embedded(prompt)

    def _passages(self, batch: Batch, prompted: Callable[[list[Row]], Tensor]) -> Tensor:
        """(m, d) raw states of positives, then hard negatives, as inference encodes them."""
        rows = batch.positives + batch.negatives
        if batch.task.symmetric:
            return self._encode(rows, prompted)
        pieces = self.tokenizer.prompt_ids(passage_prompt(self.template))
        start = [token for piece in pieces if not isinstance(piece, Vectors) for token in piece]
        return self._encode([[*start, *row] for row in rows], self.backbone.encode)

    def _encode(self, rows: Sequence[Row], run: Callable[[list[Row]], Tensor]) -> Tensor:
        """`run` on slices of rows of like length, the end token added; results in order, (n, d)."""
        ended = [[*row, self.tokenizer.eos_id] for row in rows]
        order = sorted(range(len(ended)), key=lambda i: len(ended[i]))
        step = self.config.rows_at_once
        slices = [order[start : start + step] for start in range(0, len(order), step)]
        states = torch.cat([run([ended[i] for i in part]) for part in slices])
        return states[torch.tensor(order).argsort()]
