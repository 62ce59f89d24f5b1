import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from epic_retrieval.errors import InputError
from epic_retrieval.index._fields import FieldsReader, _packed
from epic_retrieval.index.passage import Passage
from epic_retrieval.index.store import PassageStore, StoreWriter
from epic_retrieval.index.where import parse

# -- A naive twin: the same conditions on Python dicts.

SIGNS = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}


def spread(passage: Passage) -> dict[str, list[object]]:
    found: dict[str, list[object]] = {}

    def walk(key: str, value: object) -> None:
        values = found.setdefault(key, [])
        if isinstance(value, Mapping):
            for name, item in value.items():
                walk(f"{key}.{name}", item)
        elif isinstance(value, list | tuple):
            for item in value:
                walk(key, item)
        else:
            values.append(value)

    for key, value in passage.metadata.items():
        walk(key, value)
    return {**found, "_id": [passage.id]}


def kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return str(type(value))
    return "number" if isinstance(value, int | float) else "text"


def equal(one: object, other: object) -> bool:
    return kind(one) == kind(other) and one == other


def holds(name: str, values: list[object] | None, operand: Any) -> bool:  # noqa: ANN401
    present = values or []
    match name:
        case "$eq":
            missing = operand is None and values is None
            found = missing or any(equal(value, operand) for value in present)
        case "$in":
            found = any(holds("$eq", values, item) for item in operand)
        case "$ne" | "$nin":
            found = not holds({"$ne": "$eq", "$nin": "$in"}[name], values, operand)
        case "$exists":
            found = (values is not None) == operand
        case "$not":
            found = not all(holds(inner, values, operand[inner]) for inner in operand)
        case _:
            compare: Callable[[Any, Any], bool] = SIGNS[name]
            found = any(
                kind(value) == kind(operand) and compare(value, operand) for value in present
            )
    return found


def matches(condition: Mapping[str, Any], passage: Passage) -> bool:
    for key, operand in condition.items():
        if key == "$and":
            found = all(matches(part, passage) for part in operand)
        elif key == "$or":
            found = any(matches(part, passage) for part in operand)
        elif key == "$not":
            found = not matches(operand, passage)
        else:
            values = spread(passage).get(key)
            tests = operand if isinstance(operand, Mapping) else {"$eq": operand}
            found = all(holds(name, values, tests[name]) for name in tests)
        if not found:
            return False
    return True


# -- Values where types, limits and orders meet.

LONG = "é" * 200  # 400 bytes; texts over 256 are not stored whole
EDGE = "y" * 256
BORDERS = [
    2**53,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**63 + 1,
    2**64,
    2**70,
    2**70 + 1,
    10**30,
    10**400,
    10**1000,
]
NUMBERS: list[Any] = [
    *(0, 1, 2, 255, 256, 0.0, -0.0, 1.0, 0.5, 1e300, 5e-324),
    *BORDERS,
    *(-border for border in BORDERS),
    *(float(border) for border in BORDERS[:-2]),
    *(-float(border) for border in BORDERS[:-2]),
]
TEXTS = ["", "a", "b", "B", "é", "\uffff", "😀", "\ud800", "a\0b", "1", "true", EDGE, "y" * 255]
LONG_TEXTS = [LONG, LONG + "a", LONG + "b", EDGE + "z"]
BOUNDED: list[Any] = [*NUMBERS, *TEXTS]
EVERYTHING: list[Any] = [*BOUNDED, *LONG_TEXTS, None, True, False]
# By place: hypothesis warns of descriptions as long as these values.
SCALARS = st.integers(0, len(EVERYTHING) - 1).map(lambda place: EVERYTHING[place])
BOUNDS = st.integers(0, len(BOUNDED) - 1).map(lambda place: BOUNDED[place])
NAMES = st.sampled_from(["a", "b", "a.b", "", "é", "\ud800", "$x"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=5,
)
IDS = [f"{sign}{n}" for n in range(3) for sign in ("a", "é", "😀", "x" * 300)]
PASSAGES = st.lists(st.dictionaries(NAMES, VALUES, max_size=3), min_size=1, max_size=12).map(
    lambda found: [Passage(IDS[n], "text", "", metadata) for n, metadata in enumerate(found)]
)


def demands(scalars: st.SearchStrategy[Any], bounds: st.SearchStrategy[Any]) -> Any:  # noqa: ANN401
    plain: dict[str, Any] = {
        **dict.fromkeys(["$eq", "$ne"], scalars),
        **dict.fromkeys(["$in", "$nin"], st.lists(scalars, max_size=4)),
        **dict.fromkeys(SIGNS, bounds),
        "$exists": st.booleans(),
    }
    operators = st.fixed_dictionaries({}, optional=plain).filter(bool)
    negated = st.fixed_dictionaries({"$not": operators}, optional=plain)
    return scalars | operators | negated


KEYS = st.sampled_from(["a", "b", "a.b", "a.a", "b.a.b", "", "a.", "é", "\ud800", "none"])
FIELDS = st.dictionaries(KEYS, demands(SCALARS, BOUNDS), max_size=2)
ID_TEXTS = st.sampled_from([*IDS, "none"])
CONDITIONS = st.recursive(
    FIELDS | st.fixed_dictionaries({"_id": demands(ID_TEXTS, ID_TEXTS)}),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "$and": st.lists(inner, min_size=1, max_size=2),
            "$or": st.lists(inner, min_size=1, max_size=2),
            "$not": inner,
            "a": SCALARS,
        },
    ),
    max_leaves=4,
)


