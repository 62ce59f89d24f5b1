"""LlamaIndex's nodes as passages of an index, and back, with nothing lost on the way.

Knows nothing of folders or queries.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MetadataMode,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from numpy.typing import NDArray

from epic_retrieval import InputError, Passage
from llama_index_epic.filters import EMPTY, Where

Vectors = NDArray[np.float32]

# Beside the node's own metadata, which filters see as they are:
CONTENT = "_node_content"  # the rest of the node, as JSON
SOURCE = "_node_source"  # the document that it was cut from
VECTOR = "_node_vector"  # a digest, so that a node with another vector is another passage
# Names under which LlamaIndex's stores let filters ask for the source.
_ALIASES = ("ref_doc_id", "doc_id", "document_id")
_OURS = frozenset((CONTENT, SOURCE, VECTOR, EMPTY, *_ALIASES))

_CLASSES: Mapping[str, type[BaseNode]] = {
    kind.class_name(): kind
    for kind in (TextNode, ImageNode, IndexNode, Node, Document, ImageDocument)
}


class _Content(str):
    """What was embedded, and its vector: an index asks for vectors of texts."""

    __slots__ = ("vector",)
    vector: Vectors


@dataclass(frozen=True)
class EmbeddedPassage(Passage):
    """A passage with the vector that it came with, of length 1."""

    vector: Vectors = field(kw_only=True, repr=False, compare=False)

    @property
    def content(self) -> str:
        """What was embedded."""
        content = _Content(super().content)
        content.vector = self.vector
        return content


def unit_vector(embedding: Sequence[float], whose: str) -> Vectors:
    """An embedding at length 1, (dimension,) float32; as it is if it has that.

    Raises:
        InputError: It is no list of numbers, or zero, or not finite.
    """
    try:
        vector = np.asarray(embedding, np.float32)
    except (ValueError, TypeError) as error:
        raise InputError(f"the embedding of {whose} is no list of numbers: {error}") from error
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if vector.ndim != 1 or not np.isfinite(norm) or norm == 0:
        raise InputError(
            f"the embedding of {whose} has the shape {vector.shape} and the length {norm}; expected"
            " one vector of finite numbers that is not zero"
        )
    # Vectors of length 1 are rounded: they keep their bits.
    return vector if abs(norm - 1) < 1e-6 else (vector / norm).astype(np.float32)


def handed_over(texts: Sequence[str]) -> Vectors:
    """The vectors of embedded passages, (n, dimension): what an index calls in order to encode."""
    return np.stack([text.vector for text in texts if isinstance(text, _Content)])


def to_passage(node: BaseNode, vector: Vectors) -> EmbeddedPassage:
    """A node as a passage whose content is what LlamaIndex embeds: metadata, then text.

    Args:
        node: Of one of LlamaIndex's classes.
        vector: (dimension,), of length 1.

    Raises:
        InputError: It has neither a text nor metadata to embed, or holds what cannot be stored.
    """
    text = node.get_content(metadata_mode=MetadataMode.NONE)
    title, body = _embedded(node, text)
    try:
        # Pydantic would turn such numbers into null without a word.
        json.dumps(node.metadata, allow_nan=False, default=str)
        rest = node.model_dump(mode="json", exclude={"embedding"})
        metadata = rest["metadata"]
        if _OURS.isdisjoint(metadata):
            del rest["metadata"]
        if body == text:
            _take_text(rest)
        ours: dict[str, Any] = {CONTENT: json.dumps(rest)}
        if node.ref_doc_id is not None:
            ours |= dict.fromkeys((SOURCE, *_ALIASES), node.ref_doc_id)
        if empty := [key for key, value in metadata.items() if value == []]:
            ours[EMPTY] = empty
        ours[VECTOR] = hashlib.blake2b(vector.tobytes(), digest_size=16).hexdigest()
        return EmbeddedPassage(
            id=node.node_id, text=body, title=title, metadata=metadata | ours, vector=vector
        )
    except (ValueError, TypeError) as error:
        # Pydantic's, for metadata that are no JSON, say, or of the passage.
        raise InputError(f"the node {node.node_id!r} cannot be stored: {error}") from error


def to_node(passage: Passage) -> BaseNode:
    """The node that a passage was made of, without its embedding.

    A passage that was none, as of an index that was built on the command line, is a TextNode with
    its id, its title among the metadata, and itself as the document that it was cut from.
    """
    metadata: dict[str, Any] = dict(passage.metadata)
    content = metadata.get(CONTENT)
    if not isinstance(content, str):
        if passage.title:
            metadata = {"title": passage.title} | metadata
        source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=passage.id)}
        return TextNode(id_=passage.id, text=passage.text, metadata=metadata, relationships=source)
    rest: dict[str, Any] = json.loads(content)
    if "metadata" not in rest:
        rest["metadata"] = {key: metadata[key] for key in metadata if key not in _OURS}
    kind = _CLASSES.get(rest["class_name"], TextNode)
    if issubclass(kind, TextNode):
        rest.setdefault("text", passage.text)
    elif rest["text_resource"] is not None:
        rest["text_resource"].setdefault("text", passage.text)
    return kind.from_dict(rest)


def cut_from(documents: Sequence[str]) -> Where:
    """The condition for nodes that were cut from these documents; a passage alone is its own."""
    itself = {"_id": {"$in": list(documents)}, CONTENT: {"$exists": False}}
    return {"$or": [{SOURCE: {"$in": list(documents)}}, itself]}


def _embedded(node: BaseNode, text: str) -> tuple[str, str]:
    """What LlamaIndex embeds, as the title and text of a passage; the text its own where it can."""
    whole = node.get_content(metadata_mode=MetadataMode.EMBED)
    if whole == text:
        return "", text
    if text.strip() and whole.endswith(f"\n{text}"):
        return whole[: -len(text) - 1], text
    return "", whole


def _take_text(rest: dict[str, Any]) -> None:
    """Leave the text out, which the passage holds; a Document has it twice."""
    rest.pop("text", None)
    if rest.get("text_resource") is not None:
        del rest["text_resource"]["text"]
