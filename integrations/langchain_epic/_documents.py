"""LangChain's documents as passages of an index, and back."""

import json
import reprlib
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

from langchain_core.documents import Document

from epic_retrieval import InputError, Passage

TITLE = "title"

# What llama_index_epic notes of a node among the metadata of its passage; the first is JSON, which
# has the node's own metadata where they have one of these names.
_NODE = "_node_content"
_OF_NODES = frozenset(
    (_NODE, "_node_source", "_node_vector", "_node_empty", "ref_doc_id", "doc_id", "document_id")
)


def passages_of(
    texts: Iterable[str],
    metadatas: Sequence[dict[str, Any] | None] | None,
    ids: Sequence[str | None] | None,
    there: Mapping[str, Passage],
) -> list[Passage]:
    """Passages of these texts, in order; where there is no id, they get one.

    Args:
        texts: Theirs.
        metadatas: One for each text.
        ids: One for each text.
        there: Those that have one of these ids already. What `document_of` makes of one becomes
            the same passage again; and where metadata repeat its title, it remains the title.

    Raises:
        InputError: There are more or fewer metadatas or ids than texts; or a text is blank; or
            something is no text, or metadata that JSON cannot hold.
    """
    listed = as_list(texts, "texts")
    return [
        _passage(number, text, metadata, name, there)
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
    """The document of a passage; a title, which files of passages may have, goes to metadata.

    Of a passage that was a node of LlamaIndex, text and metadata are the node's.
    """
    metadata: dict[str, Any] = dict(passage.metadata)
    if isinstance(metadata.get(_NODE), str):
        own = json.loads(metadata[_NODE]).get("metadata")
        kept = {key: metadata[key] for key in metadata if key not in _OF_NODES}
        return Document(passage.text, id=passage.id, metadata=kept if own is None else own)
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


def _passage(
    number: int,
    text: str,
    metadata: dict[str, Any] | None,
    name: str | None,
    there: Mapping[str, Passage],
) -> Passage:
    given: Any = {} if metadata is None else metadata
    former = there.get(name) if isinstance(name, str) else None
    title = ""
    if former is not None and isinstance(given, dict):
        before = document_of(former)
        if (before.page_content, before.metadata) == (text, given):
            return former
        if former.title and former.title == given.get(TITLE) == before.metadata.get(TITLE):
            title = former.title
            if TITLE not in former.metadata:
                given = {key: given[key] for key in given if key != TITLE}
    try:
        return Passage(str(uuid.uuid4()) if name is None else name, text, title, given)
    except InputError as error:
        raise InputError(f"document {number} (counted from 1): {error}") from error
