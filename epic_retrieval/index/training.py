"""Trains an empty structure on a sample of rows that fits into memory.

Knows nothing of folders or checkpoints.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from epic_retrieval.errors import InputError
from epic_retrieval.index._faiss import load_faiss
from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index.rows import VectorRows
from epic_retrieval.index.structure import (
    FAISS_ERRORS,
    Parts,
    needed_rows,
    opq_bits,
    reason_of,
)

# k-means gains little beyond this many rows for each centroid.
_WISHED_PER_CENTROID = 64
# Ranges, codebooks and rotations, too, beyond this many rows.
_WISHED = 65_536
_READ_BYTES = 64 << 20
# The rest is for what FAISS keeps besides rows.
_OF_MEMORY = 0.9


def training_rows(parts: Parts, rows: int, memory: int, factory: str) -> int:
    """How many rows to train on; 0 if there is nothing to train.

    Args:
        parts: Untrained.
        rows: How many there are.
        memory: Bytes that training may take.
        factory: For messages.

    Raises:
        InputError: There are fewer rows than training needs, or no memory for those.
    """
    needed = needed_rows(parts)
    if not needed:
        return 0
    if rows < needed:
        raise InputError(
            f'"{factory}" needs at least {needed:,} rows to train on; there are {rows:,}. Take '
            "fewer lists or smaller codes, or the kind auto, which fits the number of rows."
        )
    most = int(_OF_MEMORY * memory) // row_bytes(parts)
    if most < needed:
        wanted = needed * row_bytes(parts) / _OF_MEMORY / 2**20
        raise InputError(
            f'"{factory}" needs {wanted:,.0f} MiB of memory to be trained; there are '
            f"{memory / 2**20:,.0f}. Give more memory, or take fewer lists."
        )
    lists = int(parts.inner.nlist) if parts.lists else 0
    wished = max(needed, _WISHED_PER_CENTROID * lists, _WISHED)
    return min(wished, rows, most)


def row_bytes(parts: Parts) -> int:
    """Bytes of memory that each row of a training sample takes."""
    # As it was read, and a copy for each step that changes it: a transformation, residuals, and
    # for 8-bit codes the numbers of one dimension after those of another.
    copies = 2 + len(parts.transforms) + hasattr(parts.inner, "sq")
    return 4 * int(parts.whole.d) * copies


def sample(rows: VectorRows, count: int, seed: int) -> Vectors:
    """So many rows, spread evenly, one drawn from each stretch; in their order."""
    stretches = np.linspace(0, len(rows), count + 1)
    drawn = np.random.default_rng(seed).random(count)
    wanted = (stretches[:-1] + drawn * np.diff(stretches)).astype(np.int64)
    found = np.empty((count, rows.dimension), np.float32)
    done = 0
    # Read through, not taken by number: a mapped shard is let go of when its rows are done.
    for first, block in rows.blocks(max(1, _READ_BYTES // (4 * rows.dimension))):
        stop = int(np.searchsorted(wanted, first + len(block)))
        np.take(block, wanted[done:stop] - first, axis=0, out=found[done:stop], mode="clip")
        done = stop
    return found


def train(parts: Parts, vectors: Vectors, seed: int, factory: str) -> None:
    """Train a structure.

    Args:
        parts: Untrained; is trained afterwards.
        vectors: From `sample`.
        seed: Of k-means.
        factory: For messages.

    Raises:
        InputError: FAISS cannot train it on these rows.
    """
    faiss = load_faiss()
    with ExitStack() as stack:
        stack.enter_context(_fast_small_products())
        if parts.lists:
            parts.inner.cp.seed = seed + 1234  # FAISS's own default at 0
            if faiss.get_num_gpus() > 0:
                on_gpus = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(parts.inner.d))
                parts.inner.clustering_index = on_gpus
                stack.callback(setattr, parts.inner, "clustering_index", None)
        for transform in parts.transforms:
            if isinstance(transform, faiss.OPQMatrix):
                # FAISS would fit the rotation to codes of 8 bits, slowly, whatever comes after.
                fitted = faiss.ProductQuantizer(transform.d_out, transform.M, opq_bits(parts))
                transform.pq = fitted
                stack.callback(setattr, transform, "pq", None)
        try:
            parts.whole.train(vectors)
        except FAISS_ERRORS as error:
            raise InputError(
                f'FAISS cannot train "{factory}" on {len(vectors):,} rows of {vectors.shape[1]} '
                f"dimensions ({reason_of(error)})."
            ) from error


def quantizer_on_gpu(parts: Parts) -> Any | None:  # noqa: ANN401 - FAISS is untyped
    """A copy, on the first GPU, of what finds the list of an added row; None without a GPU.

    A graph over centroids stays where it is: it is quick on its own, and no GPU takes it.
    """
    faiss = load_faiss()
    if not parts.lists or faiss.get_num_gpus() < 1:
        return None
    quantizer = faiss.downcast_index(parts.inner.quantizer)
    if not isinstance(quantizer, faiss.IndexFlat):
        return None
    return faiss.index_cpu_to_all_gpus(quantizer, ngpu=1)


@contextmanager
def exchanged(parts: Parts, quantizer: Any | None) -> Iterator[None]:  # noqa: ANN401
    """An inverted file with another quantizer of the same centroids for a while; None keeps it."""
    if quantizer is None:
        yield
        return
    own = parts.inner.quantizer
    parts.inner.quantizer = quantizer
    try:
        yield
    finally:
        parts.inner.quantizer = own


@contextmanager
def _fast_small_products() -> Iterator[None]:
    # Above this size FAISS multiplies matrices. Its default since 1.14 makes k-means in few
    # dimensions (codebooks) some five times slower than need be.
    settings = load_faiss().cvar
    held = settings.distance_compute_blas_threshold
    settings.distance_compute_blas_threshold = 20
    try:
        yield
    finally:
        settings.distance_compute_blas_threshold = held
