"""Linear layers laid out for their kernel, the same in float32; and in 8 bits, close to it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from epic_retrieval import EpicEncoder, InputError, load_task
from epic_retrieval.checkpoint import load_checkpoint
from epic_retrieval.linear import Int8Linear, PrepackedLinear, prepack, quantise
from epic_retrieval.prompt_cache import PromptCache
from tests.models import FAMILIES, save_tiny_encoder

TEXTS = ["why is the sky blue", "a", "Which river is the longest of them all?"]


@pytest.mark.parametrize("shape", [(64,), (1, 64), (3, 5, 64), (1, 300, 64), (2, 0, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_prepacked_layer_is_the_one_it_replaces(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=bias)
    packed = PrepackedLinear(linear)
    states = torch.randn(shape)
    torch.testing.assert_close(packed(states), linear(states), rtol=1e-5, atol=1e-6)
    assert torch.equal(packed.weight, linear.weight)
    state = packed.state_dict()
    assert state.keys() == linear.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in linear.state_dict().items())


def test_gradients_flow_through_a_prepacked_layer() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(16, 8)
    states = torch.randn(3, 16, requires_grad=True)
    found = torch.autograd.grad(PrepackedLinear(linear)(states).square().sum(), states)[0]
    expected = torch.autograd.grad(linear(states).square().sum(), states)[0]
    torch.testing.assert_close(found, expected)


def test_only_float32_is_prepacked() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.float16))
    prepack(model)
    assert [type(layer) for layer in model] == [PrepackedLinear, nn.Linear]


@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_encoders_of_every_family_are_prepacked(family: str, tmp_path: Path) -> None:
    save_tiny_encoder(tmp_path / "model", family)
    loaded = EpicEncoder.from_pretrained(tmp_path / "model", device="cpu", cache=PromptCache(None))
    layers = [type(layer) for layer in loaded.checkpoint.backbone.model.modules()]
    assert PrepackedLinear in layers
    assert nn.Linear not in layers
    plain = EpicEncoder(
        load_checkpoint(tmp_path / "model", device="cpu", dtype="float32"), PromptCache(None)
    )
    for mode in ("none", "epic"):
        found = loaded.encode_queries(TEXTS, "python-docs", mode)
        np.testing.assert_allclose(
            found, plain.encode_queries(TEXTS, "python-docs", mode), atol=2e-6
        )
    loaded.save_pretrained(tmp_path / "copy")
    again = EpicEncoder.from_pretrained(tmp_path / "copy", device="cpu", cache=PromptCache(None))
    np.testing.assert_array_equal(loaded.encode_passages(TEXTS), again.encode_passages(TEXTS))


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
