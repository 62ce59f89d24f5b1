"""The course of a run: interruptions, losses that are no numbers, scores, the best checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from epic_retrieval import EpicEncoder, EpicError, InputError
from epic_retrieval.prompt import Mode
from epic_retrieval.prompt_cache import PromptCache
from epic_training.batch import Batch
from epic_training.development import DevelopmentScore
from epic_training.run import _Trainer, train
from epic_training.run_log import read_log
from epic_training.step import ContrastiveStep
from tests.training.runs import configured, losses, records, write_toy_run

Forward = Callable[..., tuple[Tensor, dict[str, Tensor]]]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than a toy run."""
    monkeypatch.setattr("epic_training.curves.draw_curves", lambda _records, _path: None)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_run(tmp_path_factory.mktemp("toy")).parent


def stop_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """An exception in place of a step, the first being 1."""
    real = _Trainer._one

    def one(self: _Trainer, number: int, batch: Batch) -> dict[str, float]:
        if number + 1 == step:
            raise KeyboardInterrupt
        return real(self, number, batch)

    patch.setattr(_Trainer, "_one", one)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted twice; between saves, and right after one; with other settings of watching."""
    chosen = ["optimizer.steps=9", "run.evaluate_every=4"]
    whole = train(configured(toy, *chosen, "run.save_every=3", mix="both.yaml"), tmp_path / "a")
    out = tmp_path / "b"
    for at, watched in (
        (6, ["run.save_every=3"]),
        (7, ["run.save_every=3", "batches.workers=2"]),
        (None, ["run.save_every=100"]),
    ):
        with monkeypatch.context() as patch:
            config = configured(toy, *chosen, *watched, mix="both.yaml")
            if at is None:
                folder = train(config, out)
                continue
            stop_at(at, patch)
            with pytest.raises(KeyboardInterrupt):
                train(config, out)
        assert len(losses(out)) == at - 1

    def timeless(folder: Path) -> list[dict[str, Any]]:
        return [record | {"queries_per_second": None} for record in records(folder)]

    assert timeless(out) == timeless(tmp_path / "a")
    assert [record["step"] for record in records(out) if "mean" in record] == [4, 8, 9]
    for path in whole.glob("*.safetensors"):
        assert (folder / path.name).read_bytes() == path.read_bytes()
    before = (out / "log.jsonl").read_bytes()
    assert train(config, out) == folder, "a finished run does nothing"
    assert (out / "log.jsonl").read_bytes() == before


def test_a_log_line_that_was_cut_off_is_dropped(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(toy, "run.save_every=2")
    with monkeypatch.context() as patch:
        stop_at(4, patch)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "lo')
    assert [record["step"] for record in read_log(tmp_path / "log.jsonl")] == [1, 2, 3]
    train(config, tmp_path)
    assert len(losses(tmp_path)) == 4


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_no_number_stops_and_updates_nothing(
    value: str, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Forward = ContrastiveStep.forward
    batches: list[Batch] = []
    weights: list[Tensor] = []

    def spoiled(
        self: ContrastiveStep, batch: Batch, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, parts = real(self, batch, rng)
        batches.append(batch)
        if len(batches) < 3:
            return loss, parts
        weights.append(next(self.parameters()).detach().clone())
        return loss * float(value), parts | {"loss": parts["loss"] * float(value)}

    monkeypatch.setattr(ContrastiveStep, "forward", spoiled)
    trainer = _Trainer(configured(toy, "run.save_every=2"), tmp_path)
    state = tmp_path / "state.safetensors"
    with pytest.raises(EpicError, match=rf"step 3: loss {value}.*nothing was updated.*failed-step"):
        trainer.run()
    assert torch.equal(next(trainer.step.parameters()), weights[0])
    assert len(losses(tmp_path)) == 2
    assert not (tmp_path / "checkpoint").exists()
    failed = json.loads((tmp_path / "failed-step-3.json").read_text(encoding="utf-8"))
    batch = batches[2]
    assert failed["texts"] == [list(pair) for pair in batch.texts]
    assert failed["rows"] == list(batch.origin)
    assert (failed["step"], failed["dataset"]) == (3, "animals")
    assert failed["report"]["loss"] == value
    assert "gradient_norm" in failed["report"]
    assert failed["lengths"]["queries"] == [len(row) for row in batch.queries]

    monkeypatch.setattr(ContrastiveStep, "forward", real)
    saved = state.read_bytes()
    train(configured(toy, "run.save_every=2"), tmp_path)
    assert len(losses(tmp_path)) == 4, "the last state was sound"
    assert state.read_bytes() != saved


def test_a_gradient_that_is_no_number_stops_too(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Forward = ContrastiveStep.forward

    def spoiled(
        self: ContrastiveStep, batch: Batch, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, parts = real(self, batch, rng)
        loss.register_hook(lambda gradient: gradient * torch.nan)
        return loss, parts

    monkeypatch.setattr(ContrastiveStep, "forward", spoiled)
    with pytest.raises(EpicError, match=r"step 1: loss [0-9.]+, gradient norm nan"):
        train(configured(toy), tmp_path)
    assert (tmp_path / "failed-step-1.json").is_file()


def with_scores(patch: pytest.MonkeyPatch, *given: tuple[float, float | None]) -> None:
    """Development scores (none, shown), one after the other."""
    waiting = list(given)

    def score(*_args: object, **_settings: object) -> list[DevelopmentScore]:
        none, shown = waiting.pop(0)
        return [DevelopmentScore("animals", 9, none, () if shown is None else (shown, shown))]

    patch.setattr("epic_training.run.score_sets", score)


def modes_of(folder: Path) -> tuple[Mode, ...]:
    loaded = EpicEncoder.from_pretrained(folder, device="cpu", cache=PromptCache(None))
    return loaded.checkpoint.config.modes


def test_the_best_is_kept_when_later_scores_are_worse(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_scores(monkeypatch, (0.5, 0.4), (0.5, 0.6), (0.55, 0.3), (0.1, 0.2))
    best = train(configured(toy, "run.evaluate_every=1", mix="both.yaml"), tmp_path)
    assert best == tmp_path / "best"
    scores = json.loads((best / "scores.json").read_text(encoding="utf-8"))
    assert scores == {
        "mean": {"none": 0.5, "shown": 0.6},
        "datasets": [{"name": "animals", "pairs": 9, "none": 0.5, "shown": [0.6, 0.6]}],
    }
    last = json.loads((tmp_path / "checkpoint" / "scores.json").read_text(encoding="utf-8"))
    assert last["mean"] == {"none": 0.1, "shown": 0.2}
    assert modes_of(best) == ("epic", "none")
    weights = [path / "model.safetensors" for path in (best, tmp_path / "checkpoint")]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    names = {path.name for path in tmp_path.iterdir()}
    assert not {name for name in names if name.endswith((".partial", ".old"))}
    assert "run.json" in {path.name for path in best.iterdir()}


@pytest.mark.parametrize(
    ("regime", "share", "expected"),
    [
        ("epic", 0, ("none", "epic")),
        ("epic", 0.5, ("none", "epic", "text")),
        ("text", 0, ("none", "text")),
        ("plain", 0, ("none",)),
    ],
)
def test_instructions_alone_come_first_where_demonstrations_hurt(
    regime: str,
    share: float,
    expected: tuple[Mode, ...],
    toy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_scores(monkeypatch, (0.5, None if regime == "plain" else 0.499))
    chosen = [f"regime={regime}", f"demonstrations.text_share={share}", "optimizer.steps=1"]
    folder = train(configured(toy, *chosen), tmp_path)
    assert modes_of(folder) == expected


def test_the_best_of_an_interrupted_run_is_not_forgotten(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_scores(monkeypatch, (0.9, 0.9), (0.1, 0.1), (0.2, 0.2), (0.2, 0.2))
    config = configured(toy, "run.evaluate_every=1", mix="both.yaml")
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path)
    best = train(config, tmp_path)
    scores = json.loads((best / "scores.json").read_text(encoding="utf-8"))
    assert scores["mean"] == {"none": 0.9, "shown": 0.9}


def test_without_held_out_rows_there_is_no_best(toy: Path, tmp_path: Path) -> None:
    folder = train(configured(toy), tmp_path)
    assert folder == tmp_path / "checkpoint"
    assert not (tmp_path / "best").exists()
    assert not (folder / "scores.json").exists()
    with pytest.raises(InputError, match="evaluate_every is 2, but no data set holds rows out"):
        train(configured(toy, "run.evaluate_every=2"), tmp_path / "scored")
