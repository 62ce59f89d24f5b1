"""`EpicEmbeddings`: a task-aware encoder behind LangChain's two verbs.

Knows LangChain's interface and the public names of epic_retrieval; neither prompts nor models.
"""

from typing import Literal, Self

from epic_retrieval import MissingExtraError

try:
    from langchain_core.embeddings import Embeddings
    from langchain_core.utils import from_env
    from pydantic import (
        BaseModel,
        ConfigDict,
        Field,
        PrivateAttr,
        field_validator,
        model_validator,
    )
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f"langchain_epic needs langchain-core, but {error.name} is not installed; "
        "run: pip install 'epic-retrieval[langchain]'"
    ) from error

# After the cheap check: this loads torch.
from epic_retrieval import EpicEncoder, InputError, Task, load_task
from langchain_epic.shared_models import shared_encoder


class EpicEmbeddings(BaseModel, Embeddings):
    """Embeds queries behind a task's instruction and demonstrations, passages as they are.

    The task's prompt is computed once; each query then pays for its own tokens only. Vectors are
    L2-normalised, so the inner product is the cosine. Texts reach the model unchanged.

        embeddings = EpicEmbeddings(task="web-search")
        store = InMemoryVectorStore(embeddings)

    Adapters of one process that name the same model, device and dtype share it.

    Raises:
        pydantic.ValidationError: an unknown task, or one without the demonstrations that the mode
            needs.
        CheckpointError: the model cannot be loaded, or lacks the projector that mode "epic" needs.
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", frozen=True, protected_namespaces=()
    )

    model: str | None = Field(default_factory=from_env("EPIC_MODEL", default=None))
    """Checkpoint folder or hub name; by default EPIC_MODEL, else the model that comes along."""
    task: Task | str = Field(default="web-search", validate_default=True)
    """A Task, the name of a built-in one, or the path of a task file; becomes the Task itself."""
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

    @field_validator("task")
    @classmethod
    def _resolve(cls, task: Task | str) -> Task:
        return load_task(task) if isinstance(task, str) else task

    @model_validator(mode="after")
    def _load(self) -> Self:
        # First what is cheap: a slip must not wait for a model to load.
        _check_mode(self.task, self.mode)
        if self.encoder is None:
            self._encoder = shared_encoder(self.model, self.device, self.dtype)
        elif clashing := self.model_fields_set & {"model", "device", "dtype"}:
            raise InputError(
                f"an encoder was given together with {', '.join(sorted(clashing))}; "
                "pass either a loaded encoder, or what to load it from"
            )
        else:
            self._encoder = self.encoder
        if self.mode == "epic":
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
        vector = await self._encoder.aencode_query(text, self.task, self.mode)
        return [float(value) for value in vector]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embeds passages, in order; the task matters to them only when it is symmetric."""
        vectors: list[list[float]] = self._encoder.encode_passages(
            texts,
            self.task,
            self.mode,
            batch_size=self.batch_size,
            show_progress=self.show_progress,
        ).tolist()
        return vectors

    def with_task(self, task: Task | str) -> "EpicEmbeddings":
        """The same model and settings for another task.

        Raises:
            InputError: the task is unknown, or has no demonstrations for this adapter's mode.
        """
        resolved = self._resolve(task)
        _check_mode(resolved, self.mode)
        return self.model_copy(update={"task": resolved})


def _check_mode(task: Task | str, mode: str | None) -> None:
    if mode in {"epic", "text"} and isinstance(task, Task) and not task.demonstrations:
        raise InputError(
            f"mode {mode!r} puts demonstrations into the prompt, but task {task.name!r} has none; "
            "add some to the task, or leave mode out"
        )
