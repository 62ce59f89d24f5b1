"""Who says which passages are close to a query: what every source of negatives can do.

Knows no source, and nothing of which passages become negatives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from epic_training.data.rows import TrainingRow
from epic_training.mining_pool import Pool


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
