"""`EpicEmbeddings`: a task-aware encoder behind LangChain's two verbs.

Knows LangChain's interface and the public names of epic_retrieval; neither prompts nor models.
"""

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from epic_retrieval import InputError, MissingExtraError, Task, as_task, open_encoder

try:
    from langchain_core.embeddings import Embeddings
    from langchain_core.utils import from_env
    from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f"langchain_epic needs langchain-core, but {error.name} is not installed; "
        "run: pip install 'epic-retrieval[langchain]'"
    ) from error

if TYPE_CHECKING:
    from epic_retrieval import DemonstrationLike, EncoderInfo, EpicEncoder
else:  # pydantic reads annotations when the class is made, and the real classes would load torch
    DemonstrationLike = EncoderInfo = EpicEncoder = Any


class EpicEmbeddings(BaseModel, Embeddings):
    """Embeds queries behind a task's instruction and demonstrations, passages as they are.

    The task's prompt is computed once; each query then pays for its own tokens only. Vectors are
    L2-normalised, so the inner product is the cosine. Texts reach the model unchanged, cut at the
    checkpoint's `max_length` tokens.

        embeddings = EpicEmbeddings(task="web-search")
        store = InMemoryVectorStore(embeddings)

    Adapters of one process that name the same model, device and dtype share it, copies included.
    A pickled one loads its model again by name.

    Raises:
        pydantic.ValidationError: an unknown task, one without the demonstrations that the mode
            needs, or a prompt that does not fit the model.
        CheckpointError: the model cannot be loaded, or lacks the projector that mode "epic" needs.
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", frozen=True, protected_namespaces=()
    )

    model: str | None = Field(default_factory=from_env("EPIC_MODEL", default=None))
    """Checkpoint folder or hub name; by default EPIC_MODEL, else the model that comes along."""
    task: Task | str = "web-search"
    """A Task, the name of a built-in one, or the path of a task file; becomes the Task itself."""
    instruction: str | None = Field(default=None, exclude=True, repr=False)
    """Instead of a task: one sentence that says what is searched for. Goes into `task`."""
    demonstrations: Sequence[DemonstrationLike] | None = Field(
        default=None, exclude=True, repr=False
    )
    """For `instruction`: (query, passage) pairs or `Demonstration`s. Go into `task`."""
    mode: Literal["epic", "text", "none"] | None = None
    """How demonstrations enter the prompt: as vectors, as text, or not at all.

    None takes the best that the checkpoint and the task allow."""
    device: str | None = None
    dtype: str | None = None
    batch_size: int | None = Field(default=None, gt=0)
    show_progress: bool = False
    encoder: EpicEncoder | None = Field(default=None, exclude=True, repr=False)
    """An encoder that is already loaded; model, device and dtype are then not given."""

    _encoder: EpicEncoder = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _find_task(cls, values: object) -> object:
        """Whatever form task and model were given in, from here on they are a Task and a str."""
        if not isinstance(values, Mapping):
            return values
        fields = dict(values)
        if isinstance(fields.get("model"), Path):
            fields["model"] = str(fields["model"])
        parts = {name: fields.pop(name, None) for name in ("instruction", "demonstrations")}
        return fields | {"task": as_task(fields.pop("task", None), **parts)}

    @model_validator(mode="after")
    def _load(self) -> Self:
        names = {"model", "device", "dtype"}
        if self.encoder is not None:  # model= contradicts it, EPIC_MODEL in the environment not
            names &= self.model_fields_set
        named = {name: getattr(self, name) for name in names}
        self._encoder = open_encoder(self.encoder, **named)
        # A task that this model cannot serve is an error now, not at the first query.
        self._encoder.prepare(self.task, self.mode)
        return self

    def embed_query(self, text: str) -> list[float]:
        """Embeds a query of the task; L2-normalised, one float per dimension."""
        vector: list[float] = self._encoder.encode_queries(
            [text], self.task, self.mode, batch_size=self.batch_size, show_progress=False
        )[0].tolist()
        return vector

    async def aembed_query(self, text: str) -> list[float]:
        """The same; concurrent callers of one model share forward passes."""
        vector: list[float] = (
            await self._encoder.aencode_query(text, self.task, self.mode)
        ).tolist()
        return vector

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embeds passages, in order; the task matters to them only when it is symmetric.

        The asynchronous `aembed_documents` runs this in a thread.
        """
        vectors: list[list[float]] = self._encoder.encode_passages(
            _listed(texts),
            self.task,
            self.mode,
            batch_size=self.batch_size,
            show_progress=self.show_progress,
        ).tolist()
        return vectors

    def info(self) -> EncoderInfo:
        """What an index notes of these embeddings of passages, to be compared by who searches."""
        return self._encoder.info(self.task, self.mode)

    def with_task(self, task: Task | str) -> "EpicEmbeddings":
        """The same model and settings for another task.

        Raises:
            InputError: the task is unknown, or has no demonstrations for this adapter's mode.
        """
        if task is None:  # which would be the default one
            raise InputError("task is None; expected a Task, a name, or the path of a task file")
        resolved = as_task(task)
        self._encoder.prepare(resolved, self.mode)
        return self.model_copy(update={"task": resolved})

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.model_copy()  # nothing of it ever changes, and the model is not copied

    def __reduce__(self) -> tuple[Any, ...]:
        if self.encoder is not None:
            raise InputError(
                "EpicEmbeddings was given a loaded encoder, which cannot go to another process;"
                " name the model with model= instead"
            )
        names = ("model", "task", "mode", "device", "dtype", "batch_size", "show_progress")
        return partial(type(self), **{name: getattr(self, name) for name in names}), ()


def configured(settings: Mapping[str, Any]) -> EpicEmbeddings:
    """Embeddings with these settings.

    Raises:
        InputError: what pydantic finds wrong with them, without its words around ours.
        CheckpointError: the model cannot be loaded.
    """
    try:
        return EpicEmbeddings(**settings)
    except ValidationError as error:
        said = [
            str(
                one.get("ctx", {}).get("error") or f"{'.'.join(map(str, one['loc']))}: {one['msg']}"
            )
            for one in error.errors()
        ]
        raise InputError("; ".join(said)) from error


def _listed(texts: object) -> list[str]:
    """Whatever may be iterated, as a list; the encoder looks at what is in it."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise InputError(f"got {reprlib.repr(texts)}; expected a list of texts")
    return list(texts)
