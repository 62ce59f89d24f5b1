"""The LlamaIndex store under an index, a pipeline and a storage context; whose vectors it takes."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import (
    Document,
    MockEmbedding,
    StorageContext,
    VectorStoreIndex,
    load_index_from_storage,
)
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import IndexNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters, SimpleVectorStore
from llama_index.core.vector_stores.types import FilterOperator, VectorStoreQuery

from epic_retrieval import EpicEncoder, InputError, Passage, PassageIndex, PassageIndexError, Task
from epic_retrieval.index import build_index, verify_index
from llama_index_epic import EpicEmbedding, EpicVectorStore
from tests.integrations.common import SHOWN, SYMMETRIC, run_python
from tests.models import tiny_encoder

WORDS = [
    "copy",
    "file",
    "move",
    "path",
    "open",
    "socket",
    "thread",
    "sort",
    "list",
    "join",
    "split",
]
DOCUMENTS = [
    Document(
        id_=f"doc-{number}",
        text=" ".join(f"{word} number {number}." for word in WORDS[number : number + 3] * 2),
        metadata={"number": number, "topic": WORDS[number]},
    )
    for number in range(10)
]


@pytest.fixture(scope="module")
def embedding(folder: str) -> EpicEmbedding:
    return EpicEmbedding(folder, task=SHOWN)


@pytest.fixture
def store(tmp_path: Path, embedding: EpicEmbedding) -> EpicVectorStore:
    return EpicVectorStore(tmp_path / "index", embedding)


def made(store: Any, embedding: EpicEmbedding) -> VectorStoreIndex:  # noqa: ANN401
    return VectorStoreIndex.from_documents(
        DOCUMENTS,
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=embedding,
        transformations=[SentenceSplitter(chunk_size=40, chunk_overlap=0)],
    )


def retrieved(index: VectorStoreIndex, query: str, **options: Any) -> list[tuple[str, float]]:  # noqa: ANN401
    found = index.as_retriever(**{"similarity_top_k": 5} | options).retrieve(query)
    return [(one.node.get_content(), round(one.get_score(), 5)) for one in found]


async def test_an_index_finds_the_same_as_over_the_simple_store(
    store: EpicVectorStore, embedding: EpicEmbedding, tmp_path: Path
) -> None:
    index, simple = made(store, embedding), made(SimpleVectorStore(), embedding)
    again = VectorStoreIndex.from_vector_store(store, embedding)
    numbers = MetadataFilter(key="number", value=4, operator=FilterOperator.GTE)
    options: list[dict[str, Any]] = [
        {},
        {"similarity_top_k": 50},
        {"filters": MetadataFilters(filters=[numbers])},
        {"vector_store_query_mode": "mmr", "vector_store_kwargs": {"mmr_threshold": 1.0}},
    ]
    for one in options:
        for query in ("sort a list", "wait for a thread"):
            expected = retrieved(simple, query, **one)
            assert retrieved(index, query, **one) == retrieved(again, query, **one) == expected
    asynchronous = await again.as_retriever(similarity_top_k=3).aretrieve("sort a list")
    assert [round(one.get_score(), 5) for one in asynchronous] == [
        score for _, score in retrieved(simple, "sort a list")[:3]
    ]
    # Passages are what was embedded: encoded again they have their vectors.
    assert verify_index(store.folder, embedding._encoder.encode_passages).ok
    # The same search without LlamaIndex has the same scores.
    with PassageIndex.open(store.folder) as opened:
        vectors = embedding._encoder.encode_queries(["sort a list"], SHOWN)
        hits = opened.search(vectors, 5)[0]
    assert [hit.passage.text for hit in hits] == [
        text for text, _ in retrieved(index, "sort a list")
    ]


def test_documents_are_inserted_refreshed_and_deleted(
    store: EpicVectorStore, embedding: EpicEmbedding
) -> None:
    index = made(store, embedding)
    before = len(store.client)

    def of(document: str) -> list[str]:
        only = MetadataFilters(filters=[MetadataFilter(key="ref_doc_id", value=document)])
        return [node.get_content() for node in store.get_nodes(filters=only)]

    index.insert(Document(id_="new", text="A new document."))
    assert of("new") == ["A new document."]
    changed = Document(id_="doc-3", text="Another text.", metadata=DOCUMENTS[3].metadata)
    assert index.refresh_ref_docs([*DOCUMENTS[:3], changed]) == [False, False, False, True]
    assert of("doc-3") == ["Another text."]
    index.update_ref_doc(Document(id_="new", text="Changed."))
    assert of("new") == ["Changed."]
    index.delete_ref_doc("doc-3")
    index.delete_ref_doc("new")
    assert of("doc-3") == of("new") == []
    kept = of("doc-4")
    assert kept
    index.delete_nodes([node.node_id for node in store.get_nodes() if node.ref_doc_id != "doc-4"])
    assert sorted(node.get_content() for node in store.get_nodes()) == sorted(kept)
    assert len(store.client) == len(kept) < before


def test_persisting_loses_nothing(
    tmp_path: Path, embedding: EpicEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("storage", str(tmp_path / "elsewhere")):
        store = EpicVectorStore.from_persist_dir(place, embed_model=embedding)
        index = made(store, embedding)
        index.set_index_id("mine")
        index.storage_context.persist(place)
        expected = retrieved(index, "sort a list")
        context = StorageContext.from_defaults(
            persist_dir=place,
            vector_store=EpicVectorStore.from_persist_dir(place, embed_model=embedding),
        )
        again: Any = load_index_from_storage(context, "mine", embed_model=embedding)
        assert retrieved(again, "sort a list") == expected
        again.insert(Document(text="A new document."))
        assert len(store.client) == len(EpicVectorStore.from_persist_dir(place).client)
        # What looks for stores of its own there does not stumble over the folder.
        assert set(SimpleVectorStore.from_namespaced_persist_dir(place)) == {"image"}
    other = EpicVectorStore.from_persist_dir(namespace="other")
    assert Path(other.folder) == tmp_path / "storage" / "other__epic_index"


def test_nodes_that_an_index_keeps_itself(store: EpicVectorStore, embedding: EpicEmbedding) -> None:
    pointing = IndexNode(id_="index", text="Points at another index.", index_id="other")
    text = TextNode(id_="text", text="A text.")
    context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex([pointing, text], storage_context=context, embed_model=embedding)

    def ids(retriever: BaseRetriever) -> set[str]:
        return {one.node_id for one in retriever.retrieve("an index")}

    # Of such an index LlamaIndex restricts its retriever to the nodes that it keeps.
    assert ids(index.as_retriever()) == {"index"}
    assert ids(VectorIndexRetriever(index)) == {"index", "text"}
    again = VectorStoreIndex.from_vector_store(store, embedding)
    assert ids(again.as_retriever()) == {"index", "text"}
    kept = {one.node_id: one for one in store.get_nodes()}
    assert kept["index"].to_dict() == pointing.to_dict()


def test_a_pipeline_upserts(embedding: EpicEmbedding, store: EpicVectorStore) -> None:
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=60, chunk_overlap=0), embedding],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
        disable_cache=True,
    )

    def sources() -> dict[str | None, int]:
        found: dict[str | None, int] = {}
        for node in store.get_nodes():
            found[node.ref_doc_id] = found.get(node.ref_doc_id, 0) + 1
        return found

    assert pipeline.run(documents=DOCUMENTS)
    first = sources()
    assert set(first) == {one.id_ for one in DOCUMENTS}
    manifest = store.client.manifest
    assert not pipeline.run(documents=DOCUMENTS)
    assert store.client.manifest == manifest
    changed = Document(id_="doc-1", text="Short.", metadata=DOCUMENTS[1].metadata)
    assert len(pipeline.run(documents=[changed, *DOCUMENTS[2:]])) == 1
    assert sources() == {key: first[key] for key in first if key != "doc-0"} | {"doc-1": 1}
    assert len(asyncio.run(pipeline.arun(documents=[*DOCUMENTS[:2], *DOCUMENTS[3:]]))) > 1
    assert sources() == {key: first[key] for key in first if key != "doc-2"}


def built(encoder: EpicEncoder, out: Path, task: Task | None = None) -> Path:
    """An index as `epic index` builds it."""
    passages = [
        Passage(str(n), f"{word} it.", f"Title {n}" if n % 2 else "", {"n": n, "empty": []})
        for n, word in enumerate(WORDS)
    ]

    def encode(texts: list[str]) -> Any:  # noqa: ANN401
        return encoder.encode_passages(texts, task)

    build_index(passages, encode, out, encoder=encoder.info(task))
    return out


def itself(key: str) -> dict[NodeRelationship, Any]:
    return {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=key)}


def test_an_index_from_the_command_line_is_a_store(
    tmp_path: Path, embedding: EpicEmbedding, encoder: EpicEncoder
) -> None:
    with pytest.raises(PassageIndexError, match="no such folder"):
        EpicVectorStore.open(tmp_path / "index", embedding)
    store = EpicVectorStore.open(built(encoder, tmp_path / "index"), embedding)
    index = VectorStoreIndex.from_vector_store(store, embedding)
    with pytest.raises(InputError, match="the query is ''; expected a text"):
        index.as_retriever().retrieve("")
    with pytest.raises(InputError, match="task is None"):
        embedding.with_task(None)  # type: ignore[arg-type]
    filters = MetadataFilters(
        filters=[MetadataFilter(key="n", value=[3, 4], operator=FilterOperator.IN)]
    )
    found = index.as_retriever(filters=filters).retrieve("a query")
    nodes = sorted((one.node for one in found), key=lambda node: node.node_id)
    assert [node.to_dict() for node in nodes] == [
        TextNode(id_=key, text=text, metadata=metadata, relationships=itself(key)).to_dict()
        for key, text, metadata in (
            ("3", "path it.", {"title": "Title 3", "n": 3, "empty": []}),
            ("4", "open it.", {"n": 4, "empty": []}),
        )
    ]
    queries = encoder.encode_queries(["a query"], SHOWN)
    hits = store.client.search(queries, 2, {"n": {"$in": [3, 4]}})[0]
    assert [one.score for one in found] == pytest.approx([hit.score for hit in hits], abs=1e-6)
    # Nodes and passages side by side.
    index.insert(Document(id_="d", text="A new document."))
    index.insert_nodes([TextNode(id_="7b", text="A node without a source.")])
    index.delete_nodes(["3"])
    query = VectorStoreQuery(queries[0].tolist(), 9, doc_ids=["d", "5", "7b", "none"])
    assert {one.ref_doc_id for one in store.query(query).nodes or []} == {"d", "5"}
    index.delete_ref_doc("4")  # a passage is its own document
    index.delete_ref_doc("7b")  # a node without a source has none
    assert {"3", "4", "7b"} & {one.node_id for one in store.get_nodes()} == {"7b"}
    assert len(store.client) == len(WORDS)
    assert verify_index(store.folder, encoder.encode_passages).ok


def test_another_model_is_refused(
    tmp_path: Path, folder: str, embedding: EpicEmbedding, encoder: EpicEncoder
) -> None:
    place = built(encoder, tmp_path / "index")
    tiny_encoder("llama").save_pretrained(tmp_path / "llama")
    other = EpicEmbedding(tmp_path / "llama", task=SHOWN)
    for wrong in (other, EpicEmbedding(folder, task=SYMMETRIC), MockEmbedding(embed_dim=32)):
        with pytest.raises(PassageIndexError, match="was built with"):
            EpicVectorStore(place, wrong)
    # Other demonstrations are on the side of queries only.
    assert len(EpicVectorStore(place, EpicEmbedding(folder, task="python-docs")).client)
    kept = EpicVectorStore(place, embedding).to_dict()
    assert kept["fingerprint"] == embedding.fingerprint
    assert EpicVectorStore.from_dict(kept).to_dict() == kept
    with pytest.raises(PassageIndexError, match="was built with"):
        EpicVectorStore.from_dict(kept | {"fingerprint": other.fingerprint})
    with pytest.raises(InputError, match="together with what to_dict recorded"):
        EpicVectorStore(place, embedding, fingerprint="x")
    with pytest.raises(InputError, match="embed_model is of type str"):
        EpicVectorStore(place, "epic-mini")  # type: ignore[arg-type]


async def test_vectors_of_another_model_are_refused(
    tmp_path: Path, folder: str, embedding: EpicEmbedding
) -> None:
    tiny_encoder("llama").save_pretrained(tmp_path / "llama")
    other = EpicEmbedding(tmp_path / "llama", task=SHOWN)
    store = EpicVectorStore(tmp_path / "index", embedding)
    foreign, ours = (TextNode(id_="x", text="Some text.") for _ in range(2))
    foreign.embedding = other.get_text_embedding("Some text.")
    ours.embedding = embedding.get_text_embedding("Some text.")
    for _ in range(2):
        with pytest.raises(PassageIndexError, match=r"'x' is not what .* its cosine with that mod"):
            store.add([foreign])
        with pytest.raises(PassageIndexError, match="its cosine"):
            await store.async_add([foreign])
    with pytest.raises(PassageIndexError, match="its cosine"):
        made(store, other)
    assert store.client.manifest is None
    wide = EpicVectorStore(tmp_path / "wide", MockEmbedding(5, model_name="m"))
    with pytest.raises(PassageIndexError, match="has 5 dimensions, this one 32"):
        wide.add([ours])
    # Once for each store: later ones cost nothing.
    store.add([ours])
    assert len(store.client) == 1
    index = VectorStoreIndex.from_vector_store(
        EpicVectorStore(tmp_path / "index", embedding), EpicEmbedding(folder, task="how-to")
    )
    index.insert(Document(text="Other demonstrations leave passages as they are."))
    assert len(store.client) == 2


def test_the_model_of_a_symmetric_task_is_told_apart(tmp_path: Path, folder: str) -> None:
    same = EpicEmbedding(folder, task=SYMMETRIC)
    store = EpicVectorStore(tmp_path / "index", same)
    made(store, same)
    assert store.client.manifest is not None
    assert store.client.manifest.encoder.task == "same"
    assert verify_index(
        store.folder, lambda texts: same._encoder.encode_passages(texts, SYMMETRIC)
    ).ok
    with pytest.raises(PassageIndexError, match="was built with"):
        EpicVectorStore(store.folder, EpicEmbedding(folder, task=SHOWN))


def test_other_models_are_known_by_class_and_name(tmp_path: Path) -> None:
    def opened(name: str, width: int = 8) -> EpicVectorStore:
        return EpicVectorStore(tmp_path / "index", MockEmbedding(width, model_name=name))

    def node(width: int) -> TextNode:
        return TextNode(id_="1", text="a", embedding=[1.0] * width)

    early = opened("b")  # before the folder is there
    with pytest.raises(InputError, match="the node '1' has 5 dimensions; expected 8"):
        EpicVectorStore.from_dict(opened("a").to_dict() | {"dimension": 8}).add([node(5)])
    opened("a").add([node(8)])
    assert len(opened("a").client) == 1
    for wrong in (lambda: opened("b"), lambda: early.add([node(8)]), early.get_nodes):
        with pytest.raises(PassageIndexError, match=r'was built with .*"MockEmbedding a"'):
            wrong()
    # Without a model there is nothing to compare but the width.
    unnamed = EpicVectorStore(tmp_path / "index")
    unnamed.add([node(8)])
    with pytest.raises(InputError, match="has 9 dimensions; expected 8"):
        unnamed.add([node(9)])
    nobody = EpicVectorStore(tmp_path / "nobody")
    nobody.add([node(3)])
    assert EpicVectorStore(tmp_path / "nobody").get_nodes()
    with pytest.raises(PassageIndexError, match='"unknown"'):
        EpicVectorStore(tmp_path / "nobody", MockEmbedding(3))


def test_an_index_that_keeps_less_of_each_vector(tmp_path: Path, encoder: EpicEncoder) -> None:
    passages = [Passage(str(n), word) for n, word in enumerate(WORDS)]
    place = tmp_path / "index"
    build_index(passages, encoder.encode_passages, place, encoder=encoder.info(), dimension=8)
    embedding = EpicEmbedding(encoder=encoder)
    store = EpicVectorStore(place, embedding)
    index = VectorStoreIndex.from_vector_store(store, embedding)
    index.insert(Document(text="copy"))
    for mode in ("default", "mmr"):
        retriever = index.as_retriever(vector_store_query_mode=mode, similarity_top_k=20)
        assert len(retriever.retrieve("copy")) == len(WORDS) + 1
    vector = np.array(embedding.get_query_embedding("copy"))[:8]
    short = store.query(VectorStoreQuery(vector.tolist(), similarity_top_k=20))
    found = index.as_retriever(similarity_top_k=20).retrieve("copy")
    assert [one.node_id for one in found] == short.ids


OTHER = """
import sys
from llama_index.core.schema import TextNode
from llama_index_epic import EpicVectorStore
print({"torch", "faiss"} & set(sys.modules))
store = EpicVectorStore(sys.argv[1])
print([node.node_id for node in store.get_nodes()], "torch" in sys.modules)
store.add([TextNode(id_="theirs", text="b", embedding=[0.0, 1.0])])
"""


def test_another_process_sees_and_adds(tmp_path: Path) -> None:
    store = EpicVectorStore(tmp_path / "index")
    store.add([TextNode(id_="ours", text="a", embedding=[1.0, 0.0])])
    assert run_python(OTHER, store.folder).splitlines() == ["set()", "['ours'] False"]
    assert store.query(VectorStoreQuery([0.0, 2.0])).ids == ["theirs"]
