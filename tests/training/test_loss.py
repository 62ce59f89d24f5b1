import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from epic_retrieval import InputError
from epic_training.loss import distillation, false_negatives, info_nce, matryoshka, only_own

Array = NDArray[np.float64]
few = settings(database=None, deadline=None, max_examples=40)


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
        ([1, 1], [5, 6, 5], [(0, 1), (0, 2), (1, 0), (1, 2)]),  # both
    ],
)
def test_false_negatives(
    queries: list[int], passages: list[int], expected: list[tuple[int, int]]
) -> None:
    masked = false_negatives(torch.tensor(queries), torch.tensor(passages))
    assert masked.shape == (len(queries), len(passages))
    assert [tuple(place) for place in masked.nonzero().tolist()] == expected


def naive_false_negatives(queries: list[int], passages: list[int]) -> list[list[bool]]:
    """All queries at once; passage i is the positive of query i."""
    masked = [[False] * len(passages) for _ in queries]
    for i, query in enumerate(queries):
        for j, passage in enumerate(passages):
            right = {passages[k] for k, other in enumerate(queries) if other == query}
            masked[i][j] = j != i and passage in right
    return masked


@given(st.data())
@few
def test_a_slice_of_the_queries_masks_what_all_of_them_mask(data: st.DataObject) -> None:
    n, hard = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 6))
    keys = st.integers(0, 5)
    queries = data.draw(st.lists(keys, min_size=n, max_size=n))
    passages = data.draw(st.lists(keys, min_size=n + hard, max_size=n + hard))
    expected = naive_false_negatives(queries, passages)
    whole = false_negatives(torch.tensor(queries), torch.tensor(passages))
    assert whole.tolist() == expected
    # Any queries in any order, not only a contiguous slice.
    here = data.draw(st.lists(st.integers(0, n - 1), unique=True))
    positions = torch.tensor(here, dtype=torch.long)
    everyone = torch.tensor(queries)
    part = false_negatives(everyone[positions], torch.tensor(passages), positions, everyone)
    assert part.tolist() == [expected[i] for i in here]


def test_positions_need_the_keys_of_the_queries_they_count() -> None:
    keys = torch.tensor([1, 2])
    with pytest.raises(ValueError, match="positive_query_keys"):
        false_negatives(keys, torch.tensor([5, 6, 7]), positions=torch.tensor([1, 2]))


@given(st.data())
@few
def test_only_own_leaves_the_positive_and_the_own_hard_negatives(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 7))
    index = st.integers(0, n - 1)
    owners = data.draw(st.lists(index, max_size=9))
    here = data.draw(st.none() | st.lists(index, unique=True))
    positions = None if here is None else torch.tensor(here, dtype=torch.long)
    masked = only_own(torch.tensor(owners, dtype=torch.long), n, positions)
    rows = range(n) if here is None else here
    assert masked.shape == (len(rows), n + len(owners))
    for row, query in zip(masked.tolist(), rows, strict=True):
        allowed = {query} | {n + j for j, owner in enumerate(owners) if owner == query}
        assert {j for j, hidden in enumerate(row) if not hidden} == allowed


@given(st.data())
@few
def test_info_nce_of_any_shape_and_any_positions_equals_the_loop(data: st.DataObject) -> None:
    n, m, d = (data.draw(st.integers(1, 8)) for _ in range(3))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    positions = rng.integers(0, m, size=n)
    queries, passages = rng.standard_normal((n, d)), rng.standard_normal((m, d))
    masked = rng.random((n, m)) < 0.5  # own positives too: they count all the same
    loss = info_nce(
        torch.from_numpy(queries),
        torch.from_numpy(passages),
        torch.from_numpy(masked),
        0.2,
        torch.from_numpy(positions),
    )
    expected = []
    for i, own in enumerate(positions):
        others = [j for j in range(m) if j != own and not masked[i, j]]
        shown = passages[[own, *others]]
        nothing = np.zeros((1, len(shown)), dtype=bool)
        expected.append(naive(queries[i : i + 1], shown, nothing, 0.2))
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-9, abs=1e-12)


def test_slices_add_up_to_the_whole() -> None:
    queries, passages, masked = torch.randn(6, 4), torch.randn(9, 4), torch.rand(6, 9) < 0.3
    whole = info_nce(queries, passages, masked, 0.1)
    total = torch.zeros(())
    for part in (torch.arange(4), torch.arange(4, 6)):
        total += info_nce(queries[part], passages, masked[part], 0.1, part) * len(part)
    assert (total / 6).item() == pytest.approx(whole.item(), rel=1e-6)


def gradients_of(
    loss: Callable[[Tensor, Tensor], Tensor], queries: Tensor, passages: Tensor
) -> tuple[float, Tensor, Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in (queries, passages)]
    value = loss(*leaves)
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
        found = torch.autograd.grad(value, leaves)
    return value.item(), found[0], found[1]


def test_a_query_without_negatives_adds_nothing() -> None:
    masked = ~torch.eye(3, 5, dtype=torch.bool)
    value, *found = gradients_of(
        lambda q, p: info_nce(q, p, masked, 0.05), torch.randn(3, 4), torch.randn(5, 4)
    )
    assert value == 0
    assert all(gradient.abs().max() == 0 for gradient in found)


