"""Shards: finished once, never encoded twice, whatever stops the run or changes the corpus."""

import errno
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index import EncoderInfo, Passage, _batches, _swap
from epic_retrieval.index._batches import EncodingSettings, batches
from epic_retrieval.index._shard_folder import ShardFolder
from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index.encode import Progress, encode_shards
from epic_retrieval.index.manifest import ShardInfo
from epic_retrieval.index.shard import ShardWriter
from epic_retrieval.index.shards import Shards
from tests.index.samples import DIMENSION, ENCODER, ROOT, encode, passages

SETTINGS = EncodingSettings(ENCODER, "float32", DIMENSION, shard_size=10)


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is forced to the disk, which would take most of the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


class Counting:
    """The encoder of the samples; remembers what it was asked, and may fail."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls: list[int] = []
        self.texts: list[str] = []
        self._fail_at = fail_at

    def __call__(self, texts: list[str]) -> Vectors:
        if len(self.calls) == self._fail_at:
            raise RuntimeError("out of memory")
        self.calls.append(len(texts))
        self.texts += texts
        return encode(texts)


def run(
    folder: Path,
    given: Sequence[Passage] | int,
    encoder: Callable[[list[str]], Vectors] = encode,
    settings: EncodingSettings = SETTINGS,
    chunk_size: int = 4,
    reuse: Sequence[Path] = (),
) -> list[ShardInfo]:
    texts = passages(given) if isinstance(given, int) else given
    return encode_shards(
        iter(texts), encoder, folder, settings=settings, chunk_size=chunk_size, reuse=reuse
    )


def check(folder: Path, infos: Sequence[ShardInfo], expected: Sequence[Passage]) -> None:
    """Row i of everything is passage i."""
    with Shards(folder, infos) as shards:
        rows = np.arange(len(expected))
        assert len(shards) == len(expected)
        assert shards.fetch(rows) == list(expected)
        assert (shards.take(rows) == encode([passage.content for passage in expected])).all()
        assert shards.find([passage.id for passage in expected]) == {
            passage.id: row for row, passage in enumerate(expected)
        }


def test_passages_become_shards(tmp_path: Path) -> None:
    counting = Counting()
    infos = run(tmp_path, 25, counting)
    assert [info.rows for info in infos] == [10, 10, 5]
    assert counting.calls == [4, 4, 2, 4, 4, 2, 4, 1]
    check(tmp_path, infos, passages(25))
    assert {path.name for path in (tmp_path / "shards").iterdir()} == {info.name for info in infos}


def test_nothing_is_encoded_twice(tmp_path: Path) -> None:
    first = run(tmp_path, 25)
    counting = Counting()
    assert run(tmp_path, 25, counting, chunk_size=3) == first
    assert counting.calls == []


def test_no_passages_give_no_shards(tmp_path: Path) -> None:
    assert run(tmp_path, 0) == []


@pytest.mark.parametrize("fail_at", range(1, 8))
def test_a_failing_encoder_loses_one_shard_at_most(tmp_path: Path, fail_at: int) -> None:
    failing, rest = Counting(fail_at), Counting()
    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path, 25, failing)
    finished = len(failing.texts) // 10 * 10
    assert len(list((tmp_path / "shards").iterdir())) == finished // 10
    infos = run(tmp_path, 25, rest)
    assert rest.texts == [passage.content for passage in passages(25)[finished:]]
    check(tmp_path, infos, passages(25))


def changed(given: list[Passage], row: int, **fields: object) -> list[Passage]:
    return [*given[:row], replace(given[row], **fields), *given[row + 1 :]]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("corpus", "again"),
    [
        (changed(passages(30), 14, text="new"), range(10, 20)),
        (changed(passages(30), 14, title="new"), range(10, 20)),
        (changed(passages(30), 14, id="new"), range(10, 20)),
        (changed(passages(30), 14, metadata={"n": 14.0}), range(10, 20)),
        (changed(passages(30), 29, metadata={}), range(20, 30)),
        (passages(33), range(30, 33)),
        (passages(27), range(20, 27)),
        (passages(30)[10:], range(0)),
        ([*passages(30)[20:], *passages(10)], range(0)),
        ([passages(31)[30], *passages(30)], range(31)),
        (changed(passages(30), 14, metadata={"n": 14}), range(0)),
    ],
)
def test_a_changed_corpus_reuses_unchanged_shards(
    tmp_path: Path, corpus: list[Passage], again: range
) -> None:
    run(tmp_path, 30)
    counting = Counting()
    infos = run(tmp_path, corpus, counting)
    assert counting.texts == [corpus[row].content for row in again]
    check(tmp_path, infos, corpus)


def test_order_of_metadata_keys_does_not_matter(tmp_path: Path) -> None:
    run(tmp_path, [Passage("a", "x", "", {"b": {"c": 1, "d": 2}, "a": 0})])
    counting = Counting()
    run(tmp_path, [Passage("a", "x", "", {"a": 0, "b": {"d": 2, "c": 1}})], counting)
    assert counting.calls == []


TEXT = st.text("ab\"',[\\ \n{", min_size=1, max_size=4).filter(str.strip)
PASSAGE = st.builds(
    Passage, TEXT, TEXT, st.just("") | TEXT, st.dictionaries(TEXT, TEXT, max_size=1)
)
CORPUS = st.lists(PASSAGE, max_size=4, unique_by=lambda passage: passage.id)


@given(CORPUS, CORPUS, st.integers(1, 3))
def test_names_tell_passages_apart(one: list[Passage], two: list[Passage], size: int) -> None:
    settings = replace(SETTINGS, shard_size=size)
    found = [list(batches(corpus, settings)) for corpus in (one, two)]
    for corpus, parts in zip((one, two), found, strict=True):
        assert list(itertools.chain(*(part.passages for part in parts))) == corpus
    for left, right in itertools.product(*found):
        assert (left.name == right.name) == (left.passages == right.passages)


@pytest.mark.parametrize(
    "other",
    [
        replace(SETTINGS, encoder=replace(ENCODER, fingerprint="other")),
        replace(SETTINGS, dtype="float16"),
        replace(SETTINGS, dimension=8),
    ],
)
def test_names_tell_settings_apart(other: EncodingSettings) -> None:
    names = [next(batches(passages(3), settings)).name for settings in (SETTINGS, other)]
    assert names[0] != names[1]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    run(tmp_path, 3)
    other = replace(SETTINGS, encoder=EncoderInfo("words", "e" * 8, DIMENSION), dtype="float16")
    told = (
        r'other settings: model "letters", now "words"; fingerprint ffffffff, now eeeeeeee; '
        "stored as float32, now float16. Go on"
    )
    with pytest.raises(InputError, match=told):
        run(tmp_path, 3, settings=other)
    counting = Counting()
    run(tmp_path, 3, counting, settings=replace(SETTINGS, encoder=replace(ENCODER, name="moved")))
    assert counting.calls == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"dimension": 0}, "dimension is 0: expected 1 to 16"),
        ({"dimension": 17}, "dimension is 17: expected 1 to 16"),
        ({"shard_size": 0}, "shard_size is 0"),
    ],
)
def test_bad_settings(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SETTINGS, **fields)  # type: ignore[arg-type]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["vectors.npy", "passages.sqlite", "ids.npy", "note"])
@pytest.mark.parametrize("harm", [flip, Path.unlink, lambda path: path.write_bytes(b"{}")])
def test_a_damaged_shard_is_encoded_again(
    tmp_path: Path, file: str, harm: Callable[[Path], object]
) -> None:
    infos = run(tmp_path, 25)
    name = infos[1].name
    note = tmp_path / "finished" / f"{name}.json"
    harm(note if file == "note" else tmp_path / "shards" / name / file)
    counting = Counting()
    assert run(tmp_path, 25, counting) == infos
    assert counting.texts in ([], [passage.content for passage in passages(25)[10:20]])
    # A note may have lost nothing that matters.
    assert counting.texts or (file == "note" and harm is flip)
    check(tmp_path, infos, passages(25))


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    left = tmp_path / "shards" / "s-0123456789abcdef"
    left.mkdir(parents=True)
    (left / "vectors.npy").write_text("half")
    partial = tmp_path / "shards" / next(batches(passages(5), SETTINGS)).name
    partial.mkdir()
    (partial / "vectors.npy").write_text("half")
    infos = run(tmp_path, 5)
    assert not left.exists()
    check(tmp_path, infos, passages(5))


def test_shards_are_taken_from_elsewhere(tmp_path: Path) -> None:
    infos = run(tmp_path / "old", 30)
    flip(tmp_path / "old" / "shards" / infos[2].name / "vectors.npy")
    (tmp_path / "new" / "finished").mkdir(parents=True)
    for info in infos:
        # As a build that was stopped while it moved its shards leaves them.
        note = f"finished/{info.name}.json"
        shutil.copy(tmp_path / "old" / note, tmp_path / "new" / note)
    counting = Counting()
    assert run(tmp_path / "new", 30, counting, reuse=[tmp_path / "none", tmp_path / "old"]) == infos
    assert counting.texts == [passage.content for passage in passages(30)[20:]]
    check(tmp_path / "new", infos, passages(30))
    shutil.rmtree(tmp_path / "old")
    check(tmp_path / "new", infos, passages(30))


def test_copies_where_links_are_impossible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    infos = run(tmp_path / "old", 5)

    def impossible(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", impossible)
    kept = ShardFolder(tmp_path / "new", SETTINGS)
    assert kept.adopt(infos[0], tmp_path / "old" / "shards" / infos[0].name)
    check(tmp_path / "new", infos, passages(5))


@pytest.mark.parametrize(
    ("given", "calls", "message"),
    [
        ([*passages(9), Passage("d4", "x")], 0, 'id "d4" stands twice, at passages 5 and 10 '),
        ([*passages(12), Passage("d4", "x")], 5, 'id "d4" stands twice, at passages 5 and 13 '),
        # Found at the second shard, though 98 are still to come.
        ([*passages(15), *passages(985)], 5, 'id "d0" stands twice, at passages 1 and 16 '),
        ([*passages(10), *passages(10)], 3, 'id "d0" stands twice, at passages 1 and 11 '),
        (["text"], 0, "passages holds a str: expected Passage objects"),
    ],
)
def test_bad_passages(tmp_path: Path, given: list[Passage], calls: int, message: str) -> None:
    counting = Counting()
    with pytest.raises(InputError, match=message):
        run(tmp_path, given, counting)
    assert len(counting.calls) <= calls + 1


def test_long_texts_make_smaller_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_batches, "_SHARD_BYTES", 1000)
    given = [
        Passage(f"d{n}", "x" * size)
        for n, size in enumerate([400, 700, 9, 9, 2000, 9, *[150] * 12])
    ]
    infos = run(tmp_path, given)
    assert [info.rows for info in infos] == [2, 3, 7, 6]
    check(tmp_path, infos, given)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_truncated_vectors_have_length_one(tmp_path: Path, dtype: str) -> None:
    settings = replace(SETTINGS, dimension=5, dtype=dtype)
    infos = run(tmp_path, 12, settings=settings)
    full = encode([passage.content for passage in passages(12)]).astype(np.float64)
    naive = np.array([vector[:5] / np.sqrt((vector[:5] ** 2).sum()) for vector in full])
    with Shards(tmp_path, infos) as shards:
        assert shards.dimension == 5
        found = shards.take(np.arange(12))
    assert np.abs(found - naive).max() < (1e-7 if dtype == "float32" else 1e-3)
    assert (settings.stored.dimension, settings.truncated_from) == (5, DIMENSION)
    assert (SETTINGS.stored, SETTINGS.truncated_from) == (ENCODER, None)


def test_vectors_that_cannot_be_truncated(tmp_path: Path) -> None:
    def late(texts: list[str]) -> Vectors:
        vectors = np.zeros((len(texts), DIMENSION), np.float32)
        vectors[:, -1] = 1
        return vectors

    with pytest.raises(InputError, match="row 0 is zero in its first 5 dimensions"):
        run(tmp_path, 3, late, settings=replace(SETTINGS, dimension=5))


def test_progress(tmp_path: Path) -> None:
    seen: list[Progress] = []

    def slow(texts: list[str]) -> Vectors:
        time.sleep(0.002)
        return encode(texts)

    run(tmp_path, 10)
    encode_shards(
        passages(25), slow, tmp_path, settings=SETTINGS, chunk_size=6, progress=seen.append
    )
    assert [at.passages for at in seen] == [10, 16, 20, 20, 25, 25]
    assert {at.stage for at in seen} == {"encoding"}
    assert {at.total for at in seen} == {25}
    assert {at.reused for at in seen} == {10}
    assert [at.shards for at in seen] == [1, 1, 1, 2, 2, 3]
    assert [at.bytes_written for at in seen] == sorted(at.bytes_written for at in seen)
    assert seen[0].bytes_written == 0
    assert seen[-1].bytes_written > 15 * DIMENSION * 4
    assert (seen[0].per_second, seen[0].remaining) == (0, None)
    assert 0 < seen[1].per_second < 6 / 0.002
    assert seen[1].remaining == pytest.approx(9 / seen[1].per_second)
    assert seen[-1].remaining == 0
    unknown: list[Progress] = []
    encode_shards(iter(passages(12)), slow, tmp_path, settings=SETTINGS, progress=unknown.append)
    assert unknown[-1].remaining is None


def test_bad_chunk_size(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="chunk_size is 0"):
        run(tmp_path, 1, chunk_size=0)


# A full disk.


class FullDisk:
    """Lets so many chunks through; what comes then finds no room."""

    def __init__(self, patch: pytest.MonkeyPatch, chunks: int, free: int) -> None:
        self.left = chunks
        add = ShardWriter.add

        def adding(writer: ShardWriter, some: Sequence[Passage], vectors: Vectors) -> None:
            self.left -= 1
            if self.left < 0:
                with writer._writing():
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            add(writer, some, vectors)

        patch.setattr(ShardWriter, "add", adding)
        usage = shutil.disk_usage(ROOT)._replace(free=free)
        patch.setattr(shutil, "disk_usage", lambda _: usage)


def test_full_disk_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    infos = run(tmp_path / "whole", 40)
    each = sum(file.bytes for info in infos for file in info.files.values()) / 40
    with monkeypatch.context() as patch:
        FullDisk(patch, chunks=7, free=1000)
        with pytest.raises(PassageIndexError) as raised:
            encode_shards(passages(40), encode, tmp_path / "a", settings=SETTINGS, chunk_size=4)
    said = str(raised.value)
    assert "No space left on device" in said
    assert f"2 finished shards (20 passages) are kept in {tmp_path / 'a'}." in said
    assert f"About {_swap.human(20 * each)} are still needed, but only 1.0 kB are free" in said
    assert f"make room for {_swap.human(20 * each - 1000)} more." in said
    assert "run the same command again" in said
    assert len(list((tmp_path / "a" / "shards").iterdir())) == 2
    rest = Counting()
    infos = run(tmp_path / "a", 40, rest)
    assert rest.texts == [passage.content for passage in passages(40)[20:]]
    check(tmp_path / "a", infos, passages(40))


def test_full_disk_at_once_and_nobody_knows_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FullDisk(monkeypatch, chunks=1, free=10**12)
    with pytest.raises(PassageIndexError) as raised:
        run(tmp_path, 40)
    said = str(raised.value)
    assert f"No shard was finished yet in {tmp_path}." in said
    assert "1.0 TB are free there: look for a quota" in said


LIMITED = """
import resource, sys
from dataclasses import replace
from pathlib import Path
from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index.encode import encode_shards
from tests.index.test_encode import LARGE, SETTINGS, encode, growing

folder, limit = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    encode_shards(growing(), encode, Path(folder), settings=replace(SETTINGS, shard_size=LARGE))
except PassageIndexError as error:
    sys.exit(str(error))
"""
LARGE = 300


def growing() -> list[Passage]:
    """Two shards, the second with much more text."""
    given = passages(2 * LARGE)
    return given[:LARGE] + [replace(passage, text="x" * 2000) for passage in given[LARGE:]]


@pytest.mark.skipif(sys.platform == "win32", reason="file sizes are limited by setrlimit")
@pytest.mark.parametrize(
    ("limit", "finished"),
    [(LARGE * DIMENSION * 4 // 2, 0), (LARGE * DIMENSION * 4 + 100, 0), (500_000, 1)],
    ids=["vectors", "the last bytes", "passages"],
)
def test_files_that_cannot_grow(tmp_path: Path, limit: int, finished: int) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert "Writing a shard failed" in done.stderr
    assert "run the same command again" in done.stderr
    assert len(list((tmp_path / "shards").iterdir())) == finished
    counting = Counting()
    infos = run(tmp_path, growing(), counting, replace(SETTINGS, shard_size=LARGE))
    assert len(counting.texts) == (2 - finished) * LARGE
    check(tmp_path, infos, growing())
