"""Batches for the bundled model: all rows from one dataset, a function of seed and step alone.

Knows nothing of models and losses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.errors import InputError
from epic_retrieval.tasks import Task
from epic_training.batch import Batch, Row
from epic_training.pairs import TokenisedPairs

_SHORTEST_CROPPED = 40  # tokens
_SHORTEST_THINNED = 6
_KEPT = 0.45  # of a thinned text's tokens: about as far from it then as its passage is
_HALVED = 24  # tokens that a passage must have to be cut in two


@dataclass(frozen=True)
class Source:
    """A dataset as it is trained on.

    Attributes:
        task: its instruction, and whether passages are prompted too.
        pairs: the rows.
        weight: relative number of batches.
        crop: ignore the queries: cut a few words out of each passage and look for the rest.
    """

    task: Task
    pairs: TokenisedPairs
    weight: float
    crop: bool = False


@dataclass(frozen=True)
class BatchMaker:
    """Makes batch number `step`.

    Attributes:
        sources: the mix.
        size: queries per batch; rows with a query or positive seen in the batch are left out.
        negatives: most hard negatives per batch.
        query_tokens: a query is cut here.
        passage_tokens: a passage is cut at one of these, drawn per batch: mostly short ones are
            cheap, a few long ones keep the model used to them.
        seed: of all draws.
        instructions: what a batch's instruction is drawn from when it is not its own.
        own: probability that a batch keeps its data set's own instruction.
        end: id that every row ends in.
        mixed: probability that a batch wants two things of the same kind of text, which only
            demonstrations tell apart: of a query its passage, or a few of its own words; of the
            beginning of a passage its query, or how it goes on. What the other wants is the hard
            negative, and about as similar.
    """

    sources: Sequence[Source]
    size: int
    negatives: int
    query_tokens: int
    passage_tokens: Sequence[int]
    seed: int = 42
    instructions: Sequence[str] = ()
    own: float = 1.0
    end: int = 2
    mixed: float = 0.0

    def __call__(self, step: int) -> Batch:
        """The batch of a step.

        Raises:
            InputError: when none of the rows drawn can be used.
        """
        rng = np.random.default_rng([self.seed, step])
        weights = np.array([source.weight for source in self.sources])
        source = self.sources[rng.choice(len(weights), p=weights / weights.sum())]
        queries: set[tuple[int, ...]] = set()
        positives: set[tuple[int, ...]] = set()
        batch = Batch(source.task, [], [])
        owners: list[int] = []
        limit = int(rng.choice(self.passage_tokens))
        if self.mixed and rng.random() < self.mixed:
            mixed = self._mixed(source, limit, rng)
            if mixed is not None:
                return mixed
        for index in rng.choice(len(source.pairs), size=min(2 * self.size, len(source.pairs))):
            pair = self._pair(source, int(index), limit, rng)
            if pair is None or tuple(pair[0]) in queries or tuple(pair[1]) in positives:
                continue
            queries.add(tuple(pair[0]))
            positives.add(tuple(pair[1]))
            batch.queries.append([*pair[0], self.end])
            batch.positives.append([*pair[1], self.end])
            if pair[2] and len(batch.negatives) < self.negatives:
                batch.negatives.append([*pair[2], self.end])
                owners.append(len(batch.queries) - 1)
            if len(batch.queries) == self.size:
                break
        if not batch.queries:
            needed = f"{_SHORTEST_CROPPED if source.crop else 1} or more tokens"
            raise InputError(
                f"{source.task.name}: none of the {len(source.pairs)} training pairs can be used;"
                f" expected passages of {needed} once they are cut at {limit}; raise passage_tokens"
                " or take the data set, or its crops, out of the mix"
            )
        batch = replace(batch, owners=tuple(owners), name=source.task.name)
        if self.instructions and rng.random() >= self.own:
            other = _pick(self.instructions, source.task, rng)
            return replace(batch, task=replace(source.task, instruction=other))
        return batch

    def _mixed(self, source: Source, limit: int, rng: np.random.Generator) -> Batch | None:
        """A batch of two kinds, or None where the texts are too short for one."""
        backwards = bool(rng.random() < 0.5)
        pairs, size = source.pairs, self.size // 2  # every query has a hard negative of its own
        task = Task(f"{source.task.name}-mixed", _pick(self.instructions, source.task, rng))
        batch = Batch(task, [], [], name=task.name)
        kinds: list[int] = []
        seen: set[tuple[int, ...]] = set()
        for index in rng.choice(len(pairs), size=min(4 * size, len(pairs))):
            row, passage = pairs.query[index], pairs.positive[index][:limit]
            if backwards:
                if len(passage) < _HALVED:
                    continue
                asked = passage[: len(passage) // 2][: self.query_tokens]
                wanted = row[: self.query_tokens], passage[len(passage) // 2 :]
            else:
                asked = row[: self.query_tokens]
                if len(asked) < _SHORTEST_THINNED:
                    continue
                wanted = passage, asked[rng.random(len(asked)) < _KEPT]
            texts = {tuple(one.tolist()) for one in (asked, *wanted)}
            if texts & seen or () in texts or len(texts) < 3:
                continue
            seen |= texts
            kind = len(kinds) % 2
            kinds.append(kind)
            batch.queries.append([*asked.tolist(), self.end])
            batch.positives.append([*wanted[kind].tolist(), self.end])
            batch.negatives.append([*wanted[1 - kind].tolist(), self.end])
            if len(kinds) == size:
                break
        if len(kinds) < max(2, size // 2):
            return None
        return replace(batch, owners=tuple(range(len(kinds))), kinds=tuple(kinds))

    def _pair(
        self, source: Source, index: int, limit: int, rng: np.random.Generator
    ) -> tuple[Row, Row, Row] | None:
        pairs = source.pairs
        query, positive = pairs.query[index], pairs.positive[index][:limit]
        if source.crop:
            cut = _crop(positive, rng)
            if cut is None:
                return None
            query, positive = cut
        if not (len(query) and len(positive)):
            return None
        negative = pairs.negative[index][:limit]
        return query[: self.query_tokens].tolist(), positive.tolist(), negative.tolist()


def _pick(instructions: Sequence[str], task: Task, rng: np.random.Generator) -> str:
    return instructions[int(rng.integers(len(instructions)))] if instructions else task.instruction


def _crop(
    passage: NDArray[np.int32], rng: np.random.Generator
) -> tuple[NDArray[np.int32], NDArray[np.int32]] | None:
    """A span of 4 to 24 tokens, and the passage, two times out of three without the span."""
    if len(passage) < _SHORTEST_CROPPED:
        return None
    length = int(rng.integers(4, 25))
    start = int(rng.integers(0, len(passage) - length))
    span = passage[start : start + length]
    if rng.random() < 1 / 3:
        return span, passage
    return span, np.concatenate([passage[:start], passage[start + length :]])
