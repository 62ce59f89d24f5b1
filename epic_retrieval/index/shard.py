"""A shard: some passages, their vectors and their ids, in a folder that never changes.

    vectors.npy      (rows, dimension) float32 or float16, in format 1.0 of numpy
    passages.sqlite  row 0 to rows - 1
    ids.npy          (2, rows) uint64: hashes of the ids in order, and their rows

Knows nothing of other files of an index.
"""

import contextlib
import hashlib
import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._connections import Connections
from epic_retrieval.index._mapped import (
    HEADER_BYTES,
    map_array,
    npy_header,
    read_shape,
    write_array,
)
from epic_retrieval.index._vectors import Vectors, checked_vectors
from epic_retrieval.index.generations import sync
from epic_retrieval.index.manifest import (
    DTYPES,
    IDS,
    PASSAGES,
    REBUILD,
    SHARD_FILES,
    VECTORS,
    FileInfo,
    ShardInfo,
    check_folder,
)
from epic_retrieval.index.passage import Passage
from epic_retrieval.index.store import PassageStore, StoreWriter

Hashes = NDArray[np.uint64]


def hashes_of(ids: Iterable[str]) -> Hashes:
    """A 64-bit hash of each id, (n,)."""
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64, copy=False)


class ShardWriter:
    """Writes a shard, streaming: in memory are 8 bytes for each passage and a few caches.

    Without `finish` the folder is worthless; removing it is up to the caller.

    Args:
        folder: Is made; nobody else writes there. Its parents must exist.
        dimension: Width of the vectors.
        dtype: To store them as: "float32" or "float16".

    Raises:
        InputError: The dtype is another, or there is something at `folder` that is not an empty
            folder.
        PassageIndexError: From here and every method: writing failed, as on a full disk.
    """

    def __init__(self, folder: Path, dimension: int, dtype: str = "float32") -> None:
        if dtype not in DTYPES:
            raise InputError(f"dtype is {dtype!r}: expected one of {', '.join(DTYPES)}.")
        self._folder = folder
        self._dimension = dimension
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._hashes = array("Q")
        with self._writing(), contextlib.ExitStack() as stack:
            folder.mkdir(exist_ok=True)
            if any(folder.iterdir()):
                raise InputError(f"{folder} is not empty: expected a fresh folder for a shard.")
            self._file = stack.enter_context((folder / VECTORS).open("xb"))
            # Its place; the number of rows is known at the end.
            self._file.write(bytes(HEADER_BYTES))
            self._store = stack.enter_context(contextlib.closing(StoreWriter(folder / PASSAGES)))
            self._open = stack.pop_all()

    @property
    def rows(self) -> int:
        """How many passages have been added."""
        return self._store.count

    def add(self, passages: Sequence[Passage], vectors: Vectors) -> None:
        """Append passages and their vectors, (n, dimension) float32, each of length 1.

        Raises:
            InputError: There are not as many vectors as passages, they are not as described, or an
                id is there already. The shard is worthless then.
        """
        checked = checked_vectors(vectors, self._dimension, "A shard was given")
        if len(checked) != len(passages):
            raise InputError(
                f"A shard was given {len(checked)} vectors for {len(passages)} passages: "
                "expected one row for each, in their order."
            )
        with self._writing():
            self._store.add(passages)
            self._file.write(checked.astype(self._dtype, copy=False).data)
        self._hashes.frombytes(hashes_of(passage.id for passage in passages).tobytes())

    def finish(self, name: str | None = None) -> ShardInfo:
        """Write the rest, have the disk hold all of it, and close.

        Args:
            name: Of the shard, if the folder will be renamed to it; else that of the folder.

        Raises:
            InputError: There are no passages, or the name is none for a shard.
        """
        rows = self.rows
        if not rows:
            raise InputError(f"{self._folder}: a shard without passages; add at least one.")
        with self._writing():
            self._store.commit()
            self._file.seek(0)
            self._file.write(npy_header(self._dtype, (rows, self._dimension)))
            self._open.close()
            hashes = np.frombuffer(self._hashes, dtype=np.uint64)
            order = np.argsort(hashes, kind="stable")
            write_array(self._folder / IDS, np.stack([hashes[order], order.astype(np.uint64)]))
            for file in SHARD_FILES:
                sync(self._folder / file)
            sync(self._folder)
            files = {file: FileInfo.of(self._folder / file) for file in SHARD_FILES}
        return ShardInfo(name or self._folder.name, rows, files)

    def close(self) -> None:
        """Let go of the files; a second call does nothing."""
        # What could not be written is worthless anyway.
        with contextlib.suppress(OSError, sqlite3.Error):
            self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise PassageIndexError(
                f"{self._folder}: writing failed ({error}). Check the free space, then run the "
                "same command again."
            ) from error


