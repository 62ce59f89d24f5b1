"""Which structure is chosen, and whether what is said of it comes true."""

from pathlib import Path

import pytest

from epic_retrieval.errors import InputError
from epic_retrieval.index._words import counted
from epic_retrieval.index.ann import Ann, train_and_add
from epic_retrieval.index.choice import KINDS, Choice, choose
from epic_retrieval.index.rows import ArrayRows
from tests.index.clustered import clustered

GIB = 2**30


@pytest.mark.parametrize(
    ("rows", "dimension", "memory", "factory"),
    [
        (1, 384, GIB, "Flat"),
        (20_000, 384, GIB, "Flat"),
        (7_500, 1024, GIB, "Flat"),
        (21_000, 384, GIB, "HNSW32_SQ8"),
        (8_000, 1024, GIB, "HNSW32_SQ8"),
        (500_000, 384, GIB, "HNSW32_SQ8"),
        (500_000, 384, GIB // 4, "IVF1024,SQ8"),
        (500_001, 384, GIB, "IVF2048,SQ8"),
        (1_000_000, 384, 3 * GIB // 2, "IVF4096,SQ8"),
        (1_000_000, 384, GIB // 4, "IVF1024,PQ192x4fs"),
        (1_000_000, 385, GIB // 4, "Pad386,IVF1024,PQ193x4fs"),
        (10_000_000, 384, 8 * GIB, "IVF16384_HNSW32,SQ8"),
        (10_000_000, 384, 3 * GIB // 2, "IVF4096,PQ192x4fs"),
        (10_000_000, 384, GIB, "IVF4096,PQ96x4fs"),
        (10_000_000, 384, GIB // 2, "IVF2048,PQ96x4"),
        (300_000_000, 1024, 64 * GIB, "IVF65536_HNSW32,PQ256x4fs"),
    ],
)
def test_automatic(rows: int, dimension: int, memory: int, factory: str) -> None:
    choice = choose("auto", rows, dimension, memory)
    assert choice.factory == factory
    assert choice.why.startswith(f"{counted(rows, 'vector')} of {dimension} dimensions: ")
    assert choice.memory <= memory
    assert choice.train_rows <= rows


def test_reasons_hold_figures() -> None:
    assert choose("auto", 100_000, 384, GIB).why == (
        "100,000 vectors of 384 dimensions: a graph over 8-bit codes is made in 67 MiB of 1.0 GiB"
    )
    assert choose("auto", 10_000_000, 384, 2 * GIB).why == (
        "10,000,000 vectors of 384 dimensions: inverted lists of 8-bit codes would be 3.7 GiB; "
        "product codes, 1,016 MiB, fit into 2.0 GiB"
    )


@pytest.mark.parametrize(
    ("kind", "factory"),
    [
        ("flat", "Flat"),
        ("Flat", "Flat"),
        ("hnsw", "HNSW32_SQ8"),
        ("ivf", "IVF1024,Flat"),
        ("ivf-sq8", "IVF1024,SQ8"),
        ("ivf-pq", "IVF1024,PQ192x4fs"),
        ("OPQ96,IVF512,PQ96x4fs", "OPQ96,IVF512,PQ96x4fs"),
    ],
)
def test_by_name(kind: str, factory: str) -> None:
    choice = choose(kind, 100_000, 384, GIB)
    assert choice.factory == factory
    assert "as asked for" in choice.why


@pytest.mark.parametrize("kind", ["ivf", "ivf-sq8", "ivf-pq", "auto"])
@pytest.mark.parametrize("rows", [1, 38])
def test_too_few_rows_for_lists_are_searched_exactly(kind: str, rows: int) -> None:
    assert choose(kind, rows, 16, GIB).factory == "Flat"


def test_too_few_rows_for_product_codes_are_searched_exactly() -> None:
    few = choose("ivf-pq", 623, 16, GIB)
    assert few.factory == "Flat"
    assert "too few for product codes" in few.why
    assert choose("ivf-pq", 624, 16, GIB).factory == "IVF16,PQ8x4fs"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 39, 100, 700, 5000])
def test_every_kind_can_be_made_of_any_number_of_rows(
    tmp_path: Path, kind: str, rows: int, capfd: pytest.CaptureFixture[str]
) -> None:
    choice = choose(kind, rows, 16, GIB)
    if choice.factory != "Flat":
        vectors = ArrayRows(clustered(rows, 16, clusters=rows // 100 + 1))
        path = train_and_add(vectors, choice.factory, memory=GIB, folder=tmp_path)
        assert Ann.read(path, choice.factory, rows, 16, mmap=True).rows == rows
    assert capfd.readouterr() == ("", "")


def built(choice: Choice, rows: ArrayRows, folder: Path) -> int:
    path = train_and_add(rows, choice.factory, memory=GIB, folder=folder)
    return path.stat().st_size


@pytest.mark.parametrize(
    "kind",
    [
        "hnsw",
        "ivf",
        "ivf-sq8",
        "ivf-pq",
        "IVF32_HNSW16,SQ8",
        "PCA24,IVF32,SQ4",
        "HNSW16",
        "RaBitQ",
        "PQ8x4fs",
        "IVF32,PQ8x6",
        "IVF32,RaBitQfs",
    ],
)
def test_bytes_per_vector_are_those_of_the_file(tmp_path: Path, kind: str) -> None:
    rows = ArrayRows(clustered(8000, 32))
    choice = choose(kind, 8000, 32, GIB)
    size = built(choice, rows, tmp_path)
    assert choice.bytes_per_vector * 8000 == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nonsense", r'FAISS cannot make "nonsense" for 32 dimensions .* \(could not parse index'),
        ("", 'FAISS cannot make ""'),
        ("PQ7x4fs", r"should be a multiple of the number of subquantizers"),
        ("IVF99999999999999999999,Flat", "FAISS cannot make"),
        ("IVF4096,SQ8", r'"IVF4096,SQ8" needs at least 159,744 rows to train on; there are 5,000'),
        ("PQ16", r'"PQ16" needs at least 9,984 rows to train on'),
        ("HNSW32_PQ16", "another measure than the inner product"),
        ("HNSW1", "numbers in it must be 1 or more, and those of graphs 2 to 1024"),
        ("IVF0,Flat", "numbers in it must be 1 or more"),
        ("PQ4x0", "numbers in it must be 1 or more"),
        ("IVF16(IVF4,Flat),Flat", "finds its lists in an unusual way"),
        ("IVF16_NSG8,Flat", "finds its lists in an unusual way"),
        ("IVF16,SQ8,RFlat", "leave out refinement and IDMap"),
        ("IDMap,SQ8", "leave out refinement and IDMap"),
        ("NSG32", "NSG and Panorama cannot be filled piece by piece"),
        ("IVF16,FlatPanorama8", "NSG and Panorama cannot be filled piece by piece"),
        ("LSH", "FAISS cannot make"),
    ],
)
def test_strings_that_do_not_serve(kind: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose(kind, 5000, 32, GIB)


def test_memory_that_does_not_suffice() -> None:
    with pytest.raises(InputError, match=r'"HNSW32_SQ8" takes 3.3 GiB of memory for 5,000,000 ro'):
        choose("hnsw", 5_000_000, 384, GIB)
    with pytest.raises(InputError, match=r'"IVF1024,SQ8" needs 98 MiB of memory to be trained'):
        choose("IVF1024,SQ8", 5_000_000, 192, 32 << 20)
