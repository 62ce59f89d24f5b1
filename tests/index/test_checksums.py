import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index import PassageIndex, checksums, verify_index
from epic_retrieval.index.manifest import FileInfo, read_manifest
from epic_retrieval.storage import cache_folder
from tests.index.folders import build_kind, delete, unsynced
from tests.index.samples import encode, passages

_unsynced = pytest.fixture(autouse=True, scope="module")(unsynced)

Read = Callable[[], set[str]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checksums") / "index"
    build_kind(out, passages(600), "IVF8,SQ8")
    delete(out, [3, 5])
    return out


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "index")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Read:
    """Which files were read whole since the last call; files count as old at once."""
    monkeypatch.setattr(checksums, "_SETTLED", -(10**12))
    names: set[str] = set()
    original = FileInfo.of

    def of(path: Path) -> FileInfo:
        names.add(path.relative_to(folder).as_posix())
        return original(path)

    def taken() -> set[str]:
        found = set(names)
        names.clear()
        return found

    monkeypatch.setattr(FileInfo, "of", of)
    return taken


def open_once(folder: Path, *, check: bool = True) -> None:
    with PassageIndex.open(folder, check=check) as index:
        index.search(encode(["a"]), 3)


def files(folder: Path) -> set[str]:
    return set(read_manifest(folder).files)


def large(names: set[str]) -> set[str]:
    return {name for name in names if name.endswith(("vectors.npy", "passages.sqlite"))}


def test_what_did_not_change_is_read_once(folder: Path, read: Read) -> None:
    every = files(folder)
    open_once(folder, check=False)
    assert read() == every - large(every)
    open_once(folder)
    assert read() == large(every)
    for check in (True, False):
        open_once(folder, check=check)
        assert not read()


def test_without_a_check_small_files_are_compared_all_the_same(folder: Path, read: Read) -> None:
    for name in sorted(files(folder)):
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        if large({name}):
            PassageIndex.open(folder, check=False).close()
        else:
            with pytest.raises(PassageIndexError, match=f"{path.name}: is damaged"):
                PassageIndex.open(folder, check=False)
        with pytest.raises(PassageIndexError, match=f"{path.name}: is damaged"):
            PassageIndex.open(folder)
        path.write_bytes(whole)
        open_once(folder)


def test_a_change_shows_even_if_its_time_is_turned_back(folder: Path, read: Read) -> None:
    open_once(folder)
    path = next(folder.rglob("vectors.npy"))
    times, whole = path.stat(), path.read_bytes()
    with path.open("r+b") as file:
        file.seek(300)
        file.write(bytes([whole[300] ^ 4]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    with pytest.raises(PassageIndexError, match=r"vectors.npy: is damaged"):
        open_once(folder)
    path.write_bytes(whole)
    read()
    open_once(folder)
    assert read() == {path.relative_to(folder).as_posix()}


def test_what_changed_just_now_is_not_remembered(
    folder: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    counted: list[Path] = []
    original = FileInfo.of

    def of(path: Path) -> FileInfo:
        counted.append(path)
        return original(path)

    monkeypatch.setattr(FileInfo, "of", of)
    for times in (1, 2):
        open_once(folder)
        assert len(counted) == times * len(files(folder))


def test_what_was_read_before_an_error_is_remembered(folder: Path, read: Read) -> None:
    *before, last = read_manifest(folder).files
    path = folder / last
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(PassageIndexError, match="is damaged"):
        open_once(folder)
    assert read() == {*before, last}
    path.write_bytes(whole)
    open_once(folder)
    assert read() == {last}


def test_another_manifest_asks_again(folder: Path, read: Read) -> None:
    open_once(folder)
    read()
    manifest = delete(folder, [3, 5, 7])
    assert manifest.deleted is not None
    read()
    open_once(folder)
    assert read() == {f"deleted/{manifest.deleted.name}.npy"}


def test_a_link_to_the_folder_is_the_same_index(folder: Path, read: Read, tmp_path: Path) -> None:
    open_once(folder)
    assert read()
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    open_once(tmp_path / "link")
    assert not read()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"shards": 3}', b"\xff", b"null"])
def test_damaged_notes_are_ignored(folder: Path, read: Read, content: bytes) -> None:
    open_once(folder)
    every = read()
    for note in (cache_folder() / "index-checks").iterdir():
        note.write_bytes(content)
    open_once(folder)
    assert read() == every


def test_a_cache_that_cannot_be_written(
    folder: Path, read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EPIC_CACHE_DIR", str(tmp_path / "file"))
    open_once(folder)
    every = read()
    open_once(folder)
    assert read() == every


def test_verify_believes_no_note(folder: Path, read: Read) -> None:
    open_once(folder)
    path = next(folder.rglob("passages.sqlite"))
    name = path.relative_to(folder).as_posix()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    # As if it had been whole when it was read last, and not changed since.
    place = checksums._place(folder)
    notes = json.loads(place.read_bytes())
    notes[name] = checksums._note(path, read_manifest(folder).files[name])
    place.write_text(json.dumps(notes))
    read()
    open_once(folder)
    assert not read()
    (problem,) = verify_index(folder).problems
    assert (problem.kind, problem.file) == ("file", name)
    assert "do not have the checksum" in problem.message
