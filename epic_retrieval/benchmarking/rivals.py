"""Other ways to encode the same queries behind the same demonstrations, by name.

All of them run the same weights on the same texts in bge-en-icl's wording, which is the one that
FlagEmbedding has. Knows how each library is used, and nothing of rounds and ratios.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.benchmarking.flag_process import Encoded, FlagProcess
from epic_retrieval.errors import InputError, MissingExtraError
from epic_retrieval.prompt import query_prompt
from epic_retrieval.tasks import Task

if TYPE_CHECKING:
    from epic_retrieval.encoder import EpicEncoder

TEMPLATE = "bge-en-icl"
# Those that run the whole prompt for each query.
SLOW = ("epic-rerun", "text-rerun", "text-transformers", "text-flagembedding")
# A padded batch of long prompts takes memory: as many rows as libraries commonly take.
_ROWS = 16

Vectors = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]


class Rival(Protocol):
    """Encodes queries, and knows how long that took."""

    def __call__(self, texts: Sequence[str], at_once: int) -> Encoded:
        """Encode texts, at most `at_once` in a call."""
        ...


@dataclass(frozen=True)
class Local:
    """A rival in this process."""

    encode: Encode

    def __call__(self, texts: Sequence[str], at_once: int) -> Encoded:
        """Encode in calls of so many texts."""
        wall, core = time.perf_counter(), time.process_time()
        parts = [self.encode(texts[i : i + at_once]) for i in range(0, len(texts), at_once)]
        wall, core = time.perf_counter() - wall, time.process_time() - core
        return Encoded(np.concatenate(parts), wall, core)


def make_rival(
    name: str, encoder: "EpicEncoder", folder: Path | None, task: Task, python: str | None
) -> Rival:
    """The rival of this name.

    Args:
        name: out of `conditions.RIVALS`.
        encoder: ours, in bge-en-icl's wording, with a projector.
        folder: the same model as other libraries load it; None where they cannot.
        task: with demonstrations.
        python: interpreter that has FlagEmbedding; None is this one.

    Raises:
        EpicError: it cannot take part; the message says why.
    """
    if name == "no-prompt":
        return Local(lambda texts: _bare(encoder, task, texts))
    if name in _OURS:
        mode, share = _OURS[name]

        def ours(texts: Sequence[str]) -> Vectors:
            return encoder.encode_queries(
                texts, task, mode, show_progress=False, share_prefix=share
            )

        return Local(ours)
    if folder is None:
        raise InputError("the model lies in no folder that other libraries can load")
    if name == "text-transformers":
        return Local(_transformers(folder, task, encoder))
    if name == "sentence-transformers":
        return Local(_sentence_transformers(folder, task, encoder))
    return FlagProcess(folder, task, python, str(encoder.device))


_OURS: dict[str, tuple[Any, bool]] = {
    "instruction": ("none", True),
    "text-shared": ("text", True),
    "epic-shared": ("epic", True),
    "text-rerun": ("text", False),
    "epic-rerun": ("epic", False),
}


def _bare(encoder: "EpicEncoder", task: Task, texts: Sequence[str]) -> Vectors:
    """The same token ids as behind a prompt, in the same engine, without the prompt."""
    import torch

    checkpoint = encoder.checkpoint
    wording = query_prompt(checkpoint.config.template, task, "none")
    rows = checkpoint.tokenizer.text_ids(texts, wording, checkpoint.config.max_length)
    with torch.no_grad():
        states = checkpoint.backbone.encode(rows)
    vectors: Vectors = torch.nn.functional.normalize(states, dim=1).cpu().numpy()
    return vectors


def _worded(task: Task, encoder: "EpicEncoder", *, demonstrations: bool) -> tuple[str, str]:
    """What precedes and follows a query's text, as plain text."""
    template = encoder.checkpoint.config.template
    shown = "".join(
        template.text_demonstration.format(
            instruction=task.instruction, query=one.query, passage=one.passage
        )
        for one in (task.demonstrations if demonstrations else ())
    )
    before, after = template.query.split("{query}")
    return shown + before.format(instruction=task.instruction), after


def _transformers(folder: Path, task: Task, encoder: "EpicEncoder") -> Encode:
    """Demonstrations as text, as one writes it with transformers alone: one string a query."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="right")
    loaded: Any = AutoModel.from_pretrained(folder, dtype=encoder.checkpoint.backbone.dtype)
    model = loaded.eval().to(encoder.device)
    before, after = _worded(task, encoder, demonstrations=True)

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Vectors:
        found = []
        for start in range(0, len(texts), _ROWS):
            rows = [before + text + after for text in texts[start : start + _ROWS]]
            batch = tokenizer(rows, padding=True, return_tensors="pt").to(encoder.device)
            states = model(**batch, use_cache=False).last_hidden_state
            ends = batch["attention_mask"].sum(dim=1) - 1
            last = states[torch.arange(len(rows), device=states.device), ends].float()
            found.append(torch.nn.functional.normalize(last, dim=1).cpu().numpy())
        return np.concatenate(found)

    return encode


def _sentence_transformers(folder: Path, task: Task, encoder: "EpicEncoder") -> Encode:
    """The instruction alone, in sentence-transformers, pooling the last token."""
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import modules
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "sentence-transformers is not installed; run: pip install"
            " 'epic-retrieval[sentence-transformers]'"
        ) from error
    loading: Any = {"dtype": encoder.checkpoint.backbone.dtype}
    body = modules.Transformer(str(folder), model_kwargs=loading)
    pooling = modules.Pooling(body.get_embedding_dimension(), pooling_mode="lasttoken")
    model = SentenceTransformer(
        modules=[body, pooling, modules.Normalize()], device=str(encoder.device)
    )
    before, after = _worded(task, encoder, demonstrations=False)

    def encode(texts: Sequence[str]) -> Vectors:
        rows = [before + text + after for text in texts]
        vectors: Vectors = model.encode(rows, show_progress_bar=False)
        return vectors

    return encode
