"""A small corpus and an encoder without a model: letters counted, hashed and normalised."""

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.index import EncoderInfo, Manifest, Passage, build_index

# Where processes that tests start find both the package and this file.
ROOT = Path(__file__).resolve().parents[2]
DIMENSION = 16
ENCODER = EncoderInfo("letters", "f" * 8, DIMENSION)


def encode(texts: list[str]) -> NDArray[np.float32]:
    """Unit vectors that depend on the text alone."""
    rows = [
        np.random.default_rng(zlib.crc32(text.encode())).standard_normal(DIMENSION)
        for text in texts
    ]
    vectors = np.array(rows).reshape(-1, DIMENSION)
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit.astype(np.float32)


def passages(count: int) -> list[Passage]:
    return [
        Passage(f"d{n}", f"Text of passage {n}.", f"Title {n}" if n % 2 else "", {"n": n})
        for n in range(count)
    ]


def build(out: Path, count: int = 40, *, overwrite: bool = False) -> Manifest:
    return build_index(
        passages(count), encode, out, encoder=ENCODER, chunk_size=7, overwrite=overwrite
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
