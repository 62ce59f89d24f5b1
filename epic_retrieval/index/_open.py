"""Reads the vectors of an index folder, and compares its files with the manifest.

Knows nothing of passages or searching.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index._faiss import load_faiss
from epic_retrieval.index._flat import FlatIndex
from epic_retrieval.index.manifest import VECTORS, FileInfo, Manifest

REBUILD = "Copy the index again from its source, or build it again."


def file_problems(
    folder: Path, manifest: Manifest, *, checksums: bool
) -> Iterator[tuple[str, str]]:
    """(file name, what is wrong with it) for files that are missing or not as they were built.

    Args:
        folder: The index.
        manifest: What it should hold.
        checksums: Read every byte; else compare the sizes alone.
    """
    for name, built in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            found = FileInfo.of(path) if checksums and size == built.bytes else None
        except FileNotFoundError:
            yield name, "is missing"
        except OSError as error:
            yield name, f"cannot be read ({error.strerror})"
        else:
            if size != built.bytes:
                yield name, f"has {size:,} bytes, but was built with {built.bytes:,}"
            elif found is not None and found != built:
                yield name, "is damaged: its bytes do not have the checksum they were built with"


def read_vectors(folder: Path, manifest: Manifest) -> FlatIndex:
    """The FAISS index of a folder, read into memory.

    Raises:
        PassageIndexError: FAISS cannot read it, or it holds something else than the manifest says.
    """
    faiss = load_faiss()
    path = folder / VECTORS
    try:
        index = faiss.read_index(str(path))
    except (RuntimeError, MemoryError) as error:
        raise PassageIndexError(f"{path}: FAISS cannot read it ({error}). {REBUILD}") from error
    if not isinstance(index, faiss.IndexFlat) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise PassageIndexError(
            f"{path}: not a Flat index of inner products, as the manifest says. {REBUILD}"
        )
    if (index.ntotal, index.d) != (manifest.count, manifest.dimension):
        raise PassageIndexError(
            f"{path}: {index.ntotal:,} vectors of {index.d} dimensions, but the manifest says "
            f"{manifest.count:,} of {manifest.dimension}. {REBUILD}"
        )
    return cast(FlatIndex, index)
