import gc
import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index import _mapped
from epic_retrieval.index import shard as shard_module
from epic_retrieval.index._twins import Duplicate, duplicates
from epic_retrieval.index.manifest import FileInfo, ShardInfo
from epic_retrieval.index.passage import Passage
from epic_retrieval.index.shard import Shard, ShardWriter, hashes_of

DIMENSION = 6
NAME = "s-0123456789abcdef"


def passages_of(ids: list[str]) -> list[Passage]:
    return [Passage(key, f"Text of {key}.", "", {"key": key}) for key in ids]


def vectors_of(count: int, seed: int = 0) -> NDArray[np.float32]:
    found = np.random.default_rng(seed).standard_normal((count, DIMENSION))
    unit: NDArray[np.float32] = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit.astype(np.float32)


def write(folder: Path, ids: list[str], dtype: str = "float32") -> ShardInfo:
    vectors = vectors_of(len(ids))
    with ShardWriter(folder, DIMENSION, dtype) as writer:
        for start in range(0, len(ids), 7):
            writer.add(passages_of(ids[start : start + 7]), vectors[start : start + 7])
        return writer.finish()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_written_is_read(tmp_path: Path, dtype: str) -> None:
    ids = ["é", "b", "😀", *(str(n) for n in range(50))]
    info = write(tmp_path / NAME, ids, dtype)
    assert (info.name, info.rows) == (NAME, 53)
    assert info.files == {
        path.name: FileInfo.of(path) for path in sorted((tmp_path / NAME).iterdir())
    }
    with Shard.open(tmp_path / NAME, info) as shard:
        assert (len(shard), shard.dimension, shard.dtype) == (53, DIMENSION, np.dtype(dtype))
        assert shard.vectors.tolist() == vectors_of(53).astype(dtype).tolist()
        assert not shard.vectors.flags.writeable
        assert list(shard.store) == passages_of(ids)
        assert shard.find(["7", "none", "é", "7"]) == {"7": 10, "é": 0}
        assert shard.find([]) == {}
        assert sorted(shard.ids[0]) == shard.ids[0].tolist() == sorted(hashes_of(ids).tolist())
        assert hashes_of([ids[row] for row in shard.ids[1]]).tolist() == shard.ids[0].tolist()


def test_arrays_are_files_that_numpy_reads(tmp_path: Path) -> None:
    write(tmp_path / NAME, ["a", "b"], "float16")
    vectors = np.load(tmp_path / NAME / "vectors.npy")
    assert (vectors == vectors_of(2).astype(np.float16)).all()
    assert np.load(tmp_path / NAME / "ids.npy").shape == (2, 2)
    for array in (np.arange(5), np.zeros(0, dtype=np.int64), np.zeros((1, 0), dtype=np.float32)):
        path = tmp_path / f"{array.size}-{array.dtype}"
        _mapped.write_array(path, array)
        for found in (np.load(path), _mapped.map_array(path)):
            assert (found.dtype, found.shape, found.tolist()) == (
                (array.dtype, array.shape, array.tolist())
            )


def test_the_same_passages_make_the_same_bytes(tmp_path: Path) -> None:
    ids = [str(n) for n in range(30)]
    infos = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        infos.append(write(tmp_path / name / NAME, ids))
    assert infos[0] == infos[1]


def test_ids_with_the_same_hash_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def few(keys: list[str]) -> NDArray[np.uint64]:
        return np.array([len(key) for key in keys], dtype=np.uint64)

    monkeypatch.setattr(shard_module, "hashes_of", few)
    ids = ["a", "bb", "cc", "d", "dd", "eeee"]
    info = write(tmp_path / NAME, ids)
    with Shard.open(tmp_path / NAME, info) as shard:
        assert shard.find([*ids, "xx", "yyyyy", "zzzz", ""]) == {k: n for n, k in enumerate(ids)}
        assert duplicates([shard]) is None
        assert duplicates([shard, shard]) == Duplicate("a", 0, 6)


