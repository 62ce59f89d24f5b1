"""What a folder of half-made structures was begun for, so that nothing else goes on with it.

Knows nothing of FAISS.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from epic_retrieval.index.rows import VectorRows
from epic_retrieval.storage import write_atomically

PLAN = "plan.json"

_LOOKED_AT = 64
_ENDS = 1 << 16


@dataclass(frozen=True)
class Plan:
    """Everything that the finished structure depends on.

    Args:
        factory: FAISS index_factory string.
        rows: How many.
        dimension: Width of the vectors.
        seed: Of sampling and k-means.
        vectors: Digest of some of them.
        base: Digest of some of the structure that is gone on from; None where there is none.
        keep_rows: Whether its rows stay.
    """

    factory: str
    rows: int
    dimension: int
    seed: int
    vectors: str
    base: str | None
    keep_rows: bool

    @classmethod
    def of(
        cls, rows: VectorRows, factory: str, seed: int, base: Path | None, *, keep_rows: bool
    ) -> "Plan":
        """The plan of a call."""
        seen = np.linspace(0, len(rows) - 1, min(_LOOKED_AT, len(rows))).astype(np.int64)
        digest = hashlib.sha256(rows.take(seen).tobytes()).hexdigest()
        known = None if base is None else _file_digest(base)
        return cls(factory, len(rows), rows.dimension, seed, digest, known, keep_rows)

    def write(self, folder: Path) -> None:
        """Write it as plan.json."""
        write_atomically(folder / PLAN, json.dumps(asdict(self), indent=2).encode())

    def is_in(self, folder: Path) -> bool:
        """Whether the folder was begun for this plan."""
        try:
            return bool(json.loads((folder / PLAN).read_bytes()) == asdict(self))
        except (OSError, ValueError):
            return False


def _file_digest(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_ENDS))
        file.seek(max(0, size - _ENDS))
        digest.update(file.read(_ENDS))
    return f"{size}-{digest.hexdigest()}"
