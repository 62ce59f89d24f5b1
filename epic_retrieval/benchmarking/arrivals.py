"""Requests that arrive by chance (Poisson), whether earlier ones are done or not: an open loop.

A client that waits for its answer before it asks again would slow down with the server and hide
its queue. Here every request has its time, and its latency counts from then. Knows nothing of
what is asked.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from epic_retrieval.errors import InputError

Serve = Callable[[int], Awaitable[None]]


def schedule(rate: float, count: int, seed: int = 0) -> list[float]:
    """Seconds from the start at which `count` requests arrive, `rate` a second on average.

    Raises:
        InputError: a rate that is not positive, or no request.
    """
    if rate <= 0 or count < 1:
        raise InputError(f"{count} requests at {rate} a second; expected more than 0 of both")
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=count)
    due: list[float] = np.cumsum(gaps).tolist()
    return due


async def open_loop(due: Sequence[float], serve: Serve) -> tuple[list[float], float]:
    """Serve every request from the moment that it is due.

    Args:
        due: seconds from the start, ascending.
        serve: called with a request's number; many run at the same time.

    Returns:
        Seconds from when each request was due until it was served, and the seconds until the last
        one was.
    """
    start = time.perf_counter()

    async def one(number: int, moment: float) -> float:
        await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
        await serve(number)
        return time.perf_counter() - start - moment

    latencies = await asyncio.gather(*(one(n, moment) for n, moment in enumerate(due)))
    return list(latencies), time.perf_counter() - start
