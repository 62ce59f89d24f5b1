import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index import (
    IndexWriter,
    Passage,
    PassageIndex,
    build_index,
    generations,
    verify_index,
)
from epic_retrieval.index._mapped import map_array, write_array
from epic_retrieval.index.generations import Reading, sweep, writing
from epic_retrieval.index.manifest import FileInfo, read_manifest
from tests.index.folders import KINDS, append, build_kind, delete, unsynced
from tests.index.samples import ENCODER, build, encode, passages

_unsynced = pytest.fixture(autouse=True, scope="module")(unsynced)

Change = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verify") / "index"
    build_kind(out, passages(400), "HNSW8")
    delete(out, [2, 399])
    with writing(out):
        sweep(out)
    return out


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "index")


def one(folder: Path, name: str) -> Path:
    """A file of this name; of several, one of the first shard."""
    shard = folder / "shards" / read_manifest(folder).shards[0].name
    return shard / name if (shard / name).exists() else next(folder.rglob(name))


def found(folder: Path) -> set[tuple[str, str]]:
    return {(problem.kind, Path(problem.file).name) for problem in verify_index(folder).problems}


@pytest.mark.parametrize("kind", KINDS)
def test_as_built(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "index"
    build_kind(out, passages(640), kind, "float16" if kind == "IVF16,SQ8" else "float32")
    assert verify_index(out, encode) == verify_index(out)
    append(out, [Passage("d7", "d7 again"), Passage("x", "new")])
    delete(out, [7, 3])
    report = verify_index(out, encode, sample=10_000)
    assert report.ok
    assert report.problems == ()
    assert report.manifest == read_manifest(out)
    assert "generations/1.json" in report.leftovers


FILES = ["manifest.json", "vectors.npy", "passages.sqlite", "ids.npy", "index.faiss", "d-*.npy"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 20, -1])
def test_truncated(folder: Path, name: str, keep: int) -> None:
    path = one(folder, name)
    os.truncate(path, keep if keep >= 0 else path.stat().st_size + keep)
    (problem,) = verify_index(folder).problems
    assert problem.file == path.relative_to(folder).as_posix()
    if name != "manifest.json":
        assert problem.kind == "file"
        assert "bytes, but was built with" in str(problem)


@pytest.mark.parametrize("name", FILES)
def test_removed(folder: Path, name: str) -> None:
    path = one(folder, name)
    path.unlink()
    (problem,) = verify_index(folder).problems
    assert problem.file == path.relative_to(folder).as_posix()
    assert "is missing" in str(problem) or "has no manifest.json" in str(problem)


def test_all_faults_are_named_at_once(folder: Path) -> None:
    shard = one(folder, "vectors.npy").parent
    (shard / "vectors.npy").unlink()
    os.truncate(shard / "passages.sqlite", 10)
    (shard / "passages.sqlite-journal").mkdir()
    with one(folder, "index.faiss").open("r+b") as file:
        file.write(b"x")
    (folder / "notes.txt").touch()
    (folder / "shards" / "mine").touch()
    (folder / "link").symlink_to("notes.txt")
    assert found(folder) == {
        ("file", "vectors.npy"),
        ("file", "passages.sqlite"),
        ("file", "index.faiss"),
        ("extra", "passages.sqlite-journal"),
        ("extra", "notes.txt"),
        ("extra", "mine"),
        ("extra", "link"),
    }


def test_an_index_without_passages_that_count(tmp_path: Path) -> None:
    """Its folders are empty once it is compacted, which is no work that was left."""
    build(tmp_path / "index", 5)
    with IndexWriter(tmp_path / "index") as writer:
        writer.delete(f"d{n}" for n in range(5))
        assert verify_index(tmp_path / "index", encode).ok
        writer.compact()
    (tmp_path / "index" / "search").mkdir()
    report = verify_index(tmp_path / "index", encode)
    assert (report.problems, report.leftovers) == ((), ())
    assert (tmp_path / "index" / "deleted").is_dir()


def test_work_of_writers_is_no_fault(folder: Path) -> None:
    before = verify_index(folder)
    assert before.leftovers == ()
    name = "s-" + "0" * 16
    work = [f"shards/{name}/passages.sqlite.scratch", f"shards/{name}.new/ids.npy"]
    work += [f"search/x-{'0' * 16}/index.faiss", "deleted/d-01234567.npy"]
    work += ["generations/99.lock", "generations/98.json", f".manifest.json.{'0' * 32}"]
    for path in work:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).touch()
    with writing(folder):
        report = verify_index(folder)
    assert report.ok
    assert set(report.leftovers) == set(work)


