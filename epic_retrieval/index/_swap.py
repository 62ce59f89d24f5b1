"""A folder that appears as a whole or not at all: built aside, then renamed into place.

Knows what an index folder may hold, nothing of how it is filled.
"""

import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from epic_retrieval.errors import InputError
from epic_retrieval.index._lock import exclusive
from epic_retrieval.index.manifest import MANIFEST, PASSAGES, VECTORS, is_index


@contextmanager
def folder_for(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A fresh folder beside `out`; it becomes `out` if the block ends without an error.

    Only one builder of the same `out` gets in. What killed ones left behind is removed first,
    and an index that one of them had already moved aside is put back.

    Raises:
        InputError: `out` is something that must not be replaced, or cannot be written.
        PassageIndexError: Another process is building `out`.
    """
    out = Path(os.path.realpath(out))
    with _writable(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = exclusive(out.with_name(f".{out.name}.lock"), str(out))
    with _locked(out, lock):
        with _writable(out):
            _sweep(out)
            _check_free(out, overwrite=overwrite)
            folder = _aside(out, "building")
            folder.mkdir()
        try:
            yield folder
            with _writable(out):
                _replace(out, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sync(path: Path) -> None:
    """Have the disk hold a file, or a folder's list of names, before going on."""
    if path.is_dir() and sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
