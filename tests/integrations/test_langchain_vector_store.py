"""`EpicVectorStore`: LangChain's contract suites, unchanged, and what they do not ask."""

import asyncio
import datetime as dt
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings, FakeEmbeddings
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import (
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from llama_index.core.schema import MetadataMode, NodeRelationship, RelatedNodeInfo, TextNode

import llama_index_epic
from epic_retrieval import EpicEncoder, InputError, PassageIndexError
from epic_retrieval.index import IndexWriter, Passage, build_index
from langchain_epic import EpicEmbeddings, EpicVectorStore
from llama_index_epic import EpicEmbedding
from tests.integrations.common import BARE, LONG, SHOWN, SYMMETRIC, TEXTS, Passes
from tests.models import tiny_encoder

METADATAS: list[dict[str, Any]] = [
    {"n": n, "lang": "en" if n % 2 else "de", "tags": ["a", {"deep": None}], "share": n / 3}
    for n in range(30)
]
MANY = [f"Passage number {n} says {'x' * n}." for n in range(30)]


class Scaled(Embeddings):
    """Vectors that are not of length 1, of one model that rounds differently at each call."""

    def __init__(self, size: int = 40, length: float = 3.0) -> None:
        self.inner = DeterministicFakeEmbedding(size=size)
        self.length = length
        self.calls: list[int] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.calls.append(len(texts))
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        vector = np.array(self.inner.embed_query(text))
        noise = np.random.default_rng().normal(scale=1e-3, size=vector.shape)
        return list(self.length * vector + noise)


class Given(Embeddings):
    """Vectors as they are given."""

    def __init__(self, vectors: Any) -> None:  # noqa: ANN401
        self.vectors = vectors

    def embed_documents(self, texts: list[str]) -> list[list[float]]:  # noqa: ARG002
        return self.vectors  # type: ignore[no-any-return]

    def embed_query(self, text: str) -> list[float]:  # noqa: ARG002
        return self.vectors[0]  # type: ignore[no-any-return]


class TestContract(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[EpicVectorStore]:
        with EpicVectorStore(tmp_path / "index", self.get_embeddings()) as made:
            yield made


class TestRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True, params=["similarity", "mmr"])
    def _store(self, store: EpicVectorStore, request: pytest.FixtureRequest) -> None:
        def made(k: int = 4) -> BaseRetriever:
            return store.as_retriever(search_type=request.param, search_kwargs={"k": k})

        self.made: Any = made

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return self.made  # type: ignore[no-any-return]

    @property
    def retriever_query_example(self) -> str:
        return "number 3"


@pytest.fixture(scope="module")
def embeddings(encoder: EpicEncoder) -> EpicEmbeddings:
    return EpicEmbeddings(task=SHOWN, encoder=encoder)


@pytest.fixture(scope="module")
def store(
    embeddings: EpicEmbeddings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EpicVectorStore]:
    """Read only."""
    folder = tmp_path_factory.mktemp("many") / "index"
    ids = [str(n) for n in range(30)]
    made = EpicVectorStore.from_texts(MANY, embeddings, METADATAS, ids=ids, folder=folder)
    with made:
        yield made


def test_scores_are_the_cosines_of_the_encoder(
    store: EpicVectorStore, encoder: EpicEncoder
) -> None:
    query = encoder.encode_queries(["number 3"], SHOWN)[0]
    cosines = encoder.encode_passages(MANY).astype(np.float64) @ query.astype(np.float64)
    order = np.argsort(-cosines, kind="stable")[:5]
    found = store.similarity_search_with_score("number 3", k=5)
    assert [document.page_content for document, _ in found] == [MANY[n] for n in order]
    np.testing.assert_allclose([score for _, score in found], cosines[order], atol=1e-6)
    assert store.similarity_search("number 3", k=5) == [document for document, _ in found]
    assert store.similarity_search_by_vector(query.tolist(), k=5) == [one for one, _ in found]
    assert store.similarity_search_by_vector((2 * query).tolist(), 1) == [found[0][0]]


def test_relevance_is_half_of_one_and_the_cosine(store: EpicVectorStore) -> None:
    scored = store.similarity_search_with_score("number 3", k=30)
    relevant = store.similarity_search_with_relevance_scores("number 3", k=30)
    expected = [(document, (1 + score) / 2) for document, score in scored]
    assert relevant == expected
    threshold = relevant[3][1]
    settings: Any = {"k": 30, "score_threshold": threshold}
    retriever = store.as_retriever(search_type="similarity_score_threshold", search_kwargs=settings)
    assert retriever.invoke("number 3") == [one for one, score in relevant if score >= threshold]


def test_relevance_stays_within_its_bounds(tmp_path: Path) -> None:
    there = EpicVectorStore(tmp_path / "i", Given([[1.0, 1e-3, 7.0]]))
    there.add_texts(["one"])
    assert there.similarity_search_with_relevance_scores("x")[0][1] <= 1
    back = EpicVectorStore(tmp_path / "j", Given([[1.0, 0.0]]))
    back.add_texts(["one"])
    assert back.similarity_search_with_score_by_vector([-3, 0])[0][1] == -1
    assert back._select_relevance_score_fn()(-1.0000001) == 0
    assert back._select_relevance_score_fn()(1.0000001) == 1


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_mmr_against_its_definition(
    store: EpicVectorStore, embeddings: EpicEmbeddings, weight: float
) -> None:
    near = store.similarity_search("number 3", k=12, filter={"n": {"$lt": 25}})
    vectors = np.array(embeddings.embed_documents([one.page_content for one in near]))
    query = np.array(embeddings.embed_query("number 3"))
    chosen = [0]
    while len(chosen) < 5:
        rest = [n for n in range(12) if n not in chosen]
        gains = [
            weight * vectors[n] @ query - (1 - weight) * max(vectors[chosen] @ vectors[n])
            for n in rest
        ]
        chosen.append(rest[int(np.argmax(gains))])
    options: Any = {"fetch_k": 12, "lambda_mult": weight, "filter": {"n": {"$lt": 25}}}
    expected = [near[n] for n in chosen]
    assert store.max_marginal_relevance_search("number 3", k=5, **options) == expected
    found = store.max_marginal_relevance_search_by_vector(query.tolist(), k=5, **options)
    assert found == expected
    retriever = store.as_retriever(search_type="mmr", search_kwargs=options | {"k": 5})
    assert retriever.invoke("number 3") == expected


def test_mmr_of_nothing_and_of_little(embeddings: EpicEmbeddings, tmp_path: Path) -> None:
    made = EpicVectorStore(tmp_path / "i", embeddings)
    assert made.max_marginal_relevance_search("x") == []
    made.add_texts(["one", "two"])
    assert len(made.max_marginal_relevance_search("x", k=4, fetch_k=1)) == 2
    made.delete()
    assert made.max_marginal_relevance_search("x") == []
    with pytest.raises(InputError, match=r"lambda_mult is 1.5; expected 0 to 1"):
        made.max_marginal_relevance_search("x", lambda_mult=1.5)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ({"lang": "en"}, lambda one: one["lang"] == "en"),
        ({"n": {"$gte": 7, "$lt": 19}}, lambda one: 7 <= one["n"] < 19),
        ({"$or": [{"n": 3}, {"share": {"$gt": 8}}]}, lambda one: one["n"] == 3 or one["n"] > 24),
        ({"tags.deep": None, "_id": {"$in": ["5", "6"]}}, lambda one: one["n"] in (5, 6)),
        ({"n": 99}, lambda _: False),
    ],
)
async def test_filters_against_python(store: EpicVectorStore, condition: Any, holds: Any) -> None:  # noqa: ANN401
    everything = store.similarity_search("number 3", k=30)
    expected = [one for one in everything if holds(one.metadata)][:6]
    assert store.similarity_search("number 3", k=6, filter=condition) == expected
    assert await store.asimilarity_search("number 3", k=6, filter=condition) == expected
    retriever = store.as_retriever(search_kwargs={"filter": condition, "k": 6})
    assert await retriever.ainvoke("number 3") == expected


