"""What the writer of an index refuses, tidies up and keeps."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index import (
    EncoderInfo,
    Passage,
    PassageIndex,
    Progress,
    build_index,
    read_manifest,
)
from epic_retrieval.index._shard_folder import truncated
from epic_retrieval.index.search import Where
from epic_retrieval.index.where import Every
from epic_retrieval.index.writer import IndexWriter, Updated
from tests.index.living import check, check_open
from tests.index.samples import ENCODER, encode, names, passages

SHARD = 16


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    # The disk's own time.
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An index of 40 passages in shards of 16, searched exactly."""
    folder = tmp_path / "index"
    build_index(passages(40), encode, folder, encoder=ENCODER, shard_size=SHARD)
    return folder


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """The same with a FAISS structure."""
    folder = tmp_path / "index"
    build_index(passages(40), encode, folder, encoder=ENCODER, shard_size=SHARD, kind="IVF1,Flat")
    return folder


def by_id(some: list[Passage]) -> dict[str, Passage]:
    return {passage.id: passage for passage in some}


def more(count: int, start: int = 0) -> list[Passage]:
    return [Passage(f"e{n}", f"Extra {n}.") for n in range(start, start + count)]


def state(folder: Path) -> bytes:
    return (folder / "manifest.json").read_bytes()


def refused(texts: list[str]) -> np.ndarray:
    raise AssertionError(f"nothing should be encoded, but {texts} should")


# What is refused leaves the index as it is.


def test_add_refuses_an_id_that_is_there_and_names_update(out: Path) -> None:
    before = state(out)
    with IndexWriter(out) as writer:
        with pytest.raises(InputError, match=r'id "d7" is in the index already\. Use update'):
            writer.add([*more(3), passages(8)[7]], refused)
        assert state(out) == before
        writer.delete(["d7"])
        assert writer.add([passages(8)[7]], encode) == 1
    check(out, by_id(passages(40)))
    assert "pending" not in names(out)


@pytest.mark.parametrize("late", [0, 500])
def test_ids_that_stand_twice(out: Path, late: int) -> None:
    before, between = state(out), more(late, start=10)
    with IndexWriter(out, shard_size=100) as writer:
        with pytest.raises(InputError, match='"e1" stands twice, at passages 2 and'):
            writer.add([*more(3), *between, Passage("e1", "again")], encode)
        with pytest.raises(InputError, match='"e1" stands twice') as raised:
            writer.update([passages(1)[0], *more(3), *between, Passage("e1", "again")], encode)
        assert "leave out 1 that are in the index as they are" in raised.value.__notes__[0]
        with pytest.raises(InputError, match=f'"d3" stands twice.* at passage {late + 2} '):
            writer.update([passages(4)[3], *between, Passage("d3", "other")], encode)
        with pytest.raises(InputError, match=f'"d3" stands twice.* at passage {late + 2} '):
            writer.update([Passage("d3", "other"), *between, passages(4)[3]], encode)
    assert state(out) == before


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (replace(ENCODER, fingerprint="other"), "fingerprint ffffffff, now other, under the same"),
        (replace(ENCODER, name="words", fingerprint="other"), 'model "letters", now "words"; fi'),
        (replace(ENCODER, dimension=8), r"encoder: dimension 16, now 8\."),
        (replace(ENCODER, task="duplicates"), r"encoder: task none, now duplicates\."),
    ],
)
def test_another_encoder_is_refused(out: Path, other: EncoderInfo, told: str) -> None:
    with IndexWriter(out) as writer:
        for method in (writer.add, writer.update):
            with pytest.raises(PassageIndexError, match=told):
                method(more(1), refused, encoder=other)
        assert writer.add(more(1), encode, encoder=replace(ENCODER, name="renamed")) == 1


def test_ids_that_are_missing(out: Path) -> None:
    with IndexWriter(out) as writer:
        writer.delete(["d3"])
        assert writer.missing(["d2", "x", "d3", "x", "\ud800"]) == ["x", "d3", "\ud800"]
        assert writer.missing(iter(())) == []
        with pytest.raises(InputError, match="ids is one text"):
            writer.missing("d2")


