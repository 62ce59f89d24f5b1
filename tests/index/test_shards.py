import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from numpy.typing import NDArray

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index import shards as shards_module
from epic_retrieval.index.manifest import ShardInfo
from epic_retrieval.index.passage import Passage
from epic_retrieval.index.rows import ArrayRows, VectorRows
from epic_retrieval.index.shard import ShardWriter
from epic_retrieval.index.shards import Shards
from epic_retrieval.index.where import parse

DIMENSION = 5
SIZES = [3, 1, 10, 2, 30]
PASSAGES = [
    Passage(f"é{n}", f"Text {n}.", "", {"n": n, "odd": bool(n % 2)}) for n in range(sum(SIZES))
]


def vectors_of(count: int) -> NDArray[np.float32]:
    found = np.random.default_rng(0).standard_normal((count, DIMENSION))
    unit: NDArray[np.float32] = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit.astype(np.float32)


VECTORS = vectors_of(sum(SIZES))


def write(
    folder: Path,
    number: int,
    passages: list[Passage],
    vectors: NDArray[np.float32],
    dtype: str = "float32",
) -> ShardInfo:
    (folder / "shards").mkdir(exist_ok=True)
    with ShardWriter(folder / "shards" / f"s-{number:08x}", vectors.shape[1], dtype) as writer:
        writer.add(passages, vectors)
        return writer.finish()


def write_all(folder: Path, sizes: list[int], dtype: str = "float32") -> list[ShardInfo]:
    ends = np.cumsum(sizes).tolist()
    return [
        write(folder, n, PASSAGES[end - size : end], VECTORS[end - size : end], dtype)
        for n, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]


@pytest.fixture(scope="module", params=["float32", "float16"])
def shards(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shards]:
    folder = tmp_path_factory.mktemp("index")
    with Shards(folder, write_all(folder, SIZES, request.param)) as opened:
        yield opened


def naive(shards: Shards) -> ArrayRows:
    half = next(iter(shards))[1].dtype == np.float16
    return ArrayRows(VECTORS.astype(np.float16) if half else VECTORS)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.integers(0, sum(SIZES) - 1), max_size=30), ordered=st.booleans())
def test_rows_are_those_of_the_whole(shards: Shards, rows: list[int], ordered: bool) -> None:
    wanted = np.array(sorted(rows) if ordered else rows, dtype=np.int64)
    same: VectorRows = shards
    taken = same.take(wanted)
    assert taken.dtype == np.float32
    assert taken.shape == (len(rows), DIMENSION)
    assert taken.tolist() == naive(shards).take(wanted).tolist()
    assert shards.fetch(wanted) == [PASSAGES[row] for row in wanted]
    assert shards.ids(wanted.tolist()) == [PASSAGES[row].id for row in wanted]


@pytest.mark.parametrize("kept", [2**30, 0])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_blocks_are_the_whole_in_order(
    shards: Shards, size: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "_KEEP_MAPPED", kept)
    for start in range(len(shards) + 2):
        expected = next_row = start
        parts = [VECTORS[:0]]
        for first, block in shards.blocks(size, start):
            assert first == next_row
            assert 1 <= len(block) <= size
            assert block.dtype == np.float32
            next_row += len(block)
            parts.append(block)
        whole = naive(shards).take(np.arange(min(expected, len(shards)), len(shards)))
        assert np.concatenate(parts).tolist() == whole.tolist()
    with pytest.raises(InputError, match="rows_at_once"):
        next(shards.blocks(0))


def test_ids_are_found_in_the_order_asked_for(shards: Shards) -> None:
    wanted = ["none", "é40", "é0", "é3", "é45", "é3"]
    assert shards.find(wanted) == {"é40": 40, "é0": 0, "é3": 3, "é45": 45}
    assert list(shards.find(wanted)) == ["é40", "é0", "é3", "é45"]
    assert shards.find(wanted, np.array([3, 45])) == {"é40": 40, "é0": 0}
    assert shards.find([]) == {}


@pytest.mark.parametrize(
    "condition", [{"odd": True, "n": {"$gte": 2, "$lt": 41}}, {"n": -1}, {}, {"_id": "é40"}]
)
def test_where_gives_sorted_global_rows(shards: Shards, condition: dict[str, object]) -> None:
    wanted = {
        "{'odd': True, 'n': {'$gte': 2, '$lt': 41}}": list(range(3, 41, 2)),
        "{'n': -1}": [],
        "{}": list(range(46)),
        "{'_id': 'é40'}": [40],
    }[str(condition)]
    for form in (parse(condition), condition):
        rows = shards.where(form)  # type: ignore[arg-type]  # mypy takes the values for objects
        assert rows.dtype == np.int64
        assert rows.tolist() == wanted
        assert np.flatnonzero(shards.mask(form)).tolist() == wanted  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no such operator"):
        shards.where({"n": {"$what": 1}})


