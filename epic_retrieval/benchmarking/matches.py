"""The part that times rivals side by side and checks that they do the same work."""

from typing import TYPE_CHECKING, Any

import numpy as np

from epic_retrieval.benchmarking.bench import Bench
from epic_retrieval.benchmarking.estimates import paired_ratio
from epic_retrieval.benchmarking.flag_process import Encoded
from epic_retrieval.benchmarking.models import folder_for_others, with_template
from epic_retrieval.benchmarking.rivals import SLOW, TEMPLATE, Rival, Vectors, make_rival
from epic_retrieval.errors import EpicError

if TYPE_CHECKING:
    from pathlib import Path

    from epic_retrieval.tasks import Task

# Of any two that do the same work in float32.
LEAST_COSINE = 0.99
# (one, other, whether they must agree): sentence-transformers cuts prompt and text as one string.
_SAME_WORK = (
    ("epic-shared", "epic-rerun", True),
    ("text-shared", "text-rerun", True),
    ("text-shared", "text-transformers", True),
    ("text-shared", "text-flagembedding", True),
    ("instruction", "sentence-transformers", False),
)
_REFERENCE = "epic-shared"
_MS = 1e3


def measure_rivals(bench: Bench) -> None:
    """Time all rivals in turns, in one batch and one query at a time."""
    encoder = with_template(bench.encoder, TEMPLATE)
    task = bench.task
    if not task.demonstrations:
        bench.record.left_out["rivals"] = "no demonstrations: k has no entry above 0"
        return
    folder: Path | None = None
    try:
        folder = folder_for_others(bench.encoder, bench.workspace / "for-others")
    except EpicError as error:
        bench.record.left_out["rivals/other libraries"] = str(error)
    found = _gather(bench, encoder, folder, task)
    try:
        batch = bench.some_queries(len(bench.queries))
        _time(bench, found, "batch", batch, len(batch))
        _time(bench, found, "single", batch[: bench.conditions.single], 1)
    finally:
        for rival in found.values():
            if hasattr(rival, "close"):
                rival.close()
    bench.record.facts["rivals"] = {
        "task": task.name,
        "demonstrations": len(task.demonstrations),
        "queries in the batch": len(batch),
        "queries one by one": min(bench.conditions.single, len(batch)),
        "template": TEMPLATE,
        "positions": {mode: encoder.prepare(task, mode) for mode in ("none", "text", "epic")},
        "versions": {
            name: str(rival.version) for name, rival in found.items() if hasattr(rival, "version")
        },
    }


def _gather(bench: Bench, encoder: Any, folder: "Path | None", task: "Task") -> dict[str, Rival]:  # noqa: ANN401
    found = {}
    for name in bench.conditions.rivals:
        bench.tell(f"rivals: {name}")
        try:
            found[name] = make_rival(name, encoder, folder, task, bench.python)
            found[name](bench.queries[:1], 1)
        except EpicError as error:
            found.pop(name, None)
            bench.record.left_out[f"rivals/{name}"] = str(error)
    return found


def _time(
    bench: Bench, rivals: dict[str, Rival], kind: str, queries: list[str], at_once: int
) -> None:
    """Rounds in turns; ratios to the reference; agreement of what was encoded."""
    spent: dict[str, list[Encoded]] = {name: [] for name in rivals}
    names = list(rivals)
    for name in names:
        if name not in SLOW:  # those were warmed up with one query
            rivals[name](queries, at_once)
    for number in range(bench.conditions.rounds):
        bench.tell(f"rivals, {kind}: round {number + 1} of {bench.conditions.rounds}")
        turn = number % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            if name not in SLOW or number < bench.conditions.slow_rounds:
                spent[name].append(rivals[name](queries, at_once))
    for name, found in spent.items():
        for clock in ("wall", "core"):
            values = [getattr(one, clock) * _MS / len(queries) for one in found]
            bench.record.add(f"rivals/{kind}/{clock}/{name}", "ms per query", values)
    pairs = [(name, _REFERENCE) for name in names if name != _REFERENCE]
    pairs.append(("sentence-transformers", "instruction"))
    bench.record.ratios += [
        _ratio(kind, clock, (above, below), spent)
        for above, below in pairs
        if above in spent and below in spent
        for clock in ("wall", "core")
    ]
    vectors = {name: found[0].vectors for name, found in spent.items()}
    if kind == "batch":
        bench.record.agreement += _agreement(vectors, bench.encoder.checkpoint.backbone.precision)


def _ratio(
    kind: str, clock: str, pair: tuple[str, str], spent: dict[str, list[Encoded]]
) -> dict[str, Any]:
    above, below = ([getattr(one, clock) for one in spent[name]] for name in pair)
    ratio = paired_ratio(above, below).to_dict()
    rounds = min(len(above), len(below))
    return {"kind": kind, "clock": clock, "above": pair[0], "below": pair[1], **ratio,
            "rounds": rounds}  # fmt: skip


def _agreement(vectors: dict[str, Vectors], precision: str) -> list[dict[str, Any]]:
    """The smallest cosine between two rivals' vectors of the same text."""
    found = []
    for one, other, strict in _SAME_WORK:
        if one in vectors and other in vectors:
            cosine = float(np.sum(vectors[one] * vectors[other], axis=1).min())
            # Rounded weights need not give the same vectors through other kernels.
            checked = strict and precision == "torch.float32"
            found.append(
                {
                    "one": one,
                    "other": other,
                    "smallest_cosine": round(cosine, 6),
                    "checked": checked,
                    "agree": cosine >= LEAST_COSINE,
                }
            )
    return found