def test_a_process_without_queries_loses_nothing() -> None:
    nothing = torch.zeros(0, 5, dtype=torch.bool)
    absent = torch.zeros(0, 2, dtype=torch.long)
    for loss in (
        lambda q, p: info_nce(q, p, nothing, 0.05, torch.arange(0)),
        lambda q, p: distillation(q, p, torch.zeros(0, 2), absent, 0.05),
    ):
        value, _, gradient = gradients_of(loss, torch.randn(0, 4), torch.randn(5, 4))
        assert value == 0
        assert gradient.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_vectors_are_compared_in_float32(dtype: torch.dtype) -> None:
    queries, passages = torch.randn(8, 32).to(dtype), torch.randn(12, 32).to(dtype)
    nothing = torch.zeros(8, 12, dtype=torch.bool)
    candidates = torch.randint(0, 12, (8, 3))
    teacher = torch.randn(8, 3).to(dtype)
    losses: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda q, p: info_nce(q, p, nothing, 0.02),
        lambda q, p: distillation(q, p, teacher, candidates, 0.02),
    ]
    for loss in losses:
        exact = loss(queries.float(), passages.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            under_autocast = loss(queries.float(), passages.float())
        for value in (loss(queries, passages), under_autocast):
            assert value.dtype == torch.float32
            assert value.item() == pytest.approx(exact.item(), rel=1e-6)


def naive_distillation(
    queries: Array, passages: Array, teacher: Array, candidates: NDArray[np.int64], tau: float
) -> float:
    """Teacher temperature 1."""
    total = 0.0
    for query, scores, indices in zip(queries, teacher, candidates, strict=True):
        pairs = [(score, j) for score, j in zip(scores, indices, strict=True) if j >= 0]
        if not pairs:
            continue
        wanted = np.exp([score for score, _ in pairs])
        found = np.array(
            [
                math.exp((query @ passage) / np.linalg.norm(query) / np.linalg.norm(passage) / tau)
                for passage in (passages[j] for _, j in pairs)
            ]
        )
        wanted, found = wanted / wanted.sum(), found / found.sum()
        total += float(np.sum(wanted * np.log(wanted / found)))
    return total / len(queries)


@given(st.data())
@few
def test_distillation_equals_the_loop(data: st.DataObject) -> None:
    n, m, d, c = (data.draw(st.integers(1, 6)) for _ in range(4))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    queries, passages = rng.standard_normal((n, d)), rng.standard_normal((m, d))
    candidates = rng.integers(-1, m, size=(n, c))
    teacher = rng.standard_normal((n, c))
    teacher[candidates < 0] = np.nan  # what stands there is never read
    value, *found = gradients_of(
        lambda q, p: distillation(
            q, p, torch.from_numpy(teacher * 3), torch.from_numpy(candidates), 0.3, 3.0
        ),
        torch.from_numpy(queries),
        torch.from_numpy(passages),
    )
    expected = naive_distillation(queries, passages, teacher, candidates, 0.3)
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert all(torch.isfinite(gradient).all() for gradient in found)
    lonely = (candidates >= 0).sum(axis=1) < 2
    assert found[0][torch.from_numpy(lonely)].abs().sum() < 1e-12


def test_distillation_is_zero_where_the_student_agrees() -> None:
    queries, passages = torch.randn(4, 6), torch.randn(7, 6)
    cosines = torch.nn.functional.cosine_similarity(queries[:, None], passages[None], dim=-1)
    candidates = torch.tensor([[0, 4, 5], [1, 4, -1], [2, 6, 3], [3, -1, -1]])
    teacher = cosines.gather(1, candidates.clamp_min(0)).requires_grad_()
    loss = distillation(queries.requires_grad_(), passages, teacher, candidates, 0.1, 0.1)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss.backward()
    assert teacher.grad is None  # the teacher does not learn


def test_matryoshka_is_the_weighted_mean_over_lengths() -> None:
    queries, passages, masked = torch.randn(5, 8), torch.randn(7, 8), torch.rand(5, 7) < 0.2

    def loss(queries: Tensor, passages: Tensor) -> Tensor:
        return info_nce(queries, passages, masked, 0.1)

    short, long = (loss(queries[:, :k], passages[:, :k]).item() for k in (2, 8))
    equal = matryoshka(loss, queries, passages, [2, 8])
    assert equal.item() == pytest.approx((short + long) / 2, rel=1e-6)
    weighted = matryoshka(loss, queries, passages, [2, 8], [1, 3])
    assert weighted.item() == pytest.approx((short + 3 * long) / 4, rel=1e-6)
    assert matryoshka(loss, queries, passages, [8]).item() == pytest.approx(long, rel=1e-6)


@pytest.mark.parametrize(
    ("dimensions", "weights", "message"),
    [
        ([], None, "from 1 to 8"),
        ([0, 8], None, "from 1 to 8"),
        ([4, 9], None, "from 1 to 8"),
        ([4, 8], [1.0], "one number for each"),
        ([4, 8], [1.0, -0.5], "none negative"),
        ([4, 8], [0.0, 0.0], "not all 0"),
        ([4, 8], [1.0, math.nan], "none negative"),
    ],
)
def test_matryoshka_refuses(
    dimensions: list[int], weights: list[float] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        matryoshka(lambda q, _: q.sum(), torch.randn(2, 8), torch.randn(2, 8), dimensions, weights)
