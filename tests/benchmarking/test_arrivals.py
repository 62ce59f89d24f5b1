import asyncio

import numpy as np
import pytest

from epic_retrieval.benchmarking.arrivals import open_loop, schedule
from epic_retrieval.errors import InputError


def test_a_schedule_by_hand() -> None:
    gaps = np.random.default_rng(7).exponential(0.5, size=3)
    assert schedule(2.0, 3, seed=7) == pytest.approx([gaps[0], gaps[0] + gaps[1], gaps.sum()])


def test_arrivals_are_a_poisson_process() -> None:
    due = np.array(schedule(50.0, 20_000))
    gaps = np.diff(due)
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.05)  # of an exponential: its mean
    counts = np.bincount(due.astype(int))[:-1]
    assert counts.var() == pytest.approx(counts.mean(), rel=0.2)  # of a Poisson count: its mean
    assert schedule(50.0, 10) == schedule(50.0, 10)
    assert schedule(50.0, 10) != schedule(50.0, 10, seed=1)


@pytest.mark.parametrize(("rate", "count"), [(0.0, 5), (-1.0, 5), (1.0, 0)])
def test_impossible_schedules(rate: float, count: int) -> None:
    with pytest.raises(InputError, match="more than 0"):
        schedule(rate, count)


async def test_the_loop_does_not_wait_for_answers() -> None:
    running, most, order = 0, 0, []

    async def serve(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        order.append(number)
        await asyncio.sleep(0.05)
        running -= 1

    latencies, seconds = await open_loop([0.0, 0.001, 0.002, 0.003], serve)
    assert order == [0, 1, 2, 3]
    assert most > 1
    assert len(latencies) == 4
    assert min(latencies) >= 0.049
    assert seconds >= 0.05


async def test_latency_counts_from_when_a_request_was_due() -> None:
    lock = asyncio.Lock()

    async def one_at_a_time(_number: int) -> None:
        async with lock:
            await asyncio.sleep(0.02)

    latencies, _ = await open_loop([0.0] * 5, one_at_a_time)
    # Those that wait for others have waited since the beginning.
    assert all(found >= 0.0195 * place for place, found in enumerate(sorted(latencies), start=1))
