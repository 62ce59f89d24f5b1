"""Gradients in chunks are those of the whole batch, in the memory of a chunk.

Chunks under DistributedDataParallel are in test_gather.py, whose processes start sooner.
"""

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from epic_retrieval.backbone import Backbone
from epic_retrieval.projector import Projector
from epic_training.gradient_cache import in_chunks, rerun_in_backward
from epic_training.loss import info_nce
from tests.models import tiny_model

Rows = list[list[int]]


def token_rows(n: int, seed: int) -> Rows:
    """Rows of 3 to 9 tokens, each ending in the end token."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (n,), generator=generator).tolist()
    return [[*torch.randint(4, 400, (k,), generator=generator).tolist(), 2] for k in lengths]


def pieces(rows: Rows, size: int) -> list[Rows]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class TwoStages(nn.Module):
    """A toy of the method: passages and queries, then the queries behind vectors made from both.

    The first half of the queries is shown demonstrations from the second, and the other way round,
    so that no chunk of the second stage can go backward before chunks of the first.
    """

    def __init__(self, family: str = "llama") -> None:
        super().__init__()
        self.model = tiny_model(family)
        torch.manual_seed(1)
        self.projector = Projector(32)
        self.unused = nn.Linear(2, 2)  # like the last norm's bias of some families: never reached

    def forward(
        self, queries: Rows, passages: Rows, size: int = 10**9, *, cached: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Vectors (n, 32) of queries and passages."""
        backbone = Backbone(self.model)
        plain = in_chunks(backbone.encode, pieces(queries, size), cached=cached)
        encoded = in_chunks(backbone.encode, pieces(passages, size), cached=cached)
        half, shown = len(queries) // 2, []
        for own, others in ((slice(0, half), slice(half, None)), (slice(half, None), slice(half))):
            states = torch.cat([plain[others][:2], encoded[: len(queries)][others][:2]])
            prompt = backbone.embed([[1, 7, 8], self.projector(states), [7, 8]])
            if cached:
                prefix = rerun_in_backward(backbone.prefix, prompt)
            else:
                prefix = backbone.prefix(prompt)
            shown.append(
                in_chunks(backbone.encode, pieces(queries[own], size), prefix, cached=cached)
            )
        return torch.cat(shown), encoded


def loss_of(queries: Tensor, passages: Tensor) -> Tensor:
    masked = torch.zeros(len(queries), len(passages), dtype=torch.bool)
    return info_nce(queries, passages, masked, 0.05)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """By norm: single elements near zero are rounding noise."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("family", ["llama", "mistral"])  # with a sliding window
@pytest.mark.parametrize("size", [5, 16])
def test_gradients_equal_those_of_one_batch(family: str, size: int) -> None:
    module = TwoStages(family)
    queries, passages = token_rows(32, seed=2), token_rows(40, seed=3)
    whole = loss_of(*module(queries, passages))
    whole.backward()
    expected = gradients(module)
    assert len(expected) == len(list(module.parameters())) - 2  # all but the unused
    cached = loss_of(*module(queries, passages, size, cached=True))
    cached.backward()
    assert cached.item() == pytest.approx(whole.item(), rel=1e-6)
    assert_close(gradients(module), expected)


def test_a_batch_of_512() -> None:
    module = TwoStages()
    queries, passages = token_rows(512, seed=2), token_rows(512, seed=3)
    whole = loss_of(*module(queries, passages))
    whole.backward()
    expected = gradients(module)
    loss_of(*module(queries, passages, 64, cached=True)).backward()
    assert_close(gradients(module), expected)


def test_each_chunk_runs_twice_and_they_go_back_one_after_the_other() -> None:
    weight = torch.randn(4, 4, requires_grad=True)
    events: list[int] = []

    def run(chunk: int) -> Tensor:
        events.append(chunk)
        return (torch.ones(2, 4) * (chunk + 1) @ weight).sin()

    vectors = in_chunks(run, range(5))
    assert events == [0, 1, 2, 3, 4]
    loss_of(vectors[:4], vectors).backward()
    assert Counter(events) == dict.fromkeys(range(5), 2)
    assert events[5:] == [4, 3, 2, 1, 0]


def test_without_gradients_each_chunk_runs_once() -> None:
    events: list[int] = []

    def run(chunk: int) -> Tensor:
        events.append(chunk)
        return torch.ones(1, 4)

    with torch.no_grad():
        assert in_chunks(run, range(3)).shape == (3, 4)
    in_chunks(run, range(3), cached=False)
    assert events == [0, 1, 2] * 2


def test_no_chunks_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="no chunks"):
        in_chunks(torch.sin, [])


class Dropping(nn.Module):
    """Token ids to vectors, a third of each dropped."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.table = nn.Embedding(400, 16, device=device)
        self.layer = nn.Linear(16, 16, device=device)

    def forward(self, rows: Rows) -> Tensor:
        ids = torch.tensor([row[-3:] for row in rows], device=self.table.weight.device)
        dropped = nn.functional.dropout(self.table(ids), 1 / 3)
        vectors: Tensor = nn.functional.dropout(self.layer(dropped).tanh(), 1 / 3).mean(1)
        return vectors


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
        ),
    ],
)
def test_dropout_is_replayed(device: str) -> None:
    torch.manual_seed(0)
    module, chunks = Dropping(device), pieces(token_rows(24, seed=4), 8)
    found = {}
    for cached in (False, True):
        torch.manual_seed(5)
        vectors = in_chunks(module, chunks, cached=cached)
        torch.rand(7, device=device)  # the generator moves on before the backward pass
        before = torch.get_rng_state()
        vectors.pow(3).sum().backward()
        assert torch.equal(torch.get_rng_state(), before)  # and the backward pass leaves it there
        found[cached] = gradients(module)
    assert_close(found[True], found[False])
    torch.manual_seed(6)
    in_chunks(module, chunks).pow(3).sum().backward()
    with pytest.raises(AssertionError):
        assert_close(gradients(module), found[False])  # the test would see other masks


