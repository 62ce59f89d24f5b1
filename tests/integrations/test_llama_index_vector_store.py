"""The LlamaIndex store: there is no standard suite, so SimpleVectorStore's behaviours one by one.

Scenarios run on both stores, which must agree.
"""

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters, SimpleVectorStore
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from pydantic import AnyUrl, ValidationError

from epic_retrieval import InputError, PassageIndexError
from epic_retrieval.index import verify_index
from llama_index_epic import EpicVectorStore
from tests.integrations.common import LONG, TEXTS

WIDTH = 12
Scenario = Callable[[BasePydanticVectorStore], object]


def vector(seed: int) -> list[float]:
    """Not of length 1, as of many models."""
    found: list[float] = np.random.default_rng(seed).standard_normal(WIDTH).tolist()
    return found


def node(number: int, seed: int | None = None, **metadata: Any) -> TextNode:  # noqa: ANN401
    """The source of node 5 is document 1, and so on."""
    source = RelatedNodeInfo(node_id=f"doc-{number % 4}", metadata={"file": "x"}, hash="h")
    return TextNode(
        id_=f"n{number}",
        text=f"The text of node {number}.",
        embedding=vector(number if seed is None else seed),
        metadata={"number": number, "half": number // 2} | metadata,
        relationships={NodeRelationship.SOURCE: source},
    )


def filters(key: str, value: str | int) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value)])


def asked(store: BasePydanticVectorStore, seed: int = 100, **options: Any) -> list[Any]:  # noqa: ANN401
    """Ids and rounded similarities of a query, in their order."""
    options = {"similarity_top_k": 50} | options
    found = store.query(VectorStoreQuery(query_embedding=vector(seed), **options))
    assert found.ids is not None
    assert found.similarities is not None
    return list(zip(found.ids, np.round(found.similarities, 5).tolist(), strict=True))


@pytest.fixture
def store(tmp_path: Path) -> EpicVectorStore:
    return EpicVectorStore(tmp_path / "index")


def scenario_add(store: BasePydanticVectorStore) -> object:
    ids = store.add([node(number) for number in range(20)])
    return ids, asked(store), asked(store, 7, similarity_top_k=1), store.add([])


def scenario_upsert(store: BasePydanticVectorStore) -> object:
    store.add([node(number) for number in range(6)])
    ids = store.add([node(2, 55), node(3, half=9), node(4, 66), node(4, 77), node(8)])
    everything = asked(store)
    return ids, everything, asked(store, filters=filters("half", 9)), asked(store, 77)


def scenario_the_same_text_and_two_vectors(store: BasePydanticVectorStore) -> object:
    pair = [node(1), node(2)]
    for one in pair:
        one.text = "The same."
        one.metadata = {}
    store.add(pair)
    return asked(store)


def scenario_another_vector_alone(store: BasePydanticVectorStore) -> object:
    store.add([node(1), node(2)])
    store.add([node(1, 50)])
    before = asked(store)
    # What was written once may be found again on the disk.
    store.delete_nodes(["n1", "n2"])
    store.add([node(1, 60), node(2)])
    store.delete_nodes(["n1"])
    store.add([node(1, 70)])
    return before, asked(store)


def scenario_delete(store: BasePydanticVectorStore) -> object:
    store.add([node(number) for number in range(12)])
    store.delete("doc-1")
    store.delete("no such document")
    first = asked(store)
    store.delete_nodes(["n2", "n2", "no such node"])
    store.delete_nodes([])
    store.delete_nodes(filters=filters("half", 3))
    second = asked(store)
    store.delete_nodes(["n8", "n10"], filters("number", 10))
    return first, second, asked(store), asked(store, filters=filters("ref_doc_id", "doc-3"))


def scenario_clear(store: BasePydanticVectorStore) -> object:
    store.clear()
    store.add([node(number) for number in range(5)])
    store.clear()
    nothing = asked(store), asked(store, filters=filters("half", 1))
    store.add([node(3)])
    return nothing, asked(store)


def scenario_everything_deleted(store: BasePydanticVectorStore) -> object:
    store.add([node(number) for number in range(5)])
    store.delete_nodes([f"n{number}" for number in range(5)])
    nothing = asked(store), asked(store, mode=VectorStoreQueryMode.MMR)
    store.add([node(number) for number in range(2)])
    return nothing, asked(store)


def scenario_nothing(store: BasePydanticVectorStore) -> object:
    store.delete("doc-1")
    store.delete_nodes(["n1"])
    return store.add([]), asked(store), asked(store, node_ids=["n1"])


