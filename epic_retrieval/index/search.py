"""An index that is open for searching: query vectors in, passages with scores out.

Knows nothing of models: queries come as vectors.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import numpy as np

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._differences import incomparable
from epic_retrieval.index._faiss import load_faiss
from epic_retrieval.index._finding import best_rows, checked_count, checked_parameters
from epic_retrieval.index._open import View, open_view
from epic_retrieval.index._shard_folder import truncated
from epic_retrieval.index._vectors import Vectors, checked_vectors
from epic_retrieval.index._words import counted
from epic_retrieval.index.generations import Reading, reading
from epic_retrieval.index.manifest import EncoderInfo, Manifest, read_manifest
from epic_retrieval.index.passage import JSON, Passage
from epic_retrieval.index.where import Condition

Where: TypeAlias = Mapping[str, JSON] | Condition

_ATTEMPTS = 3
_AT_ONCE = 1000


@dataclass(frozen=True)
class Hit:
    """One found passage: its cosine with the query, in [-1, 1], and its rank, from 1."""

    passage: Passage
    score: float
    rank: int


class PassageIndex:
    """An open index folder; make one with `PassageIndex.open`. Searching is thread-safe.

    It keeps serving what it opened: what others add, change or delete afterwards is seen by those
    who open the folder then.
    """

    def __init__(self, folder: Path, view: View, held: Reading) -> None:
        self._folder = folder
        self._manifest = view.manifest
        self._view: View | None = view
        # Also for those who never close.
        self._release = weakref.finalize(self, _release, view, held)

    @classmethod
    def open(cls, folder: str | Path, *, check: bool = True) -> Self:
        """Open an index folder. Vectors and passages are read when they are needed.

        Whether files have their checksums is found out once for each state of a file, and then
        remembered in the user's cache folder.

        Args:
            folder: What `build_index` made.
            check: Compare every file with its checksum first. Without it, vectors and passages
                are only compared in size.

        Raises:
            PassageIndexError: Not an index, or a file is missing, a link or damaged.
            MissingExtraError: FAISS is not installed.
        """
        load_faiss()
        # Files are opened when needed: then a relative path, or a link, may lead elsewhere.
        folder = Path(folder).resolve()
        for attempt in range(_ATTEMPTS):
            held = reading(folder)
            try:
                view = open_view(folder, held.manifest, check=check)
            except BaseException as error:
                held.close()
                # Where there are no locks, a writer may have removed files under our hands.
                if (
                    attempt + 1 == _ATTEMPTS
                    or not isinstance(error, PassageIndexError)
                    or read_manifest(folder) == held.manifest
                ):
                    raise
                continue
            break
        return cls(folder, view, held)

    @property
    def manifest(self) -> Manifest:
        """What the index holds."""
        return self._manifest

    @property
    def passages(self) -> "Passages":
        """All passages, in the order of their rows."""
        return Passages(self._opened())

    def __len__(self) -> int:
        return self._manifest.count

    def __contains__(self, passage_id: object) -> bool:
        """Whether there is a passage with this id."""
        view = self._opened()
        if not isinstance(passage_id, str):
            return False
        # Half a surrogate pair is in no id.
        known = passage_id.encode(errors="ignore").decode() == passage_id
        return known and bool(view.shards.find([passage_id], view.deleted))

    def __repr__(self) -> str:
        held = f"{counted(self._manifest.count, 'passage')}, {self._manifest.kind}"
        closed = ", closed" if self._view is None else ""
        return f"PassageIndex({str(self._folder)!r}, {held}{closed})"

    def check_encoder(self, encoder: EncoderInfo) -> None:
        """Make sure that queries of this encoder can be compared with the passages.

        Raises:
            PassageIndexError: The passages were encoded by another one.
        """
        built, width = self._manifest.encoder, self._manifest.truncated_from
        if encoder.fingerprint != built.fingerprint or (
            encoder.dimension not in (built.dimension, width)
        ):
            whole = replace(built, dimension=width or built.dimension)
            raise PassageIndexError(incomparable(self._folder, whole, encoder))

    def search(
        self,
        vectors: Vectors,
        k: int,
        where: Where | None = None,
        parameters: Mapping[str, int] | None = None,
    ) -> list[list[Hit]]:
        """The k passages with the highest cosine, for each query.

        Cosines are computed in double precision, and equal ones are ordered by row. An index of
        the kind "Flat" finds exactly the best, and so does every kind where `where` lets few
        passages through; others find most of them (see the recall in the manifest). In any case
        there are k hits if so many passages match.

        Args:
            vectors: (n, dimension) float32, each row of length 1; n may be 0. Where the index
                keeps less of each vector than the encoder gives, both widths will do.
            k: At least 1; more than there are passages gives all.
            where: Only passages whose metadata match are found; see
                `epic_retrieval.index.where.parse` for how to write it. A field that no passage
                has, or a value of another type than those there, is no error and finds nothing.
            parameters: Replace those stored with the index: "nprobe" or "efSearch", how far the
                search structure looks, and "candidates", how many of its proposals are scored.

        Raises:
            InputError: An argument is not as described.
            PassageIndexError: The index is closed, or its files cannot be read.
        """
        view = self._opened()
        queries = self._queries(vectors)
        wanted = checked_count("k", k)
        settings = checked_parameters(view, parameters)
        allowed = view.allowed(where)
        wanted = min(wanted, len(self) if allowed is None else allowed.count)
        if not wanted or not len(queries):
            return [[] for _ in queries]
        found = best_rows(view, queries, wanted, allowed, settings)
        rows = found.rows[0] if len(queries) == 1 else np.unique(found.rows)
        passages = dict(zip(rows.tolist(), view.shards.fetch(rows), strict=True))
        return [
            [
                Hit(passages[row], score, rank)
                for rank, (row, score) in enumerate(zip(near, scores, strict=True), start=1)
            ]
            for near, scores in zip(found.rows.tolist(), found.cosines.tolist(), strict=True)
        ]

    def get(self, ids: Iterable[str]) -> dict[str, Passage]:
        """The passages with these ids, in the order of the ids; absent ones are left out.

        Raises:
            InputError: `ids` is one text.
            PassageIndexError: The index is closed, or its files cannot be read.
        """
        view = self._opened()
        found = view.shards.find(_checked_ids(ids), view.deleted)
        passages = view.shards.fetch(list(found.values()))
        return dict(zip(found, passages, strict=True))

    def vectors(self, ids: Iterable[str]) -> Vectors:
        """The stored vectors of these passages, (n, dimension) float32; repeats allowed.

        Raises:
            InputError: There is no passage with one of these ids, or `ids` is one text.
            PassageIndexError: The index is closed, or its files cannot be read.
        """
        view = self._opened()
        wanted = _checked_ids(ids)
        found = view.shards.find(wanted, view.deleted)
        missing = [key for key in wanted if key not in found]
        if missing:
            raise InputError(
                f'{self._folder} has no passage with the id "{missing[0]}" ({len(missing):,} of '
                f"{len(wanted):,} ids are not there). Leave such ids out; `get` tells which exist."
            )
        return view.shards.take(np.array([found[key] for key in wanted], dtype=np.int64))

    def close(self) -> None:
        """Let go of memory and files; a second call does nothing."""
        self._view = None
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _opened(self) -> View:
        if self._view is None:
            raise PassageIndexError(f"{self._folder}: the index is closed. Open it again.")
        return self._view

    def _queries(self, vectors: Vectors) -> Vectors:
        dimension, width = self._manifest.dimension, self._manifest.truncated_from
        if width is not None and np.shape(vectors)[1:] == (width,):
            return truncated(checked_vectors(vectors, width, "The queries are"), dimension)
        return checked_vectors(vectors, dimension, "The queries are")


class Passages:
    """The passages of an open index in the order of their rows, without those deleted."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __len__(self) -> int:
        return self._view.manifest.count

    def __iter__(self) -> Iterator[Passage]:
        shards, alive = self._view.shards, self._view.allowed(None)
        for start in range(0, len(shards), _AT_ONCE):
            rows = np.arange(start, min(start + _AT_ONCE, len(shards)))
            yield from shards.fetch(rows if alive is None else rows[alive.mask[rows]])


def _release(view: View, held: Reading) -> None:
    view.shards.close()
    held.close()


def _checked_ids(ids: Iterable[str]) -> list[str]:
    if isinstance(ids, str):
        raise InputError(f'ids is the text "{ids}": expected a list of ids, such as ["{ids}"].')
    return list(ids)
