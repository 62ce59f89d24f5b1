"""Queries made from stored vectors that are about as hard to answer as those of people.

A stored vector is an easy query: its neighbours lie around it, and the structure was made with it.
A real one lies beside what is stored, and its best rows lie in more directions: parameters that
found 0.95 for stored vectors found 0.84 to 0.92 for new queries. So each vector is moved by as much
as it lies from the middle of all, in a random one of the directions in which rows differ.
"""

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index.rows import Rows, VectorRows

# So many rows tell in which directions rows differ.
_SPREAD = 1024


def unseen_queries(rows: VectorRows, counted: Rows, count: int, seed: int) -> Vectors:
    """Made-up queries, (n, dimension) float32 of length 1, the same for the same seed.

    Args:
        rows: The vectors.
        counted: Numbers of the rows to make them from.
        count: How many to make; no more than there are rows.
        seed: Of what is random.
    """
    random = np.random.default_rng(seed)
    near = _drawn(rows, counted, count, random)
    some = _drawn(rows, counted, _SPREAD, random)
    if not len(near):
        return np.empty((0, rows.dimension), np.float32)
    middle = some.mean(axis=0)
    moves = random.standard_normal((len(near), len(some))) @ (some - middle)
    moves *= _lengths(near - middle) / np.maximum(_lengths(moves), 1e-12)
    made = near + moves
    # Where rows are all alike, nothing is left to move by; opposite moves leave nothing.
    lengths = _lengths(made)
    made = np.where(lengths > 1e-6, made, near)
    found: Vectors = (made / _lengths(made)).astype(np.float32)
    return found


def _drawn(
    rows: VectorRows, counted: Rows, count: int, random: np.random.Generator
) -> NDArray[np.float64]:
    drawn = random.choice(counted, min(count, len(counted)), replace=False)
    return rows.take(np.sort(drawn)).astype(np.float64)


def _lengths(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.linalg.norm(vectors, axis=1, keepdims=True)
    return lengths
