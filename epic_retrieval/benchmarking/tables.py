"""The tables of a record, made from its numbers alone."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from epic_retrieval.benchmarking.curves import Curve
from epic_retrieval.benchmarking.pipeline import STAGES
from epic_retrieval.benchmarking.record import Record, Series

NAMES = {
    "none": "instruction alone",
    "text": "demonstrations as text",
    "epic": "demonstrations as vectors (EPIC)",
    "text, prompt run again": "as text, prompt run again",
    "epic, prompt run again": "EPIC, prompt run again",
    "no-prompt": "no prompt at all",
    "instruction": "instruction, shared",
    "text-shared": "text, shared by us",
    "epic-shared": "EPIC, shared",
    "epic-rerun": "EPIC, prompt run again (paper)",
    "text-rerun": "text, prompt run again by us",
    "text-transformers": "text, transformers alone",
    "text-flagembedding": "text, FlagICLModel",
    "sentence-transformers": "instruction, sentence-transformers",
    "flat": "exact search (flat)",
    "auto": "the kind chosen by size (auto)",
}
_STAGE_NAME = re.compile(r"(.+) (none|text|epic) k=(\d+)")


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; all columns but the first are numbers."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> list[str]:
        """Lines of a Markdown table."""
        lines = [self.headings, tuple("---" for _ in self.headings), *self.rows]
        return [f"| {' | '.join(cells)} |" for cells in lines]


def said(one: Series) -> str:
    """A median with its interval."""
    found = one.summary()
    low, high = found["interval"]
    return f"{number(found['median'])} ({number(low)} to {number(high)})"


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f}" if abs(value) >= 0.1 else f"{value:.2g}"


def tails_of(one: Series) -> tuple[str, str, str]:
    """Median, 95th and 99th percentile, the latter two where there are values enough."""
    found = one.summary()
    p95, p99 = (number(found[key]) if key in found else "" for key in ("p95", "p99"))
    return number(found["median"]), p95, p99


def stage_rows(record: Record) -> dict[tuple[str, str, int], dict[str, Series]]:
    """Series of the stages by task, way and number of demonstrations."""
    found: dict[tuple[str, str, int], dict[str, Series]] = {}
    for name, one in record.under("stages/").items():
        condition, _, stage = name.rpartition("/")
        if match := _STAGE_NAME.fullmatch(condition):
            found.setdefault((match[1], match[2], int(match[3])), {})[stage] = one
    return found


def stage_table(record: Record) -> Table:
    """Medians of all stages, and the tails of the whole."""
    rows = []
    for (task, way, count), stages in stage_rows(record).items():
        retrieval = sum(median(stages[one].values) for one in STAGES[:-1])
        rows.append(
            (
                f"{task}, {NAMES[way]}, k = {count}",
                *(number(median(stages[one].values)) for one in STAGES),
                number(retrieval),
                *tails_of(stages["total"]),
            )
        )
    return Table(("ms", *STAGES, "without answer", "p50", "p95", "p99"), tuple(rows))


def grouped(
    record: Record, part: str, mark: str
) -> dict[str, list[tuple[float, dict[str, Series]]]]:
    """Series named "part/label mark=value/quantity": by label, ascending values."""
    found: dict[str, dict[float, dict[str, Series]]] = {}
    for name, one in record.under(f"{part}/").items():
        condition, _, quantity = name.rpartition("/")
        label, _, value = condition.rpartition(f" {mark}=")
        found.setdefault(label, {}).setdefault(float(value), {})[quantity] = one
    return {label: sorted(points.items()) for label, points in found.items()}


def batch_table(record: Record) -> Table:
    """Latency and throughput by batch size."""
    rows = [
        (
            f"{NAMES[label]}, {size:g} at once",
            *tails_of(found["latency"]),
            number(median(found["throughput"].values)),
        )
        for label, points in grouped(record, "batches", "batch").items()
        for size, found in points
    ]
    return Table(("retrieval", "p50, ms", "p95", "p99", "queries/s"), tuple(rows))


def arrival_table(record: Record) -> Table:
    """Latency under Poisson arrivals, from when a request was due to its first answer."""
    rows = [
        (
            f"{label}, load {load:g}",
            *tails_of(found["latency"]),
            number(found["throughput"].values[0]),
        )
        for label, points in grouped(record, "arrivals", "load").items()
        for load, found in points
    ]
    return Table(("arrivals", "p50, ms", "p95", "p99", "served/s"), tuple(rows))


def cold_table(record: Record) -> Table:
    """The first query of a task and later ones."""
    ways: dict[str, dict[str, Series]] = {}
    for name, one in record.under("cold/").items():
        way, _, state = name.rpartition("/")
        ways.setdefault(way, {})[state] = one
    states = ("nothing kept", "prompt on disk", "warm")
    rows = [(NAMES[way], *(said(found[state]) for state in states)) for way, found in ways.items()]
    return Table(("first query, ms (95 %)", *states), tuple(rows))


def rival_table(record: Record, kind: str) -> Table:
    """Times and ratios of all rivals."""
    ratios = {
        (one["above"], one["clock"]): ratio_of(one)
        for one in record.ratios
        if one["kind"] == kind and one["below"] == "epic-shared"
    }
    rows = [
        (
            NAMES[name],
            number(median(one.values)),
            *(ratios.get((name, clock), "1") for clock in ("wall", "core")),
            str(len(one.values)),
        )
        for name, one in record.under(f"rivals/{kind}/wall/").items()
    ]
    headings = (
        "",
        "ms per query",
        "over EPIC, shared (95 %)",
        "the same, time on a core",
        "rounds",
    )
    return Table(headings, tuple(rows))


def agreement_table(record: Record) -> Table:
    """How far vectors agree."""
    rows = [
        (
            f"{NAMES[one['one']]} and {NAMES[one['other']]}",
            f"{one['smallest_cosine']:.6f}",
            ("yes" if one["agree"] else "no") if one["checked"] else "not asked for",
        )
        for one in record.agreement
    ]
    return Table(("vectors", "smallest cosine", "at least .99"), tuple(rows))


def cost_table(record: Record) -> Table:
    """Positions, memory, disk, and preparing a task once."""
    rows = []
    counted = record.facts.get("costs", {})
    own = counted.get("own_tokens_per_query", 0)
    for one in counted.get("prompts", []):
        name = f"{one['task']} {one['way']} k={one['k']}"
        after = one["paid_back_after_queries"]
        rows.append(
            (
                f"{one['task']}, {NAMES[one['way']]}, k = {one['k']}",
                f"{one['positions']:,}",
                number(own),
                number(own + one["positions"]),
                number(one["keys_values_bytes"] / 2**20),
                number(one["disk_bytes"] / 2**20),
                said(record.series[f"costs/{name}/prepare"]),
                "never" if after is None else f"{after:,}",
            )
        )
    headings = (
        "prompt", "positions", "tokens a query", "if run again", "keys and values, MiB",
        "on disk, MiB", "once, ms (95 %)", "paid back after queries",
    )  # fmt: skip
    return Table(headings, tuple(rows))


def larger_tables(record: Record) -> Iterator[tuple[str, Table]]:
    """Counted costs of models with 7 and 8 billion parameters."""
    for name, ways in record.facts.get("larger models", {}).get("shapes", {}).items():
        rows = tuple(
            (
                one["way"],
                f"{one['tokens_run']:,}",
                number(one["giga_operations"]),
                number(one["over_epic"]),
                number(one["keys_values_mib"]),
            )
            for one in ways
        )
        headings = ("", "tokens run a query", "10^9 operations", "over EPIC, shared",
                    "keys and values, MiB")  # fmt: skip
        yield name, Table(headings, rows)


def curve_table(curves: Sequence[Curve]) -> Table:
    """Medians by what was varied."""
    values = sorted({value for one in curves for value in one.medians})
    rows = tuple(
        (
            NAMES.get(one.label, one.label),
            *(number(one.medians[x]) if x in one.medians else "" for x in values),
        )
        for one in curves
    )
    return Table(("ms per query", *(f"{value:,.10g}" for value in values)), rows)


def ratio_of(one: dict[str, Any]) -> str:
    """A ratio with its interval."""
    low, high = one["interval"]
    return f"{number(one['median'])} ({number(low)} to {number(high)})"