def store_of(path: Path, passages: Sequence[Passage]) -> PassageStore:
    path.unlink(missing_ok=True)
    writer = StoreWriter(path)
    writer.add(passages)
    writer.commit()
    writer.close()
    return PassageStore(path, len(passages))


def rows_of(store: PassageStore, condition: object) -> list[int]:
    parsed = parse(condition)
    found = store.where(parsed)
    assert found.dtype == np.int64
    rows: list[int] = found.tolist()
    assert np.flatnonzero(store.mask(parsed)).tolist() == rows
    return rows


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(passages=PASSAGES, conditions=st.lists(CONDITIONS, min_size=1, max_size=8))
def test_a_store_answers_as_python_does(
    tmp_path: Path, passages: list[Passage], conditions: list[dict[str, Any]]
) -> None:
    with store_of(tmp_path / "store", passages) as store:
        for condition in conditions:
            expected = [n for n, passage in enumerate(passages) if matches(condition, passage)]
            assert rows_of(store, condition) == expected, condition


def test_every_number_and_text_is_in_its_place(tmp_path: Path) -> None:
    values = [*NUMBERS, *TEXTS, *LONG_TEXTS]
    passages = [Passage(str(n), "text", "", {"key": value}) for n, value in enumerate(values)]
    with store_of(tmp_path / "store", passages) as store:
        for operand in [*NUMBERS, *TEXTS]:
            for name in ("$eq", *SIGNS):
                condition = {"key": {name: operand}}
                expected = [n for n, one in enumerate(passages) if matches(condition, one)]
                assert rows_of(store, condition) == expected, condition


