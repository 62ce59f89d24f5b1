"""Compares the files of an index with the checksums in its manifest, and remembers what was whole.

FAISS and SQLite may believe whatever a damaged file says, so files are compared before they are
opened. A file of gigabytes is read once: its time of change and the like tell whether it is still
the one that was read. Knows nothing of what the files hold.
"""

import contextlib
import json
import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index.manifest import REBUILD, FileInfo
from epic_retrieval.storage import cache_folder, digest_of, write_atomically

logger = logging.getLogger(__name__)

# What changes whenever a file does: its size, the times of change of content and of status (the
# latter nobody can set), its inode; and the checksum that it had.
Note: TypeAlias = list[int | str]

DAMAGED = "is damaged: its bytes do not have the checksum they were built with"
_THREADS = min(8, os.cpu_count() or 1)
# Clocks of file systems are coarse: what was changed so shortly before it was read may be changed
# again without a sign of it. In nanoseconds.
_SETTLED = 3 * 10**9


def check_files(folder: Path, files: Mapping[str, FileInfo]) -> None:
    """Make sure that files have their checksums; those that had and did not change are not read.

    Args:
        folder: The index.
        files: By their paths in it.

    Raises:
        PassageIndexError: One is missing, a link, cannot be read, or is not as it was built.
    """
    place = _place(folder)
    known = _read(place)
    notes = {name: _note(folder / name, info) for name, info in files.items()}
    unknown = {name: info for name, info in files.items() if known.get(name) != notes[name]}
    if not unknown:
        return
    size = sum(info.bytes for info in unknown.values())
    logger.info("%s: reading %s bytes to compare their checksums", folder, f"{size:,}")
    start = time.time_ns()
    whole = {}
    try:
        for name, problem in _compared(folder, unknown):
            if problem is not None:
                raise PassageIndexError(f"{folder / name}: {problem}. {REBUILD}")
            if _is_settled(notes[name], start) and _note(folder / name, files[name]) == notes[name]:
                whole[name] = notes[name]
    finally:
        # What was read is not read again, even if another file is damaged or a user gives up.
        if whole:
            _write(place, folder, {**known, **whole})


def file_problems(folder: Path, files: Mapping[str, FileInfo]) -> Iterator[tuple[str, str]]:
    """(path, what is wrong with it) of files that are not as they were built; reads every byte.

    Args:
        folder: The index.
        files: By their paths in it.
    """
    for name, problem in _compared(folder, files):
        if problem is not None:
            yield name, problem


def _compared(folder: Path, files: Mapping[str, FileInfo]) -> Iterator[tuple[str, str | None]]:
    """(path, problem or None) of each file, in order."""
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            problems = pool.map(lambda name: _problem(folder / name, files[name]), files)
            yield from zip(files, problems, strict=True)
        finally:
            # Whoever stops at the first problem does not wait for the rest.
            pool.shutdown(wait=False, cancel_futures=True)


def _problem(path: Path, built: FileInfo) -> str | None:
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            return "is not a file of its own, but a link or such"
        if found.st_size != built.bytes:
            return f"has {found.st_size:,} bytes, but was built with {built.bytes:,}"
        return None if FileInfo.of(path) == built else DAMAGED
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _note(path: Path, built: FileInfo) -> Note:
    built.check_size(path)
    found = path.lstat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, built.sha256]


def _is_settled(note: Note, start: int) -> bool:
    return all(int(moment) + _SETTLED < start for moment in note[1:3])


def _place(folder: Path) -> Path:
    # One note for each index, since it may have thousands of files.
    return cache_folder() / "index-checks" / f"{digest_of(os.path.realpath(folder))}.json"


def _read(place: Path) -> dict[str, Note]:
    try:
        content = json.loads(place.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(place: Path, folder: Path, notes: Mapping[str, Note]) -> None:
    # Of former generations nothing is kept.
    present = {name: note for name, note in notes.items() if (folder / name).exists()}
    # In a read-only home the files are read again next time.
    with contextlib.suppress(OSError):
        write_atomically(place, json.dumps(present).encode())
