"""Tables of records: by category, by task, of several runs, in four forms."""

import csv
import io
import json
from pathlib import Path

import pytest

from epic_retrieval import InputError
from epic_retrieval.evaluation.record import Record
from epic_retrieval.evaluation.table import as_document, read_table, rendered, table_of

SCORES = {
    "one": {"a": 0.5, "b": 0.7, "c": 0.1},
    "two | 2": {"a": 0.25, "b": 0.35},  # a lexical system has no score on c
}
CATEGORIES = {"a": "Retrieval", "b": "Retrieval", "c": "STS"}


def record(system: str, task: str, score: float, data: str = "d") -> Record:
    return Record(
        task=task,
        category=CATEGORIES[task],
        metric="m",
        score=score,
        splits={"test": {"default": score}},
        system=system,
        key="k",
        conditions={"model": "local/m", "mode": "none", "demonstrations_fingerprint": None},
        data=data,
    )


RECORDS = [record(name, t, s) for name, scores in SCORES.items() for t, s in scores.items()]


def test_means_are_of_all_tasks_or_none() -> None:
    rows = [line.split("  ") for line in rendered(table_of(RECORDS)).splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells == [
        ["system", "Retr. (2)", "STS (1)", "Avg. (3)"],
        ["one", "60.00", "10.00", "43.33"],
        ["two | 2", "30.00", "-", "-"],
    ]


def test_a_row_for_each_task() -> None:
    found = rendered(table_of(RECORDS), "csv", per_task=True)
    assert list(csv.reader(io.StringIO(found))) == [
        ["category", "task", "one", "two | 2"],
        ["Retr.", "a", "50.00", "25.00"],
        ["Retr.", "b", "70.00", "35.00"],
        ["Retr.", "mean", "60.00", "30.00"],
        ["STS", "c", "10.00", ""],
        ["all", "mean", "43.33", ""],
    ]


def test_markdown() -> None:
    assert rendered(table_of(RECORDS), "markdown").splitlines() == [
        "| system | Retr. (2) | STS (1) | Avg. (3) |",
        "| --- | ---: | ---: | ---: |",
        "| one | 60.00 | 10.00 | 43.33 |",
        r"| two \| 2 | 30.00 | - | - |",
    ]


def test_json_has_everything_unrounded() -> None:
    table = table_of(RECORDS)
    document = json.loads(rendered(table, "json"))
    assert document == as_document(table)
    assert document["tasks"]["c"] == {
        "category": "STS",
        "metric": "m",
        "scores": {"one": 0.1, "two | 2": None},
    }
    assert document["means"]["Retrieval"] == {"one": 0.6, "two | 2": pytest.approx(0.3)}
    assert document["systems"]["one"]["model"] == "local/m"


def test_runs_side_by_side(tmp_path: Path) -> None:
    for folder, factor in (("first", 1.0), ("second", 0.5)):
        for one in RECORDS[:3]:
            record(one.system, one.task, one.score * factor).save(tmp_path / folder)
    record("alone", "a", 0.9).save(tmp_path / "second")
    table = read_table([tmp_path / "first", tmp_path / "second"])
    assert list(table.records) == ["first: one", "alone", "second: one"]
    assert table.score("second: one", "b") == 0.35
    (one_system,) = (tmp_path / "first" / "records").iterdir()
    assert list(read_table([one_system]).records) == ["one"]


def test_unlike_data_are_not_compared() -> None:
    with pytest.raises(InputError, match="a was evaluated on other data by two than by others"):
        table_of([record("one", "a", 0.1), record("two", "a", 0.1, data="other")])
