"""The present generation of an index in the hands of its writer, and how the next one replaces it.

New files are made beside those that are there; the manifest is swapped last, so that a process
that dies at any moment leaves the index as it was before or as it is afterwards. Knows nothing of
what is changed.
"""

import contextlib
import datetime as dt
import logging
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index._mapped import write_array
from epic_retrieval.index._open import read_deleted
from epic_retrieval.index._shard_folder import ShardNotWrittenError
from epic_retrieval.index._swap import shortage
from epic_retrieval.index.build import package_version
from epic_retrieval.index.checksums import check_files
from epic_retrieval.index.generations import publish, sweep
from epic_retrieval.index.layout import Layout
from epic_retrieval.index.manifest import (
    DELETED,
    IDS,
    DeletedInfo,
    FileInfo,
    Manifest,
    SearchInfo,
    read_manifest,
)
from epic_retrieval.index.pending import Pending
from epic_retrieval.index.rows import Rows
from epic_retrieval.index.shards import Shards

logger = logging.getLogger(__name__)


class Present:
    """The generation that is published, open; for the one who holds the writer's lock.

    Args:
        folder: The index.

    Attributes:
        folder: The same.
        pending: Its unfinished work.
        manifest: Of this generation.
        layout: What it holds.
        shards: The same, open.

    Raises:
        PassageIndexError: Not an index, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = read_manifest(folder)
        self.pending = Pending(folder, manifest)
        # Without these, passages would be taken for absent, or for alive.
        check_files(
            folder,
            {
                name: info
                for name, info in manifest.files.items()
                if name.endswith(f"/{IDS}") or name.startswith(f"{DELETED}/")
            },
        )
        self._open(manifest)

    def _open(self, manifest: Manifest) -> None:
        deleted = read_deleted(self.folder, manifest)
        self.shards = Shards(
            self.folder, manifest.shards, dimension=manifest.dimension, dtype=manifest.dtype
        )
        self.manifest = manifest
        self.layout = Layout(manifest.shards, deleted)

    def refresh(self) -> None:
        """Make sure that the next change builds on what is there.

        A change that was stopped right after it was published has not told this object.
        """
        present = read_manifest(self.folder)
        if present != self.manifest:
            self.shards.close()
            self._open(present)
            self.pending.settle(present)

    def close(self) -> None:
        """Let go of all files."""
        self.shards.close()

    def commit(
        self,
        layout: Layout,
        search: SearchInfo | None,
        *,
        forget: Sequence[str] | None = None,
        **changes: Any,  # noqa: ANN401 (fields of the manifest)
    ) -> Manifest:
        """Publish the next generation, and remove what nobody needs any longer.

        Args:
            layout: Its shards and its structure are in place.
            search: Over its first rows.
            forget: Shards of `pending` that it holds; None if it has nothing of that.
            changes: Of the manifest.
        """
        deleted = self._written(layout.deleted)
        manifest = replace(
            self.manifest,
            count=layout.count,
            shards=layout.shards,
            search=search,
            deleted=deleted,
            updated=dt.datetime.now(dt.UTC).isoformat(timespec="microseconds"),
            package_version=package_version(),
            **changes,
        )
        if forget is not None:
            self.pending.promise(manifest, forget)
        manifest = publish(self.folder, manifest)
        self.shards.close()
        self._open(manifest)
        if forget is not None:
            self.pending.forget(forget)
        self.sweep()
        return manifest

    def sweep(self) -> None:
        """Remove what neither this generation nor a reader needs."""
        try:
            sweep(self.folder)
        except OSError as error:
            # Nothing is wrong with the index, and the next change tries again.
            logger.warning("%s: what is not needed could not be removed (%s)", self.folder, error)

    def _written(self, deleted: Rows) -> DeletedInfo | None:
        """The file of deleted rows; that of the present generation if it is the same."""
        if np.array_equal(deleted, self.layout.deleted):
            return self.manifest.deleted
        if not len(deleted):
            return None
        name = f"d-{secrets.token_hex(8)}"
        path = self.folder / DELETED / f"{name}.npy"
        path.parent.mkdir(exist_ok=True)
        try:
            write_array(path, deleted)
        except OSError:
            # Room is what is wanted.
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise
        return DeletedInfo(name, len(deleted), FileInfo.of(path))

    @contextmanager
    def safely(self) -> Iterator[None]:
        """Says of a failure what has become of the index."""
        former = self.manifest
        try:
            yield
        except (OSError, ShardNotWrittenError) as error:
            if read_manifest(self.folder) != former:
                raise PassageIndexError(
                    f"{self.folder}: the index was changed, but then something failed ({error}). "
                    "Check the disk; there is nothing to do again."
                ) from error
            raise PassageIndexError(
                f"{self.folder}: the index could not be changed ({error}), and is as it was "
                f"before. {shortage(self.folder, None)} Then run the same command again."
            ) from error
