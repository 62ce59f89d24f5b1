"""The second stage of a build: rows get the FAISS structure that suits them, measured.

Knows nothing of passages, nor of where an index lies.
"""

import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from epic_retrieval.errors import InputError
from epic_retrieval.index._swap import size_of
from epic_retrieval.index.ann import Ann, train_and_add
from epic_retrieval.index.choice import FLAT, KINDS, Choice, choose
from epic_retrieval.index.encode import Progress, Stage
from epic_retrieval.index.exact import Allowed
from epic_retrieval.index.manifest import FileInfo, SearchInfo, ShardInfo
from epic_retrieval.index.rows import VectorRows
from epic_retrieval.index.structure import make
from epic_retrieval.index.tune import Trial, tune
from epic_retrieval.storage import digest_of

Report = Callable[[Progress], None]

_STAGES: dict[str, Stage] = {"train": "training", "add": "adding", "merge": "merging"}


@dataclass(frozen=True)
class Searchable:
    """A finished structure: what a manifest says of it, and its file."""

    info: SearchInfo
    file: Path


class Reporter:
    """Turns what stages say into `Progress`; a stage begins when the one before it last spoke."""

    def __init__(self, progress: Report | None, shards: int) -> None:
        self._progress = progress
        self._shards = shards
        self._stage: Stage | None = None
        self._since = self._last = time.monotonic()

    def __call__(
        self, stage: Stage, done: int, total: int | None, *, written: int = 0, note: str = ""
    ) -> None:
        """Report one step of a stage."""
        if stage != self._stage:
            self._stage, self._since = stage, self._last
        self._last = time.monotonic()
        if self._progress is None:
            return
        self._progress(
            Progress(
                stage=stage,
                passages=done,
                total=total,
                shards=self._shards,
                bytes_written=written,
                seconds=self._last - self._since,
                note=note,
            )
        )


def check_kind(kind: str, rows: int | None, dimension: int, memory: int) -> None:
    """Find out before hours are spent on encoding whether such a structure can be made.

    Args:
        kind: As for `choose`.
        rows: How many there will be; None if it is not known.
        dimension: Width of the vectors.
        memory: Bytes that making it may take.

    Raises:
        InputError: It cannot be made.
    """
    if rows:
        choose(kind, rows, dimension, memory)
    elif kind not in KINDS and kind.lower() != FLAT.lower():
        make(kind, dimension)


def choice_text(choice: Choice) -> str:
    """What was chosen and why, for people."""
    if choice.factory == FLAT:
        return f"{choice.why}."
    each = choice.bytes_per_vector
    return f"{choice.why}. {choice.factory}: about {each:,.0f} bytes a vector besides the vector."


def make_searchable(
    rows: VectorRows,
    choice: Choice,
    folder: Path,
    *,
    memory: int,
    target: float,
    report: Reporter,
    allowed: Allowed | None = None,
) -> Searchable:
    """Make a structure over all rows and find its parameters; a run that was stopped goes on.

    Args:
        rows: The vectors.
        choice: Not "Flat".
        folder: For this structure over these rows alone.
        memory: Bytes to take.
        target: Wished recall.
        report: Is told of every step.
        allowed: (len(rows),) bool: the rows that are alive, on which recall is measured.

    Raises:
        InputError: It cannot be made of these rows, or not in so much memory.
        OSError: Writing failed; what is done is kept.
    """

    def advance(stage: str, done: int, total: int) -> None:
        report(_STAGES[stage], done, total, written=size_of(folder))

    path = train_and_add(rows, choice.factory, memory=memory, folder=folder, progress=advance)
    ann = Ann.read(path, choice.factory, len(rows), rows.dimension, mmap=True)
    trials: list[Trial] = []

    def tried(trial: Trial) -> None:
        trials.append(trial)
        report("measuring", len(trials), None)

    report("measuring", 0, None)
    tuned = tune(rows, ann, target=target, allowed=allowed, progress=tried)
    report("measuring", len(trials), len(trials), note=str(tuned))
    info = SearchInfo(
        name=f"x-{secrets.token_hex(8)}",
        factory=choice.factory,
        rows=len(rows),
        file=FileInfo.of(path),
        parameters=tuned.parameters,
        recall=tuned.recall,
        recall_k=tuned.k,
        target=target,
    )
    return Searchable(info, path)


def folder_for(parent: Path, choice: Choice, shards: Sequence[ShardInfo]) -> Path:
    """The folder of this structure over these very shards; those of others are removed."""
    name = digest_of([choice.factory, [shard.name for shard in shards]])[:16]
    if parent.is_dir():
        for path in parent.iterdir():
            if path.name != name:
                shutil.rmtree(path, ignore_errors=True)
    return parent / name


def check_target(target: float) -> None:
    """A wished recall.

    Raises:
        InputError: It is none.
    """
    if not 0 < target <= 1:
        raise InputError(
            f"target_recall is {target!r}: expected more than 0 and at most 1, such as 0.95."
        )
