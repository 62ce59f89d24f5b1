"""Filters of the LlamaIndex store: what LlamaIndex's own predicate lets pass, and no other node."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, VectorStoreQuery
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from epic_retrieval import InputError
from llama_index_epic import EpicVectorStore

LONG = "long " * 100
# Of each key the values are of one kind, as LlamaIndex's operators say.
VALUES: dict[str, list[Any]] = {
    "number": [-3, 0, 1, 1.0, 2.5, 2**70, True, False, None],
    "text": ["", "a", "B", "Zürich", "a b", LONG, LONG + "x", None],
    "list": [[], ["a"], ["a", "Zürich"], [1, 2], [0], None],
}
OF_ONE = [FilterOperator.EQ, FilterOperator.NE]
ORDERS = [FilterOperator.GT, FilterOperator.GTE, FilterOperator.LT, FilterOperator.LTE]
OF_SEVERAL = [FilterOperator.IN, FilterOperator.NIN]
OF_LISTS = [FilterOperator.ANY, FilterOperator.ALL]

NODES = [
    TextNode(
        id_=str(place),
        text=f"node {place}",
        embedding=np.eye(1, 4, place % 4).ravel().tolist(),
        metadata={
            key: VALUES[key][(place * step) % len(VALUES[key])]
            for key, step in (("number", 1), ("text", 3), ("list", 5))
            if (place + step) % 7
        },
    )
    for place in range(60)
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpicVectorStore:
    made = EpicVectorStore(tmp_path_factory.mktemp("filters") / "index")
    made.add(NODES)
    return made


def passing(store: EpicVectorStore, filters: MetadataFilters) -> set[str]:
    query = VectorStoreQuery([1.0, 0, 0, 0], similarity_top_k=len(NODES), filters=filters)
    found = set(store.query(query).ids or [])
    assert {node.node_id for node in store.get_nodes(filters=filters)} == found
    return found


def expected(filters: MetadataFilters) -> set[str]:
    metadata = {node.node_id: node.metadata for node in NODES}
    passes = build_metadata_filter_fn(lambda key: metadata[key], filters)
    return {key for key in metadata if passes(key)}


def cases() -> list[MetadataFilter]:
    found = []
    for key in ("number", "text"):
        values = [one for one in VALUES[key] if one is not None and not isinstance(one, bool)]
        for value in values:
            found += [MetadataFilter(key=key, value=value, operator=sign) for sign in OF_ONE]
            if value not in (LONG, LONG + "x"):
                found += [_ordered(key, value, sign) for sign in ORDERS]
        several = ["a", "B", LONG] if key == "text" else [1, 0, 7]
        found += [MetadataFilter(key=key, value=several, operator=sign) for sign in OF_SEVERAL]
        found += [MetadataFilter(key=key, value=[], operator=sign) for sign in OF_SEVERAL]
    for items in (["a"], ["a", "Zürich"], [1, 2], ["b"], []):
        found += [MetadataFilter(key="list", value=items, operator=sign) for sign in OF_LISTS]
    for item in ("a", 1, 0, "b"):
        found.append(MetadataFilter(key="list", value=item, operator=FilterOperator.CONTAINS))
    for key in ("number", "text", "list", "absent"):
        found.append(MetadataFilter(key=key, value=None, operator=FilterOperator.IS_EMPTY))
        found.append(MetadataFilter(key=key, value="x", operator=FilterOperator.NE))
    return found


def _ordered(key: str, value: Any, sign: FilterOperator) -> MetadataFilter:  # noqa: ANN401
    return MetadataFilter(key=key, value=value, operator=sign)


@pytest.mark.parametrize("sign", [*FilterOperator])
def test_each_operator_finds_what_llama_index_lets_pass(
    store: EpicVectorStore, sign: FilterOperator
) -> None:
    given_filters = [one for one in cases() if one.operator == sign]
    for one in given_filters:
        filters = MetadataFilters(filters=[one])
        assert passing(store, filters) == expected(filters), one
    assert bool(given_filters) == (not sign.value.startswith("text_match"))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(cases()), max_size=4), st.sampled_from([*FilterCondition, None]))
def test_conditions_combine_as_llama_index_does(
    store: EpicVectorStore, parts: list[MetadataFilter], condition: FilterCondition | None
) -> None:
    filters = MetadataFilters(filters=list(parts), condition=condition)
    assert passing(store, filters) == expected(filters)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.sampled_from(cases()), min_size=1, max_size=3), min_size=1, max_size=3))
def test_filters_may_be_nested(store: EpicVectorStore, groups: list[list[MetadataFilter]]) -> None:
    inner = [MetadataFilters(filters=list(one), condition=FilterCondition.OR) for one in groups]
    everything = {node.node_id for node in NODES}
    found = passing(store, MetadataFilters(filters=list(inner)))
    assert found == everything.intersection(*map(expected, inner))
    found = passing(store, MetadataFilters(filters=list(inner), condition=FilterCondition.NOT))
    assert found == everything.difference(*map(expected, inner))


def test_a_list_passes_if_one_of_its_items_does(store: EpicVectorStore) -> None:
    found = passing(store, MetadataFilters(filters=[MetadataFilter(key="list", value="a")]))
    assert found == {node.node_id for node in NODES if "a" in (node.metadata.get("list") or [])}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"value": "a", "operator": FilterOperator.TEXT_MATCH}, "'text_match', but an index finds"),
    ({"value": "a", "operator": FilterOperator.TEXT_MATCH_INSENSITIVE}, "not parts of texts"),
    ({"value": None}, "to find nodes without a value use 'is_empty'"),
    ({"value": ["a"]}, "expected one text or number"),
    ({"value": "a", "operator": FilterOperator.IN}, "expected a list of texts or numbers"),
    ({"value": 1, "operator": FilterOperator.ALL}, "expected a list of texts or numbers"),
    ({"value": LONG, "operator": FilterOperator.GT}, "a text of at most 256 bytes"),
    ({"value": float("nan")}, "a finite number"),
    ({"key": "_id", "value": "1"}, "use node_ids"),
    ({"key": "$x", "value": "1"}, "no such operator"),
]


@pytest.mark.parametrize(("one", "message"), REFUSED)
def test_what_the_index_cannot_tell_is_refused(
    store: EpicVectorStore, tmp_path: Path, one: dict[str, Any], message: str
) -> None:
    filters = MetadataFilters(filters=[MetadataFilter(**{"key": "text"} | one)])
    empty = EpicVectorStore(tmp_path / "empty")
    for target in (store, empty):
        with pytest.raises(InputError, match=message):
            target.query(VectorStoreQuery([1.0, 0, 0, 0], filters=filters))
    with pytest.raises(InputError, match=message):
        store.get_nodes(filters=filters)
    with pytest.raises(InputError, match=message):
        store.delete_nodes(filters=filters)
    assert len(store.client) == len(NODES)
