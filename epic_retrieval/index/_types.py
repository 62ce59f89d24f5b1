"""Texts of a table that stand for numbers or truth values, converted column by column.

CSV and TSV hold texts only, and a filter compares a number with numbers. Knows nothing of rows.
"""

import math
import re
from collections.abc import Mapping

from epic_retrieval.errors import InputError
from epic_retrieval.index.passage import JSON

TYPES = ("int", "float", "bool", "text")

# What a passage is made of is text.
_FIXED = ("_id", "id", "text", "title")
_INT = re.compile(r"[+-]?[0-9]+")
_TRUTH = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


def check_types(types: Mapping[str, str]) -> None:
    """Make sure that all are types, of columns that may have one.

    Raises:
        InputError: They are not.
    """
    for name, kind in types.items():
        if kind not in TYPES:
            raise InputError(
                f'The type of the column "{name}" is {kind!r}: expected one of {", ".join(TYPES)}.'
            )
        if name in _FIXED:
            raise InputError(
                f'The column "{name}" cannot have a type, since it stays text: give types of '
                "metadata only."
            )


def converted(cells: Mapping[str, JSON], types: Mapping[str, str]) -> dict[str, JSON]:
    """The same cells with texts as their types say; a blank text becomes None.

    Raises:
        InputError: A text does not stand for a value of its type.
    """
    found = dict(cells)
    for name in types.keys() & cells.keys():
        value = cells[name]
        if isinstance(value, str) and types[name] != "text":
            found[name] = _value(name, value.strip(), types[name])
    return found


def _value(name: str, text: str, kind: str) -> JSON:
    if not text:
        return None
    if kind == "bool" and text.lower() in _TRUTH:
        return _TRUTH[text.lower()]
    if kind == "int" and _INT.fullmatch(text):
        return int(text)
    if kind == "float":
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    expected = {"bool": "true or false", "int": "a whole number", "float": "a number"}[kind]
    raise InputError(
        f'"{name}" is {text!r}: expected {expected}, as its type {kind} says. Correct it, or give '
        "the column another type."
    )
