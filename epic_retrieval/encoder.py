"""EpicEncoder: texts in, L2-normalised vectors out, behind a task's prompt that is computed once.

Owns validation, batching, order and normalisation. How a prompt is worded is `prompt`'s business,
how a model runs is `backbone`'s.
"""

import asyncio
import logging
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache, lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from epic_retrieval.backbone import sampled_counts
from epic_retrieval.batching import Batcher, tokens_at_once
from epic_retrieval.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from epic_retrieval.errors import CheckpointError, EpicError, InputError
from epic_retrieval.linear import prepack
from epic_retrieval.prefix import Prefix
from epic_retrieval.prompt import (
    Mode,
    Prompt,
    check_demonstrations,
    check_mode,
    learned_prompt,
    passage_prompt,
    query_prompt,
)
from epic_retrieval.prompt_cache import PromptCache
from epic_retrieval.query_batcher import Encode, QueryBatcher
from epic_retrieval.storage import digest_of
from epic_retrieval.tasks import Task, load_task

if TYPE_CHECKING:
    from epic_retrieval.index import EncoderInfo

logger = logging.getLogger(__name__)

DEFAULT_TASK = "web-search"
_WINDOW = 8192  # texts that are tokenised and sorted by length together
_PROGRESS_FROM = 1000  # texts; fewer are done before a bar would help


class States(Protocol):
    """Token ids of texts to raw states, as `Backbone.encode` returns them."""

    def __call__(self, rows: Sequence[Sequence[int]], *, every: int = 0) -> Tensor:
        """(n, d), or with `every` several states a row."""
        ...


