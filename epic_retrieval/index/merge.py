"""Several indexes, or folders of encoded shards, become one index; nothing is encoded again.

The new index is searched exactly; what makes a large one fast is built over it afterwards. Knows
nothing of FAISS.
"""

import datetime as dt
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._connections import Connections
from epic_retrieval.index._lock import exclusive
from epic_retrieval.index._mapped import write_array
from epic_retrieval.index._source import Source, open_source
from epic_retrieval.index._swap import link_files, shortage
from epic_retrieval.index._twins import duplicates, twins
from epic_retrieval.index.build import package_version
from epic_retrieval.index.generations import publish, sync
from epic_retrieval.index.manifest import (
    DELETED,
    SHARDS,
    DeletedInfo,
    FileInfo,
    Manifest,
    ShardInfo,
)
from epic_retrieval.index.rows import Rows
from epic_retrieval.index.shard import Shard

OnDuplicate: TypeAlias = Literal["error", "first", "last"]

_CONNECTIONS = 64


def merge(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    on_duplicate: OnDuplicate = "error",
    check: bool = True,
    corpus: str = "",
) -> Manifest:
    """Make one index of several folders: what a build of their corpora, one after another, makes.

    Shards are linked, or copied where the file system has no links. Passages that are deleted in
    an index stay deleted. Search is exact until the index is rebuilt with another kind.

    Args:
        folders: Indexes and folders of encoded shards, in the order that passages shall have; one
            is enough.
        out: The index to make; must not exist, or be an empty folder.
        on_duplicate: When an id stands in several folders: raise, or keep its first or its last
            passage.
        check: Compare every file with its checksum first; those known to be whole are not read
            again.
        corpus: A name for what is in it.

    Returns:
        The manifest of the new index.

    Raises:
        InputError: Encoders, dimensions or types of numbers differ, or an id stands twice, or
            there is something at `out`.
        PassageIndexError: A file is missing or damaged, or writing failed (a full disk).
    """
    if not folders:
        raise InputError("There are no folders to merge: give at least one.")
    if on_duplicate not in get_args(OnDuplicate):
        raise InputError(f"on_duplicate is {on_duplicate!r}: expected error, first or last.")
    out = Path(os.path.realpath(out))
    with ExitStack() as stack:
        sources = [stack.enter_context(open_source(folder, check=check)) for folder in folders]
        for other in sources[1:]:
            _check_same(sources[0], other)
        work = stack.enter_context(_workplace(out))
        infos, deleted = _rows_that_count(sources, on_duplicate)
        chosen, deleted = _without_dead(infos, deleted)
        manifest = _filled(work, sources[0], chosen, deleted, corpus)
        _check_free(out)
        if out.exists():
            out.rmdir()
        work.rename(out)
        sync(out.parent)
    return manifest


def _check_same(first: Source, other: Source) -> None:
    facts = [_facts(source) for source in (first, other)]
    for (one, said), (two, said_too) in zip(*facts, strict=True):
        if one != two:
            raise InputError(
                f"{first.folder} and {other.folder} cannot become one index: the one {said}, the "
                f"other {said_too}. Vectors of different encoders or settings cannot be compared; "
                "encode one of the corpora again."
            )


def _facts(source: Source) -> list[tuple[object, str]]:
    """What two sources must have in common, and how it is told; of several the first."""
    encoder = source.encoder
    task = f'the task "{encoder.task}"' if encoder.task else "no symmetric task"
    full = source.truncated_from or encoder.dimension
    return [
        (encoder.task, f"was encoded for {task}"),
        (
            encoder.fingerprint,
            f'was encoded by "{encoder.name}" with the fingerprint {encoder.fingerprint[:12]}',
        ),
        (
            (encoder.dimension, source.truncated_from),
            f"keeps {encoder.dimension} of {full} dimensions (--dim)",
        ),
        (source.dtype, f"is stored as {source.dtype} (--store)"),
    ]


