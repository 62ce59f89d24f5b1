"""Workers of a Ray cluster that encode and write shards; one that dies is replaced.

Not Ray Data: its blocks are not ours, so shards would have other names than those of one machine;
and it reads a corpus in its own tasks or all at once, not from an iterator as it goes. A worker is
an actor without Ray's own restarts: what a dead one had to do goes to whoever is free, and does
not wait for a machine that may never come back. Knows nothing of a corpus as a whole.
"""

import logging
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeAlias

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._batches import Batch, EncodingSettings, read_settings
from epic_retrieval.index._ray import RayOptions, load_ray, room, workers_of
from epic_retrieval.index._shard_folder import Encode, ShardFolder
from epic_retrieval.index.manifest import ShardInfo

logger = logging.getLogger(__name__)

# Of Ray, which is imported late: to something that it keeps, or that will be.
Reference: TypeAlias = Any

_PATIENCE = 60  # seconds until it is said that no worker has started
_POLL = 1.0  # seconds
# A shard whose workers die each time has something in it that kills them.
_DEATHS = 3
# Ray paints its messages.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Job:
    """One shard to be made.

    Args:
        number: Of the shard in its corpus, from 0.
        name: Of the shard.
        start: How many passages come before it.
        rows: Its passages.
        batch: Where Ray keeps its passages: not in the memory of this process.
        deaths: Workers that died of it.
    """

    number: int
    name: str
    start: int
    rows: int
    batch: Reference
    deaths: int = 0


class Worker:
    """Lives in a process of its own, with one encoder."""

    def __init__(
        self,
        make_encode: Callable[[], Encode],
        folder: Path,
        settings: EncodingSettings,
        chunk_size: int,
    ) -> None:
        # Errors here would come back as a death, so `start` does the work.
        self._make_encode = make_encode
        self._folder = folder
        self._settings = settings
        self._chunk_size = chunk_size

    def start(self) -> None:
        """Make the encoder, and see whether the folder is the one that was meant."""
        known = read_settings(self._folder)
        if known is None or not known.fits(self._settings):
            raise InputError(
                f"{self._folder} is not the same folder on {socket.gethostname()} as where the "
                "work was started. Choose a folder on a file system that all machines of the "
                "cluster share, at the same path."
            )
        self._shards = ShardFolder(self._folder, self._settings)
        self._encode = self._make_encode()

    def write(self, batch: Batch) -> ShardInfo:
        """Encode one shard into its place."""
        return self._shards.write(batch, self._encode, self._chunk_size)


