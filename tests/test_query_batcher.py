"""Concurrent callers share forward passes; nobody waits for ever, nobody gets another's vector."""

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from epic_retrieval.query_batcher import QueryBatcher


class Encoder:
    """The vector of text "7" is [7.]; keeps what it was called with, and may be made to wait."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], Any]] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, texts: Sequence[str], kind: Any) -> NDArray[np.float32]:  # noqa: ANN401
        self.calls.append((list(texts), kind))
        assert self.go.wait(10)
        if "bad" in texts:
            raise ValueError("bad text")
        return np.array([[float(text)] for text in texts], dtype=np.float32)


def wait_for_call(encoder: Encoder, count: int = 1) -> None:
    until = time.monotonic() + 10
    while len(encoder.calls) < count:
        assert time.monotonic() < until
        time.sleep(0.001)


def test_what_gathers_while_the_worker_is_busy_goes_together() -> None:
    encoder = Encoder()
    encoder.go.clear()
    with QueryBatcher(encoder, max_wait=0) as batcher:
        first = batcher.submit("0", "a")
        wait_for_call(encoder)
        later = [batcher.submit(str(i), "a") for i in range(1, 10)]
        encoder.go.set()
        assert [float(one.result(10)[0]) for one in (first, *later)] == list(range(10))
    assert [len(texts) for texts, _ in encoder.calls] == [1, 9]


def test_an_idle_worker_waits_a_moment_for_company() -> None:
    encoder = Encoder()
    with QueryBatcher(encoder, max_wait=0.3) as batcher:
        futures = [batcher.submit(str(i), "a") for i in range(5)]
        for one in futures:
            one.result(10)
    assert len(encoder.calls) == 1


def test_a_full_batch_does_not_wait() -> None:
    encoder = Encoder()
    with QueryBatcher(encoder, max_wait=60, max_batch=3) as batcher:
        futures = [batcher.submit(str(i), "a") for i in range(3)]
        assert [float(one.result(10)[0]) for one in futures] == [0, 1, 2]


def test_kinds_are_never_mixed_and_the_oldest_comes_first() -> None:
    encoder = Encoder()
    encoder.go.clear()
    with QueryBatcher(encoder, max_wait=0, max_batch=4) as batcher:
        futures = [batcher.submit("0", "start")]
        wait_for_call(encoder)
        kinds = ["b", "a", "a", "b", "a", "a", "a"]
        futures += [batcher.submit(str(i), kind) for i, kind in enumerate(kinds, start=1)]
        encoder.go.set()
        assert [float(one.result(10)[0]) for one in futures] == list(range(8))
    assert [kind for _, kind in encoder.calls] == ["start", "b", "a", "a"]
    assert [texts for texts, _ in encoder.calls[1:]] == [["1", "4"], ["2", "3", "5", "6"], ["7"]]


def test_a_bad_text_fails_alone() -> None:
    encoder = Encoder()
    with QueryBatcher(encoder, max_wait=0.2) as batcher:
        futures = [batcher.submit(text, "a") for text in ("1", "bad", "3")]
        assert [float(futures[i].result(10)[0]) for i in (0, 2)] == [1, 3]
        with pytest.raises(ValueError, match="bad text"):
            futures[1].result(10)


def test_cancelled_queries_are_not_run() -> None:
    encoder = Encoder()
    encoder.go.clear()
    with QueryBatcher(encoder, max_wait=0) as batcher:
        first = batcher.submit("0", "a")
        wait_for_call(encoder)
        unwanted, wanted = batcher.submit("1", "a"), batcher.submit("2", "a")
        assert unwanted.cancel()
        assert not first.cancel()  # it runs
        encoder.go.set()
        assert wanted.result(10)[0] == 2
        with pytest.raises(CancelledError):
            unwanted.result(10)
    assert encoder.calls[1][0] == ["2"]


def test_many_threads_each_get_their_own() -> None:
    encoder, wrong = Encoder(), []
    with QueryBatcher(encoder, max_wait=0.001, max_batch=8) as batcher:

        def ask(thread: int) -> None:
            for i in range(20):
                number = thread * 100 + i
                if float(batcher.submit(str(number), number % 2).result(10)[0]) != number:
                    wrong.append(number)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    assert not wrong
    assert sum(len(texts) for texts, _ in encoder.calls) == 160
    assert len(encoder.calls) < 160  # some were shared
    assert all(len(texts) <= 8 for texts, _ in encoder.calls)


async def test_asyncio_waits_for_a_future_and_passes_cancelling_on() -> None:
    encoder = Encoder()
    with QueryBatcher(encoder, max_wait=0) as batcher:
        vectors = await asyncio.gather(
            *(asyncio.wrap_future(batcher.submit(str(i), "a")) for i in range(5))
        )
        assert [float(vector[0]) for vector in vectors] == [0, 1, 2, 3, 4]
        encoder.go.clear()
        blocking: Future[Any] = batcher.submit("0", "a")
        wait_for_call(encoder, len(encoder.calls) + 1)
        inner = batcher.submit("1", "a")
        waiting = asyncio.wrap_future(inner)
        waiting.cancel()
        await asyncio.sleep(0.01)
        assert inner.cancelled()
        encoder.go.set()
        blocking.result(10)


def test_closing_answers_what_is_queued() -> None:
    encoder = Encoder()
    batcher = QueryBatcher(encoder, max_wait=60)
    futures = [batcher.submit(str(i), "a") for i in range(3)]
    batcher.close()
    assert [float(one.result(0)[0]) for one in futures] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit("3", "a")
    QueryBatcher(encoder).close()  # never used
