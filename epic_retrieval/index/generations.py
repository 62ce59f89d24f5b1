"""One writer, many readers: how an index folder goes from one state to the next.

Each state is a generation, described by one manifest; its files are written once and never
changed, so a reader of generation n is untouched by n + 1 as long as nobody removes its files.
`generations/<n>.lock` is held shared by the readers of n, and `generations/<n>.json` is the
manifest of n once it is a former one. Knows nothing of what the files hold.
"""

import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._lock import exclusive, shared, unshared
from epic_retrieval.index.manifest import (
    DELETED,
    MANIFEST,
    SEARCH,
    SHARDS,
    Manifest,
    read_manifest,
    read_manifest_file,
)
from epic_retrieval.storage import write_atomically

WRITE_LOCK = "write.lock"
GENERATIONS = "generations"

_GENERATION = re.compile(r"([1-9][0-9]*)\.(lock|json)")
# What an index makes; whatever else lies in its folder is somebody's, and left alone.
_NAME = r"[a-z]-[0-9a-f]{8,32}"
_OWN = re.compile(
    rf"({SHARDS}|{SEARCH})/{_NAME}(\.(new|replaced))?|{DELETED}/{_NAME}\.npy"
    rf"|({GENERATIONS}/)?\.({re.escape(MANIFEST)}|[0-9]+\.json)\.[0-9a-f]{{32}}"
)
# A writer that publishes faster than a reader can read one manifest does not exist.
_TRIES = 200
_PAUSE = 0.01  # seconds


class Reading:
    """A generation that stays whole until `close`.

    Args:
        manifest: Of this generation.
        handle: Holds its lock; None where there is nothing to hold.
    """

    def __init__(self, manifest: Manifest, handle: int | None) -> None:
        self.manifest = manifest
        self._handle = handle

    def close(self) -> None:
        """Let the generation go; a second call does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def reading(folder: Path) -> Reading:
    """The present generation, held so that no `sweep` removes its files.

    Where locks are impossible (some network file systems) or their files were not copied along,
    nothing is held.

    Raises:
        PassageIndexError: As `read_manifest`.
    """
    for _ in range(_TRIES):
        manifest = read_manifest(folder)
        try:
            handle = shared(_lock_of(folder, manifest.generation))
        except FileNotFoundError:
            handle = None
        except BlockingIOError:
            # A sweep looks at it, so there is a newer one.
            time.sleep(_PAUSE)
            continue
        except OSError:
            return Reading(manifest, None)
        # The writer may have moved on between the reading and the lock.
        if read_manifest(folder) == manifest:
            return Reading(manifest, handle)
        if handle is not None:
            os.close(handle)
    raise PassageIndexError(f"{folder}: the index changes too fast to be opened. Try again.")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Be the one writer of an index folder.

    Raises:
        PassageIndexError: Another process writes; the message says which.
        InputError: The folder cannot be written to.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder / WRITE_LOCK, str(folder), "changed"))
        except OSError as error:
            raise InputError(
                f"{folder}: the index cannot be changed here ({error.strerror or error}). Expected "
                "a folder that you may write to, on a file system with locks."
            ) from error
        yield


def publish(folder: Path, manifest: Manifest) -> Manifest:
    """Make a state the present one; call inside `writing`.

    The files that the manifest names are in place already. They are on the disk for sure before
    the manifest is; that one is replaced last, in one step.

    Args:
        folder: The index, or the folder that becomes one.
        manifest: The new state; its generation is set here.

    Returns:
        The manifest as published.

    Raises:
        PassageIndexError: A file that it names is missing or of another size.
        OSError: Writing failed; the former state is still the present one.
    """
    former = _present(folder)
    manifest = replace(manifest, generation=_next_generation(folder, former))
    _sync_files(folder, manifest, former)
    locks = folder / GENERATIONS
    locks.mkdir(exist_ok=True)
    # Before the swap, so that whoever reads the new manifest finds its lock.
    _lock_of(folder, manifest.generation).touch()
    if former is not None:
        write_atomically(_former(folder, former.generation), former.to_text().encode())
    sync(locks)
    write_atomically(folder / MANIFEST, manifest.to_text().encode())
    sync(folder)
    return manifest


def sweep(folder: Path) -> int:
    """Remove what neither the present generation nor a reader needs; call inside `writing`.

    Files that an index does not make are left alone, and so is what cannot be removed now.

    Returns:
        Bytes that were freed.
    """
    present = read_manifest(folder)
    needed = set(present.files)
    for generation in _generations(folder) - {present.generation}:
        files = _released(folder, generation)
        if files is None:
            return 0  # somebody reads a state that is no longer described
        needed |= files
    # Whole folders come and go: "shards/s-0123/ids.npy" keeps "shards/s-0123".
    kept = {"/".join(name.split("/")[:2]) for name in needed}
    return sum(
        _remove(path)
        for path in _own_paths(folder)
        if path.relative_to(folder).as_posix() not in kept
    )


def sync(path: Path) -> None:
    """Have the disk hold a file, or a folder's list of names, before going on."""
    if path.is_dir() and sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lock_of(folder: Path, generation: int) -> Path:
    return folder / GENERATIONS / f"{generation}.lock"


def _former(folder: Path, generation: int) -> Path:
    return folder / GENERATIONS / f"{generation}.json"


def _present(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except PassageIndexError:
        return None  # a new index, or one that is built again because it is damaged


def _next_generation(folder: Path, former: Manifest | None) -> int:
    if former is not None:
        return former.generation + 1
    return max(_generations(folder), default=0) + 1


def _generations(folder: Path) -> set[int]:
    try:
        names = [path.name for path in (folder / GENERATIONS).iterdir()]
    except FileNotFoundError:
        return set()
    return {int(match[1]) for name in names if (match := _GENERATION.fullmatch(name))}


def _sync_files(folder: Path, manifest: Manifest, former: Manifest | None) -> None:
    known = former.files if former is not None else {}
    folders = set()
    for name, info in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            size = -1
        if size != info.bytes:
            found = "is missing" if size < 0 else f"has {size:,} bytes instead of {info.bytes:,}"
            raise PassageIndexError(f"{path} {found}: the index stays as it was.")
        if name not in known:
            sync(path)
            folders |= set(path.parents) - set(folder.parents)
    for path in sorted(folders):
        sync(path)


def _released(folder: Path, generation: int) -> set[str] | None:
    """The files that readers of a former generation need; None if that cannot be told.

    Without readers the generation's own files are removed.
    """
    lock, manifest = _lock_of(folder, generation), _former(folder, generation)
    try:
        with unshared(lock) as free:
            if free:
                manifest.unlink(missing_ok=True)
                lock.unlink()
                return set()
    except FileNotFoundError:
        # Without a lock there are no readers: a sweep was stopped between the two.
        manifest.unlink(missing_ok=True)
        return set()
    except OSError:
        pass  # as if it were held
    try:
        return set(read_manifest_file(manifest).files)
    except (OSError, PassageIndexError):
        return None


def _own_paths(folder: Path) -> list[Path]:
    places = [folder, *(folder / name for name in (SHARDS, SEARCH, DELETED, GENERATIONS))]
    return [
        path
        for place in places
        # A link could lead out of the index.
        if place == folder or (place.is_dir() and not place.is_symlink())
        for path in place.iterdir()
        if _OWN.fullmatch(path.relative_to(folder).as_posix())
    ]


def _remove(path: Path) -> int:
    inner = [*path.iterdir()] if path.is_dir() else [path]
    size = sum(file.lstat().st_size for file in inner)
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
    return 0 if path.exists() else size