@pytest.mark.parametrize("bucket", [1, 5, 1000])
@pytest.mark.parametrize("seed", range(6))
def test_duplicates_are_found_as_by_looking_at_all_ids(
    tmp_path: Path, bucket: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    ids: list[str] = []
    with ExitStack() as stack:
        shards = []
        for number in range(3):
            own = [f"{n}" for n in random.choice(60 * (seed + 1), 12, replace=False)]
            folder = tmp_path / f"s-{number:08x}"
            shards.append(stack.enter_context(Shard.open(folder, write(folder, own))))
            ids += own
        deleted = np.flatnonzero(random.random(36) < 0.3)
        for gone in (None, deleted, np.empty(0, dtype=np.int64)):
            expected = None
            seen: dict[str, int] = {}
            for row, key in enumerate(ids):
                if gone is not None and row in gone:
                    continue
                if key in seen:
                    expected = Duplicate(key, seen[key], row)
                    break
                seen[key] = row
            assert duplicates(shards, gone, bucket) == expected
    assert duplicates([]) is None


def test_a_duplicate_tells_both_places() -> None:
    assert 'The id "x" stands twice, at passages 1 and 1,001 ' in str(Duplicate("x", 0, 1000))


def test_what_cannot_be_a_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dtype is 'int8'"):
        ShardWriter(tmp_path / NAME, DIMENSION, "int8")
    with ShardWriter(tmp_path / NAME, DIMENSION) as writer:
        with pytest.raises(InputError, match="without passages"):
            writer.finish()
        with pytest.raises(InputError, match="1 vectors for 2 passages"):
            writer.add(passages_of(["a", "b"]), vectors_of(1))
        with pytest.raises(InputError, match="length"):
            writer.add(passages_of(["a"]), 2 * vectors_of(1))
        with pytest.raises(InputError, match="dimensions"):
            writer.add(passages_of(["a"]), np.ones((1, 1), dtype=np.float32))
        writer.add(passages_of(["a"]), vectors_of(1))
        with pytest.raises(InputError, match="stands twice"):
            writer.add(passages_of(["a"]), vectors_of(1))
    with pytest.raises(InputError, match="not empty"):
        ShardWriter(tmp_path / NAME, DIMENSION)
    with pytest.raises(InputError, match="is named 'unnamed'"):
        write(tmp_path / "unnamed", ["a"])


def test_a_folder_may_get_its_name_later(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "work", DIMENSION) as writer:
        writer.add(passages_of(["a"]), vectors_of(1))
        info = writer.finish(NAME)
    (tmp_path / "work").rename(tmp_path / NAME)
    with Shard.open(tmp_path / NAME, info) as shard:
        assert shard.find(["a"]) == {"a": 0}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.mark.parametrize("size", [0, 100, 5_000, 20_000, 60_000, 90_000])
def test_a_full_disk_says_so_and_leaves_no_file_open(tmp_path: Path, size: int) -> None:
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208 (the folder changes while it is read)
    ids = [str(n) for n in range(4000)]
    with files_of_at_most(size), pytest.raises(PassageIndexError, match="writing failed"):
        write(tmp_path / NAME, ids)
    gc.collect()
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize("name", ["vectors.npy", "passages.sqlite", "ids.npy"])
def test_missing_cut_and_linked_files_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / NAME
    info = write(folder, ["a", "b"])
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(PassageIndexError, match=f"{name}.* bytes, but was built with"):
        Shard.open(folder, info)
    path.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(content)
    with pytest.raises(PassageIndexError, match=f"{name}.*cannot be read"):
        Shard.open(folder, info)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PassageIndexError, match=f"{name}.*link"):
        Shard.open(folder, info)
    path.unlink()
    path.write_bytes(content)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(PassageIndexError, match="not a folder of its own"):
        Shard.open(tmp_path / "link", info)
    Shard.open(folder, info).close()


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"x" * 128,
        _mapped.npy_header(np.dtype(np.float32), (3, DIMENSION)),
        _mapped.npy_header(np.dtype(np.float32), (2 * DIMENSION,)),
        _mapped.npy_header(np.dtype(np.float32), (DIMENSION, 2)),
        _mapped.npy_header(np.dtype(np.int64), (2, DIMENSION // 2)),
        _mapped.npy_header(np.dtype(np.float32), (2, DIMENSION)).replace(b"<f4", b"|O8"),
        _mapped.npy_header(np.dtype(np.float32), (2, DIMENSION)).replace(b"False", b"True "),
        _mapped.npy_header(np.dtype(np.float32), (2, DIMENSION)).replace(b"(2", b"(-2", 1)[:128],
    ],
)
def test_vectors_that_are_not_what_the_manifest_says_are_refused(
    tmp_path: Path, header: bytes
) -> None:
    info = write(tmp_path / NAME, ["a", "b"])
    path = tmp_path / NAME / "vectors.npy"
    path.write_bytes(header + path.read_bytes()[len(header) :])
    if not header:
        os.truncate(path, 0)
        info = replace(info, files={**info.files, "vectors.npy": FileInfo.of(path)})
    with pytest.raises(PassageIndexError, match=r"damaged|manifest says"):
        Shard.open(tmp_path / NAME, info)


def test_ids_of_another_shape_are_refused(tmp_path: Path) -> None:
    info = write(tmp_path / NAME, ["a", "b"])
    path = tmp_path / NAME / "ids.npy"
    path.unlink()
    _mapped.write_array(path, np.zeros((4, 1), dtype=np.uint64))
    with (
        Shard.open(tmp_path / NAME, info) as shard,
        pytest.raises(PassageIndexError, match="expected uint64"),
    ):
        shard.find(["a"])


def test_damaged_ids_never_give_a_wrong_row(tmp_path: Path) -> None:
    ids = [str(n) for n in range(40)]
    info = write(tmp_path / NAME, ids)
    path = tmp_path / NAME / "ids.npy"
    content = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(content)
        for place in random.integers(_mapped.HEADER_BYTES, len(content), 5).tolist():
            damaged[place] = int(random.integers(256))
        path.write_bytes(damaged)
        try:
            with Shard.open(tmp_path / NAME, info) as shard:
                found = shard.find(ids)
        except PassageIndexError:
            continue
        assert found.items() <= {key: row for row, key in enumerate(ids)}.items()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists mappings")
def test_mapped_vectors_keep_no_file_open_and_outlive_the_shard(tmp_path: Path) -> None:
    info = write(tmp_path / NAME, [str(n) for n in range(20)])
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208
    shard = Shard.open(tmp_path / NAME, info)
    rest = shard.vectors[15:]
    assert len(shard.ids[0]) == 20
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208
    shard.close()
    del shard
    gc.collect()
    assert rest.tolist() == vectors_of(20)[15:].tolist()
    assert _mappings(tmp_path) == 1
    del rest
    gc.collect()
    assert _mappings(tmp_path) == 0


def _mappings(folder: Path) -> int:
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return sum(str(folder) in line for line in lines)
