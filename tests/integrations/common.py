"""Tasks and texts of the adapters' tests, and how many forward passes an encoder takes."""

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from epic_retrieval import Demonstration, EpicEncoder, Task

PAIRS = (Demonstration("one", "two"), Demonstration("three", "four"))
BARE = Task("bare", "Find what answers")
SHOWN = Task("shown", "Find what answers", PAIRS)
SYMMETRIC = Task("same", "Find what means the same", PAIRS, symmetric=True)
# Nothing of it may be stripped, replaced or normalised on the way to the model.
TEXTS = [
    "A first passage.",
    " a line\nand   another\t\r\n",
    "Zu\u0308rich \u2014 \U0001f9c0",
    "</s> is text",
]
LONG = "a word and " * 100_000  # 1.1 MB


def floats(vectors: Any) -> NDArray[np.float32]:  # noqa: ANN401
    """What an adapter returns, as core does."""
    return np.asarray(vectors, np.float32)


class Passes:
    """The forward passes of an encoder: how many rows each had, and in which thread it ran.

    While they are held, a pass that starts waits.
    """

    def __init__(self, encoder: EpicEncoder, patch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.threads: set[int] = set()
        self._go = threading.Event()
        self._go.set()
        run = encoder.checkpoint.backbone.encode

        def counted(rows: Any, *given: Any, **options: Any) -> Any:  # noqa: ANN401
            self.sizes.append(len(rows))
            self.threads.add(threading.get_ident())
            assert self._go.wait(30)
            return run(rows, *given, **options)

        patch.setattr(encoder.checkpoint.backbone, "encode", counted)

    def hold(self) -> None:
        self._go.clear()

    def release(self) -> None:
        self._go.set()


def run_python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    command = (sys.executable, "-c", code, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
