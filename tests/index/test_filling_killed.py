"""Real processes that make structures: killed, short of memory, out of disk."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from epic_retrieval.index.ann import Ann, train_and_add
from tests.index.clustered import SmallBlocks, clustered
from tests.index.samples import ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and limits")

DIMENSION = 16
# Plain lists in small pieces; structures that are held in memory as a whole.
SMALL, LARGE = 1 << 20, 8 << 20

FILLER = """
import sys, time
from pathlib import Path
import numpy as np
from epic_retrieval.index.ann import train_and_add
from tests.index.clustered import SmallBlocks

folder, factory, memory, stop = sys.argv[1:]
rows = SmallBlocks(np.load(Path(folder).parent / "vectors.npy", mmap_mode="r"))
seen = 0

def progress(stage, done, total):
    global seen
    seen += 1
    if seen == int(stop):
        print(stage, done, flush=True)
        time.sleep(600)

train_and_add(rows, factory, memory=int(memory), folder=Path(folder), progress=progress,
              save_every=0.0)
"""


def stopped(folder: Path, factory: str, memory: int, stop: int) -> str:
    """What a process said as its `stop`th word of progress, at which it was killed."""
    command = [sys.executable, "-c", FILLER, str(folder), factory, str(memory), str(stop)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            return process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize(
    ("factory", "memory", "stop"),
    [("IVF16,SQ8", SMALL, 14), ("IVF16,PQ8x4fs", LARGE, 5), ("HNSW8_SQ8", LARGE, 5)],
)
def test_a_killed_run_goes_on(tmp_path: Path, factory: str, memory: int, stop: int) -> None:
    vectors = clustered(11_000, DIMENSION)
    np.save(tmp_path / "vectors.npy", vectors)
    rows = SmallBlocks(vectors)
    whole = train_and_add(rows, factory, memory=memory, folder=tmp_path / "whole")
    folder = tmp_path / "killed"
    assert stopped(folder, factory, memory, 1) == "train 0"
    assert stopped(folder, factory, memory, stop).startswith("add")
    words: list[tuple[str, int]] = []
    path = train_and_add(
        rows,
        factory,
        memory=memory,
        folder=folder,
        progress=lambda stage, done, _: words.append((stage, done)),
    )
    # Nothing is trained again, and what was saved is not added again.
    assert words[0][0] == "add"
    assert words[0][1] > 3000
    assert path.read_bytes() == whole.read_bytes()
    assert {file.name for file in folder.iterdir()} == {"index.faiss", "plan.json"}


WATCHED = """
import sys, threading, time
from pathlib import Path
import numpy as np
from epic_retrieval.index._faiss import load_faiss
from epic_retrieval.index.ann import train_and_add
from epic_retrieval.index.rows import ArrayRows

folder, factory, memory = sys.argv[1:]
rows = ArrayRows(np.load(Path(folder).parent / "vectors.npy", mmap_mode="r"))
load_faiss().knn(np.ones((1, 8), "f4"), np.ones((9, 8), "f4"), 3)

def held():
    # Pages of mapped files are not counted: the system takes them back when it wants to.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

before = most = held()
stop = False

def watch():
    global most
    while not stop:
        most = max(most, held())
        time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
train_and_add(rows, factory, memory=int(memory), folder=Path(folder))
stop = True
thread.join()
print(most - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("factory", "memory"), [("IVF32,Flat", 8 << 20), ("SQ8", 10 << 20)])
def test_memory_is_kept_to(tmp_path: Path, factory: str, memory: int) -> None:
    np.save(tmp_path / "vectors.npy", clustered(100_000, 64))
    command = [sys.executable, "-c", WATCHED, str(tmp_path / "made"), factory, str(memory)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    # A little is for the interpreter and the heap.
    assert int(done.stdout) < memory + (4 << 20)
    size = (tmp_path / "made" / "index.faiss").stat().st_size
    assert size > (3 if "IVF" in factory else 0.5) * memory


LIMITED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from epic_retrieval.index.ann import train_and_add
from epic_retrieval.index.rows import ArrayRows

folder, factory, memory = sys.argv[1:]
rows = ArrayRows(np.load(Path(folder).parent / "vectors.npy"))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, 250_000))
try:
    train_and_add(rows, factory, memory=int(memory), folder=Path(folder))
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.parametrize("factory", ["IVF16,SQ8", "SQ8"])
def test_a_full_disk_is_an_error_and_leaves_nothing_half(tmp_path: Path, factory: str) -> None:
    vectors = clustered(20_000, DIMENSION)
    np.save(tmp_path / "vectors.npy", vectors)
    folder = tmp_path / "made"
    # No file may grow beyond a size: what stands in for a disk that is full.
    command = [sys.executable, "-c", LIMITED, str(folder), factory, str(LARGE)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "File too large\n"
    assert {path.name for path in folder.iterdir()} == {"plan.json", "trained.faiss"}
    path = train_and_add(SmallBlocks(vectors), factory, memory=LARGE, folder=folder)
    assert Ann.read(path, factory, 20_000, DIMENSION, mmap=True).rows == 20_000
