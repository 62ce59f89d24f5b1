"""The study: does EPIC hold up at the scale of a small machine?

    python -m benchmarks.replication --data DATA --work runs/replication

DATA holds train_clean/, train_research/, retrieval/, sts/ and so on. Trains the base, then every
run of study.yaml, scores each as soon as it is finished, and writes results/replication.json.
Whatever is finished is kept: run it again to go on.
"""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.replication.study import Study


def main(
    data: Annotated[
        Path, typer.Option(help="folder with train_clean/, train_research/, sts/, ...")
    ],
    work: Annotated[Path, typer.Option(help="where base and runs are kept")] = Path(
        "runs/replication"
    ),
    only: Annotated[str | None, typer.Option(help="runs, as plain,epic; default: all")] = None,
) -> None:
    """Train and score what is not finished."""
    Study(data, work).run(only.split(",") if only else None)


if __name__ == "__main__":
    typer.run(main)
