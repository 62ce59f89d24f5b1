"""The script that trains every regime: its plan, its figures, its table, and what it skips."""

import json
from pathlib import Path

import pytest
import typer

from benchmarks import training_regimes
from benchmarks.training_regimes import Plan, chosen, describe, settings_digest, table
from epic_retrieval import InputError
from tests.training.runs import write_mix, write_toy_run

# peft asks transformers by a name that transformers 5 is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

PLAN = Plan.load()


def test_the_plan_has_every_overlay_and_every_configuration_loads(tmp_path: Path) -> None:
    overlays = {path.stem for path in (training_regimes.CONFIGS / "ablations").glob("*.yaml")}
    assert set(PLAN.rows) == overlays
    for condition in PLAN.rows.values():
        assert set(condition) <= {"paper", "score"}
    for base in PLAN.bases:
        configs = [PLAN.config(base, row, tmp_path, 7) for row in PLAN.rows]
        assert {config.optimizer.steps for config in configs} == {7}
        assert {(config.base, config.mix, config.data, config.run.seed) for config in configs} == {
            (configs[0].base, configs[0].mix, configs[0].data, 42)
        }
        assert configs[0].mix.is_file()
        assert configs[0].data is not None
        assert configs[0].data.parent == tmp_path


def test_digests_tell_settings_apart_and_not_places(tmp_path: Path) -> None:
    first = PLAN.config("stories260K", "text", tmp_path / "here", 7)
    moved = PLAN.config("stories260K", "text", tmp_path / "there", 7)
    assert settings_digest(first) == settings_digest(moved)
    others = [
        PLAN.config("stories260K", "text", tmp_path, 8),
        PLAN.config("stories260K", "plain", tmp_path, 7),
        PLAN.config("bundled", "text", tmp_path, 7),
    ]
    assert len({settings_digest(config) for config in (first, *others)}) == 4


def test_names_asked_for() -> None:
    assert chosen(["a", "b"], None) == ["a", "b"]
    assert chosen(["a", "b"], "b, a") == ["b", "a"]
    with pytest.raises(InputError, match="'c' is not in the plan; expected some of a, b"):
        chosen(["a", "b"], "c")


def test_figures_of_a_log() -> None:
    log = [
        {"step": n + 1, "loss": 4 - n / 10, "queries_per_second": 16 if n % 2 else 64}
        | {"demonstrations": float(n % 3)}
        for n in range(9)
    ]
    scored = {"step": 9, "scores": [], "mean": {"none": 0.5, "shown": None}}
    found = describe([*log, scored], 32)
    assert found == {
        "steps": 9,
        "loss_first": pytest.approx(3.9),  # of steps 1 to 3
        "loss_last": pytest.approx(3.3),
        "window": 3,
        "seconds_per_step": 0.5,
        "demonstrations": 1.0,
    }
    assert describe([*log, *log, *log, *log], 32)["window"] == training_regimes.WINDOW
    assert describe(log[:1], 32)["window"] == 1


def test_the_table_keeps_the_plans_order_and_shows_gaps() -> None:
    row = {
        "steps": 3,
        "loss_first": 4.0,
        "loss_last": 3.456,
        "seconds_per_step": 0.25,
        "demonstrations": 2.5,
        "ndcg@10": {"none": 0.1234, "shown": None},
    }
    lines = table(PLAN, "tiny", {"text": row, "plain": row}).splitlines()
    assert lines[0].startswith("| tiny | in the paper | loss, first to last |")
    assert [line.count("|") for line in lines] == [10] * 4
    measured = "4.00 to 3.46 | 0.123 | - | 3 | 0.25 | 2.5"
    assert lines[2:] == [
        f"| plain | Table 5, instruction-tuning | {measured} | 70.60 |",
        f"| text | Figure 3, conventional ICL | {measured} | - |",
    ]


def test_finished_rows_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("epic_training.curves.draw_curves", lambda _records, _path: None)
    toy = write_toy_run(tmp_path / "toy").parent
    (toy / "data").rename(toy / "train_clean")
    mix = write_mix(toy / "mix.yaml", {"animals": {"instruction": "Find it"}}, development=5)
    settings = [f"mix={mix}", "batches.size=6", "batches.workers=0", "run.development_pairs=4"]
    tiny = {"config": "mini/stories.yaml", "model": "base"}
    plan = Plan(2, settings, {"tiny": tiny}, {"plain": {}, "k-1": {"score": 1.0}})
    monkeypatch.setattr(Plan, "load", lambda: plan)
    out = tmp_path / "regimes.json"

    def run(rows: str | None, steps: int | None = None) -> dict[str, dict[str, object]]:
        training_regimes.main(toy, "tiny", rows, steps, tmp_path / "runs", out)
        found: dict[str, dict[str, object]] = json.loads(out.read_text())["results"]["tiny"]
        return found

    first = run("plain")
    assert set(first) == {"plain"}
    assert "| plain |" in capsys.readouterr().out
    both = run(None)
    assert capsys.readouterr().err.splitlines()[0] == "tiny, k-1"
    assert both["plain"] == first["plain"]
    assert both["k-1"]["steps"] == 2
    assert run("plain", 3)["plain"]["steps"] == 3
    (toy / "base" / "config.json").unlink()
    with pytest.raises(typer.Exit):
        run("plain,k-1", 4)
    errors = capsys.readouterr().err
    assert "tiny, plain: " in errors
    assert "tiny, k-1: " in errors
    assert run("k-1") == both | {"plain": run("plain", 3)["plain"]}  # nothing was lost
