"""Vectors as encoders give them, roughly: in clusters on the sphere."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index.rows import ArrayRows


class SmallBlocks(ArrayRows):
    """Rows that come 3,000 at a time at the most, as if shards were that small."""

    def blocks(self, rows_at_once: int, start: int = 0) -> Iterator[tuple[int, Vectors]]:
        return super().blocks(min(rows_at_once, 3000), start)


def clustered(count: int, dimension: int, *, seed: int = 0, clusters: int | None = None) -> Vectors:
    """(count, dimension) unit vectors around one centre for each 100 of them."""
    random = np.random.default_rng(seed)
    # The centres do not depend on the seed, so that queries fall into the same clusters.
    centres = _unit(np.random.default_rng(1).standard_normal((clusters or count // 100, dimension)))
    noise = random.standard_normal((count, dimension)) * (0.8 / np.sqrt(dimension))
    return _unit(centres[random.integers(0, len(centres), count)] + noise)


def _unit(vectors: NDArray[np.float64]) -> Vectors:
    found: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return found
