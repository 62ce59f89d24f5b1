"""Conditions on metadata, written as MongoDB writes them: parsed, checked, evaluated.

    {"lang": "en", "year": {"$gte": 2000}, "$or": [{"topic": "law"}, {"authors.name": "Ng"}]}

Knows nothing of SQLite, nor of where metadata lies.
"""

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.errors import InputError
from epic_retrieval.index._fields import LONGEST_TEXT, NULL, TEXT, Form, Mask, form, is_cut

ID = "_id"

_SIGNS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_FIELD = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$not")
_LOGIC = ("$and", "$or", "$not")
_DEEPEST = 100


@dataclass(frozen=True)
class Every:
    """All parts hold; without parts always."""

    parts: tuple["Condition", ...]


@dataclass(frozen=True)
class Some:
    """At least one part holds; without parts never."""

    parts: tuple["Condition", ...]


@dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: "Condition"


@dataclass(frozen=True)
class Equals:
    """The key has one of these values; null also stands for a key that is missing."""

    key: str
    values: tuple[Form, ...]


@dataclass(frozen=True)
class Compares:
    """The key has a value of the same type that is `sign` (<, <=, >, >=) this one."""

    key: str
    sign: str
    value: Form


@dataclass(frozen=True)
class Exists:
    """The key is there, whatever its value."""

    key: str


# The keys and list positions that lead to what is wrong.
Spot: TypeAlias = tuple[object, ...]
Condition: TypeAlias = Every | Some | Not | Equals | Compares | Exists


class Fields(Protocol):
    """Metadata of some rows. Each answer is a mask, (rows,), which the caller may change."""

    rows: int

    def equal(self, key: str, values: Sequence[Form]) -> Mask:
        """The rows that have one of these values under the key."""

    def compared(self, key: str, sign: str, value: Form) -> Mask:
        """The rows with a value of the same type under the key that is `sign` this one."""

    def present(self, key: str) -> Mask:
        """The rows that have the key."""


def parse(condition: object) -> Condition:
    """A condition as a tree.

    A mapping from keys of the metadata to what they must be; all must hold, and {} always does.

    - {"lang": "en"} is short for {"lang": {"$eq": "en"}}. Other operators are $ne, $gt, $gte, $lt,
      $lte, $in, $nin (lists of values), $exists (true or false) and $not ({"$not": {"$gt": 5}}).
      Several for one key must all hold.
    - {"$and": [...]}, {"$or": [...]} and {"$not": {...}} combine whole conditions.
    - "a.b" is the key "b" of the object under "a", also of objects in a list. "_id" is the
      passage's id.
    - A list matches if any of its items does. $ne, $nin and $not match what $eq, $in or the
      operators within do not: also passages without the key.
    - Values are equal or compared within one type only: numbers (1 equals 1.0), texts (by code
      point), true and false, null. As in MongoDB, a key that is missing counts as null.

    Raises:
        InputError: It is not as described; the message names the spot.
    """
    return _condition(condition, ())


def demands_nothing(condition: Condition) -> bool:
    """Whether every passage matches for want of a demand, as with {} or {"$and": [{}]}."""
    return isinstance(condition, Every) and all(map(demands_nothing, condition.parts))


def mask(condition: Condition, fields: Fields) -> Mask:
    """For each row, (rows,), whether the condition holds."""
    match condition:
        case Every(parts):
            return _combined(np.logical_and, parts, fields, empty=True)
        case Some(parts):
            return _combined(np.logical_or, parts, fields, empty=False)
        case Not(part):
            return ~mask(part, fields)
        case Equals(key, values):
            found = fields.equal(key, values)
            if any(kind == NULL for kind, _ in values):
                found |= ~fields.present(key)
            return found
        case Compares(key, sign, value):
            return fields.compared(key, sign, value)
        case Exists(key):
            return fields.present(key)


def evaluate(condition: Condition, fields: Fields) -> NDArray[np.int64]:
    """The rows for which the condition holds, in order."""
    return np.flatnonzero(mask(condition, fields))


def _combined(
    combine: np.ufunc, parts: Iterable[Condition], fields: Fields, *, empty: bool
) -> Mask:
    found = np.full(fields.rows, empty)
    for part in parts:
        combine(found, mask(part, fields), out=found)
    return found


def _condition(given: object, spot: Spot) -> Condition:
    _check_depth(spot)
    if not isinstance(given, Mapping):
        raise _wrong(spot, given, 'a mapping from keys to values, such as {"year": {"$gte": 2000}}')
    parts = [part for key in given for part in _entry(key, given[key], spot)]
    return parts[0] if len(parts) == 1 else Every(tuple(parts))


