"""The first stage of a build on a Ray cluster: passages become shards, made by many workers.

The shards are those that `encode_shards` makes, by name and order, and by every byte where the
encoder gives the same vectors on every machine. Knows nothing of FAISS or models.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import closing
from itertools import chain
from pathlib import Path

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._batches import Batch, EncodingSettings, batches
from epic_retrieval.index._engine import check_ids, explained, find_shard, read_ahead, shards_of
from epic_retrieval.index._mapped import HEADER_BYTES
from epic_retrieval.index._ray import RayOptions, cluster, load_ray
from epic_retrieval.index._ray_pool import Job, Pool
from epic_retrieval.index._shard_folder import Encode, ShardFolder, ShardNotWrittenError
from epic_retrieval.index._source import mark_complete, mark_incomplete
from epic_retrieval.index._swap import size_of
from epic_retrieval.index._twins import Duplicate
from epic_retrieval.index.encode import Progress
from epic_retrieval.index.manifest import SHARDS, VECTORS, ShardInfo
from epic_retrieval.index.passage import Passage

__all__ = ["RayOptions", "encode_shards_ray"]

# Network file systems may show a file to other machines some time after it was written.
_PATIENCE = 60.0  # seconds


def encode_shards_ray(
    passages: Iterable[Passage],
    make_encode: Callable[[], Encode],
    folder: Path,
    *,
    settings: EncodingSettings,
    options: RayOptions | None = None,
    chunk_size: int = 1024,
    reuse: Sequence[Path] = (),
    total: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[ShardInfo]:
    """Encode passages into finished shards under `folder`, or find them there.

    Passages are read here, as with `encode_shards`, and go to the workers shard by shard, never
    faster than those encode. Workers write into the folder themselves. A worker that dies is
    replaced, and its shard encoded again. Run it again after it was stopped, in either way: only
    what is not finished is encoded.

    Args:
        passages: Any number, streamed.
        make_encode: Called once in each worker; returns what `encode_shards` takes. Is sent there,
            so it should hold names and numbers, not an encoder. The workers' Python must have what
            it needs.
        folder: As for `encode_shards`, and at the same path on all machines of the cluster.
        settings: Of the vectors.
        options: How many workers, with how many cores and GPUs; and which cluster. None is one
            worker for each core.
        chunk_size: Passages for each call of the encoder.
        reuse: Folders of other indexes, from which equal shards are taken.
        total: Number of passages if it is known and `passages` has no length; for `progress`.
        progress: Called about once a second.

    Returns:
        The shards in the order of their passages.

    Raises:
        InputError: As `encode_shards`; or Ray cannot be reached, or has no room for a worker.
        PassageIndexError: Writing failed, or workers died again and again; finished shards are
            kept.
        MissingExtraError: Ray is not installed.
        Exception: Whatever an encoder raised.
    """
    load_ray()
    if chunk_size < 1:
        raise InputError(f"chunk_size is {chunk_size}: expected at least 1.")
    if total is None and isinstance(passages, Sized):
        total = len(passages)
    # A worker has its own working directory.
    folder = folder.resolve()
    options = RayOptions() if options is None else options
    meter = _Meter(folder, settings, total, progress)
    shards = _Shards(folder)
    try:
        kept = ShardFolder(folder, settings)
        kept.remove_unfinished()
        mark_incomplete(folder)
        todo = _unfinished(passages, kept, reuse, shards, meter)
        first = next(todo, None)
        if first is not None:
            # In an iterator of its own, which lets go of it.
            todo = chain(iter([first]), todo)
            del first
            arguments = (make_encode, folder, settings, chunk_size)
            with cluster(options.address), closing(Pool(options, arguments)) as pool:
                meter.start()
                jobs = (
                    Job(number, batch.name, batch.start, len(batch.passages), pool.keep(batch))
                    for number, batch in todo
                )
                with closing(pool.run(jobs, lambda: meter.tell(pool.working))) as results:
                    for job, info in results:
                        _check_visible(kept, info)
                        shards.add(job.number, info)
                        meter.wrote(info)
        found = shards.finish()
        if found:
            mark_complete(folder, found)
    except ShardNotWrittenError as error:
        raise explained(error, folder, shards.finished, None, settings, total) from error
    return found


def _unfinished(
    passages: Iterable[Passage],
    kept: ShardFolder,
    reuse: Sequence[Path],
    shards: "_Shards",
    meter: "_Meter",
) -> Iterator[tuple[int, Batch]]:
    """(number, batch) of shards that must be encoded; the others go to `shards`."""
    known = [(place / SHARDS, shards_of(place)) for place in reuse]
    starts: dict[str, int] = {}
    for number, batch in enumerate(read_ahead(batches(passages, kept.settings))):
        first = starts.setdefault(batch.name, batch.start)
        if first != batch.start:
            # Two workers must not write to the same place.
            raise InputError(str(Duplicate(batch.passages[0].id, first, batch.start)))
        info = find_shard(batch.name, kept, known)
        if info is None:
            yield number, batch
        else:
            shards.add(number, info)
            meter.reused(info)


def _check_visible(kept: ShardFolder, info: ShardInfo) -> None:
    end = time.monotonic() + _PATIENCE
    while kept.note(info.name) != info:
        if time.monotonic() > end:
            raise PassageIndexError(
                f"{kept.folder}: a worker finished the shard {info.name}, but it is not to be seen "
                "here. Choose a folder on a file system that all machines of the cluster share, "
                "at the same path."
            )
        time.sleep(0.1)


class _Shards:
    """Finished shards, which come in any order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[int, ShardInfo] = {}
        self._ready = 0
        self._checked = 0

    @property
    def finished(self) -> list[ShardInfo]:
        return [self._found[number] for number in sorted(self._found)]

    def add(self, number: int, info: ShardInfo) -> None:
        self._found[number] = info
        while self._ready in self._found:
            self._ready += 1
        # Whenever their number has doubled: all these checks cost as much as two.
        if self._ready >= max(2 * self._checked, 1):
            self._check()

    def finish(self) -> list[ShardInfo]:
        """All of them, in order."""
        self._check()
        return self.finished

    def _check(self) -> None:
        if self._ready > self._checked:
            check_ids(self._folder, self.finished[: self._ready])
            self._checked = self._ready


