"""Several folders become one index, as if their corpora had been built together."""

import errno
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index import EncoderInfo, Passage, PassageIndex, build_index, verify_index
from epic_retrieval.index._batches import EncodingSettings
from epic_retrieval.index._lock import exclusive
from epic_retrieval.index._mapped import write_array
from epic_retrieval.index._source import open_source
from epic_retrieval.index._twins import twins
from epic_retrieval.index.encode import encode_shards
from epic_retrieval.index.generations import publish
from epic_retrieval.index.manifest import DeletedInfo, FileInfo, Manifest, read_manifest
from epic_retrieval.index.merge import OnDuplicate, merge
from epic_retrieval.index.rows import Rows
from epic_retrieval.index.shard import hashes_of
from epic_retrieval.index.shards import Shards
from epic_retrieval.index.writer import IndexWriter
from tests.index.samples import DIMENSION, ENCODER, encode, names, passages


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def write_shards(
    folder: Path,
    texts: Sequence[Passage],
    encoder: EncoderInfo = ENCODER,
    dtype: str = "float32",
    dimension: int = DIMENSION,
) -> Path:
    how = EncodingSettings(encoder, dtype, dimension, shard_size=4)
    encode_shards(texts, encode, folder, settings=how)
    return folder


def write_index(folder: Path, texts: Sequence[Passage], deleted: Sequence[int] = ()) -> Path:
    manifest = merge([write_shards(folder.with_name(f"{folder.name}-shards"), texts)], folder)
    if deleted:
        (folder / "deleted").mkdir()
        path = folder / "deleted" / "d-00000001.npy"
        write_array(path, np.array(sorted(deleted), dtype=np.int64))
        gone = DeletedInfo(path.stem, len(deleted), FileInfo.of(path))
        count = manifest.rows - len(deleted)
        publish(folder, replace(manifest, deleted=gone, count=count))
    return folder


def living(folder: Path) -> list[Passage]:
    """What an index holds; row i of everything belongs together."""
    with open_source(folder) as source, source.open() as shards:
        rows = np.concatenate([np.empty(0, dtype=np.int64), *source.live(5)])
        found = shards.fetch(rows)
        assert len(found) == source.count == read_manifest(folder).count
        assert (shards.take(rows) == encode([passage.content for passage in found])).all()
        assert shards.find([passage.id for passage in found], source.deleted) == {
            passage.id: row for passage, row in zip(found, rows.tolist(), strict=True)
        }
    return found


def test_indexes_and_shards_become_one_index(tmp_path: Path) -> None:
    first = write_shards(tmp_path / "first", passages(30)[:10])
    second = write_index(tmp_path / "second", passages(30)[10:21], deleted=[0, 4, 5, 6, 7])
    third = write_index(tmp_path / "third", passages(30)[21:])
    manifest = merge([first, second, third], tmp_path / "out", corpus="all")
    expected = [p for row, p in enumerate(passages(30)) if row not in {10, 14, 15, 16, 17}]
    assert living(tmp_path / "out") == expected
    assert read_manifest(tmp_path / "out") == manifest
    assert (manifest.kind, manifest.corpus, manifest.generation) == ("Flat", "all", 1)
    assert manifest.encoder == ENCODER
    assert len(manifest.shards) == 3 + 2 + 3, "a shard without the living is left out"
    assert manifest.deleted is not None
    assert manifest.deleted.rows == 1


def test_it_is_what_a_build_of_all_makes(tmp_path: Path) -> None:
    """Where the cuts between shards fall alike, to the last bit."""
    parts = [
        write_shards(tmp_path / str(start), passages(22)[start : start + 8]) for start in (0, 8, 16)
    ]
    whole = merge([write_shards(tmp_path / "whole", passages(22))], tmp_path / "one")
    merged = merge(parts, tmp_path / "out")
    assert merged.shards == whole.shards
    assert replace(merged, created="", updated="") == replace(whole, created="", updated="")


def test_a_merged_index_is_searched_verified_and_changed(tmp_path: Path) -> None:
    one, two = passages(120)[:50], passages(120)[50:]
    gone = list(range(20, 40))
    folders = [write_index(tmp_path / "one", one, gone), write_shards(tmp_path / "two", two)]
    merge(folders, tmp_path / "out")
    alive = [passage for row, passage in enumerate(passages(120)) if row not in gone]
    build_index(alive, encode, tmp_path / "whole", encoder=ENCODER, kind="flat")
    queries = encode([f"query {n}" for n in range(9)])

    def check(folder: Path) -> None:
        report = verify_index(folder)
        assert report.ok, report.problems
        with PassageIndex.open(folder) as index, PassageIndex.open(tmp_path / "whole") as whole:
            assert index.search(queries, 7) == whole.search(queries, 7)

    check(tmp_path / "out")
    with IndexWriter(tmp_path / "out") as writer:
        # With every list looked into, nothing is missed.
        writer.rebuild("IVF2,Flat", target=1.0)
        assert writer.manifest.kind == "IVF2,Flat"
        writer.compact()
        assert writer.manifest.rows == len(alive)
    check(tmp_path / "out")
    assert verify_index(tmp_path / "one").ok, "links change nothing for others"


