"""Structures of many kinds: made over rows, read, searched, filtered; never written again."""

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._faiss import load_faiss
from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index.ann import Ann, train_and_add
from epic_retrieval.index.exact import nearest, rescore
from epic_retrieval.index.rows import ArrayRows
from epic_retrieval.index.sizes import file_bytes
from epic_retrieval.index.structure import make
from epic_retrieval.index.tune import recall_of
from tests.index.clustered import clustered

COUNT, DIMENSION = 4000, 32
MEMORY = 32 << 20
EFFORT = {"nprobe": 16, "efSearch": 128}
FILTERED = [
    "HNSW32",
    "HNSW32_SQfp16",
    "HNSW32_SQ8",
    "IVF64,Flat",
    "IVF64,SQ8",
    "IVF64,PQ16x4fs",
    "IVF64,PQ16x4",
    "OPQ8,IVF64,PQ8x4fs",
    "IVF64_HNSW32,SQ8",
    "IVF64_HNSW32,PQ16x4fs",
    "PCA24,IVF64,Flat",
    "RR32,IVF64,RaBitQ",
    "Pad34,IVF64,PQ17x4fs",
    "PCA24,HNSW16",
    "RaBitQ",
    "SQ8",
]
UNFILTERED = ["PQ16x4fs", "PQ16x4", "RaBitQfs"]


@pytest.fixture(scope="module")
def rows() -> ArrayRows:
    return ArrayRows(clustered(COUNT, DIMENSION, clusters=40))


@pytest.fixture(scope="module")
def queries() -> Vectors:
    return clustered(50, DIMENSION, seed=7, clusters=40)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("structures")


def built(kept: Path, rows: ArrayRows, factory: str) -> Path:
    folder = kept / factory.replace(",", "-")
    return train_and_add(rows, factory, memory=MEMORY, folder=folder)


def opened(path: Path, factory: str, *, mmap: bool = True) -> Ann:
    return Ann.read(path, factory, COUNT, DIMENSION, mmap=mmap)