def test_options_that_are_unknown_are_refused(store: EpicVectorStore) -> None:
    for search in (store.similarity_search, store.max_marginal_relevance_search):
        with pytest.raises(InputError, match="no option 'fliter'; a search takes k, filter"):
            search("x", fliter={"n": 1})
        with pytest.raises(InputError, match="expected a mapping from keys"):
            search("x", filter=lambda _: True)
        with pytest.raises(InputError, match="k is 0"):
            search("x", k=0)
        with pytest.raises(InputError, match='parameters has "nprobe"'):
            search("x", parameters={"nprobe": 1})
    with pytest.raises(InputError, match="no option 'where'"):
        store.delete(where={"n": 1})
    with pytest.raises(InputError, match="both ids and a filter"):
        store.delete(["1"], filter={"n": 1})
    nothing: list[Any] = [{}, None]
    for empty in nothing:
        with pytest.raises(InputError, match=r"would delete everything; call delete\(\) without"):
            store.delete(filter=empty)
    with pytest.raises(InputError, match="expected a mapping"):
        store.delete(filter=[])
    with pytest.raises(InputError, match="ids is '1'; expected a list"):
        store.delete("1")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no option 'meta'"):
        store.add_texts(["x"], meta=1)
    assert len(store.collection) == 30


def test_text_and_metadata_come_back_as_they_were(
    embeddings: EpicEmbeddings, tmp_path: Path
) -> None:
    metadata = {"title": "T", "\u00fc": [1, 1.0, True, None, {"a": []}], "big": 2**60, "": "x"}
    documents = [
        Document(text, metadata=metadata | {"n": n}, id=f"id {n}") for n, text in enumerate(TEXTS)
    ]
    made = EpicVectorStore.from_documents(documents, embeddings, folder=tmp_path / "i")
    assert made.get_by_ids(["id 2", "absent", "id 0"]) == [documents[2], documents[0]]
    assert repr(made.get_by_ids(["id 1"])) == repr([documents[1]])
    stored = made.collection.snapshot()
    assert stored is not None
    vectors = embeddings._encoder.encode_passages(TEXTS)
    np.testing.assert_array_equal(stored.vectors([f"id {n}" for n in range(4)]), vectors)


