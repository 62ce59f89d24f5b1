"""QueryBatcher: queries of concurrent callers share forward passes.

A RAG service answers many requests at once, each with one query. One worker thread takes what has
gathered while it was busy, all queries of one task and mode together, oldest request first, and
waits a moment for more when it is idle. Knows nothing of models.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Encode = Callable[[Sequence[str], Any], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class _Request:
    text: str
    kind: Hashable
    future: "Future[Vector]" = field(default_factory=Future)


class QueryBatcher:
    """Gathers single queries into batches.

    Args:
        encode: called with n texts and what they have in common (`kind`), in the worker thread
            alone; returns (n, d) in order.
        max_wait: seconds that an idle worker waits for company after a first query.
        max_batch: most queries per call.
    """

    def __init__(self, encode: Encode, *, max_wait: float = 0.002, max_batch: int = 64) -> None:
        self._encode, self._max_wait, self._max_batch = encode, max_wait, max_batch
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._worker: threading.Thread | None = None

    def submit(self, text: str, kind: Hashable) -> "Future[Vector]":
        """Queue a query; its vector (d,) comes as a future, which may be cancelled until it runs.

        Raises:
            RuntimeError: after `close`.
        """
        request = _Request(text, kind)
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="queries", daemon=True)
                self._worker.start()
            self._waiting.append(request)
            self._changed.notify()
        return request.future

    def close(self) -> None:
        """Answer what is queued, then stop the worker."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        # The last reference to an encoder may go in the worker itself.
        if self._worker is not None and self._worker is not threading.current_thread():
            self._worker.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _work(self) -> None:
        while batch := self._next():
            # From here on a request cannot be cancelled any more; those that were drop out.
            running = [one for one in batch if one.future.set_running_or_notify_cancel()]
            if running:
                self._answer(running)

    def _next(self) -> list[_Request]:
        """The oldest request and those that can go with it; none when all is done."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return []
                self._changed.wait()
            until = time.monotonic() + self._max_wait
            while len(self._waiting) < self._max_batch and not self._closed:
                if not self._changed.wait(until - time.monotonic()):
                    break
            kind = self._waiting[0].kind
            batch = [one for one in self._waiting if one.kind == kind][: self._max_batch]
            taken = set(map(id, batch))
            self._waiting = deque(one for one in self._waiting if id(one) not in taken)
            return batch

    def _answer(self, batch: Sequence[_Request]) -> None:
        try:
            vectors = self._encode([one.text for one in batch], batch[0].kind)
        except Exception as error:  # noqa: BLE001 (whatever it is, its callers get it)
            if len(batch) > 1:  # one bad text must not fail its neighbours
                for one in batch:
                    self._answer([one])
            else:
                batch[0].future.set_exception(error)
            return
        for one, vector in zip(batch, vectors, strict=True):
            one.future.set_result(vector)
