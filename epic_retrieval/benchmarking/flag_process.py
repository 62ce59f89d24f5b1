"""FlagEmbedding in a process of its own, which may be another interpreter's.

Its packages need not fit ours, and what it does at import or on exit stays there.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.errors import InputError
from epic_retrieval.tasks import Task

_LAST_LINES = 3


@dataclass(frozen=True, eq=False)
class Encoded:
    """What a rival gave and took.

    Attributes:
        vectors: (n, d), rows of length 1.
        wall: seconds that passed.
        core: seconds of the process on its cores.
    """

    vectors: NDArray[np.float32]
    wall: float
    core: float


class FlagProcess:
    """FlagICLModel with a task's demonstrations; a rival (see `rivals.Rival`).

    Times are taken over there: what travels between the processes costs it nothing. Call `close`
    at the end.

    Args:
        folder: the model, its tokenizer ending every text in the end token.
        task: with demonstrations.
        python: interpreter that has FlagEmbedding; None is this one.
        device: of torch.

    Raises:
        InputError: it does not start: there is no such interpreter, or no FlagEmbedding in it.
    """

    def __init__(
        self, folder: Path, task: Task, python: str | None = None, device: str = "cpu"
    ) -> None:
        import torch

        given = {
            "folder": str(folder.resolve()),
            "instruction": task.instruction,
            "examples": [
                {"instruct": task.instruction, "query": one.query, "response": one.passage}
                for one in task.demonstrations
            ],
            "threads": torch.get_num_threads(),
            "device": device,
        }
        source = Path(__file__).with_name("flag_worker.py").read_text(encoding="utf-8")
        interpreter = python or sys.executable
        self._errors = (folder / "flag_worker.log").open("w+", encoding="utf-8")
        try:
            # As text, not by path: a script's folder would come first among its imports.
            self._process = subprocess.Popen(  # noqa: S603 (the interpreter that the user named)
                [interpreter, "-c", source, json.dumps(given)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            self._errors.close()
            raise InputError(f"{interpreter} cannot be started: {error.strerror}") from error
        try:
            self.version = str(self._read()["version"])
        except InputError:
            self.close()
            raise

    def __call__(self, texts: Sequence[str], at_once: int) -> Encoded:
        """Encode texts, at most `at_once` in a call."""
        assert self._process.stdin is not None  # noqa: S101 (a pipe, as asked for)
        try:
            self._process.stdin.write(json.dumps({"texts": list(texts), "at_once": at_once}) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended; reading says why
        found = self._read()
        vectors = np.array(found["vectors"], dtype=np.float32)
        return Encoded(vectors, float(found["wall"]), float(found["core"]))

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            said = " / ".join(self._errors.read().strip().splitlines()[-_LAST_LINES:])
            raise InputError(
                f"FlagEmbedding does not run ({said or 'no message'}); install it (pip install"
                " FlagEmbedding), or name with --python an interpreter that has it"
            )
        found: dict[str, Any] = json.loads(line)
        return found
