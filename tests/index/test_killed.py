"""Real processes, killed in the middle or racing each other."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index import PassageIndex, read_manifest, verify_index
from tests.index.samples import ROOT, build, names

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills processes the POSIX way")

# Says "at <n>" and stands still once <n> passages are done, or at the given call of os.rename.
BUILDER = """
import pathlib, sys, time
from epic_retrieval.index import build_index
from tests.index.samples import ENCODER, encode, passages

out, stop = sys.argv[1:]

def stand(place):
    if place == stop:
        print("at", place, flush=True)
        time.sleep(600)

def progress(done):
    stand(str(done))

rename = pathlib.Path.rename

def slow_rename(self, target):
    stand("before " + ("aside" if "replaced" in str(target) else "swap"))
    return rename(self, target)

pathlib.Path.rename = slow_rename
build_index(passages(40), encode, out, encoder=ENCODER, chunk_size=10, progress=progress,
            overwrite=True)
"""


@contextmanager
def builder(out: Path, stop: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", BUILDER, str(out), stop]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"at {stop}\n"
            yield process
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize("stop", ["20", "before swap"])
def test_killed_builder_leaves_no_index(tmp_path: Path, stop: str) -> None:
    out = tmp_path / "index"
    with builder(out, stop):
        pass
    assert any(".building-" in name for name in names(tmp_path))
    with pytest.raises(PassageIndexError, match="no such folder"):
        PassageIndex.open(out)
    build(out)
    assert verify_index(out).ok
    assert names(tmp_path) == {"index"}


@pytest.mark.parametrize("stop", ["20", "before aside"])
def test_killed_overwrite_keeps_the_old_index(tmp_path: Path, stop: str) -> None:
    out = tmp_path / "index"
    build(out, 5)
    with builder(out, stop):
        assert verify_index(out).ok
    assert read_manifest(out).count == 5
    assert verify_index(out).ok
    build(out, 6, overwrite=True)
    assert read_manifest(out).count == 6
    assert names(tmp_path) == {"index"}


def test_killed_between_the_two_renames(tmp_path: Path) -> None:
    out = tmp_path / "index"
    build(out, 5)
    with builder(out, "before swap"):
        pass
    with pytest.raises(PassageIndexError, match="left the former index as"):
        PassageIndex.open(out)
    # The next builder puts the former index back before it does anything else.
    with builder(out, "20"):
        assert read_manifest(out).count == 5
        assert verify_index(out).ok


def test_second_builder_is_turned_away(tmp_path: Path) -> None:
    out = tmp_path / "index"
    with builder(out, "20") as first:
        with pytest.raises(
            PassageIndexError, match=rf"built by another process \(process {first.pid}"
        ):
            build(out)
        build(tmp_path / "index2")
        assert any(name.startswith(".index.building-") for name in names(tmp_path))
    build(out)
    assert names(tmp_path) == {"index", "index2"}


def test_folders_of_other_names_are_left_alone(tmp_path: Path) -> None:
    keep = [".index.building-mine", ".index2.building-01234567", "index.building-01234567"]
    for name in keep:
        (tmp_path / name).mkdir()
    (tmp_path / ".index.building-01234567").mkdir()
    build(tmp_path / "index")
    assert names(tmp_path) == {"index", *keep}


def test_two_builders_at_once(tmp_path: Path) -> None:
    out = tmp_path / "index"
    command = [sys.executable, "-c", BUILDER, str(out), "never"]
    running = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)
    ]
    errors = [process.communicate()[1] for process in running]
    assert verify_index(out).ok
    assert names(tmp_path) == {"index"}
    for process, error in zip(running, errors, strict=True):
        assert process.returncode == 0 or "is being built by another process" in error, error
