"""Sets of demonstrations to compare: drawn at random, or spread over what is asked.

    random   n draws, each with its own seed; the best of them is bge-en-icl's way
    diverse  farthest-first: each next query is the one least like those that are chosen
    typical  k-medoids: the middle query of each of k groups

The last two look at query vectors and take none at random but where to begin.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.demonstrations.split import check_pool
from epic_retrieval.errors import InputError
from epic_retrieval.prompt import Mode
from epic_retrieval.tasks import Demonstration

Strategy = Literal["random", "diverse", "typical"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
_ROUNDS = 50  # of k-medoids; it settles within a few

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Candidate:
    """A set of demonstrations and how it came about."""

    strategy: Strategy
    seed: int
    mode: Mode
    demonstrations: tuple[Demonstration, ...]

    @property
    def k(self) -> int:
        """How many demonstrations."""
        return len(self.demonstrations)

    @property
    def label(self) -> str:
        """For tables: "random, k 5, seed 43, epic"."""
        return f"{self.strategy}, k {self.k}, seed {self.seed}, {self.mode}"


def candidates(
    pool: Sequence[Demonstration],
    vectors: Callable[[], Vectors],
    *,
    strategies: Sequence[Strategy] = STRATEGIES,
    counts: Sequence[int] = (5,),
    draws: int = 3,
    seed: int = 42,
    modes: Sequence[Mode] = ("epic",),
) -> list[Candidate]:
    """Every strategy with every number of demonstrations, in every mode.

    Args:
        pool: pairs to choose from.
        vectors: gives the (n, d) vectors, of length 1, of the pool's queries; called when needed.
        strategies: which ones; random gives `draws` candidates, the others one each.
        counts: numbers of demonstrations.
        draws: random draws.
        seed: of the first draw; the next ones follow it.
        modes: what may become of demonstrations.

    Raises:
        InputError: no such strategy or number, or fewer pairs than demonstrations.
    """
    for strategy in strategies:
        if strategy not in STRATEGIES:
            raise InputError(f"strategy is {strategy!r}; expected one of {', '.join(STRATEGIES)}")
    if not (strategies and counts and modes) or min(*counts, draws) < 1:
        raise InputError(
            f"{len(strategies)} strategies, {list(counts)} demonstrations, {draws} draws,"
            f" {len(modes)} modes; expected at least one strategy, number, draw and mode"
        )
    check_pool(pool, max(counts))
    found: dict[tuple[Mode, tuple[int, ...]], Candidate] = {}
    for strategy, start, rows in _sets(strategies, counts, draws, seed, len(pool), vectors):
        for mode in modes:
            shown = tuple(pool[row] for row in rows)
            found.setdefault((mode, rows), Candidate(strategy, start, mode, shown))
    return list(found.values())


def _sets(
    strategies: Sequence[Strategy],
    counts: Sequence[int],
    draws: int,
    seed: int,
    size: int,
    vectors: Callable[[], Vectors],
) -> Iterator[tuple[Strategy, int, tuple[int, ...]]]:
    """(strategy, seed, rows of the pool)."""
    known = vectors() if set(strategies) - {"random"} else np.empty((0, 0), np.float32)
    for strategy in dict.fromkeys(strategies):
        for count in dict.fromkeys(counts):
            if strategy == "random":
                for start in range(seed, seed + draws):
                    drawn = np.random.default_rng(start).permutation(size)[:count]
                    yield strategy, start, tuple(map(int, drawn))
            elif strategy == "diverse":
                yield strategy, seed, tuple(farthest_first(known, count))
            else:
                yield strategy, seed, tuple(medoids(known, count, seed))


def farthest_first(vectors: Vectors, count: int) -> list[int]:
    """Rows that are far apart: first the one nearest the mean, then whatever is least covered.

    Args:
        vectors: (n, d), rows of length 1.
        count: how many rows to take, at most n.
    """
    rows = [int(np.argmax(vectors @ vectors.mean(axis=0)))]
    nearest = vectors @ vectors[rows[0]]  # each row's cosine to the chosen row that is most alike
    nearest[rows[0]] = np.inf
    while len(rows) < count:
        rows.append(int(np.argmin(nearest)))
        nearest = np.maximum(nearest, vectors @ vectors[rows[-1]])
        nearest[rows[-1]] = np.inf
    return rows


def medoids(vectors: Vectors, count: int, seed: int) -> list[int]:
    """The row in the middle of each of `count` groups, the largest group first.

    Args:
        vectors: (n, d), rows of length 1.
        count: how many groups, at most n.
        seed: of the rows to begin with.
    """
    centres = np.random.default_rng(seed).permutation(len(vectors))[:count]
    for _ in range(_ROUNDS):
        groups = _grouped(vectors, centres)
        moved = np.array(
            [
                members[np.argmax(vectors[members] @ vectors[members].sum(axis=0))]
                for members in groups
            ]
        )
        if np.array_equal(moved, centres):
            break
        centres = moved
    sizes = [len(members) for members in _grouped(vectors, centres)]
    return [int(centres[group]) for group in np.argsort(-np.array(sizes), kind="stable")]


def _grouped(vectors: Vectors, centres: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows by the centre they are most alike; a centre belongs to its own group."""
    nearest = np.argmax(vectors @ vectors[centres].T, axis=1)
    nearest[centres] = np.arange(len(centres))
    return [np.flatnonzero(nearest == group) for group in range(len(centres))]
