"""Checks that what is inside the files of an index fits together.

Knows nothing of checksums: a file that is not as it was built must not come here, since FAISS and
SQLite believe what it says.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._open import read_deleted, read_structure
from epic_retrieval.index._shard_folder import Encode, truncated
from epic_retrieval.index._twins import duplicates
from epic_retrieval.index._vectors import Vectors, checked_vectors
from epic_retrieval.index.manifest import (
    DELETED,
    IDS,
    INDEX,
    PASSAGES,
    SEARCH,
    SHARDS,
    VECTORS,
    Manifest,
    ShardInfo,
)
from epic_retrieval.index.passage import Passage
from epic_retrieval.index.rows import Rows
from epic_retrieval.index.shard import Shard, hashes_of
from epic_retrieval.index.shards import Shards

Kind = Literal[
    "manifest", "file", "extra", "vectors", "passages", "ids", "deleted", "search", "encoding"
]

_AT_ONCE = 8192
_ENCODED_AT_ONCE = 1024
# Vectors may be off by 1e-3 when they come, and half precision adds to that.
_NORM_TOLERANCE = 2e-3
# Encoding again on another machine, or in half precision, gives almost the same.
LEAST_COSINE = 0.999


@dataclass(frozen=True)
class Problem:
    """One fault: what kind, in which file (its path in the folder), and what it is, for people."""

    kind: Kind
    file: str
    message: str

    def __str__(self) -> str:
        return f"{self.file} {self.message}"


def content_problems(folder: Path, manifest: Manifest, bad: set[str]) -> Iterator[Problem]:
    """Faults in vectors, passages, ids, deleted rows and the search structure.

    Args:
        folder: The index.
        manifest: What it should hold.
        bad: Paths of files and folders in it that must not be opened.
    """
    whole = True
    for info in {shard.name: shard for shard in manifest.shards}.values():
        place = f"{SHARDS}/{info.name}"
        if {SHARDS, place, *(f"{place}/{name}" for name in info.files)} & bad:
            whole = False
            continue
        for problem in _shard_problems(folder, manifest, info):
            whole = False
            yield problem
    deleted = None
    if manifest.deleted is not None:
        name = f"{DELETED}/{manifest.deleted.name}.npy"
        try:
            deleted = None if {DELETED, name} & bad else read_deleted(folder, manifest)
        except PassageIndexError as error:
            yield Problem("deleted", name, f"fails: {error}")
        whole = whole and deleted is not None
    if whole:
        yield from _id_problems(folder, manifest, deleted)
    if manifest.search is not None:
        name = f"{SEARCH}/{manifest.search.name}/{INDEX}"
        if not {SEARCH, f"{SEARCH}/{manifest.search.name}", name} & bad:
            try:
                read_structure(folder, manifest)
            except PassageIndexError as error:
                yield Problem("search", name, f"fails: {error}")


def encoding_problems(
    folder: Path,
    manifest: Manifest,
    encode: Encode,
    sample: int,
    least: float = LEAST_COSINE,
) -> Iterator[Problem]:
    """Passages whose vectors are not what the encoder gives now.

    Args:
        folder: The index, in which nothing else was found wrong.
        manifest: What it holds.
        encode: As for `build_index`.
        sample: How many passages, evenly spread.
        least: Cosine from which on two vectors are the same.

    Raises:
        InputError: `encode` returned something else than unit vectors of the index's encoder.
    """
    alive = np.ones(manifest.rows, dtype=np.bool_)
    alive[read_deleted(folder, manifest)] = False
    rows = np.flatnonzero(alive)
    sample = min(sample, len(rows))
    # In the middle of as many pieces of equal size.
    rows = rows[((np.arange(sample) + 0.5) * len(rows) / max(1, sample)).astype(np.int64)]
    with _shards(folder, manifest) as shards:
        for start in range(0, len(rows), _ENCODED_AT_ONCE):
            part = rows[start : start + _ENCODED_AT_ONCE]
            passages = shards.fetch(part)
            again = _encoded(passages, encode, manifest)
            cosines = np.einsum("nd,nd->n", again, shards.take(part), dtype=np.float64)
            for place in np.flatnonzero(cosines < least).tolist():
                yield Problem(
                    "encoding",
                    _place_of(int(part[place]), manifest),
                    f'has a vector for passage "{passages[place].id}" whose cosine with what the '
                    f"encoder gives is {cosines[place]:.4f}; expected at least {least:g}",
                )


def _shard_problems(folder: Path, manifest: Manifest, info: ShardInfo) -> Iterator[Problem]:
    place = f"{SHARDS}/{info.name}"
    try:
        with Shard.open(folder / place, info) as shard:
            found, stated = shard.dimension, manifest.dimension
            if (found, shard.dtype.name) != (stated, manifest.dtype):
                message = (
                    f"holds vectors of {found} dimensions in {shard.dtype.name}; the manifest says "
                    f"{stated} in {manifest.dtype}"
                )
                yield Problem("vectors", f"{place}/{VECTORS}", message)
            for message in _vector_faults(shard):
                yield Problem("vectors", f"{place}/{VECTORS}", message)
            faults = shard.store.problems()
            for fault in faults:
                yield Problem("passages", f"{place}/{PASSAGES}", f"is inconsistent: {fault}")
            if not faults and not _ids_fit(shard):
                message = "does not hold the hashes of the ids in the passages"
                yield Problem("ids", f"{place}/{IDS}", message)
    except PassageIndexError as error:
        yield Problem("passages", place, f"fails: {error}")


def _vector_faults(shard: Shard) -> Iterator[str]:
    vectors = shard.map_vectors()
    bad: list[int] = []
    for start in range(0, shard.rows, _AT_ONCE):
        block = vectors[start : start + _AT_ONCE].astype(np.float32)
        norms = np.sqrt(np.einsum("nd,nd->n", block, block, dtype=np.float64))
        # Also where it is not a number.
        bad += (np.flatnonzero(~(np.abs(norms - 1.0) <= _NORM_TOLERANCE)) + start).tolist()
    if bad:
        length = np.linalg.norm(vectors[bad[0]].astype(np.float64))
        yield (
            f"has {len(bad):,} vectors that are not finite or not of length 1, the first in row "
            f"{bad[0]:,} (length {length:.6g})"
        )


def _ids_fit(shard: Shard) -> bool:
    hashes = np.empty(shard.rows, dtype=np.uint64)
    for start in range(0, shard.rows, _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, shard.rows))
        hashes[rows.start : rows.stop] = hashes_of(shard.store.ids(rows))
    order = np.argsort(hashes, kind="stable")
    known, rows = shard.ids
    return bool(np.array_equal(known, hashes[order]) and np.array_equal(rows, order))


def _id_problems(folder: Path, manifest: Manifest, deleted: Rows | None) -> Iterator[Problem]:
    try:
        with _shards(folder, manifest) as shards:
            twice = duplicates([shard for _, shard in shards], deleted)
    except PassageIndexError as error:
        yield Problem("ids", SHARDS, f"fails: {error}")
        return
    if twice is not None:
        rows = f"rows {twice.first:,} and {twice.second:,}"
        message = f'has the id "{twice.id}" twice ({rows}), neither of them deleted'
        yield Problem("ids", _place_of(twice.second, manifest, IDS), message)


def _encoded(passages: list[Passage], encode: Encode, manifest: Manifest) -> Vectors:
    width = manifest.truncated_from or manifest.dimension
    given = encode([passage.content for passage in passages])
    vectors = checked_vectors(given, width, "encode returned")
    if len(vectors) != len(passages):
        raise InputError(
            f"encode returned {len(vectors)} vectors for {len(passages)} texts: expected one row "
            "for each text, in their order."
        )
    return truncated(vectors, manifest.dimension)


def _shards(folder: Path, manifest: Manifest) -> Shards:
    return Shards(folder, manifest.shards, dimension=manifest.dimension, dtype=manifest.dtype)


def _place_of(row: int, manifest: Manifest, name: str = VECTORS) -> str:
    for shard in manifest.shards:
        if row < shard.rows:
            break
        row -= shard.rows
    return f"{SHARDS}/{shard.name}/{name}"
