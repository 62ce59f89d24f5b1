"""Curves: the time of a query against one thing at a time, all else as in the other parts."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.benchmarking.bench import Bench, in_turns, ways_for
from epic_retrieval.benchmarking.cases import queries_of_length, with_lengths
from epic_retrieval.benchmarking.pipeline import Way
from epic_retrieval.errors import EpicError
from epic_retrieval.index import EncoderInfo, Passage, PassageIndex, build_index

if TYPE_CHECKING:
    from epic_retrieval.tasks import Task

_QUERIES = 4
# An encoder keeps the input of so many prompts that are run again; more would take turns in it.
_KEPT = 8
_CENTRES = 64
_MS = 1e3
_KINDS = ("flat", "auto")


def measure_scaling(bench: Bench) -> None:
    """All curves that the conditions ask for."""
    _by_demonstrations(bench)
    _by_demonstration_length(bench)
    _by_query_length(bench)
    _by_batch(bench)
    _by_corpus(bench)


def _by_demonstrations(bench: Bench) -> None:
    queries = bench.some_queries(_QUERIES)
    cases = [
        (count, bench.counted(bench.tasks[0], count), way, queries)
        for count in bench.conditions.scaling.demonstrations
        for way in ways_for(count, again=True)
    ]
    # Without demonstrations every curve begins at the same point.
    _curve(bench, "demonstrations", cases)


def _by_demonstration_length(bench: Bench) -> None:
    tokenizer = bench.encoder.checkpoint.tokenizer
    count = max(1, min(5, max(bench.conditions.k)))
    queries = bench.some_queries(_QUERIES)
    cases = [
        (
            length,
            with_lengths(bench.tasks[0], count, length, bench.passages, tokenizer),
            way,
            queries,
        )
        for length in bench.conditions.scaling.demonstration_tokens
        for way in ways_for(count, again=True)
    ]
    _curve(bench, "demonstration tokens", cases)


def _by_query_length(bench: Bench) -> None:
    tokenizer = bench.encoder.checkpoint.tokenizer
    count = max(1, min(5, max(bench.conditions.k)))
    task = bench.counted(bench.tasks[0], count)
    cases = [
        (length, task if way.mode != "none" else task.without_demonstrations(), way, texts)
        for length in bench.conditions.scaling.query_tokens
        for texts in [queries_of_length(_QUERIES, length, bench.passages, tokenizer)]
        for way in [*ways_for(0), *ways_for(count, again=True)]
    ]
    _curve(bench, "query tokens", cases)


def _by_batch(bench: Bench) -> None:
    count = min(5, max(bench.conditions.k))
    task = bench.counted(bench.tasks[0], count)
    work: dict[str, Callable[[], object]] = {}
    sizes: dict[str, int] = {}
    for size in bench.conditions.scaling.batch:
        queries = bench.some_queries(size)
        for way in dict.fromkeys([*ways_for(0), *ways_for(count)]):
            shown = task if way.mode != "none" else task.without_demonstrations()
            name = f"{way.name} x={size}"
            if bench.possible(f"scaling/batch/{way.name}", shown, way):
                work[name] = _encoding(bench, queries, shown, way)
                sizes[name] = size
    _keep(bench, "batch", work, sizes)


def _curve(bench: Bench, what: str, cases: "Sequence[tuple[int, Task, Way, list[str]]]") -> None:
    """Single queries of each case, in turns."""
    work: dict[str, Callable[[], object]] = {}
    for value, task, way, queries in cases:
        if bench.possible(f"scaling/{what}/{way.name} x={value}", task, way):
            work[f"{way.name} x={value}"] = _one_by_one(bench, queries, task, way)
    _keep(bench, what, work, dict.fromkeys(work, _QUERIES))


def _keep(
    bench: Bench, what: str, work: dict[str, Callable[[], object]], texts: dict[str, int]
) -> None:
    if not work:
        return
    for group in groups(list(work)):
        bench.tell(f"scaling: {what}, {len(group)} of {len(work)} points")
        often = {name: bench.conditions.slow_rounds for name in group if "again" in name}
        turns = {name: work[name] for name in group}
        for name, seconds in in_turns(turns, bench.conditions.rounds, often=often).items():
            values = [one * _MS / texts[name] for one in seconds]
            bench.record.add(f"scaling/{what}/{name}", "ms per query", values)


def groups(names: Sequence[str]) -> list[list[str]]:
    """Names of points in as few groups, in their order, as hold 8 that run their prompt again."""
    found: list[list[str]] = [[]]
    for name in names:
        if "again" in name and sum("again" in one for one in found[-1]) == _KEPT:
            found.append([])
        found[-1].append(name)
    return found


def _encoding(bench: Bench, queries: list[str], task: "Task", way: Way) -> Callable[[], object]:
    return lambda: bench.encoder.encode_queries(
        queries, task, way.mode, show_progress=False, share_prefix=way.share_prefix
    )


def _one_by_one(bench: Bench, queries: list[str], task: "Task", way: Way) -> Callable[[], object]:
    calls = [_encoding(bench, [query], task, way) for query in queries]

    def run() -> None:
        for call in calls:
            call()

    return run


def _by_corpus(bench: Bench) -> None:
    """Search alone, single queries, in indexes of random vectors of the model's width."""
    sizes = bench.conditions.scaling.corpus
    dimension = bench.encoder.dimension
    generator = np.random.default_rng(bench.conditions.seed)
    centres = _unit(generator.standard_normal((_CENTRES, dimension)))
    asked = clustered(generator, centres, 16)
    work: dict[str, Callable[[], object]] = {}
    opened: list[PassageIndex] = []
    try:
        for size in sizes:
            for kind in _KINDS:
                bench.tell(f"scaling: an index of {size:,} random vectors, {kind}")
                folder = bench.workspace / f"random-{size}-{kind}"
                try:
                    index = _random_index(folder, size, kind, centres, generator)
                except EpicError as error:
                    bench.record.left_out[f"scaling/corpus/{kind} x={size}"] = str(error)
                    continue
                opened.append(index)
                work[f"{kind} x={size}"] = _searching(index, asked, bench.conditions.top)
        _keep(bench, "corpus", work, dict.fromkeys(work, len(asked)))
    finally:
        for index in opened:
            index.close()


def _searching(index: PassageIndex, asked: NDArray[np.float32], top: int) -> Callable[[], object]:
    def run() -> None:
        for vector in asked:
            index.search(vector[None], top)

    return run


def _random_index(
    folder: Path,
    size: int,
    kind: str,
    centres: NDArray[np.float32],
    generator: np.random.Generator,
) -> PassageIndex:
    dimension = centres.shape[1]
    build_index(
        _numbered(size),
        lambda texts: clustered(generator, centres, len(texts)),
        folder,
        encoder=EncoderInfo("random", "random", dimension),
        kind=kind,
        total=size,
    )
    return PassageIndex.open(folder, check=False)


def clustered(
    generator: np.random.Generator, centres: NDArray[np.float32], count: int
) -> NDArray[np.float32]:
    """(count, d) vectors of length 1 around some centres, as those of texts lie."""
    chosen = centres[generator.integers(len(centres), size=count)]
    return _unit(chosen + 0.7 * _unit(generator.standard_normal(chosen.shape)))


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("f4")
    return found


def _numbered(size: int) -> Iterator[Passage]:
    for number in range(size):
        yield Passage(id=str(number), text=f"passage {number} " + "of some words " * 12)
