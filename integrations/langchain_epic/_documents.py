"""LangChain's documents as passages of an index, and back."""

import reprlib
import uuid
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

from langchain_core.documents import Document

from epic_retrieval import InputError, Passage

TITLE = "title"


def passages_of(
    texts: Iterable[str],
    metadatas: Sequence[dict[str, Any] | None] | None,
    ids: Sequence[str | None] | None,
) -> list[Passage]:
    """Passages of these texts, in order; where there is no id, they get one.

    Raises:
        InputError: There are more or fewer metadatas or ids than texts; or a text is blank; or
            something is no text, or metadata that JSON cannot hold.
    """
    listed = as_list(texts, "texts")
    return [
        _passage(number, text, metadata, name)
        for number, (text, metadata, name) in enumerate(
            zip(
                listed,
                _for_each(metadatas, len(listed), "metadatas"),
                _for_each(ids, len(listed), "ids"),
                strict=True,
            ),
            start=1,
        )
    ]


def document_of(passage: Passage) -> Document:
    """The document of a passage; a title, which files of passages may have, goes to metadata."""
    metadata = dict(passage.metadata)
    if passage.title:
        metadata.setdefault(TITLE, passage.title)
    return Document(passage.text, id=passage.id, metadata=metadata)


def as_list(given: object, name: str) -> list[Any]:
    """Whatever may be iterated, but a text.

    Raises:
        InputError: It is something else.
    """
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise InputError(f"{name} is {reprlib.repr(given)}; expected a list")
    return list(given)


def _for_each(given: object, count: int, name: str) -> Iterator[Any]:
    if given is None:
        return repeat(None, count)
    listed = as_list(given, name)
    if len(listed) != count:
        raise InputError(f"got {len(listed)} {name} for {count} texts; expected one for each")
    return iter(listed)


def _passage(number: int, text: str, metadata: dict[str, Any] | None, name: str | None) -> Passage:
    try:
        return Passage(
            str(uuid.uuid4()) if name is None else name,
            text,
            metadata={} if metadata is None else metadata,
        )
    except InputError as error:
        raise InputError(f"document {number} (counted from 1): {error}") from error
