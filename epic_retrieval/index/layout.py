"""Shards in their order and which of their rows are deleted, and the arithmetic of changing them.

Knows nothing of files.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from epic_retrieval.index.manifest import PASSAGES, ShardInfo
from epic_retrieval.index.rows import Rows

# As many small shards may stand at the end before some are merged; then so many at least are.
_MOST_SMALL = 16
_FEWEST_MERGED = 9
# A shard of long texts is large, however few its passages are.
_SMALL_BYTES = 2**27


@dataclass(frozen=True)
class Layout:
    """What an index holds, without how it is searched.

    Args:
        shards: In the order of their rows.
        deleted: Global rows that do not count, sorted, each once.
    """

    shards: tuple[ShardInfo, ...]
    deleted: Rows

    @property
    def rows(self) -> int:
        """Number of rows, deleted ones included."""
        return sum(shard.rows for shard in self.shards)

    @property
    def count(self) -> int:
        """Number of rows that are not deleted."""
        return self.rows - len(self.deleted)

    @property
    def starts(self) -> list[int]:
        """Where each shard begins, and at the end the number of rows."""
        return [0, *np.cumsum([shard.rows for shard in self.shards], dtype=np.int64).tolist()]

    def alive(self, first: int, stop: int) -> Rows:
        """The rows from `first` to `stop` - 1 that are not deleted."""
        mask = np.ones(stop - first, dtype=np.bool_)
        low, high = np.searchsorted(self.deleted, [first, stop])
        mask[self.deleted[low:high] - first] = False
        return np.flatnonzero(mask) + first

    def without(self, rows: Rows) -> "Layout":
        """The same with more rows deleted."""
        return Layout(self.shards, np.union1d(self.deleted, rows))

    def plus(self, shards: Iterable[ShardInfo]) -> "Layout":
        """The same with more shards at the end."""
        return Layout((*self.shards, *shards), self.deleted)

    def dropped(self, groups: Sequence[range]) -> Rows:
        """The deleted rows in some groups of shards, sorted."""
        starts = self.starts
        parts = [np.empty(0, dtype=np.int64)]
        for group in groups:
            low, high = np.searchsorted(self.deleted, [starts[group.start], starts[group.stop]])
            parts.append(self.deleted[low:high])
        return np.concatenate(parts)

    def exchanged(self, groups: Sequence[range], copies: Sequence[Sequence[ShardInfo]]) -> "Layout":
        """The layout where copies of their living rows stand for some groups of shards.

        Args:
            groups: Of neighbours, by their places in `shards`, in order.
            copies: For each group.
        """
        shards: list[ShardInfo] = []
        done = 0
        for group, fresh in zip(groups, copies, strict=True):
            shards += [*self.shards[done : group.start], *fresh]
            done = group.stop
        gone = self.dropped(groups)
        left = np.setdiff1d(self.deleted, gone, assume_unique=True)
        moved = left - np.searchsorted(gone, left)
        return Layout((*shards, *self.shards[done:]), moved)


def compactable(layout: Layout, shard_size: int, first_row: int = 0) -> list[range]:
    """The groups of neighbouring shards that should be written anew: with deleted rows, or small.

    Args:
        layout: Of the index.
        shard_size: Passages in a shard, at most; below half of that it is small.
        first_row: Shards that begin before it are left alone.
    """
    starts = layout.starts
    dead = np.diff(np.searchsorted(layout.deleted, starts)).tolist()
    groups: list[range] = []
    for number, shard in enumerate(layout.shards):
        if starts[number] < first_row or not (dead[number] or is_small(shard, shard_size)):
            continue
        first = number
        if groups and groups[-1].stop == number:
            first = groups.pop().start
        groups.append(range(first, number + 1))
    # A small shard without neighbours of its kind stays as it is.
    return [group for group in groups if len(group) > 1 or dead[group.start]]


def mergeable_tail(layout: Layout, shard_size: int, first_row: int = 0) -> list[range]:
    """The last shards, as one group, if so many are small that some should be merged; else none.

    However many shards of one passage are appended, each passage is copied only some log2(n)
    times: a shard is merged once those after it are about as large together.

    Args:
        layout: Of the index.
        shard_size: Passages in a shard, at most; below half of that it is small.
        first_row: Shards that begin before it are left alone.
    """
    starts = layout.starts
    first = count = len(layout.shards)
    while (
        first and starts[first - 1] >= first_row and is_small(layout.shards[first - 1], shard_size)
    ):
        first -= 1
    if count - first <= _MOST_SMALL:
        return []
    start = count - _FEWEST_MERGED
    while start > first and layout.shards[start - 1].rows <= 2 * (starts[-1] - starts[start]):
        start -= 1
    return [range(start, count)]


def is_small(shard: ShardInfo, shard_size: int) -> bool:
    """Whether a shard should be merged with others."""
    return 2 * shard.rows < shard_size and shard.files[PASSAGES].bytes < _SMALL_BYTES
