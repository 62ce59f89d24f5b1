"""Weights on disk in 8 bits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from epic_retrieval import EpicEncoder
from epic_retrieval.checkpoint import load_checkpoint, save_checkpoint
from epic_retrieval.errors import CheckpointError
from epic_retrieval.int8_file import INT8_NAME, read_int8, write_int8
from tests.models import FAMILIES, tiny_encoder


def test_a_matrix_is_off_by_half_a_step_at_most(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = {
        "matrix": torch.randn(20, 30) * torch.logspace(-4, 3, 20)[:, None],
        "zeros": torch.zeros(3, 4),
        "bias": torch.randn(7).half(),
        "cube": torch.randn(2, 3, 4),
    }
    write_int8(weights, tmp_path)
    found = read_int8(tmp_path, torch.float32)
    assert set(found) == set(weights)
    step = weights["matrix"].abs().amax(dim=1, keepdim=True) / 127
    assert ((found["matrix"] - weights["matrix"]).abs() <= 0.501 * step).all()
    assert not found["zeros"].any()
    assert torch.equal(found["bias"], weights["bias"].float())
    torch.testing.assert_close(found["cube"], weights["cube"], atol=2e-3, rtol=1e-3)
    assert {one.dtype for one in read_int8(tmp_path, torch.bfloat16).values()} == {torch.bfloat16}


def test_what_was_rounded_is_rounded_no_further(tmp_path: Path) -> None:
    write_int8({"matrix": torch.randn(9, 5)}, tmp_path)
    once = read_int8(tmp_path, torch.float32)
    write_int8(once, tmp_path)
    torch.testing.assert_close(read_int8(tmp_path, torch.float32), once, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rounded_checkpoint_gives_nearly_the_same_vectors(family: str, tmp_path: Path) -> None:
    encoder = tiny_encoder(family)
    save_checkpoint(encoder.checkpoint, tmp_path / "plain")
    save_checkpoint(encoder.checkpoint, tmp_path / "rounded", rounded=True)
    size = {one: (tmp_path / one / name).stat().st_size for one, name in (
        ("plain", "model.safetensors"), ("rounded", INT8_NAME),
    )}  # fmt: skip
    assert size["rounded"] < 0.5 * size["plain"]
    plain, rounded = (load_checkpoint(tmp_path / one, device="cpu") for one in size)
    rows = [[1, 5, 9, 33, 2], [1, 2]]
    with torch.no_grad():
        found = torch.cosine_similarity(rounded.backbone.encode(rows), plain.backbone.encode(rows))
    assert found.min() > 0.99
    assert rounded.weights_fingerprint() != plain.weights_fingerprint()
    texts = ["a question", "x"]
    again = EpicEncoder.from_pretrained(tmp_path / "rounded", device="cpu")
    assert np.isfinite(again.encode_passages(texts)).all()


def test_one_kind_of_weights_replaces_the_other(tmp_path: Path) -> None:
    checkpoint = tiny_encoder().checkpoint
    for rounded in (False, True, False):
        save_checkpoint(checkpoint, tmp_path, rounded=rounded)
        assert (tmp_path / INT8_NAME).is_file() == rounded
        assert (tmp_path / "model.safetensors").is_file() != rounded


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "a weight less"])
def test_damage_is_an_error(tmp_path: Path, damage: str) -> None:
    checkpoint = tiny_encoder().checkpoint
    save_checkpoint(checkpoint, tmp_path, rounded=True)
    path = tmp_path / INT8_NAME
    whole = path.read_bytes()
    if damage == "a weight less":
        weights = dict(checkpoint.backbone.model.state_dict())
        del weights["norm.weight"]
        write_int8(weights, tmp_path)
    else:
        content = {"empty": b"", "cut": whole[:-50], "garbage": b"\x80\x04K\x01." * 99}[damage]
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot be loaded|1 weights are missing"):
        load_checkpoint(tmp_path, device="cpu")