def test_shards_are_linked(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "a", passages(9))
    manifest = merge([folder], tmp_path / "out")
    for name in manifest.files:
        assert (tmp_path / "out" / name).samefile(folder / name)
    shutil.rmtree(folder)
    assert living(tmp_path / "out") == passages(9)


def test_without_links_shards_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(_self: Path, _target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    folder = write_shards(tmp_path / "a", passages(9))
    monkeypatch.setattr(Path, "hardlink_to", no_links)
    manifest = merge([folder], tmp_path / "out")
    assert not any((tmp_path / "out" / name).samefile(folder / name) for name in manifest.files)
    assert living(tmp_path / "out") == passages(9)


def changed(texts: Sequence[Passage]) -> list[Passage]:
    return [replace(passage, text=f"New text of {passage.id}") for passage in texts]


def test_an_id_in_two_folders_is_an_error(tmp_path: Path) -> None:
    one = write_shards(tmp_path / "one", passages(9))
    two = write_shards(tmp_path / "two", [*passages(30)[20:], *changed(passages(9)[7:])])
    with pytest.raises(InputError, match=r'id "d7" stands both in .*one and in .*two. Keep one'):
        merge([one, two], tmp_path / "out")
    assert names(tmp_path) == {"one", "two"}


def test_the_first_or_the_last_of_twins_is_kept(tmp_path: Path) -> None:
    old, new = passages(9), [*changed(passages(9)[5:]), *passages(30)[20:23]]
    one, two = write_shards(tmp_path / "one", old), write_shards(tmp_path / "two", new)
    merge([one, two], tmp_path / "first", on_duplicate="first")
    assert living(tmp_path / "first") == [*old, *new[4:]]
    merge([one, two], tmp_path / "last", on_duplicate="last")
    assert living(tmp_path / "last") == [*old[:5], *new]


def test_deleted_twins_do_not_count(tmp_path: Path) -> None:
    one = write_index(tmp_path / "one", passages(9), deleted=[7, 8])
    two = write_shards(tmp_path / "two", changed(passages(9)[7:]))
    merge([one, two], tmp_path / "out")
    assert living(tmp_path / "out") == [*passages(7), *changed(passages(9)[7:])]


def test_equal_shards_of_two_folders_are_kept_once(tmp_path: Path) -> None:
    one = write_index(tmp_path / "one", passages(9), deleted=[0])
    two = write_shards(tmp_path / "two", passages(9))
    manifest = merge([one, two], tmp_path / "first", on_duplicate="first")
    # What the one has deleted is alive in the other, so its shard is needed twice.
    assert living(tmp_path / "first") == [*passages(9)[1:], passages(1)[0]]
    assert manifest.shards[0] == manifest.shards[-1]
    assert len(manifest.shards) == 4
    manifest = merge([one, two], tmp_path / "last", on_duplicate="last")
    assert living(tmp_path / "last") == passages(9)
    assert manifest.deleted is None


def test_different_shards_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    """As two machines make them of the same passages."""
    one = write_index(tmp_path / "one", passages(4), deleted=[0])
    two = tmp_path / "two"
    how = EncodingSettings(ENCODER, "float32", DIMENSION, shard_size=4)

    def other(texts: list[str]) -> np.ndarray:
        return -encode(texts)

    encode_shards(passages(4), other, two, settings=how)
    manifest = merge([one, two], tmp_path / "out", on_duplicate="first")
    left, right = manifest.shards
    assert left.name != right.name
    with Shards(tmp_path / "out", manifest.shards) as shards:
        expected = encode([passage.content for passage in passages(4)])
        assert (shards.take(np.arange(8)) == np.concatenate([expected, -expected])).all()
    assert manifest.deleted is not None
    assert manifest.deleted.rows == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder": replace(ENCODER, fingerprint="0" * 8)}, "fingerprint ffffffff, .* 00000000"),
        ({"encoder": replace(ENCODER, task="sts")}, 'for no symmetric task, .* for the task "sts"'),
        ({"dtype": "float16"}, "is stored as float32 .* is stored as float16"),
        ({"dimension": 8}, "keeps 16 of 16 .* keeps 8 of 16"),
    ],
)
def test_other_encoders_and_settings_are_refused(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    one = write_shards(tmp_path / "one", passages(5))
    two = write_shards(tmp_path / "two", passages(9)[5:], **fields)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"cannot become one index: the one .*{message}"):
        merge([one, two], tmp_path / "out")


def test_another_name_of_the_same_encoder_is_taken(tmp_path: Path) -> None:
    one = write_shards(tmp_path / "one", passages(5))
    two = write_shards(tmp_path / "two", passages(9)[5:], replace(ENCODER, name="moved"))
    assert merge([one, two], tmp_path / "out").encoder == ENCODER


