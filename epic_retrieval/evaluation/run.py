"""Evaluates systems on tasks through mteb, and goes on where it was stopped.

Knows neither prompts nor formats of data: systems and tasks come as they are.
"""

import subprocess
from collections.abc import Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from math import isclose
from pathlib import Path
from statistics import fmean

import mteb
from mteb.abstasks import AbsTask
from mteb.results import TaskResult
from tqdm import tqdm

from epic_retrieval.errors import EpicError, InputError
from epic_retrieval.evaluation.record import Record, record_path
from epic_retrieval.evaluation.rivals import installed
from epic_retrieval.evaluation.systems import System

_Splits = Mapping[str, Mapping[str, float]]
_PLACES = 1e-6
_PACKAGES = ("epic-retrieval", "mteb", "torch", "transformers", "numpy", "scikit-learn", "scipy")


def evaluate(
    systems: Sequence[System],
    tasks: Sequence[AbsTask],
    out: str | Path,
    *,
    batch_size: int | None = None,
    show_progress: bool = True,
) -> list[Record]:
    """Evaluate every system on every task that it can do.

    Results are kept under everything that decides them (weights, prompt, demonstrations, data), in
    mteb's own form in `out/mteb` and as records in `out/records`. What is there already is not
    computed again. A record holds the latest conditions of its system and task.

    Args:
        systems: with different labels.
        tasks: with different names; they are not changed.
        out: folder to write.
        batch_size: most texts of a forward pass; None leaves it to the system.
        show_progress: a progress bar on stderr.

    Returns:
        A record for each pair, task by task.

    Raises:
        InputError: before anything long begins: two systems of one label, no task that a system can
            do, demonstrations that are missing, a prompt that does not fit.
        EpicError: the data of a task could not be fetched.
    """
    plan = _plan(systems, tasks)
    cache = mteb.ResultCache(Path(out) / "mteb")
    records = []
    with tqdm(total=len(plan), unit="task", disable=not show_progress) as progress:
        for system, task in plan:
            progress.set_description(f"{system.label} on {task.metadata.name}")
            result = _result(system, task, cache, batch_size or system.batch_size)
            records.append(_recorded(Path(out), system, task, result))
            progress.update()
    return records


def _plan(systems: Sequence[System], tasks: Sequence[AbsTask]) -> list[tuple[System, AbsTask]]:
    labels = [system.label for system in systems]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"two systems are called {label!r}; evaluate them into two folders")
    for system in systems:
        possible = [task for task in tasks if system.can(task)]
        if not possible:
            raise InputError(f"{system.label} can do none of these tasks; leave it out")
        system.check(possible)
    # All systems on one task, then the next: modes of one encoder share what they encode.
    return [(system, task) for task in tasks for system in systems if system.can(task)]


def _result(system: System, task: AbsTask, cache: mteb.ResultCache, batch_size: int) -> TaskResult:
    """From the cache, or evaluated and put there."""
    try:
        return mteb.evaluate(
            system.model_for(task),
            # Random states of a task move on when it is run: every system meets the same.
            deepcopy(task),
            co2_tracker=False,
            cache=cache,
            encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
            show_progress_bar=False,
        ).task_results[0]
    except ConnectionError as error:
        raise EpicError(
            f"the data of {task.metadata.name} could not be fetched ({error}); connect to the"
            " network, or evaluate local sets; what was done before is kept"
        ) from error


def _recorded(out: Path, system: System, task: AbsTask, result: TaskResult) -> Record:
    """Write the record, unless the one that is there is of the same conditions and score."""
    meta = system.model_for(task).mteb_model_meta
    # The cache may hold more splits and languages than are asked for now.
    splits = {
        split: {
            str(one["hf_subset"]): float(one["main_score"])
            for one in scores
            if one["hf_subset"] in task.hf_subsets
        }
        for split, scores in result.scores.items()
        if split in task.eval_splits
    }
    record = Record(
        task=task.metadata.name,
        category=task.metadata.type,
        metric=task.metadata.main_score,
        score=fmean(score for subsets in splits.values() for score in subsets.values()),
        splits=splits,
        system=system.label,
        key=f"{meta.name}/{meta.revision}/{meta.experiment_name}",
        conditions=dict(system.described(task)),
        data=task.metadata.dataset["revision"],
        versions=installed(_PACKAGES),
        commit=_commit(),
        date=datetime.now(tz=UTC).isoformat(timespec="seconds"),
        seconds=None if result.evaluation_time is None else round(result.evaluation_time, 1),
    )
    path = record_path(out, record.system, record.task)
    if path.is_file():
        there = Record.load(path)
        # Versions and commit are those of the time when it was computed.
        if there.key == record.key and _same(there.splits, record.splits):
            return there
    record.save(out)
    return record


def _same(one: _Splits, other: _Splits) -> bool:
    """Whether the scores agree; those that mteb read again have six places."""
    if any(one.get(split, {}).keys() != subsets.keys() for split, subsets in other.items()):
        return False
    return one.keys() == other.keys() and all(
        isclose(score, one[split][subset], abs_tol=_PLACES)
        for split, subsets in other.items()
        for subset, score in subsets.items()
    )


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
