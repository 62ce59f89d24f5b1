"""What stands on a figure: one function for each, on an empty figure, in the colours given.

Error bars are 95 % bootstrap intervals of medians.
"""

from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from epic_retrieval.benchmarking.curves import Curve
from epic_retrieval.benchmarking.estimates import percentile
from epic_retrieval.benchmarking.pipeline import RETRIEVAL
from epic_retrieval.benchmarking.record import Record, Series
from epic_retrieval.benchmarking.style import Palette
from epic_retrieval.benchmarking.tables import NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROLE = {
    "none": "grey",
    "text": "orange",
    "epic": "blue",
    "text, prompt run again": "orange",
    "epic, prompt run again": "blue",
    "flat": "orange",
    "auto": "blue",
}
_STAGE_ROLES = ("grey", "blue", "green", "yellow", "purple")
AXES = {
    "demonstrations": "demonstrations",
    "demonstration tokens": "tokens in each demonstration's passage",
    "query tokens": "tokens of the query",
    "batch": "queries in a batch",
    "corpus": "passages in the index",
}
_LOGARITHMIC = ("demonstration tokens", "query tokens", "batch", "corpus")


def draw_stages(figure: "Figure", colours: Palette, rows: dict[Any, dict[str, Series]]) -> None:
    """Stacked bars of the stages before the answer, for every number of demonstrations."""
    first = next(iter(rows))[0]
    shown = {key: one for key, one in rows.items() if key[0] == first}
    figure.set_figheight(1.4 + 0.36 * len(shown))
    axes = figure.add_subplot()
    labels = [f"{NAMES[way]}, k = {count}" for _, way, count in shown]
    left = [0.0] * len(shown)
    for stage, role in zip(RETRIEVAL, _STAGE_ROLES, strict=True):
        widths = [median(one[stage].values) for one in shown.values()]
        axes.barh(labels, widths, left=left, color=colours[role], label=stage, height=0.68)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel(f"milliseconds, medians of single requests ({first})")
    figure.legend(ncols=len(RETRIEVAL), loc="outside upper center")


def draw_batches(figure: "Figure", colours: Palette, groups: Any) -> None:  # noqa: ANN401
    """Latency and throughput against the size of a batch."""
    left, right = figure.subplots(1, 2)
    for way, points in groups.items():
        for axes, quantity in ((left, "latency"), (right, "throughput")):
            _line(axes, colours, way, [(size, found[quantity]) for size, found in points])
    for axes, label in (
        (left, "milliseconds until all are retrieved"),
        (right, "queries per second"),
    ):
        axes.set(xscale="log", yscale="log", xlabel="queries that arrive together", ylabel=label)
        _ticks_at(axes, sorted({size for points in groups.values() for size, _ in points}))
    left.legend()


def draw_arrivals(figure: "Figure", colours: Palette, groups: Any) -> None:  # noqa: ANN401
    """Percentiles of latency against the rate of arrivals."""
    axes = figure.add_subplot()
    roles = {"shared passes": "blue", "one by one": "orange"}
    for label, points in groups.items():
        loads = [load for load, _ in points]
        for share, dashes in ((50, "-"), (95, "--"), (99, ":")):
            axes.plot(
                loads,
                [percentile(found["latency"].values, share) for _, found in points],
                dashes,
                marker="o",
                markersize=4,
                color=colours[roles[label]],
                label=f"{label}, p{share}",
            )
    axes.set(
        yscale="log",
        xlabel="arrivals, over what one query after the other reaches",
        ylabel="milliseconds, due to first answer",
    )
    _ticks_at(axes, sorted({load for points in groups.values() for load, _ in points}))
    axes.legend(ncols=2)


def draw_cold(figure: "Figure", colours: Palette, record: Record) -> None:
    """The first query of a task in its three states."""
    axes = figure.add_subplot()
    states = ("nothing kept", "prompt on disk", "warm")
    ways = [way for way in ("none", "text", "epic") if record.under(f"cold/{way}/")]
    for place, (state, role) in enumerate(zip(states, ("orange", "green", "blue"), strict=True)):
        middles, errors = _with_errors([record.series[f"cold/{way}/{state}"] for way in ways])
        heights = [index + 0.2 * (place - 1) for index in range(len(ways))]
        axes.errorbar(middles, heights, xerr=errors, fmt="o", color=colours[role], label=state,
                      capsize=3)  # fmt: skip
    axes.set_yticks(range(len(ways)), [NAMES[way] for way in ways])
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="milliseconds of one query")
    _plain(axes.xaxis)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    figure.legend(ncols=len(states), loc="outside upper center")


