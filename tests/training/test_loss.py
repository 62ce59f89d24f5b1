import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from epic_training.loss import false_negatives, info_nce

Array = NDArray[np.float64]


def naive(queries: Array, passages: Array, masked: NDArray[np.bool_], temperature: float) -> float:
    losses = []
    for i, query in enumerate(queries):
        scores = {}
        for j, passage in enumerate(passages):
            if not masked[i, j]:
                cosine = query @ passage / np.linalg.norm(query) / np.linalg.norm(passage)
                scores[j] = math.exp(cosine / temperature)
        losses.append(-math.log(scores[i] / sum(scores.values())))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("masked_share", [0.0, 0.4])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_info_nce_equals_the_loop(masked_share: float, temperature: float) -> None:
    rng = np.random.default_rng(3)
    queries, passages = rng.standard_normal((5, 7)), rng.standard_normal((9, 7)) * 40
    masked = rng.random((5, 9)) < masked_share
    masked[np.arange(5), np.arange(5)] = False
    assert masked.any() == bool(masked_share)
    loss = info_nce(
        torch.from_numpy(queries), torch.from_numpy(passages), torch.from_numpy(masked), temperature
    )
    assert loss.item() == pytest.approx(naive(queries, passages, masked, temperature), rel=1e-9)


def test_info_nce_sees_directions_only() -> None:
    queries, passages = torch.randn(4, 6), torch.randn(6, 6)
    nothing = torch.zeros(4, 6, dtype=torch.bool)
    loss = info_nce(queries, passages, nothing, 0.05)
    scaled = info_nce(queries * 1000, passages / 50, nothing, 0.05)
    assert scaled.item() == pytest.approx(loss.item(), rel=1e-5)


def test_gradients_are_finite_where_everything_else_is_masked() -> None:
    queries = torch.randn(3, 4, requires_grad=True)
    passages = torch.randn(5, 4, requires_grad=True)
    masked = ~torch.eye(3, 5, dtype=torch.bool)
    masked[2, 4] = False  # one query keeps one negative
    loss = info_nce(queries, passages, masked, 0.05)
    loss.backward()
    for tensor in (queries, passages):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
    assert queries.grad is not None
    assert queries.grad[:2].abs().max() < 1e-6  # nothing to tell the positive from
    assert queries.grad[2].abs().max() > 0


@pytest.mark.parametrize(
    ("queries", "passages", "expected"),
    [
        ([1, 2], [5, 6], []),
        ([1, 2], [5, 6, 7], []),
        ([1, 1, 2], [5, 6, 7], [(0, 1), (1, 0)]),  # equal queries
        ([1, 2, 3], [5, 6, 5], [(0, 2), (2, 0)]),  # equal positives
        ([1, 2], [5, 6, 6, 5], [(0, 3), (1, 2)]),  # hard negatives that are a positive
        ([1, 1], [5, 6, 5], [(0, 1), (0, 2), (1, 0)]),
    ],
)
def test_false_negatives(
    queries: list[int], passages: list[int], expected: list[tuple[int, int]]
) -> None:
    masked = false_negatives(torch.tensor(queries), torch.tensor(passages))
    assert masked.shape == (len(queries), len(passages))
    assert [tuple(place) for place in masked.nonzero().tolist()] == expected