def test_an_update_counts_what_must_be_written(out: Path) -> None:
    told: list[Progress] = []
    with IndexWriter(out) as writer:
        given = [*passages(40), *more(5)]
        writer.update(given, encode, total=len(given), progress=told.append)
    encoding = [now for now in told if now.stage == "encoding"]
    assert (encoding[-1].passages, encoding[-1].total) == (5, 5)


def test_the_encoder_of_a_cut_index_is_the_whole_one(out: Path) -> None:
    with IndexWriter(out) as writer:
        writer.rebuild("flat", dimension=8)
        writer.rebuild("IVF1,Flat")
        assert writer.tune(queries=encode(["full"])).recall == 1.0
        assert writer.tune(queries=truncated(encode(["cut"]), 8)).recall == 1.0
        with pytest.raises(InputError, match="expected 8"):
            writer.tune(queries=encode(["full"])[:, :9])
        with pytest.raises(PassageIndexError, match="dimension 16, now 8"):
            writer.add(more(1), refused, encoder=replace(ENCODER, dimension=8))
        assert writer.add(more(1), encode, encoder=ENCODER) == 1
    check(out, by_id([*passages(40), *more(1)]))


def test_what_is_no_index_or_no_passage(out: Path, tmp_path: Path) -> None:
    with pytest.raises(PassageIndexError, match="not an index"), IndexWriter(tmp_path):
        pass
    with pytest.raises(PassageIndexError, match="no such folder"), IndexWriter(tmp_path / "no"):
        pass
    before = state(out)
    with IndexWriter(out) as writer:
        with pytest.raises(InputError, match="holds a str: expected Passage"):
            writer.add(["text"], refused)  # type: ignore[list-item]
        with pytest.raises(InputError, match="encode returned 1 vectors for 3"):
            writer.add(more(3), lambda _: encode(["one"]))
        with pytest.raises(InputError, match="expected a list of ids"):
            writer.delete("d1")
        with pytest.raises(InputError, match="ids holds 7"):
            writer.delete([7])  # type: ignore[list-item]
        with pytest.raises(InputError, match="no such operator"):
            writer.delete_where({"n": {"$near": 1}})
        conditions: tuple[Where, ...] = ({}, {"$and": [{}]}, Every(()))
        for empty in conditions:
            with pytest.raises(InputError, match="condition is empty"):
                writer.delete_where(empty)
        with pytest.raises(InputError, match="dimension is 17: expected 1 to 16"):
            writer.rebuild("flat", dimension=17)
        with pytest.raises(InputError, match="FAISS cannot make"):
            writer.rebuild("tree", dimension=8)
        with pytest.raises(InputError, match="target_recall is 2"):
            writer.rebuild("flat", target=2)
        with pytest.raises(InputError, match="search is exact, so there is nothing to tune"):
            writer.tune()
        assert writer.delete(["\ud800", "absent"]) == 0
        assert writer.add([], refused) == 0
        assert writer.update(passages(40), refused) == Updated(0, 0)
        assert writer.delete_where({"n": {"$gt": 1000}}) == 0
    assert state(out) == before
    assert names(out) <= {"manifest.json", "generations", "shards"}


def test_options_are_checked(out: Path) -> None:
    for option in ("shard_size", "memory"):
        with pytest.raises(InputError, match=f"{option} is 0"):
            IndexWriter(out, **{option: 0})
    with pytest.raises(InputError, match="exact_rows is -1"):
        IndexWriter(out, exact_rows=-1)


def test_one_writer_at_a_time(out: Path) -> None:
    with (
        IndexWriter(out) as writer,
        pytest.raises(
            PassageIndexError, match=rf"by this very process \(process {os.getpid()} on "
        ),
        IndexWriter(out),
    ):
        pass
    with pytest.raises(PassageIndexError, match="not open, and holds no lock"):
        writer.add(more(1), refused)
    assert repr(writer) == f"IndexWriter({str(out)!r}, not open)"
    with writer:
        assert repr(writer) == f"IndexWriter({str(out)!r}, 40 passages, Flat)"
        assert writer.add(more(1), encode) == 1
        with pytest.raises(PassageIndexError, match="open already"):
            writer.__enter__()
    assert names(out) == {"manifest.json", "generations", "shards"}


