"""`EpicModule`: a task-aware encoder as the one module of a `SentenceTransformer`.

Knows the interface of sentence-transformers and the public names of epic_retrieval; neither prompts
nor models.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from epic_retrieval import CheckpointError, InputError, MissingExtraError, Task, as_task

try:
    from sentence_transformers.base.modules import InputModule
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f"sentence_transformers_epic needs sentence-transformers 6, but {error.name} is not "
        "installed; run: pip install 'epic-retrieval[sentence-transformers]'"
    ) from error

import torch  # sentence-transformers has loaded it

from epic_retrieval import open_encoder

if TYPE_CHECKING:
    from pathlib import Path

    from epic_retrieval import DemonstrationLike, EpicEncoder

Mode = Literal["epic", "text", "none"]


class EpicModule(InputModule):
    """Gives `SentenceTransformer` queries behind a task's prompt, and documents as they are.

        model = SentenceTransformer(modules=[EpicModule(task="web-search")])
        queries = model.encode_query(["wait for a process"])
        documents = model.encode_document(["Popen.wait: wait for the child to terminate."])
        others = model.encode_query(["how do I log in"], epic_task="support-tickets")

    `encode` takes texts for documents, as `encode_document` does; those of a symmetric task are
    encoded behind its prompt. Vectors are L2-normalised. Texts reach the model unchanged, cut at
    the checkpoint's `max_length` tokens.

    It encodes; it cannot be trained here (`epic train` does that), and has no token embeddings.

    `model.save_pretrained(folder)` writes an EPIC checkpoint and the task. sentence-transformers
    imports no class of another package for a saved folder, unless it is told
    `SentenceTransformer(folder, trust_remote_code=True)`; without that,
    `SentenceTransformer(modules=[EpicModule.load(folder)])` loads the same.

    Args:
        model: checkpoint folder or hub id; None takes EPIC_MODEL, else the model that comes along.
        task: a Task, the name of a built-in one, or the path of a task file; "web-search" if
            nothing is said.
        instruction: instead of a task: one sentence that says what is searched for.
        demonstrations: for `instruction`: (query, passage) pairs or `Demonstration`s.
        mode: how demonstrations enter the prompt: as vectors, as text, or not at all. None takes
            the best that the checkpoint and the task allow.
        device: of torch, by default a GPU where there is one. SentenceTransformer moves the module
            to its own choice: the model is then opened there.
        dtype: as in `EpicEncoder.from_pretrained`.
        encoder: one that is already loaded; model, device and dtype are then not given.

    Raises:
        InputError: a task or mode that cannot be used.
        CheckpointError: the model cannot be loaded, or lacks the projector that mode "epic" needs.
    """

    config_file_name = "epic_module.json"
    # `task` is sentence-transformers' own word for query or document.
    forward_kwargs: ClassVar[set[str]] = {"task", "epic_task"}  # type: ignore[misc]

    def __init__(
        self,
        model: "str | Path | None" = None,
        task: Task | str | Mapping[str, object] | None = None,
        *,
        instruction: str | None = None,
        demonstrations: "Iterable[DemonstrationLike] | None" = None,
        mode: Mode | None = None,
        device: "str | torch.device | None" = None,
        dtype: "str | torch.dtype | None" = None,
        encoder: "EpicEncoder | None" = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.task = as_task(task, instruction=instruction, demonstrations=demonstrations)
        self.mode = mode
        if model is None and encoder is None:
            model = os.environ.get("EPIC_MODEL") or None
        self.encoder = open_encoder(encoder, model=model, device=device, dtype=dtype)
        self.encoder.prepare(self.task, mode)
        # None of it where there is nothing to open the model from again.
        self._source = None if encoder is not None else (model, dtype)
        # The encoder is shared and moves for nobody; this tells where we are asked to be.
        self._place: torch.Tensor
        self.register_buffer("_place", self._mark(), persistent=False)

    def get_embedding_dimension(self) -> int:
        """Length of a vector."""
        return self.encoder.dimension

    @property
    def max_seq_length(self) -> int:
        """Most tokens of a text, end token included; what the checkpoint says, not to be set."""
        return self.encoder.checkpoint.config.max_length

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **_kwargs: object
    ) -> dict[str, Any]:
        """Texts as they are; tokens are the encoder's business.

        Raises:
            InputError: for a prompt.
        """
        if prompt:
            raise InputError(
                f"a prompt was given ({prompt!r}), but what stands before a query is its task; pass"
                " epic_task=Task(name, instruction), and prompt=None or no prompt_name"
            )
        return {"texts": list(inputs)}

    def forward(
        self,
        features: dict[str, Any],
        task: str | None = None,
        epic_task: Task | str | None = None,
        **_kwargs: object,
    ) -> dict[str, Any]:
        """Adds `sentence_embedding`: (n, dimension) float32, on the encoder's device.

        Args:
            features: what `preprocess` returns.
            task: "query" from `encode_query`, "document" from `encode_document`, else None.
            epic_task: for this call, another than the module's.

        Raises:
            InputError: another `task`, a text that cannot be encoded, training.
        """
        if self.training and torch.is_grad_enabled():
            raise InputError("EpicModule encodes and cannot be trained; `epic train` trains models")
        if task not in {"query", "document", None}:
            raise InputError(
                f"task is {task!r}; sentence-transformers means query or document by it. The task"
                " of EPIC is epic_task="
            )
        found = self.task if epic_task is None else as_task(epic_task)
        if task == "query" or found.symmetric:
            # Prompts are kept and shared: made in inference mode, they would be of less use there.
            with torch.inference_mode(mode=False):
                self.encoder.prepare(found, self.mode)
        encode = self.encoder.encode_queries if task == "query" else self.encoder.encode_passages
        vectors = encode(features["texts"], found, self.mode, show_progress=False)
        return features | {"sentence_embedding": torch.from_numpy(vectors).to(self.encoder.device)}

    def get_config_dict(self) -> dict[str, Any]:
        """What is saved beside the checkpoint."""
        return {"task": self.task.to_dict(), "mode": self.mode}

    def save(self, output_path: str, *_args: object, **_kwargs: object) -> None:
        """Write an EPIC checkpoint, which `EpicEncoder.from_pretrained` reads too, and the task."""
        self.encoder.save_pretrained(output_path)
        self.save_config(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,  # noqa: ARG003 (of the interface)
        model_kwargs: dict[str, Any] | None = None,
        **_kwargs: object,
    ) -> Self:
        """Load what `save` wrote: a folder, or a repository of the hub.

        Args:
            model_name_or_path: of the model.
            subfolder: of it, where the module's files lie.
            token: for the hub.
            cache_folder: of the hub's files.
            revision: of the repository.
            local_files_only: whether to stay away from the network.
            init_defaults: not used.
            model_kwargs: its `dtype` is heeded.

        Raises:
            CheckpointError: there is no such folder or repository.
        """
        where = (subfolder, token, cache_folder, revision, local_files_only)
        folder = cls.load_dir_path(model_name_or_path, *where)
        if folder is None:
            raise CheckpointError(f"no model at {model_name_or_path!r} {subfolder}")
        options = model_kwargs or {}
        config = cls.load_config(folder)
        return cls(folder, dtype=options.get("dtype", options.get("torch_dtype")), **config)

    def _mark(self) -> torch.Tensor:
        return torch.empty(0, device=self.encoder.device)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """What `to`, `cuda`, `half` and the like come down to."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        wanted, self._place = self._place, self._mark()
        if wanted.dtype != self._place.dtype:
            raise InputError(
                f"EpicModule cannot be turned into {wanted.dtype}; load it with dtype= instead"
            )
        if not _same(wanted.device, self._place.device):
            if self._source is None:
                raise InputError(
                    f"EpicModule was given an encoder on {self.encoder.device}, and"
                    f" {wanted.device} is asked for; name the model with model=, or pass"
                    f" SentenceTransformer(..., device={str(self.encoder.device)!r})"
                )
            model, dtype = self._source
            self.encoder = open_encoder(model=model, device=wanted.device, dtype=dtype)
            self._place = self._mark()
        return self

    def __repr__(self) -> str:
        return f"EpicModule({self.encoder.name!r}, task={self.task.name!r}, mode={self.mode!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copy = type(self)(task=self.task, mode=self.mode, encoder=self.encoder)
        copy._source = self._source  # noqa: SLF001 (it is one of us)
        return copy  # the model is not copied

    def __reduce__(self) -> tuple[Any, ...]:
        if self._source is None:
            raise InputError(
                "EpicModule was given a loaded encoder, which cannot go to another process; name"
                " the model with model= instead"
            )
        model, dtype = self._source
        place = str(self.encoder.device)
        again = partial(type(self), model, self.task, mode=self.mode, device=place, dtype=dtype)
        return again, ()


def _same(one: torch.device, other: torch.device) -> bool:
    """Whether two names mean the same device; a CPU has several."""
    return one.type == other.type and (one.type == "cpu" or one.index == other.index)