def test_autocast_is_replayed() -> None:
    module = TwoStages()
    queries, passages = token_rows(12, seed=2), token_rows(16, seed=3)
    found = {}
    for cached in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(*module(queries, passages, 4, cached=cached))
        loss.backward()  # outside, as usual
        found[cached] = gradients(module)
    for name, expected in found[False].items():
        # Both round to bfloat16, in another order.
        assert (found[True][name] - expected).norm() <= 0.02 * expected.norm(), name


def test_checkpointed_layers_inside_of_chunks() -> None:
    module = TwoStages()
    backbone, chunks = Backbone(module.model), pieces(token_rows(12, seed=2), 4)
    found = []
    for nested in (False, True):
        if nested:
            module.model.train()  # the tiny models have no dropout
            layers: Any = module.model.layers
            for layer in layers:
                layer.gradient_checkpointing = True
                layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        in_chunks(backbone.encode, chunks).pow(2).sum().backward()
        found.append(gradients(module))
    assert_close(found[1], found[0])


def storages(values: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class AliveBytes(TorchDispatchMode):
    """The most bytes that tensors made while this is entered held at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: int = 0
        self.peak: int = 0
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        self.seen.update(storages(args))  # what was there before, and views of it, is not counted
        result = func(*args, **(kwargs or {}))
        for storage in storages(result):
            if storage not in self.seen:
                self.seen.add(storage)
                self.alive += storage.nbytes()
                self.peak = max(self.peak, self.alive)
                weakref.finalize(storage, self.forget, storage.nbytes())
        return result

    def forget(self, size: int) -> None:
        self.alive -= size


def peak_bytes(n: int, size: int, *, cached: bool) -> int:
    """Of forward and backward, above the bytes of the parameters' gradients."""
    torch.manual_seed(0)
    module = nn.Sequential(*[layer for _ in range(12) for layer in (nn.Linear(32, 32), nn.Tanh())])
    rows = torch.randn(n, 64, 32)  # n texts of 64 tokens
    gc.collect()
    counted = AliveBytes()
    with counted:
        vectors = in_chunks(lambda part: module(part).mean(1), rows.split(size), cached=cached)
        loss_of(vectors, vectors).backward()
    gradients_of_parameters = sum(parameter.nbytes for parameter in module.parameters())
    return counted.peak - gradients_of_parameters


def test_activations_grow_with_the_chunk_not_the_batch() -> None:
    one_layer_of_one_text = 64 * 32 * 4
    small, large = (peak_bytes(n, 4, cached=True) for n in (16, 128))
    whole_small, whole_large = (peak_bytes(n, 4, cached=False) for n in (16, 128))
    # The count is right where the answer is known: 12 layers of each text.
    assert whole_large > 128 * 12 * one_layer_of_one_text
    assert whole_large > 7 * whole_small
    # In chunks, what grows with the batch are vectors (n, 32) and scores (n, n).
    assert small > 4 * 12 * one_layer_of_one_text
    assert large < 1.5 * small
    assert large < whole_large / 12
    assert peak_bytes(128, 16, cached=True) > 3 * large
