"""Locks between processes, that end with their holder, however that ends.

One holder of an exclusive lock; any number of a shared one. Knows nothing of indexes.
"""

import contextlib
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from epic_retrieval.errors import PassageIndexError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# Windows locks bytes, not files, and knows no shared lock there: each sharer takes a byte of its
# own, beyond the end of the file, and who wants to know of sharers takes all of them.
_SHARERS = 2**30


class LockHeldError(PassageIndexError):
    """Another process or thread holds the lock; it may be free later."""


@contextmanager
def exclusive(path: Path, what: str, doing: str = "built") -> Iterator[None]:
    """Hold the lock file `path`; it is removed afterwards.

    Raises:
        LockHeldError: Another process holds it, or this one does already. `what` names what it is
            working on, and `doing` what it does with it.
        OSError: The file cannot be made or locked here.
    """
    handle = _acquire(path, what, doing)
    try:
        # On a full disk the lock holds all the same; it only does not say who holds it.
        with contextlib.suppress(OSError):
            os.ftruncate(handle, 0)
            os.write(handle, f"{_me()}\n".encode())
        yield
    finally:
        if sys.platform != "win32" and _is_same(handle, path):
            # Removed while still locked, and whoever opened it before finds out in _acquire.
            path.unlink(missing_ok=True)
        os.close(handle)


def shared(path: Path) -> int:
    """Hold the existing file `path` together with others, until the handle is closed.

    Returns:
        A handle for `os.close`.

    Raises:
        FileNotFoundError: There is no such file, or it was removed at this moment.
        BlockingIOError: `unshared` looks at it at this moment.
        OSError: It cannot be opened, or the file system has no locks.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        if sys.platform == "win32":
            _lock_bytes(handle, 1 + secrets.randbelow(_SHARERS), 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if not _is_same(handle, path):
            raise FileNotFoundError(f"{path} was removed")
    except OSError:
        os.close(handle)
        raise
    return handle


@contextmanager
def unshared(path: Path) -> Iterator[bool]:
    """Whether nobody holds `path` shared; if so, nobody can while the block runs.

    Raises:
        OSError: The file cannot be opened, or the file system has no locks.
    """
    handle = os.open(path, os.O_RDWR)
    try:
        try:
            if sys.platform == "win32":
                _lock_bytes(handle, 1, _SHARERS)
            else:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _acquire(path: Path, what: str, doing: str) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle)
            if _is_same(handle, path):
                return handle
        except BlockingIOError as error:
            os.close(handle)
            raise LockHeldError(f"{what} is being {doing} by {_holder(path)}") from error
        except OSError:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        _lock_bytes(handle, 0, 1)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


if sys.platform == "win32":

    def _lock_bytes(handle: int, start: int, count: int) -> None:
        os.lseek(handle, start, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, count)
        except OSError as error:
            raise BlockingIOError(str(error)) from error


def _is_same(handle: int, path: Path) -> bool:
    # The former holder may have removed the file between our opening and our locking it.
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _me() -> str:
    return f"{os.getpid()} on {socket.gethostname()}"


def _holder(path: Path) -> str:
    """Who holds the lock, and what to do about it."""
    try:
        process = path.read_text().strip()
    except OSError:
        process = ""
    if process == _me():
        return (
            f"this very process (process {process}), which began that elsewhere. Close the other "
            "writer first, or leave its `with` block; one writer can make several changes."
        )
    named = f" (process {process})" if process else ""
    return f"another process{named}. Wait until it ends, stop it, or choose another folder."
