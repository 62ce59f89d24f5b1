"""What every part of a benchmark works with, and how conditions take turns.

Conditions are interleaved: what disturbs a machine for a while then disturbs all of them alike.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from epic_retrieval.benchmarking.cases import with_count
from epic_retrieval.benchmarking.conditions import Conditions
from epic_retrieval.benchmarking.pipeline import Way
from epic_retrieval.benchmarking.record import Record
from epic_retrieval.errors import EpicError

if TYPE_CHECKING:
    from epic_retrieval.benchmarking.answering import Answerer
    from epic_retrieval.encoder import EpicEncoder
    from epic_retrieval.index import Passage, PassageIndex
    from epic_retrieval.tasks import Task

Tell = Callable[[str], None]


@dataclass
class Bench:
    """One run: what is measured, on what, and where results go.

    Attributes:
        encoder: of queries, with a projector.
        index: of `passages`, made by this encoder.
        passages: some of the corpus, for demonstrations and texts that have to be made.
        tasks: the first one is what arrivals, rivals and curves use.
        queries: texts to ask.
        answerer: the language model, or what stands for it.
        conditions: what is varied.
        record: gets what is found.
        workspace: a folder that goes away afterwards.
        python: interpreter that has FlagEmbedding; None is this one.
        tell: says what happens.
    """

    encoder: "EpicEncoder"
    index: "PassageIndex"
    passages: "Sequence[Passage]"
    tasks: "Sequence[Task]"
    queries: Sequence[str]
    answerer: "Answerer"
    conditions: Conditions
    record: Record
    workspace: Path
    python: str | None = None
    tell: Tell = field(default=lambda _line: None)

    @property
    def task(self) -> "Task":
        """The first task with the most demonstrations that are asked for, five at best."""
        return self.counted(self.tasks[0], min(5, max(self.conditions.k)))

    def counted(self, task: "Task", count: int) -> "Task":
        """A task with so many demonstrations."""
        return with_count(task, count, self.passages)

    def some_queries(self, count: int) -> list[str]:
        """So many queries, from the start again where there are fewer."""
        return [self.queries[place % len(self.queries)] for place in range(count)]

    def possible(self, name: str, task: "Task", way: Way) -> bool:
        """Whether the model has room for a task's prompt; if not, the record says so."""
        try:
            self.encoder.prepare(task, way.mode)
        except EpicError as error:
            self.record.left_out[name] = str(error)
            return False
        return True


def ways_for(count: int, *, again: bool = False) -> list[Way]:
    """The ways to show so many demonstrations; with `again`, those that share no prompt too."""
    if not count:
        return [Way("none")]
    ways = [Way("text"), Way("epic")]
    return (
        [*ways, Way("text", share_prefix=False), Way("epic", share_prefix=False)] if again else ways
    )


def in_turns(
    work: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    often: Mapping[str, int] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every condition, round by round, after a warm-up; the order turns with the round.

    Args:
        work: what to time, by name.
        rounds: how often.
        often: fewer rounds for some names.
    """
    limits = dict.fromkeys(work, rounds) | dict(often or {})
    for call in work.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    names = list(work)
    for number in range(rounds):
        turn = number % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            if number < limits[name]:
                start = time.perf_counter()
                work[name]()
                seconds[name].append(time.perf_counter() - start)
    return seconds