class _Meter:
    """Counts what is done; what is being done shows in the folder."""

    def __init__(
        self,
        folder: Path,
        settings: EncodingSettings,
        total: int | None,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._places = folder / SHARDS
        self._row = settings.dimension * (4 if settings.dtype == "float32" else 2)
        self._total = total
        self._progress = progress
        self._passages = self._reused = self._shards = self._bytes = 0
        # A shard that is encoded again, or shrinks when it is finished, takes nothing back.
        self._most_rows = self._most_bytes = 0
        self._since: float | None = None

    def start(self) -> None:
        self._since = time.monotonic()

    def reused(self, info: ShardInfo) -> None:
        self._reused += info.rows
        self._passages += info.rows
        self._shards += 1
        self.tell([])

    def wrote(self, info: ShardInfo) -> None:
        self._passages += info.rows
        self._shards += 1
        self._bytes += sum(file.bytes for file in info.files.values())
        self.tell([])

    def tell(self, working: Sequence[Job]) -> None:
        if self._progress is None:
            return
        rows, size = self._passages, self._bytes
        for job in working:
            try:
                written = (self._places / job.name / VECTORS).stat().st_size - HEADER_BYTES
                size += size_of(self._places / job.name)
            except FileNotFoundError:
                continue
            rows += min(max(written // self._row, 0), job.rows)
        self._most_rows, self._most_bytes = max(self._most_rows, rows), max(self._most_bytes, size)
        self._progress(
            Progress(
                stage="encoding",
                passages=self._most_rows,
                total=self._total,
                reused=self._reused,
                shards=self._shards,
                bytes_written=self._most_bytes,
                seconds=0.0 if self._since is None else time.monotonic() - self._since,
            )
        )
