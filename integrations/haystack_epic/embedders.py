"""`EpicTextEmbedder` and `EpicDocumentEmbedder`: a task-aware encoder as Haystack components.

Knows Haystack's interface and the public names of epic_retrieval; neither prompts nor models.
"""

import asyncio
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from epic_retrieval import InputError, MissingExtraError, Task, as_task, shared_encoder

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.utils import ComponentDevice
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f"haystack_epic needs haystack-ai, but {error.name} is not installed; "
        "run: pip install 'epic-retrieval[haystack]'"
    ) from error

if TYPE_CHECKING:
    from epic_retrieval import DemonstrationLike, EpicEncoder

Mode = Literal["epic", "text", "none"]
_SETTINGS = ("model", "task", "mode", "device", "dtype")


class _Embedder:
    """What both components have: settings, a model that is loaded by `warm_up`, serialisation."""

    _settings: ClassVar[tuple[str, ...]] = _SETTINGS

    def __init__(
        self,
        model: str | Path | None = None,
        task: Task | str | Mapping[str, object] | None = None,
        *,
        instruction: str | None = None,
        demonstrations: "Iterable[DemonstrationLike] | None" = None,
        mode: Mode | None = None,
        device: ComponentDevice | str | None = None,
        dtype: str | None = None,
    ) -> None:
        self.task = as_task(task, instruction=instruction, demonstrations=demonstrations)
        # The variable is read once, so that a saved pipeline names the model it ran with.
        named = model if model is not None else os.environ.get("EPIC_MODEL") or None
        self.model = None if named is None else str(named)
        self.mode, self.device, self.dtype = mode, device, dtype
        self._encoder: EpicEncoder | None = None

    def warm_up(self) -> None:
        """Loads the model, unless another component holds it, and prepares the task's prompt.

        Raises:
            InputError: the task or mode cannot be used with this model.
            CheckpointError: the model cannot be loaded.
        """
        self._ready()

    def _ready(self) -> "EpicEncoder":
        if self._encoder is None:
            device = self.device
            where = device.to_torch_str() if isinstance(device, ComponentDevice) else device
            encoder = shared_encoder(self.model, where, self.dtype)
            encoder.prepare(self.task, self.mode)
            self._encoder = encoder
        return self._encoder

    def __getstate__(self) -> dict[str, Any]:
        # Copies and other processes find the model by its name; locks are not copied or sent.
        return vars(self) | {"_encoder": None}

    def to_dict(self) -> dict[str, Any]:
        """Settings without weights; the task with its demonstrations."""
        return default_to_dict(self, **{name: getattr(self, name) for name in self._settings})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The component again; its model is loaded by `warm_up`."""
        return default_from_dict(cls, data)


@component
class EpicTextEmbedder(_Embedder):
    """Embeds a query behind a task's instruction and demonstrations.

    The task's prompt is computed once; each query then pays for its own tokens only. Vectors are
    L2-normalised. There is no prefix or suffix: the text reaches the model unchanged, cut at the
    checkpoint's `max_length` tokens.

        pipeline.add_component("embedder", EpicTextEmbedder(task="web-search"))
        pipeline.connect("embedder.embedding", "retriever.query_embedding")

    Components of one process that name the same model, device and dtype share it.

    Args:
        model: checkpoint folder or hub id; None takes EPIC_MODEL, else the model that comes along.
        task: a Task, the name of a built-in one, or the path of a task file; "web-search" if
            nothing is said.
        instruction: instead of a task: one sentence that says what is searched for.
        demonstrations: for `instruction`: (query, passage) pairs or `Demonstration`s.
        mode: how demonstrations enter the prompt: as vectors, as text, or not at all. None takes
            the best that the checkpoint and the task allow.
        device: of torch, by default a GPU where there is one.
        dtype: as in `EpicEncoder.from_pretrained`.

    Raises:
        InputError: a task that cannot be used.
    """

    @component.output_types(embedding=list[float])
    def run(self, text: str, task: Task | str | None = None) -> dict[str, list[float]]:
        """Embeds one query.

        Args:
            text: the query.
            task: for this call, another than the component's.

        Returns:
            `embedding`: one float per dimension.
        """
        found = self.task if task is None else as_task(task)
        vectors = self._ready().encode_queries([text], found, self.mode, show_progress=False)
        return {"embedding": vectors[0].tolist()}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str, task: Task | str | None = None) -> dict[str, list[float]]:
        """As `run`; concurrent callers of one model share forward passes."""
        found = self.task if task is None else as_task(task)
        if self._encoder is None:
            await asyncio.to_thread(self._ready)
        vector = await self._ready().aencode_query(text, found, self.mode)
        return {"embedding": vector.tolist()}


@component
class EpicDocumentEmbedder(_Embedder):
    """Embeds documents as they are; a symmetric task's prompt precedes them as it does queries.

    Documents of other tasks get no prompt, so that a document store stays valid when instruction or
    demonstrations change.

        pipeline.add_component("embedder", EpicDocumentEmbedder(meta_fields_to_embed=["title"]))
        pipeline.connect("embedder.documents", "writer.documents")

    Args:
        model: as in `EpicTextEmbedder`, and so all that are not named here.
        task: matters only when it is symmetric.
        instruction: as in `EpicTextEmbedder`; tasks that are made of it are not symmetric.
        demonstrations: for `instruction`.
        mode: as in `EpicTextEmbedder`.
        device: as in `EpicTextEmbedder`.
        dtype: as in `EpicTextEmbedder`.
        batch_size: most documents per forward pass; None takes as many as memory allows.
        progress_bar: whether to show one; None shows it from 1000 documents.
        meta_fields_to_embed: their values stand before the content.
        embedding_separator: between these values and the content.
    """

    _settings: ClassVar[tuple[str, ...]] = (
        *_SETTINGS,
        "batch_size",
        "progress_bar",
        "meta_fields_to_embed",
        "embedding_separator",
    )

    def __init__(  # noqa: PLR0913 (Haystack reads the settings off the signature)
        self,
        model: str | Path | None = None,
        task: Task | str | Mapping[str, object] | None = None,
        *,
        instruction: str | None = None,
        demonstrations: "Iterable[DemonstrationLike] | None" = None,
        mode: Mode | None = None,
        device: ComponentDevice | str | None = None,
        dtype: str | None = None,
        batch_size: int | None = None,
        progress_bar: bool | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
    ) -> None:
        # Not super(): @component makes the class anew, and super() would look for the old one.
        _Embedder.__init__(
            self,
            model,
            task,
            instruction=instruction,
            demonstrations=demonstrations,
            mode=mode,
            device=device,
            dtype=dtype,
        )
        self.batch_size, self.progress_bar = batch_size, progress_bar
        self.meta_fields_to_embed = list(meta_fields_to_embed or [])
        self.embedding_separator = embedding_separator

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """Embeds documents; those that were given stay as they are.

        Returns:
            `documents`: copies with their `embedding`, in order.

        Raises:
            InputError: something else than a list of documents, or one without any text.
        """
        vectors = self._ready().encode_passages(
            self._texts(documents),
            self.task,
            self.mode,
            batch_size=self.batch_size,
            show_progress=self.progress_bar,
        )
        pairs = zip(documents, vectors.tolist(), strict=True)
        return {"documents": [replace(one, embedding=vector) for one, vector in pairs]}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, list[Document]]:
        """As `run`, in a thread."""
        return await asyncio.to_thread(self.run, documents)

    def _texts(self, documents: object) -> list[str]:
        if not isinstance(documents, list) or any(not isinstance(d, Document) for d in documents):
            raise InputError(
                "EpicDocumentEmbedder expects a list of Document; for a query, use EpicTextEmbedder"
            )
        texts = []
        for document in documents:
            values = (document.meta.get(key) for key in self.meta_fields_to_embed)
            parts = [str(value) for value in values if value is not None]
            texts.append(self.embedding_separator.join([*parts, document.content or ""]))
            if not texts[-1].strip():
                raise InputError(
                    f"document {document.id} has no text to embed; give it content, or name fields"
                    " of its meta in meta_fields_to_embed"
                )
        return texts
