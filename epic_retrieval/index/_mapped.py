"""Arrays in .npy files: written in pieces, and mapped into memory without keeping the file open.

An index of thousands of shards would otherwise run out of file descriptors (numpy.memmap keeps one
for each array; often only 256 or 1,024 are allowed). Knows nothing of what the arrays hold.
"""

import ctypes
import functools
import math
import mmap
import os
import re
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.errors import PassageIndexError

_T = TypeVar("_T")
HEADER_BYTES = 128
_MAGIC = b"\x93NUMPY\x01\x00v\x00"  # format 1.0; 118 bytes of description follow
_DESCRIPTION = re.compile(
    rb"\{'descr': '(<f2|<f4|<u8|<i8)', 'fortran_order': False, "
    rb"'shape': \((\d{1,18}), ?(\d{1,18})?\), \} *\n"
)
# O_NOFOLLOW: an index holds no links. Not known to Windows, as little as the other.
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The first 128 bytes of a .npy file (format 1.0, C order) of a one- or two-way array."""
    description = (
        f"{{'descr': '{dtype.newbyteorder('<').str}', 'fortran_order': False, 'shape': {shape}, }}"
    )
    return _MAGIC + description.encode().ljust(HEADER_BYTES - len(_MAGIC) - 1) + b"\n"


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write a whole array and have the disk hold it; a file that is there is an error."""
    with path.open("xb") as file:
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        file.write(npy_header(little.dtype, array.shape))
        file.write(np.ascontiguousarray(little).data)
        file.flush()
        os.fsync(file.fileno())


def read_shape(path: Path) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape of the array in a .npy file, by its first bytes and its size.

    Raises:
        PassageIndexError: The file cannot be read, or is not as `npy_header` begins one.
    """
    return _opened(path, lambda _handle, _size: None)[:2]


def map_array(path: Path) -> NDArray[Any]:
    """The array in a .npy file, read-only, memory-mapped; freed with the last reference to it.

    Raises:
        PassageIndexError: The file cannot be read, or is not as `npy_header` begins one.
    """
    dtype, shape, data = _opened(path, _map)
    return data[HEADER_BYTES:].view(dtype).reshape(shape)


def map_array_at(
    path: Path, put: Callable[[int, int], None]
) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape of the array in a .npy file that is mapped by somebody else.

    Args:
        path: Of the file.
        put: Maps the file with this descriptor and size.

    Raises:
        PassageIndexError: As from `map_array`.
    """
    return _opened(path, put)[:2]


def _opened(path: Path, use: Callable[[int, int], _T]) -> tuple[np.dtype[Any], tuple[int, ...], _T]:
    try:
        handle = os.open(path, _FLAGS)
        try:
            dtype, shape = _parsed(os.read(handle, HEADER_BYTES), path)
            size = HEADER_BYTES + math.prod(shape) * dtype.itemsize
            found = os.fstat(handle).st_size
            if found != size:
                raise PassageIndexError(
                    f"{path}: has {found:,} bytes, but its array takes {size:,}; the file is "
                    "damaged. Copy the index again from its source, or build it again."
                )
            data = use(handle, size)
        finally:
            os.close(handle)
    except OSError as error:
        raise PassageIndexError(f"{path}: cannot be read ({error.strerror}).") from error
    return dtype, shape, data


def _parsed(header: bytes, path: Path) -> tuple[np.dtype[Any], tuple[int, ...]]:
    match = _DESCRIPTION.fullmatch(header, len(_MAGIC))
    if not header.startswith(_MAGIC) or len(header) != HEADER_BYTES or match is None:
        raise PassageIndexError(
            f"{path}: does not begin as an array of this index does; the file is damaged. "
            "Copy the index again from its source, or build it again."
        )
    return np.dtype(match[1].decode()), tuple(int(size) for size in match.groups()[1:] if size)


if sys.platform == "win32":

    def _map(handle: int, size: int) -> NDArray[np.uint8]:
        return np.frombuffer(mmap.mmap(handle, size, access=mmap.ACCESS_READ), dtype=np.uint8)

elif sys.version_info >= (3, 13):

    def _map(handle: int, size: int) -> NDArray[np.uint8]:
        region = mmap.mmap(handle, size, mmap.MAP_SHARED, mmap.PROT_READ, trackfd=False)
        return np.frombuffer(region, dtype=np.uint8)

else:
    # Python's own mmap cannot yet be told to let go of the file.

    def _map(handle: int, size: int) -> NDArray[np.uint8]:
        return np.asarray(_Region(handle, size))

    class _Region:
        """A mapping that lives as long as arrays made of it."""

        def __init__(self, handle: int, size: int) -> None:
            libc = _libc()
            address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, handle, 0)
            if address in (None, ctypes.c_void_p(-1).value):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
            weakref.finalize(self, libc.munmap, address, size).atexit = False
            self.__array_interface__ = {
                "version": 3,
                "typestr": "|u1",
                "shape": (size,),
                "data": (address, True),  # read-only
            }

    @functools.cache
    def _libc() -> ctypes.CDLL:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        # The last is off_t: as wide as a long wherever FAISS runs.
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        return libc
