"""Which rows make the batch of a step: a pure function of seed and step.

An epoch takes a new permutation of every data set, `ratio` of it, cut into batches; the batches of
all data sets are shuffled together. The rest of a data set that does not fill a batch is left out
of the epoch: another permutation brings it up in the next. A data set with fewer rows than a batch
gives smaller batches. Nothing is carried from step to step, so a run can go on at any step, on any
number of processes.

Knows nothing of tokens, models and losses. The same text may stand in a batch twice: a loss masks
that.
"""

import logging
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.errors import InputError
from epic_retrieval.tasks import Task
from epic_training.data.mix import TrainingSet
from epic_training.data.rows import TrainingRow

logger = logging.getLogger(__name__)

# What a random stream is for; keeps them apart.
_ORDER, _ROWS, _STEP = range(3)


@dataclass(frozen=True)
class TextBatch:
    """The texts of a step: n queries, as many positives, m hard negatives.

    Attributes:
        name: of the data set ("a+b" where several share batches).
        step: the step that it is for.
        task: with the instruction drawn for this batch, without demonstrations.
        rows: n row numbers in the data set (where several share batches: in the rows of all of
            them, one data set after the other).
        queries: n texts.
        positives: n texts, one for each query.
        negatives: m texts, those of a query side by side and in the order of its row.
        owners: m indices of the query that a negative belongs to, ascending.
        scores: n tuples with a teacher's scores, of the query's positive and then of its own
            negatives in order; None unless every row of the batch has them.
        in_batch_negatives: whether other queries' passages are negatives.
    """

    name: str
    step: int
    task: Task
    rows: tuple[int, ...]
    queries: tuple[str, ...]
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    owners: tuple[int, ...]
    scores: tuple[tuple[float, ...], ...] | None
    in_batch_negatives: bool


@dataclass(frozen=True, eq=False)
class Share:
    """What an epoch has of one data set, or of several that share batches.

    Attributes:
        name: of the data sets.
        sets: which they are.
        starts: per data set, what is added to its row numbers to tell them from others'.
        rows: per data set, how many rows are drawn in an epoch.
        size: rows per batch.
        batches: batches per epoch.
    """

    name: str
    sets: tuple[TrainingSet, ...]
    starts: tuple[int, ...]
    rows: tuple[int, ...]
    size: int
    batches: int

    def draw(self, number: int, most: int, rng: np.random.Generator) -> TrainingRow:
        """One positive of a row and at most so many of its negatives, none twice."""
        which = bisect_right(self.starts, number) - 1
        store, row = self.sets[which].rows, number - self.starts[which]
        positives, negatives = store.counts(row)
        positive = int(rng.integers(positives)) if positives > 1 else 0
        chosen = range(negatives)
        if negatives > most:
            chosen = rng.choice(negatives, most, replace=False).tolist()
        return store.select(row, positive, chosen)


@dataclass(frozen=True, eq=False)
class _Epoch:
    """The order of an epoch.

    Attributes:
        number: of the epoch, from 0.
        batches: (batches, 2) int64: whose batch it is, and which of its batches.
        rows: per share (rows,) int64: the rows, in the order of its batches.
    """

    number: int
    batches: NDArray[np.int64]
    rows: tuple[NDArray[np.int64], ...]


