"""EncoderPool: the same encoder in several processes, for corpora that one device is too slow for.

Each process loads the model for itself and encodes whole chunks of texts. Knows nothing of prompts
and models beyond `EpicEncoder`.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import Queue
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from epic_retrieval.encoder import DEFAULT_TASK, EpicEncoder, check_texts
from epic_retrieval.errors import EpicError, InputError
from epic_retrieval.prompt import Mode
from epic_retrieval.tasks import Task

# Each process sorts its chunk by length; below some hundred texts that saves nothing.
_CHUNK = 1024


class EncoderPool:
    """An `EpicEncoder` per device, each in a process of its own.

    Scripts that use it need `if __name__ == "__main__":`, as all that start processes do.

    Example:
        >>> with EncoderPool(devices=["cuda:0", "cuda:1"]) as pool:  # doctest: +SKIP
        ...     vectors = pool.encode_passages(texts)

    Args:
        path_or_hub_id: as in `EpicEncoder.from_pretrained`; a hub model should be in the cache
            already, or each process fetches it.
        devices: one process each; the same one may stand several times. None takes every GPU, or
            the CPU once. Processes on a CPU share its cores evenly.
        chunk_size: texts that a process encodes at a time.
        options: dtype, template and max_length, as in `EpicEncoder.from_pretrained`.
    """

    def __init__(
        self,
        path_or_hub_id: str | Path | None = None,
        *,
        devices: Sequence[str] | None = None,
        chunk_size: int = _CHUNK,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self.devices = tuple(devices) if devices is not None else _all_devices()
        if not self.devices or isinstance(devices, str):
            raise InputError(f'devices is {devices!r}; expected names such as ["cuda:0", "cuda:1"]')
        if chunk_size < 1:
            raise InputError(f"chunk_size is {chunk_size}; expected at least 1")
        self._chunk = chunk_size
        on_cpu = sum(torch.device(name).type == "cpu" for name in self.devices)
        threads = max(1, (os.cpu_count() or 1) // max(1, on_cpu))
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        for name in self.devices:
            queue.put(name)
        self._pool = ProcessPoolExecutor(
            len(self.devices),
            mp_context=context,
            initializer=_start,
            initargs=(queue, path_or_hub_id, options, threads),
        )

    def encode_passages(
        self,
        texts: Sequence[str],
        task: Task | str | None = None,
        mode: Mode | None = None,
        *,
        batch_size: int | None = None,
        show_progress: bool | None = None,
    ) -> NDArray[np.float32]:
        """As `EpicEncoder.encode_passages`.

        Raises:
            EpicError: a process died, for want of memory for example.
        """
        options = {"task": task, "mode": mode, "batch_size": batch_size}
        return self._encode("encode_passages", texts, options, show_progress)

    def encode_queries(
        self,
        texts: Sequence[str],
        task: Task | str = DEFAULT_TASK,
        mode: Mode | None = None,
        *,
        batch_size: int | None = None,
        show_progress: bool | None = None,
    ) -> NDArray[np.float32]:
        """As `EpicEncoder.encode_queries`; each process computes the task's prompt or reads it.

        Raises:
            EpicError: a process died, for want of memory for example.
        """
        options = {"task": task, "mode": mode, "batch_size": batch_size}
        return self._encode("encode_queries", texts, options, show_progress)

    def close(self) -> None:
        """End the processes; what they have begun is finished first."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _encode(
        self, method: str, texts: Sequence[str], options: dict[str, Any], show: bool | None
    ) -> NDArray[np.float32]:
        check_texts(texts)
        parts: list[NDArray[np.float32]] = []
        running: deque[Future[NDArray[np.float32]]] = deque()
        wanted = len(texts) >= _CHUNK if show is None else show
        with tqdm(total=len(texts), unit="text", disable=not wanted) as progress:

            def collect() -> None:
                parts.append(running.popleft().result())
                progress.update(len(parts[-1]))

            try:
                for first in range(0, max(1, len(texts)), self._chunk):
                    chunk = list(texts[first : first + self._chunk])
                    running.append(self._pool.submit(_encode, method, chunk, options))
                    # A chunk each in work and one in waiting: more would only take memory.
                    while len(running) > 2 * len(self.devices):
                        collect()
                while running:
                    collect()
            except BrokenProcessPool as error:
                raise EpicError(
                    "a process of the pool died, most likely for want of memory; use fewer devices,"
                    " a smaller batch_size or a smaller dtype"
                ) from error
            finally:
                for one in running:
                    one.cancel()
        return np.concatenate(parts)


def _all_devices() -> tuple[str, ...]:
    return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count())) or ("cpu",)


# What a process of the pool holds: its encoder, or why there is none.
_HELD: EpicEncoder | Exception | None = None


def _start(
    devices: "Queue[str]", path_or_hub_id: str | Path | None, options: dict[str, Any], threads: int
) -> None:
    global _HELD  # noqa: PLW0603 (a process of the pool has no other place)
    device = devices.get()
    if torch.device(device).type == "cpu":
        torch.set_num_threads(threads)
    try:
        _HELD = EpicEncoder.from_pretrained(path_or_hub_id, device=device, **options)
    except Exception as error:  # noqa: BLE001 (raised where it can be seen, by the first call)
        _HELD = error


def _encode(method: str, texts: Sequence[str], options: dict[str, Any]) -> NDArray[np.float32]:
    if not isinstance(_HELD, EpicEncoder):
        raise _HELD or RuntimeError("the pool's process was not started by the pool")
    encode = getattr(_HELD, method)
    vectors: NDArray[np.float32] = encode(texts, **options, show_progress=False)
    return vectors