def test_ids(embeddings: EpicEmbeddings, tmp_path: Path) -> None:
    made = EpicVectorStore(tmp_path / "i", embeddings)
    assert made.add_texts([]) == []
    assert made.add_texts(["first", "second", "third"], ids=["a", "b", "a"]) == ["a", "b", "a"]
    assert [one.page_content for one in made.get_by_ids(["a", "b"])] == ["third", "second"]
    mixed = made.add_texts(iter(["x", "y"]), ids=["c", None])  # type: ignore[list-item]
    assert mixed[0] == "c"
    assert len(made.get_by_ids(mixed)) == 2
    assert made.delete([]) is True
    assert len(made.collection) == 4
    assert made.delete(filter={"_id": {"$in": ["a", "c"]}}) is True
    assert len(made.collection) == 2
    assert made.delete() is True
    assert made.similarity_search("x") == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"texts": None}, "texts is None; expected a list"),
        ({"texts": 7}, "texts is 7; expected a list"),
        ({"texts": "one text"}, "texts is 'one text'; expected a list"),
        ({"texts": ["a", None]}, r"document 2 .*: text is of type NoneType"),
        ({"texts": ["a", 7]}, r"document 2 .*: text is of type int"),
        ({"texts": ["a", " \n"]}, r"document 2 .* neither text nor title"),
        ({"texts": ["a\0"]}, "NUL character"),
        ({"texts": ["a"], "metadatas": []}, "got 0 metadatas for 1 texts"),
        ({"texts": ["a"], "ids": ["1", "2"]}, "got 2 ids for 1 texts"),
        ({"texts": ["a"], "ids": [3]}, "id is of type int"),
        ({"texts": ["a"], "ids": ["\ud800"]}, "half a surrogate pair"),
        ({"texts": ["a"], "metadatas": ["x"]}, "metadata is a str"),
        (
            {"texts": ["a"], "metadatas": [{"when": [dt.date(2020, 1, 1)]}]},
            r"metadata\['when'\]\[0\] is of type date: .*; convert it to text",
        ),
        ({"texts": ["a"], "metadatas": [{"x": float("nan")}]}, "finite numbers only"),
        ({"texts": ["a"], "metadatas": [{1: "x"}]}, "expected text keys"),
        ({"texts": ["a"], "batch_size": 0}, "batch_size is 0"),
    ],
)
async def test_what_cannot_be_added(
    embeddings: EpicEmbeddings,
    tmp_path: Path,
    given: Any,  # noqa: ANN401
    message: str,
) -> None:
    made = EpicVectorStore(tmp_path / "i", embeddings)
    with pytest.raises(InputError, match=message):
        made.add_texts(**given)
    with pytest.raises(InputError, match=message):
        await made.aadd_texts(**given)
    assert made.collection.manifest is None