def test_pending_that_is_a_link_is_refused(out: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (out / "pending").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PassageIndexError, match="is a link"), IndexWriter(out):
        pass
    assert "write.lock" not in names(out)


def test_damaged_ids_are_noticed_before_anything_is_written(out: Path) -> None:
    path = next((out / "shards").glob("*/ids.npy"))
    content = bytearray(path.read_bytes())
    content[150] ^= 1
    path.write_bytes(content)
    with pytest.raises(PassageIndexError, match=r"ids\.npy"), IndexWriter(out):
        pass


# What counts as the same passage.


def test_metadata_of_another_type_is_a_change(out: Path) -> None:
    one = Passage("m", "text", metadata={"a": 1, "b": [1, 2]})
    with IndexWriter(out) as writer:
        writer.add([one], encode)
        assert writer.update([replace(one, metadata={"a": 1, "b": (1, 2)})], refused) == (0, 0)
        for other in (1.0, True, "1"):
            changed = replace(one, metadata={"a": other, "b": [1, 2]})
            assert writer.update([changed], encode) == (0, 1)
            assert writer.update([changed], refused) == (0, 0)


# Shards and structure follow.


def test_small_shards_are_merged_while_passages_are_added(out: Path) -> None:
    added = more(36)
    with IndexWriter(out, shard_size=64) as writer:
        for passage in added:
            assert writer.add([passage], encode) == 1
            assert len(writer.manifest.shards) <= 3 + 17
    check(out, by_id([*passages(40), *added]))


