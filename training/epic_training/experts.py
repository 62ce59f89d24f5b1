"""What a text is to become where a kind of likeness is wanted: what an expert makes of it.

An expert is a copy of the student that was trained on pairs of one kind alone. Knows nothing of
prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from epic_retrieval.checkpoint import Checkpoint
from epic_retrieval.errors import InputError
from epic_training.encoding import RowEncoder
from epic_training.pairs import TokenColumn, TokenisedPairs
from epic_training.step import Parts

_EXCLUDED = -1e4  # in place of a score
_ENCODED_AT_ONCE = 512
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Kind:
    """A kind of likeness.

    Attributes:
        name: of the kind.
        pairs: of the data sets that show it.
        symmetric: passages are such texts as queries are.
        hard: an expert is trained with hard negatives too. Where likeness is a matter of degree,
            texts that differ in a little are not to be driven apart.
    """

    name: str
    pairs: Sequence[TokenisedPairs]
    symmetric: bool
    hard: bool = True


@dataclass(frozen=True)
class LikenessConfig:
    """What a step is.

    Attributes:
        batch: pairs of one data set, each with its hard negative where it has one.
        kept: texts that are to stay what they are.
        keep: weight of one minus their mean cosine with that.
        max_tokens: a text is cut here.
        temperature: of InfoNCE.
        rows_at_once: rows per forward pass.
    """

    batch: int = 32
    kept: int = 16
    keep: float = 5.0
    max_tokens: int = 96
    temperature: float = 0.05
    rows_at_once: int = 32


class Likeness(nn.Module):
    """InfoNCE over pairs of a kind, all of them bare; a function of a step's number and the seed.

    Texts that pairs of a data set link, however many pairs lie between them, are no negatives of
    each other: of one label, or answers to one question.

    Args:
        checkpoint: the expert, in memory.
        kind: whose pairs are learned.
        base: encodes passages that are not such texts as queries are, and is not trained: what
            stands behind no demonstrations stays where it is.
        texts: n tokenised texts, some of which are to stay what they are.
        aims: (n, d) what they are.
        weights: (n,) how often they are drawn, in all 1.
        config: of a step.
        seed: of all draws.
        end: id that every row ends in.

    Raises:
        InputError: for a data set without two pairs that are no negatives of each other.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        kind: Kind,
        base: Checkpoint,
        texts: TokenColumn,
        aims: Tensor,
        weights: NDArray[np.float64],
        config: LikenessConfig,
        *,
        seed: int = 42,
        end: int = 2,
    ) -> None:
        super().__init__()
        self.model = checkpoint.backbone.model
        self.config, self._kind = config, kind
        self._texts, self._aims = texts, aims
        usable = weights * (np.diff(texts.ends, prepend=0) > 0)
        self._weights = usable / usable.sum()
        self._seed, self._end = seed, end
        self._rows = RowEncoder(checkpoint, config.rows_at_once, cached=False)
        self._base = RowEncoder(base, config.rows_at_once, cached=False)
        self._linked = [linked(pairs) for pairs in kind.pairs]
        for pairs, (groups, _) in zip(kind.pairs, self._linked, strict=True):
            if len(np.unique(groups)) < 2:
                raise InputError(
                    f"kind {kind.name}, data set {pairs.name}: {len(groups)} pairs, all linked with"
                    " each other; expected two that are not"
                )

    def forward(self, step: int) -> tuple[Tensor, Parts]:
        """A scalar, and what to log: the loss of pairs, the mean cosine of what is to stay."""
        rng = np.random.default_rng([self._seed, step])
        loss = self._of_pairs(int(rng.integers(len(self._kind.pairs))), rng)
        count = min(self.config.kept, int(np.count_nonzero(self._weights)))
        kept = rng.choice(len(self._weights), size=count, replace=False, p=self._weights)
        found = self._rows.encode([self._row(self._texts[int(i)]) for i in kept], self._rows.bare)
        aims = self._aims[kept].to(found.device)
        cosine = functional.cosine_similarity(found.float(), aims, dim=1).mean()
        parts = {"pairs": loss.detach(), "kept": cosine.detach()}
        return loss + self.config.keep * (1 - cosine), parts

    def _of_pairs(self, number: int, rng: np.random.Generator) -> Tensor:
        """The loss of pairs of a data set."""
        pairs, (groups, strangers) = self._kind.pairs[number], self._linked[number]
        drawn = rng.choice(len(pairs), size=min(self.config.batch, len(pairs)), replace=False)
        hard = [int(i) for i in drawn if self._kind.hard and strangers[i] >= 0]
        queries = [self._row(pairs.query[int(i)]) for i in drawn]
        passages = [self._row(pairs.positive[int(i)]) for i in drawn]
        passages += [self._row(pairs.negative[i]) for i in hard]
        if self._kind.symmetric:
            both = self._rows.encode([*queries, *passages], self._rows.bare)
            asked, offered = both[: len(queries)], both[len(queries) :]
        else:
            asked = self._rows.encode(queries, self._rows.bare)
            with torch.no_grad():
                offered = self._base.encode(passages, self._base.bare)
        asked, offered = (functional.normalize(x.float(), dim=1) for x in (asked, offered))
        own = torch.arange(len(drawn), device=asked.device)
        belongs = np.concatenate([groups[drawn], strangers[hard]])
        same = torch.from_numpy(groups[drawn][:, None] == belongs).to(asked.device)
        same[own, own] = False
        scores = (asked @ offered.T / self.config.temperature).masked_fill(same, _EXCLUDED)
        return functional.cross_entropy(scores, own)

    def _row(self, ids: NDArray[np.int32]) -> list[int]:
        return [*ids[: self.config.max_tokens].tolist(), self._end]


