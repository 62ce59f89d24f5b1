"""What the adapters add to a query's time, and what concurrent queries gain, on the bundled model.

    OMP_NUM_THREADS=1 python benchmarks/adapters.py --out adapters.json

Overhead: every query goes through core and through each adapter, one right after the other and in
turning order; the figure is the median over queries of the difference to core, with a bootstrap
interval, in time and in the thread's time on a core, which other processes disturb less. Core
stands among the adapters too: what it costs more than itself is noise. So does the least that
LlamaIndex allows, its base class around core, which fires events and spans for every query. A third
figure has the model's work taken out: what an adapter and its framework do on their own.

Throughput: 32 queries asked at once of the asynchronous interface, beside the same queries one
after the other, synchronously, which is the fastest way to ask singly. Rounds are interleaved; the
ratio is given in time, and in the process's time on its cores.

Queries are those of the demonstrations of built-in tasks. Needs all four frameworks; nothing is
read or fetched.
"""

import asyncio
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tqdm import tqdm

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")

from llama_index.core.base.embeddings.base import BaseEmbedding
from sentence_transformers import SentenceTransformer

from epic_retrieval import builtin_tasks, shared_encoder
from haystack_epic import EpicTextEmbedder
from langchain_epic import EpicEmbeddings
from llama_index_epic import EpicEmbedding
from sentence_transformers_epic import EpicModule

TASK = "python-docs"
AT_ONCE = 32
SEED = 0
FRAMEWORKS = (
    "langchain-core",
    "llama-index-core",
    "haystack-ai",
    "sentence-transformers",
    "torch",
    "transformers",
)

Ask = Callable[[str], object]
AskLater = Callable[[str], Awaitable[object]]


class Least(BaseEmbedding):
    """LlamaIndex's base class around core, and nothing else."""

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = shared_encoder().encode_queries([query], TASK)[0].tolist()
        return vector

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_query_embedding(text)


def synchronous() -> dict[str, Ask]:
    """Core and each adapter: a text to its vector."""
    encoder = shared_encoder()
    component: Any = EpicTextEmbedder(task=TASK)
    model: Any = SentenceTransformer(modules=[EpicModule(task=TASK)])

    def core(text: str) -> object:
        return encoder.encode_queries([text], TASK, show_progress=False)

    return {
        "core": core,
        "core again": core,
        "langchain": EpicEmbeddings(task=TASK).embed_query,
        "llama-index": EpicEmbedding(task=TASK).get_query_embedding,
        "llama-index, base class alone": Least().get_query_embedding,
        "haystack": component.run,
        "sentence-transformers": lambda text: model.encode_query(text, show_progress_bar=False),
    }


def asynchronous() -> dict[str, AskLater]:
    """Core and the adapters that have an asynchronous interface."""
    encoder = shared_encoder()
    component: Any = EpicTextEmbedder(task=TASK)
    component.warm_up()
    return {
        "core": lambda text: encoder.aencode_query(text, TASK),
        "langchain": EpicEmbeddings(task=TASK).aembed_query,
        "llama-index": EpicEmbedding(task=TASK).aget_query_embedding,
        "haystack": component.run_async,
    }


