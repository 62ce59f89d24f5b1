"""The changes of an index, each made from the present generation and published as the next one.

Knows nothing of models, nor of what callers may get wrong.
"""

import logging
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from epic_retrieval.errors import InputError
from epic_retrieval.index._batches import EncodingSettings
from epic_retrieval.index._files import check_count
from epic_retrieval.index._memory import default_memory
from epic_retrieval.index._searchable import Report, Reporter, check_kind, check_target
from epic_retrieval.index._shard_folder import Encode, truncated
from epic_retrieval.index._vectors import Vectors, checked_vectors
from epic_retrieval.index.compaction import placed, rewritten
from epic_retrieval.index.encode import encode_shards
from epic_retrieval.index.incoming import Incoming
from epic_retrieval.index.layout import Layout, compactable, mergeable_tail
from epic_retrieval.index.manifest import SHARDS, Manifest, SearchInfo, ShardInfo
from epic_retrieval.index.passage import Passage
from epic_retrieval.index.present import Present
from epic_retrieval.index.restructure import Structures
from epic_retrieval.index.rows import Rows
from epic_retrieval.index.tune import Tuned

logger = logging.getLogger(__name__)

# Shards that the writer makes are at least so large when there is enough to fill them.
_SHARD_SIZE = 50_000
# As many rows as this share of the structure's own may stand behind it.
_BEHIND = 0.1


@dataclass(frozen=True)
class Limits:
    """When the writer tidies up, and what it may take for it.

    Args:
        shard_size: Passages in a new shard, at most; None takes the largest there is, or 50,000 if
            that is more.
        exact_rows: Rows behind the FAISS structure that are searched exactly before it takes them;
            a tenth of its own rows if that is more.
        memory: Bytes for making structures; None takes half of what is free.

    Raises:
        InputError: One of them is not as described.
    """

    shard_size: int | None
    exact_rows: int
    memory: int | None

    def __post_init__(self) -> None:
        for name, least in (("shard_size", 1), ("exact_rows", 0), ("memory", 1)):
            value = getattr(self, name)
            if value is not None:
                check_count(name, value, least)


