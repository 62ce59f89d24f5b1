import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from epic_retrieval.errors import EpicError
from epic_training.optimization import adamw, load_state, save_state, set_rate

STEPS, WARMUP = 8, 3


class Run:
    """A small training whose batches depend on the step alone."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        body = nn.Sequential(OrderedDict(a=nn.Linear(4, 6), norm=nn.LayerNorm(6)))
        self.modules = nn.ModuleDict({"body": body, "head": nn.Linear(6, 2)})
        rates = zip(self.modules.values(), (0.1, 0.01), strict=True)
        self.optimizer = adamw([(part.parameters(), rate) for part, rate in rates], 0.1)

    def go(self, first: int, last: int) -> None:
        for step in range(first, last):
            set_rate(self.optimizer, step, WARMUP, STEPS)
            inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
            self.modules["head"](self.modules["body"](inputs)).pow(2).sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.modules.state_dict().items()}


def test_saving_and_loading_changes_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    whole, first, second = Run(), Run(), Run()
    whole.go(0, STEPS)
    first.go(0, 4)
    save_state(state, 4, first.modules, first.optimizer)
    second.go(0, 1)  # whatever it holds is replaced
    assert load_state(state, second.modules, second.optimizer) == 4
    second.go(4, STEPS)
    for name, value in whole.weights().items():
        assert torch.equal(second.weights()[name], value), name
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_without_a_file_a_run_starts_at_its_beginning(tmp_path: Path) -> None:
    run = Run()
    before = run.weights()
    assert load_state(tmp_path / "state.safetensors", run.modules, run.optimizer) == 0
    assert all(torch.equal(run.weights()[name], value) for name, value in before.items())


def test_the_state_is_safetensors_and_replaces_an_older_one(tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    state.with_suffix(".partial").write_bytes(b"of a run that was killed")
    run = Run()
    run.go(0, 1)
    save_state(state, 1, run.modules, run.optimizer)
    run.go(1, 2)
    save_state(state, 2, run.modules, run.optimizer)
    raw = state.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    names = set(header) - {"__metadata__"}
    assert {"step", "weights/body.a.weight", "weights/head.bias", "exp_avg/head.bias"} <= names
    assert all({"dtype", "shape", "data_offsets"} <= set(header[name]) for name in names)
    assert load_state(state, run.modules, run.optimizer) == 2


def test_a_state_of_another_model_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    run = Run()
    run.go(0, 1)
    save_state(state, 1, run.modules, run.optimizer)
    small = nn.ModuleDict({"head": nn.Linear(6, 2)})
    with pytest.raises(EpicError, match=r"another model: it also has '.*body"):
        load_state(state, small, adamw([(small.parameters(), 0.1)], 0))
    wide = nn.ModuleDict({"body": run.modules["body"], "head": nn.Linear(6, 3)})
    with pytest.raises(EpicError, match="damaged, or of a training with another model"):
        load_state(state, wide, adamw([(wide.parameters(), 0.1)], 0))
    state.write_bytes(state.read_bytes()[:-9])
    with pytest.raises(EpicError, match="remove it to start again"):
        load_state(state, run.modules, run.optimizer)


def test_frozen_parameters_are_neither_trained_nor_saved(tmp_path: Path) -> None:
    run = Run()
    run.modules["body"].requires_grad_(False)
    groups = adamw([(part.parameters(), 0.1) for part in run.modules.values()], 0.1).param_groups
    assert [len(group["params"]) for group in groups] == [1, 1]
    save_state(tmp_path / "s.safetensors", 0, run.modules, run.optimizer)
    assert set(load_file(tmp_path / "s.safetensors")) == {
        "step",
        "weights/head.weight",
        "weights/head.bias",
    }


def test_weight_decay_is_for_matrices() -> None:
    groups = Run().optimizer.param_groups
    found = [(g["lr"], g["weight_decay"], sorted(p.ndim for p in g["params"])) for g in groups]
    assert found == [(0.1, 0.1, [2]), (0.1, 0.0, [1, 1, 1]), (0.01, 0.1, [2]), (0.01, 0.0, [1])]


@pytest.mark.parametrize(
    ("step", "warmup", "steps", "factor"),
    [
        (0, 4, 10, 1 / 4),
        (2, 4, 10, 3 / 4),
        (3, 4, 10, 1.0),
        (4, 4, 10, 1.0),
        (7, 4, 10, 1 / 2),
        (9, 4, 10, 1 / 6),
        (10, 4, 10, 0.0),
        (0, 0, 10, 1.0),  # no warm-up
        (9, 0, 10, 1 / 10),
        (0, 10, 10, 1 / 10),  # nothing but warm-up
        (9, 10, 10, 1.0),
        (0, 1, 1, 1.0),
    ],
)
def test_learning_rates(step: int, warmup: int, steps: int, factor: float) -> None:
    run = Run()
    set_rate(run.optimizer, 0, warmup, steps)  # rates are of the step, not of the one before
    set_rate(run.optimizer, step, warmup, steps)
    rates = [group["lr"] for group in run.optimizer.param_groups]
    assert rates == pytest.approx([0.1 * factor] * 2 + [0.01 * factor] * 2)
