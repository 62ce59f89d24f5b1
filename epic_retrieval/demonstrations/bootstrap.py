"""How sure a difference of two means is, when both were measured on the same queries.

Knows nothing of queries and metrics: numbers in, an interval out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 1 << 22  # numbers drawn at a time


@dataclass(frozen=True)
class Gain:
    """A mean difference and its interval."""

    mean: float
    low: float
    high: float
    confidence: float

    @property
    def certain(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0


def paired_bootstrap(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Gain:
    """The mean of `after - before` with its percentile bootstrap interval over queries.

    Args:
        before: (n,) one number per query, n at least 2.
        after: (n,) the same queries in the same order.
        resamples: how often n queries are drawn with replacement.
        confidence: that the interval holds the mean, between 0 and 1.
        seed: of the draws; the same seed gives the same interval.
    """
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    if differences.ndim != 1 or len(differences) < 2:
        raise ValueError(f"differences of shape {differences.shape}; expected (n,), n at least 2")
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _AT_ONCE // len(differences))
    for start in range(0, resamples, step):
        part = means[start : start + step]
        drawn = generator.integers(0, len(differences), (len(part), len(differences)))
        part[:] = differences[drawn].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Gain(float(differences.mean()), float(low), float(high), confidence)
