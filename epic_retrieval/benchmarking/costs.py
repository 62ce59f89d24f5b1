"""What a task's prompt costs beside time: positions, memory, disk, and preparing it once."""

import math
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from epic_retrieval.benchmarking.bench import Bench, in_turns, ways_for
from epic_retrieval.benchmarking.pipeline import Way
from epic_retrieval.benchmarking.shapes import counted_costs, known_shapes, shape_of
from epic_retrieval.encoder import EpicEncoder
from epic_retrieval.prompt import query_prompt
from epic_retrieval.prompt_cache import PromptCache

if TYPE_CHECKING:
    from epic_retrieval.tasks import Task

_QUERIES = 4
_MS = 1e3


def measure_costs(bench: Bench) -> None:
    """For every task, number of demonstrations and way: positions, bytes, preparation, payback."""
    rows = [
        row
        for base in bench.tasks
        for count in bench.conditions.k
        for row in _rows_of(bench, bench.counted(base, count), count)
    ]
    bench.record.facts["costs"] = {"own_tokens_per_query": _own_tokens(bench), "prompts": rows}
    shapes, assumed = known_shapes()
    bench.record.facts["larger models"] = {
        "assumed": vars(assumed),
        "shapes": {one.name: counted_costs(one, assumed) for one in shapes},
    }


def payback(once: float, shared: float, again: float) -> int | None:
    """The number of queries from which preparing a prompt once has cost no more than running it
    again for each; None where it never does.

    Args:
        once: cost of preparing.
        shared: cost of a query afterwards.
        again: cost of a query that runs the prompt itself.
    """  # noqa: D205 (one sentence)
    return math.ceil(once / (again - shared)) if again > shared else None


def _rows_of(bench: Bench, task: "Task", count: int) -> list[dict[str, Any]]:
    return [
        _row(bench, task, way, count)
        for way in ways_for(count)
        if bench.possible(f"costs/{task.name} {way.name} k={count}", task, way)
    ]


def _row(bench: Bench, task: "Task", way: Way, count: int) -> dict[str, Any]:
    bench.tell(f"costs: {task.name} {way.name} k={count}")
    name = f"{task.name} {way.name} k={count}"
    prepared = [_prepare_seconds(bench, task, way) for _ in range(max(5, bench.conditions.rounds))]
    bench.record.add(f"costs/{name}/prepare", "ms", [one * _MS for one in prepared])
    queries = bench.some_queries(_QUERIES)
    both = {one.name: one for one in (way, Way(way.mode, share_prefix=False))}

    spent = in_turns(
        {label: partial(_encode, bench, queries, task, one) for label, one in both.items()},
        bench.conditions.slow_rounds,
    )
    shared, again = (statistics.median(values) / _QUERIES for values in spent.values())
    for label, values in spent.items():
        each = [one * _MS / _QUERIES for one in values]
        bench.record.add(
            f"costs/{name}/query, {'again' if 'again' in label else 'shared'}", "ms", each
        )
    positions = bench.encoder.prepare(task, way.mode)
    shape = shape_of(bench.encoder.checkpoint.backbone.model.config, bench.encoder.name)
    width = bench.encoder.checkpoint.backbone.dtype.itemsize
    return {
        "task": task.name,
        "way": way.name,
        "k": count,
        "positions": positions,
        "keys_values_bytes": positions * shape.bytes_per_position(width),
        "disk_bytes": _disk_bytes(bench, task, way),
        "paid_back_after_queries": payback(statistics.median(prepared), shared, again),
    }


def _encode(bench: Bench, queries: list[str], task: "Task", way: Way) -> None:
    for query in queries:
        bench.encoder.encode_queries(
            [query], task, way.mode, show_progress=False, share_prefix=way.share_prefix
        )


def _fresh(bench: Bench, cache: PromptCache) -> EpicEncoder:
    encoder = EpicEncoder(bench.encoder.checkpoint, cache)
    encoder.passage_fingerprint()  # digests of weights belong to loading a model
    return encoder


def _prepare_seconds(bench: Bench, task: "Task", way: Way) -> float:
    encoder = _fresh(bench, PromptCache(None))
    start = time.perf_counter()
    encoder.prepare(task, way.mode)
    if encoder.device.type == "cuda":
        torch.cuda.synchronize(encoder.device)  # what was asked for need not be done yet
    return time.perf_counter() - start


def _disk_bytes(bench: Bench, task: "Task", way: Way) -> int:
    """The size of the files that keep this prompt and what making it left behind."""
    with tempfile.TemporaryDirectory(dir=bench.workspace) as name:
        _fresh(bench, PromptCache(Path(name))).prepare(task, way.mode)
        return sum(file.stat().st_size for file in Path(name).rglob("*") if file.is_file())


def _own_tokens(bench: Bench) -> float:
    """Tokens that a query itself takes, end token included, on average."""
    checkpoint = bench.encoder.checkpoint
    wording = query_prompt(checkpoint.config.template, bench.task, "none")
    rows = checkpoint.tokenizer.text_ids(bench.queries, wording, checkpoint.config.max_length)
    return round(sum(map(len, rows)) / len(rows), 2)