class Shard:
    """An open shard; make one with `Shard.open`. Reading is thread-safe.

    Nothing is read before it is needed, and no file is kept open but for connections to SQLite.
    """

    def __init__(
        self,
        folder: Path,
        info: ShardInfo,
        dtype: np.dtype[Any],
        dimension: int,
        store: PassageStore,
    ) -> None:
        self.info = info
        self.dtype = dtype
        self.dimension = dimension
        self.store = store
        self._folder = folder
        self._vectors: NDArray[np.float32] | NDArray[np.float16] | None = None
        self._ids: Hashes | None = None

    @classmethod
    def open(cls, folder: Path, info: ShardInfo, connections: Connections | None = None) -> Self:
        """Open a shard, comparing sizes (not checksums) with what is known of it.

        Args:
            folder: The shard's own: where vectors.npy lies.
            info: What was built.
            connections: Shared with other shards, and closed by whoever made it; None gives this
                one its own.

        Raises:
            PassageIndexError: A file is missing, a link, or not of the size it was built with.
        """
        check_folder(folder)
        for name, file in info.files.items():
            file.check_size(folder / name)
        dtype, shape = read_shape(folder / VECTORS)
        if len(shape) != 2 or shape[0] != info.rows or dtype.name not in DTYPES:
            raise PassageIndexError(
                f"{folder / VECTORS}: {dtype.name} of shape {shape}, but the manifest says "
                f"{info.rows:,} vectors. {REBUILD}"
            )
        store = PassageStore(folder / PASSAGES, info.rows, connections)
        return cls(folder, info, dtype, shape[1], store)

    def __len__(self) -> int:
        return self.info.rows

    @property
    def rows(self) -> int:
        """How many passages it holds."""
        return self.info.rows

    @property
    def vectors(self) -> NDArray[np.float32] | NDArray[np.float16]:
        """(rows, dimension), read-only, memory-mapped."""
        if self._vectors is None:
            self._vectors = self.map_vectors()
        return self._vectors

    def map_vectors(self) -> NDArray[np.float32] | NDArray[np.float16]:
        """As `vectors`, but mapped anew: what is read leaves memory when the array is let go."""
        return map_array(self.vectors_path)

    @property
    def vectors_path(self) -> Path:
        """The file of the vectors."""
        return self._folder / VECTORS

    @property
    def ids(self) -> Hashes:
        """(2, rows): the hashes of all ids in order, and their rows; memory-mapped."""
        if self._ids is None:
            found = map_array(self._folder / IDS)
            if found.shape != (2, self.rows) or found.dtype != np.uint64:
                raise PassageIndexError(
                    f"{self._folder / IDS}: {found.dtype} of shape {found.shape}, expected uint64 "
                    f"of {(2, self.rows)}. {REBUILD}"
                )
            self._ids = found
        return self._ids

    def find(self, ids: Sequence[str], hashes: Hashes | None = None) -> dict[str, int]:
        """The rows of these ids; ids that are not there are left out.

        Args:
            ids: What to look for.
            hashes: `hashes_of(ids)`, if known already.
        """
        known, rows = self.ids
        wanted = hashes_of(ids) if hashes is None else hashes
        places = np.searchsorted(known, wanted)
        hits = np.flatnonzero(known[np.minimum(places, self.rows - 1)] == wanted)
        pairs: list[tuple[str, int]] = []
        for hit, place in zip(hits.tolist(), places[hits].tolist(), strict=True):
            # Different ids may share a hash, so all of them are candidates.
            end = place + 1
            while end < self.rows and known[end] == known[place]:
                end += 1
            pairs += ((ids[hit], int(row)) for row in rows[place:end])
        names = self.store.ids([row for _, row in pairs]) if pairs else []
        return {key: row for (key, row), name in zip(pairs, names, strict=True) if key == name}

    def close(self) -> None:
        """Let go of memory and files; a second call does nothing."""
        self._vectors = self._ids = None
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
