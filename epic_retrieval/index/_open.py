"""One generation of an index, open for reading: its shards, its search structure, what is alive.

Knows nothing of scores, nor of later generations.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index._fields import Mask
from epic_retrieval.index._mapped import map_array
from epic_retrieval.index.ann import Ann
from epic_retrieval.index.checksums import check_files
from epic_retrieval.index.manifest import (
    DELETED,
    INDEX,
    MANIFEST,
    PASSAGES,
    REBUILD,
    SEARCH,
    VECTORS,
    Manifest,
    check_folder,
)
from epic_retrieval.index.passage import JSON
from epic_retrieval.index.rows import Rows
from epic_retrieval.index.shards import Shards
from epic_retrieval.index.where import Condition, parse

# The largest files: damage there shows in single answers, and not in all of them.
_LARGE = (VECTORS, PASSAGES)
# The answers to so many of the last conditions are kept, up to so many bytes of them.
_KEPT = 100
_KEPT_BYTES = 2**28


@dataclass(frozen=True)
class Allowed:
    """The rows that may be found.

    Attributes:
        mask: (rows,), whether each may.
        count: How many may.
        proposable: How many of them the search structure holds.
        filtered: Whether a condition left some out; else they are deleted.
    """

    mask: Mask
    count: int
    proposable: int
    filtered: bool


class View:
    """An open generation; make one with `open_view`. Reading is thread-safe.

    Attributes:
        manifest: Of this generation.
        shards: Vectors and passages.
        ann: The search structure over the first rows; None where there is none.
        deleted: Global rows that do not count, sorted.
    """

    def __init__(self, manifest: Manifest, shards: Shards, ann: Ann | None, deleted: Rows) -> None:
        self.manifest = manifest
        self.shards = shards
        self.ann = ann
        self.deleted = deleted
        self._alive: Allowed | None = None
        if len(deleted):
            mask = np.ones(len(shards), dtype=np.bool_)
            mask[deleted] = False
            self._alive = self._allowed(mask, filtered=False)
        self._kept: OrderedDict[Condition, Allowed] = OrderedDict()
        self._lock = threading.Lock()

    def allowed(self, where: Mapping[str, JSON] | Condition | None) -> Allowed | None:
        """The rows that are alive and match; None if all rows are and do.

        Raises:
            InputError: The condition is not as `epic_retrieval.index.where.parse` describes.
        """
        if where is None:
            return self._alive
        condition = where if isinstance(where, Condition) else parse(where)
        with self._lock:
            found = self._kept.get(condition)
            if found is not None:
                self._kept.move_to_end(condition)
        if found is None:
            found = self._matching(condition)
        return found if found.count < len(self.shards) else None

    def _matching(self, condition: Condition) -> Allowed:
        mask = self.shards.mask(condition)
        if self._alive is not None:
            mask &= self._alive.mask
        found = self._allowed(mask, filtered=True)
        if found.count == self.manifest.count:
            found = replace(found, filtered=False)
        with self._lock:
            self._kept[condition] = found
            while len(self._kept) > _KEPT or len(self._kept) * mask.nbytes > _KEPT_BYTES:
                self._kept.popitem(last=False)
        return found

    def _allowed(self, mask: Mask, *, filtered: bool) -> Allowed:
        mask.flags.writeable = False
        held = 0 if self.ann is None else self.ann.rows
        within = int(np.count_nonzero(mask[:held]))
        return Allowed(mask, within + int(np.count_nonzero(mask[held:])), within, filtered)


def open_view(folder: Path, manifest: Manifest, *, check: bool) -> View:
    """Open a generation.

    Args:
        folder: The index.
        manifest: Of the generation.
        check: Compare all files with their checksums; else all but vectors and passages.

    Raises:
        PassageIndexError: A file is missing, a link, damaged, or not as the manifest says.
    """
    if (folder / MANIFEST).is_symlink():
        raise PassageIndexError(f"{folder / MANIFEST}: a link, not a file of its own. {REBUILD}")
    shards = Shards(folder, manifest.shards, dimension=manifest.dimension, dtype=manifest.dtype)
    try:
        files = manifest.files
        if manifest.search is not None:
            check_folder(folder / SEARCH)
            check_folder(folder / SEARCH / manifest.search.name)
        if manifest.deleted is not None:
            check_folder(folder / DELETED)
        wanted = {name: info for name, info in files.items() if check or not name.endswith(_LARGE)}
        check_files(folder, wanted)
        deleted = read_deleted(folder, manifest)
        return View(manifest, shards, read_structure(folder, manifest), deleted)
    except BaseException:
        shards.close()
        raise


def read_deleted(folder: Path, manifest: Manifest) -> Rows:
    """The deleted rows, sorted.

    Raises:
        PassageIndexError: The file is missing or damaged, or has other rows than there can be.
    """
    if manifest.deleted is None:
        return np.empty(0, dtype=np.int64)
    path = folder / DELETED / f"{manifest.deleted.name}.npy"
    found = map_array(path)
    if found.dtype != np.int64 or found.shape != (manifest.deleted.rows,):
        raise PassageIndexError(
            f"{path}: {found.dtype} of shape {found.shape}, but the manifest says "
            f"{manifest.deleted.rows:,} deleted rows. {REBUILD}"
        )
    if found[0] < 0 or found[-1] >= manifest.rows or np.any(found[1:] <= found[:-1]):
        raise PassageIndexError(
            f"{path}: not sorted rows of 0 to {manifest.rows - 1:,}, each once. {REBUILD}"
        )
    return np.array(found)


def read_structure(folder: Path, manifest: Manifest) -> Ann | None:
    """The search structure; None where search is exact. Its checksum is compared before.

    Raises:
        PassageIndexError: FAISS cannot read it, or it holds something else than the manifest says.
    """
    info = manifest.search
    if info is None:
        return None
    path = folder / SEARCH / info.name / INDEX
    return Ann.read(path, info.factory, info.rows, manifest.dimension, mmap=True)
