"""Finds passages whose id stands more than once.

Hashes of ids are compared range by range, so that memory stays bounded however many shards there
are; equal ones are verified by the ids themselves. Knows nothing of indexes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from epic_retrieval.index.rows import Rows
from epic_retrieval.index.shard import Hashes, Shard

# About so many hashes at a time, at some 50 bytes each.
_BUCKET = 2_000_000
_IDS = 50_000


@dataclass(frozen=True)
class Duplicate:
    """An id that stands twice: in these global rows, counted from 0."""

    id: str
    first: int
    second: int

    def __str__(self) -> str:
        return (
            f'The id "{self.id}" stands twice, at passages {self.first + 1:,} and '
            f"{self.second + 1:,} (counted from 1). Give every passage its own id."
        )


def duplicates(
    shards: Sequence[Shard], deleted: Rows | None = None, bucket: int = _BUCKET
) -> Duplicate | None:
    """The first passage whose id another one before it has; None if all ids differ.

    Args:
        shards: In the order of their rows.
        deleted: Global rows that do not count, sorted.
        bucket: About how many hashes to compare at a time.
    """
    starts = _starts(shards)
    best: Duplicate | None = None
    for hashes, rows in _buckets(shards, starts, deleted, bucket):
        best = _first(hashes, rows, shards, starts, best)
    return best


def twins(
    shards: Sequence[Shard],
    deleted: Rows,
    *,
    keep: Literal["first", "last"],
    bucket: int = _BUCKET,
) -> Rows:
    """The rows to give up so that no id stands twice, sorted.

    Args:
        shards: In the order of their rows.
        deleted: Global rows that do not count, sorted.
        keep: Which of several rows with the same id.
        bucket: About how many hashes to compare at a time.
    """
    starts = _starts(shards)
    lost = [np.empty(0, dtype=np.int64)]
    for hashes, rows in _buckets(shards, starts, deleted, bucket):
        twin = np.zeros(len(rows) + 1, dtype=np.bool_)
        twin[1:-1] = hashes[1:] == hashes[:-1]
        suspects = twin[:-1] | twin[1:]
        lost.append(_lost(shards, starts, hashes[suspects], rows[suspects], keep))
    return np.sort(np.concatenate(lost))


def _buckets(
    shards: Sequence[Shard], starts: Rows, deleted: Rows | None, bucket: int
) -> Iterator[tuple[Hashes, Rows]]:
    """Hashes of one range after another and the rows that they belong to, sorted by both."""
    # Hashes spread evenly over 64 bits.
    pieces = max(1, int(starts[-1]) // bucket)
    edges = np.array([2**64 * piece // pieces for piece in range(pieces)], dtype=np.uint64)
    cuts = [np.append(np.searchsorted(shard.ids[0], edges), shard.rows) for shard in shards]
    for piece in range(pieces):
        parts = [
            (shard.ids[:, cut[piece] : cut[piece + 1]], int(start))
            for shard, cut, start in zip(shards, cuts, starts[:-1], strict=True)
        ]
        if not parts:
            return
        hashes = np.concatenate([part[0] for part, _ in parts])
        rows = np.concatenate([part[1].astype(np.int64) + start for part, start in parts])
        if deleted is not None and len(deleted):
            place = np.minimum(np.searchsorted(deleted, rows), len(deleted) - 1)
            alive = deleted[place] != rows
            hashes, rows = hashes[alive], rows[alive]
        order = np.lexsort((rows, hashes))
        yield hashes[order], rows[order]


def _starts(shards: Sequence[Shard]) -> Rows:
    """Where each shard begins, and at the end the number of rows."""
    return np.cumsum([0, *(shard.rows for shard in shards)])


def _first(
    hashes: Hashes,
    rows: Rows,
    shards: Sequence[Shard],
    starts: Rows,
    best: Duplicate | None,
) -> Duplicate | None:
    """The better of `best` and the first passage of these, which are sorted by hash and row."""
    same = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
    for twin in same[np.argsort(rows[same])].tolist():
        second = int(rows[twin])
        if best is not None and best.second < second:
            break
        name = _id(second, shards, starts)
        before = twin - 1
        while before >= 0 and hashes[before] == hashes[twin]:
            if _id(int(rows[before]), shards, starts) == name:
                first = int(rows[before])
                best = Duplicate(name, first, second)
            before -= 1
        if best is not None and best.second == second:
            break
    return best


def _lost(
    shards: Sequence[Shard],
    starts: Rows,
    hashes: Hashes,
    rows: Rows,
    keep: Literal["first", "last"],
) -> Rows:
    """Of rows sorted by hash and row: those whose id another one keeps."""
    found: list[int] = []
    begin = 0
    while begin < len(rows):
        # Whole groups of equal hashes.
        end = int(np.searchsorted(hashes, hashes[min(begin + _IDS, len(rows)) - 1], side="right"))
        part = rows[begin:end].tolist()
        names = _ids(shards, starts, rows[begin:end])
        members = zip(hashes[begin:end].tolist(), part, strict=True)
        for _, group in groupby(members, key=lambda member: member[0]):
            by_id: dict[str, list[int]] = {}
            for _, row in group:
                by_id.setdefault(names[row], []).append(row)
            for same in by_id.values():
                found += same[1:] if keep == "first" else same[:-1]
        begin = end
    return np.array(found, dtype=np.int64)


def _ids(shards: Sequence[Shard], starts: Rows, rows: Rows) -> dict[int, str]:
    ordered = np.sort(rows)
    cuts = np.searchsorted(ordered, starts)
    found: dict[int, str] = {}
    for number in np.flatnonzero(cuts[1:] > cuts[:-1]).tolist():
        mine = ordered[cuts[number] : cuts[number + 1]]
        names = shards[number].store.ids(mine - starts[number])
        found.update(zip(mine.tolist(), names, strict=True))
    return found


def _id(row: int, shards: Sequence[Shard], starts: Rows) -> str:
    number = int(np.searchsorted(starts, row, side="right")) - 1
    return shards[number].store.ids([row - int(starts[number])])[0]