@pytest.mark.parametrize("factory", FILTERED + UNFILTERED)
def test_made_read_and_searched(
    kept: Path,
    rows: ArrayRows,
    queries: Vectors,
    factory: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = built(kept, rows, factory)
    assert {file.name for file in path.parent.iterdir()} == {"index.faiss", "plan.json"}
    assert file_bytes(make(factory, DIMENSION), COUNT) == pytest.approx(
        path.stat().st_size, rel=0.05
    )
    mapped, held = opened(path, factory), opened(path, factory, mmap=False)
    proposed = mapped.propose(queries, 160, EFFORT)
    np.testing.assert_array_equal(proposed, held.propose(queries, 160, EFFORT))
    assert proposed.shape == (50, 160)
    assert proposed.dtype == np.int64
    found = rescore(rows, queries, proposed, 10)
    assert recall_of(found, nearest(rows, queries, 10)) > 0.95
    assert mapped.supports_filter == (factory in FILTERED)
    # FAISS warns of too few rows for k-means this way.
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("factory", FILTERED)
@pytest.mark.parametrize("share", [0.5, 0.1, 0.0])
def test_filtered(
    kept: Path, rows: ArrayRows, queries: Vectors, factory: str, share: float
) -> None:
    ann = opened(built(kept, rows, factory), factory)
    allowed = np.random.default_rng(3).random(COUNT) < share
    proposed = ann.propose(queries, 100, {"nprobe": 64, "efSearch": 400}, allowed)
    assert allowed[proposed[proposed >= 0]].all()
    truth = nearest(rows, queries, 10, allowed)
    assert recall_of(rescore(rows, queries, proposed, 10), truth) > 0.95


@pytest.mark.parametrize("factory", UNFILTERED)
def test_filter_refused(kept: Path, rows: ArrayRows, queries: Vectors, factory: str) -> None:
    ann = opened(built(kept, rows, factory), factory)
    with pytest.raises(InputError, match="cannot be searched with a filter"):
        ann.propose(queries, 10, {}, np.ones(COUNT, np.bool_))


def test_parameters_and_shapes(kept: Path, rows: ArrayRows, queries: Vectors) -> None:
    ann = opened(built(kept, rows, "IVF64,SQ8"), "IVF64,SQ8")
    assert (ann.effort, ann.most_effort, ann.rows, ann.dimension) == (
        "nprobe",
        64,
        COUNT,
        DIMENSION,
    )
    few, many = (ann.propose(queries, 500, {"nprobe": n}) for n in (1, 10**6))
    assert (few < 0).sum() > (many < 0).sum() == 0
    assert ann.propose(queries[:0], 5, {}).shape == (0, 5)
    assert (ann.propose(queries, COUNT + 5, {"nprobe": 64})[:, -5:] == -1).all()
    with pytest.raises(InputError, match=r"shape \(3,\): expected \(4000,\)"):
        ann.propose(queries, 5, {}, np.ones(3, np.bool_))
    graph = opened(built(kept, rows, "HNSW32_SQ8"), "HNSW32_SQ8")
    assert (graph.effort, graph.most_effort) == ("efSearch", COUNT)
    flat = opened(built(kept, rows, "SQ8"), "SQ8")
    assert (flat.effort, flat.most_effort) == (None, 1)


def test_threads_with_filters_of_their_own(kept: Path, rows: ArrayRows, queries: Vectors) -> None:
    ann = opened(built(kept, rows, "IVF64,SQ8"), "IVF64,SQ8")
    wrong: list[int] = []

    def search(number: int) -> None:
        for start in range(20):
            allowed = np.arange(COUNT) % 8 == number
            found = ann.propose(queries[start : start + 1], 20, {"nprobe": 64}, allowed)
            wrong.extend(found[~np.isin(found % 8, number)].tolist())

    threads = [threading.Thread(target=search, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def damaged(path: Path, folder: Path, change: Any) -> Path:  # noqa: ANN401
    faiss = load_faiss()
    index = faiss.read_index(str(path))
    change(index)
    faiss.write_index(index, str(folder / "index.faiss"))
    return folder / "index.faiss"


def test_what_is_not_as_it_should_be_is_refused(
    kept: Path, rows: ArrayRows, tmp_path: Path
) -> None:
    factory = "IVF64,SQ8"
    path = built(kept, rows, factory)
    with pytest.raises(PassageIndexError, match="4,000 vectors of 32 dimensions, but the manif"):
        Ann.read(path, factory, COUNT + 1, DIMENSION, mmap=True)
    with pytest.raises(PassageIndexError, match="4,000 vectors of 32 dimensions, but the manif"):
        Ann.read(path, factory, COUNT, 64, mmap=True)
    for other in ("IVF128,SQ8", "IVF64,Flat", "HNSW32", "PCA16,IVF64,SQ8"):
        with pytest.raises(PassageIndexError, match=f'but "{other}" gives'):
            opened(path, other)
    with pytest.raises(PassageIndexError, match='FAISS cannot make "bad"'):
        opened(path, "bad")
    cut = tmp_path / "cut.faiss"
    cut.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(PassageIndexError, match="FAISS cannot read it"):
        opened(cut, factory)
    with pytest.raises(PassageIndexError, match="FAISS cannot read it"):
        opened(tmp_path / "absent.faiss", factory)
    euclidean = damaged(path, tmp_path, lambda index: setattr(index, "metric_type", 1))
    with pytest.raises(PassageIndexError, match="not a finished structure for inner products"):
        opened(euclidean, factory)


@pytest.mark.parametrize("factory", ["IVF64,SQ8", "HNSW32_SQ8", "IVF64,PQ16x4fs"])
def test_nothing_adds_to_an_open_structure(
    rows: ArrayRows, queries: Vectors, tmp_path: Path, factory: str
) -> None:
    path = train_and_add(rows, factory, memory=MEMORY, folder=tmp_path / "first")
    content = path.read_bytes()
    ann = opened(path, factory)
    # FAISS ends the process when a mapped structure is added to: there is no way to ask for it.
    writes = ("add", "train", "reset", "merge", "remove", "update")
    assert not [name for name in dir(ann) if name.startswith(writes)]
    before = ann.propose(queries, 20, EFFORT)
    more = ArrayRows(np.concatenate([rows.take(np.arange(COUNT)), queries]))
    longer = train_and_add(more, factory, memory=MEMORY, folder=tmp_path / "second", base=path)
    assert path.read_bytes() == content
    shutil.rmtree(tmp_path / "first")
    np.testing.assert_array_equal(ann.propose(queries, 20, EFFORT), before)
    assert Ann.read(longer, factory, COUNT + 50, DIMENSION, mmap=True).rows == COUNT + 50
