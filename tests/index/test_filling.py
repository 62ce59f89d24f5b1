"""Structures in the making: pieces, merging, taking over, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from epic_retrieval.errors import InputError
from epic_retrieval.index._faiss import load_faiss
from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index.ann import Ann, train_and_add
from epic_retrieval.index.exact import nearest, rescore
from epic_retrieval.index.lists import PieceFile, can_stream, merge, write_piece
from epic_retrieval.index.rows import ArrayRows
from epic_retrieval.index.structure import make, parts_of
from epic_retrieval.index.training import exchanged
from epic_retrieval.index.tune import recall_of
from tests.index.clustered import SmallBlocks, clustered

DIMENSION = 16
EFFORT = {"nprobe": 8, "efSearch": 64}
# Plain lists in small pieces; structures that are held in memory as a whole.
SMALL, LARGE = 1 << 20, 8 << 20
KINDS = [
    ("IVF16,SQ8", SMALL),
    ("PCA12,IVF16,Flat", SMALL),
    ("IVF16,PQ8x4fs", LARGE),
    ("HNSW16_SQ8", LARGE),
    ("SQ8", SMALL),
]


def test_pieces_that_are_there_are_not_made_again(tmp_path: Path) -> None:
    rows = ArrayRows(clustered(20_000, DIMENSION))
    folder = tmp_path / "pieces"

    class StopError(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "merge":
            raise StopError

    with pytest.raises(StopError):
        train_and_add(rows, "IVF16,SQ8", memory=SMALL, folder=folder, progress=stop)
    pieces = {path.name: path.stat().st_mtime_ns for path in folder.glob("piece-*")}
    assert len(pieces) > 2
    missing = sorted(pieces)[1]
    (folder / missing).unlink()
    words: list[tuple[str, int]] = []
    path = train_and_add(
        rows,
        "IVF16,SQ8",
        memory=SMALL,
        folder=folder,
        progress=lambda stage, done, _: words.append((stage, done)),
    )
    whole = train_and_add(rows, "IVF16,SQ8", memory=SMALL, folder=tmp_path / "whole")
    assert path.read_bytes() == whole.read_bytes()
    first = int(missing.removeprefix("piece-").removesuffix(".lists"))
    assert min(done for stage, done in words if stage == "add") > first
    # Finished: nothing is done any more.
    words.clear()
    train_and_add(
        rows, "IVF16,SQ8", memory=SMALL, folder=folder, progress=lambda *_: words.append(("", 0))
    )
    assert not words


@pytest.mark.parametrize("change", ["factory", "seed", "rows", "vectors"])
def test_other_arguments_begin_anew(tmp_path: Path, change: str) -> None:
    vectors = clustered(3000, DIMENSION)
    first = train_and_add(
        ArrayRows(vectors), "IVF16,SQ8", memory=SMALL, folder=tmp_path
    ).read_bytes()
    factory, seed = "IVF16,SQ8", 0
    if change == "factory":
        factory = "IVF32,SQ8"
    elif change == "seed":
        seed = 1
    elif change == "rows":
        vectors = vectors[:2900]
    else:
        vectors = vectors[::-1]
    path = train_and_add(ArrayRows(vectors), factory, memory=SMALL, folder=tmp_path, seed=seed)
    assert path.read_bytes() != first
    assert Ann.read(path, factory, len(vectors), DIMENSION, mmap=True).rows == len(vectors)


@pytest.mark.parametrize(("factory", "memory"), KINDS)
@pytest.mark.parametrize("keep_rows", [True, False])
def test_training_is_taken_over(
    tmp_path: Path, factory: str, memory: int, *, keep_rows: bool
) -> None:
    vectors = clustered(6000, DIMENSION)
    base = train_and_add(
        ArrayRows(vectors[:4000]), factory, memory=memory, folder=tmp_path / "base"
    )
    rows = SmallBlocks(vectors if keep_rows else vectors[1000:])
    stages = []
    path = train_and_add(
        rows,
        factory,
        memory=memory,
        folder=tmp_path / "next",
        base=base,
        keep_rows=keep_rows,
        progress=lambda stage, done, _: stages.append((stage, done)),
    )
    assert "train" not in {stage for stage, _ in stages}
    added = [done for stage, done in stages if stage == "add"]
    assert (min(added) > 4000) == keep_rows
    ann = Ann.read(path, factory, len(rows), DIMENSION, mmap=True)
    queries = clustered(50, DIMENSION, seed=5, clusters=60)
    found = rescore(rows, queries, ann.propose(queries, 100, EFFORT), 10)
    assert recall_of(found, nearest(rows, queries, 10)) > 0.95


def test_a_base_of_another_kind_is_refused(tmp_path: Path) -> None:
    rows = ArrayRows(clustered(3000, DIMENSION))
    base = train_and_add(rows, "IVF16,SQ8", memory=SMALL, folder=tmp_path / "base")
    for factory in ("IVF32,SQ8", "IVF16,Flat", "HNSW16_SQ8"):
        with pytest.raises(InputError, match=r"IndexIVFScalarQuantizer, 16 lists by IndexFlat, co"):
            train_and_add(
                rows, factory, memory=LARGE, folder=tmp_path / "next", base=base, keep_rows=False
            )


@pytest.mark.parametrize(
    "factory", ["IVF16,Flat", "IVF16,SQ8", "IVF16,PQ8x4", "IVF16,RaBitQ", "RR16,IVF16_HNSW8,SQ4"]
)
def test_merged_file_is_what_faiss_itself_writes(tmp_path: Path, factory: str) -> None:
    faiss = load_faiss()
    vectors = clustered(5000, DIMENSION)
    parts = make(factory, DIMENSION)
    parts.whole.train(vectors)
    assert can_stream(parts)
    pieces = []
    for start in range(0, 5000, 1500):
        block = vectors[start : start + 1500]
        parts.whole.add_with_ids(block, np.arange(start, start + len(block)))
        write_piece(parts, tmp_path / f"{start}", 4096)
        parts.whole.reset()
        pieces.append(PieceFile.open(tmp_path / f"{start}", 16, parts.inner.code_size))
    merge(parts, pieces, tmp_path / "merged", 4096)
    assert parts.whole.ntotal == 0
    for start in range(0, 5000, 1500):
        block = vectors[start : start + 1500]
        parts.whole.add_with_ids(block, np.arange(start, start + len(block)))
    assert (tmp_path / "merged").read_bytes() == faiss.serialize_index(parts.whole).tobytes()


@pytest.mark.parametrize("factory", ["IVF16,PQ8x4fs", "HNSW16", "SQ8"])
def test_other_structures_do_not_stream(factory: str) -> None:
    assert not can_stream(make(factory, DIMENSION))


def test_too_little_memory_is_told_beforehand(tmp_path: Path) -> None:
    rows = ArrayRows(clustered(3000, DIMENSION))
    with pytest.raises(InputError, match=r'"HNSW16_SQ8" takes \d+ MiB of memory for 3,000 rows'):
        train_and_add(rows, "HNSW16_SQ8", memory=1000, folder=tmp_path)
    with pytest.raises(InputError, match=r'"IVF64,SQ8" needs \d+ MiB of memory to be trained'):
        train_and_add(rows, "IVF64,SQ8", memory=100_000, folder=tmp_path)


def test_a_second_quantizer_finds_the_same_lists() -> None:
    # What a GPU does for rows that are added, done here by a copy on the CPU.
    faiss = load_faiss()
    vectors: Vectors = clustered(3000, DIMENSION)
    plain, helped = make("IVF16,SQ8", DIMENSION), make("IVF16,SQ8", DIMENSION)
    for parts in (plain, helped):
        parts.whole.train(vectors)
    plain.whole.add_with_ids(vectors, np.arange(3000))
    second = parts_of(faiss.clone_index(plain.inner.quantizer)).whole
    with exchanged(helped, second):
        helped.whole.add_with_ids(vectors, np.arange(3000))
    np.testing.assert_array_equal(
        faiss.serialize_index(helped.whole), faiss.serialize_index(plain.whole)
    )
