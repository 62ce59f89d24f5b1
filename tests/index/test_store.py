import contextlib
import gc
import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from epic_retrieval.errors import EpicError, InputError, PassageIndexError
from epic_retrieval.index._connections import Connections
from epic_retrieval.index.passage import Passage
from epic_retrieval.index.store import PassageStore, StoreWriter, metadata_text
from epic_retrieval.index.where import parse

PASSAGES = [
    Passage("a", "Text.", "Title", {"n": 1, "list": [1, {"x": None}], "big": 2**80}),
    Passage("ключ 😀 'q'", "", "Only a title"),
    Passage("%", "Line\nbreak \u2028", "", {"half": "\ud800", "nul": "\0"}),
    *(Passage(f"d{n}", f"Text {n}", "", {"n": n}) for n in range(1200)),
]


def write(path: Path, passages: list[Passage]) -> Path:
    writer = StoreWriter(path)
    # In several parts, as a build does.
    for start in range(0, len(passages), 500):
        writer.add(passages[start : start + 500])
    writer.commit()
    writer.close()
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A name that means something in an URI.
    return write(tmp_path_factory.mktemp("a store") / "pass%41?mode=rw#ages", PASSAGES)


def test_passages_come_back_as_they_were(path: Path) -> None:
    with PassageStore(path) as store:
        assert len(store) == len(PASSAGES)
        assert list(store) == PASSAGES
        rows = [1202, 0, 1, 1, *range(700)]
        assert store.fetch(rows) == [PASSAGES[row] for row in rows]
        assert store.fetch(np.array([5, 2])) == [PASSAGES[5], PASSAGES[2]]
        assert store.ids(rows) == [PASSAGES[row].id for row in rows]
        assert store.problems() == []


def test_ids_are_found_in_the_order_asked_for(path: Path) -> None:
    with PassageStore(path) as store:
        wanted = ["none", *(f"d{n}" for n in range(800, 0, -1)), "ключ 😀 'q'", "%", "D1", "d1"]
        found = store.find(wanted)
        assert list(found) == [key for key in dict.fromkeys(wanted) if key not in {"none", "D1"}]
        assert all(found[key].id == key for key in found)


@pytest.mark.parametrize("row", [-1, 1203, 2**70])
def test_a_row_that_is_not_there_is_named(path: Path, row: int) -> None:
    with PassageStore(path) as store:
        with pytest.raises(PassageIndexError, match=f"no row {row}; there are 1203"):
            store.fetch([0, row])
        with pytest.raises(PassageIndexError, match=f"no row {row}"):
            store.ids([row])


def test_an_id_that_stands_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "store")
    writer.add(PASSAGES[:3])
    with pytest.raises(InputError, match=r'"%" stands twice, at passages 3 and 5 '):
        writer.add([Passage("new", "x"), PASSAGES[2]])
    writer.close()


def test_metadata_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    passage = Passage("a", "text", "", {"n": 10**5000})
    with pytest.raises(InputError, match='The metadata of passage "a" cannot be stored as JSON'):
        metadata_text(passage)
    writer = StoreWriter(tmp_path / "store")
    with pytest.raises(InputError, match="change or remove it"):
        writer.add([passage])
    writer.close()


def test_nothing_is_left_beside_the_store_and_nothing_is_opened_early(tmp_path: Path) -> None:
    path = write(tmp_path / "store", PASSAGES)
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]
    connections = Connections()
    with PassageStore(path, len(PASSAGES), connections) as store:
        assert len(connections) == 0
        store.fetch([0])
        assert len(connections) == 1
    # Shared ones are closed by whoever made them.
    assert len(connections) == 1
    connections.close()
    assert len(connections) == 0
    with pytest.raises(PassageIndexError, match="closed"):
        store.fetch([0])


def test_a_closed_or_missing_store_says_so(path: Path, tmp_path: Path) -> None:
    store = PassageStore(path)
    store.close()
    store.close()
    for use in (lambda: store.fetch([0]), lambda: store.find(["a"]), lambda: list(store)):
        with pytest.raises(PassageIndexError, match="the index is closed"):
            use()
    with pytest.raises(PassageIndexError, match="missing or damaged"):
        PassageStore(tmp_path / "none")


def test_threads_get_their_own_answers(path: Path) -> None:
    with PassageStore(path) as store, ThreadPoolExecutor(16) as pool:

        def use(n: int) -> bool:
            rows = [(n * 7 + step) % len(PASSAGES) for step in range(20)]
            found = store.where(parse({"n": {"$lt": n}}))
            return store.fetch(rows) == [PASSAGES[row] for row in rows] and len(found) >= n

        assert all(pool.map(use, range(100)))
        # Sixteen threads, and no more connections than one store may have.
        assert len(store._connections) <= 8


def test_no_more_connections_than_the_limit_are_open(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"store{n}", PASSAGES[:3]) for n in range(6)]
    connections = Connections(limit=3)
    most: list[int] = []
    barrier = threading.Barrier(8)

    def use(n: int) -> None:
        barrier.wait()
        for step in range(60):
            path = paths[(n + step) % 6]
            with connections.borrow(path) as connection:
                most.append(len(connections))
                assert connection.execute("SELECT count(*) FROM passages").fetchone() == (3,)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    assert max(most) == 3
    # The one used last is still open, the one used longest ago is not.
    for path in paths[:4]:
        with connections.borrow(path):
            pass
    assert list(connections._idle) == paths[1:4]
    connections.close()
    assert len(connections) == 0


def test_connections_in_use_close_when_they_come_back(path: Path) -> None:
    connections = Connections()
    with connections.borrow(path) as connection:
        connections.close()
        connection.execute("SELECT 1")
    assert len(connections) == 0
    with pytest.raises(sqlite3.ProgrammingError):
        connection.execute("SELECT 1")


def test_a_connection_that_fails_does_not_count(tmp_path: Path) -> None:
    connections = Connections(limit=1)
    for _ in range(3):
        with pytest.raises(PassageIndexError), connections.borrow(tmp_path / "none"):
            pass
    assert len(connections) == 0


def test_a_store_is_never_written(path: Path) -> None:
    with (
        PassageStore(path) as store,
        pytest.raises(PassageIndexError, match="readonly"),
        store._connections.borrow(path) as connection,
    ):
        connection.execute("DELETE FROM passages")


def test_damage_never_ends_in_anything_but_our_error(tmp_path: Path) -> None:
    path = write(tmp_path / "store", PASSAGES[:60])
    content = path.read_bytes()
    random = np.random.default_rng(0)
    conditions = [parse({"n": {"$gt": 5}}), parse({"_id": {"$gt": "b"}}), parse({"big": None})]
    failed = 0
    for attempt in range(300):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), 1 + attempt % 20).tolist():
            damaged[place] = int(random.integers(256))
        cut = int(random.integers(len(content))) if attempt % 5 == 0 else len(content)
        path.write_bytes(damaged[:cut])
        try:
            with PassageStore(path, 60) as store:
                store.fetch(range(60))
                store.ids(range(60))
                store.find(["d5", "%"])
                store.problems()
                for condition in conditions:
                    assert len(store.mask(condition)) == 60
        except EpicError:
            failed += 1
    assert failed > 100


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("metadata", '{"a": NaN}'),
        ("metadata", "[1]"),
        ("metadata", "{}{}"),
        ("metadata", b"{}"),
        ("text", b"bytes"),
        ("title", 3.5),
    ],
)
def test_what_no_passage_holds_is_refused(
    tmp_path: Path, column: str, value: str | bytes | float
) -> None:
    path = write(tmp_path / "store", PASSAGES[:3])
    with contextlib.closing(sqlite3.connect(path)) as changed:
        changed.execute("DROP TABLE passages")
        changed.execute(
            "CREATE TABLE passages (row INTEGER PRIMARY KEY, id, title, text, metadata)"
        )
        changed.execute("INSERT INTO passages VALUES (0, 'a', '', 'Text', '{}')")
        changed.execute("INSERT INTO passages VALUES (1, 'b', '', 'Text', '{}')")
        changed.execute(f"UPDATE passages SET {column} = ? WHERE row = 1", (value,))  # noqa: S608
        changed.commit()
    with PassageStore(path, 2) as store:
        assert store.fetch_one(0) == store.fetch([0])[0] == Passage("a", "Text")
        with pytest.raises(PassageIndexError, match="damaged"):
            store.fetch([0, 1])
        with pytest.raises(PassageIndexError, match="damaged"):
            store.fetch_one(1)
        for row in (-1, 2, 2**70):
            with pytest.raises(PassageIndexError, match=f"no row {row}; there are 2"):
                store.fetch_one(row)


def test_a_store_with_other_rows_than_expected_is_noticed(path: Path) -> None:
    with PassageStore(path, 1204) as store:
        assert store.problems() == ["it has 1,203 rows, but should have 1,204"]
    with PassageStore(path, 5) as store, pytest.raises(PassageIndexError, match="damaged"):
        store.where(parse({"_id": {"$gt": ""}}))


def test_no_descriptor_is_leaked(path: Path) -> None:
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208 (the folder changes while it is read)
    for _ in range(20):
        with PassageStore(path) as store:
            store.fetch([0])
    gc.collect()
    assert len(os.listdir("/dev/fd")) <= before  # noqa: PTH208