@pytest.mark.parametrize("query", [None, 7, ["x"], "", " "])
async def test_what_is_no_query(store: EpicVectorStore, query: Any) -> None:  # noqa: ANN401
    for search in (store.similarity_search, store.max_marginal_relevance_search):
        with pytest.raises(InputError, match="text 0 is"):
            search(query)
    for wait in (store.asimilarity_search, store.amax_marginal_relevance_search):
        with pytest.raises(InputError, match="text 0 is"):
            await wait(query)


def test_a_megabyte(embeddings: EpicEmbeddings, tmp_path: Path) -> None:
    made = EpicVectorStore(tmp_path / "i", embeddings)
    (name,) = made.add_texts([LONG])
    assert made.similarity_search(LONG)[0].page_content == LONG
    assert made.get_by_ids([name])[0].page_content == LONG


async def test_concurrent_queries_share_passes(store: EpicVectorStore, passes: Passes) -> None:
    queries = [f"query {n}" for n in range(32)]
    found = await asyncio.gather(*(store.asimilarity_search(query, k=3) for query in queries))
    assert len(passes.sizes) < 16
    assert found == [store.similarity_search(query, k=3) for query in queries]
    diverse = await store.amax_marginal_relevance_search("query 1", k=3)
    assert diverse == store.max_marginal_relevance_search("query 1", k=3)
    relevant = await store.asimilarity_search_with_relevance_scores("query 1", k=3)
    assert [one for one, _ in relevant] == found[1]


async def test_searches_beside_writes(embeddings: EpicEmbeddings, tmp_path: Path) -> None:
    made = await EpicVectorStore.afrom_texts(MANY[:3], embeddings, folder=tmp_path / "i")

    async def add(n: int) -> None:
        await made.aadd_texts([MANY[n]], ids=[str(n)])

    searches = [made.asimilarity_search(text, k=40) for text in MANY[:20]]
    found = await asyncio.gather(*searches, *(add(n) for n in range(3, 11)))
    counts = {len(documents) for documents in found[:20] if documents is not None}
    assert counts <= set(range(3, 12))
    assert len(await made.asimilarity_search("x", k=40)) == 11
    await made.adelete(["3", "4"])
    assert [one.page_content for one in await made.aget_by_ids(["3", "5"])] == [MANY[5]]


