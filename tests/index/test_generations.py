"""Readers keep their generation while a writer goes on; files here are stand-ins."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index import generations
from epic_retrieval.index.generations import publish, reading, sweep, writing
from epic_retrieval.index.manifest import (
    SHARD_FILES,
    DeletedInfo,
    EncoderInfo,
    FileInfo,
    Manifest,
    SearchInfo,
    ShardInfo,
    read_manifest,
)
from tests.index.samples import ROOT

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="kills processes the POSIX way")


@pytest.fixture(autouse=True)
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were forced to the disk; nothing is, since disks are slow."""
    done: list[Path] = []

    def note(handle: int) -> None:
        link = Path(f"/proc/self/fd/{handle}")
        if link.is_symlink():
            done.append(link.readlink())

    monkeypatch.setattr(os, "fsync", note)
    return done


def new_file(path: Path, content: str) -> FileInfo:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return FileInfo.of(path)


def state(folder: Path, *numbers: int, deleted: bool = True) -> Manifest:
    """Files of shards with these numbers, a search structure and a file of deleted rows."""
    shards = []
    for number in numbers:
        name = f"s-{number:016x}"
        files = {
            file: new_file(folder / "shards" / name / file, f"{file} {number}")
            for file in SHARD_FILES
        }
        shards.append(ShardInfo(name, 3, files))
    last = f"{numbers[-1]:08x}"
    index = new_file(folder / "search" / f"x-{last}" / "index.faiss", "structure")
    gone = new_file(folder / "deleted" / f"d-{last}.npy", "gone")
    return Manifest(
        generation=1,
        count=3 * len(numbers) - deleted,
        dtype="float32",
        encoder=EncoderInfo("letters", "f", 16),
        shards=tuple(shards),
        search=SearchInfo(f"x-{last}", "HNSW32", 3, index, {"efSearch": 9}, None, 10, None),
        deleted=DeletedInfo(f"d-{last}", 1, gone) if deleted else None,
        created="then",
        updated="now",
        package_version="0",
    )


def is_whole(folder: Path, manifest: Manifest) -> bool:
    """Whether every file can still be opened and is as it was."""
    return all(FileInfo.of(folder / name) == info for name, info in manifest.files.items())