class Changes:
    """What the writer of an index, who holds its lock already, can do to it.

    Args:
        folder: The index.
        limits: When to tidy up.

    Attributes:
        present: The present generation.

    Raises:
        PassageIndexError: Not an index, or damaged.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.present = Present(folder)
        self._folder = folder
        self._limits = limits
        self._pending = self.present.pending

    def encoded(
        self,
        incoming: Incoming,
        passages: Iterable[Passage],
        encode: Encode,
        *,
        chunk_size: int,
        total: int | None,
        progress: Report | None,
    ) -> list[ShardInfo]:
        """Encode passages into shards of their own, which are no part of the index yet.

        Args:
            incoming: Leaves out what need not be written.
            passages: What comes.
            encode: From here on as for `encode_shards`.
            chunk_size: For each call of `encode`.
            total: If it is known.
            progress: Called after each chunk.

        Raises:
            InputError: An id stands twice, or `incoming` refuses one, or vectors are not as
                described.
            PassageIndexError: Writing failed; finished shards are kept.
        """
        if total is None and isinstance(passages, Sized):
            total = len(passages)
        built = self.present.manifest.encoder
        full = self.present.manifest.truncated_from or built.dimension
        settings = EncodingSettings(
            replace(built, dimension=full),
            self.present.manifest.dtype,
            built.dimension,
            self._shard_size,
        )
        try:
            shards = encode_shards(
                incoming.wanted(passages),
                encode,
                self._pending.encoding,
                settings=self._pending.settings(settings),
                chunk_size=chunk_size,
                # What was deleted, or compacted, or published in vain may come again.
                reuse=[self._folder],
                total=total,
                progress=incoming.counting(progress),
            )
        except BaseException as error:
            if incoming.same:
                error.add_note(
                    f"Numbers of passages leave out {incoming.same:,} that are in the index as "
                    "they are."
                )
            self._pending.explain(error)
            raise
        if not shards:
            self._pending.tidy()
        return shards

    def append(
        self, encoded: Sequence[ShardInfo], replaced: Rows, progress: Report | None
    ) -> Manifest:
        """Take shards in, in place of some rows, and tidy up behind the FAISS structure."""
        with self.present.safely():
            source = self._pending.encoding / SHARDS
            fresh = [placed(self._folder, source / info.name, info) for info in encoded]
            layout = self.present.layout.plus(fresh).without(replaced)
            search = self.present.manifest.search
            covered = search.rows if search is not None else 0
            limit = max(self._limits.exact_rows, _BEHIND * covered)
            if search is not None and layout.rows - covered > limit:
                # Before the structure holds their rows: afterwards they could not move.
                groups = compactable(layout, self._shard_size, covered)
                layout = self._rewritten(layout, groups, progress)
                search = self._grown(layout, search, progress)
            else:
                groups = mergeable_tail(layout, self._shard_size, covered)
                layout = self._rewritten(layout, groups, progress)
            return self.present.commit(layout, search, forget=[info.name for info in encoded])

    def remove(self, rows: Rows) -> Manifest:
        """Mark rows as deleted."""
        with self.present.safely():
            return self.present.commit(
                self.present.layout.without(rows), self.present.manifest.search
            )

    def compact(self, progress: Report | None) -> Manifest:
        """Write shards anew that have deleted rows or are small, and have the structure follow."""
        layout, search = self.present.layout, self.present.manifest.search
        groups = compactable(layout, self._shard_size)
        if not groups and (search is None or search.rows == layout.rows):
            # Readers may have gone since the last change.
            self.present.sweep()
            return self.present.manifest
        with self.present.safely():
            gone = layout.dropped(groups)
            layout = self._rewritten(layout, groups, progress)
            if search is not None:
                kept = not len(gone) or int(gone[0]) >= search.rows
                if not layout.rows:
                    search = None
                elif not kept or search.rows < layout.rows:
                    structures = self._structures(layout, self.present.manifest.dimension, progress)
                    search = structures.filled(search, keep_rows=kept)
            return self.present.commit(layout, search, forget=[])

    def rebuild(
        self,
        kind: str,
        memory: int | None,
        dimension: int | None,
        target: float,
        progress: Report | None,
    ) -> Manifest:
        """Make another structure, over vectors that may be cut to fewer dimensions."""
        check_target(target)
        if memory is not None:
            check_count("memory", memory, 1)
        former = self.present.manifest
        width = former.dimension if dimension is None else dimension
        check_count("dimension", width, 1)
        if width > former.dimension:
            raise InputError(
                f"dimension is {width}: expected 1 to {former.dimension}, since that is what is "
                "stored. For more, build the index again."
            )
        layout = self.present.layout
        # Before hours are spent on copies.
        room = memory or self._limits.memory or default_memory()
        # A narrower copy leaves out deleted rows; an index without others gets no structure.
        copied = width < former.dimension or not layout.count
        rows = layout.count if copied else layout.rows
        check_kind(kind, rows, width, room)
        with self.present.safely():
            if width < former.dimension:
                groups = [range(len(layout.shards))] if layout.shards else []
                layout = self._rewritten(layout, groups, progress, dimension=width)
            structures = self._structures(layout, width, progress, memory)
            search = structures.trained(kind, target)
            full = former.truncated_from or former.dimension
            return self.present.commit(
                layout,
                search,
                forget=[],
                encoder=replace(former.encoder, dimension=width),
                truncated_from=full if width < full else None,
            )

    def tune(self, target: float, queries: Vectors | None) -> Tuned:
        """Set the search parameters."""
        if self.present.manifest.search is None:
            raise InputError(
                f"{self._folder} has no FAISS structure: search is exact, so there is nothing to "
                "tune. Rebuild it with another kind than flat first."
            )
        width, full = self.present.manifest.dimension, self.present.manifest.truncated_from
        if queries is not None and full is not None and np.shape(queries)[1:] == (full,):
            queries = truncated(checked_vectors(queries, full, "The queries are"), width)
        with self.present.safely():
            structures = self._structures(self.present.layout, width, None)
            search, found = structures.tuned(self.present.manifest.search, target, queries)
            self.present.commit(self.present.layout, search)
        return found

    @property
    def _shard_size(self) -> int:
        if self._limits.shard_size is not None:
            return self._limits.shard_size
        return max([_SHARD_SIZE, *(shard.rows for shard in self.present.layout.shards)])

    def _rewritten(
        self,
        layout: Layout,
        groups: Sequence[range],
        progress: Report | None,
        dimension: int | None = None,
    ) -> Layout:
        if not groups:
            return layout
        encoder = self.present.manifest.encoder
        settings = EncodingSettings(
            encoder, self.present.manifest.dtype, dimension or encoder.dimension, self._shard_size
        )
        return rewritten(
            self._folder,
            layout,
            groups,
            settings=settings,
            scratch=self._pending.copies,
            report=Reporter(progress, len(layout.shards)),
        )

    def _grown(self, layout: Layout, search: SearchInfo, progress: Report | None) -> SearchInfo:
        """The structure over all rows; as it is if that does not fit into memory."""
        if layout.rows == search.rows:
            return search
        structures = self._structures(layout, self.present.manifest.dimension, progress)
        try:
            return structures.filled(search, keep_rows=True)
        except InputError as error:
            # What was encoded is not thrown away for that.
            logger.warning(
                "%s: %s passages stay behind the search structure and are searched exactly (%s)",
                self._folder,
                f"{layout.rows - search.rows:,}",
                error,
            )
            return search

    def _structures(
        self,
        layout: Layout,
        dimension: int,
        progress: Report | None,
        memory: int | None = None,
    ) -> Structures:
        return Structures(
            self._folder,
            layout,
            dimension,
            self._pending.structure,
            memory or self._limits.memory,
            Reporter(progress, len(layout.shards)),
        )
