"""Inverted lists in pieces: written piece by piece, then merged into one file, whatever its size.

FAISS merges inverted lists in memory, or into a second file that it maps while it is written (a
full disk then ends the process). Here lists stream from the pieces into FAISS's own file format,
whose last section they are. Knows nothing of training or checkpoints.
"""

import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index._faiss import load_faiss
from epic_retrieval.index.manifest import REBUILD
from epic_retrieval.index.structure import Parts, has_plain_lists
from epic_retrieval.index.structure_file import read_structure

Sizes = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_LABEL = 8
# Lists are copied in groups of so many bytes, or one by one.
GROUP_BYTES = 32 << 20


class Piece(Protocol):
    """Some of the rows of an inverted file."""

    @property
    def sizes(self) -> Sizes:
        """Rows in each list, (lists,)."""

    def read(self, first: int, stop: int) -> tuple[Bytes, Bytes]:
        """Codes and labels of the lists first to stop - 1, one list after another, as bytes."""


def can_stream(parts: Parts) -> bool:
    """Whether a structure's lists are plain ones that lie at the end of its file."""
    return has_plain_lists(parts) and _prefix(parts, 0) is not None


@dataclass(frozen=True)
class PieceFile:
    """A piece in a file of ours: sizes, labels and codes, each list by list.

    Attributes:
        path: Of the file.
        sizes: Rows in each list.
        code_size: Bytes of a code.
    """

    path: Path
    sizes: Sizes
    code_size: int

    @classmethod
    def open(cls, path: Path, lists: int, code_size: int) -> "PieceFile":
        """A piece that `write_piece` wrote.

        Raises:
            PassageIndexError: Its size is not right.
        """
        with path.open("rb") as file:
            sizes = np.frombuffer(file.read(8 * lists), np.int64)
        expected = 8 * lists + int(sizes.sum()) * (_LABEL + code_size)
        if len(sizes) != lists or path.stat().st_size != expected:
            raise PassageIndexError(f"{path}: damaged. Remove its folder and build again.")
        return cls(path, sizes, code_size)

    def read(self, first: int, stop: int) -> tuple[Bytes, Bytes]:
        """Codes and labels of the lists first to stop - 1."""
        before, rows = int(self.sizes[:first].sum()), int(self.sizes[first:stop].sum())
        labels_at = 8 * len(self.sizes)
        codes_at = labels_at + _LABEL * int(self.sizes.sum())
        with self.path.open("rb") as file:
            file.seek(labels_at + _LABEL * before)
            labels = np.frombuffer(file.read(_LABEL * rows), np.uint8)
            file.seek(codes_at + self.code_size * before)
            codes = np.frombuffer(file.read(self.code_size * rows), np.uint8)
        return codes, labels


class FinishedFile:
    """A finished structure as a piece: its lists are mapped, not read."""

    def __init__(self, path: Path) -> None:
        self._parts = read_structure(path, mapped=True)
        self.sizes = _sizes(self._parts.inner)

    def read(self, first: int, stop: int) -> tuple[Bytes, Bytes]:
        """Codes and labels of the lists first to stop - 1."""
        return _contents(self._parts.inner, range(first, stop))


