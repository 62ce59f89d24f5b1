"""Which labelled queries are shown, which choose, and which decide: no query does two of these.

A query's place follows from its text alone, so it stays the same when data are added, reordered or
read from another file. Knows nothing of models.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from epic_retrieval.demonstrations.labelled import Labelled
from epic_retrieval.demonstrations.words import normalised
from epic_retrieval.errors import InputError
from epic_retrieval.tasks import Demonstration

FEWEST = 20  # queries to choose on, and to decide on: below, an interval says nothing

Part = Literal["pool", "choosing", "deciding"]


@dataclass(frozen=True)
class Development:
    """What candidates are scored on.

    Attributes:
        queries: texts; those that choose come first.
        choosing: how many of them choose; the others decide.
        relevant: per query, grades by passage id.
        passages: texts by id.
    """

    queries: tuple[str, ...]
    choosing: int
    relevant: tuple[Mapping[str, int], ...]
    passages: Mapping[str, str]


@dataclass(frozen=True)
class Split:
    """Pairs to demonstrate, queries to score on, and how many pairs were left out of the pool.

    Attributes:
        pool: one pair per query, in an order that their texts decide.
        development: queries that no pair of the pool shows, nor answers.
        answers: pairs left out since their passage answers a development query.
    """

    pool: tuple[Demonstration, ...]
    development: Development
    answers: int


def place_of(query: str) -> float:
    """A number from 0 to 1 that a query's words decide, uniform over queries."""
    digest = hashlib.sha256(normalised(query).encode()).digest()
    return int.from_bytes(digest[:7]) / 2**56  # 56 bits fit a float


def part_of(query: str, pool_share: float) -> Part:
    """The part of a query where `pool_share` of them are demonstrations; the rest is halved."""
    place = place_of(query)
    if place < pool_share:
        return "pool"
    return "choosing" if place < (1 + pool_share) / 2 else "deciding"


def split_labelled(
    labelled: Labelled,
    development: Labelled | None = None,
    *,
    pool_share: float = 0.3,
    most_queries: int | None = None,
    most_passages: int | None = None,
) -> Split:
    """Pool and development queries of labelled data.

    Args:
        labelled: what to take demonstrations from and, without `development`, queries to score on.
        development: other labelled data to score on.
        pool_share: of the queries that are for demonstrations, between 0 and 1; with
            `development`, all are.
        most_queries: to choose on, and as many to decide on; None takes all.
        most_passages: to be found: those that answer a development query, and others up to this
            number, drawn by their texts; None takes all.

    Raises:
        InputError: fewer than `FEWEST` queries to choose or to decide on, or no pair for the pool.
    """
    if not 0 < pool_share < 1:
        raise InputError(f"the pool's share is {pool_share}; expected a number between 0 and 1")
    share = pool_share if development is None else 0.0
    scored = labelled if development is None else development
    order = sorted(range(len(scored.queries)), key=lambda row: place_of(scored.queries[row]))
    parts: dict[Part, list[int]] = {"pool": [], "choosing": [], "deciding": []}
    for row in order:
        parts[part_of(scored.queries[row], share)].append(row)
    chosen = [parts[part][:most_queries] for part in ("choosing", "deciding")]
    _check_enough(*map(len, chosen))
    rows = [*chosen[0], *chosen[1]]
    relevant = tuple(scored.relevant[row] for row in rows)
    reported = Development(
        tuple(scored.queries[row] for row in rows),
        len(chosen[0]),
        relevant,
        _limited(scored.passages, {one for answers in relevant for one in answers}, most_passages),
    )
    pool, answers = _pool(labelled, reported, whole=development is not None, share=share)
    if not pool:
        raise InputError(
            f"no pair is left for demonstrations: {answers} answer a development query; give more"
            " labelled queries, or a larger share of them to the pool"
        )
    return Split(tuple(pool), reported, answers)


def _pool(
    labelled: Labelled, development: Development, *, whole: bool, share: float
) -> tuple[list[Demonstration], int]:
    asked = {normalised(query) for query in development.queries}
    answering = {
        normalised(development.passages[one]) for answers in development.relevant for one in answers
    }
    pool: dict[str, Demonstration] = {}
    left_out = 0
    for query, relevant in zip(labelled.queries, labelled.relevant, strict=True):
        if normalised(query) in asked or not (whole or part_of(query, share) == "pool"):
            continue
        best = max(relevant, key=lambda one: relevant[one])
        passage = labelled.passages[best]
        if normalised(passage) in answering:
            left_out += 1
        else:
            pool.setdefault(normalised(query), Demonstration(query, passage))
    return sorted(pool.values(), key=lambda pair: place_of(pair.query)), left_out


def _limited(passages: Mapping[str, str], needed: set[str], most: int | None) -> dict[str, str]:
    if most is None or len(passages) <= most:
        return dict(passages)
    others = sorted((one for one in passages if one not in needed), key=place_of)
    kept = needed | set(others[: max(0, most - len(needed))])
    return {one: text for one, text in passages.items() if one in kept}


def _check_enough(choosing: int, deciding: int) -> None:
    if min(choosing, deciding) < FEWEST:
        raise InputError(
            f"{choosing} queries to choose demonstrations on and {deciding} to decide on; expected"
            f" at least {FEWEST} each. Give more labelled queries, or a smaller share to the pool"
            " (--pool)"
        )


def check_pool(pool: Sequence[Demonstration], needed: int) -> None:
    """Raise InputError when a pool has fewer than `needed` pairs."""
    if len(pool) < needed:
        raise InputError(
            f"{len(pool)} pairs to choose {needed} demonstrations from; ask for fewer, give more"
            " labelled queries, or allow longer texts"
        )
