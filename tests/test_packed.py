"""Packed rows against padded ones: any lengths, prefixes, families and number types."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import OPTConfig, OPTModel

from epic_retrieval.backbone import Backbone
from epic_retrieval.packed import NAME, can_pack
from tests.models import FAMILIES, OPT, SHAPE, tiny_model

BACKBONES = {name: Backbone(tiny_model(name)) for name in FAMILIES if name != "mistral"}
few = settings(max_examples=60, deadline=None, derandomize=True)


def make_rows(lengths: list[int], seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [[*rng.integers(4, 400, length - 1).tolist(), 2] for length in lengths]


@few
@given(
    family=st.sampled_from(sorted(BACKBONES)),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    prefix=st.integers(0, 50),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_packed_rows_equal_padded_ones(
    family: str, lengths: list[int], prefix: int, seed: int
) -> None:
    backbone, rows = BACKBONES[family], make_rows(lengths, seed)
    before = make_rows([prefix], seed + 1)[0] if prefix else None
    shared = backbone.prefix(backbone.token_embeddings(before)) if before else None
    assert can_pack(backbone.model, prefix + max(lengths))
    found = backbone.encode(rows, shared)
    expected = backbone.encode_padded(rows, shared)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@few
@given(
    family=st.sampled_from(sorted(BACKBONES)),
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=12),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours(
    family: str, lengths: list[int], seed: int
) -> None:
    backbone, rows = BACKBONES[family], make_rows(lengths, seed)
    shared = backbone.prefix(backbone.token_embeddings([1, 7, 9, 30]))
    together = backbone.encode(rows, shared)
    alone = torch.cat([backbone.encode([row], shared) for row in rows])
    order = np.random.default_rng(seed).permutation(len(rows))
    shuffled = backbone.encode([rows[i] for i in order], shared)
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(together[order], shuffled, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "cosine"), [(torch.bfloat16, 0.99), (torch.float16, 0.999)])
@pytest.mark.parametrize("family", sorted(BACKBONES))
@torch.no_grad()
def test_half_precision_agrees(family: str, dtype: torch.dtype, cosine: float) -> None:
    backbone = Backbone(torch.nn.Module.to(tiny_model(family), dtype=dtype))
    rows = make_rows([3, 9, 9, 17, 40], 1)
    shared = backbone.prefix(backbone.token_embeddings(list(range(4, 60))))
    found, expected = backbone.encode(rows, shared), backbone.encode_padded(rows, shared)
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found, expected).min() > cosine


@torch.no_grad()
def test_a_window_that_is_too_narrow_takes_the_padded_way() -> None:
    backbone = Backbone(tiny_model("mistral"))  # its window has 12 positions
    assert can_pack(backbone.model, 12)
    assert not can_pack(backbone.model, 13)
    rows = make_rows([3, 8, 8], 0)
    shared = backbone.prefix(backbone.token_embeddings([1, 5, 6, 7]))
    torch.testing.assert_close(
        backbone.encode(rows, shared), backbone.encode_padded(rows, shared), atol=2e-5, rtol=1e-5
    )
    long = make_rows([30, 11], 0)
    torch.testing.assert_close(backbone.encode(long), backbone.encode_padded(long))


@torch.no_grad()
def test_an_opt_that_is_wider_inside() -> None:
    config = OPTConfig(**SHAPE | OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False})
    torch.manual_seed(0)
    backbone = Backbone(OPTModel(config).eval())
    assert backbone.dimension == 16
    assert backbone.embed([torch.randn(2, 16), [5, 6]]).shape == (4, 16)
    rows = make_rows([3, 8, 8], 0)
    shared = backbone.prefix(backbone.token_embeddings([1, 5, 6, 7]))
    found = backbone.encode(rows, shared)
    assert found.shape == (3, 16)
    torch.testing.assert_close(found, backbone.encode_padded(rows, shared), atol=2e-5, rtol=1e-5)


def test_gradients_and_training_take_the_padded_way() -> None:
    backbone = Backbone(tiny_model("llama"))
    assert backbone.encode([[5, 2]]).requires_grad
    backbone.model.train()
    with torch.no_grad():
        assert not backbone._can_pack([[5, 2]], None, 0)


@torch.no_grad()
def test_packing_leaves_the_model_as_it_was_for_others() -> None:
    """Calls of the model itself give what they gave before, eager and sdpa."""
    model = tiny_model("qwen3")
    ids = torch.tensor([[5, 6, 7, 8]])
    before = model(input_ids=ids).last_hidden_state
    Backbone(model)
    assert model.config._attn_implementation == NAME
    assert torch.equal(model(input_ids=ids).last_hidden_state, before)
    eager = tiny_model("qwen3")
    eager.set_attn_implementation("eager")
    backbone = Backbone(eager)
    assert not can_pack(eager, 4)
    torch.testing.assert_close(backbone.encode([[5, 6, 7, 8]])[0], before[0, -1])


@torch.no_grad()
def test_the_prefix_is_held_once_whatever_the_batch() -> None:
    """No tensor of the size of a prefix per row is made."""
    backbone = Backbone(tiny_model("llama"))
    shared = backbone.prefix(backbone.token_embeddings(list(range(4, 304))))
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN204
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for one in out if isinstance(out, tuple) else (out,):
                if isinstance(one, torch.Tensor):
                    largest = max(largest, one.untyped_storage().nbytes())
            return out

    watch: Any = Watch
    with watch():
        backbone.encode(make_rows([4] * 40, 0), shared)
    per_layer = shared.nbytes / len(shared.keys)
    assert largest < 3 * per_layer
    with watch():
        backbone.encode_padded(make_rows([4] * 40, 0), shared)
    assert largest > 15 * per_layer
