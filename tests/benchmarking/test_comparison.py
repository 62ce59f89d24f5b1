import pytest

from epic_retrieval.benchmarking.comparison import compared, comparison_lines, drift
from epic_retrieval.benchmarking.record import Record
from epic_retrieval.errors import InputError
from tests.benchmarking.made import made_record


def test_a_planted_change_is_found_and_nothing_else() -> None:
    before, after = made_record(), made_record(slower=1.3, seed=1)
    real = [one.name for one in compared(before, after) if one.is_real]
    assert real == ["batches/epic batch=1/latency", "batches/epic batch=8/latency"]
    lines = list(comparison_lines(before, after))
    assert lines[0].startswith("The machine itself: a fixed piece of work took 1.0")
    assert ", 2 changed beyond noise" in lines[1]
    assert len(lines) == 6  # two sentences, two lines of heading, two rows
    assert all(line.endswith("| worse |") for line in lines[-2:])


def test_the_other_way_round_it_is_better() -> None:
    rows = list(comparison_lines(made_record(slower=1.3, seed=1), made_record()))[-2:]
    assert all(line.endswith("| better |") for line in rows)


def test_more_queries_a_second_are_better() -> None:
    before, after = Record({}, {}), Record({}, {})
    before.add("throughput", "queries/s", [10.0] * 9)
    after.add("throughput", "queries/s", [20.0] * 9)
    *_, row = comparison_lines(before, after)
    assert row.endswith("| better |")


def test_everything_on_request_and_what_differs_in_conditions() -> None:
    before, after = made_record(), made_record()
    after.environment = after.environment | {"threads": 2}
    after.conditions = {"k": [0, 3]}
    after.facts = after.facts | {"index": {"passages": 9}}
    lines = list(comparison_lines(before, after, every=True))
    assert lines[:2] == [
        "Not the same threads: 1 and 2.",
        "Not the same condition k: [0, 5] and [0, 3].",
    ]
    assert lines[2].startswith("Not the same index")
    assert sum("too few values" in line for line in lines) > 10
    assert not any("worse" in line for line in lines)


def test_a_slower_machine_is_said() -> None:
    before, after = made_record(), made_record()
    after.add("yardstick", "ms", [2 * one for one in before.series["yardstick"].values])
    lines = list(comparison_lines(before, after))
    assert lines[1] == "So part of every change below is the machine's, not the code's."
    assert ", 0 changed beyond noise" in lines[2]


def test_other_work_is_said() -> None:
    before, after = made_record(), made_record()
    after.environment = after.environment | {"load_average_at_begin": 1.9}
    lines = list(comparison_lines(before, after))
    assert lines[1].startswith("Load was unknown and 1.9 on 2 cores")
    assert "--control" in lines[1]
    assert not any("Load" in line for line in comparison_lines(before, after, controls=[before]))


def test_what_a_control_changed_too_is_noise() -> None:
    before, after = made_record(), made_record(slower=1.3, seed=1)
    assert drift(before, [], "yardstick") == 0
    assert drift(before, [after], "batches/epic batch=1/latency") == pytest.approx(0.26, abs=0.03)
    quiet, loud = made_record(seed=2), made_record(slower=1.5, seed=2)
    (count,) = [
        one for one in comparison_lines(before, after, controls=[quiet]) if "series" in one
    ][:1]
    assert ", 2 changed beyond noise within runs and between 2" in count
    lines = list(comparison_lines(before, after, controls=[quiet, loud]))
    assert ", 0 changed beyond noise within runs and between 3" in lines[-1]


def test_runs_with_nothing_in_common() -> None:
    one, other = Record({}, {}), Record({}, {})
    one.add("a", "ms", [1.0])
    other.add("a", "queries/s", [1.0])
    with pytest.raises(InputError, match="no series in common"):
        list(comparison_lines(one, other))
