"""Training on pairs of a kind: who is whose negative, what stays, what an expert learns."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from epic_retrieval.checkpoint import Checkpoint
from epic_retrieval.errors import InputError
from epic_retrieval.prompt import passage_prompt
from epic_training.experts import Kind, Likeness, LikenessConfig, linked, vectors_of
from epic_training.pairs import TokenisedPairs
from tests.models import tiny_encoder
from tests.training.samples import column, token_pairs

END = 2
TEXTS = [[10 + i, 20 + i, 30 + i] for i in range(12)]


def test_texts_that_pairs_link_are_of_one_group() -> None:
    a, b, c, d, e, f = TEXTS[:6]
    pairs = token_pairs([a, b, d, d], [b, c, e, d], [d, f, a, []])
    groups, strangers = linked(pairs)
    assert groups[0] == groups[1] != groups[2] == groups[3]
    assert strangers[0] == groups[2]
    assert strangers[2] == groups[0]
    assert strangers[1] not in groups
    assert strangers[3] == -1


def of_two_labels(*, hard: bool = True) -> TokenisedPairs:
    """A ring of three texts and one of two, whose negatives are of the other."""
    ring, other = TEXTS[:3], TEXTS[3:5]
    queries = [*ring, *other]
    positives = [ring[1], ring[2], ring[0], other[1], other[0]]
    negatives = [other[0], other[1], other[0], ring[0], ring[1]]
    return token_pairs(queries, positives, negatives if hard else None)


def likeness(
    checkpoint: Checkpoint,
    kind: Kind,
    base: Checkpoint | None = None,
    **changes: Any,  # noqa: ANN401 (of LikenessConfig)
) -> Likeness:
    aims = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    config = LikenessConfig(**{"batch": 5, "kept": 2, "keep": 0.0} | changes)
    weights = np.array([0.5, 0.5, 0.0, 0.0])
    texts = column(TEXTS[6:10])
    fixed = base or checkpoint
    return Likeness(checkpoint, kind, fixed, texts, aims, weights, config, seed=7, end=END)


def states(checkpoint: Checkpoint, rows: list[list[int]]) -> torch.Tensor:
    """(n, d) of length 1, of rows that stand alone."""
    start = checkpoint.tokenizer.start_ids(passage_prompt(checkpoint.config.template))
    found = [checkpoint.backbone.encode([[*start, *row, END]])[0] for row in rows]
    return normalize(torch.stack(found).float(), dim=1)


@pytest.mark.parametrize("hard", [True, False])
def test_the_loss_leaves_out_what_belongs_together(hard: bool) -> None:
    checkpoint = tiny_encoder("llama").checkpoint
    pairs = of_two_labels()
    loss, parts = likeness(checkpoint, Kind("label", [pairs], True, hard))(4)
    assert set(parts) == {"pairs", "kept"}
    query, positive, negative = (
        states(checkpoint, [c[i].tolist() for i in range(5)])
        for c in (pairs.query, pairs.positive, pairs.negative)
    )
    label = [0, 0, 0, 1, 1]
    losses = []
    for i in range(5):
        others = [positive[j] for j in range(5) if label[j] != label[i]]
        # The negative of a text of the other label has this one's label.
        others += [negative[j] for j in range(5) if hard and label[j] == label[i]]
        scores = torch.stack([positive[i], *others]) @ query[i] / 0.05
        losses.append(cross_entropy(scores[None], torch.tensor([0])))
    wanted = torch.stack(losses).mean()
    torch.testing.assert_close(loss, wanted, atol=1e-4, rtol=1e-4)


def test_what_is_kept() -> None:
    checkpoint = tiny_encoder("llama").checkpoint
    kind = Kind("label", [of_two_labels()], symmetric=True)
    made = likeness(checkpoint, kind, keep=2.0)
    loss, parts = made(0)
    aims = normalize(made._aims[:2], dim=1)
    cosine = (states(checkpoint, TEXTS[6:8]) * aims).sum(dim=1).mean()
    torch.testing.assert_close(parts["kept"], cosine, atol=1e-5, rtol=1e-4)
    free = likeness(checkpoint, kind)(0)[0]
    torch.testing.assert_close(loss - free, 2 * (1 - cosine), atol=1e-4, rtol=1e-4)
    loss.backward()
    assert all(weight.grad is not None for weight in made.model.parameters())


def test_passages_of_another_kind_of_text_are_left_to_the_base() -> None:
    checkpoint, base = (tiny_encoder("llama").checkpoint for _ in range(2))
    with torch.no_grad():
        for weight in base.backbone.model.parameters():
            weight.mul_(1.2)
    pairs = of_two_labels(hard=False)
    kind = Kind("answers", [pairs], symmetric=False)
    made = likeness(checkpoint, kind, base)
    loss, _ = made(3)
    query = states(checkpoint, TEXTS[:5])
    positive = states(base, [pairs.positive[i].tolist() for i in range(5)])
    same = torch.tensor([[0, 0, 0, 1, 1]])
    own = torch.eye(5, dtype=torch.bool)
    scores = (query @ positive.T / 0.05).masked_fill((same == same.T) & ~own, -1e4)
    torch.testing.assert_close(loss, cross_entropy(scores, torch.arange(5)), atol=1e-4, rtol=1e-4)
    loss.backward()
    assert all(weight.grad is None for weight in base.backbone.model.parameters())
    assert not any("base" in name for name, _ in made.named_parameters())
    # A symmetric kind's passages are the student's.
    both = likeness(checkpoint, Kind("alike", [pairs], symmetric=True), base)(3)[0]
    assert abs(both.item() - loss.item()) > 1e-4


def test_pairs_that_cannot_be_told_apart() -> None:
    checkpoint = tiny_encoder("llama").checkpoint
    a, b, c = TEXTS[:3]
    ring = Kind("ring", [of_two_labels(), token_pairs([a, b], [b, c])], symmetric=True)
    with pytest.raises(InputError, match="kind ring, data set toy: 2 pairs, all linked"):
        likeness(checkpoint, ring)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "opt"])
def test_vectors_are_those_of_texts_alone(family: str) -> None:
    checkpoint = tiny_encoder(family).checkpoint
    end = checkpoint.config.eos_token_id
    texts = column([TEXTS[0], TEXTS[1] * 4, [], TEXTS[2][:1]])
    found = vectors_of(checkpoint, texts, 5, 2, end)
    assert found.dtype == np.float16
    assert not found[2].any()
    start = checkpoint.tokenizer.start_ids(passage_prompt(checkpoint.config.template))
    for i in (0, 1, 3):
        row = [*start, *texts[i][:5].tolist(), end]
        state = normalize(checkpoint.backbone.encode([row])[0].float(), dim=0)
        np.testing.assert_allclose(found[i], state.detach().numpy(), atol=1e-3)
