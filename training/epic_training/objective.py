"""What a batch's states are judged by: InfoNCE, and what a configuration adds to it.

Knows nothing of models and prompts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from epic_training.batch import Batch
from epic_training.draw import Indices
from epic_training.loss import distillation, false_negatives, info_nce, matryoshka, only_own


@dataclass(frozen=True)
class Objective:
    """The settings of the loss.

    Attributes:
        temperature: tau.
        distillation_weight: of the divergence from a teacher's scores, where a batch has them.
        teacher_temperature: in the unit of those scores.
        matryoshka: lengths at which shortened vectors are trained too; the whole length is implied.
    """

    temperature: float = 0.05
    distillation_weight: float = 0.0
    teacher_temperature: float = 1.0
    matryoshka: tuple[int, ...] = ()

    def __call__(
        self, batch: Batch, mine: Indices, queries: Tensor, passages: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The mean loss of some queries, and how many negatives each has on average.

        Args:
            batch: the whole batch.
            mine: (k,) indices of the queries.
            queries: (k, d) their states.
            passages: (n + h, d) states of all positives, then of all hard negatives.
        """
        device = passages.device
        query_keys, passage_keys = (keys.to(device) for keys in batch.row_keys())
        positions = torch.tensor(mine, device=device)
        masked = false_negatives(query_keys[positions], passage_keys, positions, query_keys)
        if not batch.in_batch_negatives:
            owners = torch.tensor(list(batch.owners), dtype=torch.long, device=device)
            masked |= only_own(owners, len(batch), positions)
        teacher = self._teacher(batch, mine, device)

        def loss(q: Tensor, p: Tensor) -> Tensor:
            found = info_nce(q, p, masked, self.temperature, positions)
            if teacher is None:
                return found
            divergence = distillation(q, p, *teacher, self.temperature, self.teacher_temperature)
            return found + self.distillation_weight * divergence

        negatives = (~masked).sum() / max(1, len(mine)) - 1
        if not self.matryoshka:
            return loss(queries, passages), negatives
        return matryoshka(loss, queries, passages, [*self.matryoshka, passages.shape[1]]), negatives

    def _teacher(
        self, batch: Batch, mine: Indices, device: torch.device
    ) -> tuple[Tensor, Tensor] | None:
        """A teacher's scores (k, c) and the passages (k, c) that they are of; -1 is none."""
        if batch.scores is None or not self.distillation_weight:
            return None
        candidates: list[list[int]] = [[i] for i in range(len(batch))]
        for number, owner in enumerate(batch.owners):
            candidates[owner].append(len(batch) + number)
        width = max(map(len, candidates))
        scores = torch.zeros(len(mine), width)
        places = torch.full((len(mine), width), -1)
        for row, i in enumerate(map(int, mine)):
            places[row, : len(candidates[i])] = torch.tensor(candidates[i])
            scores[row, : len(candidates[i])] = torch.tensor(batch.scores[i])
        return scores.to(device), places.to(device)
