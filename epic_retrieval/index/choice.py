"""Which FAISS structure serves how many vectors in how much memory.

The thresholds are from measurements of this package. Knows nothing of folders or of passages.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from epic_retrieval.errors import InputError
from epic_retrieval.index._words import counted
from epic_retrieval.index.ann import CANDIDATES, EF_SEARCH, NPROBE
from epic_retrieval.index.lists import GROUP_BYTES, can_stream
from epic_retrieval.index.sizes import file_bytes, held_bytes
from epic_retrieval.index.structure import ROWS_PER_CENTROID, Parts, make, needed_rows
from epic_retrieval.index.training import row_bytes, training_rows

FLAT = "Flat"
KINDS = ("auto", "flat", "hnsw", "ivf", "ivf-sq8", "ivf-pq")

# Up to so many numbers, exact search of one query takes about a millisecond.
_FLAT_NUMBERS = 20_000 * 384
# Beyond, making a graph takes longer than its speed is worth.
_GRAPH_ROWS = 500_000
# From so many lists on, a graph finds the nearest ones faster than looking at all.
_LISTS_BY_GRAPH = 16_384


@dataclass(frozen=True)
class Choice:
    """A structure for a number of vectors.

    Attributes:
        factory: FAISS index_factory string; "Flat" stands for exact search without a structure.
        why: One sentence with figures.
        bytes_per_vector: Of its file, besides the stored vectors; 0 for "Flat".
        train_rows: How many rows it is trained on.
        memory: Bytes that building takes at the most, besides what the process has before.
        parameters: To search with until it is tuned.
    """

    factory: str
    why: str
    bytes_per_vector: float
    train_rows: int
    memory: int
    parameters: Mapping[str, int]


def choose(kind: str, rows: int, dimension: int, memory: int) -> Choice:
    """The structure of this kind.

    Args:
        kind: One of `KINDS`, or a string of FAISS's index_factory.
        rows: How many vectors there are.
        dimension: Their width.
        memory: Bytes that building may take.

    Raises:
        InputError: FAISS does not know the string, or it does not serve for so many rows, or in
            so much memory.
    """
    size = f"{counted(rows, 'vector')} of {dimension} dimensions"
    if kind.lower() == "flat":
        return _flat(f"{size}: exact search, as asked for")
    if kind not in KINDS:
        return _choice(kind, f"{size}: as asked for", rows, dimension, memory)
    if kind == "auto":
        return _automatic(size, rows, dimension, memory)
    if kind == "hnsw":
        return _choice(_GRAPH, f"{size}: a graph, as asked for", rows, dimension, memory)
    codes = {"ivf": FLAT, "ivf-sq8": "SQ8"}.get(kind)
    enough = _lists(rows, dimension, memory)
    lists = enough or "IVF1"
    factory = f"{lists},{codes}" if codes else _product(lists, rows, dimension, memory)
    if rows < needed_rows(make(factory, dimension)):
        lacking = "product codes" if enough and not codes else "inverted lists"
        return _flat(f"{size}: too few for {lacking}, so exact search")
    return _choice(factory, f"{size}: inverted lists, as asked for", rows, dimension, memory)


_GRAPH = "HNSW32_SQ8"


def _automatic(size: str, rows: int, dimension: int, memory: int) -> Choice:
    lists = _lists(rows, dimension, memory)
    if rows * dimension <= _FLAT_NUMBERS or not lists:
        return _flat(f"{size}: exact search takes about a millisecond")
    given = _shown(memory)
    held = held_bytes(make(_GRAPH, dimension), rows)
    if rows <= _GRAPH_ROWS and held <= memory:
        why = f"{size}: a graph over 8-bit codes is made in {_shown(held)} of {given}"
        return _choice(_GRAPH, why, rows, dimension, memory)
    factory = f"{lists},SQ8"
    codes = file_bytes(make(factory, dimension), rows)
    if codes <= memory:
        why = f"{size}: inverted lists of 8-bit codes, {_shown(codes)}, fit into {given}"
        return _choice(factory, why, rows, dimension, memory)
    factory = _product(lists, rows, dimension, memory)
    small = file_bytes(make(factory, dimension), rows)
    fit = f"fit into {given}" if small <= memory else "lie on disk while they are searched"
    why = (
        f"{size}: inverted lists of 8-bit codes would be {_shown(codes)}; product codes, "
        f"{_shown(small)}, {fit}"
    )
    return _choice(factory, why, rows, dimension, memory)


def _flat(why: str) -> Choice:
    return Choice(FLAT, why, 0.0, 0, 0, {})


def _choice(factory: str, why: str, rows: int, dimension: int, memory: int) -> Choice:
    parts = make(factory, dimension)
    trained = training_rows(parts, rows, memory, factory)
    training = trained * row_bytes(parts)
    if can_stream(parts):
        # Pieces are as large as memory lets them be, and no larger than everything.
        filling = min(memory, 2 * file_bytes(parts, rows) + GROUP_BYTES)
    else:
        filling = held_bytes(parts, rows)
        if filling > memory:
            raise InputError(
                f'"{factory}" takes {_shown(filling)} of memory for {rows:,} rows; there are '
                f"{_shown(memory)}. Give more memory, or take the kind ivf-sq8."
            )
    return Choice(
        factory=factory,
        why=why,
        bytes_per_vector=file_bytes(parts, rows) / max(rows, 1),
        train_rows=trained,
        memory=max(training, filling),
        parameters=_parameters(parts),
    )


def _parameters(parts: Parts) -> dict[str, int]:
    # Codes of few bits need more rows scored anew than those of 8 or more.
    bits = 8 * _code_bytes(parts) / int(parts.whole.d)
    found = {CANDIDATES: 40 if bits >= 8 else 160}
    if parts.lists:
        found[NPROBE] = max(1, math.isqrt(int(parts.inner.nlist)))
    elif parts.graph:
        found[EF_SEARCH] = 100
    return found


def _code_bytes(parts: Parts) -> int:
    stored = parts.inner.storage if parts.graph else parts.inner
    return int(stored.sa_code_size())


def _lists(rows: int, dimension: int, memory: int) -> str:
    """As in "IVF1024", some 4 times the square root of the rows; empty if there are too few."""
    most = min(rows, memory // (4 * dimension * 4)) // ROWS_PER_CENTROID
    if most < 1:
        return ""
    wished = round(math.log2(4 * math.sqrt(rows)))
    number = 2 ** min(wished, most.bit_length() - 1)
    return f"IVF{number}_HNSW32" if number >= _LISTS_BY_GRAPH else f"IVF{number}"


def _product(lists: str, rows: int, dimension: int, memory: int) -> str:
    """Product codes of 4 bits for each 2 dimensions, or 4 where memory is short."""
    for width in (2, 4):
        padded = -(-dimension // width) * width
        before = f"Pad{padded}," if padded != dimension else ""
        factory = f"{before}{lists},PQ{padded // width}x4"
        if held_bytes(make(factory + "fs", dimension), rows) <= memory:
            return factory + "fs"
    # Plain lists can be larger than memory, and are searched where they lie.
    return factory


def _shown(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"
