"""Negatives by an encoder: cosines with all passages, searched exactly with FAISS.

Knows nothing of which passages become negatives.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from epic_retrieval.errors import InputError
from epic_retrieval.index._faiss import load_faiss
from epic_retrieval.index._flat import FlatIndex, nearest
from epic_retrieval.storage import write_atomically
from epic_retrieval.tasks import Task
from epic_training.data.rows import TrainingRow
from epic_training.mining_pool import Pool
from epic_training.mining_sources import Ranked

if TYPE_CHECKING:
    from epic_retrieval.encoder import EpicEncoder
    from epic_retrieval.prompt import Mode

Vectors = NDArray[np.float32]

_TEXTS_AT_ONCE = 4096  # encoded, and saved, together


@dataclass(frozen=True)
class EncoderSource:
    """Cosines of an encoder's vectors, searched exactly with FAISS.

    Vectors of passages are saved in blocks, so that a run that was stopped does not encode them
    again. In memory: the passages' texts and vectors (4 bytes times dimension each).

    Attributes:
        encoder: of queries and passages.
        task: of all rows; None takes each row's own instruction (passages get none then).
        mode: as in `EpicEncoder.encode_queries`.
        batch_size: most texts per forward pass; None takes what memory allows.
    """

    encoder: "EpicEncoder"
    task: Task | None = None
    mode: "Mode | None" = None
    batch_size: int | None = None

    def identity(self) -> Mapping[str, object]:
        """Weights, prompt, demonstrations and dtype."""
        # The fingerprint of a symmetric task covers the query side, which is what counts here.
        shown = replace(self.task or _row_task("any"), symmetric=True)
        return {
            "source": "encoder",
            "weights_and_prompt": self.encoder.passage_fingerprint(shown, self.mode),
            "own_instructions": self.task is None,
            "symmetric": self.task is not None and self.task.symmetric,
            "dtype": str(self.encoder.checkpoint.backbone.dtype),
            "texts_at_once": _TEXTS_AT_ONCE,
        }

    def check(self, row: TrainingRow) -> None:
        """Raise InputError for a row without an instruction, where none was given for all."""
        if self.task is None and row.instruction is None:
            raise InputError(
                "the row has no instruction of its own; give one for all rows (--task or"
                " --instruction)"
            )

    def open(self, pool: Pool, folder: Path, *, show_progress: bool) -> "EncoderRanker":
        """Encode all passages, except blocks that `folder` has."""
        faiss = load_faiss()
        index = faiss.IndexFlatIP(self.encoder.dimension)
        others: list[Vectors] = []
        starts = range(0, len(pool.texts), _TEXTS_AT_ONCE)
        with tqdm(
            total=len(pool.texts), desc="passages", unit="text", disable=not show_progress
        ) as bar:
            for start in starts:
                texts = pool.texts[start : start + _TEXTS_AT_ONCE]
                vectors = self._block(folder / f"vectors-{start:09}.npy", texts)
                inside = max(0, min(len(texts), pool.candidates - start))
                index.add(vectors[:inside])
                others.append(vectors[inside:])
                bar.update(len(texts))
        return EncoderRanker(self, index, np.concatenate(others))

    def queries(self, rows: Sequence[TrainingRow]) -> Vectors:
        """(n, dimension) vectors of rows' queries, each behind its instruction."""
        groups: dict[str, list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            groups["" if self.task else row.instruction or ""].append(place)
        vectors = np.empty((len(rows), self.encoder.dimension), dtype=np.float32)
        for instruction, places in groups.items():
            vectors[places] = self.encoder.encode_queries(
                [rows[place].query for place in places],
                self.task or _row_task(instruction),
                self.mode,
                batch_size=self.batch_size,
                show_progress=False,
            )
        return vectors

    def _block(self, path: Path, texts: list[str]) -> Vectors:
        if path.is_file():
            kept: Vectors = np.load(path, allow_pickle=False)
            return kept
        vectors = self.encoder.encode_passages(
            texts, self.task, self.mode, batch_size=self.batch_size, show_progress=False
        )
        content = BytesIO()
        np.save(content, vectors, allow_pickle=False)
        write_atomically(path, content.getvalue())
        return vectors


@dataclass(frozen=True)
class EncoderRanker:
    """The vectors of all passages: the candidates in an index, the others beside it."""

    source: EncoderSource
    index: FlatIndex
    others: Vectors

    def rank(
        self, rows: Sequence[TrainingRow], wanted: Sequence[Sequence[int]], most: int
    ) -> list[Ranked]:
        """As the protocol says; scores are cosines in double precision."""
        queries = self.source.queries(rows)
        found = nearest(self.index, queries, min(most, self.index.ntotal))
        return [
            Ranked(near, (self._vectors(numbers) @ query.astype(np.float64)).tolist())
            for near, query, numbers in zip(found, queries, wanted, strict=True)
        ]

    def _vectors(self, numbers: Sequence[int]) -> NDArray[np.float64]:
        inside = self.index.ntotal
        rows = [
            self.index.reconstruct_batch(np.array([number]))[0]
            if number < inside
            else self.others[number - inside]
            for number in numbers
        ]
        return np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)


def _row_task(instruction: str) -> Task:
    return Task("own-instruction", instruction)
