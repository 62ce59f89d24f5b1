"""Curves of a record, and where two of them cross."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from epic_retrieval.benchmarking.record import Record, Series

_POINT = re.compile(r"(.+) x=([\d.]+)")
# Below this share of the slower one, a difference is not worth a word.
EQUAL = 0.05


@dataclass(frozen=True)
class Curve:
    """One condition's times against what was varied.

    Attributes:
        label: of the condition.
        points: value and measured series, ascending.
    """

    label: str
    points: tuple[tuple[float, Series], ...]

    @property
    def medians(self) -> dict[float, float]:
        """Median by value."""
        return {value: median(one.values) for value, one in self.points}


def curves_of(record: Record, what: str) -> list[Curve]:
    """The curves against `what`, such as "query tokens", in the order of the record.

    Where demonstrations are counted, their absence is every curve's first point.
    """
    found: dict[str, list[tuple[float, Series]]] = {}
    for name, series in record.under(f"scaling/{what}/").items():
        if match := _POINT.fullmatch(name):
            found.setdefault(match[1], []).append((float(match[2]), series))
    if what == "demonstrations" and len(start := found.pop("none", [])) == 1 and found:
        found = {label: [*start, *points] for label, points in found.items()}
    return [
        Curve(label, tuple(sorted(points, key=lambda point: point[0])))
        for label, points in found.items()
    ]


def crossings(values: Sequence[float], one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Where two curves through these points cross, interpolated linearly between the points.

    Points at which they are equal count once, where the order changes.
    """
    gaps = [(value, a - b) for value, a, b in zip(values, one, other, strict=True) if a != b]
    return [
        x0 + (x1 - x0) * abs(gap0) / (abs(gap0) + abs(gap1))
        for (x0, gap0), (x1, gap1) in pairwise(gaps)
        if gap0 * gap1 < 0
    ]


def in_words(what: str, one: Curve, other: Curve) -> str:
    """Which of two curves is lower, and from where on.

    Two points differ where their intervals do not overlap and their medians are more than 5 %
    apart; a crossing counts only between points that differ.
    """
    a, b = dict(one.points), dict(other.points)
    shared = sorted(set(a) & set(b))
    if not shared:
        return f"{one.label} and {other.label} have no point of {what} in common."
    clear = [value for value in shared if _differ(a[value], b[value])]
    span = f"from {shared[0]:,.10g} to {shared[-1]:,.10g} {what}"
    if not clear:
        return f"{one.label} and {other.label}: no measurable difference {span}."
    times = [[curve.medians[value] for value in clear] for curve in (one, other)]
    where = crossings(clear, *times)
    lower, higher = (one, other) if times[0][0] < times[1][0] else (other, one)
    if where:
        often = f" (they cross {len(where)} times)" if len(where) > 1 else ""
        return (
            f"{lower.label} is faster up to about {where[0]:,.0f} {what}, {higher.label}"
            f" beyond{often}."
        )
    last = clear[-1]
    share = f"{lower.medians[last] / higher.medians[last]:.2f} of the time at {last:,.10g}"
    if len(clear) == len(shared):
        return f"{lower.label} is faster than {higher.label} {span}: {share}."
    points = ", ".join(f"{value:,.10g}" for value in clear)
    return (
        f"{lower.label} is faster than {higher.label} at {points} {what}: {share}; no measurable"
        f" difference elsewhere {span}."
    )


def _differ(one: Series, other: Series) -> bool:
    (low, high), (least, most) = (each.summary()["interval"] for each in (one, other))
    medians = (median(one.values), median(other.values))
    return (high < least or most < low) and abs(medians[0] - medians[1]) > EQUAL * max(medians)
