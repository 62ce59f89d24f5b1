"""How well a checkpoint does on the development splits, with and without demonstrations.

The score is nDCG@10 of finding each held-out query's positive among the held-out positives of its
data set; demonstrations are drawn from the training split.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.encoder import EpicEncoder
from epic_retrieval.errors import InputError
from epic_retrieval.prompt import Mode
from epic_retrieval.tasks import Demonstration, Task
from epic_training.data import TrainingSet
from epic_training.pairs import Pair, is_development, read_pairs

MOST_PAIRS = 300
_FEWEST = 20  # held-out pairs
DRAWS = 3
SHOWN = 5
_LONGEST_DEMONSTRATION = 600  # characters
_CANDIDATES = 1000  # training pairs that demonstrations are looked for among
_CUTOFF = 10


@dataclass(frozen=True)
class DevelopmentScore:
    """nDCG@10 on one data set.

    Attributes:
        name: of the data set.
        pairs: how many queries, and passages to choose from.
        none: with the instruction alone.
        shown: with demonstrations, one score per draw; empty where the mode shows none.
    """

    name: str
    pairs: int
    none: float
    shown: tuple[float, ...] = ()


@dataclass(frozen=True)
class Summary:
    """Means over data sets; `shown` is None where no mode with demonstrations was scored."""

    none: float
    shown: float | None

    @property
    def best(self) -> float:
        """The better of both."""
        return self.none if self.shown is None else max(self.none, self.shown)

    def helped(self) -> bool:
        """Whether demonstrations did not lower the mean."""
        return self.shown is not None and self.shown >= self.none


def summarise(scores: Sequence[DevelopmentScore]) -> Summary:
    """Means over data sets of nDCG@10; at least one score is needed."""
    shown = [float(np.mean(score.shown)) for score in scores if score.shown]
    return Summary(
        float(np.mean([score.none for score in scores])),
        float(np.mean(shown)) if shown else None,
    )


def score_sets(
    encoder: EpicEncoder,
    sets: Sequence[TrainingSet],
    mode: Mode,
    most: int = MOST_PAIRS,
    draws: int = DRAWS,
    shown: int = SHOWN,
    tokens: int = 128,
) -> list[DevelopmentScore]:
    """Score every data set of a mix that holds rows out.

    Args:
        encoder: the model.
        sets: of `open_mix`; their first instruction is used.
        mode: what becomes of demonstrations; "none" scores without them only.
        most: pairs per data set.
        draws: sets of demonstrations, each scored.
        shown: demonstrations, fewer where a data set has fewer; 0 scores without them only.
        tokens: where a demonstration's query, and its passage, is cut.
    """
    scores = []
    for one in sets:
        held_out = _pairs(one, one.development)
        chosen = list(islice(_distinct(held_out), most))
        if chosen:
            known = _to_show(encoder, one, tokens) if shown else []
            kind = mode if shown else "none"
            scores.append(
                _score(encoder, one.tasks[0], chosen, known, kind, draws, shown, longest=None)
            )
    return scores


def _to_show(encoder: EpicEncoder, one: TrainingSet, tokens: int) -> list[Pair]:
    """Training pairs for demonstrations: short ones, or what there is, cut."""
    rng = np.random.default_rng(len(one.train))
    drawn = list(_pairs(one, rng.choice(one.train, size=_CANDIDATES)))
    short = [pair for pair in drawn if len(pair.query + pair.positive) < _LONGEST_DEMONSTRATION]
    enough = len(list(islice(_distinct(short), SHOWN))) == SHOWN
    cut = encoder.checkpoint.tokenizer.cut
    return [
        Pair(cut(pair.query, tokens), cut(pair.positive, tokens))
        for pair in (short if enough else drawn)
    ]


def _pairs(one: TrainingSet, numbers: NDArray[np.int64]) -> Iterable[Pair]:
    for number in numbers:
        row = one.rows[int(number)]
        yield Pair(row.query, row.positives[0])


def score_development(
    encoder: EpicEncoder, folders: Mapping[str, Path], settings: Mapping[str, Any], percent: float
) -> list[DevelopmentScore]:
    """Score every data set of the bundled model's configuration that holds 20 pairs out or more.

    Among fewer, finding the right passage says little.
    """
    scores = []
    for name, chosen in settings.items():
        task = Task(name, chosen["instruction"], symmetric=chosen.get("symmetric", False))
        pairs = list(read_pairs(folders[name] / "pairs.jsonl.gz"))
        held_out = (p for p in pairs if is_development(p.query, percent))
        first = list(islice(_distinct(held_out), MOST_PAIRS))
        if len(first) >= _FEWEST:
            known = [p for p in pairs if not is_development(p.query, percent)]
            scores.append(_score(encoder, task, first, known, "epic", DRAWS))
    return scores


def _score(
    encoder: EpicEncoder,
    task: Task,
    held_out: Sequence[Pair],
    known: Sequence[Pair],
    mode: Mode,
    draws: int,
    count: int = SHOWN,
    longest: int | None = _LONGEST_DEMONSTRATION,
) -> DevelopmentScore:
    """Score held-out pairs of one task; with `longest` characters given, `count` must be found."""
    plain = _ndcg(encoder, task, held_out, "none")
    if mode == "none":
        return DevelopmentScore(task.name, len(held_out), plain)
    shown = []
    for draw in range(draws):
        rng = np.random.default_rng([draw, len(known)])
        order = (known[int(i)] for i in rng.integers(0, len(known), size=_CANDIDATES))
        short = (p for p in order if longest is None or len(p.query + p.positive) < longest)
        chosen = [Demonstration(p.query, p.positive) for p in islice(_distinct(short), count)]
        if longest is not None and len(chosen) < count:
            raise InputError(f"{task.name} has fewer than {count} short training pairs to show")
        shown.append(_ndcg(encoder, task.with_demonstrations(chosen), held_out, mode))
    return DevelopmentScore(task.name, len(held_out), plain, tuple(shown))


def _distinct(pairs: Iterable[Pair]) -> Iterable[Pair]:
    queries: set[str] = set()
    positives: set[str] = set()
    for pair in pairs:
        if pair.query not in queries and pair.positive not in positives:
            queries.add(pair.query)
            positives.add(pair.positive)
            yield pair


def _ndcg(encoder: EpicEncoder, task: Task, pairs: Sequence[Pair], mode: Mode) -> float:
    queries = encoder.encode_queries([p.query for p in pairs], task, mode, show_progress=False)
    texts = [p.positive for p in pairs]
    passages = encoder.encode_passages(texts, task, mode, show_progress=False)
    return float(_gains(queries @ passages.T).mean())


def _gains(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n,) nDCG@10 of each query from scores (n, n), the one relevant passage on the diagonal.

    A relevant passage ranks last among equals: an encoder that gives every text the same vector
    finds nothing.
    """
    ranks = (scores >= np.diag(scores)[:, None]).sum(axis=1)
    return np.where(ranks <= _CUTOFF, 1 / np.log2(ranks + 1), 0.0)