def test_rows_behind_the_structure_join_it_when_they_are_many(
    lists: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = read_manifest(lists).search
    assert trained is not None
    never = "epic_retrieval.index.filling.train"
    monkeypatch.setattr(never, lambda *_: pytest.fail("trained again"))
    with IndexWriter(lists, shard_size=SHARD, exact_rows=10) as writer:
        for n in range(10):
            writer.add(more(1, start=n), encode)
        assert writer.manifest.search == trained
        assert len(writer.manifest.shards) == 13
        writer.add(more(1, start=10), encode)
        grown = writer.manifest.search
        # Before they join, small shards are merged, since afterwards their rows cannot move.
        assert len(writer.manifest.shards) == 4
        assert grown is not None
        assert (grown.rows, grown.factory, grown.recall) == (51, "IVF1,Flat", 1.0)
    check(lists, by_id([*passages(40), *more(11)]))


def test_a_structure_that_cannot_grow_does_not_stop_an_add(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "index"
    build_index(passages(40), encode, out, encoder=ENCODER, kind="HNSW8")
    search = read_manifest(out).search
    with IndexWriter(out, exact_rows=0, memory=1000) as writer:
        assert writer.add(more(30), encode) == 30
        assert writer.manifest.search == search
    assert "30 passages stay behind the search structure" in caplog.text
    with IndexWriter(out, exact_rows=0) as writer:
        assert writer.add(more(1, start=30), encode) == 1
        assert writer.manifest.search is not None
        assert writer.manifest.search.rows == 71


@pytest.mark.parametrize("kind", ["HNSW8", "IVF2,SQ8", "SQ8", "PCA8,IVF2,Flat"])
def test_other_structures_follow(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "index"
    build_index(passages(90), encode, out, encoder=ENCODER, kind=kind, shard_size=40)
    with IndexWriter(out, shard_size=40, exact_rows=10) as writer:
        writer.add(more(30), encode)
        writer.delete([f"d{n}" for n in range(0, 90, 3)])
        grown = writer.manifest.search
        filled = writer.compact().search
        assert grown is not None
        assert filled is not None
        assert (grown.rows, filled.rows) == (120, 90)
        assert filled.recall is not None
        assert filled.recall > 0.5
        held = {p.id: p for p in [*passages(90), *more(30)]}
        held = {k: p for k, p in held.items() if k[0] == "e" or int(k[1:]) % 3}
        tuned = writer.tune(0.5, encode(["a query", "another"]))
        search = writer.manifest.search
        assert search == replace(
            filled, parameters=dict(tuned.parameters), recall=tuned.recall, target=0.5
        )
        writer.delete(held)
        assert writer.compact().shards == ()
        assert writer.manifest.search is None
        assert writer.add(more(3), encode) == 3
    check(out, by_id(more(3)))


def test_compacting_copies_no_damage(out: Path) -> None:
    with IndexWriter(out, shard_size=SHARD) as writer:
        writer.delete(["d2"])
        before = state(out)
        name = writer.manifest.shards[0].name
        path = out / "shards" / name / "vectors.npy"
        content = bytearray(path.read_bytes())
        content[200] ^= 1
        path.write_bytes(content)
        with pytest.raises(PassageIndexError, match=rf"{name}.vectors.npy"):
            writer.compact()
        with pytest.raises(PassageIndexError, match=rf"{name}.vectors.npy"):
            writer.rebuild("IVF1,Flat")
    assert state(out) == before


def test_progress_of_every_stage(lists: Path) -> None:
    stages: list[str] = []
    with IndexWriter(lists, shard_size=SHARD, exact_rows=10) as writer:
        writer.add(more(20), encode, progress=lambda p: stages.append(p.stage))
        assert list(dict.fromkeys(stages)) == ["encoding", "adding", "merging", "measuring"]
        writer.delete(["d2"])
        stages.clear()
        writer.compact(lambda p: stages.append(p.stage))
        assert list(dict.fromkeys(stages)) == ["merging", "adding", "measuring"]
        stages.clear()
        writer.rebuild("IVF1,Flat", progress=lambda p: stages.append(p.stage))
        assert stages[0] == "choosing"


def test_readers_see_whole_generations_while_a_writer_works(out: Path) -> None:
    done = threading.Event()

    def read() -> int:
        opened = 0
        while not done.is_set():
            with PassageIndex.open(out) as index:
                held = list(index.passages)
                assert len(held) == 40
                assert len({passage.title for passage in held}) == 1
                found = index.search(encode([held[7].content]), 1)[0][0]
                assert found.passage == held[7]
                opened += 1
        return opened

    def version(number: int) -> list[Passage]:
        return [Passage(f"d{n}", f"Text {n}.", f"Version {number}") for n in range(40)]

    with IndexWriter(out, shard_size=SHARD) as writer:
        writer.update(version(0), encode)
        with ThreadPoolExecutor(2) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            try:
                for number in range(1, 13):
                    assert writer.update(version(number), encode) == Updated(0, 40)
                    if number % 3 == 0:
                        writer.compact()
            finally:
                done.set()
            assert min(reader.result() for reader in readers) > 1
    check(out, by_id(version(12)))


# Interrupted.


def test_a_stopped_add_goes_on_with_its_finished_shards(out: Path) -> None:
    before, some, seen = state(out), more(50), list[str]()

    def breaking(texts: list[str]) -> np.ndarray:
        if len(seen) >= 40:
            raise RuntimeError("out of memory")
        seen.extend(texts)
        return encode(texts)

    with IndexWriter(out, shard_size=SHARD) as writer:
        with pytest.raises(RuntimeError) as raised:
            writer.add(iter(some), breaking, chunk_size=8)
        assert "2 finished shards (32 passages) are kept" in raised.value.__notes__[0]
        assert state(out) == before
        # Others may come in between, and find their own.
        assert writer.add([Passage("x", "between")], encode) == 1
    del seen[:]
    # Another size of shards does not matter to it.
    with IndexWriter(out) as writer:
        assert writer.add(iter(some), breaking, chunk_size=8) == 50
    assert len(seen) == 18
    check(out, by_id([*passages(40), *some, Passage("x", "between")]))
    assert "pending" not in names(out)


def test_what_was_encoded_for_other_vectors_is_thrown_away(
    out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def breaking(texts: list[str]) -> np.ndarray:
        if "Extra 30." in texts:
            raise RuntimeError
        return encode(texts)

    with IndexWriter(out, shard_size=SHARD) as writer:
        with pytest.raises(RuntimeError):
            writer.add(more(50), breaking)
        writer.rebuild("flat", dimension=8)
        assert writer.add(more(50), encode) == 50
    assert "threw away 1 finished shard " in caplog.text
    check(out, by_id([*passages(40), *more(50)]))


def test_stopped_right_after_publishing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with IndexWriter(out, shard_size=SHARD) as writer:
        with monkeypatch.context() as patch:
            patch.setattr("epic_retrieval.index.present.Present._open", stop)
            with pytest.raises(KeyboardInterrupt):
                writer.add(more(20), encode)
        # The same writer builds on what was published.
        assert writer.delete(["d1", "e1"]) == 2
        assert len(writer) == 58
    with IndexWriter(out, shard_size=SHARD) as writer, monkeypatch.context() as patch:
        patch.setattr("epic_retrieval.index.pending.Pending.forget", stop)
        with pytest.raises(KeyboardInterrupt):
            writer.add(more(20, start=20), encode)
    assert "pending" in names(out)
    with IndexWriter(out):
        assert "pending" not in names(out)
    held = by_id([*passages(40), *more(40)])
    del held["d1"], held["e1"]
    check(out, held)


def test_a_shard_that_is_read_is_not_replaced_by_one_of_its_name(out: Path) -> None:
    def otherwise(texts: list[str]) -> np.ndarray:
        return -encode(texts)

    with IndexWriter(out, shard_size=SHARD) as writer:
        with PassageIndex.open(out) as reader:
            writer.delete([f"d{n}" for n in range(40)])
            writer.compact()
            assert writer.add(passages(40), otherwise) == 40
            check_open(reader, by_id(passages(40)))
            with PassageIndex.open(out) as index:
                np.testing.assert_array_equal(index.vectors(["d3"]), -reader.vectors(["d3"]))
        writer.compact()
        assert len(names(out / "shards")) == 3


def test_without_links_files_move_and_nothing_is_lost(
    lists: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", none)
    some = more(40)
    with IndexWriter(lists, shard_size=SHARD, exact_rows=10) as writer:
        with monkeypatch.context() as patch:
            patch.setattr("epic_retrieval.index.present.publish", full)
            with pytest.raises(PassageIndexError, match="No space left"):
                writer.add(some, encode)
        check(lists, by_id(passages(40)))
        # What had moved already is found where it is.
        assert writer.add(some, refused) == 40
        writer.delete(["d3"])
        writer.compact()
        writer.rebuild("IVF2,Flat")
    check(lists, by_id([*passages(3), *passages(40)[4:], *some]))
    assert names(lists) == {"manifest.json", "generations", "shards", "search", "deleted"}


# A full disk.


def test_failing_after_the_swap_says_that_it_was_made(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with IndexWriter(out) as writer:
        with monkeypatch.context() as patch:
            patch.setattr("epic_retrieval.index.present.Present._open", full)
            with pytest.raises(PassageIndexError, match="was changed, but then"):
                writer.delete(["d1"])
        assert writer.delete(["d1", "d2"]) == 1
        assert len(writer) == 38


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "step",
    [
        "present.publish",
        "present.write_array",
        "compaction.place_folder",
        "filling.write_piece",
        "_shard_folder.write_atomically",
        "pending.write_atomically",
    ],
)
def test_full_disk(lists: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    some = [*more(20), Passage("d3", "Another text.")]
    with IndexWriter(lists, shard_size=SHARD, exact_rows=10) as writer:
        before = state(lists)
        with monkeypatch.context() as patch:
            patch.setattr(f"epic_retrieval.index.{step}", full)
            with pytest.raises(PassageIndexError, match=r"No space left.*free.*same command again"):
                writer.update(some, encode)
        assert state(lists) == before
        check(lists, by_id(passages(40)))
        assert writer.update(some, encode) == Updated(20, 1)
    check(lists, by_id([*passages(40), *some]))
    assert "pending" not in names(lists)