class Pool:
    """Workers, of which some may be starting; `close` ends all of them.

    Args:
        options: Of the workers.
        arguments: Of `Worker`.

    Raises:
        InputError: The cluster has no room for a worker, or the arguments cannot be sent.
    """

    def __init__(self, options: RayOptions, arguments: tuple[Any, ...]) -> None:
        self._ray = load_ray()
        self._options = options
        self._arguments = arguments
        self._kind = self._ray.remote(Worker).options(
            num_cpus=options.cpus, num_gpus=options.gpus, max_restarts=0, max_task_retries=0
        )
        self._alive: list[Any] = []
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._working: dict[Any, tuple[Any, Job]] = {}
        self._again: deque[Job] = deque()
        self._early_deaths = 0
        try:
            for _ in range(workers_of(options)):
                self._add()
        except BaseException:
            self.close()
            raise

    @property
    def working(self) -> list[Job]:
        """What is being done now."""
        return [job for _, job in self._working.values()]

    def keep(self, batch: Batch) -> Reference:
        """Hand passages over to Ray, which keeps them while the reference lives."""
        return self._ray.put(batch)

    def run(
        self, jobs: Iterator[Job], waiting: Callable[[], None]
    ) -> Generator[tuple[Job, ShardInfo], None, None]:
        """Do jobs, in any order; no job is asked for before a worker is free.

        Args:
            jobs: To be done.
            waiting: Called at least once a second while workers work.

        Raises:
            Exception: What a worker raised, with a note on where.
            PassageIndexError: Workers died again and again.
        """
        coming = True
        since = time.monotonic()
        while True:
            while self._idle and (self._again or coming):
                job = self._again.popleft() if self._again else next(jobs, None)
                if job is None:
                    coming = False
                    break
                worker = self._idle.pop()
                self._working[worker.write.remote(job.batch)] = (worker, job)
            if not (coming or self._working or self._again):
                return
            done, _ = self._ray.wait([*self._working, *self._starting], timeout=_POLL)
            waiting()
            for reference in done:
                if reference in self._starting:
                    self._started(reference)
                else:
                    yield from self._finished(reference)
            if self._idle or self._working:
                since = time.monotonic()
            elif time.monotonic() - since > _PATIENCE:
                logger.warning(
                    "No worker has started in %s seconds: %s", _PATIENCE, room(self._options)
                )
                since = time.monotonic()

    def close(self) -> None:
        """End all workers; what they were doing is lost."""
        while self._alive:
            self._ray.kill(self._alive.pop())
        self._idle, self._starting, self._working = [], {}, {}

    def _add(self) -> None:
        try:
            worker = self._kind.remote(*self._arguments)
        except TypeError as error:
            raise InputError(
                f"make_encode cannot be sent to the workers ({error.__cause__ or error}). Hand in "
                "a function that makes the encoder when it is called, and holds nothing but names "
                "and numbers."
            ) from error
        self._alive.append(worker)
        self._starting[worker.start.remote()] = worker

    def _bury(self, worker: Any) -> None:  # noqa: ANN401 (a handle of Ray)
        # It may only be out of reach, and must not write any more.
        self._ray.kill(worker)
        self._alive.remove(worker)

    def _started(self, reference: Reference) -> None:
        worker = self._starting.pop(reference)
        try:
            self._got(reference)
        except _DeathError as death:
            self._bury(worker)
            self._early_deaths += 1
            if self._early_deaths < _DEATHS:
                self._add()
            elif not self._alive:
                raise PassageIndexError(
                    f"Workers died while they made their encoder, the last one so: {death} Is "
                    "there too little memory for so many? Ask for fewer workers, or more cores or "
                    "GPUs for each."
                ) from None
            else:
                logger.warning("Going on with fewer workers, since some die early: %s", death)
        else:
            self._early_deaths = 0
            self._idle.append(worker)

    def _finished(self, reference: Reference) -> Iterator[tuple[Job, ShardInfo]]:
        worker, job = self._working.pop(reference)
        try:
            info = self._got(reference)
        except _DeathError as death:
            self._bury(worker)
            job.deaths += 1
            if job.deaths == _DEATHS:
                raise PassageIndexError(
                    f"{_DEATHS} workers died, one after another, while they encoded passages "
                    f"{job.start + 1:,} to {job.start + job.rows:,}, the last one so: {death} Is "
                    "there too little memory? Ask for fewer workers, or smaller chunks or shards. "
                    "Finished shards are kept."
                ) from None
            logger.warning("A worker died; its shard is encoded again: %s", death)
            self._again.append(job)
            self._add()
        else:
            self._idle.append(worker)
            yield job, info

    def _got(self, reference: Reference) -> Any:  # noqa: ANN401 (as it comes)
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            where = _COLOUR.sub("", str(error))
            if not isinstance(error.cause, Exception):
                raise PassageIndexError(f"A worker failed: {where}") from None
            # The very same as without Ray, but for its traceback, which cannot be sent.
            error.cause.add_note(f"In a worker:\n{where}")
            raise error.cause from None
        except errors.UnserializableException as error:
            raise PassageIndexError(f"A worker failed: {_COLOUR.sub('', str(error))}") from None
        except errors.RayError as error:
            # Much is said before that, and for those who know Ray after it.
            reason = " ".join(str(error).split()).rpartition("The actor is dead because ")[2]
            raise _DeathError(shorten(reason, 300)) from error


class _DeathError(Exception):
    """A worker's process ended; says how."""
