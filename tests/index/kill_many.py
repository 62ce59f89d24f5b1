"""Kills writers of an index at random moments, and looks at what they leave.

    python -m tests.index.kill_many --kills 200 --seed 1

Each kill: a copy of an index, an operation in a process of its own, SIGKILL at a random one of its
steps (whenever it opens, makes, renames, links or removes a file, or encodes) or after a random
time. The index must be exactly what it was before or what the operation makes of it, also for a
reader that was open, and the same operation must then go through. Prints one line for each kill.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from epic_retrieval.errors import InputError
from epic_retrieval.index import Passage, PassageIndex, build_index, read_manifest, verify_index
from epic_retrieval.index._faiss import load_faiss
from epic_retrieval.index.writer import IndexWriter
from tests.index.living import check, check_open
from tests.index.samples import ENCODER, encode, names, passages

SHARD = 16
KINDS = ("flat", "IVF1,Flat")
EVENTS = {
    "open",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.truncate",
    "shutil.rmtree",
    "sqlite3.connect",
}
EXTRA = [Passage(f"e{n}", f"An extra passage {n}.", metadata={"n": -n}) for n in range(16)]
NEW = [Passage(f"n{n}", f"A new passage {n}.", metadata={"n": 100 + n}) for n in range(37)]
CHANGED = [Passage(f"d{n}", f"Another text {n}.", metadata={"n": n}) for n in range(10, 33)]
GONE = {"d1", "d20", "e3"}

Held = Mapping[str, Passage]
Encode = Callable[[list[str]], np.ndarray]


def without(held: Held, ids: set[str]) -> Held:
    return {key: passage for key, passage in held.items() if key not in ids}


def by_id(some: list[Passage]) -> dict[str, Passage]:
    return {passage.id: passage for passage in some}


@dataclass(frozen=True)
class Operation:
    """What a writer does, and what an index holds afterwards."""

    run: Callable[[IndexWriter, Encode], object]
    after: Callable[[Held], Held]


def cut(writer: IndexWriter, _: Encode) -> object:
    return writer.rebuild("flat", dimension=8)


OPERATIONS = {
    "add": Operation(
        lambda writer, encode: writer.add(NEW, encode, chunk_size=4),
        lambda held: {**held, **by_id(NEW)},
    ),
    "update": Operation(
        lambda writer, encode: writer.update([*CHANGED, *NEW[:5]], encode, chunk_size=4),
        lambda held: {**held, **by_id([*CHANGED, *NEW[:5]])},
    ),
    "delete": Operation(
        lambda writer, _: writer.delete(["d3", "d4", "e1"]),
        lambda held: without(held, {"d3", "d4", "e1"}),
    ),
    "delete_where": Operation(
        lambda writer, _: writer.delete_where({"n": {"$lt": 7}}),
        lambda held: {k: p for k, p in held.items() if int(str(p.metadata["n"])) >= 7},
    ),
    "compact": Operation(lambda writer, _: writer.compact(), dict),
    "rebuild": Operation(lambda writer, _: writer.rebuild("IVF1,SQ8"), dict),
    "cut": Operation(cut, dict),
}


class Killer:
    """Prepares indexes, runs operations on copies of them, kills and checks.

    Args:
        tmp: An empty folder.
        seed: Of all that is random.
    """

    def __init__(self, tmp: Path, seed: int) -> None:
        self.tmp = tmp
        self.random = random.Random(seed)  # noqa: S311 (no secrets)
        self.before: Held = without(by_id([*passages(45), *EXTRA]), GONE)
        for kind in KINDS:
            folder = tmp / kind
            build_index(passages(45), encode, folder, encoder=ENCODER, shard_size=SHARD, kind=kind)
            with IndexWriter(folder, shard_size=SHARD) as writer:
                # So many small shards that one more has them merged.
                for passage in EXTRA:
                    writer.add([passage], encode)
                writer.delete(GONE)
        self.lengths: dict[tuple[str, str], tuple[int, float]] = {}

    def length(self, kind: str, name: str) -> tuple[int, float]:
        """Steps and seconds of an operation when nobody kills it; measured once."""
        if (kind, name) not in self.lengths:
            self.lengths[kind, name] = self.measured(kind, name)
        return self.lengths[kind, name]

    def measured(self, kind: str, name: str) -> tuple[int, float]:
        work = self.copied(kind)
        begun = time.monotonic()
        assert self.wait(self.started(work, name, 0)) == 0
        seconds = time.monotonic() - begun
        self.checked(work, OPERATIONS[name].after(self.before))
        steps = int((work / "steps").read_text())
        shutil.rmtree(work)
        return steps, seconds

    def copied(self, kind: str) -> Path:
        work = self.tmp / "work"
        shutil.copytree(self.tmp / kind, work / "index")
        return work

    def kill(self) -> str:
        """One kill and what comes after it, in words."""
        kind, name = self.random.choice(KINDS), self.random.choice(list(OPERATIONS))
        steps, seconds = self.length(kind, name)
        work = self.copied(kind)
        folder = work / "index"
        generation = read_manifest(folder).generation
        with PassageIndex.open(folder) as reader:
            if self.random.random() < 0.75:
                step = self.random.randrange(1, steps + 1)
                when = f"step {step} of {steps}"
                process = self.started(work, name, step)
            else:
                pause = self.random.random() * seconds
                when = f"{1000 * pause:.0f} of {1000 * seconds:.0f} ms"
                process = self.started(work, name, 0)
                time.sleep(pause)
                os.kill(process, signal.SIGKILL)
            code = self.wait(process)
            assert code in (-signal.SIGKILL, 0), code
            made = read_manifest(folder).generation - generation
            assert made in (0, 1), made
            assert made or code, "it ended and did nothing"
            after = OPERATIONS[name].after(self.before)
            check(folder, after if made else self.before)
            check_open(reader, self.before)
            # The same again; an add that is done already says so.
            code = self.wait(self.started(work, name, 0))
            assert code == (2 if made and name == "add" else 0), code
            check_open(reader, self.before)
        self.checked(work, after)
        self.check_encoded(work, name)
        shutil.rmtree(work)
        state = "after" if made else "before"
        return f"{name} ({kind}) killed at {when}: as {state}"

    def checked(self, work: Path, expected: Held) -> None:
        folder = work / "index"
        check(folder, expected)
        with IndexWriter(folder, shard_size=SHARD) as writer:
            # Nobody reads it: nothing is left of former generations, or of what was stopped.
            manifest = writer.compact()
        check(folder, expected)
        assert names(folder) <= {"manifest.json", "shards", "search", "deleted", "generations"}
        # Empty folders may stay.
        assert set(verify_index(folder).leftovers) <= {"search", "deleted"}
        assert names(folder / "shards") == {shard.name for shard in manifest.shards}

    def check_encoded(self, work: Path, name: str) -> None:
        """Of a stopped add at most the shard in work is encoded again."""
        log = work / "log"
        seen = log.read_text().splitlines() if log.exists() else []
        wanted = {"add": NEW, "update": [*CHANGED, *NEW[:5]]}.get(name, [])
        assert set(seen) == {repr(passage.content) for passage in wanted}
        assert len(seen) <= len(wanted) + SHARD

    def started(self, work: Path, name: str, stop_at: int) -> int:
        """A process that does the operation, and kills itself at that step if it is not 0."""
        process = os.fork()
        if process:
            return process
        code = 1
        try:
            operate(work, OPERATIONS[name], stop_at)
            code = 0
        except InputError as error:
            code = 2 if "is in the index already" in str(error) else 1
            if code == 1:
                sys.stdout.write(f"{error}\n")
        except BaseException as error:
            sys.stdout.write(f"{error!r}\n")
            raise
        finally:
            sys.stdout.flush()
            os._exit(code)

    def wait(self, process: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def operate(work: Path, operation: Operation, stop_at: int) -> None:
    steps = 0

    def step(event: str = "encode", arguments: tuple[object, ...] = (str(work),)) -> None:
        nonlocal steps
        if event in EVENTS | {"encode"} and str(arguments[0]).startswith(str(work)):
            steps += 1
            if steps == stop_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def logged(texts: list[str]) -> np.ndarray:
        step()
        with (work / "log").open("a") as log:
            log.write("".join(f"{text!r}\n" for text in texts))
        return encode(texts)

    sys.addaudithook(step)
    with IndexWriter(work / "index", shard_size=SHARD, exact_rows=4) as writer:
        operation.run(writer, logged)
    (work / "steps").write_text(str(steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    load_faiss()
    # What a process wrote survives its death anyway.
    os.fsync = lambda fd: None  # noqa: ARG005 (its name)
    with tempfile.TemporaryDirectory() as tmp:
        os.environ["EPIC_CACHE_DIR"] = str(Path(tmp, "cache"))
        killer = Killer(Path(tmp), options.seed)
        for _ in range(options.kills):
            sys.stdout.write(f"{killer.kill()}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