def scenario_node_ids(store: BasePydanticVectorStore) -> object:
    store.add([node(number) for number in range(12)])
    some = ["n3", "n4", "n9", "no such node"]
    return asked(store, node_ids=some), asked(store, node_ids=some, filters=filters("half", 2))


def scenario_strange_texts(store: BasePydanticVectorStore) -> object:
    given = [node(number) for number in range(len(TEXTS) + 1)]
    for one, text in zip(given, [*TEXTS, LONG], strict=True):
        one.text = text
    store.add(given)
    return asked(store)


SCENARIOS: list[Scenario] = [
    found for name, found in list(globals().items()) if name.startswith("scenario_")
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.__name__)
def test_it_does_what_the_simple_store_does(scenario: Scenario, store: EpicVectorStore) -> None:
    assert scenario(store) == scenario(SimpleVectorStore())
    if store.client.manifest is not None:
        assert verify_index(store.folder).ok


class Awaited:
    """A store whose methods are its asynchronous ones."""

    def __init__(self, store: EpicVectorStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Callable[..., object]:
        name = {"add": "async_add"}.get(name, f"a{name}")
        return lambda *given, **named: asyncio.run(getattr(self._store, name)(*given, **named))


@pytest.mark.parametrize("scenario", SCENARIOS[:-1:2], ids=lambda one: one.__name__)
def test_asynchronous_methods_do_the_same(scenario: Scenario, store: EpicVectorStore) -> None:
    awaited: Any = Awaited(store)
    assert scenario(awaited) == scenario(SimpleVectorStore())
    assert {one.node_id for one in awaited.get_nodes()} == {
        passage.id for passage in store.client.passages
    }


@pytest.mark.parametrize("threshold", [0.1, 0.4, 0.5, 0.9, 1.0])
def test_diverse_nodes_are_those_of_the_simple_store(
    store: EpicVectorStore, threshold: float
) -> None:
    simple = SimpleVectorStore()
    given = [node(number) for number in range(16)]
    given += [node(20 + number, number % 4) for number in range(8)]  # twins
    for one in (simple, store):
        one.add(given)
    query = VectorStoreQuery(vector(100), similarity_top_k=8, mode=VectorStoreQueryMode.MMR)
    expected = simple.query(query, mmr_threshold=threshold).ids
    found = store.query(query, mmr_threshold=threshold, mmr_prefetch_k=24)
    query.mmr_threshold = threshold
    again = store.query(query, mmr_prefetch_factor=3)
    assert found.ids is not None
    assert again.ids == found.ids
    # Twins tie, and either comes first.
    seeds = {f"n{20 + number}": f"n{number % 4}" for number in range(8)}
    assert [seeds.get(key, key) for key in found.ids] == [
        seeds.get(key, key) for key in expected or []
    ]
    cosines = dict(asked(store))
    assert [round(score, 5) for score in found.similarities or []] == [
        cosines[key] for key in found.ids
    ]


def test_a_diverse_query_takes_its_candidates_from_the_best(store: EpicVectorStore) -> None:
    store.add([node(number) for number in range(40)])
    best = [key for key, _ in asked(store)]
    query = VectorStoreQuery(vector(100), similarity_top_k=5, mode=VectorStoreQueryMode.MMR)
    assert set(store.query(query, mmr_threshold=0.0).ids or []) <= set(best[:20])
    fewest = store.query(query, mmr_threshold=0.0, mmr_prefetch_k=1).ids
    assert set(fewest or []) == set(best[:5])
    query.filters = filters("half", 3)
    assert set(store.query(query).ids or []) == {"n6", "n7"}


def test_similarities_are_cosines(store: EpicVectorStore) -> None:
    given = [node(number) for number in range(10)]
    store.add(given)
    wanted = np.array(vector(100))
    for key, score in asked(store):
        one = np.array(next(other for other in given if other.node_id == key).embedding)
        cosine = one @ wanted / np.linalg.norm(one) / np.linalg.norm(wanted)
        assert score == pytest.approx(cosine, abs=1e-5)


def test_documents_restrict_and_empty_lists_do_not(store: EpicVectorStore) -> None:
    store.add([node(number) for number in range(12)])
    found = asked(store, doc_ids=["doc-1", "doc-2", "no such document"])
    assert {key for key, _ in found} == {"n1", "n5", "n9", "n2", "n6", "n10"}
    found = asked(store, doc_ids=["doc-1"], node_ids=["n1", "n2"], filters=filters("number", 1))
    assert [key for key, _ in found] == ["n1"]
    # A retriever of nodes that are in the store alone gives an empty list.
    assert asked(store, doc_ids=[], node_ids=[]) == asked(store)
    query = VectorStoreQuery(vector(1), similarity_top_k=50)
    found_too = store.query(query, where={"number": {"$gte": 10}})
    assert set(found_too.ids or []) == {"n10", "n11"}
    query.filters = filters("half", 5)
    assert store.query(query, where={"number": {"$ne": 10}}).ids == ["n11"]


def nodes_of_all_kinds() -> list[BaseNode]:
    related = {
        NodeRelationship.SOURCE: RelatedNodeInfo(node_id="d", metadata={"a": [1]}, hash="h"),
        NodeRelationship.CHILD: [RelatedNodeInfo(node_id="c1"), RelatedNodeInfo(node_id="c2")],
    }
    text = TextNode(
        id_="text",
        text="Some text,\r\n\n and more. ",
        metadata={"z": 1, "a": {"b": [1, "x", None, True, 2.5]}, "list": [], "none": None},
        relationships=related,
        start_char_idx=3,
        end_char_idx=9,
        excluded_embed_metadata_keys=["z"],
        excluded_llm_metadata_keys=["a"],
        text_template="{content} <- {metadata_str}",
        metadata_template="{key}={value}",
        metadata_separator=" ; ",
        mimetype="text/html",
    )
    clashing = {"doc_id": "mine", "ref_doc_id": 5, "_node_content": "x", "_node_empty": [], "t": 1}
    return [
        text,
        TextNode(id_="plain", text="Nothing else."),
        TextNode(id_="with", text="With metadata.", metadata={"file": "x", "page": 3}),
        TextNode(id_="clash", text="Clashing.", metadata=clashing, relationships=related),
        TextNode(id_="clash alone", text="Clashing.", metadata=clashing),
        TextNode(id_="blank", text=" ", metadata={"title": "Only metadata."}),
        TextNode(id_="Zürich / \u4e2d\U0001f9c0", text="An id.", metadata={"\u00e4.b": "\u00f6"}),
        IndexNode(id_="index", text="Points at.", index_id="other", obj=None),
        IndexNode(id_="index of", text="Points at.", index_id="o", obj=TextNode(text="inner")),
        ImageNode(id_="image", text="A caption.", image_path="/x.png", image="aGFsbG8="),
        Document(id_="document", text="A document.", metadata={"file": "x"}),
        ImageDocument(
            id_="image document",
            text="A caption.",
            image_resource=MediaResource(url=AnyUrl("https://example.org/x.png")),
        ),
        Node(
            id_="node",
            text_resource=MediaResource(text="A text.", mimetype="text/plain", path=Path("/x.txt")),
            image_resource=MediaResource(path=Path("/x.png"), mimetype="image/png"),
            extra_info={"k": "v"},
        ),
    ]


def test_nodes_of_all_kinds_come_back_as_they_were(store: EpicVectorStore) -> None:
    given = nodes_of_all_kinds()
    for place, one in enumerate(given):
        one.embedding = vector(place)
    store.add(given)
    result = store.query(VectorStoreQuery(vector(0), similarity_top_k=99))
    found = {one.node_id: one for one in result.nodes or []}
    assert list(found) == result.ids
    assert len(found) == len(given)
    again = {one.node_id: one for one in EpicVectorStore(store.folder).get_nodes()}
    for one in given:
        one.embedding = None
        for other in (found[one.node_id], again[one.node_id]):
            assert type(other) is type(one)
            assert other.to_dict() == one.to_dict()
            assert list(other.metadata) == list(one.metadata)
            assert (other.hash, other.ref_doc_id) == (one.hash, one.ref_doc_id)
            for mode in MetadataMode:
                assert other.get_content(mode) == one.get_content(mode)
    # To add what was found changes nothing.
    generation = store.client.manifest
    for place, one in enumerate(given):
        again[one.node_id].embedding = vector(place)
    store.add(list(again.values()))
    assert store.client.manifest == generation


def test_what_is_stored_is_what_was_embedded(store: EpicVectorStore) -> None:
    given = nodes_of_all_kinds()
    for one in given:
        one.embedding = vector(1)
    store.add(given)
    passages = store.client.get([one.node_id for one in given])
    for one in given:
        assert passages[one.node_id].content == one.get_content(MetadataMode.EMBED)
    assert passages["with"].text == "With metadata."


def test_nodes_by_id_and_filter(store: EpicVectorStore) -> None:
    assert store.get_nodes() == store.get_nodes(["n1"]) == []
    given = [node(number) for number in range(12)]
    store.add(given)

    def ids(**options: Any) -> list[str]:  # noqa: ANN401
        return [one.node_id for one in store.get_nodes(**options)]

    assert ids() == [one.node_id for one in given]
    assert ids(node_ids=["n3", "no such node", "n1", "n3"]) == ["n3", "n1"]
    assert ids(node_ids=[]) == []
    assert set(ids(filters=filters("half", 2))) == {"n4", "n5"}
    assert ids(node_ids=["n9", "n5", "n4"], filters=filters("half", 2)) == ["n5", "n4"]
    assert ids(node_ids=["n2"], filters=MetadataFilters(filters=[])) == ["n2"]


def test_dicts_copies_and_pickles_name_the_folder(store: EpicVectorStore) -> None:
    store.add([node(1)])
    kept = store.to_dict()
    assert (kept["class_name"], kept["folder"]) == ("EpicVectorStore", store.folder)
    for twin in (
        EpicVectorStore.from_dict(kept),
        EpicVectorStore.from_json(store.to_json()),
        EpicVectorStore.model_validate_json(store.model_dump_json()),
        EpicVectorStore.from_params(store.folder),
        copy.copy(store),
        copy.deepcopy(store),
        pickle.loads(pickle.dumps(store)),  # noqa: S301
    ):
        assert twin.to_dict() == store.to_dict()
        assert asked(twin) == asked(store)
    assert len(store.to_json()) < 500
    for name in ("folder", "fingerprint"):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(store, name, "x")
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        EpicVectorStore(store.folder, embedmodel=None)


BAD_NODES: list[tuple[Callable[[], Sequence[Any]], str]] = [
    (lambda: [TextNode(id_="x", text="a")], "'x' has no embedding; add it through a Vector"),
    (lambda: [_with([])], "'x' has the shape .0,. and the length 0"),
    (lambda: [_with([0.0] * WIDTH)], "not zero"),
    (lambda: [_with([float("nan")] * WIDTH)], "finite numbers"),
    (lambda: [_with(vector(1)[:-1])], "'x' has 11 dimensions; expected 12, as all in"),
    (lambda: [_with(vector(1), text="")], "'x' cannot be stored: .*neither text nor title"),
    (lambda: [_with(vector(1), text="a\0b")], "'x' cannot be stored: .*NUL character"),
    (lambda: [_with(vector(1), metadata={"k": float("inf")})], "Out of range float"),
    (lambda: [_with(vector(1), metadata={"k": object()})], "'x' cannot be stored: .*serialize"),
]


@pytest.mark.parametrize("given", [[None], ["text"], "text", node(1), [3.5], {"n1": None}])
def test_what_is_no_node_is_refused(store: EpicVectorStore, given: Any) -> None:  # noqa: ANN401
    with pytest.raises(InputError, match=r"nodes holds a (NoneType|str|tuple|float); expected"):
        store.add(given)


async def test_nothing_is_never_everything(store: EpicVectorStore) -> None:
    store.add([TextNode(id_="1", text="cut from no document", embedding=vector(1)), node(2)])
    nothing: Any = None
    with pytest.raises(InputError, match="ref_doc_id is of type NoneType"):
        store.delete(nothing)
    with pytest.raises(InputError, match="ref_doc_id is of type NoneType"):
        await store.adelete(nothing)
    with pytest.raises(InputError, match="query is of type NoneType"):
        store.query(nothing)
    store.delete("None")
    store.delete("")
    store.delete_nodes([])
    with pytest.raises(InputError, match="expected a list of values"):
        store.delete_nodes("1")  # type: ignore[arg-type]
    assert len(store.client) == 2


def _with(embedding: list[float], text: str = "a", **options: Any) -> TextNode:  # noqa: ANN401
    return TextNode(id_="x", text=text, embedding=embedding, **options)


@pytest.mark.parametrize(("bad", "message"), BAD_NODES)
def test_a_node_that_cannot_be_stored_is_named_and_nothing_is_added(
    store: EpicVectorStore, bad: Callable[[], Sequence[Any]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        store.add([node(2), *bad()])
    store.add([node(1)])
    with pytest.raises(InputError, match=message):
        store.add([node(2), *bad()])
    assert [key for key, _ in asked(store)] == ["n1"]


BAD_QUERIES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"query_embedding": None}, {}, "the query has no query_embedding"),
    ({"query_embedding": []}, {}, "the length 0"),
    ({"query_embedding": [0.0] * WIDTH}, {}, "not zero"),
    ({"query_embedding": ["a"] * WIDTH}, {}, "no list of numbers"),
    ({"query_embedding": vector(1)[:-1]}, {}, "11 dimensions: expected 12"),
    ({"similarity_top_k": 0}, {}, "k is 0"),
    ({"similarity_top_k": None}, {}, "k is None"),
    ({"mmr_threshold": 2}, {}, "mmr_threshold is 2; expected 0 to 1"),
    ({}, {"mmr_threshold": -0.5}, "mmr_threshold is -0.5"),
    ({}, {"mmr_prefetch_k": 3, "mmr_prefetch_factor": 2}, "leave one of them out"),
    ({}, {"mmr_prefetch_factor": 0.5}, "expected at least 1"),
    ({}, {"wehre": {}}, "query was given wehre; there are where"),
    ({}, {"where": {"a": []}}, "one value"),
    ({"node_ids": [3]}, {}, "text, as ids are"),
    ({"node_ids": "n1"}, {}, "a list of values"),
    ({"doc_ids": [None]}, {}, "texts, as ids are"),
]


