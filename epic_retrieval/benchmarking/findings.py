"""What a record says, in sentences made from its numbers alone."""

from collections.abc import Iterator
from statistics import median
from typing import Any

from epic_retrieval.benchmarking.curves import Curve, curves_of, in_words
from epic_retrieval.benchmarking.pipeline import STAGES
from epic_retrieval.benchmarking.record import Record
from epic_retrieval.benchmarking.tables import (
    NAMES,
    grouped,
    number,
    ratio_of,
    said,
    stage_rows,
    tails_of,
)


def findings(record: Record) -> dict[str, list[str]]:
    """Sentences by part, for the top of a report."""
    found = {
        "stages": list(_stage_sentences(record)),
        "arrivals": list(_arrival_sentences(record)),
        "cold": list(_cold_sentences(record)),
        "rivals": list(_rival_sentences(record)),
        "costs": list(_cost_sentences(record)),
        "scaling": list(_scaling_sentences(record)),
    }
    return {part: sentences for part, sentences in found.items() if sentences}


def _stage_sentences(record: Record) -> Iterator[str]:
    rows = stage_rows(record)
    for task in dict.fromkeys(task for task, _, _ in rows):
        shown = [(key, one) for key, one in rows.items() if key[0] == task and key[1] != "text"]
        (_, way, count), stages = max(shown, key=lambda pair: pair[0][2])
        p50, p95, p99 = tails_of(stages["total"])
        parts = ", ".join(f"{stage} {number(median(stages[stage].values))}" for stage in STAGES)
        yield (
            f"{task}: a single request with k = {count} ({NAMES[way]}) takes"
            f" {p50} ms to the first answer{f' (p95 {p95}, p99 {p99})' if p95 else ''}: {parts}."
        )


def _arrival_sentences(record: Record) -> Iterator[str]:
    groups = grouped(record, "arrivals", "load")
    together = dict(groups.get("shared passes", []))
    for load, alone in groups.get("one by one", []):
        if load in together:
            shared, lone = (
                f"{middle} ms{f' (p95 {tail})' if tail else ''}"
                for middle, tail, _ in (tails_of(one["latency"]) for one in (together[load], alone))
            )
            growing = ", growing for as long as it lasts" if load > 1 else ""
            yield (
                f"At {load:g} times what one query after the other reaches, a request takes"
                f" {shared} where queries share forward passes and {lone} one by one{growing}."
            )


def _cold_sentences(record: Record) -> Iterator[str]:
    for way in ("text", "epic"):
        found = record.under(f"cold/{way}/")
        if found:
            yield (
                f"The first query of a task, {NAMES[way]}: {said(found['nothing kept'])} ms with"
                f" nothing kept, {said(found['prompt on disk'])} ms with the prompt on disk, and"
                f" {said(found['warm'])} ms from then on."
            )


def _rival_sentences(record: Record) -> Iterator[str]:
    found = {(one["kind"], one["clock"], one["above"], one["below"]): one for one in record.ratios}
    for (kind, clock, above, below), one in found.items():
        if below != "epic-shared" or clock != "wall":
            continue
        low, high = one["interval"]
        how = "in one batch" if kind == "batch" else "one query at a time"
        core = found.get((kind, "core", above, below))
        differs = core and ratio_of(core) != ratio_of(one)
        also = f"; counting time on a core, {ratio_of(core)}" if core and differs else ""
        if low <= 1 <= high:
            yield f"{NAMES[above]}, {how}: no clear difference, {ratio_of(one)}{also}."
        else:
            yield f"{NAMES[above]}, {how}: {ratio_of(one)} times as long as EPIC, shared{also}."


def _cost_sentences(record: Record) -> Iterator[str]:
    rows: list[dict[str, Any]] = record.facts.get("costs", {}).get("prompts", [])
    most = max((row["k"] for row in rows), default=0)
    for row in rows:
        if row["k"] == most and most:
            after = row["paid_back_after_queries"]
            when = (
                "never"
                if after is None
                else f"after {after} {'query' if after == 1 else 'queries'}"
            )
            yield (
                f"{row['task']}, {NAMES[row['way']]}, k = {most}: {row['positions']:,} positions,"
                f" {number(row['keys_values_bytes'] / 2**20)} MiB of keys and values; preparing it"
                f" once is paid back {when}."
            )


def _scaling_sentences(record: Record) -> Iterator[str]:
    pairs = (
        ("demonstrations", "epic", "text"),
        ("demonstrations", "epic", "epic, prompt run again"),
        ("demonstration tokens", "epic", "text"),
        ("query tokens", "epic", "none"),
        ("query tokens", "epic", "text"),
        ("query tokens", "epic", "epic, prompt run again"),
        ("batch", "epic", "text"),
        ("corpus", "flat", "auto"),
    )
    units = {"batch": "queries in a batch", "corpus": "passages"}
    for what, one, other in pairs:
        found = {curve.label: curve for curve in curves_of(record, what)}
        if one in found and other in found:
            named = [Curve(NAMES[label], found[label].points) for label in (one, other)]
            yield _capital(in_words(units.get(what, what), *named))
    yield from _search_against_encoding(record)


def _search_against_encoding(record: Record) -> Iterator[str]:
    rows = stage_rows(record)
    encodings = [median(one["encode"].values) for key, one in rows.items() if key[1] == "epic"]
    if not encodings:
        return
    encoding = median(encodings)
    for curve in curves_of(record, "corpus"):
        over = [size for size, spent in curve.medians.items() if spent > encoding]
        sizes = list(curve.medians)
        if over:
            yield (
                f"From {over[0]:,.10g} passages on, {NAMES[curve.label]} takes longer than encoding"
                f" the query ({number(encoding)} ms)."
            )
        else:
            yield (
                f"Up to {sizes[-1]:,.10g} passages, {NAMES[curve.label]} takes less time than"
                f" encoding the query ({number(encoding)} ms)."
            )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
