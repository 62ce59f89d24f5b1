"""FAISS structures as objects: made from a factory string, taken apart, described.

A structure only proposes rows, and always by inner product. Knows nothing of where vectors come
from, nor of files.
"""

import re
from dataclasses import dataclass
from typing import Any, TypeAlias

from epic_retrieval.errors import InputError
from epic_retrieval.index._faiss import load_faiss

FaissIndex: TypeAlias = Any  # FAISS has no types of its own

# What FAISS throws; which of them depends on where in it something went wrong.
FAISS_ERRORS = (RuntimeError, AssertionError, MemoryError, OverflowError, IndexError, ValueError)

# k-means warns below so many rows for each centroid.
ROWS_PER_CENTROID = 39

# How far a graph over lists is searched, at the least.
LISTS_SEARCH = 64

_EXAMPLES = '"IVF1024,SQ8" or "HNSW32_SQ8"'
_REASON = re.compile(r"(?:.*failed: ?|.*\.cpp:\d+: ?|.*C\+\+ exception )(.+)", re.DOTALL)
_ZERO = re.compile(r"(?<!\d)0+(?!\d)")
_GRAPH = re.compile(r"(?:HNSW|NSG)(\d+)")


@dataclass(frozen=True)
class Parts:
    """A structure taken apart. FAISS frees the parts with the whole, so this keeps it.

    Attributes:
        whole: As it is searched.
        inner: Without the transformations that vectors go through first.
        transforms: Those.
        lists: Whether `inner` is an inverted file.
        graph: Whether `inner` is an HNSW graph.
    """

    whole: FaissIndex
    inner: Any
    transforms: tuple[Any, ...]
    lists: bool
    graph: bool


def parts_of(index: FaissIndex) -> Parts:
    """Take a structure apart."""
    faiss = load_faiss()
    inner = faiss.downcast_index(index)
    transforms: tuple[Any, ...] = ()
    if isinstance(inner, faiss.IndexPreTransform):
        chain = (inner.chain.at(place) for place in range(inner.chain.size()))
        transforms = tuple(faiss.downcast_VectorTransform(link) for link in chain)
        inner = faiss.downcast_index(inner.index)
    lists, graph = isinstance(inner, faiss.IndexIVF), isinstance(inner, faiss.IndexHNSW)
    return Parts(index, inner, transforms, lists, graph)


def make(factory: str, dimension: int) -> Parts:
    """An empty, untrained structure.

    Args:
        factory: A string of FAISS's index_factory, such as "IVF1024,SQ8".
        dimension: Width of the vectors.

    Raises:
        InputError: FAISS does not know it, or it does not serve to propose rows by inner product.
    """
    faiss = load_faiss()
    _check_numbers(factory)
    try:
        parts = parts_of(faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT))
    except FAISS_ERRORS as error:
        raise InputError(
            f'FAISS cannot make "{factory}" for {dimension} dimensions and inner products '
            f"({reason_of(error)}). Take a string of its index_factory such as {_EXAMPLES}."
        ) from error
    if isinstance(parts.inner, faiss.IndexRefine | faiss.IndexIDMap | faiss.IndexIDMap2):
        raise InputError(
            f'"{factory}": leave out refinement and IDMap. Every score is computed again from the '
            "stored vectors anyway, and rows have numbers."
        )
    if {parts.whole.metric_type, parts.inner.metric_type} != {faiss.METRIC_INNER_PRODUCT}:
        raise InputError(
            f'"{factory}" compares by another measure than the inner product. Take {_EXAMPLES}.'
        )
    if isinstance(parts.inner, faiss.IndexNSG) or "Panorama" in type(parts.inner).__name__:
        raise InputError(
            f'"{factory}": NSG and Panorama cannot be filled piece by piece. Take {_EXAMPLES}.'
        )
    quantizer = faiss.downcast_index(parts.inner.quantizer) if parts.lists else None
    if not isinstance(quantizer, faiss.IndexFlat | faiss.IndexHNSW | None):
        raise InputError(
            f'"{factory}" finds its lists in an unusual way. Take IVF<lists> or '
            'IVF<lists>_HNSW32, such as "IVF65536_HNSW32,SQ8".'
        )
    if isinstance(quantizer, faiss.IndexHNSW):
        # FAISS's default of 16 puts too many rows into a list that is not the nearest.
        quantizer.hnsw.efSearch = LISTS_SEARCH
    if hasattr(parts.inner, "do_polysemous_training"):
        # The longest part of training by far, for a kind of search that is not used here.
        parts.inner.do_polysemous_training = False
    return parts


