import pytest

from epic_retrieval.benchmarking.curves import Curve, crossings, curves_of, in_words
from epic_retrieval.benchmarking.record import Record, Series


def curve(label: str, *points: tuple[float, float]) -> Curve:
    return Curve(label, tuple((x, Series("ms", (y, y, y))) for x, y in points))


def test_crossings_by_hand() -> None:
    # From 1 below to 3 above over a distance of 10: a quarter of the way.
    assert crossings([0, 10], [1, 5], [2, 2]) == pytest.approx([2.5])
    assert crossings([0, 1, 2], [1, 2, 3], [1, 1, 1]) == []  # equal, then always above
    assert crossings([0, 1, 2], [0, 1, 2], [1, 1, 1]) == pytest.approx([1.0])
    assert crossings([0, 1, 2], [0, 2, 0], [1, 1, 1]) == pytest.approx([0.5, 1.5])
    assert crossings([0], [1], [2]) == []


def test_words_for_curves() -> None:
    flat = curve("flat", (1000, 1.0), (10_000, 10.0))
    graph = curve("graph", (1000, 2.0), (10_000, 2.0))
    assert in_words("passages", flat, graph) == (
        "flat is faster up to about 2,000 passages, graph beyond."
    )
    assert in_words("passages", graph, curve("slow", (1000, 4.0), (10_000, 4.0))) == (
        "graph is faster than slow from 1,000 to 10,000 passages: 0.50 of the time at 10,000."
    )
    many = curve("graph", (1_000_000, 2.0)), curve("slow", (1_000_000, 4.0))
    assert in_words("passages", *many).endswith("0.50 of the time at 1,000,000.")
    same = curve("same", (1000, 2.01), (10_000, 2.02))
    assert "no measurable difference" in in_words("passages", graph, same)
    partly = curve("partly", (1000, 2.01), (10_000, 4.0))
    assert in_words("passages", graph, partly) == (
        "graph is faster than partly at 10,000 passages: 0.50 of the time at 10,000; no measurable"
        " difference elsewhere from 1,000 to 10,000 passages."
    )
    assert "no point" in in_words("passages", graph, curve("other", (5, 1.0)))


def test_noise_is_no_difference() -> None:
    one = Curve("one", ((1, Series("ms", (1.0, 2.0, 3.0))),))
    other = Curve("other", ((1, Series("ms", (1.5, 2.5, 3.5))),))
    assert "no measurable difference" in in_words("queries", one, other)


def test_curves_of_a_record() -> None:
    record = Record({}, {})
    record.add("scaling/demonstrations/none x=0", "ms", [1.0])
    record.add("scaling/demonstrations/epic x=5", "ms", [3.0])
    record.add("scaling/demonstrations/epic x=1", "ms", [2.0])
    record.add("scaling/query tokens/epic x=8", "ms", [9.0])
    (found,) = curves_of(record, "demonstrations")
    assert found.label == "epic"
    assert found.medians == {0: 1.0, 1: 2.0, 5: 3.0}
    assert [one.label for one in curves_of(record, "query tokens")] == ["epic"]
    assert curves_of(record, "corpus") == []
