"""The parts that follow a request from the question to the first answer.

Stages of single requests, requests in batches, by chance, and the first one of a task.
"""

import asyncio
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from epic_retrieval.benchmarking.arrivals import Serve, open_loop, schedule
from epic_retrieval.benchmarking.bench import Bench, ways_for
from epic_retrieval.benchmarking.pipeline import Pipeline, Way, assemble
from epic_retrieval.encoder import EpicEncoder
from epic_retrieval.prompt_cache import PromptCache

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from epic_retrieval.tasks import Task

_PROBE = 24
_MS = 1e3


def measure_stages(bench: Bench) -> None:
    """Single requests, stage by stage, for every task, number of demonstrations and way."""
    plans = _plans(bench)
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in plans}
    with Pipeline(bench.encoder, bench.index, bench.answerer, bench.conditions.top) as pipeline:
        for name, (task, way) in plans.items():
            pipeline.ask(bench.queries[:1], task, way)
            bench.tell(f"stages: {name}")
        for number in range(bench.conditions.rounds):
            for query in bench.queries:
                for name, (task, way) in _turned(plans, number).items():
                    spent[name].append(pipeline.ask([query], task, way))
    for name, asked in spent.items():
        for stage in asked[0]:
            bench.record.add(f"stages/{name}/{stage}", "ms", [one[stage] * _MS for one in asked])


def measure_batches(bench: Bench) -> None:
    """Requests that arrive together: retrieval alone, since models answer batches in their ways."""
    count = min(5, max(bench.conditions.k))
    task = bench.task
    with Pipeline(bench.encoder, bench.index, bench.answerer, bench.conditions.top) as pipeline:
        for size in bench.conditions.batches:
            bench.tell(f"batches of {size}")
            asked = bench.some_queries(max(size, min(len(bench.queries), 4 * size)))
            for way in ways_for(count) + ways_for(0):
                shown = task if way.mode != "none" else task.without_demonstrations()
                if not bench.possible(f"batches/{way.name}", shown, way):
                    continue
                pipeline.ask(asked[:size], shown, way, answer=False)
                totals = [
                    pipeline.ask(asked[start : start + size], shown, way, answer=False)["total"]
                    for _ in range(bench.conditions.rounds)
                    for start in range(0, len(asked) - size + 1, size)
                ]
                name = f"batches/{way.name} batch={size}"
                bench.record.add(f"{name}/latency", "ms", [one * _MS for one in totals])
                bench.record.add(f"{name}/throughput", "queries/s", [size / one for one in totals])


def measure_arrivals(bench: Bench) -> None:
    """Requests by chance at several rates, with forward passes shared and one after the other."""
    way = ways_for(min(5, max(bench.conditions.k)))[-1]
    task = bench.task if way.mode != "none" else bench.task.without_demonstrations()
    alone = _capacity(bench, task, way)
    bench.record.facts["arrivals"] = {"one after the other, queries/s": round(alone, 2)}
    for share in bench.conditions.rates:
        due = schedule(alone * share, bench.conditions.requests, bench.conditions.seed)
        for name in ("shared passes", "one by one"):
            bench.tell(f"arrivals at {share:g} of capacity, {name}")
            latencies, seconds = asyncio.run(_serve(bench, task, way, due, shared="shared" in name))
            where = f"arrivals/{name} load={share:g}"
            bench.record.add(f"{where}/latency", "ms", [one * _MS for one in latencies])
            bench.record.add(f"{where}/throughput", "queries/s", [len(due) / seconds])


def measure_cold(bench: Bench) -> None:
    """The first query of a task: with nothing kept, with its prompt on disk, and a later one."""
    folder = bench.workspace / "prompts"
    query = list(bench.queries[:1])
    checkpoint = bench.encoder.checkpoint
    for way in ways_for(min(5, max(bench.conditions.k))) + ways_for(0):
        task = bench.task if way.mode != "none" else bench.task.without_demonstrations()
        if not bench.possible(f"cold/{way.name}", task, way):
            continue
        bench.tell(f"first queries, {way.name}")
        spent: dict[str, list[float]] = {"nothing kept": [], "prompt on disk": [], "warm": []}
        for _ in range(max(5, bench.conditions.rounds)):
            shutil.rmtree(folder, ignore_errors=True)
            for name in ("nothing kept", "prompt on disk"):
                encoder = EpicEncoder(checkpoint, PromptCache(folder))
                # Digests of weights belong to loading a model, not to a task.
                encoder.passage_fingerprint()
                spent[name].append(_seconds(encoder, query, task, way))
            spent["warm"].append(_seconds(encoder, query, task, way))
        for name, values in spent.items():
            bench.record.add(f"cold/{way.name}/{name}", "ms", [one * _MS for one in values])
    shutil.rmtree(folder, ignore_errors=True)


def _plans(bench: Bench) -> "dict[str, tuple[Task, Way]]":
    """Every combination that the model has room for, by name."""
    plans = {}
    for base in bench.tasks:
        for count in bench.conditions.k:
            task = bench.counted(base, count)
            for way in ways_for(count):
                name = f"{base.name} {way.name} k={count}"
                if bench.possible(f"stages/{name}", task, way):
                    plans[name] = (task, way)
    return plans


def _turned(plans: "dict[str, tuple[Task, Way]]", number: int) -> "dict[str, tuple[Task, Way]]":
    names = list(plans)
    turn = number % len(names)
    return {name: plans[name] for name in names[turn:] + names[:turn]}


def _seconds(encoder: EpicEncoder, query: Sequence[str], task: "Task", way: Way) -> float:
    start = time.perf_counter()
    encoder.encode_queries(query, task, way.mode, show_progress=False)
    return time.perf_counter() - start


def _capacity(bench: Bench, task: "Task", way: Way) -> float:
    """Queries a second that retrieval answers one after the other."""
    queries = bench.some_queries(_PROBE)
    with Pipeline(bench.encoder, bench.index, bench.answerer, bench.conditions.top) as pipeline:
        pipeline.ask(queries[:1], task, way, answer=False)
        start = time.perf_counter()
        for query in queries:
            pipeline.ask([query], task, way, answer=False)
        return len(queries) / (time.perf_counter() - start)


async def _serve(
    bench: Bench, task: "Task", way: Way, due: Sequence[float], *, shared: bool
) -> tuple[list[float], float]:
    encoder, index, top = bench.encoder, bench.index, bench.conditions.top
    asked = bench.some_queries(len(due))

    def retrieve(vector: "NDArray[np.float32]", question: str) -> str:
        return assemble(question, index.search(vector[None], top)[0])

    def alone(question: str) -> str:
        vectors = encoder.encode_queries([question], task, way.mode, show_progress=False)
        return retrieve(vectors[0], question)

    loop = asyncio.get_running_loop()

    async def together(number: int) -> None:
        vector = await encoder.aencode_query(asked[number], task, way.mode)
        prompt = await asyncio.to_thread(retrieve, vector, asked[number])
        await bench.answerer.first_later(prompt)

    with ThreadPoolExecutor(max_workers=1) as queue:

        async def in_line(number: int) -> None:
            prompt = await loop.run_in_executor(queue, alone, asked[number])
            await bench.answerer.first_later(prompt)

        serve: Serve = together if shared else in_line
        return await open_loop(due, serve)