class EpicEncoder:
    """A causal language model that embeds queries and passages.

    Its weights are taken as fixed: after changing them in place, make a new encoder.

    Example:
        >>> from epic_retrieval import EpicEncoder
        >>> encoder = EpicEncoder.from_pretrained()
        >>> queries = encoder.encode_queries(["wait for a process"], task="python-docs")
        >>> passages = encoder.encode_passages(["Popen.wait: wait for the child to terminate."])
        >>> (queries @ passages.T).shape
        (1, 1)

    Args:
        checkpoint: the loaded model.
        cache: where prompts are kept; None keeps them in memory and in the user's cache folder.
    """

    def __init__(self, checkpoint: Checkpoint, cache: PromptCache | None = None) -> None:
        self.checkpoint = checkpoint
        self.cache = cache or PromptCache.default()
        # Computed on first use: reading gigabytes of weights takes a while.
        self._fixed: dict[str, object] | None = None
        self._projector: str | None = None
        self._lock = threading.Lock()
        self._batched: QueryBatcher | None = None
        self._batcher = Batcher(tokens_at_once(checkpoint.backbone))
        # A single query must not pay for a digest of everything each time.
        self._key = lru_cache(maxsize=256)(self._compute_key)
        # The vectors of demonstrations are made once in the paper's way of encoding too.
        self._kept_embeddings = lru_cache(maxsize=8)(self._prompt_embeddings)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        template: str | None = None,
        max_length: int | None = None,
        cache: PromptCache | None = None,
    ) -> "EpicEncoder":
        """Load a model folder or hub id; nothing named means the model bundled with the package.

        See `load_checkpoint` for the arguments and errors.
        """
        checkpoint = load_checkpoint(
            path_or_hub_id, device=device, dtype=dtype, template=template, max_length=max_length
        )
        prepack(checkpoint.backbone.model)
        if path_or_hub_id is None:
            _announce_bundled(checkpoint.name, checkpoint.backbone.dimension)
        return cls(checkpoint, cache)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a checkpoint folder that `from_pretrained` reads."""
        save_checkpoint(self.checkpoint, folder)

    @property
    def name(self) -> str:
        """Hub id or folder that was loaded."""
        return self.checkpoint.name

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.checkpoint.backbone.dimension

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.checkpoint.backbone.device

    @property
    def reads_vectors(self) -> bool:
        """Whether mode "epic" is possible."""
        return self.checkpoint.projector is not None or self.checkpoint.learned is not None

    def default_mode(self, task: Task | str) -> Mode:
        """The best mode that the checkpoint was trained for and the task's demonstrations allow."""
        found = _task(task)
        for mode in self.checkpoint.config.modes:
            if found.demonstrations or not self._needs_demonstrations(mode):
                return mode
        return "none"

    def _needs_demonstrations(self, mode: Mode) -> bool:
        needed = self.checkpoint.config.method.needs_demonstrations
        return mode == "text" or (mode == "epic" and needed)

    def encode_queries(
        self,
        texts: Sequence[str],
        task: Task | str = DEFAULT_TASK,
        mode: Mode | None = None,
        *,
        batch_size: int | None = None,
        show_progress: bool | None = None,
        share_prefix: bool = True,
    ) -> NDArray[np.float32]:
        """Embed queries of a task.

        Args:
            texts: n texts; nothing is stripped or replaced. Only the text is cut at the
                checkpoint's `max_length` tokens, never the prompt.
            task: a `Task`, the name of a built-in one, or the path of a task file.
            mode: "epic", "text" or "none" (instruction without demonstrations); None takes
                `default_mode(task)`.
            batch_size: most texts per forward pass; None takes as many as memory allows.
            show_progress: a progress bar on stderr; None shows one from 1000 texts.
            share_prefix: False runs the whole prompt again for every text, as the paper does: the
                same vectors, slowly. For comparisons.

        Returns:
            (n, dimension) float32, rows of length 1, in the order of `texts`.

        Raises:
            InputError: empty text, unknown task, a mode that the task does not allow, a prompt that
                does not fit the model.
            CheckpointError: mode "epic" with a model that has no projector.
        """
        found, chosen = self._checked(task, mode)
        # Every mode words what stands right before and after the text alike.
        wording = query_prompt(self.checkpoint.config.template, found, "none")
        states = self._query_states(found, chosen, share_prefix)
        # Where rows are not packed, every one of them holds a copy of the prompt for a while.
        packed = share_prefix and self.device.type == "cpu"
        extra = 0 if packed else self.prepare(found, chosen)
        return self._encode(texts, wording, states, batch_size, show_progress, extra)

    def encode_passages(
        self,
        texts: Sequence[str],
        task: Task | str | None = None,
        mode: Mode | None = None,
        *,
        batch_size: int | None = None,
        show_progress: bool | None = None,
    ) -> NDArray[np.float32]:
        """Embed passages; arguments, result and errors as in `encode_queries`.

        Passages of an asymmetric task get no prompt, whatever the task, so that an index stays
        valid when instruction or demonstrations change. Those of a symmetric task are encoded
        as queries.
        """
        found = None if task is None else _task(task)
        if found is not None and found.symmetric:
            return self.encode_queries(
                texts, found, mode, batch_size=batch_size, show_progress=show_progress
            )
        wording = passage_prompt(self.checkpoint.config.template)
        start = self.checkpoint.tokenizer.start_ids(wording)
        self._check_room(len(start), "the prompt of passages", "a")
        return self._encode(texts, wording, self._passage_states, batch_size, show_progress)

    async def aencode_query(
        self, text: str, task: Task | str = DEFAULT_TASK, mode: Mode | None = None
    ) -> NDArray[np.float32]:
        """Embed one query, (dimension,); concurrent callers share forward passes.

        A query waits at most some milliseconds for company. Cancelling takes it out of the queue,
        unless it runs already. Errors as in `encode_queries`.
        """
        found, chosen = self._checked(task, mode)
        check_texts([text])
        return await asyncio.wrap_future(self._queries().submit(text, (found, chosen)))

    def _queries(self) -> QueryBatcher:
        with self._lock:
            if self._batched is None:
                # The worker must not keep an encoder alive that nobody uses any more.
                found = weakref.WeakMethod(self._encode_together)

                def run(texts: Sequence[str], kind: tuple[Task, Mode]) -> NDArray[np.float32]:
                    return cast("Encode", found())(texts, kind)

                self._batched = QueryBatcher(run)
                weakref.finalize(self, self._batched.close)
            return self._batched

    def _encode_together(
        self, texts: Sequence[str], kind: tuple[Task, Mode]
    ) -> NDArray[np.float32]:
        return self.encode_queries(texts, *kind, show_progress=False)

    def prepare(self, task: Task | str, mode: Mode | None = None) -> int:
        """Compute a task's prompt and keep it, so that the first query does not wait for it.

        Returns:
            How many positions the prompt takes.
        """
        found, chosen = self._checked(task, mode)
        if self.checkpoint.backbone.causal:
            return self._prefix(found, chosen).length
        return len(self._kept_embeddings(found, chosen))

    @torch.no_grad()
    def prompt(self, task: Task | str, mode: Mode | None = None) -> Prompt:
        """The pieces that a task's queries are read behind; for analysis.

        Raises:
            InputError, CheckpointError: as `encode_queries` does.
        """
        return self._prompt(*self._checked(task, mode))

    def passage_fingerprint(self, task: Task | str | None = None, mode: Mode | None = None) -> str:
        """Hex digest of everything that decides a passage's vector, for index manifests.

        Demonstrations, projector, instruction and mode do not enter, unless the task is symmetric.
        """
        found = None if task is None else _task(task)
        if found is not None and found.symmetric:
            return digest_of(self._query_side(*self._checked(found, mode)))
        return digest_of(self._passage_side())

    def info(self, task: Task | str | None = None, mode: Mode | None = None) -> "EncoderInfo":
        """What an index notes of the encoder of its passages, to be compared by those who search.

        Task and mode matter only if the task is symmetric: its passages are encoded behind them.
        """
        from epic_retrieval.index.manifest import EncoderInfo

        found = None if task is None else _task(task)
        return EncoderInfo(
            name=self.name,
            fingerprint=self.passage_fingerprint(found, mode),
            dimension=self.dimension,
            task=found.name if found is not None and found.symmetric else None,
        )

    def _checked(self, task: Task | str, mode: Mode | None) -> tuple[Task, Mode]:
        found = _task(task)
        chosen = self.default_mode(found) if mode is None else check_mode(mode)
        if chosen == "epic" and not self.reads_vectors:
            raise CheckpointError(
                f"{self.name} has no projector, so it cannot read demonstrations as vectors; use"
                ' mode="none" or mode="text", or load an EPIC checkpoint'
            )
        if self._needs_demonstrations(chosen):
            check_demonstrations(found, chosen)
        return found, chosen

    def _prefix(self, task: Task, mode: Mode) -> Prefix:
        def compute() -> Prefix:
            embeddings = self._prompt_embeddings(task, mode)
            with torch.no_grad():
                return self.checkpoint.backbone.prefix(embeddings)

        return self.cache.get(self._key(task, mode), self.device, compute)

    def _check_room(self, taken: int, what: str, use: str) -> None:
        limit, text = self.checkpoint.backbone.max_positions, self.checkpoint.config.max_length
        if taken + text > limit:
            raise InputError(
                f"{what} takes {taken} tokens and texts up to {text}, but the model has"
                f" {limit} positions; use {use} smaller max_length"
            )

    @torch.no_grad()
    def _prompt_embeddings(self, task: Task, mode: Mode) -> Tensor:
        """(P, d): what enters the model's first layer for a task's prompt."""
        embeddings = self.checkpoint.embed_prompt(self._prompt(task, mode))
        # What decides this enters the key of a cached prompt, so that has passed it.
        what = f"the prompt of task {task.name!r} in mode {mode!r}"
        self._check_room(len(embeddings), what, 'fewer demonstrations, mode="epic", or a')
        return embeddings

    def _prompt(self, task: Task, mode: Mode) -> Prompt:
        config, learned = self.checkpoint.config, self.checkpoint.learned
        if mode != "epic":
            return query_prompt(config.template, task, mode)
        if learned is not None:
            return learned_prompt(config.template, task.instruction, config.method, learned())
        return query_prompt(config.template, task, mode, self._demonstration_vectors(task))

    def _demonstration_vectors(self, task: Task) -> list[dict[str, Tensor]]:
        """Per demonstration, the vectors (n, d) of its parts that are not text (Eq. 3)."""
        config, projector = self.checkpoint.config, self.checkpoint.projector
        if projector is None:
            raise CheckpointError(f"{self.name} has no projector")
        bare = passage_prompt(config.template)
        as_query = (query_prompt(config.template, task, "none"), self._query_states(task, "none"))
        as_passage = (bare, self._passage_states)
        instructed = task.symmetric or config.instruct_demonstration_passages
        ways = {
            "instruction": as_passage,
            "query": as_query,
            "passage": as_query if instructed else as_passage,
        }
        shown: list[dict[str, Tensor]] = [{} for _ in task.demonstrations]
        for part in config.method.vectors:
            texts = [getattr(one, part, task.instruction) for one in task.demonstrations]
            wording, states = ways[part]
            rows = self.checkpoint.tokenizer.text_ids(texts, wording, config.max_length)
            vectors = projector(states(rows, every=config.method.every))
            split = vectors.split(sampled_counts(rows, config.method.every))
            for parts, values in zip(shown, split, strict=True):
                parts[part] = values
        return shown

    def _query_states(self, task: Task, mode: Mode, share_prefix: bool = True) -> "States":
        """Token ids of texts behind a task's prompt to raw states."""
        backbone = self.checkpoint.backbone
        if share_prefix and backbone.causal:
            return partial(backbone.encode, prefix=self._prefix(task, mode))
        return partial(backbone.encode_unshared, prompts=self._kept_embeddings(task, mode))

    def _passage_states(self, rows: Sequence[Sequence[int]], every: int = 0) -> Tensor:
        # A passage's prompt is a token or two, which a shared prefix would not make cheaper.
        wording = passage_prompt(self.checkpoint.config.template)
        start = self.checkpoint.tokenizer.start_ids(wording)
        return self.checkpoint.backbone.encode_behind(start, rows, every)

    @torch.no_grad()
    def _encode(
        self,
        texts: Sequence[str],
        wording: Prompt,
        states: "States",
        batch_size: int | None,
        show_progress: bool | None,
        extra: int = 0,
    ) -> NDArray[np.float32]:
        check_texts(texts)
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected at least 1")
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        wanted = len(texts) >= _PROGRESS_FROM if show_progress is None else show_progress
        with tqdm(total=len(texts), unit="text", disable=not wanted) as progress:
            for first in range(0, len(texts), _WINDOW):
                window = texts[first : first + _WINDOW]
                limit = self.checkpoint.config.max_length
                rows = self.checkpoint.tokenizer.text_ids(window, wording, limit)
                for batch, found in self._batcher(rows, states, batch_size, extra):
                    vectors[[first + i for i in batch]] = normalize(found, dim=1).cpu().numpy()
                    progress.update(len(batch))
        if not np.isfinite(vectors).all():
            raise EpicError(
                f"{self.name} gave vectors that are not finite in {self.checkpoint.backbone.dtype};"
                ' load it with dtype="float32" (or "bfloat16")'
            )
        return vectors

    def _passage_side(self) -> dict[str, object]:
        """What decides a passage's vector."""
        if self._fixed is None:
            config = self.checkpoint.config
            method = config.method
            self._fixed = {
                "weights": self.checkpoint.weights_fingerprint(),
                "tokenizer": self.checkpoint.tokenizer.fingerprint(),
                "passage": config.template.passage,
                "max_length": config.max_length,
            }
            if not method.causal or method.pooling != "eos":
                pooling = [method.pooling, self.checkpoint.pooling_fingerprint()]
                self._fixed |= {"attention": method.attention, "pooling": pooling}
        return dict(self._fixed)

    def _compute_key(self, task: Task, mode: Mode) -> str:
        """Digest of everything that decides a prompt's keys and values."""
        return digest_of(
            self._query_side(task, mode)
            | {
                "dtype": self.checkpoint.backbone.precision,
                # Kernels, modelling code and our own cutting of texts: a new release may round,
                # rotate or split differently.
                "versions": _versions(),
            }
        )

    def _query_side(self, task: Task, mode: Mode) -> dict[str, object]:
        """What decides a query's vector, whatever the dtype and the release in use."""
        config = self.checkpoint.config
        state = self._passage_side() | {
            "template": asdict(config.template),
            "instruction": task.instruction,
            "mode": mode,
        }
        if mode != "none":
            state["demonstrations"] = [asdict(shown) for shown in task.demonstrations]
        if mode == "epic":
            if self._projector is None:
                self._projector = self.checkpoint.vectors_fingerprint()
            state["projector"] = self._projector
            state["method"] = asdict(config.method)
            state["symmetric"] = task.symmetric
            state["instruct_passages"] = config.instruct_demonstration_passages
        return state


@cache
def _versions() -> list[str]:
    return [version(name) for name in ("epic-retrieval", "torch", "transformers")]


@cache
def _announce_bundled(name: str, dimension: int) -> None:
    """Say once per process that nobody chose the model."""
    logger.warning(
        "Using the bundled model %s (%d dimensions): English, small and quick. For better results"
        " name a larger one.",
        name,
        dimension,
    )


def _task(task: Task | str) -> Task:
    return task if isinstance(task, Task) else load_task(task)


def check_texts(texts: Sequence[str]) -> None:
    """Refuse what is no list of texts, and texts that are blank.

    Raises:
        InputError: naming the first that will not do.
    """
    if isinstance(texts, str):
        raise InputError("expected a list of texts, got one str; pass [text]")
    # Arrays and columns of tables are no Sequence, but will do.
    if isinstance(texts, Mapping) or not (
        hasattr(texts, "__len__") and hasattr(texts, "__getitem__")
    ):
        raise InputError(
            f"expected a list of texts, got a {type(texts).__name__}; if it can be iterated, pass"
            " list(...) of it"
        )
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {index} is a {type(text).__name__}; expected str")
        if not text.strip():
            raise InputError(f"text {index} is empty; remove it: an empty text has no meaning")
