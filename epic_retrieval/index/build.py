"""Builds an index folder from passages and an encode function, in one streaming pass.

Knows nothing of models: encoding is handed in as a function.
"""

import datetime as dt
import itertools
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

import numpy as np

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._faiss import load_faiss
from epic_retrieval.index._swap import folder_for, sync
from epic_retrieval.index._vectors import Vectors, checked_vectors
from epic_retrieval.index.manifest import (
    MANIFEST,
    PASSAGES,
    VECTORS,
    EncoderInfo,
    FileInfo,
    Manifest,
)
from epic_retrieval.index.passage import Passage
from epic_retrieval.index.store import StoreWriter

Encode: TypeAlias = Callable[[list[str]], np.ndarray]


def build_index(
    passages: Iterable[Passage],
    encode: Encode,
    out: str | Path,
    *,
    encoder: EncoderInfo,
    chunk_size: int = 1024,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
    corpus: str = "",
) -> Manifest:
    """Encode passages and write them, with their vectors, as the index folder `out`.

    Everything is written into a hidden folder beside `out`, which is renamed at the very end: a
    build that is stopped, at any moment, leaves no folder that could be taken for an index, and
    the next build of the same `out` clears up after it. In memory: one chunk of passages, and all
    vectors (4 bytes times dimension for each passage, up to three times that for moments while it
    grows).

    Args:
        passages: Any number, streamed; at least one.
        encode: From the `content` of up to `chunk_size` passages to their vectors, an array of
            shape (n, dimension), float32, each row of length 1.
        out: The folder to make; parents are made too. A path that exists must be an empty folder,
            or an index if `overwrite`.
        encoder: Who encodes; searching checks it.
        chunk_size: Passages for each call of `encode`.
        overwrite: Replace an index. The old one serves until the new one is complete.
        progress: Called after each chunk with the number of passages done so far.
        corpus: Name of the corpus, for the manifest.

    Returns:
        The manifest of the new index.

    Raises:
        InputError: No passages, a repeated id, vectors that are not as described, or an `out` that
            must not be replaced or cannot be written.
        PassageIndexError: Another process is building `out`, or writing failed (a full disk).
        MissingExtraError: FAISS is not installed.
    """
    if chunk_size < 1:
        raise InputError(f"chunk_size is {chunk_size}: expected at least 1.")
    load_faiss()
    with folder_for(Path(out), overwrite=overwrite) as folder:
        count = _write_files(passages, encode, folder, encoder.dimension, chunk_size, progress)
        with _disk(folder):
            for name in (VECTORS, PASSAGES):
                sync(folder / name)
            manifest = Manifest(
                count=count,
                metric="cosine",
                kind="Flat",
                encoder=encoder,
                files={name: FileInfo.of(folder / name) for name in (PASSAGES, VECTORS)},
                created=dt.datetime.now(dt.UTC).isoformat(timespec="microseconds"),
                package_version=_version(),
                corpus=corpus,
            )
            # Last of all: a folder without it is no index.
            (folder / MANIFEST).write_text(manifest.to_text(), encoding="utf-8", newline="\n")
            sync(folder / MANIFEST)
    return manifest


def _write_files(
    passages: Iterable[Passage],
    encode: Encode,
    folder: Path,
    dimension: int,
    chunk_size: int,
    progress: Callable[[int], None] | None,
) -> int:
    faiss = load_faiss()
    index = faiss.IndexFlatIP(dimension)
    with _disk(folder):
        writer = StoreWriter(folder / PASSAGES)
    with closing(writer):
        for chunk in _chunks(passages, chunk_size):
            # The store first: it finds a repeated id before anything is spent on encoding.
            with _disk(folder):
                writer.add(chunk)
            index.add(_encoded(chunk, encode, dimension))
            if progress is not None:
                progress(writer.count)
        if not writer.count:
            raise InputError("There are no passages to index: give at least one.")
        with _disk(folder):
            writer.commit()
    with _disk(folder):
        _write_vectors(index, folder / VECTORS)
    return writer.count


def _write_vectors(index: object, path: Path) -> None:
    faiss = load_faiss()
    # Through a file of ours: FAISS's own leaves out the last bytes on a full disk without an error.
    with path.open("wb") as file:
        try:
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
        except (RuntimeError, SystemError) as error:
            raise OSError(str(error)) from error


def _chunks(passages: Iterable[Passage], size: int) -> Iterator[list[Passage]]:
    rest = iter(passages)
    while chunk := list(itertools.islice(rest, size)):
        for passage in chunk:
            if not isinstance(passage, Passage):
                given = type(passage).__name__
                raise InputError(f"passages holds a {given}: expected Passage objects.")
        yield chunk


def _encoded(chunk: list[Passage], encode: Encode, dimension: int) -> Vectors:
    vectors = encode([passage.content for passage in chunk])
    checked = checked_vectors(vectors, dimension, "encode returned")
    if len(checked) != len(chunk):
        raise InputError(
            f"encode returned {len(checked)} vectors for {len(chunk)} texts: expected one row for "
            "each text, in their order."
        )
    return checked


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise PassageIndexError(
            f"{folder.parent}: writing the index failed ({error}). Nothing was changed; check the "
            "free space and build again."
        ) from error


def _version() -> str:
    try:
        return metadata.version("epic-retrieval")
    except metadata.PackageNotFoundError:
        # Used from a source tree that was never installed.
        return "unknown"
