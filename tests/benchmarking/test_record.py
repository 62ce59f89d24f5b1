import json
from pathlib import Path

import pytest

from epic_retrieval.benchmarking.record import Record, Series, cpu_model, environment
from epic_retrieval.errors import InputError


def test_a_record_survives_the_disk(tmp_path: Path) -> None:
    record = Record({"cpu": "one"}, {"k": [1]}, facts={"a": {"b": 2}}, left_out={"x": "why"})
    record.add("stages/epic/total", "ms", [1.23456, 2.0])
    record.ratios.append({"above": "a", "median": 1.0})
    record.save(tmp_path / "run.json")
    found = Record.load(tmp_path / "run.json")
    assert found.series == {"stages/epic/total": Series("ms", (1.235, 2.0))}
    found.series = record.series
    assert found == record


def test_summaries_stand_beside_values(tmp_path: Path) -> None:
    record = Record({}, {})
    record.add("many", "ms", list(range(1, 1001)))
    record.add("few", "ms", [1.0, 2.0, 3.0])
    record.save(tmp_path / "run.json")
    found = json.loads((tmp_path / "run.json").read_text())["series"]
    assert found["many"]["n"] == 1000
    assert found["many"]["median"] == 500.5
    assert found["many"]["p95"] == pytest.approx(950.0, abs=0.11)
    assert len(found["many"]["values"]) == 200  # every fifth
    assert "p95" not in found["few"]  # it would be the largest


def test_messages_lose_their_folders(tmp_path: Path) -> None:
    record = Record({}, {}, left_out={"a": "/home/somebody/bin/python cannot be started: 1/2 read"})
    record.save(tmp_path / "run.json")
    found = Record.load(tmp_path / "run.json").left_out
    assert found == {"a": "python cannot be started: 1/2 read"}


def test_series_under_a_name() -> None:
    record = Record({}, {})
    record.add("cold/epic/warm", "ms", [1.0])
    record.add("colder", "ms", [1.0])
    assert list(record.under("cold/")) == ["epic/warm"]


def test_what_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.json"):
        Record({}, {}).save(tmp_path / "run.yaml")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="no record"):
        Record.load(tmp_path / "other.json")
    (tmp_path / "half.json").write_text('{"format": "epic-bench/1", "series": {}}')
    with pytest.raises(InputError, match="incomplete"):
        Record.load(tmp_path / "half.json")


def test_the_environment_names_no_place() -> None:
    found = environment(["/home/somebody/bin/epic", "bench", "--out", "/home/somebody/run.json"])
    assert found["command"] == "epic bench --out run.json"
    assert found["cpu"] == cpu_model() != ""
    assert "somebody" not in json.dumps(found)
    assert found["versions"]["torch"]
