"""Index folders as writers leave them: several shards, rows after the structure, deleted rows."""

import functools
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from epic_retrieval.index import Manifest, Passage, build_index
from epic_retrieval.index._mapped import write_array
from epic_retrieval.index.generations import publish, writing
from epic_retrieval.index.manifest import DeletedInfo, FileInfo, read_manifest
from epic_retrieval.index.shard import ShardWriter
from tests.index.samples import ENCODER, encode, passages

# Random vectors have no clusters, so structures find little; enough for what is tested here.
KINDS = ("flat", "HNSW8", "IVF16,SQ8", "IVF16,PQ8x4fs", "PQ8x4fs")

LATER = [Passage(f"x{n}", f"Later text {n}.", metadata={"n": n}) for n in range(50)]
GONE = range(0, 740, 6)


def build_kind(out: Path, given: Sequence[Passage], kind: str, dtype: str = "float32") -> Manifest:
    """An index of this kind, in shards of 300 passages."""
    return build_index(
        given, encode, out, encoder=ENCODER, kind=kind, dtype=dtype, shard_size=300, memory=10**9
    )


def append(folder: Path, given: Sequence[Passage]) -> Manifest:
    """Publish a further shard."""
    name = f"s-{secrets.token_hex(8)}"
    with writing(folder):
        manifest = read_manifest(folder)
        place = folder / "shards" / name
        with ShardWriter(place, manifest.dimension, manifest.dtype) as writer:
            writer.add(given, encode([passage.content for passage in given]))
            info = writer.finish()
        shards = (*manifest.shards, info)
        return publish(folder, replace(manifest, shards=shards, count=manifest.count + len(given)))


def delete(folder: Path, rows: Sequence[int]) -> Manifest:
    """Publish a state in which exactly these rows are deleted."""
    name = f"d-{secrets.token_hex(8)}"
    with writing(folder):
        manifest = read_manifest(folder)
        path = folder / "deleted" / f"{name}.npy"
        path.parent.mkdir(exist_ok=True)
        write_array(path, np.array(sorted(rows), dtype=np.int64))
        info = DeletedInfo(name, len(rows), FileInfo.of(path))
        return publish(folder, replace(manifest, deleted=info, count=manifest.rows - len(rows)))


def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A fixture: for each kind 700 passages, then LATER, and of all of them GONE are deleted."""
    base = tmp_path_factory.mktemp("living")

    @functools.cache
    def made(kind: str) -> Path:
        out = base / kind
        build_kind(out, passages(700), kind, "float16" if kind == "flat" else "float32")
        append(out, LATER)
        delete(out, GONE)
        return out

    return made


def unsynced() -> Iterator[None]:
    """A fixture: nothing is forced to the disk, since disks are slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield
