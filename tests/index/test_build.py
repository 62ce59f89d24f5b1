"""Building in one process: what comes out, what is kept when it fails, what is left alone."""

import datetime as dt
import errno
import logging
import os
import pkgutil
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index import (
    EncoderInfo,
    Manifest,
    Passage,
    _memory,
    build_index,
    generations,
    read_manifest,
)
from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index.encode import Progress
from epic_retrieval.index.generations import publish, reading, writing
from epic_retrieval.index.manifest import FileInfo
from epic_retrieval.index.shards import Shards
from tests.index.samples import DIMENSION, ENCODER, encode, names, passages


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is forced to the disk, which would take most of the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


class Counting:
    """The encoder of the samples; remembers the texts, and fails at the given call."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.texts: list[str] = []
        self._calls = 0
        self._fail_at = fail_at

    def __call__(self, texts: list[str]) -> Vectors:
        if self._calls == self._fail_at:
            raise RuntimeError("out of memory")
        self._calls += 1
        self.texts += texts
        return encode(texts)


def build(
    out: Path,
    given: list[Passage] | int = 40,
    function: Callable[[list[str]], Vectors] = encode,
    **options: Any,  # noqa: ANN401 (whatever build_index takes)
) -> Manifest:
    texts = passages(given) if isinstance(given, int) else given
    settings = {"encoder": ENCODER, "shard_size": 10, "chunk_size": 4, **options}
    return build_index(texts, function, out, **settings)


def check(folder: Path, expected: list[Passage]) -> Manifest:
    """The folder holds these passages, and nothing but what its manifest names."""
    manifest = read_manifest(folder)
    assert all(FileInfo.of(folder / name) == info for name, info in manifest.files.items())
    own = {"manifest.json", f"generations/{manifest.generation}.lock", *manifest.files}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == own
    rows = np.arange(len(expected))
    with Shards(folder, manifest.shards) as shards:
        assert shards.fetch(rows) == expected
        vectors = encode([passage.content for passage in expected])[:, : manifest.dimension]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        assert np.abs(shards.take(rows) - vectors).max() < 1e-3
        assert list(shards.find([passage.id for passage in expected]).values()) == rows.tolist()
    return manifest


def test_build(tmp_path: Path) -> None:
    seen: list[Progress] = []
    out = tmp_path / "deep" / "index"
    manifest = build_index(
        iter(passages(20)),
        encode,
        str(out),
        encoder=ENCODER,
        chunk_size=8,
        total=20,
        progress=seen.append,
        corpus="twenty",
    )
    assert [at.passages for at in seen if at.stage == "encoding"] == [8, 16, 20, 20]
    assert {at.total for at in seen} == {20}
    assert names(out.parent) == {"index"}
    assert check(out, passages(20)) == manifest
    assert (manifest.count, manifest.dimension, manifest.corpus) == (20, DIMENSION, "twenty")
    assert (manifest.metric, manifest.kind, manifest.encoder) == ("cosine", "Flat", ENCODER)
    assert (manifest.generation, manifest.truncated_from) == (1, None)
    age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(manifest.created)
    assert dt.timedelta(0) <= age < dt.timedelta(minutes=1)
    assert manifest.updated == manifest.created


def test_truncation(tmp_path: Path) -> None:
    manifest = build(tmp_path / "index", 12, dimension=6, dtype="float16")
    assert check(tmp_path / "index", passages(12)) == manifest
    assert (manifest.dimension, manifest.truncated_from, manifest.dtype) == (6, 16, "float16")
    assert manifest.encoder == replace(ENCODER, dimension=6)


def listing(texts: list[str]) -> np.ndarray:
    return encode(texts).tolist()  # type: ignore[no-any-return]


def with_row(row: int, value: float) -> Callable[[list[str]], np.ndarray]:
    def bad(texts: list[str]) -> np.ndarray:
        vectors = encode(texts)
        vectors[row] = value
        return vectors

    return bad


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (listing, "encode returned a builtins.list: expected a numpy array"),
        (lambda texts: encode(texts)[0], r"shape \(16,\)"),
        (lambda texts: encode(texts)[:, :3], "vectors of 3 dimensions: expected 16"),
        (lambda texts: encode(texts).astype("f8"), "array of float64: expected float32"),
        (lambda texts: encode(texts)[1:], "3 vectors for 4 texts"),
        (with_row(2, np.nan), "NaN or infinity in row 2"),
        (with_row(2, np.inf), "NaN or infinity in row 2"),
        (with_row(1, 0.0), "length 0 in row 1"),
        (lambda texts: encode(texts) * np.float32(1.01), "length 1.01 in row"),
    ],
)
def test_bad_vectors_leave_nothing(
    tmp_path: Path, bad: Callable[[list[str]], np.ndarray], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(tmp_path / "index", 4, bad)
    assert names(tmp_path) == set()


def failing(count: int) -> Iterator[Passage]:
    yield from passages(count)
    raise InputError("line 4 is bad")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (list, "There are no passages"),
        (lambda: [*passages(9), Passage("d4", "x")], 'id "d4" stands twice'),
        (lambda: ["text"], "passages holds a str"),
        (lambda: failing(3), "line 4 is bad"),
    ],
)
def test_bad_passages_leave_nothing(
    tmp_path: Path, given: Callable[[], list[Passage]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(tmp_path / "index", given())
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"shard_size": 0}, "shard_size is 0"),
        ({"dimension": 17}, "dimension is 17: expected 1 to 16"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"memory": 0}, "memory is 0"),
        ({"target_recall": 95}, "target_recall is 95"),
        ({"kind": "ivf-sq9"}, 'FAISS cannot make "ivf-sq9"'),
        ({"kind": "IVF64,Flat"}, "needs at least 2,496 rows"),
        ({"kind": "HNSW32", "memory": 1000}, "of memory for 4 rows"),
    ],
)
def test_bad_options_encode_nothing(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    counting = Counting()
    with pytest.raises(InputError, match=message):
        build(tmp_path / "index", 4, counting, **options)
    assert counting.texts == []
    assert names(tmp_path) == set()


def test_a_failed_build_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "index"
    with pytest.raises(RuntimeError, match="out of memory") as raised:
        build(out, 40, Counting(fail_at=8))
    note = f"2 finished shards (20 passages) are kept in {tmp_path / '.index.building'}."
    assert note in "".join(raised.value.__notes__)
    assert names(tmp_path) == {".index.building"}
    rest = Counting()
    build(out, 40, rest)
    assert rest.texts == [passage.content for passage in passages(40)[20:]]
    check(out, passages(40))
    assert names(tmp_path) == {"index"}


def test_a_corpus_that_cannot_be_read_to_its_end(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 4 is bad"):
        build_index(failing(25), encode, tmp_path / "index", encoder=ENCODER, shard_size=10)
    rest = Counting()
    build(tmp_path / "index", 26, rest)
    assert len(rest.texts) == 6
    check(tmp_path / "index", passages(26))


def test_failing_encoder_keeps_the_old_index(tmp_path: Path) -> None:
    out = tmp_path / "index"
    old = build(out, 5)

    def fail(texts: list[str]) -> np.ndarray:
        assert read_manifest(out) == old
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        build(out, 9, fail, overwrite=True)
    assert check(out, passages(5)) == old
    assert names(tmp_path) == {"index"}


def test_overwrite(tmp_path: Path) -> None:
    out = tmp_path / "index"
    out.mkdir()
    build(out, 25)
    with pytest.raises(InputError, match=r"already holds an index: .* overwrite=True"):
        build(out, 26)
    (out / "notes.txt").write_text("mine")
    again = Counting()
    manifest = build(out, 26, again, overwrite=True)
    assert manifest.generation == 2
    # Shards that did not change are taken from the former index.
    assert again.texts == [passage.content for passage in passages(26)[20:]]
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    check(out, passages(26))
    assert names(tmp_path) == {"index"}


def test_readers_of_the_former_index_go_on(tmp_path: Path) -> None:
    out = tmp_path / "index"
    old = build(out, 25)
    with reading(out) as held, Shards(out, held.manifest.shards) as shards:
        build(out, [Passage("only", "one")], overwrite=True)
        # Nothing of it was read before.
        assert shards.fetch(range(25)) == passages(25)
        assert all((out / name).exists() for name in old.files)
    with writing(out):
        generations.sweep(out)
    check(out, [Passage("only", "one")])


def test_an_index_is_not_built_again_while_it_is_changed(tmp_path: Path) -> None:
    out = tmp_path / "index"
    manifest = build(out, 5)
    with (
        writing(out),
        pytest.raises(PassageIndexError, match="is being changed by this very process"),
    ):
        build(out, 6, overwrite=True)

    def meanwhile(texts: list[str]) -> Vectors:
        with (
            pytest.raises(PassageIndexError, match="is being changed by this very process"),
            writing(out),
        ):
            publish(out, manifest)
        return encode(texts)

    build(out, 6, meanwhile, overwrite=True)
    check(out, passages(6))


@pytest.mark.parametrize("manifest", ["damaged", "of format 1"])
def test_an_index_that_cannot_be_read_is_replaced(tmp_path: Path, manifest: str) -> None:
    out = tmp_path / "index"
    build(out, 25)
    path = out / "manifest.json"
    if manifest == "damaged":
        path.write_text(path.read_text().replace('"count": 25', '"count": 26'))
    else:
        shutil.rmtree(out)
        out.mkdir()
        path.write_text('{"format": "epic-retrieval passage index", "format_version": 1}')
        (out / "vectors.faiss").write_text("")
        (out / "passages.sqlite").write_text("")
    with pytest.raises(InputError, match="already holds an index"):
        build(out, 25)
    build(out, 25, overwrite=True)
    check(out, passages(25))


def test_a_damaged_shard_of_the_former_index_is_made_anew(tmp_path: Path) -> None:
    out = tmp_path / "index"
    manifest = build(out, 25)
    vectors = out / "shards" / manifest.shards[1].name / "vectors.npy"
    content = vectors.read_bytes()
    vectors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    again = Counting()
    build(out, 25, again, overwrite=True)
    assert again.texts == [passage.content for passage in passages(25)[10:20]]
    check(out, passages(25))


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_is_no_index_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"manifest_version": 3}')
    with pytest.raises(InputError, match="exists and is not an index"):
        build(folder, overwrite=overwrite)
    with pytest.raises(InputError, match="is a file: an index is a folder"):
        build(folder / "manifest.json", overwrite=overwrite)
    with pytest.raises(InputError, match="cannot be written here"):
        build(folder / "manifest.json" / "below", overwrite=overwrite)
    with pytest.raises(InputError, match="root of a file system"):
        build(Path("/"), overwrite=overwrite)
    assert names(folder) == {"manifest.json"}


def test_folder_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "index"

    def meanwhile(texts: list[str]) -> np.ndarray:
        out.mkdir(exist_ok=True)
        (out / "thesis.txt").write_text("mine")
        return encode(texts)

    with pytest.raises(InputError, match="exists and is not an index"):
        build(out, 3, meanwhile, overwrite=True)
    assert (out / "thesis.txt").read_text() == "mine"
    (out / "thesis.txt").unlink()
    # No passage is encoded for the second time.
    build(out, 3, Counting(fail_at=0))
    check(out, passages(3))
    assert names(tmp_path) == {"index"}


def test_a_folder_in_the_place_of_the_work_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".index.building").mkdir()
    (tmp_path / ".index.building" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r'holds "thesis.txt", which is no part of a build'):
        build(tmp_path / "index")
    assert names(tmp_path / ".index.building") == {"thesis.txt"}


def test_work_with_other_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "index"
    with pytest.raises(RuntimeError):
        build(out, 40, Counting(fail_at=8))
    other = EncoderInfo("words", "e" * 8, DIMENSION)
    told = r'holds 2 finished shards.* model "letters", now "words";.* overwrite=True'
    with pytest.raises(InputError, match=told):
        build(out, 40, encoder=other)
    assert len(names(tmp_path / ".index.building" / "shards")) == 2
    with caplog.at_level(logging.WARNING):
        build_index(passages(40), encode, out, encoder=other, overwrite=True)
    assert "threw away 2 finished shards" in caplog.text
    assert check(out, passages(40)).encoder == other


def test_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    build(tmp_path / "v1", 3)
    (tmp_path / "current").symlink_to("v1")
    build(tmp_path / "current", 4, overwrite=True)
    assert (tmp_path / "current").is_symlink()
    assert read_manifest(tmp_path / "v1").count == 4


@pytest.mark.parametrize("overwrite", [False, True])
def test_where_links_are_impossible_shards_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    def impossible(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", impossible)
    out = tmp_path / "index"
    if overwrite:
        build(out, 15)
    with monkeypatch.context() as patch:
        # Stopped when all has been moved.
        patch.setattr("epic_retrieval.index._workplace.publish", full_disk)
        with pytest.raises(PassageIndexError, match="No space left on device"):
            build(out, 35, overwrite=overwrite)
    build(out, 35, Counting(fail_at=0), overwrite=overwrite)
    check(out, passages(35))
    assert names(tmp_path) == {"index"}


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "index"
    old = build(out, 5)
    with monkeypatch.context() as patch:
        patch.setattr("epic_retrieval.index._workplace.publish", full_disk)
        with pytest.raises(PassageIndexError) as raised:
            build(out, 25, overwrite=True)
    said = str(raised.value)
    assert "Writing the index failed ([Errno 28] No space left on device)" in said
    assert f"3 finished shards (25 passages) are kept in {tmp_path / '.index.building'}" in said
    assert "run the same command again" in said
    assert read_manifest(out) == old
    build(out, 25, Counting(fail_at=0), overwrite=True)
    check(out, passages(25))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "EncoderInfo.name is ''"),
        ({"fingerprint": None}, "EncoderInfo.fingerprint is None"),
        ({"dimension": 0}, "EncoderInfo.dimension is 0"),
        ({"dimension": "16"}, "EncoderInfo.dimension is '16'"),
        ({"task": 3}, "EncoderInfo.task is 3"),
    ],
)
def test_bad_encoder_info(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EncoderInfo(**{"name": "a", "fingerprint": "b", "dimension": 16, **fields})


def test_texts_and_metadata_survive(tmp_path: Path) -> None:
    given = [
        Passage(
            "ü/1", " \r\n‘𝔘nicode’\u2028 ", "\t", {"a": [1, 2.5, None, {"b": True}], "ü": 2**70}
        )
    ]
    build(tmp_path / "index", given)
    check(tmp_path / "index", given)


# Structures.


def test_structures(tmp_path: Path) -> None:
    seen: list[Progress] = []
    out = tmp_path / "index"
    given = passages(200)
    manifest = build(out, given, kind="IVF4,SQ8", target_recall=0.9, progress=seen.append)
    assert check(out, given) == manifest
    assert manifest.kind == "IVF4,SQ8"
    info = manifest.search
    assert info is not None
    assert (info.rows, info.recall_k, info.target) == (200, 10, 0.9)
    assert (info.recall or 0) >= 0.9
    assert set(info.parameters) == {"nprobe", "candidates"}
    stages = list(dict.fromkeys(at.stage for at in seen))
    assert stages == ["encoding", "choosing", "training", "adding", "merging", "measuring"]
    notes = [at.note for at in seen if at.note]
    assert notes[0].startswith("200 vectors of 16 dimensions: as asked for. IVF4,SQ8: about ")
    assert f": recall@10 {info.recall:.3f} (with 95 % confidence at least " in notes[1]
    assert notes[1].endswith(" ms a query (200 queries made from stored vectors)")
    added = [at.passages for at in seen if at.stage == "adding"]
    assert added == sorted(added)
    assert added[-1] == 200
    assert all(at.shards == 20 for at in seen if at.stage != "encoding")
    # The work goes on with the next build of the same kind, and not with another.
    build(out, given, overwrite=True, kind="HNSW8", function=Counting(fail_at=0))
    assert check(out, given).kind == "HNSW8"
    assert len(names(out / "search")) == 1


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[Any, ...]]:
    """The arguments of each call of a function from now on."""
    calls: list[tuple[Any, ...]] = []
    function = pkgutil.resolve_name(name)

    def calling(*given: object) -> object:
        calls.append(given)
        return function(*given)

    monkeypatch.setattr(name, calling)
    return calls


def stop_at(stage: str) -> Callable[[Progress], None]:
    def report(at: Progress) -> None:
        if at.stage == stage:
            raise KeyboardInterrupt

    return report


@pytest.mark.parametrize("stage", ["choosing", "adding", "merging", "measuring"])
def test_a_stopped_structure_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    out = tmp_path / "index"
    with pytest.raises(KeyboardInterrupt) as raised:
        build(out, 200, kind="IVF4,SQ8", progress=stop_at(stage))
    assert "20 finished shards (200 passages) are kept" in "".join(raised.value.__notes__)
    trained = counted(monkeypatch, "epic_retrieval.index.filling.train")
    build(out, 200, Counting(fail_at=0), kind="IVF4,SQ8")
    assert len(trained) == (1 if stage == "choosing" else 0)
    check(out, passages(200))
    assert names(tmp_path) == {"index"}


def test_a_structure_of_other_passages_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "index"
    with pytest.raises(KeyboardInterrupt):
        build(out, 200, kind="HNSW8", progress=stop_at("measuring"))
    # As many as before, and of those that a fingerprint of some rows would look at none differs.
    given = passages(200)
    given[101] = Passage("new", "Quite another text.")
    added = counted(monkeypatch, "epic_retrieval.index.adding.Adder._add")
    build(out, given, kind="HNSW8")
    assert sum(len(block) for _, _, block in added) == 200
    check(out, given)


def test_full_disk_while_the_structure_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "index"
    with monkeypatch.context() as patch:
        patch.setattr("epic_retrieval.index.filling.write_structure", full_disk)
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(PassageIndexError) as raised:
            build(out, 200, kind="HNSW8")
    said = str(raised.value)
    assert "Writing the index failed ([Errno 28]" in said
    assert "20 finished shards (200 passages) are kept" in said
    assert "are still needed, but only 1.0 kB are free there: make room for" in said
    build(out, 200, Counting(fail_at=0), kind="HNSW8")
    check(out, passages(200))


def test_kinds_that_turn_out_to_be_impossible_keep_the_shards(tmp_path: Path) -> None:
    out = tmp_path / "index"
    with pytest.raises(InputError, match="needs at least 39 rows"):
        build_index(
            iter(passages(30)), encode, out, encoder=ENCODER, kind="IVF1,Flat", shard_size=10
        )
    build(out, 30, Counting(fail_at=0), kind="hnsw")
    assert check(out, passages(30)).kind == "HNSW32_SQ8"


@pytest.mark.parametrize("count", [1, 2, 11])
@pytest.mark.parametrize("kind", ["auto", "hnsw", "ivf-pq"])
def test_few_passages(tmp_path: Path, count: int, kind: str) -> None:
    build(tmp_path / "index", count, kind=kind)
    check(tmp_path / "index", passages(count))


# Memory.


def test_default_memory_is_half_of_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _memory.default_memory() >= 2**28
    monkeypatch.setattr(_memory, "_GROUPS", ())
    monkeypatch.setattr(_memory, "_of_machine", lambda: 8 * 2**30)
    assert _memory.default_memory() == 4 * 2**30
    group = tmp_path / "group"
    group.mkdir()
    monkeypatch.setattr(_memory, "_GROUPS", ((str(group), "max", "current"),))
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {2**30}\n")
    (group / "current").write_text(f"{3 * 2**30}\n")
    (group / "max").write_text("max\n")
    assert _memory.default_memory() == 4 * 2**30
    (group / "max").write_text(f"{4 * 2**30}\n")
    assert _memory.default_memory() == 2**30
    (group / "max").write_text("1000\n")
    assert _memory.default_memory() == 2**28
    monkeypatch.setattr(_memory, "_GROUPS", ())
    monkeypatch.setattr(_memory, "_of_machine", lambda: None)
    assert _memory.default_memory() == 2**30
