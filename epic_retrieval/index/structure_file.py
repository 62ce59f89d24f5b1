"""FAISS structures in files: written whole or not at all, read into memory or mapped.

Knows nothing of what a file should hold.
"""

import os
import uuid
from pathlib import Path

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._faiss import load_faiss
from epic_retrieval.index.manifest import REBUILD
from epic_retrieval.index.structure import (
    FAISS_ERRORS,
    FaissIndex,
    Parts,
    has_plain_lists,
    parts_of,
    reason_of,
    shape_of,
)


def write_structure(index: FaissIndex, path: Path) -> None:
    """Write a structure whole or not at all, and have the disk hold it.

    Raises:
        OSError: As on a full disk.
    """
    faiss = load_faiss()
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    failed: list[OSError] = []
    try:
        with temporary.open("xb") as file:

            def put(content: bytes) -> int:
                try:
                    return file.write(content)
                except OSError as error:
                    failed.append(error)
                    raise

            # FAISS's own writer leaves out the last bytes on a full disk without an error.
            try:
                faiss.write_index(index, faiss.PyCallbackIOWriter(put))
            except (RuntimeError, SystemError) as error:
                raise (failed[0] if failed else OSError(str(error))) from error
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_structure(path: Path, *, mapped: bool) -> Parts:
    """A structure from a file.

    Args:
        path: Of the file.
        mapped: Leave on disk what can be left there. Never add to such a structure, nor take from
            it: FAISS ends the process.

    Raises:
        PassageIndexError: FAISS cannot read it.
    """
    faiss = load_faiss()
    # Releases before 1.11 map inverted lists alone.
    flag = getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_MMAP) if mapped else 0
    try:
        return parts_of(faiss.read_index(str(path), flag))
    except FAISS_ERRORS as error:
        raise PassageIndexError(
            f"{path}: FAISS cannot read it ({reason_of(error)}). {REBUILD}"
        ) from error


def read_emptied(path: Path, empty: Parts) -> Parts:
    """A finished structure without its rows, for taking over its training.

    Args:
        path: Of its file.
        empty: Of the factory that it was made from.

    Raises:
        InputError: It is of another kind.
        PassageIndexError: FAISS cannot read it.
    """
    faiss = load_faiss()
    plain = has_plain_lists(empty)
    found = read_structure(path, mapped=plain)
    if shape_of(found) != shape_of(empty):
        raise InputError(
            f"{path}: {shape_of(found)}, but the factory makes {shape_of(empty)}. Build a new one."
        )
    if plain:
        # Rows that are mapped cannot be taken out, but their lists can be exchanged as a whole.
        lists = faiss.ArrayInvertedLists(found.inner.nlist, found.inner.code_size)
        found.inner.replace_invlists(lists, True)
        lists.this.disown()
        found.whole.ntotal = found.inner.ntotal = 0
    else:
        found.whole.reset()
    return found
