"""A record as text for a terminal."""

from collections.abc import Iterator

from epic_retrieval.benchmarking.findings import findings
from epic_retrieval.benchmarking.record import Record
from epic_retrieval.benchmarking.tables import (
    Table,
    agreement_table,
    arrival_table,
    batch_table,
    cold_table,
    cost_table,
    rival_table,
    stage_table,
)


def summary_lines(record: Record) -> Iterator[str]:
    """Tables of every part that was measured, then what they say, then what was left out."""
    parts = (
        ("Single requests, from the question to the first answer", stage_table(record)),
        ("Together", batch_table(record)),
        ("By chance (Poisson arrivals)", arrival_table(record)),
        ("The first query of a task", cold_table(record)),
        ("Rivals, one batch", rival_table(record, "batch")),
        ("Rivals, one query at a time", rival_table(record, "single")),
        ("Agreement", agreement_table(record)),
        ("Cost of a prompt", cost_table(record)),
    )
    for title, table in parts:
        if table.rows:
            yield from ("", title, "", *_aligned(table))
    for sentences in findings(record).values():
        yield from ("", *sentences)
    if record.left_out:
        yield from ("", "Left out:", *(f"{k}: {v}" for k, v in record.left_out.items()))


def _aligned(table: Table) -> Iterator[str]:
    lines = [table.headings, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for cells in lines:
        first, *rest = cells
        numbers = (f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        yield "  ".join([f"{first:<{widths[0]}}", *numbers]).rstrip()