def _entry(key: object, operand: object, spot: Spot) -> list[Condition]:
    """What one entry of a condition demands."""
    here = (*spot, key)
    if not isinstance(key, str):
        raise _wrong(spot, key, "keys that are text")
    if key in ("$and", "$or"):
        if isinstance(operand, str) or not isinstance(operand, Sequence) or not operand:
            raise _wrong(here, operand, "a list of at least one condition")
        parts = tuple(_condition(part, (*here, n)) for n, part in enumerate(operand))
        return [Every(parts) if key == "$and" else Some(parts)]
    if key == "$not":
        return [Not(_condition(operand, here))]
    if key.startswith("$"):
        raise _unknown(here, "between conditions", _LOGIC)
    return _field(key, operand, here)


def _field(key: str, given: object, spot: Spot) -> list[Condition]:
    """What must hold of one key."""
    _check_depth(spot)
    if not isinstance(given, Mapping):
        return [Equals(key, (_form(key, given, spot),))]
    if not given:
        raise _wrong(spot, given, 'a value, or operators such as {"$gte": 2000}')
    return [_operator(key, name, given[name], (*spot, name)) for name in given]


def _operator(key: str, name: object, operand: object, spot: Spot) -> Condition:
    if name in ("$eq", "$ne"):
        found: Condition = Equals(key, (_form(key, operand, spot),))
    elif name in ("$in", "$nin"):
        if isinstance(operand, str | bytes | Mapping) or not isinstance(operand, Iterable):
            raise _wrong(spot, operand, "a list of values")
        forms = [_form(key, value, (*spot, n)) for n, value in enumerate(operand)]
        found = Equals(key, tuple(dict.fromkeys(forms)))
    elif name == "$exists":
        if not isinstance(operand, bool):
            raise _wrong(spot, operand, "true or false")
        found = Exists(key) if operand else Not(Exists(key))
    elif name == "$not":
        if not isinstance(operand, Mapping):
            raise _wrong(spot, operand, 'operators, such as {"$gte": 2000}; for a value use $ne')
        found = Not(Every(tuple(_field(key, operand, spot))))
    elif name in _SIGNS:
        found = Compares(key, _SIGNS[str(name)], _bound(key, operand, spot))
    elif isinstance(name, str) and not name.startswith("$"):
        raise _wrong(spot[:-1], {name: operand}, f'operators; a nested key is "{key}.{name}"')
    else:
        raise _unknown(spot, "on a key", _FIELD)
    return Not(found) if name in ("$ne", "$nin") else found


def _form(key: str, value: object, spot: Spot) -> Form:
    if isinstance(value, list | tuple | set | frozenset):
        raise _wrong(spot, value, "one value; for any of several use $in")
    if not (value is None or isinstance(value, bool | int | float | str)):
        raise _wrong(spot, value, "text, a number, true, false or null")
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(spot, value, "a finite number")
    return form(value) if key != ID else (TEXT, _id(value, spot))


def _bound(key: str, value: object, spot: Spot) -> Form:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _wrong(spot, value, "a number or text; others have no order")
    if key != ID and isinstance(value, str) and is_cut(value):
        # Only the beginning of such texts is stored.
        raise _wrong(spot, value, f"a text of at most {LONGEST_TEXT} bytes")
    return _form(key, value, spot)


def _id(value: object, spot: Spot) -> bytes:
    """An id is compared as it is, however long."""
    if not isinstance(value, str):
        raise _wrong(spot, value, "text, as ids are")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise _wrong(spot, value, "text without half surrogate pairs, as ids are") from error


def _check_depth(spot: Spot) -> None:
    if len(spot) > _DEEPEST:
        raise InputError(f"where is nested deeper than {_DEEPEST} levels: write it flatter.")


def _wrong(spot: Spot, given: object, expected: str) -> InputError:
    try:
        shown = reprlib.repr(given)
    except ValueError:
        # A number of thousands of digits.
        shown = "too long to show"
    return InputError(f"{_shown(spot)} is {shown}: expected {expected}.")


def _unknown(spot: Spot, place: str, known: Iterable[str]) -> InputError:
    return InputError(
        f"{_shown(spot)}: there is no such operator {place}; there are {', '.join(known)}."
    )


def _shown(spot: Spot) -> str:
    return "where" + "".join(f"[{reprlib.repr(step)}]" for step in spot)
