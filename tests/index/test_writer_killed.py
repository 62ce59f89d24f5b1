"""Writers in processes of their own: killed, racing each other, or out of room."""

import subprocess
import sys
from pathlib import Path

import pytest

from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index import read_manifest
from epic_retrieval.index.writer import IndexWriter
from tests.index.living import check
from tests.index.samples import ROOT, build, passages

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills processes the POSIX way")


def test_killed_at_random_moments() -> None:
    # By hand with 200 kills and other seeds, see there.
    command = [sys.executable, "-m", "tests.index.kill_many", "--kills", "12", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 12
    assert all("killed at" in line for line in said), done.stdout


# Says "encoding" and stands still.
WRITER = """
import sys, time
from epic_retrieval.index.writer import IndexWriter
from tests.index.samples import Passage

def encode(texts):
    print("encoding", flush=True)
    time.sleep(600)

with IndexWriter(sys.argv[1]) as writer:
    writer.add([Passage("new", "text")], encode)
"""


def test_a_second_writer_is_turned_away_until_the_first_is_gone(tmp_path: Path) -> None:
    out = tmp_path / "index"
    build(out)
    command = [sys.executable, "-c", WRITER, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "encoding\n"
            with (
                pytest.raises(
                    PassageIndexError, match=rf"changed by another process \(process {first.pid} "
                ),
                IndexWriter(out),
            ):
                pass
            check(out, {p.id: p for p in passages(40)})
        finally:
            first.kill()
    with IndexWriter(out) as writer:
        assert writer.delete(["d1"]) == 1
    assert read_manifest(out).count == 39


# Every operation with files that may not become larger than so, then without a limit.
FULL = """
import os, resource, shutil, sys
from pathlib import Path
from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index import read_manifest
from epic_retrieval.index.writer import IndexWriter
from tests.index.kill_many import OPERATIONS, SHARD, Killer
from tests.index.living import check
from tests.index.samples import encode

os.fsync = lambda fd: None
killer = Killer(Path(sys.argv[1]), 0)
for name, operation in OPERATIONS.items():
    work = killer.copied("IVF1,Flat")
    folder = work / "index"
    before = (folder / "manifest.json").read_bytes()
    for limit in (100, 1500, 6000, 20000):
        with IndexWriter(folder, shard_size=SHARD, exact_rows=4) as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                operation.run(writer, encode)
            except PassageIndexError as error:
                assert "too large" in str(error) or "disk" in str(error), error
                assert "same command again" in str(error), error
                print(name, "stopped at", limit)
            else:
                break
            finally:
                unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert (folder / "manifest.json").read_bytes() == before
        check(folder, killer.before)
    if (folder / "manifest.json").read_bytes() == before:
        with IndexWriter(folder, shard_size=SHARD, exact_rows=4) as writer:
            operation.run(writer, encode)
    killer.checked(work, operation.after(killer.before))
    shutil.rmtree(work)
"""


def test_out_of_room(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # Some at the manifest, some already at the first file.
    stopped = {line.split()[0] for line in done.stdout.splitlines()}
    assert len(stopped) == 7, done.stdout
