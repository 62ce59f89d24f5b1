"""Which pairs of a batch are shown to which of its queries.

No query ever sees its own pair, nor one that shares a text with it. Knows nothing of models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """One prompt: the queries behind it, and the pairs that it shows, in order.

    Attributes:
        members: indices of queries.
        shown: indices of pairs; none of them shares a text with a member's pair.
        textual: show them as text whatever the mode.
    """

    members: Indices
    shown: Indices
    textual: bool = False


def draw_demonstrations(
    keys: NDArray[np.int64],
    groups: int,
    most: int,
    rng: np.random.Generator,
    text_share: float = 0.0,
    kinds: Sequence[int] = (),
) -> list[Draw]:
    """Split a batch into groups; each shares a prompt drawn from the pairs outside of it.

    Args:
        keys: (n, 2) keys of each pair's query and positive (`Batch.pair_keys`).
        groups: how many; n or more gives every query a prompt of its own.
        most: K; the number shown is uniform on 0..K, as far as there are pairs to show.
        rng: of all draws; each of them is made whatever the values of the others.
        text_share: probability that a group's demonstrations are text.
        kinds: of the queries. A group is then of one kind, is shown pairs of this kind, and at
            least one of them.
    """
    draws = []
    for members, least in _groups(len(keys), groups, rng, kinds):
        count = int(rng.integers(min(least, most), most + 1))
        order = rng.permutation(len(keys))
        allowed = order[~_touches(keys[order], keys[members])]
        if kinds:
            allowed = allowed[np.asarray(kinds)[allowed] == kinds[members[0]]]
        textual = bool(rng.random() < text_share)
        draws.append(Draw(members, _distinct(allowed, keys)[:count], textual))
    return draws


def _groups(
    n: int, groups: int, rng: np.random.Generator, kinds: Sequence[int]
) -> Iterator[tuple[Indices, int]]:
    """Members of each group, and how many pairs it must be shown."""
    if not kinds:
        for members in np.array_split(rng.permutation(n), min(groups, n)):
            yield members, 0
        return
    different = sorted(set(kinds))
    for kind in different:
        rows = rng.permutation(np.flatnonzero(np.asarray(kinds) == kind))
        for members in np.array_split(rows, min(-(-groups // len(different)), len(rows))):
            yield members, 1


def _touches(pairs: NDArray[np.int64], members: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) whether a pair shares any text with any member, on either side of either."""
    touched: NDArray[np.bool_] = np.asarray(np.isin(pairs, members).any(axis=1))
    return touched


def _distinct(order: Indices, keys: NDArray[np.int64]) -> Indices:
    """`order` without pairs that repeat a whole pair before them: a task refuses to show those."""
    _, first = np.unique(keys[order], axis=0, return_index=True)
    return order[np.sort(first)]
