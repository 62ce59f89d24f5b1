"""The FAISS structure of an index that changes: filled anew, gone on with, trained again, tuned.

Knows nothing of generations.
"""

import logging
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from epic_retrieval.index._memory import default_memory
from epic_retrieval.index._searchable import Reporter, choice_text, folder_for, make_searchable
from epic_retrieval.index._swap import place_file, size_of
from epic_retrieval.index._vectors import Vectors, checked_vectors
from epic_retrieval.index.ann import Ann, train_and_add
from epic_retrieval.index.checksums import check_files
from epic_retrieval.index.choice import FLAT, choose
from epic_retrieval.index.encode import Stage
from epic_retrieval.index.exact import Allowed
from epic_retrieval.index.layout import Layout
from epic_retrieval.index.manifest import INDEX, SEARCH, SHARDS, VECTORS, FileInfo, SearchInfo
from epic_retrieval.index.shards import Shards
from epic_retrieval.index.trials import measured, task_of
from epic_retrieval.index.tune import Tuned, tune
from epic_retrieval.storage import digest_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Structures:
    """Makes structures over a layout, whose shards are in place.

    Args:
        folder: The index; structures are put there, beside the present one.
        layout: Of the generation that will be.
        dimension: Width of its vectors.
        scratch: Where structures are made; may be removed once the result is published.
        memory: Bytes to take; None takes half of what is free.
        report: Is told of every step.
    """

    folder: Path
    layout: Layout
    dimension: int
    scratch: Path
    memory: int | None
    report: Reporter

    def trained(self, kind: str, target: float) -> SearchInfo | None:
        """Another structure, trained on these vectors and tuned; None where search is exact.

        Raises:
            InputError: The kind does not serve for these vectors.
            PassageIndexError: A file is damaged.
            OSError: Writing failed.
        """
        memory, count = self._memory(), self.layout.rows
        if not self.layout.count:
            self.report("choosing", 0, 0, note="The index is empty: search is exact.")
            return None
        choice = choose(kind, count, self.dimension, memory)
        gone = len(self.layout.deleted)
        # Deleted rows are in the structure, too.
        dead = f" Deleted among them: {gone:,}; compacting drops these." if gone else ""
        self.report("choosing", count, count, note=choice_text(choice) + dead)
        if choice.factory == FLAT:
            return None
        self._check_vectors()
        place = folder_for(self.scratch, choice, self.layout.shards)
        with self._open() as shards:
            made = make_searchable(
                shards,
                choice,
                place,
                memory=memory,
                target=target,
                report=self.report,
                allowed=self._alive(count),
            )
            self._put(made.file, made.info)
            return made.info

    def filled(self, former: SearchInfo, *, keep_rows: bool) -> SearchInfo:
        """The same structure over these rows, not trained again, its recall measured again.

        Args:
            former: The present one.
            keep_rows: Its rows are the first of these; else all are added anew.

        Raises:
            InputError: There is not enough memory.
            PassageIndexError: A file is damaged.
            OSError: Writing failed.
        """
        self._check_file(former)
        if not keep_rows:
            self._check_vectors()
        names = [shard.name for shard in self.layout.shards]
        place = self.scratch / digest_of([former.file.sha256, keep_rows, names])[:16]

        def advance(stage: str, done: int, total: int) -> None:
            named: Stage = "adding" if stage == "add" else "merging"
            self.report(named, done, total, written=size_of(place))

        with self._open() as shards:
            made = train_and_add(
                shards,
                former.factory,
                memory=self._memory(),
                folder=place,
                base=self.folder / SEARCH / former.name / INDEX,
                keep_rows=keep_rows,
                progress=advance,
            )
            info = replace(
                former,
                name=f"x-{secrets.token_hex(8)}",
                rows=self.layout.rows,
                file=FileInfo.of(made),
            )
            self._put(made, info)
            self.report("measuring", 0, 1)
            recall = self._recall(shards, info)
        text = "unknown" if recall is None else f"{recall:.3f}"
        self.report("measuring", 1, 1, note=f"recall@{info.recall_k} {text}, parameters as before")
        if recall is not None and info.target is not None and recall < info.target:
            logger.warning(
                "%s: recall@%d is %s now, below the wished %g: tune the index again.",
                self.folder,
                info.recall_k,
                text,
                info.target,
            )
        return replace(info, recall=recall)

    def tuned(
        self, info: SearchInfo, target: float, queries: Vectors | None
    ) -> tuple[SearchInfo, Tuned]:
        """The structure with the fastest parameters that reach the target.

        Raises:
            InputError: The target or the queries are not as `tune` describes.
            PassageIndexError: A file is damaged.
        """
        self._check_file(info)
        if queries is not None:
            queries = checked_vectors(queries, self.dimension, "The queries are")
        with self._open() as shards:
            return self._tuned(shards, info, target, queries)

    def _tuned(
        self, shards: Shards, info: SearchInfo, target: float, queries: Vectors | None
    ) -> tuple[SearchInfo, Tuned]:
        ann, alive = self._read(info)
        found = tune(shards, ann, queries, target=target, allowed=alive)
        fresh = replace(
            info,
            parameters=dict(found.parameters),
            recall=found.recall,
            recall_k=found.k,
            target=target,
        )
        return fresh, found

    def _recall(self, shards: Shards, info: SearchInfo) -> float | None:
        """The recall with the present parameters; None if nothing is alive in the structure."""
        ann, alive = self._read(info)
        if not ann.supports_filter:
            alive = None
        if not (info.rows if alive is None else alive.any()):
            return None
        return measured(task_of(shards, ann, k=info.recall_k, allowed=alive), info.parameters)

    def _read(self, info: SearchInfo) -> tuple[Ann, Allowed | None]:
        """The structure, and which of its rows are alive; None if all are."""
        path = self.folder / SEARCH / info.name / INDEX
        ann = Ann.read(path, info.factory, info.rows, self.dimension, mmap=True)
        return ann, self._alive(info.rows)

    def _alive(self, rows: int) -> Allowed | None:
        """Which of the first rows count; None if all do."""
        gone = self.layout.deleted[: np.searchsorted(self.layout.deleted, rows)]
        if not len(gone):
            return None
        alive = np.ones(rows, dtype=np.bool_)
        alive[gone] = False
        return alive

    def _put(self, made: Path, info: SearchInfo) -> None:
        place_file(made, self.folder / SEARCH / info.name / INDEX)

    def _check_file(self, info: SearchInfo) -> None:
        """Make sure that a structure has its checksum.

        Raises:
            PassageIndexError: It has not.
        """
        check_files(self.folder, {f"{SEARCH}/{info.name}/{INDEX}": info.file})

    def _open(self) -> Shards:
        return Shards(self.folder, self.layout.shards, dimension=self.dimension)

    def _check_vectors(self) -> None:
        check_files(
            self.folder,
            {f"{SHARDS}/{s.name}/{VECTORS}": s.files[VECTORS] for s in self.layout.shards},
        )

    def _memory(self) -> int:
        return default_memory() if self.memory is None else self.memory
