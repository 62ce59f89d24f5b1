"""Do demonstrations decide in which respect texts count as alike?

    python benchmarks/likeness.py [--model FOLDER ...] [--out FILE]

Triples of training/written, the rows held out of training: the second text shares one aspect with
the first and little else, the third is about the same matter and differs in that aspect. All stand
behind one instruction that names no aspect. Five pairs of training rows are shown: of the same
aspect, of another, or none. Scored is how often the second is nearer than the third, and how much:
the difference of their cosines with the first. Prints a table, writes JSON.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from epic_retrieval import Demonstration, EpicEncoder, Task
from epic_retrieval.benchmarking.record import environment
from epic_retrieval.prompt import Mode
from epic_training.made import written_pairs
from epic_training.pairs import Pair, is_development

ASPECTS = (
    "act", "asked_for", "fact", "feeling", "genre", "intent", "problem", "stance", "subject",
    "tool", "verdict", "who", "feelings", "requests", "titles",
)  # fmt: skip
PERCENT = 1.0  # of the first texts, held out in the training of the bundled model
INSTRUCTION = "Given a text, retrieve texts that are alike"
SHOWN, DRAWS = 5, 3
OTHER = 5  # places further on in the list stands the other aspect


def split(name: str) -> tuple[list[Pair], list[Pair]]:
    """Held-out rows and training rows of an aspect."""
    rows = list(written_pairs(name))
    held_out = [row for row in rows if is_development(row.query, PERCENT)]
    return held_out, [row for row in rows if not is_development(row.query, PERCENT)]


def demonstrations(known: Sequence[Pair], draw: int) -> tuple[Demonstration, ...]:
    """Pairs that show an aspect."""
    chosen = np.random.default_rng(draw).choice(len(known), size=SHOWN, replace=False)
    return tuple(Demonstration(known[int(i)].query, known[int(i)].positive) for i in chosen)


def margins(encoder: EpicEncoder, rows: Sequence[Pair], task: Task) -> NDArray[np.float32]:
    """(n,) cosine of the first text with the second, less that with the third."""
    texts = [text for row in rows for text in (row.query, row.positive, row.negative)]
    mode: Mode = "epic" if task.demonstrations else "none"
    vectors = encoder.encode_queries(texts, task, mode, show_progress=False)
    first, second, third = vectors[::3], vectors[1::3], vectors[2::3]
    found: NDArray[np.float32] = (first * second).sum(axis=1) - (first * third).sum(axis=1)
    return found


def measured(encoder: EpicEncoder) -> dict[str, Any]:
    """By aspect and over all rows: their number, and by what is shown both scores."""
    rows = {name: split(name) for name in ASPECTS}
    found: dict[str, dict[str, NDArray[np.float32]]] = {}
    for number, (name, (asked, known)) in enumerate(rows.items()):
        if not asked:
            continue
        other = rows[ASPECTS[(number + OTHER) % len(ASPECTS)]][1]
        plain = Task(name, INSTRUCTION, symmetric=True)
        found[name] = {"none": margins(encoder, asked, plain)[None]}
        for shown, pairs in (("same", known), ("other", other)):
            found[name][shown] = np.stack(
                [
                    margins(encoder, asked, plain.with_demonstrations(demonstrations(pairs, draw)))
                    for draw in range(DRAWS)
                ]
            )
    found["all"] = {
        shown: np.concatenate([one[shown] for one in found.values()], axis=1)
        for shown in ("none", "same", "other")
    }
    return {
        name: {"rows": one["none"].shape[1]}
        | {
            shown: {"nearer": float((values > 0).mean()), "margin": float(values.mean())}
            for shown, values in one.items()
        }
        for name, one in found.items()
    }


def main(
    model: Annotated[
        list[str] | None, typer.Option(help="a checkpoint; default: the bundled one")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON")] = None,
) -> None:
    """Score every model, print and write."""
    record: dict[str, Any] = {"environment": environment(), "results": {}}
    print("Nearer (margin).")
    print("| | aspect | rows | the same shown | another | none |\n|---|---|---|---|---|---|")
    named: list[str | None] = [*(model or ())] or [None]
    for one in named:
        encoder = EpicEncoder.from_pretrained(one)
        found = record["results"][encoder.name] = measured(encoder)
        for name, row in found.items():
            cells = [
                f"{row[shown]['nearer']:.2f} ({row[shown]['margin']:+.3f})"
                for shown in ("same", "other", "none")
            ]
            print(f"| {encoder.name} | {name} | {row['rows']} | {' | '.join(cells)} |")
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
