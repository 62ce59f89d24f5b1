"""Vector files mapped behind each other, so that rows of all of them are taken in one step.

An index has its vectors in files of some 50,000 rows. Taking a few rows from each of twenty files
costs several times what taking them from one array does. So a range of addresses is reserved, every
file is mapped at a place in it that is a whole number of rows from the first, and one array covers
the range. Between files lie addresses that nobody may read. Knows nothing of what is taken.
"""

import ctypes
import functools
import math
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index._faiss import load_faiss
from epic_retrieval.index._mapped import HEADER_BYTES, map_array_at
from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index.rows import Rows

# Where addresses of mappings can be chosen as done here.
SUPPORTED = sys.platform in ("linux", "darwin")
_FIXED = 0x10  # MAP_FIXED of both, which the module mmap does not name
_FAILED = ctypes.c_void_p(-1).value


class Span:
    """One array over vector files; each is mapped when it is first needed. Thread-safe.

    Args:
        paths: Of .npy files as `write_array` makes them.
        rows: How many rows each of them has.
        dimension: Width of the rows of all.
        dtype: Of all.

    Raises:
        OSError: There are no addresses left.
    """

    def __init__(
        self, paths: Sequence[Path], rows: Sequence[int], dimension: int, dtype: np.dtype[Any]
    ) -> None:
        width = dimension * dtype.itemsize
        # Files begin at pages, rows at multiples of their width: both every so many rows.
        step = math.lcm(mmap.PAGESIZE, width) // width
        needed = [-(-(HEADER_BYTES + count * width) // (step * width)) * step for count in rows]
        self._firsts = [0, *np.cumsum(needed).tolist()]
        self._paths, self._rows = list(paths), list(rows)
        self.dtype = dtype
        self._dimension, self._width = dimension, width
        self._range = _Range(self._firsts[-1] * width)
        covered = np.asarray(self._range)[HEADER_BYTES:]
        whole = len(covered) // width
        self._vectors = covered[: whole * width].view(dtype).reshape(whole, dimension)
        # What must be added to a row's number to get its place in that array.
        starts = np.cumsum([0, *rows])
        self._starts = starts[1:]
        self._shifts = np.array(self._firsts[:-1], np.int64) - starts[:-1]
        self._mapped = np.zeros(len(rows), np.bool_)
        self._complete = False
        self._lock = threading.Lock()

    def take(self, rows: Rows) -> Vectors:
        """A copy of these rows, counted through all files. They must be there: nobody checks.

        Raises:
            PassageIndexError: A file cannot be read, or holds something else.
        """
        # "clip" spares a test that is made already.
        found = self._vectors.take(self._places(rows), axis=0, mode="clip")
        return found if found.dtype == np.float32 else found.astype(np.float32)

    def products(self, queries: Vectors, rows: Rows) -> Vectors:
        """Inner products of each query, (n, dimension), with rows of its own, (n, c); no copies.

        Of float32 alone. Rows must be there: nobody checks.

        Raises:
            PassageIndexError: A file cannot be read, or holds something else.
        """
        faiss = load_faiss()
        places = self._places(rows)
        queries = np.ascontiguousarray(queries)
        found = np.empty(rows.shape, np.float32)
        faiss.fvec_inner_products_by_idx(
            *(faiss.swig_ptr(array) for array in (found, queries, self._vectors, places)),
            self._dimension,
            *rows.shape,
        )
        return found

    def _places(self, rows: Rows) -> Rows:
        """Where rows are in the one array, of whose parts those are mapped then."""
        files = self._starts.searchsorted(rows, "right")
        if not self._complete and not self._mapped[files].all():
            self._map(np.unique(files).tolist())
        places: Rows = self._shifts[files]
        places += rows
        return places

    def _map(self, files: list[int]) -> None:
        with self._lock:
            for file in files:
                if self._mapped[file]:
                    continue
                found = map_array_at(self._paths[file], functools.partial(self._put, file))
                if found != (self.dtype, (self._rows[file], self._dimension)):
                    raise PassageIndexError(self._changed(file))
                self._mapped[file] = True
            self._complete = bool(self._mapped.all())

    def _put(self, file: int, handle: int, size: int) -> None:
        # A larger one would lie over its neighbours.
        if size != HEADER_BYTES + self._rows[file] * self._width:
            raise PassageIndexError(self._changed(file))
        address = self._range.address + self._firsts[file] * self._width
        _mmap(address, size, mmap.PROT_READ, mmap.MAP_SHARED | _FIXED, handle)

    def _changed(self, file: int) -> str:
        return (
            f"{self._paths[file]}: not {self._rows[file]:,} vectors of {self._dimension} "
            f"dimensions in {self.dtype.name} any more. Copy the index again from its source, or "
            "build it again."
        )


class _Range:
    """Reserved addresses, given back with the last array over them."""

    def __init__(self, size: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        # No access: such addresses take no memory.
        self.address = _mmap(None, size, 0, flags, -1)
        weakref.finalize(self, _libc().munmap, self.address, size).atexit = False
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (size,),
            "data": (self.address, True),  # read-only
        }


def _mmap(address: int | None, size: int, access: int, flags: int, handle: int) -> int:
    found = _libc().mmap(address, size, access, flags, handle, 0)
    if found in (None, _FAILED):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(found)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    # The last is off_t: as wide as a long on these systems.
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc
