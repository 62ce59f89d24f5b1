from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index import Hit, Passage, PassageIndex, build_index
from epic_retrieval.index import _finding as finding
from epic_retrieval.index.shards import Shards
from epic_retrieval.index.where import parse
from tests.index.folders import GONE, KINDS, LATER, append, delete, made_once, unsynced
from tests.index.samples import DIMENSION, ENCODER, build, encode, passages

Found = list[list[tuple[str, float]]]
Vectors = NDArray[np.float32]

_unsynced = pytest.fixture(autouse=True, scope="module")(unsynced)
living = pytest.fixture(scope="module")(made_once)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "index"
    build(out, 500)
    return out


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Structures are asked also where they do not pay, as in indexes of this size."""
    for name in ("_FEW_ROWS", "_FEW_SHARE", "_NODE_COST"):
        monkeypatch.setattr(finding, name, 0)
    monkeypatch.setattr(finding, "_LARGE_SHARE", 1.0)


def brute_force(rows: dict[str, Vectors], queries: Vectors, k: int) -> Found:
    """Every cosine in double precision, stably sorted."""
    names, vectors = list(rows), np.array(list(rows.values()))
    found = []
    for query in queries.astype(np.float64):
        cosines = (vectors * query).sum(axis=1).clip(-1, 1)
        best = np.argsort(-cosines, kind="stable")[:k]
        found.append([(names[row], float(cosines[row])) for row in best])
    return found


def by_id(given: list[Passage]) -> dict[str, Vectors]:
    return {p.id: encode([p.content])[0] for p in given}


def alive() -> list[Passage]:
    given = [*passages(700), *LATER]
    return [given[row] for row in range(len(given)) if row not in GONE]


def plain(hits: list[list[Hit]]) -> Found:
    return [[(hit.passage.id, hit.score) for hit in near] for near in hits]


def some_queries(count: int) -> Vectors:
    return encode([f"query {n}" for n in range(count)])


@pytest.mark.parametrize("k", [1, 10, 499, 500, 10_000])
@pytest.mark.parametrize("count", [1, 3, 64])
def test_equals_brute_force(folder: Path, k: int, count: int) -> None:
    queries = some_queries(count)
    with PassageIndex.open(folder) as index:
        hits = index.search(queries, k)
    assert plain(hits) == brute_force(by_id(passages(500)), queries, k)
    assert all([hit.rank for hit in near] == list(range(1, len(near) + 1)) for near in hits)


@pytest.mark.parametrize("kind", KINDS)
def test_company_does_not_change_an_answer(living: Callable[[str], Path], kind: str) -> None:
    queries = some_queries(40)
    with PassageIndex.open(living(kind)) as index:
        together = index.search(queries, 20)
        assert [index.search(query[None], 20)[0] for query in queries] == together


@pytest.mark.parametrize("copies", [5, 30, 300])
def test_equal_scores_stand_in_the_order_of_the_corpus(tmp_path: Path, copies: int) -> None:
    texts = ["other", *["same"] * copies, "another", "same"]
    given = [Passage(f"d{row}", text) for row, text in enumerate(texts)]
    build_index(given, encode, tmp_path / "index", encoder=ENCODER)
    queries = encode(["same", "query"])
    with PassageIndex.open(tmp_path / "index") as index:
        for k in (3, copies, copies + 2):
            assert plain(index.search(queries, k)) == brute_force(by_id(given), queries, k)
        assert index.search(queries, 1)[0][0].score == pytest.approx(1.0)


@pytest.mark.parametrize("k", [1, 10, 620, 1000])
def test_exact_without_deleted_and_with_later_passages(
    living: Callable[[str], Path], k: int
) -> None:
    queries = some_queries(5)
    with PassageIndex.open(living("flat")) as index:
        stored = dict(zip(by_id(alive()), index.vectors(by_id(alive())), strict=True))
        assert plain(index.search(queries, k)) == brute_force(stored, queries, k)
        assert np.abs(np.array(list(stored.values())) - [*by_id(alive()).values()]).max() < 1e-3


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("k", [1, 10, 60])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_structures_find_most_and_score_exactly(
    living: Callable[[str], Path], kind: str, k: int
) -> None:
    queries = some_queries(30)
    rows = by_id(alive())
    with PassageIndex.open(living(kind)) as index:
        found = plain(index.search(queries, k))
    expected = brute_force(rows, queries, k)
    everything = [dict(near) for near in brute_force(rows, queries, len(rows))]
    for near, all_of_them in zip(found, everything, strict=True):
        assert len(near) == k
        assert near == [(key, all_of_them[key]) for key, _ in near]
        order = [(-score, list(rows).index(key)) for key, score in near]
        assert order == sorted(order)
    pairs = zip(found, expected, strict=True)
    assert np.mean([len(set(a) & set(b)) / k for a, b in pairs]) > 0.85


CONDITIONS = [
    {"n": {"$lt": 40}},
    {"n": {"$gte": 10, "$lt": 600}},
    {"$or": [{"_id": {"$in": ["x7", "d1", "absent"]}}, {"n": 44}]},
    {"n": {"$ne": 3}},
    {"n": {"$exists": False}},
    {},
]


@pytest.mark.parametrize("where", CONDITIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_filters(living: Callable[[str], Path], kind: str, where: dict[str, object]) -> None:
    tests: list[Callable[[int, str], bool]] = [
        lambda n, _: n < 40,
        lambda n, _: 10 <= n < 600,
        lambda n, key: key in {"x7", "d1"} or n == 44,
        lambda n, _: n != 3,
        lambda *_: False,
        lambda *_: True,
    ]
    test = tests[CONDITIONS.index(where)]
    matching = [p for p in alive() if test(p.metadata["n"], p.id)]  # type: ignore[arg-type]
    queries = some_queries(10)
    with PassageIndex.open(living(kind)) as index:
        found = plain(index.search(queries, 10, where=where))  # type: ignore[arg-type]
        if matching:
            vectors = index.vectors(p.id for p in matching)
            stored = dict(zip([p.id for p in matching], vectors, strict=True))
            expected = brute_force(stored, queries, 10)
        else:
            expected = [[] for _ in queries]
    if kind == "flat" or len(matching) < 350:
        assert found == expected
    assert [len(near) for near in found] == [len(near) for near in expected]
    common = [len(set(a) & set(b)) for a, b in zip(found, expected, strict=True)]
    assert sum(common) >= 0.85 * sum(map(len, expected))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("kind", KINDS[1:])
def test_structures_with_filters(living: Callable[[str], Path], kind: str) -> None:
    queries = some_queries(20)
    with PassageIndex.open(living(kind)) as index:
        for most in (400, 100):
            matching = [p for p in alive() if p.metadata["n"] < most]  # type: ignore[operator]
            found = plain(index.search(queries, 10, where={"n": {"$lt": most}}))
            expected = brute_force(by_id(matching), queries, 10)
            assert all(len(near) == 10 for near in found)
            assert {key for near in found for key, _ in near} <= {p.id for p in matching}
            common = [len(set(a) & set(b)) for a, b in zip(found, expected, strict=True)]
            assert sum(common) >= 0.85 * 10 * len(queries)


@pytest.mark.usefixtures("eager")
def test_what_a_structure_does_not_find_is_found_exactly(living: Callable[[str], Path]) -> None:
    queries = some_queries(20)
    narrow = {"nprobe": 1, "candidates": 1}
    with PassageIndex.open(living("IVF16,SQ8")) as index:
        # A list holds about 40 passages.
        found = plain(index.search(queries, 300, parameters=narrow))
        assert found == brute_force(by_id(alive()), queries, 300)
        where = {"_id": {"$in": [f"d{n}" for n in range(1, 700, 50)]}}
        found = plain(index.search(queries, 5, where=where, parameters=narrow))
        assert all(len(near) == 5 for near in found)


@pytest.mark.usefixtures("eager")
def test_parameters_replace_those_stored(living: Callable[[str], Path]) -> None:
    queries = some_queries(50)
    expected = brute_force(by_id(alive()), queries, 10)

    def recall(**parameters: int) -> float:
        found = plain(index.search(queries, 10, parameters=parameters))
        return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, expected)]))  # noqa: B905

    with PassageIndex.open(living("IVF16,PQ8x4fs")) as index:
        assert recall(nprobe=1) < recall(nprobe=4) < recall(nprobe=16, candidates=150)
        assert recall(nprobe=16, candidates=10) < recall(nprobe=16, candidates=100)
        assert recall(nprobe=16, candidates=600) == 1.0
        assert recall(nprobe=10**9, candidates=600) == 1.0


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        ("flat", {"nprobe": 3}, 'parameters has "nprobe".*"Flat".*there are none'),
        ("HNSW8", {"nprobe": 3}, '"nprobe".*"HNSW8".*there are efSearch, candidates'),
        ("IVF16,SQ8", {"efSearch": 3}, "there are nprobe, candidates"),
        ("PQ8x4fs", {"nprobe": 3}, "there are candidates"),
        ("IVF16,SQ8", {"nprobe": 0}, "nprobe is 0: expected a whole number, at least 1"),
        ("IVF16,SQ8", {"nprobe": 2.5}, "nprobe is 2.5: expected"),
        ("IVF16,SQ8", {"candidates": True}, "candidates is True: expected"),
    ],
)
def test_bad_parameters(
    living: Callable[[str], Path], kind: str, parameters: dict[str, int], message: str
) -> None:
    with PassageIndex.open(living(kind)) as index, pytest.raises(InputError, match=message):
        index.search(some_queries(1), 3, parameters=parameters)


def test_bad_conditions(folder: Path) -> None:
    with PassageIndex.open(folder) as index:
        with pytest.raises(InputError, match=r"where\['n'\]\['\$near'\]: there is no such"):
            index.search(some_queries(1), 3, where={"n": {"$near": 3}})
        with pytest.raises(InputError, match="expected a mapping"):
            index.search(some_queries(1), 3, where=["n"])  # type: ignore[arg-type]


def test_a_condition_is_evaluated_once(
    living: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def mask(self: Shards, condition: object) -> NDArray[np.bool_]:
        asked.append(condition)
        return original(self, condition)  # type: ignore[arg-type]

    original = Shards.mask
    monkeypatch.setattr(Shards, "mask", mask)
    with PassageIndex.open(living("flat")) as index:
        first = index.search(some_queries(2), 5, where={"n": {"$in": [*range(50)]}})
        for where in ({"n": {"$in": list(range(50))}}, parse({"n": {"$in": list(range(50))}})):
            assert index.search(some_queries(2), 5, where=where) == first
        assert len(asked) == 1
        # 1 and true are different things.
        index.search(some_queries(2), 5, where={"n": 1})
        index.search(some_queries(2), 5, where={"n": True})
        assert len(asked) == 3
        for n in range(300):
            index.search(some_queries(1), 1, where={"n": n})
        assert len(index._opened()._kept) == 100
        monkeypatch.setattr("epic_retrieval.index._open._KEPT_BYTES", 5 * 750 + 1)
        index.search(some_queries(1), 1, where={"n": -1})
        assert len(index._opened()._kept) == 5


@pytest.mark.parametrize("kind", ["flat", "HNSW8"])
def test_passages_vectors_and_ids(living: Callable[[str], Path], kind: str) -> None:
    with PassageIndex.open(living(kind)) as index:
        assert list(index.passages) == alive()
        assert len(index.passages) == len(index) == index.manifest.count == len(alive())
        assert index.get(["x49", "d0", "absent", "d1", "x49"]) == {
            "x49": LATER[49],
            "d1": passages(2)[1],
        }
        assert index.get([]) == {}
        assert [key in index for key in ("x49", "d1", "d0", "absent", "\ud800", 1)] == (
            [True, True, False, False, False, False]
        )
        found = index.vectors(["x49", "d1", "x49"])
        assert np.abs(found - encode([LATER[49].content, passages(2)[1].content] * 2)[:3]).max() < (
            1e-3
        )
        assert index.vectors([]).shape == (0, DIMENSION)
        with pytest.raises(InputError, match=r'no passage with the id "d0" \(2 of 3'):
            index.vectors(["d1", "d0", "absent"])
        for look_up in (index.get, index.vectors):
            with pytest.raises(InputError, match=r'expected a list of ids, such as \["d1"\]'):
                look_up("d1")


def test_a_passage_that_came_back(tmp_path: Path) -> None:
    build(tmp_path / "index", 20)
    delete(tmp_path / "index", [3, 4])
    again = Passage("d3", "Another text.")
    append(tmp_path / "index", [again])
    with PassageIndex.open(tmp_path / "index") as index:
        assert index.get(["d3", "d4"]) == {"d3": again}
        assert index.search(encode(["Another text."]), 1)[0][0].passage == again
        assert len(index.search(some_queries(1), 100)[0]) == 19


def test_what_is_shown_of_an_index(tmp_path: Path) -> None:
    build(tmp_path / "index", 5)
    delete(tmp_path / "index", range(4))
    with PassageIndex.open(tmp_path / "index") as index:
        shown = f"PassageIndex({str(tmp_path / 'index')!r}, 1 passage, Flat"
        assert repr(index) == f"{shown})"
    assert repr(index) == f"{shown}, closed)"
    with pytest.raises(PassageIndexError, match="the index is closed"):
        "d1" in index  # noqa: B015 (asked for its error)


def test_all_deleted(tmp_path: Path) -> None:
    build(tmp_path / "index", 5)
    delete(tmp_path / "index", range(5))
    with PassageIndex.open(tmp_path / "index") as index:
        assert index.search(some_queries(2), 3) == [[], []]
        assert list(index.passages) == []
        assert len(index) == 0


def test_passages_come_back_whole(folder: Path) -> None:
    given = passages(500)
    with PassageIndex.open(folder, check=False) as index:
        (near,) = index.search(encode([given[77].content]), 1)
        assert near == [Hit(given[77], near[0].score, 1)]
        assert list(index.passages) == given
        assert len(index) == index.manifest.count == 500
        assert index.search(encode([]), 5) == []


def nan() -> Vectors:
    rows = encode(["a", "b"])
    rows[1, 3] = np.nan
    return rows


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (encode(["a"])[0], r"shape \(16,\): expected \(n, 16\). For one query, use vector\[None"),
        (encode(["a"])[None], r"shape \(1, 1, 16\): expected \(n, 16\)"),
        (encode(["a"])[:, :5], "vectors of 5 dimensions: expected 16"),
        (encode(["a"]).astype(np.float64), "array of float64: expected float32"),
        (encode(["a"]).astype(np.float16), "array of float16: expected float32"),
        (encode(["a"]).tolist(), "a builtins.list: expected a numpy array"),
        (nan(), "NaN or infinity in row 1"),
        (encode(["a"]) * 2, "a vector of length 2 in row 0: expected 1"),
        (np.zeros((1, DIMENSION), np.float32), "a vector of length 0 in row 0"),
    ],
)
def test_bad_queries(folder: Path, queries: Vectors, message: str) -> None:
    with PassageIndex.open(folder) as index, pytest.raises(InputError, match=message):
        index.search(queries, 3)


@pytest.mark.parametrize("k", [0, -1, 2.0, "3", None, True])
def test_bad_k(folder: Path, k: int) -> None:
    with PassageIndex.open(folder) as index, pytest.raises(InputError, match=r"k is .*: expected"):
        index.search(encode(["a"]), k)


def test_numpy_k_and_column_order(folder: Path) -> None:
    queries = encode(["a", "b"])
    with PassageIndex.open(folder) as index:
        found = index.search(np.asfortranarray(queries), np.int64(3))  # type: ignore[arg-type]
        assert found == index.search(queries, 3)


def test_vectors_that_were_cut(tmp_path: Path) -> None:
    build_index(passages(30), encode, tmp_path / "index", encoder=ENCODER, dimension=6)
    wide = some_queries(3)
    short = wide[:, :6] / np.linalg.norm(wide[:, :6].astype(np.float64), axis=1, keepdims=True)
    with PassageIndex.open(tmp_path / "index") as index:
        index.check_encoder(ENCODER)
        index.check_encoder(replace(ENCODER, dimension=6))
        with pytest.raises(PassageIndexError, match="dimension 16, now 7"):
            index.check_encoder(replace(ENCODER, dimension=7))
        assert index.search(wide, 5) == index.search(short.astype(np.float32), 5)
        with pytest.raises(InputError, match="expected 1"):
            index.search(wide[:, :6], 5)
        with pytest.raises(InputError, match="vectors of 7 dimensions: expected 6"):
            index.search(wide[:, :7], 5)


@pytest.mark.parametrize("kind", ["flat", "HNSW8", "IVF16,PQ8x4fs"])
def test_many_threads(living: Callable[[str], Path], kind: str) -> None:
    queries = some_queries(32)
    conditions = [None, *({"n": {"$lt": most}} for most in range(50, 700, 50))]

    def ask(number: int) -> list[list[Hit]]:
        return index.search(queries, 5, where=conditions[number % len(conditions)])

    with PassageIndex.open(living(kind)) as index:
        expected = [ask(number) for number in range(len(conditions))]
    with PassageIndex.open(living(kind)) as index, ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(ask, range(60))):
            assert found == expected[number % len(conditions)]