METADATA: list[dict[str, Any]] = [
    {"year": 1999, "lang": "en", "tags": ["law", "tax"], "authors": [{"name": "Ng"}, {"x": 1}]},
    {"year": 2005.0, "lang": "de", "tags": [], "open": True},
    {"year": "2005", "lang": None, "open": 1},
    {},
]


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ({}, [0, 1, 2, 3]),
        ({"year": 2005}, [1]),
        ({"year": {"$gte": 1999, "$lt": 2005}}, [0]),
        ({"year": {"$gt": "2"}}, [2]),
        ({"lang": {"$in": ["en", "de"]}, "tags": "tax"}, [0]),
        ({"tags": {"$ne": "law"}}, [1, 2, 3]),
        ({"tags": {"$exists": True}}, [0, 1]),
        ({"authors": {"$exists": True}}, [0]),
        ({"authors.name": "Ng"}, [0]),
        ({"open": True}, [1]),
        ({"open": 1}, [2]),
        # As in MongoDB, a missing key counts as null.
        ({"lang": None}, [2, 3]),
        ({"lang": {"$ne": None}}, [0, 1]),
        ({"lang": {"$eq": None, "$exists": True}}, [2]),
        ({"year": {"$not": {"$gt": 2000}}}, [0, 2, 3]),
        ({"$not": {"lang": "en"}}, [1, 2, 3]),
        ({"$or": [{"lang": "en"}, {"open": True}], "year": {"$gt": 2000}}, [1]),
        ({"$and": [{"tags": "law"}, {"tags": "tax"}]}, [0]),
        ({"lang": {"$in": []}}, []),
        ({"lang": {"$nin": []}}, [0, 1, 2, 3]),
        ({"_id": {"$in": ["d3", "d0", "other"]}}, [0, 3]),
        ({"_id": {"$gte": "d2"}}, [2, 3]),
        ({"_id": {"$exists": False}}, []),
    ],
)
def test_conditions_mean_what_they_say(
    tmp_path: Path, condition: dict[str, Any], rows: list[int]
) -> None:
    passages = [Passage(f"d{n}", "text", "", metadata) for n, metadata in enumerate(METADATA)]
    with store_of(tmp_path / "store", passages) as store:
        assert rows_of(store, condition) == rows


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (["lang"], r"where is \['lang'\]: expected a mapping"),
        ({1: 2}, "expected keys that are text"),
        ({"$nor": []}, r"where\['\$nor'\]: there is no such operator between conditions"),
        (
            {"year": {"$regex": "x"}},
            r"where\['year'\]\['\$regex'\]: there is no such operator on a",
        ),
        ({"year": {5: 1}}, "no such operator on a key"),
        ({"year": {}}, "expected a value, or operators"),
        ({"a": {"b": 1}}, r'a nested key is "a.b"'),
        ({"lang": ["en"]}, r"where\['lang'\] is \['en'\]: expected one value; .* use \$in"),
        ({"lang": {"$in": "en"}}, "expected a list of values"),
        ({"lang": {"$in": [1, ["en"]]}}, r"where\['lang'\]\['\$in'\]\[1\]"),
        ({"lang": b"en"}, "expected text, a number"),
        ({"year": float("nan")}, "expected a finite number"),
        ({"year": {"$gt": float("inf")}}, "expected a finite number"),
        ({"year": {"$gt": True}}, "others have no order"),
        ({"year": {"$lt": None}}, "others have no order"),
        ({"year": {"$lt": LONG}}, "at most 256 bytes"),
        ({"year": {"$exists": 1}}, "expected true or false"),
        ({"year": {"$not": 5}}, r"use \$ne"),
        ({"$and": []}, "expected a list of at least one condition"),
        ({"$or": {"a": 1}}, "expected a list of at least one condition"),
        ({"$or": [{"a": 1}, 5]}, r"where\['\$or'\]\[1\] is 5: expected a mapping"),
        ({"$not": 5}, "expected a mapping"),
        ({"_id": 5}, "text, as ids are"),
        ({"_id": {"$in": ["a", None]}}, "text, as ids are"),
        ({"_id": {"$gt": "\ud800"}}, "half surrogate pairs"),
        ({"_id": 10**5000}, "too long to show|text, as ids are"),
    ],
)
def test_a_wrong_condition_says_where_and_what(condition: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(condition)


def test_endless_nesting_is_refused() -> None:
    outer: dict[str, Any] = {"a": 1}
    inner: dict[str, Any] = {"$gt": 1}
    for _ in range(100_000):
        outer, inner = {"$not": outer}, {"$not": inner}
    for condition in (outer, {"a": inner}):
        with pytest.raises(InputError, match="deeper than 100 levels"):
            parse(condition)


def test_many_values_are_looked_up_in_parts(tmp_path: Path) -> None:
    passages = [Passage(str(n), "text", "", {"n": n}) for n in range(1500)]
    with store_of(tmp_path / "store", passages) as store:
        assert rows_of(store, {"n": {"$in": list(range(-3000, 3000, 2))}}) == list(
            range(0, 1500, 2)
        )
        odd = [str(n) for n in range(1, 3000, 2)]
        assert rows_of(store, {"_id": {"$in": odd}}) == list(range(1, 1500, 2))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 31, 33, 1000])
def test_lists_and_bitmaps_of_rows_give_the_same(rows: int, share: float) -> None:
    mask = np.random.default_rng(rows).random(rows) < share
    mask[-1] = True
    packed = _packed(np.flatnonzero(mask).astype("<u4").tobytes(), rows)
    assert len(packed) <= (rows + 7) // 8
    reader = FieldsReader(None, rows)  # type: ignore[arg-type]  # nothing is queried
    assert reader._mask([packed]).tolist() == mask.tolist()


def test_lookups_go_through_the_index(tmp_path: Path) -> None:
    passages = [Passage(str(n), "text", "", {"n": n, "s": str(n)}) for n in range(50)]
    queries: list[str] = []
    with store_of(tmp_path / "store", passages) as store:
        with store._connections.borrow(tmp_path / "store") as connection:
            connection.set_trace_callback(queries.append)
        for condition in ({"n": {"$gt": 3}}, {"s": {"$lte": "3"}}, {"n": {"$in": [1, "2"]}}):
            rows_of(store, condition)
        rows_of(store, {"_id": {"$gt": "3"}})
        with store._connections.borrow(tmp_path / "store") as connection:
            connection.set_trace_callback(None)
            for query in queries:
                plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}")]
                assert not any(step.startswith("SCAN") for step in plan), (query, plan)
    assert len(queries) >= 8


def test_rare_and_frequent_values_over_many_additions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rows of one value are then gathered in many parts.
    monkeypatch.setattr("epic_retrieval.index._fields._GATHERED", 20)
    passages = [
        Passage(str(n), "text", "", {"half": n % 2, "rare": n // 150, "own": n / 7, "t": str(n)})
        for n in range(300)
    ]
    conditions = ({"half": 1}, {"rare": 1.0}, {"own": 11}, {"t": {"$lt": "2"}}, {"own": {"$gt": 8}})
    with store_of(tmp_path / "store", passages) as store:
        for condition in conditions:
            expected = [n for n, passage in enumerate(passages) if matches(condition, passage)]
            assert rows_of(store, condition) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