def test_nothing_is_replaced(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "a", passages(5))
    (tmp_path / "out").mkdir()
    merge([folder], tmp_path / "out")
    for out in (tmp_path / "out", folder, folder / "encoding.json"):
        with pytest.raises(InputError, match="exists and is not empty"):
            merge([folder], out)
    with exclusive(tmp_path / ".new.lock", "new"), pytest.raises(PassageIndexError, match="built"):
        merge([folder], tmp_path / "new")
    with pytest.raises(InputError, match="no folders to merge"):
        merge([], tmp_path / "new")
    with pytest.raises(InputError, match="on_duplicate is 'any'"):
        merge([folder], tmp_path / "new", on_duplicate="any")  # type: ignore[arg-type]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_folder: Path, _manifest: Manifest) -> Manifest:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = write_shards(tmp_path / "a", passages(5))
    monkeypatch.setattr(sys.modules[merge.__module__], "publish", full)
    with pytest.raises(PassageIndexError, match="No space left on device"):
        merge([folder], tmp_path / "out")
    assert names(tmp_path) == {"a"}
    monkeypatch.undo()
    # As a merge leaves it that was killed.
    (tmp_path / ".out.merging" / "shards").mkdir(parents=True)
    merge([folder], tmp_path / "out")
    assert living(tmp_path / "out") == passages(5)
    assert names(tmp_path) == {"a", "out"}


def test_damage_is_not_taken_over(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "a", passages(5))
    path = next((folder / "shards").iterdir()) / "passages.sqlite"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(PassageIndexError, match=r"passages\.sqlite: is damaged"):
        merge([folder], tmp_path / "out")


@dataclass(frozen=True)
class Part:
    """A folder: numbers of its passages, which of them are deleted, whether it is an index."""

    numbers: list[int]
    deleted: list[int]
    version: int

    def write(self, folder: Path) -> Path:
        if self.deleted:
            return write_index(folder, self.passages(), self.deleted)
        return write_shards(folder, self.passages())

    def passages(self) -> list[Passage]:
        return [Passage(f"d{n}", f"text {self.version}", "", {"n": n}) for n in self.numbers]

    def living(self) -> list[Passage]:
        return [p for row, p in enumerate(self.passages()) if row not in self.deleted]


@st.composite
def parts(draw: st.DrawFn) -> list[Part]:
    found = []
    for _ in range(draw(st.integers(1, 3))):
        numbers = draw(st.lists(st.integers(0, 15), min_size=1, max_size=12, unique=True))
        rows = st.integers(0, len(numbers) - 1)
        deleted = draw(st.lists(rows, max_size=6, unique=True))
        found.append(Part(numbers, sorted(deleted), draw(st.integers(0, 1))))
    return found


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(parts(), st.sampled_from(["first", "last"]))
def test_merging_is_what_python_does_with_lists(given_: list[Part], keep: OnDuplicate) -> None:
    expected: list[Passage] = []
    for part in given_:
        for passage in part.living():
            twin = next((p for p in expected if p.id == passage.id), None)
            if twin is not None and keep == "first":
                continue
            if twin is not None:
                expected.remove(twin)
            expected.append(passage)
    with TemporaryDirectory() as name:
        folders = [part.write(Path(name) / str(n)) for n, part in enumerate(given_)]
        merge(folders, Path(name) / "out", on_duplicate=keep)
        assert living(Path(name) / "out") == expected


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 20), max_size=15, unique=True), min_size=1, max_size=4),
    st.data(),
)
def test_all_twins_are_found(given_: list[list[int]], data: st.DataObject) -> None:
    """Also where different ids share a hash, and in many small buckets."""
    every = [str(number) for numbers in given_ for number in numbers]
    total = len(every)
    deleted = np.array(sorted(data.draw(st.sets(st.integers(0, 59)))), dtype=np.int64)
    deleted = deleted[deleted < total]
    keep: Literal["first", "last"] = data.draw(st.sampled_from(["first", "last"]))
    shards = [FakeShard([str(number) for number in numbers]) for numbers in given_ if numbers]
    found = twins(shards, deleted, keep=keep, bucket=3)  # type: ignore[arg-type]
    order = range(total) if keep == "first" else reversed(range(total))
    seen: set[str] = set()
    expected = set()
    for row in order:
        if row in deleted:
            continue
        if every[row] in seen:
            expected.add(row)
        seen.add(every[row])
    assert found.tolist() == sorted(expected)


class FakeShard:
    """Ids alone; those that are equal modulo 5 share a hash."""

    def __init__(self, ids: list[str]) -> None:
        self.rows = len(ids)
        self.store = FakeStore(ids)
        hashes = hashes_of([str(int(key) % 5) for key in ids])
        order = np.argsort(hashes, kind="stable")
        self.ids = np.stack([hashes[order], order.astype(np.uint64)])


class FakeStore:
    def __init__(self, ids: list[str]) -> None:
        self._ids = ids

    def ids(self, rows: Rows) -> list[str]:
        return [self._ids[row] for row in rows.tolist()]
