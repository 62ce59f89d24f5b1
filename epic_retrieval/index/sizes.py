"""How large a FAISS structure becomes: on disk, and in memory while it is built.

From its empty form alone, before anything is trained. Knows nothing of vectors.
"""

from typing import Any

from epic_retrieval.index._faiss import load_faiss
from epic_retrieval.index.structure import Parts

_FLOAT = 4
_LABEL = 8
# Fast-scan codes lie in groups of so many rows.
_GROUP = 32


def file_bytes(parts: Parts, rows: int) -> int:
    """Expected size of its file with so many rows."""
    inner = parts.inner
    fixed = sum(map(_transform_bytes, parts.transforms)) + _codec_bytes(inner)
    if parts.lists:
        # Each list's last group is half full on average.
        spare = _GROUP / 2 * inner.nlist if is_fast_scan(inner) else 0
        codes = (rows + min(spare, rows * (_GROUP - 1))) * inner.code_size
        lists = inner.nlist * _LABEL + _quantizer_bytes(inner)
        return int(fixed + lists + codes + rows * _LABEL)
    return int(fixed + rows * _row_bytes(inner))


def held_bytes(parts: Parts, rows: int) -> int:
    """Memory that it takes while rows are added to it, at the most."""
    # Lists grow one by one, each to twice its size now and then; the rest is set aside at once.
    growth = 1.5 if parts.lists else 1.05
    # Graphs have a lock, and searching them a mark, for each row.
    extra = 16 * rows if parts.graph else 0
    return int(growth * file_bytes(parts, rows)) + extra


def set_aside(parts: Parts, rows: int) -> None:
    """Take the memory for so many rows now, where a structure would else move as it grows."""
    faiss = load_faiss()
    inner = parts.inner
    if parts.lists or is_fast_scan(inner):
        return
    stored = faiss.downcast_index(inner.storage) if parts.graph else inner
    wanted = [(stored.codes, rows * stored.code_size)] if hasattr(stored, "codes") else []
    if parts.graph:
        links = int(inner.hnsw.nb_neighbors(1))
        wanted.append((inner.hnsw.neighbors, int(1.01 * rows * _neighbours(links)) + 1024))
    for vector, size in wanted:
        held = vector.size()
        if size > held:
            vector.resize(size)
            vector.resize(held)


def is_fast_scan(inner: Any) -> bool:  # noqa: ANN401 - FAISS has no types of its own
    """Whether codes lie interleaved, as fast-scan wants them."""
    return type(inner).__name__.endswith("FastScan")


def _row_bytes(index: Any) -> float:  # noqa: ANN401
    faiss = load_faiss()
    if isinstance(index, faiss.IndexHNSW):
        storage = faiss.downcast_index(index.storage)
        return graph_bytes(int(index.hnsw.nb_neighbors(1))) + _row_bytes(storage)
    return float(index.code_size)


def graph_bytes(links: int) -> float:
    """Bytes for each row of an HNSW graph with M = `links`."""
    return 4 * _neighbours(links) + 4 + 8


def _neighbours(links: int) -> float:
    # Twice M links on the lowest level; one row in M reaches the next one, and so on.
    return 2 * links + links / (links - 1)


def _quantizer_bytes(inner: Any) -> float:  # noqa: ANN401
    quantizer = load_faiss().downcast_index(inner.quantizer)
    return float(inner.nlist * _row_bytes(quantizer))


def _codec_bytes(index: Any) -> float:  # noqa: ANN401
    """What training leaves in a structure, besides centroids."""
    faiss = load_faiss()
    if isinstance(index, faiss.IndexHNSW):
        return _codec_bytes(faiss.downcast_index(index.storage))
    if hasattr(index, "pq"):
        return float(_FLOAT * index.pq.ksub * index.d)
    if hasattr(index, "aq"):
        return float(_FLOAT * index.aq.total_codebook_size * index.d)
    if hasattr(index, "rabitq"):
        return float(_FLOAT * index.d)
    # Least and greatest value of each dimension.
    return float(2 * _FLOAT * index.d) if hasattr(index, "sq") else 0.0


def _transform_bytes(transform: Any) -> float:  # noqa: ANN401
    faiss = load_faiss()
    wide, narrow = int(transform.d_in), int(transform.d_out)
    if isinstance(transform, faiss.PCAMatrix):
        # All principal axes are kept, too.
        return float(_FLOAT * (wide * wide + wide * narrow + 2 * wide + narrow))
    if isinstance(transform, faiss.LinearTransform):
        return float(_FLOAT * wide * narrow)
    return float(_FLOAT * narrow)
