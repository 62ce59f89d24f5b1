"""What LlamaIndex's queries ask of an index: which nodes, how many, and how unlike each other.

Knows nothing of nodes; passages come back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

from epic_retrieval import Collection, Hit, InputError, PassageIndex
from llama_index_epic.filters import Where, both, chosen
from llama_index_epic.nodes import Vectors, cut_from, unit_vector

# As in LlamaIndex's other stores.
_FACTOR = 4.0


@dataclass(frozen=True)
class Diversity:
    """How far a query of mode MMR trades likeness to the query for unlikeness to nodes before.

    Args:
        threshold: From 0, only unlikeness, to 1, only likeness.
        factor: Candidates for each node that is wanted; None is 4.
        candidates: Their number instead.

    Raises:
        InputError: One of them is not as described, or both of the last two are given.
    """

    threshold: float = 0.5
    factor: float | None = None
    candidates: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InputError(f"mmr_threshold is {self.threshold}; expected 0 to 1")
        if self.factor is not None and self.candidates is not None:
            raise InputError(
                "mmr_prefetch_factor and mmr_prefetch_k were both given; leave one of them out"
            )
        if self.factor is not None and not self.factor >= 1:
            raise InputError(f"mmr_prefetch_factor is {self.factor}; expected at least 1")

    def fetched(self, wanted: int) -> int:
        """The number of candidates for so many nodes."""
        if self.candidates is not None:
            return max(self.candidates, wanted)
        return int(wanted * (_FACTOR if self.factor is None else self.factor))


def found(
    collection: Collection,
    query: VectorStoreQuery,
    where: Where,
    parameters: Mapping[str, int] | None,
    diversity: Diversity,
) -> list[Hit]:
    """The passages that a query asks for, with their cosines, in the order of their rank.

    Args:
        collection: Where to look.
        query: Of mode DEFAULT or MMR. Its `filters`, `node_ids` and `doc_ids` all restrict; empty
            lists of ids do not, which is what a retriever gives where nodes are in the store alone.
        where: A condition besides; {} is none.
        parameters: Of `PassageIndex.search`.
        diversity: For mode MMR.

    Raises:
        InputError: Something is not as described.
        PassageIndexError: The index cannot be read.
    """
    if query.mode not in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR):
        raise InputError(
            f"the query has the mode {query.mode.value!r}; there are 'default' and 'mmr', which ask"
            " for vectors"
        )
    if query.query_embedding is None:
        if query.query_str is not None and not query.query_str.strip():
            raise InputError(
                f"the query is {query.query_str!r}; expected a text, as an empty one has no meaning"
            )
        raise InputError("the query has no query_embedding; give it the vector of its text")
    vector = unit_vector(query.query_embedding, "the query")
    restricted = both(chosen(query.node_ids or None, query.filters), where)
    if query.doc_ids:
        if not all(isinstance(key, str) for key in query.doc_ids):
            raise InputError(f"doc_ids is {query.doc_ids!r}; expected a list of texts, as ids are")
        restricted = both(restricted, cut_from(query.doc_ids))
    wanted, allowed = query.similarity_top_k, restricted or None
    index = collection.snapshot()
    if index is None or query.mode == VectorStoreQueryMode.DEFAULT:
        source = collection if index is None else index
        return source.search(vector[None], wanted, allowed, parameters)[0]
    hits = index.search(vector[None], diversity.fetched(wanted), allowed, parameters)[0]
    return _diverse(index, vector, hits, wanted, diversity.threshold)


def _diverse(
    index: PassageIndex, vector: Vectors, hits: list[Hit], wanted: int, threshold: float
) -> list[Hit]:
    """The hits that LlamaIndex's own choice takes, in its order, with their cosines."""
    if not hits:
        return []
    stored = index.vectors([hit.passage.id for hit in hits])
    # Of an index that keeps less of each vector, the query keeps as much.
    arguments: dict[str, Any] = {
        "query_embedding": vector[: stored.shape[1]],
        "embeddings": list(stored),
    }
    _, chosen_places = get_top_k_mmr_embeddings(
        **arguments,
        similarity_top_k=wanted,
        embedding_ids=list(range(len(hits))),
        mmr_threshold=threshold,
    )
    return [hits[place] for place in chosen_places]
