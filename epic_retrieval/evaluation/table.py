"""Tables of records: systems side by side, by category as the paper's Table 1, or by task.

Knows nothing of mteb and models.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal, get_args

from epic_retrieval.errors import InputError
from epic_retrieval.evaluation.record import Record, load_records

Format = Literal["text", "markdown", "csv", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)
# The paper's order and headings.
_HEADINGS = {
    "Retrieval": "Retr.",
    "Reranking": "Rerank.",
    "Clustering": "Clust.",
    "PairClassification": "PairClass.",
    "Classification": "Class.",
    "STS": "STS",
    "Summarization": "Summ.",
}
_NO_SCORE = "-"


@dataclass(frozen=True)
class Table:
    """Scores of systems on tasks.

    Attributes:
        records: by system and task, in the order in which they are shown.
        categories: names of tasks by category, over all systems.
    """

    records: Mapping[str, Mapping[str, Record]]
    categories: Mapping[str, Sequence[str]]

    def score(self, system: str, task: str) -> float | None:
        """0 to 1; None where the system was not evaluated on it."""
        record = self.records[system].get(task)
        return None if record is None else record.score

    def mean(self, system: str, tasks: Sequence[str]) -> float | None:
        """The mean over tasks; None where one is missing, which a mean would hide."""
        scores = [score for task in tasks if (score := self.score(system, task)) is not None]
        return fmean(scores) if tasks and len(scores) == len(tasks) else None

    @property
    def tasks(self) -> list[str]:
        """All tasks, category by category."""
        return [task for tasks in self.categories.values() for task in tasks]


def read_table(runs: Sequence[Path]) -> Table:
    """Records of one or more folders side by side.

    Where two folders have a system of one name, it is shown under the folders' names too.

    Raises:
        InputError: a folder without records, or what `table_of` refuses.
    """
    found = [(run, load_records(run)) for run in runs]
    names = [system for _, records in found for system in {one.system for one in records}]
    return table_of(
        one if names.count(one.system) == 1 else replace(one, system=f"{run.name}: {one.system}")
        for run, records in found
        for one in records
    )


def table_of(records: Iterable[Record]) -> Table:
    """Records as a table, systems in the order in which they come.

    Raises:
        InputError: two systems were evaluated on unlike data of one name.
    """
    systems: dict[str, dict[str, Record]] = {}
    categories: dict[str, dict[str, None]] = {category: {} for category in _HEADINGS}
    data: dict[str, str] = {}
    for record in records:
        if data.setdefault(record.task, record.data) != record.data:
            raise InputError(
                f"{record.task} was evaluated on other data by {record.system} than by others; run"
                " the older evaluation again"
            )
        systems.setdefault(record.system, {})[record.task] = record
        categories.setdefault(record.category, {})[record.task] = None
    return Table(systems, {name: list(tasks) for name, tasks in categories.items() if tasks})


def rendered(table: Table, style: Format = "text", *, per_task: bool = False) -> str:
    """The table as text; scores times 100, "-" where a system lacks a score.

    Args:
        table: the scores.
        style: "text" (columns), "markdown", "csv" or "json"; the last has everything, scores from 0
            to 1, and what was compared.
        per_task: a row for each task, systems across; else systems down, categories across.
    """
    if style == "json":
        return json.dumps(as_document(table), indent=1, ensure_ascii=False)
    rows = _by_task(table) if per_task else _by_category(table)
    styles: Mapping[str, Callable[[list[list[str]]], str]] = {
        "text": _columns,
        "markdown": _markdown,
        "csv": _csv,
    }
    return styles[style](rows)


def as_document(table: Table) -> dict[str, object]:
    """The table as plain data: systems with their conditions, tasks with scores, and means."""
    return {
        "systems": {
            name: _conditions(list(records.values())) for name, records in table.records.items()
        },
        "tasks": {
            task: {
                "category": category,
                "metric": next(r[task].metric for r in table.records.values() if task in r),
                "scores": {name: table.score(name, task) for name in table.records},
            }
            for category, tasks in table.categories.items()
            for task in tasks
        },
        "means": {
            **{
                category: {name: table.mean(name, tasks) for name in table.records}
                for category, tasks in table.categories.items()
            },
            "Average": {name: table.mean(name, table.tasks) for name in table.records},
        },
    }


def _conditions(records: Sequence[Record]) -> dict[str, object]:
    """What all records of a system have in common, and fingerprints of the demonstrations."""
    first = records[0]
    kept = ("model", "fingerprint", "precision", "mode")
    shown = {
        one.task: one.conditions["demonstrations_fingerprint"]
        for one in records
        if one.conditions.get("demonstrations_fingerprint")
    }
    return {
        **{name: first.conditions[name] for name in kept if name in first.conditions},
        "demonstrations": shown,
        "versions": dict(first.versions),
        "commits": sorted({one.commit for one in records if one.commit}),
    }


def _by_category(table: Table) -> list[list[str]]:
    names = [
        f"{_HEADINGS.get(category, category)} ({len(tasks)})"
        for category, tasks in table.categories.items()
    ]
    rows = [["system", *names, f"Avg. ({len(table.tasks)})"]]
    for system in table.records:
        means = [table.mean(system, tasks) for tasks in table.categories.values()]
        rows.append([system, *map(_number, means), _number(table.mean(system, table.tasks))])
    return rows


def _by_task(table: Table) -> list[list[str]]:
    rows = [["category", "task", *table.records]]
    for category, tasks in table.categories.items():
        for task in tasks:
            scores = [_number(table.score(system, task)) for system in table.records]
            rows.append([_HEADINGS.get(category, category), task, *scores])
        if len(tasks) > 1:
            means = [_number(table.mean(system, tasks)) for system in table.records]
            rows.append([_HEADINGS.get(category, category), "mean", *means])
    whole = [_number(table.mean(system, table.tasks)) for system in table.records]
    return [*rows, ["all", "mean", *whole]]


def _number(score: float | None) -> str:
    return _NO_SCORE if score is None else f"{100 * score:.2f}"


def _columns(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if _is_number(column) else cell.ljust(width)
            for cell, width, column in zip(row, widths, zip(*rows, strict=True), strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _markdown(rows: list[list[str]]) -> str:
    header, *others = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    rule = ["---:" if _is_number(column) else "---" for column in zip(*rows, strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *others))


def _csv(rows: list[list[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(
        [["" if cell == _NO_SCORE else cell for cell in row] for row in rows]
    )
    return out.getvalue().rstrip("\n")


def _is_number(column: Sequence[str]) -> bool:
    return all(
        cell == _NO_SCORE or cell.replace(".", "").lstrip("-").isdigit() for cell in column[1:]
    )