@pytest.mark.parametrize("bad", [-1, 46])
def test_rows_that_are_not_there_are_refused(shards: Shards, bad: int) -> None:
    rows = np.array([0, bad])
    for use in (shards.take, shards.fetch, shards.ids):
        with pytest.raises(PassageIndexError, match=f"no row {bad}; there are 46"):
            use(rows)


def test_a_shard_that_stands_twice_has_its_newest_rows_found(tmp_path: Path) -> None:
    infos = write_all(tmp_path, [3, 2])
    with Shards(tmp_path, [infos[0], infos[1], infos[0]]) as shards:
        assert len(shards) == 8
        assert shards.find(["é0", "é3"]) == {"é0": 5, "é3": 3}
        assert shards.find(["é0", "é3"], np.array([5, 6, 7])) == {"é0": 0, "é3": 3}
        assert shards.find(["é0"], np.array([0, 5])) == {}
        assert shards.where({"_id": "é1"}).tolist() == [1, 6]


def test_shards_must_be_of_one_kind(tmp_path: Path) -> None:
    infos = write_all(tmp_path, [3, 2])
    narrow = write(tmp_path, 7, PASSAGES[:1], np.ones((1, 1), dtype=np.float32))
    half = write(tmp_path, 8, PASSAGES[:1], VECTORS[:1], "float16")
    for odd in (narrow, half):
        with pytest.raises(PassageIndexError, match=f"{odd.name}.*expected 5 in float32"):
            Shards(tmp_path, [*infos, odd])
    with pytest.raises(PassageIndexError, match="expected 6 in float32"):
        Shards(tmp_path, infos, dimension=6)
    with pytest.raises(PassageIndexError, match="expected 5 in float16"):
        Shards(tmp_path, infos, dtype="float16")
    with pytest.raises(PassageIndexError, match="bytes, but was built with"):
        Shards(tmp_path, [replace(infos[0], files=infos[1].files)])


def test_no_shards_at_all_are_an_empty_whole(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no shards"):
        Shards(tmp_path, [])
    with Shards(tmp_path, [], dimension=4) as shards:
        assert (len(shards), shards.dimension) == (0, 4)
        assert shards.take(np.empty(0, dtype=np.int64)).shape == (0, 4)
        assert list(shards.blocks(5)) == []
        assert (shards.fetch([]), shards.find(["a"])) == ([], {})
        assert shards.where({}).tolist() == shards.mask({}).tolist() == []


def test_links_inside_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    infos = write_all(tmp_path / "real", [3])
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "shards").symlink_to(tmp_path / "real" / "shards")
    with pytest.raises(PassageIndexError, match="not a folder of its own"):
        Shards(tmp_path / "index", infos)
    # The index as a whole may be reached by a link.
    (tmp_path / "link").symlink_to(tmp_path / "real")
    Shards(tmp_path / "link", infos).close()


def test_a_closed_index_says_so_but_what_was_taken_stays(tmp_path: Path) -> None:
    shards = Shards(tmp_path, write_all(tmp_path, [3, 2]))
    block = next(shards.blocks(3))[1]
    shards.close()
    shards.close()
    assert block.tolist() == VECTORS[:3].tolist()
    rows = np.array([0])
    for use in (
        lambda: shards.take(rows),
        lambda: list(shards.blocks(1)),
        lambda: shards.fetch(rows),
        lambda: shards.ids(rows),
        lambda: shards.find(["é0"]),
        lambda: shards.where({}),
        lambda: shards.mask({}),
    ):
        with pytest.raises(PassageIndexError, match="closed"):
            use()


def test_many_shards_take_few_descriptors_and_none_on_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "_CONNECTIONS", 5)
    infos = [write(tmp_path, n, PASSAGES[n : n + 1], VECTORS[n : n + 1]) for n in range(46)]
    infos += infos
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208 (the folder changes while it is read)
    with Shards(tmp_path, infos) as shards:
        assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208
        rows = np.arange(92)
        with ThreadPoolExecutor(8) as pool:
            taken = list(pool.map(lambda _: shards.take(rows), range(8)))
            found = list(pool.map(shards.where, [{"odd": True}] * 8))
            fetched = list(pool.map(shards.fetch, [rows[::-1]] * 8))
        assert all(each.tolist() == np.tile(VECTORS, (2, 1)).tolist() for each in taken)
        assert all(each.tolist() == list(range(1, 92, 2)) for each in found)
        assert all(each == 2 * PASSAGES[::-1] for each in fetched)
        assert len(os.listdir("/dev/fd")) <= before + 5  # noqa: PTH208
        assert len(shards._connections) == 5
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208
