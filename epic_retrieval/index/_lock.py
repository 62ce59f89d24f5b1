"""A lock between builders of the same index, that ends with its holder, however that ends.

Knows nothing of indexes.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from epic_retrieval.errors import PassageIndexError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`; it is removed afterwards.

    Raises:
        PassageIndexError: Another process or thread holds it. `what` names what it is building.
        OSError: The file cannot be made or locked here.
    """
    handle = _acquire(path, what)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        if sys.platform != "win32":
            # Removed while still locked, and whoever opened it before finds out in _acquire.
            path.unlink(missing_ok=True)
        os.close(handle)


def _acquire(path: Path, what: str) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle)
            if _is_same(handle, path):
                return handle
        except BlockingIOError as error:
            os.close(handle)
            raise PassageIndexError(
                f"{what} is being built by another process{_holder(path)}. "
                "Wait until it ends, stop it, or choose another folder."
            ) from error
        except OSError:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(str(error)) from error
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_same(handle: int, path: Path) -> bool:
    # The former holder may have removed the file between our opening and our locking it.
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        process = path.read_text().strip()
    except OSError:
        return ""
    return f" (process {process})" if process else ""
