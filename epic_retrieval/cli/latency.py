"""What a single query costs behind each kind of prompt, measured side by side in one run.

Knows the encoder's public verbs; prints nothing.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from epic_retrieval.encoder import EpicEncoder
    from epic_retrieval.tasks import Task

_Mode = Literal["epic", "text", "none"]


@dataclass(frozen=True)
class Condition:
    """One way to encode a query."""

    label: str
    mode: _Mode
    share_prefix: bool = True


CONDITIONS = (
    Condition("instruction only", "none"),
    Condition("demonstrations as text", "text"),
    Condition("demonstrations as vectors (EPIC)", "epic"),
    Condition("as text, prompt run again for each query", "text", share_prefix=False),
    Condition("EPIC, prompt run again for each query", "epic", share_prefix=False),
)


@dataclass(frozen=True)
class Latency:
    """Costs of one condition.

    Attributes:
        condition: what was measured.
        query_ms: median over single queries, interleaved with the other conditions'.
        prompt_tokens: positions that the prompt takes.
        prepare_ms: median cost of computing the prompt once; None where nothing is kept.
    """

    condition: Condition
    query_ms: float
    prompt_tokens: int
    prepare_ms: float | None


def measure(
    fresh_encoder: Callable[[], "EpicEncoder"],
    task: "Task",
    queries: Sequence[str],
    *,
    seconds: float = 10.0,
    conditions: Sequence[Condition] = CONDITIONS,
) -> list[Latency]:
    """Times every condition on the same queries until `seconds` are over, two rounds at least.

    Args:
        fresh_encoder: gives the same model with an empty prompt cache each time.
        task: a task with demonstrations.
        queries: each is encoded alone, by every condition in turn before the next query comes.
        seconds: time to spend on queries, wall clock; preparation comes on top.
        conditions: what to compare.

    Returns:
        One result per condition, in the order given.
    """
    encoder = fresh_encoder()
    modes = tuple(dict.fromkeys(condition.mode for condition in conditions))
    prepare_ms = {
        mode: statistics.median(_prepare_ms(fresh_encoder(), task, mode) for _ in range(3))
        for mode in modes
    }
    times: list[list[float]] = [[] for _ in conditions]
    _one_round(encoder, task, queries, conditions, times)
    times = [[] for _ in conditions]  # the first round warmed up
    end = time.perf_counter() + seconds
    while len(times[0]) < 2 * len(queries) or time.perf_counter() < end:
        _one_round(encoder, task, queries, conditions, times)
    return [
        Latency(
            condition,
            query_ms=statistics.median(spent),
            prompt_tokens=encoder.prepare(task, condition.mode),
            prepare_ms=prepare_ms[condition.mode] if condition.share_prefix else None,
        )
        for condition, spent in zip(conditions, times, strict=True)
    ]


def _prepare_ms(
    encoder: "EpicEncoder", task: "Task", mode: Literal["epic", "text", "none"]
) -> float:
    start = time.perf_counter()
    encoder.prepare(task, mode)
    return (time.perf_counter() - start) * 1e3


def _one_round(
    encoder: "EpicEncoder",
    task: "Task",
    queries: Sequence[str],
    conditions: Sequence[Condition],
    times: list[list[float]],
) -> None:
    for query in queries:
        for condition, spent in zip(conditions, times, strict=True):
            start = time.perf_counter()
            encoder.encode_queries(
                [query],
                task,
                condition.mode,
                show_progress=False,
                share_prefix=condition.share_prefix,
            )
            spent.append((time.perf_counter() - start) * 1e3)
