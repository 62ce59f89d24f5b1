"""nDCG of a task's prompts on development queries, as an encoder gives it.

Passages are encoded once for all prompts; vectors and scores are kept in a folder, so that what
was interrupted goes on. Passages of symmetric tasks depend on the prompt and are encoded each time.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from epic_retrieval.demonstrations.ranking import Vectors, ndcg
from epic_retrieval.demonstrations.split import Development
from epic_retrieval.encoder import EpicEncoder
from epic_retrieval.prompt import Mode
from epic_retrieval.prompt_cache import PromptCache
from epic_retrieval.storage import digest_of, write_atomically
from epic_retrieval.tasks import Task

_BLOCK = 1024  # passages that are encoded and kept together


class Scorer(Protocol):
    """Scores of development queries behind a task's prompt."""

    def __call__(self, task: Task, mode: Mode, queries: slice) -> NDArray[np.float64]:
        """(n,) one score per query of the slice."""
        ...


class EncoderScorer:
    """Scores by an encoder.

    Args:
        encoder: the model.
        development: queries, judgements and passages.
        folder: where passage vectors and scores are kept; it may be removed at any time. None
            keeps them in memory.
        batch_size: most texts in a forward pass.
        show_progress: a bar for the passages, on stderr.
    """

    def __init__(
        self,
        encoder: EpicEncoder,
        development: Development,
        folder: Path | None = None,
        *,
        batch_size: int | None = None,
        show_progress: bool = False,
    ) -> None:
        # Prompts of candidates are used once; the user's cache is not the place for them.
        self._encoder = EpicEncoder(encoder.checkpoint, PromptCache(None, memory=2))
        self._development = development
        self._batch_size = batch_size
        self._show_progress = show_progress
        rows = {number: row for row, number in enumerate(development.passages)}
        self._relevant = [
            {rows[number]: grade for number, grade in answers.items()}
            for answers in development.relevant
        ]
        self._key = digest_of(
            [
                model_fingerprint(self._encoder),
                self._encoder.checkpoint.backbone.precision,
                list(development.queries),
                list(development.passages.items()),
                [dict(answers) for answers in development.relevant],
            ]
        )
        self._folder = None if folder is None else folder / self._key[:16]
        self._vectors: Vectors | None = None
        self._known = self._read_scores()

    def __call__(self, task: Task, mode: Mode, queries: slice) -> NDArray[np.float64]:
        """(n,) nDCG@10 of the queries of the slice."""
        shown = [asdict(one) for one in task.demonstrations] if mode != "none" else []
        part = list(range(len(self._development.queries))[queries])
        key = digest_of([task.instruction, task.symmetric, mode, shown, part])
        if key not in self._known:
            found = self._score(task, mode, queries)
            self._known[key] = found.tolist()
            self._keep_score(key, found.tolist())
        return np.array(self._known[key])

    def prepare(self, task: Task) -> None:
        """Encode the passages now, where a task's prompt does not change them."""
        if not task.symmetric:
            self._passages(task, "none")

    def _score(self, task: Task, mode: Mode, queries: slice) -> NDArray[np.float64]:
        texts = self._development.queries[queries]
        asked = self._encoder.encode_queries(
            texts, task, mode, batch_size=self._batch_size, show_progress=False
        )
        return ndcg(asked, self._passages(task, mode), self._relevant[queries])

    def _passages(self, task: Task, mode: Mode) -> Vectors:
        texts = list(self._development.passages.values())
        if task.symmetric:
            return self._encoder.encode_passages(
                texts, task, mode, batch_size=self._batch_size, show_progress=self._show_progress
            )
        if self._vectors is None:
            blocks = []
            with tqdm(total=len(texts), unit="passage", disable=not self._show_progress) as bar:
                for start in range(0, len(texts), _BLOCK):
                    blocks.append(self._block(start, texts[start : start + _BLOCK]))
                    bar.update(len(blocks[-1]))
            self._vectors = np.concatenate(blocks)
        return self._vectors

    def _block(self, start: int, texts: Sequence[str]) -> Vectors:
        path = None if self._folder is None else self._folder / f"passages-{start}-{len(texts)}.npy"
        if path is not None and path.is_file():
            kept: Vectors = np.load(path, allow_pickle=False)
            return kept
        found = self._encoder.encode_passages(
            texts, batch_size=self._batch_size, show_progress=False
        )
        if path is not None:
            content = BytesIO()
            np.save(content, found, allow_pickle=False)
            write_atomically(path, content.getvalue())
        return found

    def _keep_score(self, key: str, scores: list[float]) -> None:
        if self._folder is not None:
            content = json.dumps({"key": key, "scores": scores}).encode()
            write_atomically(self._folder / f"scores-{key}.json", content)

    def _read_scores(self) -> dict[str, list[float]]:
        files = [] if self._folder is None else self._folder.glob("scores-*.json")
        rows = (json.loads(file.read_text(encoding="utf-8")) for file in files)
        return {row["key"]: row["scores"] for row in rows}


def model_fingerprint(encoder: EpicEncoder) -> str:
    """Hex digest of what decides a query's vector, the task apart."""
    checkpoint = encoder.checkpoint
    return digest_of(
        [
            encoder.passage_fingerprint(),
            checkpoint.vectors_fingerprint(),
            asdict(checkpoint.config.template),
            asdict(checkpoint.config.method),
            checkpoint.config.instruct_demonstration_passages,
        ]
    )