def test_links(folder: Path, tmp_path: Path) -> None:
    shard, other = (folder / "shards" / info.name for info in read_manifest(folder).shards)
    shard.rename(tmp_path / "aside")
    shard.symlink_to(tmp_path / "aside", target_is_directory=True)
    (other / "ids.npy").rename(tmp_path / "ids")
    (other / "ids.npy").symlink_to(tmp_path / "ids")
    (folder / "manifest.json").rename(tmp_path / "manifest")
    (folder / "manifest.json").symlink_to(tmp_path / "manifest")
    problems = verify_index(folder).problems
    assert {(problem.kind, problem.file) for problem in problems} >= {
        ("manifest", "manifest.json"),
        ("file", f"shards/{shard.name}"),
        ("file", f"shards/{other.name}/ids.npy"),
    }
    assert all("link" in str(problem) or "no part" in str(problem) for problem in problems)


def test_no_folder(tmp_path: Path) -> None:
    report = verify_index(tmp_path / "none")
    assert not report.ok
    assert report.manifest is None
    assert "no such folder" in str(report.problems[0])


def test_bytes_of_the_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text() + "\n")
    (problem,) = verify_index(folder).problems
    assert "not byte for byte as written" in str(problem)


def resign(folder: Path) -> None:
    """A manifest that vouches for the files as they are: only the content can still be wrong."""
    old = read_manifest(folder)

    def of(name: str) -> FileInfo:
        return FileInfo.of(folder / name)

    shards = tuple(
        replace(shard, files={name: of(f"shards/{shard.name}/{name}") for name in shard.files})
        for shard in old.shards
    )
    search = old.search and replace(old.search, file=of(f"search/{old.search.name}/index.faiss"))
    deleted = old.deleted and replace(old.deleted, file=of(f"deleted/{old.deleted.name}.npy"))
    new = replace(old, shards=shards, search=search, deleted=deleted)
    (folder / "manifest.json").write_text(new.to_text())


def change_array(name: str, change: Change) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        path = one(folder, name)
        array = change(np.array(map_array(path)))
        path.unlink()
        write_array(path, array)

    return run


def times(factor: float) -> Change:
    def change(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        vectors[[17, 200]] *= factor
        return vectors

    return change


def structure(index: faiss.Index) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        index.reset()
        index.add(encode([str(n) for n in range(400)]))
        faiss.write_index(index, str(one(folder, "index.faiss")))

    return run


def few(folder: Path) -> None:
    index = faiss.IndexHNSWFlat(16, 8, faiss.METRIC_INNER_PRODUCT)
    index.add(encode(["a", "b"]))
    faiss.write_index(index, str(one(folder, "index.faiss")))


def query(text: str) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        connection = sqlite3.connect(one(folder, "passages.sqlite"))
        connection.executescript(text)
        connection.close()

    return run


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (change_array("vectors.npy", lambda a: a[:-1]), "passages", "says 300 vectors"),
        (change_array("vectors.npy", lambda a: a.astype("f2")), "vectors", "float16; the manifest"),
        (change_array("vectors.npy", lambda a: a[:, :9].copy()), "vectors", "of 9 dimensions"),
        (change_array("vectors.npy", times(0.99)), "vectors", "2 vectors.*row 17 .length 0.99"),
        (change_array("vectors.npy", times(np.nan)), "vectors", "2 vectors.*row 17 .length nan"),
        (change_array("vectors.npy", times(0.0)), "vectors", "2 vectors.*row 17 .length 0"),
        (change_array("ids.npy", lambda a: a[:, ::-1].copy()), "ids", "hashes of the ids"),
        (change_array("ids.npy", lambda a: a[:1]), "passages", "expected uint64"),
        (change_array("d-*.npy", lambda a: a[::-1].copy()), "deleted", "not sorted rows"),
        (change_array("d-*.npy", lambda a: a + 1), "deleted", "not sorted rows of 0 to 399"),
        (change_array("d-*.npy", lambda a: a[:1]), "deleted", "says 2 deleted rows"),
        (few, "search", "2 vectors of 16 dimensions, but the manifest says 400 of 16"),
        (structure(faiss.IndexHNSWFlat(16, 8)), "search", "not a finished structure"),
        (structure(faiss.IndexFlatIP(16)), "search", '"HNSW8" gives'),
        (lambda f: one(f, "index.faiss").write_bytes(b"none"), "search", "FAISS cannot read it"),
        (query("DELETE FROM passages WHERE row = 39"), "passages", "299 rows, but should have 300"),
        (query("UPDATE passages SET row = 777 WHERE row = 3"), "passages", "numbered 0 to 777"),
        (query("DROP TABLE passages"), "passages", "missing or damaged"),
        (query("UPDATE passages SET id = 'other' WHERE row = 3"), "ids", "hashes of the ids"),
    ],
)
def test_content_that_does_not_fit(
    folder: Path, damage: Callable[[Path], None], kind: str, message: str
) -> None:
    damage(folder)
    resign(folder)
    problems = verify_index(folder).problems
    assert {problem.kind for problem in problems} == {kind}
    assert re.search(message, " ".join(map(str, problems)))