def median(values: Any) -> dict[str, Any]:  # noqa: ANN401
    """Median and 95 % bootstrap interval."""
    sample = np.asarray(values)
    draws = np.random.default_rng(SEED).choice(sample, size=(2000, len(sample)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {"median": float(np.median(sample)), "interval": [float(low), float(high)]}


def overhead(queries: list[str], rounds: int) -> dict[str, Any]:
    """Milliseconds per query of each way, and how many more than core."""
    ways = synchronous()
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for ask in ways.values():
        for query in queries:
            ask(query)
    names = list(ways)
    for number in tqdm(range(rounds), desc="overhead"):
        for place, query in enumerate(queries):
            for name in np.roll(names, number + place).tolist():
                wall, core = time.perf_counter(), time.thread_time()
                ways[name](query)
                spent[name].append((time.perf_counter() - wall, time.thread_time() - core))
    times = {name: np.array(pairs).T * 1e3 for name, pairs in spent.items()}  # (2, n)
    others = [name for name in names if name != "core"]
    return {
        "milliseconds_p50": {name: float(np.median(times[name][0])) for name in names},
        "more_than_core": {name: median(times[name][0] - times["core"][0]) for name in others},
        "more_than_core_cpu": {name: median(times[name][1] - times["core"][1]) for name in others},
        "llama_index_more_than_its_base_class_cpu": median(
            times["llama-index"][1] - times["llama-index, base class alone"][1]
        ),
        "without_the_model": without_the_model(ways, queries),
        "queries_timed": len(spent["core"]),
    }


def without_the_model(ways: dict[str, Ask], queries: list[str]) -> dict[str, float]:
    """Milliseconds per query (p50, thread's time) where the encoder answers at once."""
    encoder = shared_encoder()
    answer = encoder.encode_queries(["any"], TASK)
    vars(encoder)["encode_queries"] = lambda *_given, **_options: answer
    try:
        return {name: alone(ask, queries * 30) for name, ask in ways.items() if name != "core"}
    finally:
        del vars(encoder)["encode_queries"]


def alone(ask: Ask, queries: list[str]) -> float:
    """Median milliseconds of a query, nothing else in between."""
    spent = []
    for query in queries:
        started = time.thread_time()
        ask(query)
        spent.append(time.thread_time() - started)
    return float(np.median(spent)) * 1e3


async def throughput(queries: list[str], rounds: int) -> dict[str, Any]:
    """Queries a second asked at once, over those of single synchronous calls of the same round."""
    later, single = asynchronous(), synchronous()["core"]
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ["one by one", *later]}
    for ask in later.values():
        await asyncio.gather(*map(ask, queries))
    for number in tqdm(range(rounds), desc="throughput"):
        for name in np.roll(list(spent), number).tolist():
            wall, core = time.perf_counter(), time.process_time()
            if name == "one by one":
                for query in queries:
                    single(query)
            else:
                await asyncio.gather(*map(later[name], queries))
            spent[name].append((time.perf_counter() - wall, time.process_time() - core))
    times = {name: np.array(pairs).T for name, pairs in spent.items()}  # (2, rounds)
    single_times = times["one by one"]
    return {
        "at_once": len(queries),
        "queries_per_second": {
            name: len(queries) / float(np.median(times[name][0])) for name in times
        },
        "times_one_by_one": {name: median(single_times[0] / times[name][0]) for name in later},
        "times_one_by_one_cpu": {name: median(single_times[1] / times[name][1]) for name in later},
        "rounds": rounds,
    }


def environment() -> dict[str, Any]:
    """What the figures belong to."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {name: version(name) for name in FRAMEWORKS},
    }


def report(result: dict[str, Any]) -> list[str]:
    """The result as lines of Markdown."""

    def said(one: dict[str, Any], form: str) -> str:
        low, high = (format(bound, form) for bound in one["interval"])
        return f"{one['median']:{form}} ({low} to {high})"

    times = result["overhead"]
    lines = ["| ms per query, p50 | all | more than core | the same, CPU | without the model |"]
    lines.append("|---|---|---|---|---|")
    lines.append(f"| core | {times['milliseconds_p50']['core']:.2f} | | | |")
    for name, more in times["more_than_core"].items():
        cpu, bare = times["more_than_core_cpu"][name], times["without_the_model"][name]
        spent = times["milliseconds_p50"][name]
        cells = (name, f"{spent:.2f}", said(more, "+.3f"), said(cpu, "+.3f"), f"{bare:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    own = times["llama_index_more_than_its_base_class_cpu"]
    lines += ["", f"llama-index, more than its base class alone (CPU): {said(own, '+.3f')}"]
    lines += ["", "| asked at once | queries a second | over one by one | the same, CPU |"]
    lines.append("|---|---|---|---|")
    rates = result["throughput"]["queries_per_second"]
    lines.append(f"| one by one | {rates['one by one']:.0f} | 1 | 1 |")
    for name, gain in result["throughput"]["times_one_by_one"].items():
        cpu = said(result["throughput"]["times_one_by_one_cpu"][name], ".2f")
        lines.append(f"| {name} | {rates[name]:.0f} | {said(gain, '.2f')} | {cpu} |")
    return lines


def main(
    out: Annotated[Path | None, typer.Option(help="JSON file for the result.")] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Of all queries.")] = 15,
) -> None:
    """Measure, print, write."""
    where = environment()  # the load before we add to it
    shown = [one.query for task in builtin_tasks().values() for one in task.demonstrations]
    queries = shown[:AT_ONCE]
    mode = shared_encoder().default_mode(TASK)
    result = {
        "model": shared_encoder().name,
        "task": TASK,
        "mode": mode,
        "queries": len(queries),
        "overhead": overhead(queries, rounds),
        "throughput": asyncio.run(throughput(queries, rounds)),
    }
    for line in report(result):
        typer.echo(line)
    if out is not None:
        out.write_text(json.dumps({**where, **result}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
