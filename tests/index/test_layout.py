"""Row arithmetic against lists of (shard, row) that are written out."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from epic_retrieval.index.layout import Layout, compactable, mergeable_tail
from epic_retrieval.index.manifest import SHARD_FILES, FileInfo, ShardInfo

SIZE = 8


def shard(number: int, rows: int, size: int = 1000) -> ShardInfo:
    info = FileInfo(size, f"{number:064x}")
    return ShardInfo(f"s-{number:016x}", rows, dict.fromkeys(SHARD_FILES, info))


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    sizes = draw(st.lists(st.integers(1, 12), max_size=8))
    deleted = draw(st.sets(st.integers(0, max(sum(sizes) - 1, 0))))
    rows = sorted(row for row in deleted if row < sum(sizes))
    return Layout(
        tuple(shard(n, size) for n, size in enumerate(sizes)), np.array(rows, dtype=np.int64)
    )


def written_out(layout: Layout) -> list[tuple[str, int, bool]]:
    """(shard, its row, whether it is alive) for each global row."""
    gone = set(layout.deleted.tolist())
    found = [(s.name, row) for s in layout.shards for row in range(s.rows)]
    return [(*pair, number not in gone) for number, pair in enumerate(found)]


@given(layout=layouts(), first=st.integers(0, 30))
def test_compacting_keeps_the_living_in_their_order(layout: Layout, first: int) -> None:
    groups = compactable(layout, SIZE, first)
    rows, starts = written_out(layout), layout.starts
    # What is copied becomes one shard of each group, so that its rows can be told.
    copies, origin, dropped = [], {}, []
    for number, group in enumerate(groups):
        living = layout.alive(starts[group.start], starts[group.stop]).tolist()
        fresh = [shard(1000 + number, len(living))] if living else []
        origin.update({(f"s-{1000 + number:016x}", n): rows[old] for n, old in enumerate(living)})
        copies.append(fresh)
        dropped += [
            old for old in range(starts[group.start], starts[group.stop]) if not rows[old][2]
        ]
    assert layout.dropped(groups).tolist() == dropped
    after = layout.exchanged(groups, copies)
    found = [origin.get(row[:2], row) for row in written_out(after)]
    assert found == [row for number, row in enumerate(rows) if number not in dropped]
    assert after.count == layout.count
    # Shards that begin before the first row are as they were.
    kept = sum(start < first for start in starts[:-1])
    assert after.shards[:kept] == layout.shards[:kept]


@given(layout=layouts())
def test_what_is_compacted_is_in_need_of_it(layout: Layout) -> None:
    groups = compactable(layout, SIZE)
    starts = layout.starts
    grouped = {number for group in groups for number in group}
    dead = {n for n, s in enumerate(layout.shards) if len(layout.dropped([range(n, n + 1)]))}
    small = {n for n, s in enumerate(layout.shards) if 2 * s.rows < SIZE}
    assert dead <= grouped <= dead | small
    for group in groups:
        assert len(group) > 1 or group.start in dead
    for left in small - grouped:
        # It has no neighbour that is written anew.
        assert not {left - 1, left + 1} & (dead | small)
    assert starts[-1] == layout.rows


@given(layout=layouts(), rows=st.sets(st.integers(0, 20)))
def test_deleting_more(layout: Layout, rows: set[int]) -> None:
    wanted = sorted(row for row in rows if row < layout.rows)
    after = layout.without(np.array(wanted, dtype=np.int64))
    assert set(after.deleted.tolist()) == set(layout.deleted.tolist()) | set(wanted)
    assert after.count == after.rows - len(after.deleted)
    assert after.plus([shard(99, 3)]).rows == layout.rows + 3


def test_shards_of_long_texts_are_not_small() -> None:
    few = Layout(tuple(shard(n, 1, 2**28) for n in range(40)), np.empty(0, dtype=np.int64))
    assert compactable(few, SIZE) == []
    assert mergeable_tail(few, SIZE) == []


def test_many_small_additions_are_copied_a_few_times_each() -> None:
    count, size = 3000, 50_000
    layout = Layout((shard(0, 60_000),), np.empty(0, dtype=np.int64))
    copied = most = 0
    for number in range(1, count + 1):
        layout = layout.plus([shard(number, 1)])
        for group in mergeable_tail(layout, size):
            rows = sum(layout.shards[n].rows for n in group)
            copied += rows
            layout = layout.exchanged([group], [[shard(10_000 + number, rows)]])
        most = max(most, len(layout.shards))
    assert layout.shards[0].rows == 60_000
    assert layout.rows == 60_000 + count
    assert most <= 1 + 16
    assert copied <= count * math.log2(count)


def test_what_the_structure_holds_is_not_merged() -> None:
    layout = Layout(tuple(shard(n, 1) for n in range(30)), np.empty(0, dtype=np.int64))
    assert mergeable_tail(layout, SIZE, 14) == []
    assert mergeable_tail(layout, SIZE, 13) == [range(13, 30)]
    assert compactable(layout, SIZE, 13) == [range(13, 30)]
