"""`EpicVectorStore`: an index folder behind LlamaIndex's vector store interface.

Knows the interface and the public names of epic_retrieval; vectors come from outside.
"""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    DEFAULT_PERSIST_DIR,
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)

from epic_retrieval import Collection, InputError, PassageIndex
from llama_index_epic.filters import Where, chosen
from llama_index_epic.folder import Embedder, Folder
from llama_index_epic.nodes import EmbeddedPassage, cut_from, to_node, to_passage, unit_vector
from llama_index_epic.queries import Diversity, found


class EpicVectorStore(BasePydanticVectorStore):
    """Nodes in an index folder, found by the cosine of their embedding with that of a query.

        embed_model = EpicEmbedding(task="web-search")
        store = EpicVectorStore("out", embed_model=embed_model)
        context = StorageContext.from_defaults(vector_store=store)
        VectorStoreIndex.from_documents(documents, storage_context=context, embed_model=embed_model)
        # later, or elsewhere:
        index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)

    The folder is one that `epic index` builds, reads and verifies; it is made by the first `add`.
    Each change is on the disk when its call returns, all of it or nothing, and other processes may
    read and write the folder too. So an `add` of one node takes as long as one of a hundred.
    Embeddings that are not of length 1 are brought to it: similarities are cosines, in [-1, 1].

    Nodes come back as they were, but for their embedding, bytes of images, and metadata that are
    no JSON, such as dates, which become text. Filters may be nested; CONTAINS, ANY and ALL look
    into lists, not into texts. Of query modes there are DEFAULT and MMR. Where an index over the
    store holds IndexNodes or ImageNodes among others, LlamaIndex's `as_retriever` finds these
    alone: make a VectorIndexRetriever, or the index with `from_vector_store`.

    Args:
        folder: An index, or where one is to be.
        embed_model: Who embeds nodes and queries. The folder records it, and refuses another: an
            EpicEmbedding is known by what decides its vectors, others by their class and name.
            The first node that is added is embedded once more with it, to see that nodes come from
            it. Of queries, and without it of nodes, only the number of dimensions is compared.
        model_name: What `to_dict` recorded of embed_model, as the next three.
        fingerprint: Changes with everything that changes the vector of a node.
        dimension: Width of its embeddings, if it says so.
        task: Of an EpicEmbedding, if the task is symmetric.

    Raises:
        PassageIndexError: The folder holds an index that is damaged, or of another model.
        InputError: It holds something else.
    """

    model_config = ConfigDict(extra="forbid")

    stores_text: bool = True
    is_embedding_query: bool = True
    folder: str = Field(frozen=True, description="Where the nodes are.")
    model_name: str | None = Field(frozen=True, description="The name of the embedding model.")
    fingerprint: str | None = Field(frozen=True, description="Digest of what decides vectors.")
    dimension: int | None = Field(frozen=True, description="Width of the embeddings.")
    task: str | None = Field(frozen=True, description="The task that decides them too.")

    _folder: Folder = PrivateAttr()

    def __init__(
        self,
        folder: str | Path,
        embed_model: BaseEmbedding | None = None,
        *,
        model_name: str | None = None,
        fingerprint: str | None = None,
        dimension: int | None = None,
        task: str | None = None,
        **fields: Any,  # noqa: ANN401
    ) -> None:
        fields.pop("class_name", None)  # as model_dump_json writes it
        embedder = Embedder(model_name, fingerprint, dimension, task)
        if embed_model is not None:
            if embedder != Embedder():
                raise InputError(
                    "embed_model was given together with what to_dict recorded of one; leave one of"
                    " them out"
                )
            embedder = Embedder.of(embed_model)
        fields |= vars(embedder) | {"folder": str(Path(folder).resolve())}
        super().__init__(**fields)
        self._folder = Folder(self.folder, embedder, embed_model)

    @classmethod
    def class_name(cls) -> str:
        """The key of serialised stores."""
        return "EpicVectorStore"

    @classmethod
    def open(cls, folder: str | Path, embed_model: BaseEmbedding | None = None) -> Self:
        """The store in a folder that holds an index, such as `epic index build` makes.

        Raises:
            PassageIndexError: There is no index, or it is damaged, or of another model.
        """
        PassageIndex.open(folder, check=False).close()
        return cls(folder, embed_model)

    @classmethod
    def from_params(cls, folder: str | Path, embed_model: BaseEmbedding | None = None) -> Self:
        """The same as the constructor, under the name that other stores have for it."""
        return cls(folder, embed_model)

    @classmethod
    def from_persist_dir(
        cls,
        persist_dir: str | Path = DEFAULT_PERSIST_DIR,
        namespace: str = "default",
        embed_model: BaseEmbedding | None = None,
    ) -> Self:
        """The store in a folder of its own beside what a StorageContext persists there."""
        return cls(Path(persist_dir) / f"{namespace}__epic_index", embed_model)

    @property
    def client(self) -> Collection:
        """The passages under the nodes, for what has no method here: `client.compact()`, say."""
        return self._folder.collection()

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:  # noqa: ANN401, ARG002
        """Add nodes that have embeddings, in place of those with their ids.

        Of several with one id the last one counts. A node that is there as it is costs nothing,
        but for the one that a store with a model embeds to compare.

        Returns:
            The ids of the nodes.

        Raises:
            InputError: A node has no embedding, one of another width, nothing to embed, or holds
                what cannot be stored.
            PassageIndexError: Another model than `embed_model` embedded the nodes; or another
                process keeps writing, or writing failed.
        """
        passages: dict[str, EmbeddedPassage] = {}
        for node in nodes:
            if not isinstance(node, BaseNode):
                given = type(node).__name__
                raise InputError(f"nodes holds a {given}; expected nodes of LlamaIndex")
            if node.embedding is None:
                raise InputError(
                    f"the node {node.node_id!r} has no embedding; add it through a"
                    " VectorStoreIndex, or a pipeline that ends with an embedding model"
                )
            vector = unit_vector(node.embedding, f"the node {node.node_id!r}")
            passages[node.node_id] = to_passage(node, vector)
        if passages:
            self._folder.write(list(passages.values()))
        return [node.node_id for node in nodes]

    async def async_add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:  # noqa: ANN401
        """As `add`, in a thread."""
        return await asyncio.to_thread(self.add, nodes, **add_kwargs)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Delete the nodes that were cut from this document; one that is not there is ignored.

        A passage that was never a node, as of an index from the command line, counts as cut from
        a document with its own id.
        """
        if not isinstance(ref_doc_id, str):  # None would be all that were cut from none
            given = type(ref_doc_id).__name__
            raise InputError(f"ref_doc_id is of type {given}; expected the id of a document")
        self.client.delete_where(cut_from([ref_doc_id]))

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:  # noqa: ANN401
        """As `delete`, in a thread."""
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,  # noqa: ANN401, ARG002
    ) -> None:
        """Delete nodes by id, or those that pass filters; given both, those for which both hold.

        Raises:
            InputError: Neither was given, nor a filter in `filters`.
        """
        where = chosen(node_ids, filters)
        if not where:  # the simple store would delete all
            raise InputError(
                "delete_nodes was given neither node_ids nor a filter; to delete all nodes use"
                " clear()"
            )
        self.client.delete_where(where)

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,  # noqa: ANN401
    ) -> None:
        """As `delete_nodes`, in a thread."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    def clear(self) -> None:
        """Delete all nodes, for good; the folder remembers its model and dimensions."""
        if self.client.snapshot() is not None:
            with self.client.writing() as writer:
                writer.clear()
                writer.compact()
            # Opened again, it lets go of the files of before, which may then be removed.
            self.client.snapshot()
            self.client.compact()

    async def aclear(self) -> None:
        """As `clear`, in a thread."""
        await asyncio.to_thread(self.clear)

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Nodes by id, or those that pass filters, or both; given neither, all.

        Returns:
            Without embeddings; in the order of `node_ids` if there are, without those absent.
        """
        index = self.client.snapshot()
        where = chosen(node_ids, filters)
        if index is None or not len(index):
            return []
        if filters is None or not where:
            some = index.passages if node_ids is None else index.get(node_ids).values()
            return [to_node(passage) for passage in some]
        # Any direction will do to go through all of them.
        query = np.eye(1, index.manifest.dimension, dtype=np.float32)
        hits = index.search(query, len(index), where)[0]
        passages = {hit.passage.id: hit.passage for hit in hits}
        order = passages if node_ids is None else dict.fromkeys(node_ids)
        return [to_node(passages[key]) for key in order if key in passages]

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """As `get_nodes`, in a thread."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    def query(
        self,
        query: VectorStoreQuery,
        *,
        where: Where | None = None,
        parameters: Mapping[str, int] | None = None,
        mmr_threshold: float | None = None,
        mmr_prefetch_factor: float | None = None,
        mmr_prefetch_k: int | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> VectorStoreQueryResult:
        """The nodes nearest to the query's embedding, of those that its restrictions let pass.

        Args:
            query: Its `filters`, `node_ids` and `doc_ids` (documents that nodes were cut from) all
                restrict; empty lists of ids do not.
            where: A condition on metadata as `PassageIndex.search` takes it, besides.
            parameters: How far the index looks, as `PassageIndex.search` takes it.
            mmr_threshold: For mode MMR, if not in the query: from 0, only unlike those before, to
                1, only like the query.
            mmr_prefetch_factor: For mode MMR: candidates for each node that is wanted; None is 4.
            mmr_prefetch_k: For mode MMR: the number of candidates instead.
            **kwargs: There are no others.

        Returns:
            Nodes, ids, and cosines with the query, also for mode MMR, in the order of their rank.

        Raises:
            InputError: Something is not as described, or not supported.
            PassageIndexError: The index cannot be read.
        """
        if kwargs:
            raise InputError(
                f"query was given {', '.join(kwargs)}; there are where, parameters, mmr_threshold,"
                " mmr_prefetch_factor and mmr_prefetch_k"
            )
        if not isinstance(query, VectorStoreQuery):
            raise InputError(
                f"query is of type {type(query).__name__}; expected a VectorStoreQuery"
            )
        threshold = query.mmr_threshold if mmr_threshold is None else mmr_threshold
        diversity = Diversity(
            0.5 if threshold is None else threshold, mmr_prefetch_factor, mmr_prefetch_k
        )
        hits = found(self.client, query, dict(where or {}), parameters, diversity)
        return VectorStoreQueryResult(
            nodes=[to_node(hit.passage) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.passage.id for hit in hits],
        )

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:  # noqa: ANN401
        """As `query`, in a thread."""
        return await asyncio.to_thread(partial(self.query, query, **kwargs))

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.model_copy()  # the folder is not copied

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return partial(type(self), **fields), ()