@pytest.mark.parametrize(("fields", "options", "message"), BAD_QUERIES)
async def test_what_is_no_query(
    store: EpicVectorStore, fields: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    store.add([node(1)])
    query = VectorStoreQuery(**{"query_embedding": vector(1)} | fields)
    with pytest.raises(InputError, match=message):
        store.query(query, **options)
    with pytest.raises(InputError, match=message):
        await store.aquery(query, **options)


@pytest.mark.parametrize("mode", [*VectorStoreQueryMode])
def test_modes_that_ask_for_more_than_vectors_are_refused(
    store: EpicVectorStore, mode: VectorStoreQueryMode
) -> None:
    query = VectorStoreQuery(vector(1), mode=mode, query_str="text")
    if mode in {VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR}:
        assert store.query(query).ids == []
    else:
        with pytest.raises(InputError, match=f"mode '{mode.value}'; there are 'default' and 'mmr'"):
            store.query(query)


def test_all_are_deleted_by_clear_alone(store: EpicVectorStore) -> None:
    # The simple store empties itself here.
    store.add([node(1)])
    for given in ({}, {"filters": MetadataFilters(filters=[])}):
        with pytest.raises(InputError, match=r"to delete all nodes use clear\(\)"):
            store.delete_nodes(**given)  # type: ignore[arg-type]
    assert len(store.client) == 1


def test_a_cleared_folder_holds_no_texts(store: EpicVectorStore) -> None:
    store.add([node(number, secret="swordfish") for number in range(3)])
    asked(store)
    store.clear()
    left = [path for path in Path(store.folder).rglob("*") if path.is_file()]
    assert not [path for path in left if b"swordfish" in path.read_bytes()]


async def test_concurrent_queries_on_one_store(store: EpicVectorStore) -> None:
    store.add([node(number) for number in range(30)])
    queries = [VectorStoreQuery(vector(number), similarity_top_k=3) for number in range(32)]
    found = await asyncio.gather(*(store.aquery(query) for query in queries))
    for query, one in zip(queries, found, strict=True):
        assert one.ids == store.query(query).ids
    assert [one.ids[0] for one in found[:30] if one.ids] == [f"n{n}" for n in range(30)]


def test_two_stores_write_one_folder_and_see_each_other(tmp_path: Path) -> None:
    stores = [EpicVectorStore(tmp_path / "index") for _ in range(2)]
    failures: list[BaseException] = []

    def write(place: int) -> None:
        try:
            for number in range(3):
                stores[place].add([node(10 * place + number), node(99, place)])
        except BaseException as error:  # noqa: BLE001 (told below)
            failures.append(error)

    threads = [threading.Thread(target=write, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert asked(stores[0]) == asked(stores[1])
    found = {key for key, _ in asked(stores[0])}
    assert found == {"n0", "n1", "n2", "n10", "n11", "n12", "n99"}
    assert verify_index(stores[0].folder).ok


def test_damaged_and_other_folders_are_refused(store: EpicVectorStore, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="holds something that is no index"):
        EpicVectorStore(tmp_path / "other")
    store.add([node(1)])
    vectors = next(Path(store.folder).rglob("vectors.npy"))
    vectors.write_bytes(vectors.read_bytes()[:-4])
    with pytest.raises(PassageIndexError, match=r"vectors\.npy"):
        EpicVectorStore(store.folder)
    (Path(store.folder) / "manifest.json").write_text("{}")
    with pytest.raises(PassageIndexError, match=r"manifest\.json"):
        EpicVectorStore(store.folder)
