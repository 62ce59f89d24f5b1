"""Every search of LangChain's `VectorStore`, over a collection and embeddings.

Knows nothing of how documents come into it.
"""

from collections.abc import Callable, Iterable
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import run_in_executor
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from typing_extensions import override

from epic_retrieval import Collection, InputError
from langchain_epic._documents import document_of
from langchain_epic._vectors import units


class Searching(VectorStore):
    """A store of which everything but its searches is still to be written.

    Args:
        collection: What is searched.
        embedding: Of queries.
    """

    def __init__(self, collection: Collection, embedding: Embeddings) -> None:
        self.collection = collection
        """What is in the folder, for what LangChain has no word for, such as `compact`."""
        self._embedding = embedding

    @override
    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The k most similar documents, best first; see the class for `filter`."""
        return _documents(self.similarity_search_with_score(query, k, **kwargs))

    @override
    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The same; concurrent queries share forward passes."""
        return _documents(await self.asimilarity_search_with_score(query, k, **kwargs))

    @override
    def similarity_search_with_score(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The k most similar documents with their cosines."""
        return self.similarity_search_with_score_by_vector(
            self._embedding.embed_query(query), k, **kwargs
        )

    @override
    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The same; concurrent queries share forward passes."""
        vector = await self._embedding.aembed_query(query)
        return await run_in_executor(
            None, self.similarity_search_with_score_by_vector, vector, k, **kwargs
        )

    @override
    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **kwargs: Any
    ) -> list[Document]:
        """The k documents that are most similar to a vector of these embeddings."""
        return _documents(self.similarity_search_with_score_by_vector(embedding, k, **kwargs))

    def similarity_search_with_score_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        **kwargs: Any,  # noqa: ANN401 (as its siblings of LangChain's)
    ) -> list[tuple[Document, float]]:
        """The same with their cosines."""
        condition, parameters = _search_options(kwargs)
        (hits,) = self.collection.search(units([embedding]), k, condition, parameters)
        return [(document_of(hit.passage), hit.score) for hit in hits]

    @override
    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **kwargs: Any,
    ) -> list[Document]:
        """Some of the most similar documents, chosen such that they differ from each other.

        Args:
            query: Of the task.
            k: How many.
            fetch_k: Out of how many; at least k.
            lambda_mult: From 0, where only difference counts, to 1, where it counts nothing.
            kwargs: `filter`, `parameters`.
        """
        return self.max_marginal_relevance_search_by_vector(
            self._embedding.embed_query(query), k, fetch_k, lambda_mult, **kwargs
        )

    @override
    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **kwargs: Any,
    ) -> list[Document]:
        """The same; concurrent queries share forward passes."""
        return await self.amax_marginal_relevance_search_by_vector(
            await self._embedding.aembed_query(query), k, fetch_k, lambda_mult, **kwargs
        )

    @override
    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **kwargs: Any,
    ) -> list[Document]:
        """The same for a vector of these embeddings."""
        condition, parameters = _search_options(kwargs)
        if k < 1:
            raise InputError(f"k is {k}; expected at least 1")
        if not 0 <= lambda_mult <= 1:
            raise InputError(f"lambda_mult is {lambda_mult}; expected 0 to 1")
        query = units([embedding])
        # Of one moment, so that nobody deletes what was found before its vector is read.
        index = self.collection.snapshot()
        if index is None:
            return []
        (hits,) = index.search(query, max(k, fetch_k), condition, parameters)
        vectors = index.vectors([hit.passage.id for hit in hits])
        # An index may keep less of each vector.
        cut = query[:, : vectors.shape[1]]
        chosen = maximal_marginal_relevance(cut, list(vectors), lambda_mult, k)
        return [document_of(hits[number].passage) for number in chosen]

    @override
    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return _relevance


def refuse(options: dict[str, Any], known: str = "") -> None:
    """What is not known is not ignored: a filter with a typing error would let everything pass."""
    if options:
        raise InputError(f"there is no option {', '.join(map(repr, options))}{known}")


def _documents(found: Iterable[tuple[Document, float]]) -> list[Document]:
    return [document for document, _ in found]


def _relevance(cosine: float) -> float:
    # Rounding may lead beyond the ends.
    return min(max((1 + cosine) / 2, 0.0), 1.0)


def _search_options(given: dict[str, Any]) -> tuple[Any, Any]:
    rest = dict(given)
    options = rest.pop("filter", None), rest.pop("parameters", None)
    refuse(rest, "; a search takes k, filter and parameters")
    return options