def test_two_stores_of_one_folder_and_another_process(
    embeddings: EpicEmbeddings, tmp_path: Path
) -> None:
    one = EpicVectorStore.from_texts(["ours"], embeddings, folder=tmp_path / "i")
    two = EpicVectorStore(tmp_path / "i", embeddings, patience=0.1)
    code = (
        "import sys, numpy as np; from epic_retrieval.index import IndexWriter, Passage\n"
        "with IndexWriter(sys.argv[1]) as writer:\n"
        "    rows = np.eye(1, writer.manifest.dimension, dtype=np.float32)\n"
        "    writer.add([Passage('t', 'theirs')], lambda _: rows)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "i")], check=True)
    assert [len(each.similarity_search("theirs")) for each in (one, two)] == [2, 2]
    with (
        IndexWriter(tmp_path / "i"),
        pytest.raises(PassageIndexError, match="changed by this very process"),
    ):
        two.add_texts(["late"])
    two.add_texts(["late"])
    assert len(one.similarity_search("theirs")) == 3


def test_an_index_from_a_file_opens(folder: str, encoder: EpicEncoder, tmp_path: Path) -> None:
    passages = [Passage("a", "A text.", "A title", {"n": 1}), Passage("b", "", "Only a title")]
    build_index(passages, encoder.encode_passages, tmp_path / "i", encoder=encoder.info())
    made = EpicVectorStore.open(tmp_path / "i", task=SHOWN)
    found = {one.id: one for one in made.similarity_search("A title", filter={})}
    assert found["a"] == Document("A text.", id="a", metadata={"n": 1, "title": "A title"})
    assert found["b"] == Document("", id="b", metadata={"title": "Only a title"})
    assert isinstance(made.embeddings, EpicEmbeddings)
    assert made.embeddings._encoder is encoder
    assert made.embeddings.task == SHOWN
    made.add_texts(["One more."])
    assert len(EpicVectorStore.open(tmp_path / "i", encoder=encoder).collection) == 3
    with pytest.raises(PassageIndexError, match="no such folder"):
        EpicVectorStore.open(tmp_path / "absent")


def test_what_was_found_may_be_added_again(encoder: EpicEncoder, tmp_path: Path) -> None:
    """Titles are encoded, so to lose one would change the vector."""
    given = [
        Passage("a", "A text.", "A title", {"n": 1}),
        Passage("b", "", "Only a title"),
        Passage("c", "Both.", "Same", {"title": "Same"}),
        Passage("d", "Two.", "One", {"title": "Another"}),
    ]
    build_index(given, encoder.encode_passages, tmp_path / "i", encoder=encoder.info())
    made = EpicVectorStore.open(tmp_path / "i", task=SHOWN)
    found = made.get_by_ids(list("abcd"))
    before = made.collection.manifest
    made.add_documents(found)
    assert made.collection.manifest == before
    found[0].metadata["n"] = 2
    found[2].page_content = "Changed."
    made.add_documents(found)
    assert made.get_by_ids(list("abcd")) == found
    now = made.collection.get(list("abcd"))
    assert now["a"] == Passage("a", "A text.", "A title", {"n": 2})
    assert now["c"] == Passage("c", "Changed.", "Same", {"title": "Same"})
    assert (now["b"], now["d"]) == (given[1], given[3])
    stored = made.collection.snapshot()
    assert stored is not None
    expected = encoder.encode_passages([one.content for one in now.values()])
    np.testing.assert_allclose(stored.vectors(list("abcd")), expected, atol=1e-6)
    made.add_texts(["A text."], [{"title": "Other"}], ids=["a"])
    assert made.collection.get(["a"])["a"].title == ""


def test_nodes_of_llama_index_come_without_what_is_noted_of_them(
    encoder: EpicEncoder, tmp_path: Path
) -> None:
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="file")}
    nodes = [
        TextNode(id_=name, text="A text.", metadata=metadata, relationships=source)
        for name, metadata in (("a", {"n": 1}), ("b", {"doc_id": "mine", "empty": []}))
    ]
    for one in nodes:
        one.embedding = encoder.encode_passages([one.get_content(MetadataMode.EMBED)])[0].tolist()
    theirs = llama_index_epic.EpicVectorStore(tmp_path / "i", EpicEmbedding(encoder=encoder))
    theirs.add(nodes)
    made = EpicVectorStore(tmp_path / "i", EpicEmbeddings(encoder=encoder))
    found = made.get_by_ids(["a", "b"])
    assert found == [
        Document("A text.", id="a", metadata={"n": 1}),
        Document("A text.", id="b", metadata={"doc_id": "mine", "empty": []}),
    ]
    made.add_documents(found)
    assert [one.to_dict() for one in theirs.get_nodes()] == [
        one.model_copy(update={"embedding": None}).to_dict() for one in nodes
    ]


