"""The first stage of a build: passages become shards.

A shard is named by what it holds and by what its vectors depend on, so a run that was stopped, in
whatever way, goes on where it was, also after the corpus changed. Knows nothing of FAISS; encoding
is handed in as a function.
"""

import time
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from epic_retrieval.errors import InputError
from epic_retrieval.index._batches import Batch, EncodingSettings, batches
from epic_retrieval.index._engine import check_ids, explained, find_shard, read_ahead, shards_of
from epic_retrieval.index._shard_folder import (
    Encode,
    ShardFolder,
    ShardNotWrittenError,
    finished_shards,
)
from epic_retrieval.index._source import mark_complete, mark_incomplete
from epic_retrieval.index._words import counted
from epic_retrieval.index.manifest import SHARDS, ShardInfo
from epic_retrieval.index.passage import Passage

Stage: TypeAlias = Literal["encoding", "choosing", "training", "adding", "merging", "measuring"]


@dataclass(frozen=True)
class Progress:
    """How far a build is.

    Args:
        stage: What is being done; an index that is searched exactly is encoded and no more.
        passages: Done in this stage, with those that needed nothing. While measuring, trials.
        total: Of all passages; None if it is not known. Training takes a sample.
        reused: Passages that were encoded before and not again.
        shards: That are finished.
        bytes_written: In this stage.
        seconds: Spent in this stage.
        note: For people: which structure was chosen and why; what was measured.
    """

    stage: Stage
    passages: int
    total: int | None
    reused: int = 0
    shards: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
    note: str = ""

    @property
    def per_second(self) -> float:
        """Passages per second, without those that needed nothing."""
        return (self.passages - self.reused) / self.seconds if self.seconds > 0 else 0.0

    @property
    def remaining(self) -> float | None:
        """Seconds until the stage ends, at the present speed; None if that cannot be told."""
        if self.total is None or not self.per_second:
            return None
        return max(self.total - self.passages, 0) / self.per_second


def encode_shards(
    passages: Iterable[Passage],
    encode: Encode,
    folder: Path,
    *,
    settings: EncodingSettings,
    chunk_size: int = 1024,
    reuse: Sequence[Path] = (),
    total: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[ShardInfo]:
    """Encode passages into finished shards under `folder`, or find them there.

    Call it again with the same folder after it was stopped: the passages are read again, and only
    the shards that are not finished are encoded. In memory: the passages of two shards as text (a
    few hundred megabytes at most), and the vectors of two chunks.

    Args:
        passages: Any number, streamed, by a thread that reads ahead; none at all gives no shards.
        encode: From the `content` of up to `chunk_size` passages to their vectors, an array of
            shape (n, dimension of the encoder), float32, each row of length 1.
        folder: Is made if need be; one process at a time.
        settings: Of the vectors; vectors are cut to `settings.dimension` and normalised again.
        chunk_size: Passages for each call of `encode`.
        reuse: Folders of other indexes, from which equal shards are taken, as links where the file
            system has them.
        total: Number of passages if it is known and `passages` has no length; for `progress`.
        progress: Called after each chunk, and for each shard that is reused.

    Returns:
        The shards in the order of their passages.

    Raises:
        InputError: A repeated id, or vectors that are not as described, or `folder` was begun with
            other settings.
        PassageIndexError: Writing failed (a full disk); finished shards are kept.
    """
    if chunk_size < 1:
        raise InputError(f"chunk_size is {chunk_size}: expected at least 1.")
    if total is None and isinstance(passages, Sized):
        total = len(passages)
    meter = _Meter(total, progress)
    shards: list[ShardInfo] = []
    batch: Batch | None = None
    try:
        kept = ShardFolder(folder, settings)
        kept.remove_unfinished()
        mark_incomplete(folder)
        known = [(place / SHARDS, shards_of(place)) for place in reuse]
        for batch in read_ahead(batches(passages, settings)):
            info = find_shard(batch.name, kept, known)
            if info is not None:
                meter.reused(info)
            else:
                info = kept.write(batch, encode, chunk_size, meter.writing)
                meter.wrote(info)
            shards.append(info)
            # Whenever their number has doubled: all these checks cost as much as two.
            if len(shards) & (len(shards) - 1) == 0:
                check_ids(folder, shards)
    except KeyboardInterrupt as error:
        if not finished_shards(folder):
            error.add_note(
                "Nothing is kept yet: a shard is kept when it is full, which is at "
                f"{counted(settings.shard_size, 'passage')} here."
            )
        raise
    except ShardNotWrittenError as error:
        raise explained(error, folder, shards, batch, settings, total) from error
    check_ids(folder, shards)
    if shards:
        mark_complete(folder, shards)
    return shards


class _Meter:
    """Counts what is done, and the time that was spent on what was not done before."""

    def __init__(self, total: int | None, progress: Callable[[Progress], None] | None) -> None:
        self._total = total
        self._progress = progress
        self._passages = self._reused = self._shards = self._bytes = self._most = 0
        self._seconds = 0.0
        self._since = time.monotonic()

    def reused(self, info: ShardInfo) -> None:
        self._reused += info.rows
        self._finish(info)

    def writing(self, rows: int, size: int) -> None:
        if self._progress is not None:
            self._progress(self._now(rows, size, time.monotonic() - self._since))

    def wrote(self, info: ShardInfo) -> None:
        self._bytes += sum(file.bytes for file in info.files.values())
        self._seconds += time.monotonic() - self._since
        self._finish(info)

    def _finish(self, info: ShardInfo) -> None:
        self._since = time.monotonic()
        self._passages += info.rows
        self._shards += 1
        if self._progress is not None:
            self._progress(self._now(0, 0, 0.0))

    def _now(self, rows: int, size: int, seconds: float) -> Progress:
        # A shard shrinks when it is finished; what was written was written.
        self._most = max(self._most, self._bytes + size)
        return Progress(
            stage="encoding",
            passages=self._passages + rows,
            total=self._total,
            reused=self._reused,
            shards=self._shards,
            bytes_written=self._most,
            seconds=self._seconds + seconds,
        )
