import dataclasses
from types import MappingProxyType
from typing import Any

import pytest

from epic_retrieval.errors import InputError
from epic_retrieval.index import Passage


@pytest.mark.parametrize(
    ("passage", "content"),
    [
        (Passage("1", " Text.\n", " A title "), " A title \n Text.\n"),
        (Passage("1", "\tText\u2028of\r\nlines "), "\tText\u2028of\r\nlines "),
        (Passage("1", "", "Title alone"), "Title alone"),
    ],
)
def test_content_alters_nothing(passage: Passage, content: str) -> None:
    assert passage.content == content


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": " "}, "The id is blank"),
        ({"id": 3}, "id is of type int"),
        ({"text": None}, "text is of type NoneType"),
        ({"text": " \n"}, '"p" has neither text nor title'),
        ({"text": "a\0b"}, "text holds a NUL character at position 1"),
        ({"title": "ab\ud800"}, r"title holds half a surrogate pair at position 2 \(U\+D800\)"),
        ({"metadata": ["a"]}, "metadata is a list"),
        ({"metadata": {"a": {1: 2}}}, r"metadata\['a'\] has the key 1"),
        ({"metadata": {"a": [float("nan")]}}, r"metadata\['a'\]\[0\] is nan"),
        ({"metadata": {"a": b"x"}}, r"metadata\['a'\] is of type bytes"),
    ],
)
def test_bad_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Passage(**{"id": "p", "text": "Text", **fields})


def test_is_a_value() -> None:
    given = {"a": 1}
    passage = Passage("1", "Text", metadata=given)
    given["a"] = 2
    assert passage.metadata == {"a": 1}
    assert passage == Passage("1", "Text", metadata=MappingProxyType({"a": 1}))
    assert len({passage, Passage("1", "Text", metadata={"a": 1})}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        passage.text = "Other"  # type: ignore[misc]