def test_a_store_says_what_it_is(store: EpicVectorStore, tmp_path: Path) -> None:
    assert len(store) == 30
    assert repr(store) == (
        f"EpicVectorStore({str(store.collection.folder)!r}, 30 documents, task 'shown')"
    )
    other = EpicVectorStore(tmp_path / "i", Scaled())
    assert (len(other), bool(other)) == (0, True)
    assert str(other).endswith("0 documents, Scaled)")
    other.close()
    assert "closed or damaged" in repr(other)


def test_settings_of_an_opened_index_are_checked(
    folder: str, encoder: EpicEncoder, tmp_path: Path
) -> None:
    build_index(
        [Passage("a", "x")], encoder.encode_passages, tmp_path / "i", encoder=encoder.info()
    )
    for settings, message in (
        ({"task": "bogus"}, "no built-in task"),
        ({"batch_size": 0}, "batch_size: Input should be greater than 0"),
        ({"tsak": "x"}, "tsak: Extra inputs are not permitted"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            EpicVectorStore.open(tmp_path / "i", **settings)
        assert "validation error" not in str(caught.value)
    with pytest.raises(InputError, match="task is None"):
        EpicVectorStore.open(tmp_path / "i").with_task(None)  # type: ignore[arg-type]


def test_an_index_with_shorter_vectors(encoder: EpicEncoder, tmp_path: Path) -> None:
    build_index(
        [Passage(str(n), text) for n, text in enumerate(MANY)],
        encoder.encode_passages,
        tmp_path / "i",
        encoder=encoder.info(),
        dimension=8,
    )
    made = EpicVectorStore(tmp_path / "i", EpicEmbeddings(encoder=encoder))
    made.add_texts(["one more"])
    assert len(made.similarity_search("x", k=40)) == 31
    near = made.similarity_search("x", k=3)
    assert made.max_marginal_relevance_search("x", k=3, fetch_k=3, lambda_mult=1.0) == near


def test_another_model_is_refused(embeddings: EpicEmbeddings, tmp_path: Path) -> None:
    EpicVectorStore.from_texts(["x"], embeddings, folder=tmp_path / "i")
    size = embeddings._encoder.dimension
    for other in (EpicEmbeddings(encoder=tiny_encoder("llama")), Scaled(size)):
        with pytest.raises(PassageIndexError, match=r"was built with .* cannot be compared"):
            EpicVectorStore(tmp_path / "i", other)
    EpicVectorStore.from_texts(["x"], Scaled(size), folder=tmp_path / "j")
    with pytest.raises(PassageIndexError, match='model "Scaled", now'):
        EpicVectorStore(tmp_path / "j", embeddings)
    with pytest.raises(InputError, match="built with Scaled, which has to be given"):
        EpicVectorStore.open(tmp_path / "j")


def test_other_embeddings_are_known_by_a_vector(tmp_path: Path) -> None:
    scaled = Scaled()
    EpicVectorStore.from_texts(MANY, scaled, ids=MANY, folder=tmp_path / "i", batch_size=8)
    assert scaled.calls == [1, 8, 8, 8, 6]
    again = EpicVectorStore(tmp_path / "i", Scaled(length=0.5))
    ((best, score),) = again.similarity_search_with_score(MANY[4], k=1)
    assert best.id == MANY[4]
    assert score == pytest.approx(1, abs=1e-3)
    again.add_texts(["one more"])
    for other in (Scaled(41), DeterministicFakeEmbedding(size=39), FakeEmbeddings(size=40)):
        with pytest.raises(PassageIndexError, match="cannot be compared"):
            EpicVectorStore(tmp_path / "i", other)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([], "array of shape"),
        ([1.0, 2.0], "array of shape"),
        ([[0.0, 0.0]], "length 0.0 in row 0"),
        ([[1.0, float("nan")]], "length nan in row 0"),
        ([[1.0], [1.0, 2.0]], "gave no vectors"),
        ([["a"]], "gave no vectors"),
        (None, "array of shape"),
    ],
)
def test_embeddings_that_give_no_vectors(tmp_path: Path, vectors: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(InputError, match=message):
        EpicVectorStore(tmp_path / "i", Given(vectors))


def test_what_are_no_embeddings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="embedding is of type str; expected LangChain"):
        EpicVectorStore(tmp_path / "i", "epic-mini")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="no index"):
        EpicVectorStore(tmp_path / "file", Scaled())


