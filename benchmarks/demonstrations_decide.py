"""Do demonstrations decide what is found, where nothing else says it?

    python benchmarks/demonstrations_decide.py --data DATA [--model FOLDER ...] [--out FILE]

The beginning of a held-out passage is asked for; wanted is either the query that the passage
answers, or how it goes on. The instruction is the same. Five pairs of training rows are shown: of
the kind that is wanted, of the other kind, or none. Scored is how often the wanted one of a row's
two texts is nearer, and nDCG@10 among both texts of all rows. Prints a table, writes JSON.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from epic_retrieval import Demonstration, EpicEncoder, Task
from epic_retrieval.benchmarking.record import environment
from epic_retrieval.prompt import Mode
from epic_training.pairs import is_development, read_pairs

HERE = Path(__file__).parent
SETS = ("medquad", "msdocs_cpp", "msdocs_powershell", "msdocs_win32", "fever_dev")
PERCENT = 1.0  # of the queries, held out in the training of the bundled model
INSTRUCTION = "Given a text, retrieve the text that belongs to it"
FEWEST, MOST = 24, 80  # words of a passage
ROWS, SHOWN, DRAWS = 100, 5, 3


@dataclass(frozen=True)
class Row:
    """The beginning of a passage, and the two texts that may be wanted of it, by kind."""

    asked: str
    wanted: tuple[str, str]


def rows_of(folder: Path, *, held_out: bool) -> list[Row]:
    """Rows of one split whose texts are all different."""
    found: dict[str, Row] = {}
    for pair in read_pairs(folder / "pairs.jsonl.gz"):
        words = pair.positive.split()
        if is_development(pair.query, PERCENT) == held_out and FEWEST <= len(words) <= MOST:
            half = len(words) // 2
            row = Row(" ".join(words[:half]), (pair.query, " ".join(words[half:])))
            found.setdefault(pair.query, row)
    rows = list(found.values())
    order = np.random.default_rng(0).permutation(len(rows))
    return list(islice((rows[int(i)] for i in order), ROWS if held_out else 20 * ROWS))


def demonstrations(known: Sequence[Row], kind: int, draw: int) -> tuple[Demonstration, ...]:
    """Pairs that show one kind."""
    chosen = np.random.default_rng(draw).choice(len(known), size=SHOWN, replace=False)
    return tuple(Demonstration(known[int(i)].asked, known[int(i)].wanted[kind]) for i in chosen)


def scores(queries: NDArray[np.float32], texts: NDArray[np.float32], kind: int) -> NDArray[Any]:
    """(n, 2): whether the wanted text of a row is nearer than its other one; nDCG@10 among all.

    Args:
        queries: (n, d).
        texts: (2 n, d): those of kind 0, then those of kind 1.
        kind: that is wanted.
    """
    n = len(queries)
    cosines = queries @ texts.T
    both = np.stack([cosines[np.arange(n), np.arange(n) + n * k] for k in (0, 1)], axis=1)
    ranks = (cosines >= both[:, kind, None]).sum(axis=1)
    gains = np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0)
    return np.stack([both[:, kind] > both[:, 1 - kind], gains], axis=1)


def measured(encoder: EpicEncoder, data: Path, mode: Mode) -> dict[str, tuple[float, float]]:
    """Both scores by what is shown, means over data sets, kinds and draws."""
    found: dict[str, list[NDArray[Any]]] = {"wanted": [], "other": [], "none": []}
    for name in SETS:
        asked = rows_of(data / name, held_out=True)
        known = rows_of(data / name, held_out=False)
        task = Task(name, INSTRUCTION)
        texts = encoder.encode_passages(
            [row.wanted[kind] for kind in (0, 1) for row in asked], task, show_progress=False
        )
        plain = encoder.encode_queries(
            [row.asked for row in asked], task, "none", show_progress=False
        )
        for kind in (0, 1):
            found["none"].append(scores(plain, texts, kind).mean(axis=0))
        for draw in range(DRAWS):
            for kind in (0, 1):
                shown = task.with_demonstrations(demonstrations(known, kind, draw))
                vectors = encoder.encode_queries(
                    [row.asked for row in asked], shown, mode, show_progress=False
                )
                found["wanted"].append(scores(vectors, texts, kind).mean(axis=0))
                found["other"].append(scores(vectors, texts, 1 - kind).mean(axis=0))
    means = {name: np.mean(rows, axis=0) for name, rows in found.items()}
    return {name: (float(one[0]), float(one[1])) for name, one in means.items()}


def main(
    data: Annotated[Path, typer.Option(help="folder with train_clean/")],
    model: Annotated[
        list[str] | None, typer.Option(help="a checkpoint; default: the bundled one")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON")] = None,
) -> None:
    """Score every model in its modes with demonstrations, print and write."""
    record: dict[str, Any] = {"environment": environment(), "results": {}}
    print("| | shown | the wanted one is nearer | nDCG@10 among both kinds |\n|---|---|---|---|")
    named: list[str | None] = [*(model or ())] or [None]
    for one in named:
        encoder = EpicEncoder.from_pretrained(one)
        modes: list[Mode] = [m for m in encoder.checkpoint.config.modes if m != "none"]
        for mode in modes:
            found = measured(encoder, data / "train_clean", mode)
            record["results"][f"{encoder.name}, {mode}"] = found
            for shown, (nearer, gain) in found.items():
                print(f"| {encoder.name}, {mode} | {shown} | {nearer:.3f} | {gain:.3f} |")
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
