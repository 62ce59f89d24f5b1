"""A record of one system on one task: score, conditions and versions, as a JSON file.

Knows nothing of mteb: tables are made from records without it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Self

from epic_retrieval.errors import InputError
from epic_retrieval.storage import write_atomically
from epic_retrieval.tasks.files import read_document
from epic_retrieval.tasks.task import located

RECORDS = "records"
_FORMAT = 1


@dataclass(frozen=True)
class Record:
    """One system on one task.

    Attributes:
        task: name of the evaluation task.
        category: its type, as mteb calls it: "Retrieval", "STS", ...
        metric: which score is the main one.
        score: 0 to 1 (correlations: -1 to 1), the mean over splits and subsets.
        splits: the main score of each split and subset.
        system: what tables call the system.
        key: digest of what decides the score; equal keys, equal conditions.
        conditions: model, fingerprint, mode, instruction, demonstrations.
        data: digest or revision of the data set.
        versions: of the packages that took part.
        commit: of the source, where it was run from a checkout.
        date: of the evaluation, UTC, ISO 8601.
        seconds: that it took; of which machine nobody knows, so for orientation only.
    """

    task: str
    category: str
    metric: str
    score: float
    splits: Mapping[str, Mapping[str, float]]
    system: str
    key: str
    conditions: Mapping[str, object]
    data: str
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    date: str | None = None
    seconds: float | None = None

    def save(self, out: Path) -> None:
        """Write `out/records/<system>/<task>.json`."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=2, ensure_ascii=False)
        write_atomically(record_path(out, self.system, self.task), (text + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read such a file.

        Raises:
            InputError: naming it, when it cannot be read or is no record.
        """
        document = read_document(path)
        known = {one.name for one in fields(cls)}
        with located(str(path)):
            if not isinstance(document, dict) or document.get("format") != _FORMAT:
                raise InputError("is no record of an evaluation that this version can read")
            given = {name: value for name, value in document.items() if name in known}
            score = given.get("score")
            if known - set(given) or not isinstance(score, int | float):
                raise InputError("is no complete record; run the evaluation again")
            return cls(**given)


def record_path(out: Path, system: str, task: str) -> Path:
    """Where a record lies; characters that a path may not have become `_`."""
    return out / RECORDS / _safe(system) / f"{_safe(task)}.json"


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)


def load_records(run: Path) -> list[Record]:
    """All records of a folder that an evaluation wrote, or of one system's folder in it.

    Raises:
        InputError: there is none.
    """
    folder = run / RECORDS if (run / RECORDS).is_dir() else run
    found = [Record.load(path) for path in sorted(folder.rglob("*.json"))] if run.is_dir() else []
    if not found:
        raise InputError(f"{run} holds no records of an evaluation; name a folder that `--out` had")
    return found
