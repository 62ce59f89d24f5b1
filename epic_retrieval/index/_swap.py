"""A folder that appears as a whole or not at all: built aside, then renamed into place.

Knows what an index folder may hold, nothing of how it is filled.
"""

import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
    if not out.name:
        raise InputError(f"{out}: the root of a file system is no place for an index.")
    with ExitStack() as stack:
        with _writable(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(out.with_name(f".{out.name}.lock"), str(out)))
            _sweep(out)
            _check_free(out, overwrite=overwrite)
            folder = _aside(out, "building")
            folder.mkdir()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder
        with _writable(out):
            # Hours may have passed: look again before anything is replaced.
            _check_free(out, overwrite=overwrite)
            _replace(out, folder)


def sync(path: Path) -> None:
    """Have the disk hold a file, or a folder's list of names, before going on."""
    if path.is_dir() and sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{out}: an index cannot be written here ({error.strerror or error}; "
            f"{error.filename or out.parent}). Choose a folder that you may write to."
        ) from error


def _aside(out: Path, purpose: str) -> Path:
    return out.with_name(f".{out.name}.{purpose}-{secrets.token_hex(4)}")


def _sweep(out: Path) -> None:
    # Under the lock nobody else is building `out`, so every such folder belongs to the dead.
    pattern = re.compile(rf"\.{re.escape(out.name)}\.(building|replaced)-[0-9a-f]{{8}}")
    for path in sorted(out.parent.iterdir()):
        match = pattern.fullmatch(path.name)
        if not match:
            continue
        if match[1] == "replaced" and not out.exists() and is_index(path):
            path.rename(out)
        else:
            _discard(path)


def _discard(folder: Path) -> None:
    # The manifest goes first: a half-removed folder must not be taken for an index.
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _check_free(out: Path, *, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file: an index is a folder; choose another path.")
    names = {path.name for path in out.iterdir()}
    if not names:
        return
    if not is_index(out):
        raise InputError(
            f"{out} exists and is not an index, so it is left alone: choose another folder, or "
            "remove this one yourself."
        )
    if not overwrite:
        raise InputError(
            f"{out} already holds an index: choose another folder, or pass "
            "overwrite=True (--overwrite) to "
            "replace it."
        )
    foreign = sorted(names - {MANIFEST, VECTORS, PASSAGES})
    if foreign:
        raise InputError(
            f'{out} holds "{foreign[0]}", which is no part of the index and would be lost: '
            "move it elsewhere first."
        )


def _replace(out: Path, folder: Path) -> None:
    sync(folder)
    if not out.exists():
        folder.rename(out)
    elif not any(out.iterdir()):
        out.rmdir()
        folder.rename(out)
    else:
        former = _aside(out, "replaced")
        out.rename(former)
        try:
            folder.rename(out)
        except OSError:
            former.rename(out)
            raise
        sync(out.parent)
        _discard(former)
    sync(out.parent)
