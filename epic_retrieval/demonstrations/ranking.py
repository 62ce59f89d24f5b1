"""nDCG@10 of queries whose passages are ranked by inner product. Knows nothing of models."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

CUTOFF = 10
METRIC = f"ndcg@{CUTOFF}"
_AT_ONCE = 1 << 25  # scores held at a time

Vectors = NDArray[np.float32]


def ndcg(
    queries: Vectors, passages: Vectors, relevant: Sequence[Mapping[int, int]]
) -> NDArray[np.float64]:
    """nDCG@10 of each query; gains are the grades themselves, as in trec_eval.

    Where scores are equal, the passage that comes first in the corpus ranks first.

    Args:
        queries: (n, d).
        passages: (N, d).
        relevant: per query, the grades, above 0, of rows of `passages`; at least one.

    Returns:
        (n,) from 0 to 1.
    """
    found = np.empty(len(queries))
    step = max(1, _AT_ONCE // len(passages))
    for start in range(0, len(queries), step):
        scores = queries[start : start + step] @ passages.T  # (step, N)
        for offset, row in enumerate(scores):
            found[start + offset] = _ndcg(row, relevant[start + offset])
    return found


def _ndcg(scores: NDArray[np.float32], relevant: Mapping[int, int]) -> float:
    rows, grades = np.array(list(relevant)), np.array(list(relevant.values()), dtype=np.float64)
    ranks = np.array(
        [
            np.count_nonzero(scores > scores[row]) + np.count_nonzero(scores[:row] == scores[row])
            for row in rows
        ]
    )  # from 0
    gained = np.where(ranks < CUTOFF, grades / np.log2(ranks + 2), 0.0).sum()
    best = np.sort(grades)[::-1][:CUTOFF]
    return float(gained / (best / np.log2(np.arange(len(best)) + 2)).sum())
