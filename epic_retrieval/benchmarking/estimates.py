"""Estimates from times: percentiles, medians and ratios with intervals, changes between runs.

A bootstrap here resamples the values, a median is taken of each resample, and the middle 95 % of
those medians are the interval. Seeds are fixed, so that a record always gives the same figures.
Knows nothing of what was timed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.errors import InputError

_DRAWS = 2000
_SEED = 0
_CHANCE = 0.05
# A bootstrap of fewer values takes their spread for smaller than it is.
FEWEST = 8

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A median and its 95 % interval."""

    median: float
    low: float
    high: float

    def to_dict(self) -> dict[str, object]:
        """As records hold it."""
        return {"median": self.median, "interval": [self.low, self.high]}


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` percent of the values lie, interpolated linearly."""
    return float(np.percentile(_checked(values), share))


def median_of(values: Sequence[float]) -> Estimate:
    """The median with its bootstrap interval."""
    sample = _checked(values)
    low, high = np.quantile(_medians(sample, _generator()), [0.025, 0.975])
    return Estimate(float(np.median(sample)), float(low), float(high))


def percentile_of(values: Sequence[float], share: float) -> Estimate:
    """A percentile with its bootstrap interval; the field `median` holds the percentile."""
    sample = _checked(values)
    drawn = np.percentile(_resampled(sample, _generator()), share, axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(percentile(values, share), float(low), float(high))


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> Estimate:
    """How many times longer `above` takes: the median over pairs of the same round.

    Where one has fewer rounds than the other, its rounds count.

    Raises:
        InputError: there is no pair, or a time of `below` is not positive.
    """
    rounds = min(len(above), len(below))
    bottom = _checked(below[:rounds])
    if (bottom <= 0).any():
        raise InputError(f"times to divide by are {bottom.min()} and more; expected more than 0")
    return median_of((_checked(above[:rounds]) / bottom).tolist())


@dataclass(frozen=True)
class Change:
    """What became of one measured quantity from one run to another.

    Attributes:
        name: of the quantity.
        ratio: median of the later over that of the earlier.
        chance: how often noise alone would do as much, corrected for the number of comparisons;
            None where there are too few values to say.
    """

    name: str
    ratio: Estimate
    chance: float | None

    @property
    def is_real(self) -> bool:
        """Whether it lies beyond noise: by chance too rare, and with an interval beside 1."""
        aside = not self.ratio.low <= 1 <= self.ratio.high
        return aside and self.chance is not None and self.chance < _CHANCE


def changes(
    before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]
) -> list[Change]:
    """Compare what two runs measured in common, in the order of `before`.

    Each ratio of medians is resampled on both sides for its interval. The chance is that of a rank
    sum test (Mann and Whitney, normal approximation with ties), which outliers do not move, and
    Holm's step-down procedure keeps the chance of even one false alarm among all comparisons near
    5 %. Noise is what varies within a run: a machine that is slower on another day is not part of
    it.
    """
    names = [name for name in before if name in after]
    ratios, chances = {}, {}
    for name in names:
        one, other = _checked(before[name]), _checked(after[name])
        ratios[name] = _ratio_of_medians(one, other)
        if min(len(one), len(other)) >= FEWEST:
            chances[name] = rank_sum_chance(one, other)
    corrected = dict(zip(chances, holm(list(chances.values())), strict=True))
    return [Change(name, ratios[name], corrected.get(name)) for name in names]


def holm(chances: Sequence[float]) -> list[float]:
    """Holm's correction of p values for their number, in the order given."""
    corrected = [0.0] * len(chances)
    highest = 0.0
    for place, number in enumerate(sorted(range(len(chances)), key=lambda i: chances[i])):
        highest = max(highest, min(1.0, chances[number] * (len(chances) - place)))
        corrected[number] = highest
    return corrected


def rank_sum_chance(one: Sequence[float] | Numbers, other: Sequence[float] | Numbers) -> float:
    """Two-sided p value of the rank sum test that two samples come from one distribution."""
    first, second = _checked(one), _checked(other)
    n, m = len(first), len(second)
    _, places, counts = np.unique(
        np.concatenate([first, second]), return_inverse=True, return_counts=True
    )
    ends = np.cumsum(counts)
    # Equal values share the mean of their ranks.
    ranks = (ends - (counts - 1) / 2)[places]
    wins = float(ranks[:n].sum()) - n * (n + 1) / 2
    ties = float((counts.astype(np.float64) ** 3 - counts).sum()) / ((n + m) * (n + m - 1))
    spread = math.sqrt(n * m / 12 * (n + m + 1 - ties))
    if not spread:
        return 1.0
    distance = max(0.0, abs(wins - n * m / 2) - 0.5)  # continuity
    return math.erfc(distance / spread / math.sqrt(2))


def _ratio_of_medians(before: Numbers, after: Numbers) -> Estimate:
    if min(before.min(), after.min()) <= 0:
        raise InputError("a ratio needs values above 0; got 0 or less")
    generator = _generator()
    drawn = np.log(_medians(after, generator)) - np.log(_medians(before, generator))
    middle = math.log(float(np.median(after)) / float(np.median(before)))
    low, high = np.exp(np.quantile(drawn, [0.025, 0.975]))
    return Estimate(math.exp(middle), float(low), float(high))


def _medians(sample: Numbers, generator: np.random.Generator) -> Numbers:
    found: Numbers = np.median(_resampled(sample, generator), axis=1)
    return found


def _resampled(sample: Numbers, generator: np.random.Generator) -> Numbers:
    return generator.choice(sample, size=(_DRAWS, len(sample)))


def _generator() -> np.random.Generator:
    return np.random.default_rng(_SEED)


def _checked(values: Sequence[float] | Numbers) -> Numbers:
    sample = np.asarray(values, dtype=np.float64)
    if not sample.size:
        raise InputError("there are no values; expected at least one")
    return sample