class BatchPlan:
    """Makes the batch of any step.

    Args:
        sets: the mix.
        batch_size: queries per batch.
        negatives: most hard negatives per query; 0 uses none.
        seed: of all draws, at least 0.
        same_dataset: a batch holds rows of one data set. Otherwise rows of all: since a batch has
            one prompt, the data sets must agree in instructions, `symmetric` and
            `in_batch_negatives`.

    Attributes:
        shares: who has how many of an epoch's batches.
        batches_per_epoch: their number.

    Raises:
        InputError: no data sets, a data set that leaves fewer than two rows, in_batch_negatives
            off without hard negatives, data sets that cannot share batches but have to.
    """

    def __init__(
        self,
        sets: Sequence[TrainingSet],
        batch_size: int,
        negatives: int,
        seed: int,
        same_dataset: bool = True,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 2),
            ("negatives", negatives, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise InputError(f"{name} is {value}; expected at least {least}")
        if not sets:
            raise InputError("no data sets; expected at least one to train on")
        for one in sets:
            if not (one.in_batch_negatives or negatives):
                raise InputError(
                    f"data set {one.name!r} has in_batch_negatives off, so that with negatives 0"
                    " there is nothing to tell a positive from; set negatives to at least 1"
                )
        if not same_dataset:
            _check_alike(sets)
        self.negatives, self.seed = negatives, seed
        groups = [(one,) for one in sets] if same_dataset else [tuple(sets)]
        self.shares = tuple(_share(group, batch_size) for group in groups)
        self.batches_per_epoch = sum(share.batches for share in self.shares)
        self._last: _Epoch | None = None

    def __call__(self, step: int) -> TextBatch:
        """The batch of a step, from 0 on. The first one asked for in an epoch takes longer.

        Raises:
            InputError: a negative step.
        """
        if step < 0:
            raise InputError(f"step is {step}; expected at least 0")
        epoch = self._epoch(step // self.batches_per_epoch)
        index, number = epoch.batches[step % self.batches_per_epoch].tolist()
        share = self.shares[index]
        numbers = epoch.rows[index][number * share.size : (number + 1) * share.size].tolist()
        rng = np.random.default_rng([self.seed, _STEP, step])
        tasks = share.sets[0].tasks  # those of the others have the same instructions
        task = tasks[int(rng.integers(len(tasks)))]
        rows = [share.draw(one, self.negatives, rng) for one in numbers]
        scored = all(row.positive_scores for row in rows)
        scores = tuple(row.positive_scores + row.negative_scores for row in rows)
        return TextBatch(
            name=share.name,
            step=step,
            task=task,
            rows=tuple(numbers),
            queries=tuple(row.query for row in rows),
            positives=tuple(row.positives[0] for row in rows),
            negatives=tuple(text for row in rows for text in row.negatives),
            owners=tuple(owner for owner, row in enumerate(rows) for _ in row.negatives),
            scores=scores if scored else None,
            in_batch_negatives=share.sets[0].in_batch_negatives,
        )

    def _epoch(self, number: int) -> _Epoch:
        epoch = self._last
        if epoch is None or epoch.number != number:
            # A function of seed and number: whoever computes it gets the same.
            self._last = epoch = _order(self.shares, self.seed, number)
        return epoch


def _check_alike(sets: Sequence[TrainingSet]) -> None:
    def prompt(one: TrainingSet) -> tuple[object, ...]:
        return (*((task.instruction, task.symmetric) for task in one.tasks), one.in_batch_negatives)

    for one in sets:
        if prompt(one) != prompt(sets[0]):
            raise InputError(
                "same_dataset is off, so all data sets share batches, and a batch has one prompt;"
                f" but {sets[0].name!r} and {one.name!r} differ in instructions,"
                " symmetric or in_batch_negatives: give them the same, or leave same_dataset on"
            )


def _share(sets: tuple[TrainingSet, ...], batch_size: int) -> Share:
    name = "+".join(one.name for one in sets)
    rows = tuple(round(one.ratio * len(one.train)) for one in sets)
    available = sum(len(one.train) for one in sets)
    size = min(batch_size, available, sum(rows))
    if size < 2:
        raise InputError(
            f"data set {name!r} has {available} rows to train on and uses {sum(rows)} of them per"
            " epoch; a batch needs at least 2: add rows, raise ratio, or remove the data set"
        )
    if size < batch_size:
        logger.warning(
            "data set %s: batches of %d rows instead of %d, since an epoch has no more of them",
            name,
            size,
            batch_size,
        )
    starts = (0, *accumulate(len(one.rows) for one in sets))[:-1]
    return Share(name, sets, starts, rows, size, sum(rows) // size)


def _order(shares: Sequence[Share], seed: int, number: int) -> _Epoch:
    """The order of epoch `number`, in some 40 ms per million rows."""
    rows = []
    place = 0
    for share in shares:
        parts = []
        for one, start, count in zip(share.sets, share.starts, share.rows, strict=True):
            rng = np.random.default_rng([seed, _ROWS, number, place])
            rounds = [rng.permutation(one.train) for _ in range(-(-count // len(one.train)))]
            parts.append(start + np.concatenate(rounds)[:count])
            place += 1
        rows.append(parts[0])
        if len(parts) > 1:
            rng = np.random.default_rng([seed, _ROWS, number, place])
            rows[-1] = rng.permutation(np.concatenate(parts))
    batches = [
        np.stack([np.full(share.batches, index), np.arange(share.batches)], axis=1)
        for index, share in enumerate(shares)
    ]
    rng = np.random.default_rng([seed, _ORDER, number])
    return _Epoch(number, rng.permutation(np.concatenate(batches)), tuple(rows))
