"""The folder of a store: whose vectors may go into it, which may be known only with the first.

Knows nothing of nodes or queries.
"""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding

from epic_retrieval import Collection, EncoderInfo, InputError, PassageIndexError
from llama_index_epic.embeddings import EpicEmbedding
from llama_index_epic.nodes import EmbeddedPassage, handed_over, unit_vector

# An index must name somebody.
_UNKNOWN = "unknown"
# Batches and devices round differently; vectors of other models have nothing in common.
_SAME = 0.99


@dataclass(frozen=True)
class Embedder:
    """What is known of an embedding model; None is what is not.

    Args:
        model_name: For people.
        fingerprint: Changes with everything that changes the vector of a node.
        dimension: Width of its vectors.
        task: Of an EpicEmbedding, if the task is symmetric.
    """

    model_name: str | None = None
    fingerprint: str | None = None
    dimension: int | None = None
    task: str | None = None

    @classmethod
    def of(cls, embed_model: BaseEmbedding) -> Self:
        """EPIC models are known by what decides their vectors, others by class and name."""
        if isinstance(embed_model, EpicEmbedding):
            info = embed_model.encoder_info()
            return cls(info.name, info.fingerprint, info.dimension, info.task)
        if not isinstance(embed_model, BaseEmbedding):
            raise InputError(
                f"embed_model is of type {type(embed_model).__name__}; expected an EpicEmbedding,"
                " or another embedding model of LlamaIndex"
            )
        name = f"{embed_model.class_name()} {embed_model.model_name}"
        return cls(name, hashlib.blake2b(name.encode(), digest_size=16).hexdigest())

    def info(self, width: int | None) -> EncoderInfo | None:
        """The same for an index, whose vectors have this width; None as long as that is unknown."""
        if width is None:
            return None
        name, fingerprint = self.model_name or _UNKNOWN, self.fingerprint or _UNKNOWN
        return EncoderInfo(name, fingerprint, width, self.task)


class Folder:
    """An index, or where one is to be, and who embeds what is in it. Thread-safe.

    Args:
        path: The folder.
        embedder: Who embeds; without a fingerprint only widths are compared.
        embed_model: The same, live: with the first passages that are written it embeds one of them
            again, so that vectors of another model enter no index that names this one.

    Raises:
        PassageIndexError: It holds an index that is damaged, or of another embedder.
        InputError: It holds something else.
    """

    def __init__(
        self, path: str | Path, embedder: Embedder, embed_model: BaseEmbedding | None = None
    ) -> None:
        self._embedder = embedder
        # What embeds images besides may have embedded one in place of the text beside it.
        several = isinstance(embed_model, MultiModalEmbedding)
        self._doubted = None if several else embed_model
        self._known = threading.Lock()
        known = embedder.fingerprint is not None
        self._collection = Collection(path, embedder.info(embedder.dimension) if known else None)
        self.collection()

    def collection(self) -> Collection:
        """What is searched and changed."""
        with self._known:
            if self._collection.encoder is None and self._embedder.fingerprint is not None:
                manifest = self._collection.manifest
                if manifest is not None:
                    width = manifest.truncated_from or manifest.dimension
                    self._begin(width)
            return self._collection

    def write(self, passages: Sequence[EmbeddedPassage]) -> None:
        """Add passages, one or more, in place of those with their ids.

        Raises:
            InputError: A vector has another width than the others have.
            PassageIndexError: They are not of the embedder; or another process keeps writing, or
                writing failed.
        """
        manifest = self.collection().manifest
        if manifest is not None:
            width = manifest.truncated_from or manifest.dimension
        else:
            width = self._embedder.dimension or len(passages[0].vector)
        for passage in passages:
            if len(passage.vector) != width:
                raise InputError(
                    f"the embedding of the node {passage.id!r} has {len(passage.vector)}"
                    f" dimensions; expected {width}, as all in {self._collection.folder} must have"
                )
        self._compare(passages[0])
        if manifest is None:
            with self._known:
                self._begin(width)
        self._collection.update(passages, handed_over)

    def _compare(self, passage: EmbeddedPassage) -> None:
        """Once, a vector that was given with one that the model gives now."""
        if (model := self._doubted) is None:
            return
        whose = f"{self._embedder.model_name}, which embeds the node {passage.id!r}"
        ours = unit_vector(model.get_text_embedding(str(passage.content)), whose)
        if ours.shape != passage.vector.shape:
            told = f"that model's has {len(ours)} dimensions, this one {len(passage.vector)}"
        elif (cosine := float(ours @ passage.vector)) < _SAME:
            told = f"its cosine with that model's is {cosine:.2f}"
        else:
            self._doubted = None
            return
        raise PassageIndexError(
            f"the embedding of the node {passage.id!r} is not what {self._embedder.model_name}"
            f" gives its text: {told}. Embed nodes with the model that the store was given as"
            " embed_model, or give the store the one that embeds them"
        )

    def _begin(self, width: int) -> None:
        self._collection = Collection(self._collection.folder, self._embedder.info(width))
