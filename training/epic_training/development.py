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
from epic_training.pairs import Pair, is_development, read_pairs

MOST_PAIRS = 300
DRAWS = 3
SHOWN = 5
_LONGEST_DEMONSTRATION = 600  # characters
_CUTOFF = 10


@dataclass(frozen=True)
class DevelopmentScore:
    """nDCG@10 on one data set.

    Attributes:
        name: of the data set.
        pairs: how many queries, and passages to choose from.
        none: with the instruction alone.
        epic: with five demonstrations as vectors, one score per draw.
    """

    name: str
    pairs: int
    none: float
    epic: tuple[float, ...]


def score_development(
    encoder: EpicEncoder, data: Path, settings: Mapping[str, Any], percent: float
) -> list[DevelopmentScore]:
    """Score every data set of a training configuration that has held-out pairs."""
    scores = (
        _score(
            encoder,
            Task(name, chosen["instruction"], symmetric=chosen.get("symmetric", False)),
            list(read_pairs(data / name / "pairs.jsonl.gz")),
            percent,
        )
        for name, chosen in settings.items()
    )
    return [score for score in scores if score is not None]


def _score(
    encoder: EpicEncoder, task: Task, pairs: Sequence[Pair], percent: float
) -> DevelopmentScore | None:
    held_out = list(
        islice(_distinct(p for p in pairs if is_development(p.query, percent)), MOST_PAIRS)
    )
    if not held_out:
        return None
    known = [p for p in pairs if not is_development(p.query, percent)]
    plain = _ndcg(encoder, task, held_out)
    shown = []
    for draw in range(DRAWS):
        rng = np.random.default_rng([draw, len(known)])
        order = (known[int(i)] for i in rng.integers(0, len(known), size=1000))
        short = (p for p in order if len(p.query + p.positive) < _LONGEST_DEMONSTRATION)
        chosen = [Demonstration(p.query, p.positive) for p in islice(_distinct(short), SHOWN)]
        if len(chosen) < SHOWN:
            raise InputError(f"{task.name} has fewer than {SHOWN} short training pairs to show")
        shown.append(_ndcg(encoder, task.with_demonstrations(chosen), held_out))
    return DevelopmentScore(task.name, len(held_out), plain, tuple(shown))


def _distinct(pairs: Iterable[Pair]) -> Iterable[Pair]:
    queries: set[str] = set()
    positives: set[str] = set()
    for pair in pairs:
        if pair.query not in queries and pair.positive not in positives:
            queries.add(pair.query)
            positives.add(pair.positive)
            yield pair


def _ndcg(encoder: EpicEncoder, task: Task, pairs: Sequence[Pair]) -> float:
    mode: Mode = "epic" if task.demonstrations else "none"
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