def _rows_that_count(
    sources: Sequence[Source], on_duplicate: OnDuplicate
) -> tuple[list[tuple[Source, ShardInfo]], Rows]:
    """All shards in order, and the rows of their concatenation that do not count, sorted."""
    starts = np.cumsum([0, *(source.rows for source in sources)])
    deleted = np.concatenate(
        [source.deleted + start for source, start in zip(sources, starts, strict=False)]
    )
    infos = [(source, info) for source in sources for info in source.infos]
    with ExitStack() as stack:
        connections = Connections(_CONNECTIONS)
        stack.callback(connections.close)
        shards = []
        for source, info in infos:
            place = source.folder / SHARDS / info.name
            shards.append(stack.enter_context(Shard.open(place, info, connections)))
        if on_duplicate == "error":
            twin = duplicates(shards, deleted)
            if twin is not None:
                where = np.searchsorted(starts, [twin.first, twin.second], side="right") - 1
                raise InputError(
                    f'The id "{twin.id}" stands both in {sources[where[0]].folder} and in '
                    f'{sources[where[1]].folder}. Keep one of the two: on_duplicate="first" or '
                    'on_duplicate="last".'
                )
            return infos, deleted
        lost = twins(shards, deleted, keep=on_duplicate)
    return infos, np.union1d(deleted, lost)


def _without_dead(
    infos: Sequence[tuple[Source, ShardInfo]], deleted: Rows
) -> tuple[list[tuple[Path, ShardInfo]], Rows]:
    """The shards with a row that counts: where they are and what they are; and deleted rows.

    Two different shards of one name, which the same passages have when they were encoded on
    different machines, get different ones.
    """
    chosen: list[tuple[Path, ShardInfo]] = []
    known: dict[str, ShardInfo] = {}
    gone: list[Rows] = []
    start = kept = 0
    for source, info in infos:
        first, last = np.searchsorted(deleted, [start, start + info.rows])
        if last - first < info.rows:
            gone.append(deleted[first:last] - start + kept)
            kept += info.rows
            named = info
            if known.setdefault(info.name, info) != info:
                named = ShardInfo(_other_name(info), info.rows, info.files)
            chosen.append((source.folder / SHARDS / info.name, named))
        start += info.rows
    return chosen, np.concatenate([np.empty(0, dtype=np.int64), *gone])


def _other_name(info: ShardInfo) -> str:
    content = [info.name, *(file.sha256 for _, file in sorted(info.files.items()))]
    return f"s-{hashlib.sha256(' '.join(content).encode()).hexdigest()[:16]}"


def _filled(
    work: Path,
    first: Source,
    chosen: Sequence[tuple[Path, ShardInfo]],
    deleted: Rows,
    corpus: str,
) -> Manifest:
    (work / SHARDS).mkdir()
    for place, info in chosen:
        if not (work / SHARDS / info.name).exists():
            link_files(place, work / SHARDS / info.name, copy=True)
    gone = None
    if len(deleted):
        name = f"d-{hashlib.sha256(deleted.tobytes()).hexdigest()[:16]}"
        (work / DELETED).mkdir()
        write_array(work / DELETED / f"{name}.npy", deleted)
        gone = DeletedInfo(name, len(deleted), FileInfo.of(work / DELETED / f"{name}.npy"))
    now = dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")
    infos = tuple(info for _, info in chosen)
    manifest = Manifest(
        generation=1,
        count=sum(info.rows for info in infos) - len(deleted),
        dtype=first.dtype,
        encoder=first.encoder,
        shards=infos,
        search=None,
        deleted=gone,
        created=now,
        updated=now,
        package_version=package_version(),
        corpus=corpus,
        truncated_from=first.truncated_from,
    )
    return publish(work, manifest)


@contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """A fresh folder beside `out`, removed afterwards if it is still there."""
    work = out.with_name(f".{out.name}.merging")
    try:
        _check_free(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(out.with_name(f".{out.name}.lock"), str(out)):
            try:
                # What a merge left that was killed.
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir()
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise PassageIndexError(
            f"{out}: writing the index failed ({error}). {shortage(out.parent, None)} Nothing of "
            "it was left there; the folders that should be merged are as they were."
        ) from error


def _check_free(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists and is not empty: choose another folder for the index.")