def test_ids_that_stand_twice(tmp_path: Path) -> None:
    out = tmp_path / "index"
    build(out, 20)
    append(out, [Passage("x", "x"), Passage("d11", "again")])
    (problem,) = verify_index(out).problems
    assert problem.kind == "ids"
    assert problem.file == f"shards/{read_manifest(out).shards[1].name}/ids.npy"
    assert 'the id "d11" twice (rows 11 and 21)' in str(problem)
    delete(out, [11])
    assert verify_index(out).ok
    delete(out, [3])
    assert not verify_index(out).ok


def test_encoding_again(tmp_path: Path) -> None:
    out = tmp_path / "index"
    given = passages(50)
    build_index(given, encode, out, encoder=ENCODER, shard_size=30, dtype="float16")
    delete(out, [49])
    asked: list[str] = []

    def other(texts: list[str]) -> NDArray[np.float32]:
        asked.extend(texts)
        vectors = encode(texts)
        for row, text in enumerate(texts):
            if text == given[37].content:
                vectors[row] = encode(["something else"])[0]
        return vectors

    assert verify_index(out, encode, sample=1000).ok
    (problem,) = verify_index(out, other, sample=1000).problems
    assert (problem.kind, problem.file) == (
        "encoding",
        f"shards/{read_manifest(out).shards[1].name}/vectors.npy",
    )
    assert 'passage "d37" whose cosine' in str(problem)
    assert asked == [p.content for p in given[:49]]
    asked.clear()
    verify_index(out, other, sample=7)
    assert asked == [given[row].content for row in (3, 10, 17, 24, 31, 38, 45)]


def test_encoding_again_with_another_width(tmp_path: Path) -> None:
    out = tmp_path / "index"
    build_index(passages(20), encode, out, encoder=ENCODER, dimension=5)
    assert verify_index(out, encode).ok
    with pytest.raises(InputError, match="encode returned vectors of 5 dimensions: expected 16"):
        verify_index(out, lambda texts: encode(texts)[:, :5])
    with pytest.raises(InputError, match="encode returned 1 vectors for 20 texts"):
        verify_index(out, lambda texts: encode(texts[:1]))
    with pytest.raises(InputError, match="sample is 0: expected at least 1"):
        verify_index(out, encode, sample=0)


def test_damaged_indexes_are_not_encoded_again(folder: Path) -> None:
    os.truncate(one(folder, "passages.sqlite"), 100)

    def never(texts: list[str]) -> NDArray[np.float32]:
        raise AssertionError(texts)

    assert len(verify_index(folder, never).problems) == 1


def test_an_empty_index_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "index"
    build(out, 3)
    delete(out, [0, 1, 2])
    assert verify_index(out, encode).ok


def test_while_a_writer_works(folder: Path) -> None:
    done = threading.Event()

    def write() -> None:
        for round_ in range(6):
            append(folder, [Passage(f"x{round_}", "text")])
            delete(folder, [round_])
            with writing(folder):
                sweep(folder)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        assert verify_index(folder, encode, sample=5).problems == ()
    thread.join()
    assert verify_index(folder).manifest == read_manifest(folder)


def test_a_generation_that_is_a_former_one_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading(folder: Path) -> Reading:
        held = original(folder)
        delete(folder, [5])
        with writing(folder):
            sweep(folder)
        return held

    original = generations.reading
    monkeypatch.setattr("epic_retrieval.index.verify.reading", reading)
    before = read_manifest(folder)
    report = verify_index(folder, encode)
    assert report.problems == ()
    assert report.manifest == before != read_manifest(folder)


def test_what_is_found_does_not_open(folder: Path) -> None:
    few(folder)
    resign(folder)
    with pytest.raises(PassageIndexError, match="the manifest says 400 of 16"):
        PassageIndex.open(folder)
