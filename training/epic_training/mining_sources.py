"""Who says which passages are close to a query: an encoder with exact FAISS search, or BM25.

Know nothing of which passages become negatives.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from epic_retrieval.errors import InputError, MissingExtraError
from epic_retrieval.index._faiss import load_faiss
from epic_retrieval.index._flat import FlatIndex, nearest
from epic_retrieval.storage import write_atomically
from epic_retrieval.tasks import Task
from epic_training.data.rows import TrainingRow
from epic_training.mining_pool import Pool

if TYPE_CHECKING:
    from epic_retrieval.encoder import EpicEncoder
    from epic_retrieval.prompt import Mode

Vectors = NDArray[np.float32]

_TEXTS_AT_ONCE = 4096  # encoded, and saved, together


@dataclass(frozen=True)
class Ranked:
    """What a source says about one query.

    Attributes:
        found: (passage, score) of the candidates that score best, best first.
        wanted: scores of the passages that were asked about, in that order.
    """

    found: list[tuple[int, float]]
    wanted: list[float]


class Ranker(Protocol):
    """A source that has read all passages."""

    def rank(
        self, rows: Sequence[TrainingRow], wanted: Sequence[Sequence[int]], most: int
    ) -> list[Ranked]:
        """For each row, its best `most` candidates and the scores of the `wanted` passages."""
        ...


class NegativeSource(Protocol):
    """Makes a `Ranker` of a pool."""

    def identity(self) -> Mapping[str, object]:
        """Everything that decides its scores, as JSON holds it."""
        ...

    def check(self, row: TrainingRow) -> None:
        """Raise InputError for a row that it cannot use; called for all before anything else."""
        ...

    def open(self, pool: Pool, folder: Path, *, show_progress: bool) -> Ranker:
        """Read the passages; work that is worth keeping is kept in `folder`."""
        ...


@dataclass(frozen=True)
class EncoderSource:
    """Cosines of an encoder's vectors, searched exactly with FAISS.

    Vectors of passages are saved in blocks, so that a run that was stopped does not encode them
    again. In memory: the passages' texts and vectors (4 bytes times dimension each).

    Attributes:
        encoder: of queries and passages.
        task: of all rows; None takes each row's own instruction (passages get none then).
        mode: as in `EpicEncoder.encode_queries`.
        batch_size: texts per forward pass.
    """

    encoder: "EpicEncoder"
    task: Task | None = None
    mode: "Mode | None" = None
    batch_size: int = 32

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


@dataclass(frozen=True)
class Bm25Source:
    """BM25 as the bm25s library does it by default (Lucene's variant, English stop words).

    In memory: the passages' texts and their tokens. Passages that share no word with a query are
    never found, and scores of different queries cannot be compared.
    """

    def identity(self) -> Mapping[str, object]:
        """The library's release."""
        _bm25s()
        return {"source": "bm25", "bm25s": metadata.version("bm25s")}

    def check(self, row: TrainingRow) -> None:
        """Any row will do."""

    def open(self, pool: Pool, folder: Path, *, show_progress: bool) -> "Bm25Ranker":  # noqa: ARG002 (counting words again is quick)
        """Count the words of all passages."""
        bm25s = _bm25s()
        retriever = bm25s.BM25()
        tokens = bm25s.tokenize(pool.texts, show_progress=show_progress)
        retriever.index(tokens, show_progress=show_progress)
        return Bm25Ranker(retriever, len(pool.texts), pool.candidates)


@dataclass(frozen=True)
class Bm25Ranker:
    """Word counts of all passages, the first `candidates` of which are candidates."""

    retriever: Any
    passages: int
    candidates: int

    def rank(
        self, rows: Sequence[TrainingRow], wanted: Sequence[Sequence[int]], most: int
    ) -> list[Ranked]:
        """As the protocol says; among equals, the passage that was read first comes first."""
        tokens = _bm25s().tokenize(
            [row.query for row in rows], return_ids=False, show_progress=False
        )
        ranked = []
        for words, numbers in zip(tokens, wanted, strict=True):
            scores = self._scores(words)
            ranked.append(
                Ranked(_best(scores[: self.candidates], most), scores[list(numbers)].tolist())
            )
        return ranked

    def _scores(self, words: list[str]) -> NDArray[np.float64]:
        if not words:
            return np.zeros(self.passages)
        return np.asarray(self.retriever.get_scores(words), dtype=np.float64)


def _best(scores: NDArray[np.float64], most: int) -> list[tuple[int, float]]:
    """The best `most` positive scores with their places."""
    most = min(most, len(scores))
    bound = np.partition(scores, -most)[-most]
    places = np.flatnonzero((scores >= bound) & (scores > 0))
    order = places[np.argsort(-scores[places], kind="stable")][:most]
    return [(int(place), float(scores[place])) for place in order]


def _row_task(instruction: str) -> Task:
    return Task("own-instruction", instruction)


def _bm25s() -> Any:  # noqa: ANN401 (a module without types)
    try:
        import bm25s
    except ImportError as error:
        raise MissingExtraError(
            "mining with BM25 needs bm25s, which is not installed: pip install"
            ' "epic-retrieval[train]"'
        ) from error
    return bm25s
