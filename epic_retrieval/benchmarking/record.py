"""A run's record: measured series, counted facts, and what they belong to; JSON on disk.

Knows nothing of how anything is measured.
"""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from epic_retrieval.benchmarking.estimates import median_of, percentile_of
from epic_retrieval.errors import InputError
from epic_retrieval.storage import write_atomically
from epic_retrieval.tasks.files import read_document

FORMAT = "epic-bench/1"
_PACKAGES = ("epic-retrieval", "torch", "transformers", "faiss-cpu", "faiss-gpu", "numpy")
_TAILS = (95, 99)
# The 95th percentile of fewer values is their largest.
_ENOUGH_FOR_TAILS = 20
_MOST_VALUES = 200
# Paths say nothing to others, and much about whoever ran this.
_PATH = re.compile(r"(?:/[^/\s'\":]+)+/([^/\s'\":]+)")
_NUMBERS = re.compile(r"\[[\s\d.,e+-]*\]")


@dataclass(frozen=True)
class Series:
    """Values of one quantity in the order in which they were measured.

    Attributes:
        unit: such as "ms".
        values: at least one.
    """

    unit: str
    values: tuple[float, ...]

    def summary(self) -> dict[str, Any]:
        """Median with interval, how many values there are, and the tails of those that suffice."""
        return dict(_summary(self))


@cache
def _summary(series: Series) -> dict[str, Any]:
    found: dict[str, Any] = {"unit": series.unit, "n": len(series.values)}
    found |= median_of(series.values).to_dict()
    if len(series.values) >= _ENOUGH_FOR_TAILS:
        for share in _TAILS:
            tail = percentile_of(series.values, share)
            found[f"p{share}"] = tail.median
            found[f"p{share}_interval"] = [tail.low, tail.high]
    return found


@dataclass
class Record:
    """What one run found.

    Attributes:
        environment: hardware, versions, command.
        conditions: what was asked for.
        facts: what was counted rather than timed, by part.
        series: what was timed; names are paths such as "stages/epic k=5/encode".
        ratios: quotients of times of the same round, with intervals.
        agreement: how far vectors of conditions that do the same work agree.
        left_out: what could not take part, and why.
    """

    environment: dict[str, Any]
    conditions: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    ratios: list[dict[str, Any]] = field(default_factory=list)
    agreement: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, unit: str, values: Sequence[float]) -> None:
        """Keep a series."""
        self.series[name] = Series(unit, tuple(float(value) for value in values))

    def under(self, start: str) -> dict[str, Series]:
        """The series whose names begin so, by the rest of their names."""
        return {
            name.removeprefix(start): one
            for name, one in self.series.items()
            if name.startswith(start)
        }

    def save(self, path: Path) -> None:
        """Write a JSON file; of long series the summary is exact and at most 200 values are kept.

        Raises:
            InputError: another ending than .json, or the disk refuses.
        """
        if path.suffix.lower() != ".json":
            raise InputError(f"{path}: a record is JSON; expected a name that ends in .json")
        series = {
            name: {**_rounded(one.summary()), "values": _rounded(_thinned(one.values))}
            for name, one in self.series.items()
        }
        document = {
            "format": FORMAT,
            "environment": self.environment,
            "conditions": self.conditions,
            "facts": self.facts,
            "series": series,
            "ratios": _rounded(self.ratios),
            "agreement": self.agreement,
            "left_out": {name: _PATH.sub(r"\1", why) for name, why in self.left_out.items()},
        }
        # Numbers on one line, so that a record can be read.
        lines = json.dumps(document, ensure_ascii=False, indent=1)
        text = _NUMBERS.sub(lambda found: " ".join(found[0].split()), lines)
        try:
            write_atomically(path, f"{text}\n".encode())
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror})") from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            InputError: the file cannot be read, or is no such record.
        """
        found = read_document(path)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise InputError(f"{path} is no record of `epic bench rag`; expected format {FORMAT!r}")
        try:
            series = {
                name: Series(one["unit"], tuple(one["values"]))
                for name, one in found["series"].items()
            }
            rest = {
                name: found[name]
                for name in (
                    "environment", "conditions", "facts", "ratios", "agreement", "left_out",
                )
            }  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is incomplete ({error!r}); run the benchmark again") from None
        return cls(**rest, series=series)


def environment(command: Sequence[str] | None = None) -> dict[str, Any]:
    """What figures belong to: hardware, versions, command. No names of hosts or folders."""
    import torch

    known = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    program, *given = sys.argv if command is None else command
    # Started as a module, the command is called by its file.
    name = Path(program).name.replace("__main__.py", "epic")
    return {
        "command": " ".join([name, *(Path(one).name if "/" in one else one for one in given)]),
        "commit": _commit(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "load_average_at_begin": known,
        "python": platform.python_version(),
        "versions": dict(_versions()),
    }


def cpu_model() -> str:
    """The processor's name as its maker writes it, or the architecture."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        said = info.read_text(errors="replace")
        found = re.search(r"^model name\s*:\s*(.+)$", said, re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Of the checkout that this file lies in; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 (whichever git the user has)
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in _PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found


def _thinned(values: Sequence[float]) -> list[float]:
    """At most so many values, evenly taken in the order of time."""
    step = max(1, -(-len(values) // _MOST_VALUES))
    return list(values[::step])


def _rounded(value: Any) -> Any:  # noqa: ANN401 (JSON)
    """Four significant digits: more would be noise."""
    match value:
        case bool() | int() | str() | None:
            return value
        case float():
            return float(f"{value:.4g}")
        case Mapping():
            return {key: _rounded(one) for key, one in value.items()}
        case _:
            return [_rounded(one) for one in value]
