"""Every training regime and ablation of the paper, from the same base, data and seed.

    python benchmarks/training_regimes.py --data DATA [--base NAME] [--rows plain,text] [--steps N]

DATA holds train_clean/, train_research/ and models/. Conditions are in training_regimes.yaml.
Writes the JSON after every row, and prints the tables at the end. Run it again after an
interruption: rows that are finished are skipped, an unfinished one goes on from its last state.
"""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import typer
import yaml

from epic_retrieval.errors import EpicError, InputError
from epic_retrieval.storage import digest_of, write_atomically
from epic_training.config import TrainConfig, load_config
from epic_training.run import train
from epic_training.run_log import read_log

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "training" / "configs"
WINDOW = 10  # steps whose losses are averaged, at the start and at the end
HEADINGS = (
    "in the paper",
    "loss, first to last",
    "nDCG@10",
    "with demonstrations",
    "steps",
    "s per step",
    "shown per query",
    "the paper's score",
)
Record = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """The conditions of training_regimes.yaml.

    Attributes:
        steps: of every run.
        settings: key=value for every run.
        bases: per base its configuration, and where they differ its mix, and below the data folder
            its model and its data.
        rows: per overlay where the paper has it, and its score there.
    """

    steps: int
    settings: Sequence[str]
    bases: Mapping[str, Mapping[str, str]]
    rows: Mapping[str, Mapping[str, Any]]

    @classmethod
    def load(cls) -> "Plan":
        """Read the file beside this script."""
        text = (HERE / "training_regimes.yaml").read_text(encoding="utf-8")
        return cls(**yaml.safe_load(text))

    def config(self, base: str, row: str, data: Path, steps: int) -> TrainConfig:
        """The configuration of one run."""
        overrides = [*self.settings, f"optimizer.steps={steps}"]
        if "model" in self.bases[base]:
            overrides.append(f"base={json.dumps(str(data / self.bases[base]['model']))}")
        files = [CONFIGS / self.bases[base]["config"], CONFIGS / "ablations" / f"{row}.yaml"]
        folder = data / self.bases[base].get("data", "train_clean")
        mix = self.bases[base].get("mix")
        return load_config(files, overrides, mix=CONFIGS / mix if mix else None, data=folder)


def chosen(known: Sequence[str], asked: str | None) -> list[str]:
    """The names asked for ("a,b"), in the order given; all that are known without any."""
    names = list(known) if asked is None else [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in known:
            raise InputError(f"{name!r} is not in the plan; expected some of {', '.join(known)}")
    return names


def settings_digest(config: TrainConfig) -> str:
    """What tells runs apart wherever the data lies."""
    places = ("base", "mix", "data")
    settings = {k: v for k, v in config.to_dict().items() if k not in places}
    return digest_of(settings | {"mix": config.mix.name})[:12]


def describe(log: Sequence[Record], batch: int) -> Record:
    """Losses, speed and demonstrations of a run from its log.

    Args:
        log: the records of log.jsonl.
        batch: queries per step.
    """
    steps = [record for record in log if "loss" in record]
    window = max(1, min(WINDOW, len(steps) // 3))
    losses = [record["loss"] for record in steps]
    return {
        "steps": len(steps),
        "loss_first": round(fmean(losses[:window]), 4),
        "loss_last": round(fmean(losses[-window:]), 4),
        "window": window,
        "seconds_per_step": round(median(batch / one["queries_per_second"] for one in steps), 3),
        "demonstrations": round(fmean(record["demonstrations"] for record in steps), 2),
    }


def measure(config: TrainConfig, folder: Path) -> Record:
    """Train one row and say how it went."""
    result = train(config, folder)
    scores = json.loads((result / "scores.json").read_text(encoding="utf-8"))["mean"]
    run = json.loads((result / "run.json").read_text(encoding="utf-8"))
    return {
        **describe(read_log(folder / "log.jsonl"), config.batches.size),
        "ndcg@10": {
            mode: None if value is None else round(value, 4) for mode, value in scores.items()
        },
        "settings": settings_digest(config),
        "commit": run["commit"],
        "versions": ", ".join(f"{name} {one}" for name, one in run["versions"].items()),
        "threads": run["threads"],
    }


def table(plan: Plan, base: str, rows: Mapping[str, Record]) -> str:
    """The rows of a base as a Markdown table, in the order of the plan."""
    head = [base, *HEADINGS]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, condition in plan.rows.items():
        if name in rows:
            row = rows[name]
            cells = [
                name,
                condition.get("paper", "-"),
                f"{row['loss_first']:.2f} to {row['loss_last']:.2f}",
                _number(row["ndcg@10"]["none"], 3),
                _number(row["ndcg@10"]["shown"], 3),
                str(row["steps"]),
                _number(row["seconds_per_step"], 2),
                _number(row["demonstrations"], 1),
                _number(condition.get("score"), 2),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def main(
    data: Annotated[Path, typer.Option(help="folder with train_clean/, train_research/, models/")],
    base: Annotated[str | None, typer.Option(help="bases, as bundled,stories260K")] = None,
    rows: Annotated[str | None, typer.Option(help="rows, as plain,text; default: all")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="default: the plan's")] = None,
    runs: Annotated[Path, typer.Option(help="where the runs are kept")] = Path("runs/regimes"),
    out: Annotated[Path, typer.Option()] = HERE / "results" / "training_regimes.json",
) -> None:
    """Train what is not finished, print the tables, write the JSON."""
    plan = Plan.load()
    results: dict[str, dict[str, Record]] = {}
    if out.is_file():
        results = json.loads(out.read_text(encoding="utf-8"))["results"]
    failed = []
    names = chosen(list(plan.rows), rows)
    for one in chosen(list(plan.bases), base):
        finished = results.setdefault(one, {})
        for row in names:
            config = plan.config(one, row, data, steps or plan.steps)
            digest = settings_digest(config)
            if finished.get(row, {}).get("settings") == digest:
                continue
            print(f"{one}, {row}", file=sys.stderr)
            try:
                finished[row] = measure(config, runs / one / f"{row}-{digest}")
            except EpicError as error:
                failed.append(row)
                print(f"{one}, {row}: {error}", file=sys.stderr)
                continue
            record = {
                "command": "python benchmarks/training_regimes.py --data DATA",
                "hardware": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores",
                "python": platform.python_version(),
                "results": results,
            }
            text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
            write_atomically(out, text.encode())
    for one, found in results.items():
        if found:
            print(table(plan, one, found), end="\n\n")
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
