import gc
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index import Hit, Manifest, Passage, PassageIndex, _open
from epic_retrieval.index.generations import sweep, writing
from tests.index.folders import append, build_kind, delete, made_once, unsynced
from tests.index.samples import ENCODER, build, encode, passages

_unsynced = pytest.fixture(autouse=True, scope="module")(unsynced)
living = pytest.fixture(scope="module")(made_once)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("opening") / "index"
    build(out, 50)
    return out


def test_another_encoder(folder: Path) -> None:
    with PassageIndex.open(folder) as index:
        index.check_encoder(replace(ENCODER, name="another name for it"))
        other = replace(ENCODER, name="other", fingerprint="0" * 8)
        with pytest.raises(PassageIndexError) as caught:
            index.check_encoder(other)
        for part in ("letters", "other", "f" * 8, "0" * 8, "build the index again"):
            assert part in str(caught.value)
        with pytest.raises(PassageIndexError, match="dimension 16, now 5"):
            index.check_encoder(replace(ENCODER, dimension=5))


def test_closed(folder: Path) -> None:
    index = PassageIndex.open(folder)
    view = index._opened()
    index.close()
    index.close()
    # Its files are closed, not only its doors.
    with pytest.raises(PassageIndexError, match="The index is closed"):
        view.shards.fetch([0])
    for use in (
        lambda: index.search(encode(["a"]), 1),
        lambda: index.get(["d1"]),
        lambda: index.vectors(["d1"]),
        lambda: list(index.passages),
    ):
        with pytest.raises(PassageIndexError, match="the index is closed"):
            use()


def test_open_index_outlives_its_replacement(tmp_path: Path) -> None:
    build(tmp_path / "index", 40)
    with PassageIndex.open(tmp_path / "index") as index:
        before = index.search(encode(["a"]), 40)
        build(tmp_path / "index", 10, overwrite=True)
        found: list[list[list[Hit]]] = []
        thread = threading.Thread(target=lambda: found.append(index.search(encode(["a"]), 40)))
        thread.start()
        thread.join()
        assert found == [before]
    with PassageIndex.open(tmp_path / "index") as index:
        assert len(index) == 10


@pytest.mark.parametrize("kind", ["flat", "HNSW8"])
def test_a_view_stays_the_same_while_a_writer_works(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "index"
    build_kind(out, passages(700), kind)
    queries, where = encode(["one", "two", "three"]), {"n": {"$lt": 400}}
    # Nothing but sizes was looked at when this one is left alone with a writer.
    untouched = PassageIndex.open(out)
    with PassageIndex.open(out) as index:
        before = index.search(queries, 10), index.search(queries, 10, where=where)
        done = threading.Event()

        def write() -> None:
            for round_ in range(8):
                append(out, [Passage(f"x{round_}-{n}", f"query {n}") for n in range(5)])
                delete(out, range(0, 700, round_ + 2))
                with writing(out):
                    sweep(out)
            done.set()

        thread = threading.Thread(target=write)
        thread.start()
        while not done.is_set():
            found = index.search(queries, 10), index.search(queries, 10, where=where)
            assert found == before
            with PassageIndex.open(out) as newer:
                # Whatever generation it is, it is one, and not a mixture.
                assert len(newer.search(queries[:1], 10_000)[0]) == len(newer)
                assert len(list(newer.passages)) == len(newer)
        thread.join()
    assert untouched.search(queries, 10, where=where) == before[1]
    untouched.close()
    with PassageIndex.open(out) as index:
        assert index.manifest.generation == 17
        assert index.search(encode(["query 3"]), 1)[0][0].score == pytest.approx(1.0)


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="other locks on Windows")
def test_an_index_that_nobody_closed_holds_nothing(tmp_path: Path) -> None:
    out = tmp_path / "index"
    build(out, 20)
    index = PassageIndex.open(out)
    index.search(encode(["a"]), 3)
    delete(out, [1])
    with writing(out):
        sweep(out)
        assert (out / "generations" / "1.lock").exists()
        del index
        gc.collect()
        sweep(out)
    assert not (out / "generations" / "1.lock").exists()


def test_folder_names_with_signs(tmp_path: Path) -> None:
    out = tmp_path / "a b%20?c#d ü"
    build(out, 3)
    with PassageIndex.open(out) as index:
        assert len(index.search(encode(["a"]), 3)[0]) == 3


