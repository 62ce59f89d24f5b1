"""Two runs side by side: what changed beyond noise, as lines of text."""

import math
from collections.abc import Iterator, Sequence
from statistics import median

from epic_retrieval.benchmarking.estimates import FEWEST, Change, changes
from epic_retrieval.benchmarking.record import Record
from epic_retrieval.benchmarking.run import YARDSTICK
from epic_retrieval.benchmarking.tables import Table, number
from epic_retrieval.errors import InputError

_HIGHER_IS_BETTER = ("queries/s",)


def compared(before: Record, after: Record) -> list[Change]:
    """The changes of all series that both runs have and that can be divided, of the same unit."""
    shared = [
        name
        for name, one in before.series.items()
        if name in after.series
        and one.unit == after.series[name].unit
        and min(*one.values, *after.series[name].values) > 0
    ]
    return changes(
        {name: before.series[name].values for name in shared},
        {name: after.series[name].values for name in shared},
    )


def drift(before: Record, controls: Sequence[Record], name: str) -> float:
    """How far further runs of the same code were off: the largest of log ratios, without sign."""
    middle = median(before.series[name].values)
    others = [median(one.series[name].values) for one in controls if name in one.series]
    return max((abs(math.log(other / middle)) for other in others if other > 0), default=0.0)


def comparison_lines(
    before: Record, after: Record, *, controls: Sequence[Record] = (), every: bool = False
) -> Iterator[str]:
    """What changed, the largest changes first.

    Args:
        before: the earlier run.
        after: the later one.
        controls: further runs of what was run before; a change that is no larger than theirs is
            noise too.
        every: also what did not change, or has too few values to tell.

    Raises:
        InputError: the runs have nothing in common.
    """
    found = compared(before, after)
    if not found:
        raise InputError("the two records have no series in common; run the same parts in both")
    common = [one for one in found if one.name != YARDSTICK]
    real = [
        one
        for one in common
        if one.is_real and abs(math.log(one.ratio.median)) > drift(before, controls, one.name)
    ]
    yield from _conditions(before, after)
    yield from _yardstick(found)
    yield from _load(before, after, controls)
    unclear = sum(one.chance is None for one in common)
    noise = (
        f"noise within runs and between {len(controls) + 1}" if controls else "noise within runs"
    )
    yield (
        f"{len(common)} series in common, {len(real)} changed beyond {noise} (Holm's correction,"
        f" 5 %), {unclear} with fewer than {FEWEST} values, too few to tell."
    )
    shown = common if every else real
    if shown:
        ordered = sorted(shown, key=lambda one: -abs(math.log(one.ratio.median)))
        rows = tuple(_row(one, before, real=one in real) for one in ordered)
        headings = ("series", "before", "after over before (95 %)", "chance", "")
        yield from Table(headings, rows).markdown()


def _row(one: Change, before: Record, *, real: bool) -> tuple[str, ...]:
    series = before.series[one.name]
    ratio = one.ratio
    worse = (ratio.median > 1) != (series.unit in _HIGHER_IS_BETTER)
    verdict = ("worse" if worse else "better") if real else ""
    return (
        one.name,
        f"{number(series.summary()['median'])} {series.unit}",
        f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})",
        "too few values" if one.chance is None else f"{one.chance:.2g}",
        verdict,
    )


def _yardstick(found: list[Change]) -> Iterator[str]:
    for one in found:
        if one.name == YARDSTICK:
            ratio = one.ratio
            yield (
                f"The machine itself: a fixed piece of work took {ratio.median:.3f}"
                f" ({ratio.low:.3f} to {ratio.high:.3f}) of the time before."
            )
            if one.is_real:
                yield "So part of every change below is the machine's, not the code's."


def _load(before: Record, after: Record, controls: Sequence[Record]) -> Iterator[str]:
    """A warning where other work ran: it comes and goes, and no test within two runs sees that."""
    loads = [one.environment.get("load_average_at_begin") for one in (before, after)]
    cores = before.environment.get("cores") or 1
    if not controls and any(load is not None and load > cores / 2 for load in loads):
        said = " and ".join("unknown" if load is None else f"{load:.1f}" for load in loads)
        yield (
            f"Load was {said} on {cores} cores: other work alone may explain what follows. Run the"
            " earlier code again, and give those records with --control."
        )


def _conditions(before: Record, after: Record) -> Iterator[str]:
    for name in ("cpu", "cores", "threads", "gpu", "python", "versions"):
        one, other = before.environment.get(name), after.environment.get(name)
        if one != other:
            yield f"Not the same {name}: {one} and {other}."
    for name, one in before.conditions.items():
        if one != after.conditions.get(name):
            yield f"Not the same condition {name}: {one} and {after.conditions.get(name)}."
    for name in ("model", "index"):
        one, other = before.facts.get(name), after.facts.get(name)
        if one != other:
            yield f"Not the same {name}: {one} and {other}."
