"""Rows of many vector files as one array."""

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index import _span, shards
from epic_retrieval.index._mapped import write_array
from epic_retrieval.index._span import Span
from epic_retrieval.index.rows import ArrayRows
from tests.index.test_shards import VECTORS, write_all

pytestmark = pytest.mark.skipif(not _span.SUPPORTED, reason="addresses cannot be chosen here")

# Smaller than a page, larger, of a whole number of pages.
SIZES = [3, 1, 700, 2, 4096]


def written(
    folder: Path, dimension: int, dtype: str = "float32"
) -> tuple[Span, NDArray[np.float32]]:
    vectors = np.random.default_rng(dimension).standard_normal((sum(SIZES), dimension))
    stored = vectors.astype(dtype)
    ends = np.cumsum(SIZES).tolist()
    paths = [folder / f"{end}.npy" for end in ends]
    for path, size, end in zip(paths, SIZES, ends, strict=True):
        write_array(path, stored[end - size : end])
    return Span(paths, SIZES, dimension, np.dtype(dtype)), stored.astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("dimension", [1, 5, 100, 384, 1024, 1500])
def test_rows_of_all_files(tmp_path: Path, dimension: int, dtype: str) -> None:
    span, vectors = written(tmp_path, dimension, dtype)
    for rows in (np.array([4801, 0, 3, 3, 4, 703]), np.arange(sum(SIZES))):
        found = span.take(rows)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, vectors[rows])


def test_products_are_those_of_copies(tmp_path: Path) -> None:
    span, vectors = written(tmp_path, 48)
    rows = np.random.default_rng(0).integers(0, len(vectors), (7, 20))
    queries = np.random.default_rng(1).standard_normal((7, 48)).astype(np.float32)
    expected = ArrayRows(vectors).products(queries, rows)
    np.testing.assert_allclose(span.products(queries, rows), expected, rtol=1e-5, atol=1e-5)


def test_files_are_opened_when_they_are_needed(tmp_path: Path) -> None:
    span, vectors = written(tmp_path, 8)
    (tmp_path / "3.npy").unlink()
    np.testing.assert_array_equal(span.take(np.array([3, 4])), vectors[[3, 4]])
    with pytest.raises(PassageIndexError, match="cannot be read"):
        span.take(np.array([3, 0]))


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    span, _ = written(tmp_path, 8)
    path = tmp_path / "704.npy"
    for shape in ((9000, 8), (350, 16)):
        path.unlink()
        write_array(path, np.zeros(shape, np.float32))
        with pytest.raises(PassageIndexError, match="not 700 vectors of 8 dimensions"):
            span.take(np.array([500]))


def test_threads_and_letting_go(tmp_path: Path) -> None:
    span, vectors = written(tmp_path, 24)

    def use(seed: int) -> bool:
        rows = np.random.default_rng(seed).integers(0, len(vectors), 50)
        return bool((span.take(rows) == vectors[rows]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(200)))
    mapped = str(tmp_path)
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert mapped in maps.read_text()
        del span
        gc.collect()
        assert mapped not in maps.read_text()


def test_systems_without_it_take_rows_file_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infos = write_all(tmp_path, [3, 1, 10, 2, 30])
    monkeypatch.setattr(shards, "SUPPORTED", False)
    rows = np.array([45, 0, 3, 3, 14])
    queries = VECTORS[:2]
    with shards.Shards(tmp_path, infos) as opened:
        np.testing.assert_array_equal(opened.take(rows), VECTORS[rows])
        found = opened.products(queries, np.array([[1, -1], [45, 2]]))
    np.testing.assert_allclose(found[0], [queries[0] @ VECTORS[1], -np.inf], rtol=1e-6)
    np.testing.assert_allclose(found[1], VECTORS[[45, 2]] @ queries[1], rtol=1e-6)