def test_another_task_searches_the_same_index(
    store: EpicVectorStore, embeddings: EpicEmbeddings, encoder: EpicEncoder, passes: Passes
) -> None:
    other = store.with_task(BARE)
    passes.sizes.clear()
    expected = EpicEmbeddings(task=BARE, encoder=encoder).embed_query("number 3")
    assert other.similarity_search("number 3") == store.similarity_search_by_vector(expected)
    assert sum(passes.sizes) == 2
    assert other.collection is store.collection
    assert store.embeddings is embeddings
    with pytest.raises(InputError, match="the task 'same', since the one or the other is symm"):
        store.with_task(SYMMETRIC)
    with pytest.raises(InputError, match="no built-in task"):
        store.with_task("no-such-task")


def test_a_symmetric_task_has_an_index_of_its_own(encoder: EpicEncoder, tmp_path: Path) -> None:
    symmetric = EpicEmbeddings(task=SYMMETRIC, encoder=encoder)
    made = EpicVectorStore.from_texts(TEXTS, symmetric, folder=tmp_path / "i")
    ((best, score),) = made.similarity_search_with_score(TEXTS[1], k=1)
    assert best.page_content == TEXTS[1]
    assert score == pytest.approx(1, abs=1e-5)
    assert made.with_task(SYMMETRIC).similarity_search(TEXTS[1], k=1) == [best]
    with pytest.raises(InputError, match="the task 'bare'"):
        made.with_task(BARE)
    with pytest.raises(PassageIndexError, match="task same"):
        EpicVectorStore(tmp_path / "i", EpicEmbeddings(task=SHOWN, encoder=encoder))
    with pytest.raises(InputError, match="Scaled has no tasks"):
        EpicVectorStore(tmp_path / "j", Scaled()).with_task(BARE)


def test_a_temporary_folder_goes_with_its_store(embeddings: EpicEmbeddings) -> None:
    made = EpicVectorStore.from_texts(["one"], embeddings)
    place, other = made.collection.folder, made.with_task(BARE)
    del made
    assert len(other.similarity_search("x")) == 1
    other.close()
    with pytest.raises(PassageIndexError, match="closed"):
        other.similarity_search("x")
    assert place.exists()
    del other
    assert not place.exists()


def test_langchains_indexing(embeddings: EpicEmbeddings, tmp_path: Path) -> None:
    made = EpicVectorStore(tmp_path / "i", embeddings)
    records = InMemoryRecordManager("namespace")
    records.create_schema()

    def indexed(*texts: str) -> dict[str, Any]:
        documents = [Document(text, metadata={"source": text[0]}) for text in texts]
        return {
            **index(
                documents,
                records,
                made,
                cleanup="full",
                source_id_key="source",
                key_encoder="sha256",
            )
        }

    assert indexed("a text", "b text")["num_added"] == 2
    assert indexed("a text", "b text")["num_skipped"] == 2
    found = indexed("a text", "c text")
    assert (found["num_added"], found["num_deleted"]) == (1, 1)
    assert {one.page_content for one in made.similarity_search("x")} == {"a text", "c text"}
