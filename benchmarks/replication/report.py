"""What the study found, from its JSON: a verdict per claim of the paper, tables and a plot.

    python -m benchmarks.replication.report    # renews the tables in README.md beside it

A difference is taken task by task and seed by seed. Its interval comes from resampling tasks and
seeds (95 %, 10,000 draws): it says what other tasks and other seeds would have shown.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.replication.study import RESULTS, SHOWN, load_yaml

HERE = Path(__file__).parent
PAGE = HERE / "README.md"
_MARKS = ("<!-- tables -->", "<!-- . -->")
_RESAMPLES = 10_000
Scores = Mapping[str, Mapping[str, float]]  # condition -> task -> score
_WITH = f"{SHOWN} shown"


@dataclass(frozen=True)
class Claim:
    """A difference that the paper reports.

    Attributes:
        text: what is claimed.
        paper: its figures.
        better: (run, condition).
        worse: (run, condition).
    """

    text: str
    paper: str
    better: tuple[str, str]
    worse: tuple[str, str]


CLAIMS = (
    Claim(
        "EPIC with demonstrations beats the same training without any",
        "66.37 against 65.33",
        ("epic", _WITH),
        ("plain", "none"),
    ),
    Claim(
        "Training with them helps even where none are shown",
        "66.11 against 65.33",
        ("epic", "none"),
        ("plain", "none"),
    ),
    Claim(
        "Showing them helps EPIC at test time",
        "66.37 against 66.11",
        ("epic", _WITH),
        ("epic", "none"),
    ),
    Claim(
        "EPIC is at least as good as demonstrations as text",
        "66.37 against 66.18",
        ("epic", _WITH),
        ("text", _WITH),
    ),
    Claim(
        "Showing them helps textual ICL (bge-en-icl)",
        "66.08 against 64.67",
        ("text", _WITH),
        ("text", "none"),
    ),
    Claim(
        "The task's own demonstrations matter: others do worse",
        "not in the paper",
        ("epic", f"{SHOWN} shown, draw 0"),
        ("epic", f"{SHOWN} foreign"),
    ),
    Claim(
        "Which passage belongs to which query matters",
        "not in the paper",
        ("epic", f"{SHOWN} shown, draw 0"),
        ("epic", f"{SHOWN} swapped"),
    ),
)


@dataclass(frozen=True)
class Difference:
    """Mean of a difference in points, its 95 % interval, and in how many tasks it is positive."""

    mean: float
    low: float
    high: float
    positive: int
    tasks: int

    @property
    def verdict(self) -> str:
        """Whether it is "seen", "not seen" (its opposite is), or "undecided"."""
        return "seen" if self.low > 0 else "not seen" if self.high < 0 else "undecided"


def values(runs: Sequence[Scores], condition: str) -> NDArray[np.float64]:
    """(seeds, tasks): scores under a condition, draws of demonstrations averaged."""
    rows = []
    for scores in runs:
        found = [scores[name] for name in scores if name == condition or _is_draw(name, condition)]
        rows.append(np.mean([list(one.values()) for one in found], axis=0))
    return np.array(rows)


def _is_draw(name: str, condition: str) -> bool:
    return condition.endswith("shown") and name.startswith(f"{condition}, draw")


def difference(better: NDArray[np.float64], worse: NDArray[np.float64]) -> Difference:
    """Compare scores, both (seeds, tasks), of the same seeds and tasks."""
    gaps = better - worse
    rng = np.random.default_rng(0)
    seeds, tasks = gaps.shape
    drawn = gaps[
        rng.integers(0, seeds, (_RESAMPLES, seeds, 1)),
        rng.integers(0, tasks, (_RESAMPLES, 1, tasks)),
    ].mean(axis=(1, 2))
    low, high = np.percentile(drawn, [2.5, 97.5])
    by_task = gaps.mean(axis=0)
    return Difference(float(gaps.mean()), low, high, int((by_task > 0).sum()), tasks)


def load(path: Path = RESULTS) -> dict[str, list[Scores]]:
    """Finished runs by name, in the order of their seeds."""
    record: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found: dict[str, list[tuple[int, Scores]]] = {}
    for folder, run in record["results"].items():
        if run.get("finished"):
            name = folder.rsplit("-", 2)[0]
            found.setdefault(name, []).append((run["seed"], run["scores"]))
    return {name: [scores for _, scores in sorted(runs, key=_seed)] for name, runs in found.items()}


def _seed(run: tuple[int, Scores]) -> int:
    return run[0]


def claims_table(runs: Mapping[str, Sequence[Scores]]) -> str:
    """The verdicts, as Markdown."""
    lines = ["| claim | paper | here, points | tasks | verdict |", "|---|---|---|---|---|"]
    for claim in CLAIMS:
        if claim.better[0] in runs and claim.worse[0] in runs:
            found = _compare(runs, claim.better, claim.worse)
            lines.append(
                f"| {claim.text} | {claim.paper} | {found.mean:+.2f} ({found.low:+.2f} to"
                f" {found.high:+.2f}) | {found.positive} of {found.tasks} | {found.verdict} |"
            )
    return "\n".join(lines)


def runs_table(runs: Mapping[str, Sequence[Scores]]) -> str:
    """Every run: mean over tasks without and with demonstrations, and the gap to EPIC's."""
    lines = [
        "| run | seeds | without | with 5 | with 5, against EPIC | paper, 26 tasks of MTEB |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in load_yaml(HERE / "study.yaml")["runs"].items():
        if name not in runs:
            continue
        alone = values(runs[name], "none").mean()
        shows = any(condition.startswith(_WITH) for condition in runs[name][0])
        best = _WITH if shows else "none"
        shown = f"{values(runs[name], best).mean():.2f}" if shows else "-"
        gap = "-"
        if name != "epic" and "epic" in runs:
            found = _compare(runs, (name, best), ("epic", _WITH))
            gap = f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
        paper = f"{row['paper']:.2f}" if "paper" in row else "-"
        lines.append(f"| {name} | {len(runs[name])} | {alone:.2f} | {shown} | {gap} | {paper} |")
    return "\n".join(lines)


def _compare(
    runs: Mapping[str, Sequence[Scores]], better: tuple[str, str], worse: tuple[str, str]
) -> Difference:
    seeds = min(len(runs[better[0]]), len(runs[worse[0]]))
    return difference(
        values(runs[better[0]][:seeds], better[1]), values(runs[worse[0]][:seeds], worse[1])
    )


def plot(runs: Mapping[str, Sequence[Scores]], path: Path) -> None:
    """Differences of the claims with their intervals, as a PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.use("agg")
    shown = [c for c in CLAIMS if c.better[0] in runs and c.worse[0] in runs]
    found = [_compare(runs, claim.better, claim.worse) for claim in shown]
    figure = Figure(figsize=(8, 0.6 * len(shown) + 1.2), layout="constrained")
    axes = figure.subplots()
    means = [one.mean for one in found]
    errors = [[one.mean - one.low for one in found], [one.high - one.mean for one in found]]
    axes.errorbar(means, range(len(found)), xerr=errors, fmt="o", capsize=3, color="tab:blue")
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_yticks(range(len(found)), [claim.text for claim in shown])
    axes.invert_yaxis()
    axes.set_xlabel("difference in points (95 % interval)")
    figure.savefig(path, dpi=150)


def counts_table(runs: Mapping[str, Sequence[Scores]]) -> str:
    """EPIC's mean by the number of demonstrations, and by what is wrong with them: first seed."""
    [first, *_] = runs["epic"]
    lines = ["| shown to EPIC, first seed | mean over tasks |", "|---|---|"]
    names = ("none", *(f"{n} shown, draw 0" for n in (1, 2, SHOWN, 8)))
    lines += [
        f"| {name} | {np.mean(list(first[name].values())):.2f} |"
        for name in (*names, f"{SHOWN} swapped", f"{SHOWN} foreign")
    ]
    return "\n".join(lines)


def renewed(page: str, runs: Mapping[str, Sequence[Scores]]) -> str:
    """The page with the tables of these runs between its marks."""
    before, rest = page.split(_MARKS[0])
    _, after = rest.split(_MARKS[1])
    tables = "\n\n".join(table(runs) for table in (claims_table, runs_table, counts_table))
    return f"{before}{_MARKS[0]}\n\n{tables}\n\n{_MARKS[1]}{after}"


if __name__ == "__main__":
    finished = load()
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8"), finished), encoding="utf-8")
    plot(finished, RESULTS.with_suffix(".png"))
