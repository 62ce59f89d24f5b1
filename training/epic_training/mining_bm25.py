"""Negatives by BM25: passages that share words with a query.

Knows nothing of which passages become negatives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.errors import MissingExtraError
from epic_training.data.rows import TrainingRow
from epic_training.mining_pool import Pool
from epic_training.mining_sources import Ranked


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


def _bm25s() -> Any:  # noqa: ANN401 (a module without types)
    try:
        import bm25s
    except ImportError as error:
        raise MissingExtraError(
            "mining with BM25 needs bm25s, which is not installed: pip install"
            ' "epic-retrieval[train]"'
        ) from error
    return bm25s