def test_relative_paths_and_links_to_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "one", 30)
    build(tmp_path / "two", 3)
    (tmp_path / "current").symlink_to("one", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    with PassageIndex.open("current") as index:
        (tmp_path / "current").unlink()
        (tmp_path / "current").symlink_to("two", target_is_directory=True)
        monkeypatch.chdir("/")
        assert len(index.search(encode(["a"]), 30)[0]) == 30


def test_read_only_folder(tmp_path: Path) -> None:
    out = tmp_path / "index"
    build(out, 3)
    paths = [out, *out.rglob("*")]
    for path in reversed(paths):
        path.chmod(0o555 if path.is_dir() else 0o444)
    with PassageIndex.open(out) as index:
        assert len(index.search(encode(["a"]), 3)[0]) == 3
    for path in paths:
        path.chmod(0o755)


@pytest.mark.parametrize("name", ["vectors.npy", "passages.sqlite", "ids.npy", "index.faiss"])
@pytest.mark.parametrize("check", [True, False])
def test_missing_or_short_files(
    living: Callable[[str], Path], tmp_path: Path, name: str, check: bool
) -> None:
    copy = shutil.copytree(living("HNSW8"), tmp_path / "index")
    path = next(copy.rglob(name))
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(PassageIndexError, match=rf"{name}: has [\d,]+ bytes, but was built"):
        PassageIndex.open(copy, check=check)
    os.truncate(path, 40)
    with pytest.raises(PassageIndexError, match=name):
        PassageIndex.open(copy, check=check)
    path.unlink()
    with pytest.raises(PassageIndexError, match=rf"{name}: cannot be read \(No such file"):
        PassageIndex.open(copy, check=check)


def test_deleted_rows_that_make_no_sense(tmp_path: Path) -> None:
    build(tmp_path / "index", 5)
    for rows in ([0, 7], [-1, 2], [1, 1]):
        delete(tmp_path / "index", rows)
        with pytest.raises(PassageIndexError, match="not sorted rows of 0 to 4, each once"):
            PassageIndex.open(tmp_path / "index")


def move_and_link(path: Path, aside: Path) -> None:
    path.rename(aside)
    path.symlink_to(aside, target_is_directory=aside.is_dir())


@pytest.mark.parametrize(
    "name", ["manifest.json", "shards", "shards/*", "search", "search/*", "deleted", "deleted/*"]
)
def test_links_are_refused(living: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(living("HNSW8"), tmp_path / "index")
    move_and_link(next(copy.glob(name)), tmp_path / "aside")
    with pytest.raises(PassageIndexError, match="a link"):
        PassageIndex.open(copy, check=False)


@pytest.mark.parametrize("name", ["vectors.npy", "passages.sqlite", "ids.npy", "index.faiss"])
def test_linked_files_are_refused(living: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(living("HNSW8"), tmp_path / "index")
    move_and_link(next(copy.rglob(name)), tmp_path / "aside")
    with pytest.raises(PassageIndexError, match="not a file of its own, but a link"):
        PassageIndex.open(copy, check=False)


def test_what_is_no_index(tmp_path: Path) -> None:
    with pytest.raises(PassageIndexError, match="no such folder"):
        PassageIndex.open(tmp_path / "none")
    with pytest.raises(PassageIndexError, match=r"not an index, it has no manifest.json"):
        PassageIndex.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"manifest_version": 3}')
    with pytest.raises(PassageIndexError, match="not the manifest of a passage index"):
        PassageIndex.open(tmp_path)
    with pytest.raises(PassageIndexError, match="is a file, and no index"):
        PassageIndex.open(tmp_path / "manifest.json")


def test_a_manifest_of_another_index(living: Callable[[str], Path], tmp_path: Path) -> None:
    copy = shutil.copytree(living("flat"), tmp_path / "index")
    shutil.copy(living("HNSW8") / "manifest.json", copy / "manifest.json")
    with pytest.raises(PassageIndexError):
        PassageIndex.open(copy, check=False)


def test_a_writer_that_removes_files_under_our_hands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where locks are impossible, the generation that was read may be gone when it is opened."""
    out = tmp_path / "index"
    build(out, 20)
    calls = []

    def open_view(folder: Path, manifest: Manifest, *, check: bool) -> _open.View:
        calls.append(manifest.generation)
        if len(calls) <= moves:
            delete(out, range(len(calls)))
        if len(calls) <= failures:
            raise PassageIndexError("a file is missing")
        return original(folder, manifest, check=check)

    original = _open.open_view
    monkeypatch.setattr("epic_retrieval.index.search.open_view", open_view)
    moves = failures = 1
    with PassageIndex.open(out) as index:
        assert (len(index), calls) == (19, [1, 2])
    # Nobody moved on: it is missing indeed.
    calls.clear()
    moves = 0
    with pytest.raises(PassageIndexError, match="a file is missing"):
        PassageIndex.open(out)
    assert calls == [2]
    calls.clear()
    moves = failures = 100
    with pytest.raises(PassageIndexError, match="a file is missing"):
        PassageIndex.open(out)
    assert len(calls) == 3