def linked(pairs: TokenisedPairs) -> tuple[Ids, Ids]:
    """(n,) numbers of the groups of a data set's pairs, and of their hard negatives.

    A group is of texts that pairs link. A negative that is in no group has a number of its own; -1
    stands where there is none.
    """
    number: dict[bytes, int] = {}
    parent: list[int] = []

    def root(text: NDArray[np.int32]) -> int:
        i = number.setdefault(text.tobytes(), len(parent))
        if i == len(parent):
            parent.append(i)
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i in range(len(pairs)):
        query, positive = root(pairs.query[i]), root(pairs.positive[i])
        parent[query] = positive
    groups = [root(pairs.query[i]) for i in range(len(pairs))]
    negatives = [
        root(pairs.negative[i]) if len(pairs.negative[i]) else -1 for i in range(len(pairs))
    ]
    return np.array(groups, dtype=np.int64), np.array(negatives, dtype=np.int64)


def vectors_of(
    checkpoint: Checkpoint,
    texts: TokenColumn,
    max_tokens: int,
    rows_at_once: int,
    end: int = 2,
    label: str = "encoding",
) -> NDArray[np.float16]:
    """(n, d) what a model makes of bare texts, of length 1; 0 where a text has no tokens."""
    rows = RowEncoder(checkpoint, rows_at_once, cached=False)
    lengths = np.minimum(np.diff(texts.ends, prepend=0), max_tokens)
    order = [int(i) for i in np.argsort(lengths, kind="stable") if lengths[i]]
    found = np.zeros((len(texts), checkpoint.backbone.dimension), dtype=np.float16)
    checkpoint.backbone.model.eval()
    with torch.no_grad():
        for start in tqdm(range(0, len(order), _ENCODED_AT_ONCE), desc=label, mininterval=10):
            part = order[start : start + _ENCODED_AT_ONCE]
            ids = [[*texts[i][:max_tokens].tolist(), end] for i in part]
            states = functional.normalize(rows.encode(ids, rows.bare).float(), dim=1)
            found[part] = states.cpu().numpy().astype(np.float16)
    return found
