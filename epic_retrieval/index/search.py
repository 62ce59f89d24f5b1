"""An index that is open for searching: query vectors in, passages with scores out.

Knows nothing of models: queries come as vectors.
"""

import operator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._flat import FlatIndex, nearest
from epic_retrieval.index._open import REBUILD, file_problems, read_vectors
from epic_retrieval.index._vectors import Vectors, checked_vectors
from epic_retrieval.index.manifest import PASSAGES, EncoderInfo, Manifest, read_manifest
from epic_retrieval.index.passage import Passage
from epic_retrieval.index.store import PassageStore

_ATTEMPTS = 3


@dataclass(frozen=True)
class Hit:
    """One found passage: its cosine with the query, in [-1, 1], and its rank, from 1."""

    passage: Passage
    score: float
    rank: int


class PassageIndex:
    """An open index folder; make one with `PassageIndex.open`. Searching is thread-safe.

    It keeps serving what it opened, even if the folder is replaced by a newer index.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, vectors: FlatIndex, store: PassageStore
    ) -> None:
        self._folder = folder
        self._manifest = manifest
        self._vectors: FlatIndex | None = vectors
        self._store = store

    @classmethod
    def open(cls, folder: str | Path, *, check: bool = True) -> Self:
        """Open an index folder, reading its vectors into memory; passages are read when found.

        Args:
            folder: What `build_index` made.
            check: Compare every file with its checksum first. Without it only sizes and counts
                are compared: quicker, but FAISS takes damaged vectors without complaint.

        Raises:
            PassageIndexError: Not an index, or a file is missing or damaged.
            MissingExtraError: FAISS is not installed.
        """
        folder = Path(folder)
        for _ in range(_ATTEMPTS):
            manifest = read_manifest(folder)
            try:
                opened = cls._opened(folder, manifest, check=check)
            except PassageIndexError:
                # A builder may have replaced the folder under our hands: then try the new one.
                if read_manifest(folder) == manifest:
                    raise
                continue
            if read_manifest(folder) == manifest:
                return opened
            opened.close()
        raise PassageIndexError(
            f"{folder}: replaced {_ATTEMPTS} times while it was being opened. Try again later."
        )

    @classmethod
    def _opened(cls, folder: Path, manifest: Manifest, *, check: bool) -> Self:
        for name, problem in file_problems(folder, manifest, checksums=check):
            raise PassageIndexError(f"{folder / name} {problem}. {REBUILD}")
        vectors = read_vectors(folder, manifest)
        store = PassageStore(folder / PASSAGES)
        if len(store) != manifest.count:
            store.close()
            raise PassageIndexError(
                f"{folder / PASSAGES}: {len(store):,} passages, but the manifest says "
                f"{manifest.count:,}. {REBUILD}"
            )
        return cls(folder, manifest, vectors, store)

    @property
    def manifest(self) -> Manifest:
        """What the index holds."""
        return self._manifest

    @property
    def passages(self) -> PassageStore:
        """The stored passages, by row and by id."""
        return self._store

    def __len__(self) -> int:
        return self._manifest.count

    def check_encoder(self, encoder: EncoderInfo) -> None:
        """Make sure that queries of this encoder can be compared with the passages.

        Raises:
            PassageIndexError: The passages were encoded by another one.
        """
        built = self._manifest.encoder
        if (encoder.fingerprint, encoder.dimension) != (built.fingerprint, built.dimension):
            raise PassageIndexError(
                f"{self._folder} was built with {_described(built)}, but queries come from "
                f"{_described(encoder)}; their vectors cannot be compared. Load the encoder that "
                "the index was built with, or build the index again with this one."
            )

    def search(self, vectors: Vectors, k: int) -> list[list[Hit]]:
        """The k passages with the highest cosine, for each query.

        Exact, and the same whichever queries are asked together: cosines are computed in double
        precision, and equal ones are ordered by the passages' order in the corpus.

        Args:
            vectors: (n, dimension) float32, each row of length 1; n may be 0.
            k: At least 1; more than there are passages gives all.

        Raises:
            InputError: Vectors or k are not as described.
            PassageIndexError: The index is closed, or its passages cannot be read.
        """
        index = self._vectors
        if index is None:
            raise PassageIndexError(f"{self._folder}: the index is closed. Open it again.")
        queries = checked_vectors(vectors, self._manifest.dimension, "The queries are")
        found = nearest(index, queries, min(_checked_k(k), len(self)))
        wanted = sorted({row for near in found for row, _ in near})
        passages = dict(zip(wanted, self._store.fetch(wanted), strict=True))
        return [
            [Hit(passages[row], score, rank) for rank, (row, score) in enumerate(near, start=1)]
            for near in found
        ]

    def close(self) -> None:
        """Let go of memory and files; a second call does nothing."""
        self._vectors = None
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _checked_k(k: int) -> int:
    try:
        number = operator.index(k)
    except TypeError as error:
        raise InputError(f"k is {k!r}: expected a whole number, at least 1.") from error
    if number < 1 or isinstance(k, bool):
        raise InputError(f"k is {k!r}: expected a whole number, at least 1.")
    return number


def _described(encoder: EncoderInfo) -> str:
    task = f", task {encoder.task}" if encoder.task else ""
    return (
        f'"{encoder.name}" (fingerprint {encoder.fingerprint}, {encoder.dimension} dimensions'
        f"{task})"
    )
