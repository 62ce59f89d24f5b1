"""LlamaIndex's metadata filters as the conditions of an index.

Knows nothing of nodes or folders.
"""

import operator
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from epic_retrieval import InputError

# Metadata that are empty lists leave no value to ask for, so a node notes which they are.
EMPTY = "_node_empty"

Where: TypeAlias = dict[str, Any]

_ORDERS: dict[FilterOperator, tuple[str, Callable[[Any, Any], bool]]] = {
    FilterOperator.GT: ("$gt", operator.gt),
    FilterOperator.GTE: ("$gte", operator.ge),
    FilterOperator.LT: ("$lt", operator.lt),
    FilterOperator.LTE: ("$lte", operator.le),
}


def where_of(filters: MetadataFilters) -> Where:
    """The condition that holds for the nodes which pass these filters; {} where all do.

    Nested filters may have conditions of their own; one without filters lets everything pass.
    Values are compared within one type: numbers, of which true is 1 and false is 0, or texts. A
    list passes if one of its items does.

    Raises:
        InputError: An operator or value that the index cannot tell exactly.
    """
    parts = [
        where_of(part) if isinstance(part, MetadataFilters) else _one(part)
        for part in filters.filters
    ]
    if not parts:
        return {}
    match filters.condition:
        case FilterCondition.OR:
            return {"$or": parts}
        case FilterCondition.NOT:  # none of them holds
            return {"$not": {"$or": parts}}
        case _:
            return {"$and": parts}


def chosen(node_ids: list[str] | None, filters: MetadataFilters | None) -> Where:
    """The condition for nodes with one of these ids that pass these filters; {} lets all pass."""
    some: Where = {} if node_ids is None else {"_id": {"$in": node_ids}}
    return both(some, {} if filters is None else where_of(filters))


def both(one: Where, other: Where) -> Where:
    """The condition that both hold."""
    return {"$and": [one, other]} if one and other else one or other


def _one(given: MetadataFilter) -> Where:
    key, sign = given.key, given.operator
    if key == "_id":
        raise InputError(
            "a filter asks for the key '_id', which is the node's own id in an index; use node_ids"
            " for that, or give the metadata another key"
        )
    if sign in _ORDERS:
        return _compares(key, sign, _scalar(given))
    match sign:
        case FilterOperator.EQ | FilterOperator.CONTAINS:
            condition: Where = {key: {"$in": _equals([_scalar(given)])}}
        case FilterOperator.NE:
            condition = {key: {"$nin": _equals([_scalar(given)])}}
        case FilterOperator.IN | FilterOperator.ANY:
            condition = {key: {"$in": _equals(_several(given))}}
        case FilterOperator.NIN:
            condition = {key: {"$nin": _equals(_several(given))}}
        case FilterOperator.ALL:
            every = [{key: {"$in": _equals([value])}} for value in _several(given)]
            condition = {"$and": [{key: {"$ne": None}}, *every]}
        case FilterOperator.IS_EMPTY:
            condition = {"$or": [{key: {"$in": [None, ""]}}, {EMPTY: key}]}
        case _:
            raise InputError(
                f"the filter on {key!r} has the operator {sign.value!r}, but an index finds values,"
                " not parts of texts; use ==, in or contains, or filter the nodes that were found"
                " with a node postprocessor"
            )
    return condition


def _compares(key: str, sign: FilterOperator, bound: float | str) -> Where:
    name, holds = _ORDERS[sign]
    condition: Where = {key: {name: bound}}
    if isinstance(bound, str):
        return condition
    flags = [flag for flag in (False, True) if holds(flag, bound)]
    return {"$or": [condition, {key: {"$in": flags}}]} if flags else condition


def _equals(values: Iterable[float | str]) -> list[bool | float | str]:
    """The same, and the truth values that Python takes for equal; a filter cannot name them."""
    found: list[bool | float | str] = []
    for value in values:
        found.append(value)
        if value in (0, 1):
            found.append(bool(value))
    return found


def _scalar(given: MetadataFilter) -> float | str:
    value = given.value
    if value is None or isinstance(value, list):
        raise _wrong(given, "one text or number; to find nodes without a value use 'is_empty'")
    return value


def _several(given: MetadataFilter) -> list[float | str]:
    value = given.value
    if not isinstance(value, list):
        raise _wrong(given, "a list of texts or numbers")
    return list(value)


def _wrong(given: MetadataFilter, expected: str) -> InputError:
    return InputError(
        f"the filter on {given.key!r} with the operator {given.operator.value!r} has the value"
        f" {given.value!r}; expected {expected}"
    )