def names(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def of(manifest: Manifest) -> set[str]:
    return {"manifest.json", f"generations/{manifest.generation}.lock", *manifest.files}


def test_publish_numbers_generations(tmp_path: Path) -> None:
    with writing(tmp_path):
        first = publish(tmp_path, state(tmp_path, 1))
        second = publish(tmp_path, state(tmp_path, 1, 2))
    assert (first.generation, second.generation) == (1, 2)
    assert read_manifest(tmp_path) == second
    with reading(tmp_path) as held:
        assert held.manifest == second
    assert names(tmp_path) == of(first) | of(second) | {"generations/1.json"}
    with writing(tmp_path):
        assert sweep(tmp_path) > 0
        assert sweep(tmp_path) == 0
    assert names(tmp_path) == of(second)


def test_the_disk_holds_new_files_before_the_manifest(tmp_path: Path, synced: list[Path]) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files are listed in /proc only")
    with writing(tmp_path):
        first = publish(tmp_path, state(tmp_path, 1))
        new = synced.index(next(path for path in synced if path.name.startswith(".manifest.json")))
        folders = {"shards", "search", "deleted", "generations", "."}
        assert {tmp_path / name for name in (*first.files, *folders)} <= set(synced[:new])
        assert synced[-1] == tmp_path
        synced.clear()
        second = publish(tmp_path, state(tmp_path, 1, 2))
        # Files that the former generation has too are not synced again.
        fresh = set(second.files) - set(first.files)
        assert {path for path in synced if path.suffix in {".npy", ".sqlite", ".faiss"}} == {
            tmp_path / name for name in fresh
        }


def test_reader_keeps_its_generation_until_it_closes(tmp_path: Path) -> None:
    with writing(tmp_path):
        publish(tmp_path, state(tmp_path, 1, 2))
        old = reading(tmp_path)
        for number in range(3, 8):
            last = publish(tmp_path, state(tmp_path, number))
            sweep(tmp_path)
            # Nothing of it was open so far: lazily opened files are there too.
            assert is_whole(tmp_path, old.manifest)
            assert is_whole(tmp_path, last)
        needed = of(old.manifest) | of(last) | {"generations/1.json", "write.lock"}
        assert names(tmp_path) == needed
        old.close()
        old.close()
        sweep(tmp_path)
        assert names(tmp_path) == of(last) | {"write.lock"}
    assert names(tmp_path) == of(last)


def test_readers_of_several_generations(tmp_path: Path) -> None:
    held = []
    with writing(tmp_path):
        for number in range(1, 6):
            publish(tmp_path, state(tmp_path, number, number + 1))
            held.append(reading(tmp_path))
        for closed in (2, 0, 4, 1, 3):
            held[closed].close()
            sweep(tmp_path)
            assert all(
                is_whole(tmp_path, reader.manifest)
                for reader in held
                if reader._handle is not None or reader is held[-1]
            )
        assert names(tmp_path) == of(held[-1].manifest) | {"write.lock"}


@contextmanager
def process(code: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == "ready\n"
            yield started
        finally:
            started.send_signal(signal.SIGKILL)
            started.wait()


HOLDER = """
import sys, time
from pathlib import Path
from epic_retrieval.index.generations import reading, writing
with {call}(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(600)
"""


@POSIX
def test_killed_reader_holds_nothing(tmp_path: Path) -> None:
    with writing(tmp_path):
        first = publish(tmp_path, state(tmp_path, 1))
        with process(HOLDER.format(call="reading"), tmp_path):
            second = publish(tmp_path, state(tmp_path, 2))
            sweep(tmp_path)
            assert is_whole(tmp_path, first)
        sweep(tmp_path)
    assert names(tmp_path) == of(second)


@POSIX
def test_second_writer_is_told_who_writes(tmp_path: Path) -> None:
    with process(HOLDER.format(call="writing"), tmp_path) as first:
        told = rf"being changed by another process \(process {first.pid} on "
        with pytest.raises(PassageIndexError, match=told), writing(tmp_path):
            pass
    with writing(tmp_path):
        publish(tmp_path, state(tmp_path, 1))
    with (
        pytest.raises(InputError, match="the index cannot be changed here"),
        writing(tmp_path / "none"),
    ):
        pass


def test_an_error_inside_writing_is_not_taken_for_one_of_the_lock(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mine"), writing(tmp_path):
        raise OSError("mine")
    assert names(tmp_path) == set()


def test_opening_while_a_writer_publishes_and_sweeps(tmp_path: Path) -> None:
    with writing(tmp_path):
        publish(tmp_path, state(tmp_path, 1))
    done = threading.Event()
    seen: set[int] = set()
    broken: list[int] = []

    def read() -> None:
        while not done.is_set():
            with reading(tmp_path) as held:
                seen.add(held.manifest.generation)
                if not is_whole(tmp_path, held.manifest):
                    broken.append(held.manifest.generation)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    with writing(tmp_path):
        for number in range(2, 40):
            publish(tmp_path, state(tmp_path, number))
            sweep(tmp_path)
        done.set()
        for reader in readers:
            reader.join()
        sweep(tmp_path)
    assert not broken
    assert len(seen) > 3
    assert names(tmp_path) == of(read_manifest(tmp_path))


def test_sweep_leaves_what_is_not_ours(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    keep = {
        "notes.txt",
        "shards/mine/notes.txt",
        "shards/s-0123456789abcdeg/vectors.npy",
        "deleted/d-01234567.npy.bak",
        "generations/README",
    }
    gone = {
        "shards/s-0123456789abcdef/vectors.npy",
        "shards/s-0123456789abcdef.replaced/ids.npy",
        "search/x-01234567/index.faiss",
        "deleted/d-01234567.npy",
        f".manifest.json.{'0' * 32}",
        f"generations/.7.json.{'0' * 32}",
        "generations/9.lock",
        "generations/8.json",
    }
    folder = tmp_path / "index"
    with_files = state(folder, 1)
    for name in keep | gone:
        new_file(folder / name, "1234")
    new_file(elsewhere / "s-0123456789abcdef" / "precious", "x")
    with writing(folder):
        present = publish(folder, with_files)
        # What a sweep that was stopped left: its locks and manifests are not counted.
        assert sweep(folder) == 4 * (len(gone) - 2)
        assert names(folder) == of(present) | keep | {"write.lock"}
        (folder / "search").rename(tmp_path / "search")
        (folder / "search").symlink_to(elsewhere)
        assert sweep(folder) == 0
    assert (elsewhere / "s-0123456789abcdef" / "precious").exists()


def test_reading_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with writing(tmp_path):
        manifest = publish(tmp_path, state(tmp_path, 1))

    def impossible(path: Path) -> int:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(generations, "shared", impossible)
        with reading(tmp_path) as held:
            assert held.manifest == manifest
    # Copied without the empty files.
    (tmp_path / "generations" / "1.lock").unlink()
    with reading(tmp_path) as held:
        assert held.manifest == manifest


def test_reading_gives_up_on_an_index_that_never_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writing(tmp_path):
        publish(tmp_path, state(tmp_path, 1))

    def busy(path: Path) -> int:
        raise BlockingIOError

    monkeypatch.setattr(generations, "shared", busy)
    monkeypatch.setattr(generations, "_PAUSE", 0)
    with pytest.raises(PassageIndexError, match="changes too fast"):
        reading(tmp_path)


def test_no_sweep_while_somebody_reads_what_is_no_longer_described(tmp_path: Path) -> None:
    with writing(tmp_path):
        first = publish(tmp_path, state(tmp_path, 1))
        with reading(tmp_path):
            publish(tmp_path, state(tmp_path, 2))
            (tmp_path / "generations" / "1.json").write_text("{}")
            assert sweep(tmp_path) == 0
            assert is_whole(tmp_path, first)
        assert sweep(tmp_path) > 0


def test_a_damaged_manifest_is_replaced_by_a_later_generation(tmp_path: Path) -> None:
    with writing(tmp_path):
        for number in (1, 2, 3):
            publish(tmp_path, state(tmp_path, number))
        (tmp_path / "manifest.json").write_text('{"format": "epic-retrieval passage index"}')
        with pytest.raises(PassageIndexError):
            sweep(tmp_path)
        assert publish(tmp_path, state(tmp_path, 4)).generation == 4
        sweep(tmp_path)
        assert names(tmp_path) == of(read_manifest(tmp_path)) | {"write.lock"}


def test_publishing_what_is_not_there(tmp_path: Path) -> None:
    with writing(tmp_path):
        former = publish(tmp_path, state(tmp_path, 1))
        broken = state(tmp_path, 2)
        ids = tmp_path / "shards" / broken.shards[0].name / "ids.npy"
        ids.write_text("")
        with pytest.raises(PassageIndexError, match=r"ids.npy has 0 bytes instead of 9"):
            publish(tmp_path, broken)
        ids.unlink()
        with pytest.raises(PassageIndexError, match=r"ids.npy is missing"):
            publish(tmp_path, broken)
    assert read_manifest(tmp_path) == former


class Killed(BaseException):
    """Stands for the end of the process: nothing may tidy up after it."""


def stopping(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> Callable[[], int]:
    """From the `at`-th step of `publish` that touches the disk on, nothing happens any more."""
    steps = 0

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **named: object) -> object:
            nonlocal steps
            steps += 1
            if steps > at:
                raise error
            return function(*arguments, **named)

        return step

    for target, name in (
        (generations, "sync"),
        (generations, "write_atomically"),
        (Path, "touch"),
        (Path, "replace"),
    ):
        monkeypatch.setattr(target, name, counted(getattr(target, name)))
    return lambda: steps


@pytest.mark.parametrize(
    "error", [Killed(), OSError(errno.ENOSPC, "No space left on device")], ids=["killed", "full"]
)
def test_stopped_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    stopped = 0
    for at in range(100):
        folder = tmp_path / str(at)
        former = state(folder, 1, 2)
        with writing(folder):
            former = publish(folder, former)
            following = state(folder, 2, 3, deleted=False)
            with monkeypatch.context() as patch:
                steps = stopping(patch, at, error)
                try:
                    publish(folder, following)
                except (Killed, OSError):
                    stopped += 1
            with reading(folder) as held:
                assert held.manifest.shards in (former.shards, following.shards)
                assert is_whole(folder, held.manifest)
                sweep(folder)
                assert is_whole(folder, held.manifest)
            # The next writer goes on as if nothing had happened, and clears up.
            last = publish(folder, state(folder, 4))
            sweep(folder)
            assert names(folder) == of(last) | {"write.lock"}
        if steps() <= at:
            break
    assert stopped == at > 8


def test_handles_are_closed(tmp_path: Path) -> None:
    handles = Path("/proc/self/fd")
    if not handles.is_dir():
        pytest.skip("open files are listed in /proc only")
    with writing(tmp_path):
        publish(tmp_path, state(tmp_path, 1))
    before = len(list(handles.iterdir()))
    for _ in range(5):
        with reading(tmp_path), writing(tmp_path):
            publish(tmp_path, state(tmp_path, 2))
            sweep(tmp_path)
    assert len(list(handles.iterdir())) == before
