"""`EpicEmbedding`: a task-aware encoder behind LlamaIndex's queries and texts.

Knows LlamaIndex's interface and the public names of epic_retrieval; neither prompts nor models.
"""

import asyncio
import os
import threading
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from epic_retrieval import InputError, MissingExtraError, Task, as_task, open_encoder

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
    from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f"llama_index_epic needs llama-index-core, but {error.name} is not installed; "
        "run: pip install 'epic-retrieval[llama-index]'"
    ) from error

if TYPE_CHECKING:
    from epic_retrieval import DemonstrationLike, EncoderInfo, EpicEncoder
else:  # pydantic reads annotations when the class is made, and the real one loads torch
    EpicEncoder = Any

Mode = Literal["epic", "text", "none"]


class EpicEmbedding(BaseEmbedding):
    """Embeds queries behind a task's instruction and demonstrations, texts as they are.

    The task's prompt is computed once; each query then pays for its own tokens only. Vectors are
    L2-normalised. Texts reach the model unchanged, cut at the checkpoint's `max_length` tokens.
    Texts of a symmetric task are encoded behind its prompt, as queries are.

        Settings.embed_model = EpicEmbedding(task="web-search")
        index = VectorStoreIndex.from_documents(documents)

    Adapters of one process that name the same model, device and dtype share it. In another process
    (`IngestionPipeline(num_workers=2)`) and from `to_dict`, the model is loaded again by name.

    Args:
        model_name: checkpoint folder or hub id; None takes EPIC_MODEL, else the model that comes
            along ("epic-mini").
        task: a Task, the name of a built-in one, or the path of a task file; "web-search" if
            nothing is said.
        instruction: instead of a task: one sentence that says what is searched for.
        demonstrations: for `instruction`: (query, passage) pairs or `Demonstration`s.
        mode: how demonstrations enter the prompt: as vectors, as text, or not at all. None takes
            the best that the checkpoint and the task allow.
        device: of torch, by default a GPU where there is one.
        dtype: as in `EpicEncoder.from_pretrained`.
        encoder: one that is already loaded; model_name, device and dtype are then not given.
        fingerprint: what `to_dict` recorded of the model; another model of that name is refused.
        **fields: of `BaseEmbedding`: embed_batch_size (here 512), callback_manager, num_workers,
            rate_limiter.

    Raises:
        InputError: a task or mode that cannot be used, an `embeddings_cache`.
        CheckpointError: the model cannot be loaded, or lacks the projector that mode "epic" needs.
        pydantic.ValidationError: a field that does not exist, or has the wrong type.
    """

    model_config = ConfigDict(extra="forbid")

    # What decides vectors cannot be changed afterwards: `with_task` makes another adapter.
    model_name: str = Field(frozen=True, description="The model's folder or hub id.")
    task: Task = Field(frozen=True, description="What is searched for, in words and by example.")
    mode: Mode | None = Field(frozen=True, description="How demonstrations enter the prompt.")
    device: str | None = Field(frozen=True, description="The device of torch.")
    dtype: str | None = Field(frozen=True, description="The dtype of weights.")
    fingerprint: str = Field(frozen=True, description="Digest of what decides a text's vector.")
    embed_batch_size: int = Field(
        default=512, gt=0, le=2048, description="Texts per call; the encoder batches by length."
    )
    embeddings_cache: Any | None = Field(
        default=None, frozen=True, description="Not supported: its key is the text alone."
    )

    _encoder: EpicEncoder = PrivateAttr()
    _was_given: bool = PrivateAttr()
    _one_at_a_time: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    def __init__(
        self,
        model_name: str | Path | None = None,
        *,
        task: Task | str | Mapping[str, object] | None = None,
        instruction: str | None = None,
        demonstrations: "Iterable[DemonstrationLike] | None" = None,
        mode: Mode | None = None,
        device: str | None = None,
        dtype: str | None = None,
        encoder: EpicEncoder | None = None,
        fingerprint: str | None = None,
        **fields: Any,  # noqa: ANN401
    ) -> None:
        if fields.get("embeddings_cache") is not None:
            raise InputError(
                "an embeddings_cache was given, but LlamaIndex keys it by the text alone: a query"
                " and a text of the same words, or of another task, would get each other's"
                " vectors; leave it out (IngestionPipeline(cache=...) is safe)"
            )
        fields.pop("class_name", None)  # as model_dump_json writes it
        resolved = as_task(task, instruction=instruction, demonstrations=demonstrations)
        if model_name is None and encoder is None:
            model_name = os.environ.get("EPIC_MODEL") or None
        found = open_encoder(encoder, model=model_name, device=device, dtype=dtype)
        # A task that this model cannot serve is an error now, not at the first query.
        found.prepare(resolved, mode)
        digest = found.passage_fingerprint(resolved, mode)
        if fingerprint not in {None, digest}:
            raise InputError(
                f"the model {found.name!r} is not the one that this adapter was saved with, or is"
                " used with other settings; texts would get other vectors. Name the right model, or"
                " make a new EpicEmbedding and index again"
            )
        fields |= {"model_name": found.name, "task": resolved, "fingerprint": digest}
        fields |= {"mode": mode, "device": device, "dtype": dtype}
        super().__init__(**fields)
        self._encoder = found
        self._was_given = encoder is not None

    @classmethod
    def class_name(cls) -> str:
        """The key of serialised adapters."""
        return "EpicEmbedding"

    def to_payload(self) -> dict[str, Any]:
        """What goes to observability: the base class's entries, the task's name and the mode."""
        task = self.task
        return super().to_payload() | {"task": task.name, "mode": self.mode}

    def with_task(self, task: Task | str) -> "EpicEmbedding":
        """The same model and settings for another task.

        Raises:
            InputError: the task is unknown, or has no demonstrations for this adapter's mode.
        """
        if task is None:  # which would be the default one
            raise InputError("task is None; expected a Task, a name, or the path of a task file")
        resolved = as_task(task)
        self._encoder.prepare(resolved, self.mode)
        digest = self._encoder.passage_fingerprint(resolved, self.mode)
        return self.model_copy(update={"task": resolved, "fingerprint": digest})

    def encoder_info(self) -> "EncoderInfo":
        """What an index notes of the model, and compares with that of who opens it."""
        return self._encoder.info(self.task, self.mode)

    def _get_query_embedding(self, query: str) -> Embedding:
        vector: Embedding = self._encoder.encode_queries(
            [query], self.task, self.mode, show_progress=False
        )[0].tolist()
        return vector

    async def _aget_query_embedding(self, query: str) -> Embedding:
        # Concurrent callers of one model share forward passes.
        vector: Embedding = (
            await self._encoder.aencode_query(query, self.task, self.mode)
        ).tolist()
        return vector

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        vectors: list[Embedding] = self._encoder.encode_passages(
            texts, self.task, self.mode, show_progress=False
        ).tolist()
        return vectors

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        def run() -> list[Embedding]:
            # LlamaIndex starts all batches at once; together they would only take more memory.
            with self._one_at_a_time:
                return self._get_text_embeddings(texts)

        return await asyncio.to_thread(run)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.model_copy()  # the model is not copied

    def __reduce__(self) -> tuple[Any, ...]:
        if self._was_given:
            raise InputError(
                "EpicEmbedding was given a loaded encoder, which cannot go to another process; name"
                " the model with model_name= instead"
            )
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        for unsendable in ("callback_manager", "rate_limiter"):  # as in to_dict
            fields.pop(unsendable)
        return partial(type(self), **fields), ()