def has_plain_lists(parts: Parts) -> bool:
    """Whether it is an inverted file whose codes lie one after another."""
    faiss = load_faiss()
    stored = faiss.downcast_InvertedLists(parts.inner.invlists) if parts.lists else None
    return type(stored).__name__ == "ArrayInvertedLists"


def needed_rows(parts: Parts) -> int:
    """How many rows its training needs; 0 if it is trained already."""
    if parts.whole.is_trained:
        return 0
    needed = 1
    inner = parts.inner
    if parts.lists:
        needed = ROWS_PER_CENTROID * int(inner.nlist)
    # Product quantizers have a codebook for each part; additive ones, one for each step.
    stored = load_faiss().downcast_index(inner.storage) if parts.graph else inner
    if hasattr(stored, "pq"):
        needed = max(needed, ROWS_PER_CENTROID * 2 ** int(stored.pq.nbits))
    elif hasattr(stored, "aq"):
        bits = stored.aq.nbits
        most = max(int(bits.at(place)) for place in range(bits.size()))
        needed = max(needed, ROWS_PER_CENTROID * 2**most)
    for transform in parts.transforms:
        if hasattr(transform, "pq"):
            needed = max(needed, ROWS_PER_CENTROID * 2 ** opq_bits(parts))
        needed = max(needed, int(transform.d_out))
    return needed


def opq_bits(parts: Parts) -> int:
    """Bits of the codes that a rotation for product quantization (OPQ) is fitted to."""
    return int(parts.inner.pq.nbits) if hasattr(parts.inner, "pq") else 8


def shape_of(parts: Parts) -> str:
    """What a structure is made of, without what training put into it."""
    inner = parts.inner
    # A file does not hold what kind of transformation one was.
    words = [f"to {link.d_out} dimensions" for link in parts.transforms] + [_name(inner)]
    stored = inner
    if parts.lists:
        words.append(f"{inner.nlist} lists by {_name(inner.quantizer)}")
    if parts.graph:
        stored = load_faiss().downcast_index(inner.storage)
        words.append(f"{inner.hnsw.nb_neighbors(1)} links, {_name(stored)}")
    return f"{parts.whole.d} dimensions, {', '.join(words)}, codes of {stored.code_size} bytes"


def _name(part: Any) -> str:  # noqa: ANN401
    faiss = load_faiss()
    part = faiss.downcast_index(part) if isinstance(part, faiss.Index) else part
    # The second is what FAISS makes of the first when it writes it.
    return type(part).__name__.replace("IndexFlatIP", "IndexFlat")


def reason_of(error: BaseException) -> str:
    """The part of a FAISS error that says why."""
    text = " ".join(str(error).split())
    found = _REASON.fullmatch(text)
    return (found[1] if found else text) or type(error).__name__


def _check_numbers(factory: str) -> None:
    # These make FAISS end the process, at once or with the first rows.
    graphs = [int(number) for number in _GRAPH.findall(factory)]
    if _ZERO.search(factory) or any(not 2 <= links <= 1024 for links in graphs):
        raise InputError(
            f'"{factory}": numbers in it must be 1 or more, and those of graphs 2 to 1024. '
            f"Take a string such as {_EXAMPLES}."
        )
