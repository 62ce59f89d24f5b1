"""The folder of a training run: what lies in it, and how it is written so that no crash harms it.

Knows nothing of models.
"""

import json
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from epic_retrieval.errors import InputError
from epic_retrieval.storage import write_atomically
from epic_training.batch import Batch
from epic_training.development import DevelopmentScore, summarise
from epic_training.run_log import Log

# Settings that change how a run is carried out and watched, but not what comes out of it.
_FREE = (
    ("batches", "workers"),
    ("run", "save_every"),
    ("run", "log_every"),
)


class RunFolder:
    """Names and writing of a run's files.

    Args:
        path: made when it is missing.
        config: of the run, as plain data.
        write: False in all processes but one.

    Raises:
        InputError: when the folder cannot be made, or is of a run with another configuration.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], *, write: bool = True) -> None:
        self.path, self.write = path, write
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path} cannot be a folder for a run: {error}") from error
        self._check(config)
        if write:
            text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
            write_atomically(path / "config.yaml", text.encode())
            write_atomically(path / "run.json", _as_json(_environment()))

    @property
    def state(self) -> Path:
        """Weights, moments and the number of finished steps."""
        return self.path / "state.safetensors"

    @contextmanager
    def logging(self, first: int, steps: int) -> Iterator[Log]:
        """A log from step `first` on; what a killed run wrote after its last state is dropped."""
        log = Log(self.path, first, steps, write=self.write)
        try:
            yield log
        finally:
            log.close()

    def save(
        self, name: str, write: Callable[[Path], None], scores: Sequence[DevelopmentScore]
    ) -> None:
        """Write a checkpoint folder, complete before it takes the place of an older one."""
        partial, old = self.path / f"{name}.partial", self.path / f"{name}.old"
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        write(partial)
        (partial / "README.md").unlink(
            missing_ok=True
        )  # peft's, without content: export writes one
        if scores:
            write_atomically(partial / "scores.json", _as_json(_spelled(scores)))
        shutil.copy(self.path / "run.json", partial / "run.json")
        if (self.path / name).exists():
            (self.path / name).rename(old)
        partial.rename(self.path / name)
        shutil.rmtree(old, ignore_errors=True)

    def finished(self) -> Path:
        """The folder of the result."""
        best = self.path / "best"
        return best if best.is_dir() else self.path / "checkpoint"

    def save_batch(self, step: int, batch: Batch, report: Mapping[str, float]) -> Path:
        """Write the texts of a batch on which training failed; return the file."""
        path = self.path / f"failed-step-{step + 1}.json"
        content = {
            "step": step + 1,
            "report": {name: str(value) for name, value in report.items()},
            "dataset": batch.name,
            "instruction": batch.task.instruction,
            "rows": list(batch.origin),
            "texts": [list(pair) for pair in batch.texts],
            "lengths": {
                "queries": [len(row) for row in batch.queries],
                "passages": [len(row) for row in batch.passages],
            },
        }
        if self.write:
            write_atomically(path, _as_json(content))
        return path

    def _check(self, config: Mapping[str, Any]) -> None:
        path = self.path / "config.yaml"
        if not path.is_file():
            if self.state.is_file():
                raise InputError(
                    f"{self.path} holds a run without config.yaml; take another folder"
                )
            return
        try:
            before = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path} cannot be read ({error}); take another folder") from error
        changed = [
            f"{key}: {old!r} is now {new!r}"
            for key, old, new in _differences(before, dict(config))
            if tuple(key.split(".")) not in _FREE
        ]
        if changed:
            raise InputError(
                f"{self.path} holds a run with another configuration ({'; '.join(changed[:3])});"
                " take another folder, or the old settings to go on"
            )


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            inner = f"{key}.{name}" if key else name
            yield from _differences(old.get(name), new.get(name), inner)
    elif old != new:
        yield key, old, new


def _spelled(scores: Sequence[DevelopmentScore]) -> dict[str, Any]:
    return {"mean": asdict(summarise(scores)), "datasets": [asdict(score) for score in scores]}


def _as_json(content: object) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _environment() -> dict[str, Any]:
    """What the run was carried out with, for model cards and reports."""
    names = ("epic-retrieval", "torch", "transformers", "peft", "accelerate", "numpy")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": _commit(),
        "versions": {name: version(name) for name in names},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def _commit() -> str | None:
    """Of the checkout that this file lies in; None for an installed package."""
    git = shutil.which("git")
    if git is None:
        return None
    done = subprocess.run(  # noqa: S603 (a fixed command)
        [git, "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None