def draw_rivals(figure: "Figure", colours: Palette, record: Record) -> None:
    """Ratios to EPIC behind a shared prompt."""
    ratios = [
        one for one in record.ratios if one["below"] == "epic-shared" and one["clock"] == "wall"
    ]
    names = list(dict.fromkeys(one["above"] for one in ratios))
    names.sort(key=lambda name: max(one["median"] for one in ratios if one["above"] == name))
    figure.set_figheight(1.3 + 0.36 * len(names))
    axes = figure.add_subplot()
    axes.axvline(1, color=colours["faint"], linewidth=1)
    kinds = (("batch", "one batch", "blue", -0.13), ("single", "one at a time", "orange", 0.13))
    for kind, label, role, shift in kinds:
        found = [one for one in ratios if one["kind"] == kind]
        if found:
            middles = [one["median"] for one in found]
            spans = [one["interval"] for one in found]
            errors = [
                [max(0, m - low) for m, (low, _) in zip(middles, spans, strict=True)],
                [max(0, high - m) for m, (_, high) in zip(middles, spans, strict=True)],
            ]
            heights = [names.index(one["above"]) + shift for one in found]
            axes.errorbar(middles, heights, xerr=errors, fmt="o", color=colours[role],
                          label=label, capsize=3)  # fmt: skip
    axes.set_yticks(range(len(names)), [NAMES[name] for name in names])
    axes.set(xscale="log", xlabel="times as long as EPIC behind a shared prompt")
    _plain(axes.xaxis)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.legend(loc="lower right")


def draw_positions(figure: "Figure", colours: Palette, record: Record) -> None:
    """Positions of prompts, as text and as vectors, by task."""
    rows = record.facts["costs"]["prompts"]
    most = {
        row["task"]: max(one["k"] for one in rows if one["task"] == row["task"]) for row in rows
    }
    tasks = list(most)
    figure.set_figheight(1.6 + 0.5 * len(tasks))
    axes = figure.add_subplot()
    ways = ("text", "epic")
    for place, way in enumerate(ways):
        found = {
            row["task"]: row["positions"]
            for row in rows
            if row["way"] == way and row["k"] == most[row["task"]]
        }
        heights = [
            index + 0.36 * (place - 0.5) for index, name in enumerate(tasks) if name in found
        ]
        values = [found[name] for name in tasks if name in found]
        bars = axes.barh(heights, values, 0.34, color=colours[_ROLE[way]], label=NAMES[way])
        axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.set_yticks(range(len(tasks)), [f"{name}, k = {most[name]}" for name in tasks])
    axes.invert_yaxis()
    axes.set_xlabel("positions before the query")
    axes.margins(x=0.1)
    axes.legend()


def curve_drawer(what: str, curves: Sequence[Curve]) -> "Callable[[Figure, Palette], None]":
    """Times against what was varied."""

    def draw(figure: "Figure", colours: Palette) -> None:
        axes = figure.add_subplot()
        for curve in curves:
            _line(axes, colours, curve.label, curve.points)
        axes.set(xlabel=AXES[what], ylabel="milliseconds per query", yscale="log")
        if what in _LOGARITHMIC:
            axes.set_xscale("log")
        _ticks_at(axes, sorted({value for one in curves for value in one.medians}))
        axes.legend()

    return draw


def _line(axes: Any, colours: Palette, label: str, points: Sequence[tuple[float, Series]]) -> None:  # noqa: ANN401
    middles, errors = _with_errors([one for _, one in points])
    axes.errorbar(
        [value for value, _ in points],
        middles,
        yerr=errors,
        fmt="o--" if "again" in label else "o-",
        markersize=4,
        capsize=2,
        color=colours[_ROLE[label]],
        label=NAMES.get(label, label),
    )


def _with_errors(found: Sequence[Series]) -> tuple[list[float], list[list[float]]]:
    """Medians, and how far their intervals reach below and above."""
    summaries = [one.summary() for one in found]
    middles = [one["median"] for one in summaries]
    below = [max(0.0, one["median"] - one["interval"][0]) for one in summaries]
    above = [max(0.0, one["interval"][1] - one["median"]) for one in summaries]
    return middles, [below, above]


def _ticks_at(axes: Any, values: Sequence[float]) -> None:  # noqa: ANN401
    """Ticks at the values that were measured; a logarithmic y axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_xticks(list(values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:,.10g}"))
    _plain(axes.yaxis)
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _plain(axis: Any) -> None:  # noqa: ANN401
    """Ticks at 1, 2 and 5 of each decade of a logarithmic axis, without exponents."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:,.10g}"))
    axis.set_minor_locator(NullLocator())
