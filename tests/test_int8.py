"""Linear layers in 8 bits: close to float32, marked as such, and never saved."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from epic_retrieval import EpicEncoder, InputError, load_task
from epic_retrieval.int8 import Int8Linear, quantise
from epic_retrieval.prompt_cache import PromptCache
from tests.models import FAMILIES, save_tiny_encoder

TEXTS = ["why is the sky blue", "a", "Which river is the longest of them all?"]


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_close_to_the_one_it_replaces(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=bias)
    states = torch.randn(3, 5, 64)
    found, expected = Int8Linear(linear)(states), linear(states)
    assert found.shape == expected.shape
    # Half a step of 8-bit weights and activations each, over 64 products of random signs.
    assert (found - expected).abs().max() < 0.05
    assert (found - expected).abs().max() > 0  # it is not the same layer


def test_every_linear_layer_is_replaced() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"inner": nn.Linear(4, 4)}))
    quantise(model)
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    assert sum(isinstance(module, Int8Linear) for module in model.modules()) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_encoders_of_every_family_agree_with_float32(family: str, tmp_path: Path) -> None:
    save_tiny_encoder(tmp_path, family)
    cache = PromptCache(tmp_path / "cache")
    exact = EpicEncoder.from_pretrained(tmp_path, device="cpu", cache=cache)
    rough = EpicEncoder.from_pretrained(tmp_path, device="cpu", dtype="int8", cache=cache)
    task = load_task("python-docs")
    for mode in ("none", "epic"):
        a = exact.encode_queries(TEXTS, task, mode)  # its prompt is kept on disk,
        b = rough.encode_queries(TEXTS, task, mode)  # and not taken for this one's
        cosines = (a * b).sum(axis=1)
        assert cosines.min() > 0.97, (mode, cosines)
        assert np.abs(a - b).max() > 1e-4
    assert exact._key(task, "none") != rough._key(task, "none")
    assert exact.passage_fingerprint() == rough.passage_fingerprint()


def test_rounded_weights_are_not_saved(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    rough = EpicEncoder.from_pretrained(tiny_encoder_folder, device="cpu", dtype="int8")
    with pytest.raises(InputError, match="int8 cannot be saved"):
        rough.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_int8_is_for_a_cpu(tiny_encoder_folder: Path) -> None:
    with pytest.raises(InputError, match='"int8" is for a CPU'):
        EpicEncoder.from_pretrained(tiny_encoder_folder, device="cuda", dtype="int8")
