import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index import Hit, Passage, PassageIndex, build_index
from tests.index.samples import DIMENSION, ENCODER, build, encode, passages

Found = list[list[tuple[str, float]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "index"
    build(out, 500)
    return out


def brute_force(texts: list[str], queries: NDArray[np.float32], k: int) -> Found:
    """Every cosine in double precision, stably sorted."""
    rows = encode(texts)
    found = []
    for query in queries.astype(np.float64):
        cosines = (rows * query).sum(axis=1).clip(-1, 1)
        best = np.argsort(-cosines, kind="stable")[:k]
        found.append([(f"d{row}", float(cosines[row])) for row in best])
    return found


def plain(hits: list[list[Hit]]) -> Found:
    return [[(hit.passage.id, hit.score) for hit in near] for near in hits]


@pytest.mark.parametrize("k", [1, 10, 499, 500, 10_000])
@pytest.mark.parametrize("count", [1, 3, 64])
def test_equals_brute_force(folder: Path, k: int, count: int) -> None:
    queries = encode([f"query {n}" for n in range(count)])
    with PassageIndex.open(folder) as index:
        hits = index.search(queries, k)
    assert plain(hits) == brute_force([p.content for p in passages(500)], queries, k)
    assert all([hit.rank for hit in near] == list(range(1, len(near) + 1)) for near in hits)


def test_company_does_not_change_an_answer(folder: Path) -> None:
    queries = encode([f"query {n}" for n in range(100)])
    with PassageIndex.open(folder) as index:
        together = index.search(queries, 50)
        assert [index.search(query[None], 50)[0] for query in queries] == together


@pytest.mark.parametrize("copies", [5, 30, 300])
def test_equal_scores_stand_in_the_order_of_the_corpus(tmp_path: Path, copies: int) -> None:
    texts = ["other", *["same"] * copies, "another", "same"]
    given = [Passage(f"d{row}", text) for row, text in enumerate(texts)]
    build_index(given, encode, tmp_path / "index", encoder=ENCODER)
    queries = encode(["same", "query"])
    with PassageIndex.open(tmp_path / "index") as index:
        for k in (3, copies, copies + 2):
            assert plain(index.search(queries, k)) == brute_force(texts, queries, k)
        assert index.search(queries, 1)[0][0].score == pytest.approx(1.0)


def test_passages_come_back_whole(folder: Path) -> None:
    given = passages(500)
    with PassageIndex.open(folder, check=False) as index:
        (near,) = index.search(encode([given[77].content]), 1)
        assert near == [Hit(given[77], near[0].score, 1)]
        assert list(index.passages) == given
        assert len(index) == index.manifest.count == 500
        assert index.search(encode([]), 5) == []


def nan() -> NDArray[np.float32]:
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
def test_bad_queries(folder: Path, queries: NDArray[np.float32], message: str) -> None:
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


def test_another_encoder(folder: Path) -> None:
    with PassageIndex.open(folder) as index:
        index.check_encoder(replace(ENCODER, name="another name for it"))
        other = replace(ENCODER, name="other", fingerprint="0" * 8)
        with pytest.raises(PassageIndexError) as caught:
            index.check_encoder(other)
        for part in ("letters", "other", "f" * 8, "0" * 8, "build the index again"):
            assert part in str(caught.value)


def test_closed(folder: Path) -> None:
    index = PassageIndex.open(folder)
    index.close()
    index.close()
    with pytest.raises(PassageIndexError, match="the index is closed"):
        index.search(encode(["a"]), 1)
    with pytest.raises(PassageIndexError, match="the index is closed"):
        index.passages.fetch([0])


def test_many_threads(folder: Path) -> None:
    queries = encode([f"query {n}" for n in range(32)])
    with PassageIndex.open(folder) as index, ThreadPoolExecutor(8) as pool:
        expected = index.search(queries, 5)
        for found in pool.map(lambda _: index.search(queries, 5), range(40)):
            assert found == expected


def test_open_index_outlives_its_replacement(tmp_path: Path) -> None:
    build(tmp_path / "index", 40)
    with PassageIndex.open(tmp_path / "index") as index:
        before = index.search(encode(["a"]), 40)
        build(tmp_path / "index", 10, overwrite=True)
        found: list[list[list[Hit]]] = []
        thread = threading.Thread(target=lambda: found.append(index.search(encode(["a"]), 40)))
        thread.start()
        thread.join()
        assert found == [before]
    with PassageIndex.open(tmp_path / "index") as index:
        assert len(index) == 10


def test_folder_names_with_signs(tmp_path: Path) -> None:
    out = tmp_path / "a b%20?c#d ü"
    build(out, 3)
    with PassageIndex.open(out) as index:
        assert len(index.search(encode(["a"]), 3)[0]) == 3


def test_read_only_folder(tmp_path: Path) -> None:
    build(tmp_path / "index", 3)
    for path in (*(tmp_path / "index").iterdir(), tmp_path / "index"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    with PassageIndex.open(tmp_path / "index") as index:
        assert len(index.search(encode(["a"]), 3)[0]) == 3
    (tmp_path / "index").chmod(0o755)


@pytest.mark.parametrize("name", ["vectors.faiss", "passages.sqlite", "manifest.json"])
@pytest.mark.parametrize("check", [True, False])
def test_missing_or_short_files(folder: Path, tmp_path: Path, name: str, check: bool) -> None:
    copy = tmp_path / "index"
    shutil.copytree(folder, copy)
    os.truncate(copy / name, (copy / name).stat().st_size - 1)
    if name != "manifest.json":  # its last byte is the final line break
        with pytest.raises(PassageIndexError, match=rf"{name} has [\d,]+ bytes, but was built"):
            PassageIndex.open(copy, check=check)
    os.truncate(copy / name, 40)
    with pytest.raises(PassageIndexError, match=name):
        PassageIndex.open(copy, check=check)
    (copy / name).unlink()
    with pytest.raises(PassageIndexError, match=f"{name} is missing|it has no {name}"):
        PassageIndex.open(copy, check=check)


def test_what_is_no_index(tmp_path: Path) -> None:
    with pytest.raises(PassageIndexError, match="no such folder"):
        PassageIndex.open(tmp_path / "none")
    with pytest.raises(PassageIndexError, match=r"not an index, it has no manifest.json"):
        PassageIndex.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"manifest_version": 3}')
    with pytest.raises(PassageIndexError, match="not the manifest of a passage index"):
        PassageIndex.open(tmp_path)
    with pytest.raises(PassageIndexError, match="cannot be read"):
        PassageIndex.open(tmp_path / "manifest.json")
