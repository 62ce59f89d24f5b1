"""The contrastive training step (section 2.3 of the paper), one code path for every regime.

Plain instructions, demonstrations as text, EPIC and its ablations differ in what a prompt's pieces
are. No forward pass is made twice: demonstrations are the batch's own pairs, whose states the loss
needs anyway or which are encoded once, and the queries of a group share one prompt, gradients
included. Several processes share the work of one batch. Knows nothing of files and optimizers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from epic_retrieval.backbone import sampled_counts
from epic_retrieval.checkpoint import Checkpoint
from epic_retrieval.errors import InputError
from epic_retrieval.pooling import LatentPooling
from epic_retrieval.prompt import (
    Mode,
    Piece,
    Prompt,
    Text,
    Vectors,
    build_prompt,
    learned_prompt,
    passage_prompt,
)
from epic_training.batch import Batch, Row
from epic_training.draw import Draw, Indices, draw_demonstrations
from epic_training.encoding import RowEncoder, Runner, States
from epic_training.gather import counts, gather_rows, mean_weight, share
from epic_training.objective import Objective

Parts = dict[str, Tensor]  # scalars to log, without gradients


@dataclass(frozen=True)
class StepConfig:
    """Decisions of one training, all stored in the checkpoint.

    Attributes:
        mode: the regime: "epic", "text" (demonstrations as text) or "none" (plain).
        prompts: "group": a batch's queries form `groups` groups, and each shares one prompt, drawn
            from the other groups' pairs. "sample": every query has a prompt of its own, run with
            the query as in the paper.
        groups: how many.
        max_demonstrations: K; the number shown is uniform on 0..K.
        plain_weight: weight of the loss of the queries behind their instruction alone.
        detach_demonstrations: stop gradients at the states that demonstration vectors are made of.
        text_share: probability that a prompt shows its demonstrations as text in mode "epic".
        demonstration_tokens: a demonstration's query, and its passage, that is text is cut here.
        rows_at_once: rows per forward pass, sorted by length; less padding, less memory.
        gradient_cache: keep one forward pass's activations at a time and compute them again in the
            backward pass: the memory of `rows_at_once` rows whatever the batch, a third more time.
        objective: the loss.
    """

    mode: Mode = "epic"
    prompts: Literal["group", "sample"] = "group"
    groups: int = 4
    max_demonstrations: int = 5
    plain_weight: float = 0.0
    detach_demonstrations: bool = False
    text_share: float = 0.0
    demonstration_tokens: int = 128
    rows_at_once: int = 64
    gradient_cache: bool = False
    objective: Objective = field(default_factory=Objective)


@dataclass(frozen=True)
class Alone:
    """What a batch's texts give without demonstrations.

    Attributes:
        queries: behind the instruction, those that are needed.
        place: row of each query in `queries`.
        passages: positives, then hard negatives, as inference encodes them.
        shown: positives as demonstrations show them; `passages` again unless they are instructed.
        shown_place: row of each pair in `shown`.
    """

    queries: States
    place: dict[int, int]
    passages: States
    shown: States
    shown_place: dict[int, int]


class ContrastiveStep(nn.Module):
    """Computes the loss of a batch with the code that inference runs.

    Args:
        checkpoint: the model in training, in memory.
        config: the regime and its settings.
        rank: of this process among `world`; all get the same batch and the same random numbers.
        world: number of processes.
        group: for gathering vectors; see `gather_rows`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: StepConfig,
        rank: int = 0,
        world: int = 1,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.checkpoint, self.config = checkpoint, config
        self.rank, self.world, self.group = rank, world, group
        # Named here so that optimizers and parallel wrappers find the parameters.
        self.model: Any = checkpoint.adapter or checkpoint.backbone.model
        self.projector = checkpoint.projector
        self.learned = checkpoint.learned
        pooling = checkpoint.backbone.pooling
        self.pooling = pooling if isinstance(pooling, LatentPooling) else None
        self.rows = RowEncoder(checkpoint, config.rows_at_once, cached=config.gradient_cache)
        encoded = checkpoint.config.method.source == "encoded"
        if config.mode == "epic" and encoded and self.projector is None:
            raise InputError('mode "epic" needs a projector; the checkpoint has none')
        if config.mode == "epic" and not encoded and self.learned is None:
            raise InputError("the method needs trained vectors; the checkpoint has none")

    def forward(self, batch: Batch, rng: np.random.Generator) -> tuple[Tensor, Parts]:
        """The loss of this process's share, weighted so that the mean over processes is the whole.

        Args:
            batch: the whole batch, the same in every process.
            rng: for the draws, in the same state in every process.

        Returns:
            A scalar, and what to log; the mean over processes where there are several.
        """
        # 1. Who sees which demonstrations.
        draws = self._draws(batch, rng)
        # 2. States of queries and passages without demonstrations, shared out and gathered.
        alone = self._alone(batch, draws)
        # 3. This process's queries behind their demonstrations: (n_local, d).
        order = np.concatenate([draw.members for draw in draws])
        mine = order[share(len(batch), self.rank, self.world)]
        queries = self._queries(batch, draws, mine, alone)
        # 4. Contrast.
        passages = alone.passages.pooled
        loss, negatives = self.config.objective(batch, mine, queries, passages)
        weight = mean_weight(counts(len(batch), self.world), self.rank)
        parts = {"loss": loss.detach() * weight, "negatives": negatives * weight}
        if self._judges_plain(batch):
            plain = alone.queries.pooled[torch.tensor([alone.place[int(i)] for i in mine])]
            plain_loss, _ = self.config.objective(batch, mine, plain, passages)
            parts["plain_loss"] = plain_loss.detach() * weight
            loss = (loss + self.config.plain_weight * plain_loss) / (1 + self.config.plain_weight)
        shown = sum(len(draw.shown) * len(draw.members) for draw in draws) / len(batch)
        parts["demonstrations"] = torch.tensor(shown)
        return loss * weight, parts

    def _draws(self, batch: Batch, rng: np.random.Generator) -> list[Draw]:
        config, n = self.config, len(batch)
        one_for_all = self.checkpoint.config.method.source == "soft-prompt"
        if config.mode == "none" or (config.mode == "epic" and one_for_all):
            return [Draw(np.arange(n), np.arange(0))]
        groups = n if config.prompts == "sample" else config.groups
        textual = 1.0 if config.mode == "text" else config.text_share
        return draw_demonstrations(
            batch.pair_keys(), groups, config.max_demonstrations, rng, textual, batch.kinds
        )

    def _judges_plain(self, batch: Batch) -> bool:
        """Whether queries without demonstrations are judged too: not where these tell the aim."""
        return bool(self.config.plain_weight) and not batch.kinds

    def _needs_prompt(self, draw: Draw) -> bool:
        """Whether a draw's queries stand behind more than their instruction."""
        soft = self.checkpoint.config.method.source == "soft-prompt"
        return len(draw.shown) > 0 or (soft and self.config.mode == "epic")

    def _alone(self, batch: Batch, draws: Sequence[Draw]) -> Alone:
        own = self.checkpoint.config
        every = own.method.every if self.config.mode == "epic" else 0
        encoded = [
            int(i)
            for draw in draws
            if not draw.textual and own.method.source == "encoded"
            for i in draw.shown
        ]
        plain = [int(i) for draw in draws if not self._needs_prompt(draw) for i in draw.members]
        if self._judges_plain(batch):
            plain = list(range(len(batch)))
        needed = sorted({*plain, *(encoded if "query" in own.method.vectors else [])})
        instructed = own.instruct_demonstration_passages and not batch.task.symmetric
        again = sorted(set(encoded)) if instructed and "passage" in own.method.vectors else []
        bare = behind = self.rows.bare
        if needed or again or batch.task.symmetric:
            prompt = build_prompt(own.template, batch.task.instruction)
            behind = self.rows.behind(self.rows.embed(prompt))
        queries, passages, shown = self._shared_out(
            [
                ([batch.queries[i] for i in needed], behind),
                (batch.passages, behind if batch.task.symmetric else bare),
                (self._as_queries(batch, again), behind),
            ],
            every,
        )
        return Alone(
            queries,
            {index: place for place, index in enumerate(needed)},
            passages,
            shown if again else passages,
            {index: place for place, index in enumerate(again or range(len(batch)))},
        )

    def _as_queries(self, batch: Batch, indices: Sequence[int]) -> list[Row]:
        """Positives as they are cut behind an instruction."""
        if not indices:
            return []
        own = self.checkpoint.config
        prompt = build_prompt(own.template, batch.task.instruction)
        texts = [self._texts(batch, i)[1] for i in indices]
        return self.checkpoint.tokenizer.text_ids(texts, prompt, own.max_length)

    def _shared_out(self, blocks: Sequence[tuple[list[Row], Runner]], every: int) -> list[States]:
        """The states of each block's rows, every process encoding its share of each block."""
        local, sizes = [], [0] * self.world
        pieces: list[list[int]] = []  # per process and block: number of states
        for rank in range(self.world):
            pieces.append([])
            for rows, run in blocks:
                part = rows[share(len(rows), rank, self.world)]
                pieces[-1].append(sum(sampled_counts(part, every)))
                sizes[rank] += pieces[-1][-1]
                if rank == self.rank and part:
                    local.append(self.rows.encode(part, run, every))
        width = self.checkpoint.backbone.dimension
        empty = torch.empty(0, width, device=self.checkpoint.backbone.device)
        gathered = gather_rows(torch.cat([empty, *local]), sizes, self.group)
        parts = gathered.split([size for process in pieces for size in process])
        return [
            States(torch.cat(parts[number :: len(blocks)]), sampled_counts(rows, every))
            for number, (rows, _) in enumerate(blocks)
        ]

    def _queries(self, batch: Batch, draws: Sequence[Draw], mine: Indices, alone: Alone) -> Tensor:
        """(n_local, d) raw states of the queries `mine` behind their prompts, in this order."""
        found: list[Tensor] = []
        waiting: list[tuple[Row, Tensor]] = []  # rows with a prompt of their own
        position: list[int] = []
        late: list[int] = []
        local = set(mine.tolist())
        for draw in draws:
            members = [int(i) for i in draw.members if int(i) in local]
            if not members:
                continue
            rows = [batch.queries[i] for i in members]
            if not self._needs_prompt(draw):
                found.append(alone.queries.pooled[[alone.place[i] for i in members]])
                position += members
            elif self.config.prompts == "sample":
                prompt = self.rows.embed(self._prompt(batch, draw, alone))
                waiting += [(row, prompt) for row in rows]
                late += members
            else:
                run = self.rows.behind(self.rows.embed(self._prompt(batch, draw, alone)))
                found.append(self.rows.encode(rows, run))
                position += members
        if waiting:
            found.append(self.rows.encode_each(*zip(*waiting, strict=True)))
            position += late
        if not found:
            return alone.passages.pooled[:0]
        back = {index: place for place, index in enumerate(position)}
        return torch.cat(found)[[back[int(i)] for i in mine]]

    def _prompt(self, batch: Batch, draw: Draw, alone: Alone) -> Prompt:
        own, instruction = self.checkpoint.config, batch.task.instruction
        textual = draw.textual or self.config.mode == "text"
        if not textual and self.learned is not None:
            return learned_prompt(
                own.template, instruction, own.method, self.learned(), len(draw.shown)
            )
        shown = []
        for i in map(int, draw.shown):
            query, passage = self._texts(batch, i)
            texts: dict[str, Piece] = {
                "query": Text(self._cut(query)),
                "passage": Text(self._cut(passage)),
            }
            shown.append(texts if textual else texts | self._vectors(i, instruction, alone))
        return build_prompt(own.template, instruction, shown, textual=textual)

    def _vectors(self, index: int, instruction: str, alone: Alone) -> dict[str, Piece]:
        """A pair's parts that are vectors, made by g from states (Eq. 3)."""
        method = self.checkpoint.config.method
        states: dict[str, Tensor] = {}
        for part in method.vectors:
            if part == "query":
                states[part] = alone.queries[alone.place[index]]
            elif part == "passage":
                states[part] = alone.shown[alone.shown_place[index]]
            else:
                bare = passage_prompt(self.checkpoint.config.template)
                limit = self.checkpoint.config.max_length
                rows = self.checkpoint.tokenizer.text_ids([instruction], bare, limit)
                states[part] = self.rows.bare(rows, every=method.every)
        if self.projector is None:
            raise InputError("demonstrations cannot become vectors without a projector")
        detach = self.config.detach_demonstrations
        return {
            part: Vectors(self.projector(state.detach() if detach else state))
            for part, state in states.items()
        }

    def _texts(self, batch: Batch, index: int) -> tuple[str, str]:
        if batch.texts:
            return batch.texts[index]
        decode = self.checkpoint.tokenizer.hf.decode
        query, passage = batch.queries[index], batch.positives[index]
        return str(decode(query[:-1])), str(decode(passage[:-1]))  # without the end token

    def _cut(self, text: str) -> str:
        return self.checkpoint.tokenizer.cut(text, self.config.demonstration_tokens)