def write_piece(parts: Parts, path: Path, group_bytes: int = GROUP_BYTES) -> None:
    """Write the lists of a structure as a piece, whole or not at all."""
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            file.write(_sizes(parts.inner).tobytes())
            for place in (1, 0):
                for group in _groups(_sizes(parts.inner), parts.inner.code_size, group_bytes):
                    file.write(_contents(parts.inner, group)[place].data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def merge(
    empty: Parts, pieces: Sequence[Piece], path: Path, group_bytes: int = GROUP_BYTES
) -> None:
    """Write the structure that holds all pieces, whole or not at all.

    The file is what FAISS itself would write, and is read by FAISS before it gets its name. In
    memory: a group of lists, and the part of the structure that is not lists.

    Args:
        empty: The trained structure without rows, as all pieces had it.
        pieces: In the order in which rows of one list shall stand.
        path: To write.
        group_bytes: How many bytes of lists to copy at once.

    Raises:
        OSError: As on a full disk.
        PassageIndexError: FAISS does not find what was written.
    """
    sizes: Sizes = np.stack([piece.sizes for piece in pieces]).sum(axis=0)
    rows, width = int(sizes.sum()), int(empty.inner.code_size)
    prefix = _prefix(empty, rows)
    if prefix is None:
        raise ValueError("the structure's lists cannot be streamed: ask can_stream first")
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            file.write(prefix + _section(len(sizes), width, b"full", sizes))
            for group in _groups(sizes, width, group_bytes):
                for content in _merged(pieces, group, width):
                    file.write(content.data)
            file.flush()
            os.fsync(file.fileno())
        _check(temporary, sizes)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _merged(pieces: Sequence[Piece], group: range, width: int) -> Iterator[Bytes]:
    """For each list of a group all codes, then all labels."""
    read = [piece.read(group.start, group.stop) for piece in pieces]
    # Where each list begins in what was read of a piece, in rows.
    starts = [np.r_[0, piece.sizes[group.start : group.stop].cumsum()].tolist() for piece in pieces]
    for place in range(len(group)):
        for kind, size in ((0, width), (1, _LABEL)):
            for contents, start in zip(read, starts, strict=True):
                yield contents[kind][start[place] * size : start[place + 1] * size]


def _groups(sizes: Sizes, width: int, group_bytes: int) -> Iterator[range]:
    """Runs of neighbouring lists that are small together, or single large ones."""
    first, held = 0, 0
    for number, size in enumerate(sizes.tolist()):
        held += size * (width + _LABEL)
        if held > group_bytes and number > first:
            yield range(first, number)
            first, held = number, size * (width + _LABEL)
    yield range(first, len(sizes))


def _contents(inner: Any, lists: range) -> tuple[Bytes, Bytes]:  # noqa: ANN401 - FAISS is untyped
    faiss = load_faiss()
    stored = inner.invlists
    codes, labels = [np.empty(0, np.uint8)], [np.empty(0, np.uint8)]
    for number in lists:
        size = stored.list_size(number)
        if size:
            codes.append(faiss.rev_swig_ptr(stored.get_codes(number), size * inner.code_size))
            labels.append(faiss.rev_swig_ptr(stored.get_ids(number), size).view(np.uint8))
    return np.concatenate(codes), np.concatenate(labels)


def _sizes(inner: Any) -> Sizes:  # noqa: ANN401
    stored = inner.invlists
    return np.array([stored.list_size(number) for number in range(inner.nlist)], np.int64)


def _prefix(empty: Parts, rows: int) -> bytes | None:
    """What a file with so many rows begins with; None if lists are not what it ends with."""
    faiss = load_faiss()
    held = empty.whole.ntotal, empty.inner.ntotal
    writer = faiss.VectorIOWriter()
    empty.whole.ntotal = empty.inner.ntotal = rows
    try:
        faiss.write_index(empty.whole, writer)
    finally:
        empty.whole.ntotal, empty.inner.ntotal = held
    content: bytes = faiss.vector_to_array(writer.data).tobytes()
    none = _section(empty.inner.nlist, empty.inner.code_size, b"sprs", np.empty(0, np.int64))
    return content.removesuffix(none) if content.endswith(none) else None


def _section(lists: int, code_size: int, form: bytes, sizes: Sizes) -> bytes:
    """The head of FAISS's section of plain inverted lists."""
    counts = (np.array([lists, code_size], "<u8"), np.array([len(sizes)], "<u8"))
    return b"ilar" + counts[0].tobytes() + form + counts[1].tobytes() + sizes.tobytes()


def _check(path: Path, sizes: Sizes) -> None:
    inner = read_structure(path, mapped=True)
    found = _sizes(inner.inner)
    if inner.whole.ntotal != sizes.sum() or not np.array_equal(found, sizes):
        raise PassageIndexError(
            f"{path}: FAISS finds {int(found.sum()):,} rows where {int(sizes.sum()):,} were "
            f"written; this release of FAISS may be too new. {REBUILD}"
        )
