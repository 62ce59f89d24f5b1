"""The study: its arithmetic, its tasks, its plan. No training here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.replication import report
from benchmarks.replication.report import CLAIMS, claims_table, difference, runs_table, values
from benchmarks.replication.study import (
    OVERLAYS,
    conditions,
    enlarged,
    flat,
    load_yaml,
)
from benchmarks.replication.tasks import Labelled, Pairs, Ranking, unseen_tasks

TASKS = [f"task {n}" for n in range(12)]


def run(seed: int, name: str, **means: float) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    level = {task: 50 + number for number, task in enumerate(TASKS)}
    scores = {
        condition.replace("_", " "): {t: level[t] + mean + rng.normal(0, 0.2) for t in TASKS}
        for condition, mean in means.items()
    }
    return {"seed": seed, "regime": name, "finished": True, "scores": scores}


@pytest.fixture
def record(tmp_path: Path) -> Path:
    results = {}
    for seed in (1, 2, 3):
        shown = {"5 shown, draw 0": 1.0, "5 shown, draw 1": 3.0, "5 foreign": -2, "5 swapped": 1.0}
        results[f"epic-{seed}-abc"] = run(seed, "epic", none=0.0, **shown)
        results[f"plain-{seed}-abc"] = run(seed + 10, "plain", none=0.0)
    results["text-1-abc"] = {"seed": 1, "scores": {}}  # not finished
    path = tmp_path / "replication.json"
    path.write_text(json.dumps({"results": results}))
    return path


def test_draws_are_averaged_and_what_is_unfinished_is_left_out(record: Path) -> None:
    runs = report.load(record)
    assert set(runs) == {"epic", "plain"}
    shown = values(runs["epic"], "5 shown")
    assert shown.shape == (3, 12)
    assert shown[0].mean() - values(runs["plain"], "none").mean() == pytest.approx(2, abs=0.2)


def test_verdicts_come_from_intervals(record: Path) -> None:
    runs = report.load(record)
    table = claims_table(runs)
    verdicts = {
        line.split("|")[1].strip(): line.split("|")[-2].strip() for line in table.split("\n")
    }
    assert verdicts["Showing them helps EPIC at test time"] == "seen"
    assert verdicts["Training with them helps even where none are shown"] == "undecided"
    assert verdicts["The task's own demonstrations matter: others do worse"] == "seen"
    assert verdicts["Which passage belongs to which query matters"] == "undecided"
    assert "Showing them helps textual ICL (bge-en-icl)" not in verdicts
    assert "| epic | 3 |" in runs_table(runs)
    report.plot(runs, record.with_suffix(".png"))
    assert record.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_an_interval_holds_what_other_tasks_and_seeds_would_show() -> None:
    rng = np.random.default_rng(0)
    by_task = rng.normal(0.5, 2.0, size=(1, 15)) + rng.normal(0, 0.1, size=(3, 15))
    found = difference(by_task + 40, np.full((3, 15), 40.0))
    assert found.mean == pytest.approx(by_task.mean())
    spread = by_task.mean(axis=0).std() / np.sqrt(15)
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.3)
    assert difference(np.ones((2, 4)), np.zeros((2, 4))).verdict == "seen"
    assert difference(np.zeros((2, 4)), np.ones((2, 4))).verdict == "not seen"


def test_every_claim_is_about_runs_and_conditions_that_are_made() -> None:
    plan = load_yaml(report.HERE / "study.yaml")
    for claim in CLAIMS:
        for name, condition in (claim.better, claim.worse):
            whole = plan["runs"][name]["seeds"] > 1
            made = [one.name for one in conditions(name, whole=whole)]
            assert any(one.startswith(condition) for one in made), (name, condition)
    for row in plan["runs"].values():
        assert (OVERLAYS / f"{row['overlay']}.yaml").is_file()
    assert flat({"a": {"b": 1}, "template": {"name": "x"}}) == {"a.b": 1, "template": {"name": "x"}}


def test_tasks_show_only_what_is_not_scored(data_root: Path) -> None:
    found = {one.task.name: one for one in unseen_tasks(data_root)}
    assert len(found) == 15
    assert len({one.family for one in found.values()}) == 6
    for one in found.values():
        assert len(one.pool) >= 40
        first, again, other = one.draw(0, 5), one.draw(0, 5), one.draw(1, 5)
        assert first == again != other
        assert len({pair.query for pair in first}) == 5
        match one.data:
            case Ranking(queries=texts):
                assert len(texts) == len(one.data.grades)
                assert all(one.data.grades)
            case Pairs(left=texts):
                assert len(texts) == len(one.data.right) == len(one.data.targets)
            case Labelled(texts=texts):
                assert len(texts) == len(one.data.labels)
        assert not [pair for pair in one.pool if {pair.query, pair.passage} & set(texts)]


def test_the_page_says_what_the_results_say() -> None:
    page = report.PAGE.read_text(encoding="utf-8")
    assert report.renewed(page, report.load()) == page, (
        "run python -m benchmarks.replication.report"
    )


def test_a_larger_base_gives_the_same_vectors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = tmp_path / "model"
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True,
        )
    ).save_pretrained(base)  # fmt: skip
    small, large = (
        LlamaForCausalLM.from_pretrained(one).model.eval() for one in (base, enlarged(base, 20))
    )
    ids = torch.tensor([[1, 5, 9, 2]])
    with torch.no_grad():
        assert torch.allclose(small(ids).last_hidden_state, large(ids).last_hidden_state, atol=1e-2)
    ratio = large.embed_tokens.weight / small.embed_tokens.weight
    assert torch.allclose(ratio, torch.full_like(ratio, 20.0))
