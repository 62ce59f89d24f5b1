"""Real processes, killed in the middle or racing each other."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index import read_manifest
from tests.index.samples import ROOT, build, names

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills processes the POSIX way")

# Forks a process for each build, and has it killed at its nth step: whenever it opens, makes,
# renames, links or removes a file below the folder, or encodes. Prints one line for each kill.
DRIVER = """
import os, random, shutil, signal, sys
from pathlib import Path
from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index import build_index, read_manifest
from epic_retrieval.index._faiss import load_faiss
from tests.index.samples import ENCODER, encode, passages
from tests.index.test_build import check

load_faiss()
os.fsync = lambda handle: None  # what a process wrote survives its death anyway
tmp, mode, kind, kills = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
COUNT, SHARD = 45, 10
FILES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "sqlite3.connect"}

def build(folder, count, stop_at, overwrite, kind=kind):
    steps = 0

    def step(event="encode", arguments=(str(folder),)):
        nonlocal steps
        if event in FILES | {"encode"} and str(arguments[0]).startswith(str(folder)):
            steps += 1
            if steps == stop_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def logged(texts):
        step()
        with open(f"{folder}.log", "a") as log:
            log.write("".join(f"{text!r}\\n" for text in texts))
        return encode(texts)

    sys.addaudithook(step)
    build_index(passages(count), logged, folder / "index", encoder=ENCODER, shard_size=SHARD,
                chunk_size=4, overwrite=overwrite, kind=kind)
    Path(f"{folder}.steps").write_text(str(steps))

def forked(*arguments):
    child = os.fork()
    if not child:
        code = 1
        try:
            build(*arguments)
            code = 0
        except InputError as error:
            code = 2 if "already holds an index" in str(error) else 1
            if code == 1: print(error, flush=True)
        except BaseException as error:
            print(repr(error), flush=True)
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def prepare(name):
    folder = tmp / name
    folder.mkdir()
    if mode == "overwrite":
        assert forked(folder, 25, 0, False, "flat") == 0
        Path(f"{folder}.log").unlink()
    return folder

def seen(folder):
    log = Path(f"{folder}.log")
    return log.read_text().splitlines() if log.exists() else []

whole = prepare("whole")
assert forked(whole, COUNT, 0, mode == "overwrite") == 0
steps = int(Path(f"{whole}.steps").read_text())
expected = seen(whole)
assert len(expected) == (COUNT if mode == "fresh" else COUNT - 20)
rng = random.Random(0)
points = sorted(rng.sample(range(1, steps + 1), min(kills, steps)))
for point in points:
    folder = prepare(f"at-{point}")
    out = folder / "index"
    code = forked(folder, COUNT, point, mode == "overwrite")
    assert code in (-signal.SIGKILL, 0), (point, code)
    before = len(seen(folder))
    # What is there is whole: nothing, the former index or the new one.
    state = "none"
    if out.exists():
        count = read_manifest(out).count
        state = "new" if count == COUNT else "former"
        assert count == COUNT or (mode, count) == ("overwrite", 25), (point, count)
    # Killed once more, at random, and then not.
    again = rng.randrange(1, steps)
    assert forked(folder, COUNT, again, mode == "overwrite") in (-signal.SIGKILL, 0, 2)
    code = forked(folder, COUNT, 0, mode == "overwrite")
    assert code == 0 or (code == 2 and mode == "fresh"), (point, code)
    assert check(out, passages(COUNT)).kind.lower() == kind.lower()
    left = {path.name for path in folder.iterdir()}
    assert left == {"index"}, (point, left)
    # Nothing is lost, and at most the shard in work is encoded again, for each of the two kills.
    log = seen(folder)
    assert set(log) == set(expected), point
    assert len(log) <= len(expected) + 2 * SHARD, (point, len(log))
    print(f"killed at step {point} of {steps}: {state}, {before}, {len(log)}", flush=True)
    shutil.rmtree(folder)
"""


@pytest.mark.parametrize(
    ("mode", "kind", "kills"),
    [("fresh", "flat", 5), ("overwrite", "IVF1,SQ8", 5), ("fresh", "HNSW4", 3)],
)
def test_killed_at_any_step(tmp_path: Path, mode: str, kind: str, kills: int) -> None:
    command = [sys.executable, "-c", DRIVER, str(tmp_path), mode, kind, str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    assert len(said) == kills
    assert all(line.startswith("killed at step") for line in said), done.stdout


# Says "at <n>" and stands still once <n> passages are done.
BUILDER = """
import sys, time
from pathlib import Path
from epic_retrieval.index import build_index
from tests.index.samples import ENCODER, encode, passages

out, stop = sys.argv[1:]

def progress(done):
    if done.stage == "encoding" and str(done.passages) == stop:
        print("at", stop, flush=True)
        time.sleep(600)

build_index(passages(40), encode, out, encoder=ENCODER, chunk_size=10, progress=progress,
            overwrite=True, shard_size=20)
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


def test_second_builder_is_turned_away(tmp_path: Path) -> None:
    out = tmp_path / "index"
    with builder(out, "30") as first:
        with pytest.raises(
            PassageIndexError, match=rf"built by another process \(process {first.pid}"
        ):
            build(out)
        build(tmp_path / "index2")
        assert names(tmp_path) == {".index.building", ".index.lock", "index2"}
    build(out, overwrite=True)
    assert names(tmp_path) == {"index", "index2"}


def test_two_builders_at_once(tmp_path: Path) -> None:
    out = tmp_path / "index"
    command = [sys.executable, "-c", BUILDER, str(out), "never"]
    running = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)
    ]
    errors = [process.communicate()[1] for process in running]
    assert read_manifest(out).count == 40
    assert names(tmp_path) == {"index"}
    for process, error in zip(running, errors, strict=True):
        assert process.returncode == 0 or "by another process" in error, error
