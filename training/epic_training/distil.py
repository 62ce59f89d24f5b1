"""Distillation: the student's vectors of texts come to be the teacher's.

The aim is the teacher's vector of the bare text whatever instruction precedes it, so that a model
learns early what belongs to the prompt and what to the text. Demonstrations are made of any texts;
nothing here knows which query belongs to which passage.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from epic_retrieval.checkpoint import Checkpoint
from epic_retrieval.errors import InputError
from epic_retrieval.prompt import Piece, Prompt, Text, Vectors, build_prompt
from epic_training.encoding import RowEncoder
from epic_training.pairs import TokenColumn
from epic_training.step import Parts

_LONG = 64  # tokens of a long text
_TAKEN = -2.0  # in place of a cosine


@dataclass(frozen=True)
class DistilConfig:
    """What a step of distillation is.

    Attributes:
        batch: texts per step.
        behind: share of them that stand behind an instruction, one for all of a step.
        relational: weight of the second loss, the divergence of each text's similarities to the
            others from the teacher's; the first is one minus the cosine with the teacher's vector.
        temperature: of these similarities.
        anchors: 0: the similarities are to the student's vectors of the step's other texts. Else to
            the teacher's of so many texts drawn from all, which cost nothing, and where a text
            whose vector is still wrong misleads no other.
        bare: so many steps come first in which nothing stands before texts: a student that starts
            with the teacher's layers knows such texts already, and nothing of prompts.
        max_tokens: a text is cut here; the teacher saw no more either.
        rows_at_once: rows per forward pass, sorted by length.
        family: texts come in blocks of so many that are drawn together (`made.families`): only side
            by side do small differences tell.
        textual: in half of the steps up to so many demonstrations stand before the instruction as
            text, made of any texts: what stands before a text is not a part of its meaning.
        shown_tokens: where such a text is cut, drawn per step.
        alike: cosine by the teacher of two texts that are shown as a pair of vectors, at least.
        apart: every step has texts behind an instruction alone, behind vectors and behind text, a
            third each of those that stand behind something.
        long: share of the texts that stand behind nothing, as passages do, which are drawn from
            those of 64 tokens and more.
    """

    batch: int
    behind: float = 0.5
    relational: float = 0.5
    temperature: float = 0.05
    max_tokens: int = 62
    rows_at_once: int = 64
    family: int = 1
    textual: int = 0
    anchors: int = 0
    bare: int = 0
    shown_tokens: Sequence[int] = (32,)
    alike: float = 0.5
    apart: bool = False
    long: float = 0.0


class Distillation(nn.Module):
    """The loss of a step, a function of its number and the seed alone.

    Args:
        checkpoint: the student, in memory.
        texts: n tokenised texts.
        targets: (n, d) the teacher's vectors in the student's space.
        instructions: what is put before texts.
        config: of a step.
        seed: of all draws.
        end: id that every row ends in.
        most_shown: up to so many demonstrations stand in the prompt too, as vectors of pairs of
            texts that the teacher finds alike: shown that, a text is to keep its meaning. Needs
            texts that stand behind nothing.
        weights: (n,) how often a text is drawn, in all 1, one by one whatever `family` says; None:
            all alike.
        passages: (n,) bool, texts that stand behind nothing as long as there is room; None: any.

    Raises:
        InputError: for `apart` without demonstrations to show.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        texts: TokenColumn,
        targets: Tensor,
        instructions: Sequence[str],
        config: DistilConfig,
        *,
        seed: int = 42,
        end: int = 2,
        most_shown: int = 0,
        weights: NDArray[np.float64] | None = None,
        passages: NDArray[np.bool_] | None = None,
    ) -> None:
        super().__init__()
        if config.apart and not (most_shown and config.textual):
            raise InputError(
                f"apart needs demonstrations as vectors and as text, but shown is {most_shown} and"
                f" textual {config.textual}; give both at least 1, or leave apart out"
            )
        self.model = checkpoint.adapter or checkpoint.backbone.model
        self.projector = checkpoint.projector if most_shown else None
        self.checkpoint, self.config = checkpoint, config
        self._texts, self._targets, self._instructions = texts, targets, instructions
        lengths = np.diff(texts.ends, prepend=0)
        self._usable = lengths > 0
        self._long = np.flatnonzero(lengths >= _LONG)
        self._weights, self._passages = weights, passages
        self._seed, self._end, self._most_shown = seed, end, most_shown
        self._rows = RowEncoder(checkpoint, config.rows_at_once, cached=False)

    def forward(self, step: int) -> tuple[Tensor, Parts]:
        """A scalar, and what to log: the mean cosine, and the second loss."""
        rng = np.random.default_rng([self._seed, step])
        chosen = self._drawn(rng)
        behind = 0 if step < self.config.bare else round(self.config.behind * len(chosen))
        longer = min(round(self.config.long * (len(chosen) - behind)), len(self._long))
        first = len(chosen) - longer
        if self._passages is not None:  # they come last, and are not replaced by long ones
            chosen = chosen[np.argsort(self._passages[chosen], kind="stable")]
            first = behind
        if longer:
            chosen[first : first + longer] = rng.choice(self._long, size=longer, replace=False)
        limit = self.config.max_tokens
        rows = [[*self._texts[int(i)][:limit].tolist(), self._end] for i in chosen]
        instruction = self._instructions[int(rng.integers(len(self._instructions)))]
        alone = self.checkpoint.backbone.token_embeddings([])  # (0, d)
        if behind < len(rows):
            alone = self._rows.encode(rows[behind:], self._rows.bare)
        states = []
        if behind:
            prompts = self._prompts(instruction, alone, chosen[behind:], rng)
            parts = np.array_split(np.arange(behind), len(prompts))
            for part, prompt in zip(parts, prompts, strict=True):
                if not len(part):
                    continue
                run = self._rows.behind(self._rows.embed(prompt))
                states.append(self._rows.encode([rows[i] for i in part], run))
        states.append(alone)
        device = self.checkpoint.backbone.device
        anchors = None
        if self.config.anchors:
            drawn = rng.choice(np.flatnonzero(self._usable), size=self.config.anchors)
            anchors = self._targets[drawn].to(device)
        return distillation_loss(
            torch.cat(states),
            self._targets[chosen].to(device),
            self.config.relational,
            self.config.temperature,
            anchors,
        )

    def _drawn(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Rows of this step's texts, family by family where there are families."""
        if self._weights is not None:
            size = min(self.config.batch, int(np.count_nonzero(self._weights)))
            drawn = rng.choice(len(self._weights), size=size, replace=False, p=self._weights)
            usable: NDArray[np.int64] = drawn[self._usable[drawn]]
            return usable
        family, blocks = self.config.family, -(-len(self._usable) // self.config.family)
        first = rng.choice(blocks, size=min(self.config.batch // family, blocks), replace=False)
        rows: NDArray[np.int64] = (first[:, None] * family + np.arange(family)).reshape(-1)
        rows = rows[rows < len(self._usable)]
        kept: NDArray[np.int64] = rows[self._usable[rows]]
        return kept

    def _prompts(
        self,
        instruction: str,
        alone: Tensor,
        rows: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> list[Prompt]:
        """What stands before texts: an instruction, and perhaps demonstrations.

        Args:
            instruction: of all.
            alone: (m, d) states of the texts `rows`, of whose pairs vectors are shown.
            rows: numbers of those texts.
            rng: draws what is shown.
        """
        template, most = self.checkpoint.config.template, self._most_shown
        if self.config.apart:
            text = build_prompt(template, instruction, self._foreign(rng), textual=True)
            shown = self._pairs(alone, rows, int(rng.integers(1, most + 1)))
            vectors = build_prompt(template, instruction, shown)
            return [build_prompt(template, instruction), vectors, text]
        if self.config.textual and rng.random() < 0.5:
            return [build_prompt(template, instruction, self._foreign(rng), textual=True)]
        shown = self._pairs(alone, rows, int(rng.integers(most + 1)))
        return [build_prompt(template, instruction, shown)]

    def _pairs(self, alone: Tensor, rows: NDArray[np.int64], most: int) -> list[dict[str, Piece]]:
        """Demonstrations that are vectors, of texts that the teacher finds alike."""
        g = self.projector
        if not most or g is None:
            return []
        return [
            {"query": Vectors(g(alone[i : i + 1])), "passage": Vectors(g(alone[j : j + 1]))}
            for i, j in alike_pairs(self._targets[rows], most, self.config.alike)
        ]

    def _foreign(self, rng: np.random.Generator) -> list[dict[str, Piece]]:
        """Demonstrations that are text, of texts drawn from all."""
        count = 2 * int(rng.integers(1, self.config.textual + 1))
        drawn = rng.choice(np.flatnonzero(self._usable), size=count)
        cuts = self.config.shown_tokens
        cut = cuts[int(rng.integers(len(cuts)))]
        decode = self.checkpoint.tokenizer.hf.decode
        texts = [Text(str(decode(self._texts[int(i)][:cut].tolist()))) for i in drawn]
        pairs = zip(texts[::2], texts[1::2], strict=True)
        return [{"query": query, "passage": passage} for query, passage in pairs]


def alike_pairs(targets: Tensor, most: int, least: float) -> list[tuple[int, int]]:
    """Up to `most` pairs of rows of `targets` (n, d), the most similar first, no row twice.

    Those whose cosine is below `least` are left out.
    """
    unit = functional.normalize(targets, dim=1)
    below = torch.ones(len(unit), len(unit), dtype=torch.bool).tril()
    cosines = (unit @ unit.T).masked_fill(below, _TAKEN)
    pairs: list[tuple[int, int]] = []
    while len(pairs) < most and len(targets) and float(cosines.max()) >= least:
        i, j = divmod(int(cosines.argmax()), len(targets))
        pairs.append((i, j))
        for taken in (i, j):
            cosines[taken] = cosines[:, taken] = _TAKEN
    return pairs


def distillation_loss(
    states: Tensor,
    targets: Tensor,
    relational: float,
    temperature: float,
    anchors: Tensor | None = None,
) -> tuple[Tensor, Parts]:
    """One minus the mean cosine, plus `relational` times the divergence of similarities.

    Args:
        states: (n, d) of the student.
        targets: (n, d) of the teacher.
        relational: weight.
        temperature: of the softmax over each text's similarities.
        anchors: (m, d) of the teacher, to which the similarities are; None: to the n - 1 others,
            for the student to its own vectors of them.
    """
    students = functional.normalize(states.float(), dim=1)
    teachers = functional.normalize(targets.float(), dim=1)
    cosine = (students * teachers).sum(dim=1).mean()
    if anchors is None:
        own = torch.eye(len(states), dtype=torch.bool, device=states.device)
        wanted = (teachers @ teachers.T / temperature).masked_fill(own, -1e4)
        found = (students @ students.T / temperature).masked_fill(own, -1e4)
    else:
        fixed = functional.normalize(anchors.float(), dim=1)
        wanted, found = teachers @ fixed.T / temperature, students @ fixed.T / temperature
    divergence = functional.kl_div(
        found.log_softmax(dim=1), wanted.log_softmax(dim=1), log_target=True, reduction="batchmean"
    )
    parts = {"cosine": cosine.detach(), "divergence": divergence.detach()}
    return 1 - cosine + relational * divergence, parts
