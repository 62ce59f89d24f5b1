"""Kinds of likeness that demonstrations show: aims, prompts as inference makes them."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from epic_retrieval import Demonstration, EpicEncoder, Task
from epic_retrieval.checkpoint import Checkpoint
from epic_retrieval.errors import InputError
from epic_retrieval.prompt import build_prompt, passage_prompt
from epic_retrieval.prompt_cache import PromptCache
from epic_training.experts import Kind
from epic_training.kinds import ShownConfig, ShownKinds, shown_texts, told_apart
from tests.models import tiny_encoder
from tests.training.samples import ANIMALS, column, token_pairs

WIDTH = 32  # of the tiny models


def test_what_is_told_apart_by_hand() -> None:
    aims = normalize(torch.randn(3, 4, 8), dim=2)
    distance, share = told_apart(7 * aims, aims)  # lengths do not matter
    assert distance.item() == pytest.approx(0, abs=1e-9)
    assert share.item() == pytest.approx(1)
    same = torch.randn(1, 4, 8).expand(3, 4, 8)
    distance, share = told_apart(same, aims)
    assert share.item() == pytest.approx(0, abs=1e-6)
    mean = aims.mean(dim=0)
    wanted = sum(float((aims[k, m] - mean[m]).square().sum()) for k in range(3) for m in range(4))
    assert distance.item() == pytest.approx(wanted / 12, rel=1e-5)


INSTRUCTION = "Find what is alike"


def words(checkpoint: Checkpoint, texts: list[str], *, behind: bool = True) -> list[list[int]]:
    """Tokens as inference makes them behind an instruction, or alone: a space may differ."""
    template = checkpoint.config.template
    prompt = build_prompt(template, INSTRUCTION) if behind else passage_prompt(template)
    return [row[:-1] for row in checkpoint.tokenizer.text_ids(texts, prompt, 64)]


QUERIES = [f"where does the {animal} live" for animal in ANIMALS]
PASSAGES = [f"the {animal} lives in the old barn" for animal in ANIMALS]


def shown_kinds(
    family: str,
    count: int = 3,
    **changes: Any,  # noqa: ANN401 (of ShownConfig)
) -> ShownKinds:
    checkpoint = tiny_encoder(family).checkpoint
    asked = words(checkpoint, QUERIES)
    kinds = [
        Kind(
            name,
            [token_pairs(asked, words(checkpoint, PASSAGES, behind=symmetric))],
            symmetric,
        )
        for name, symmetric in (("a", True), ("b", False), ("c", False))
    ]
    texts = column(words(checkpoint, ["the cat", "hides in a barn", "near the lake"]))
    aims = torch.randn(3, 3, WIDTH, generator=torch.Generator().manual_seed(2))
    config = ShownConfig(**{"texts": 2, "most": 3} | changes)
    return ShownKinds(
        checkpoint, kinds[:count], texts, aims[:count], [INSTRUCTION], config, seed=3,
        end=checkpoint.config.eos_token_id,
    )  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "opt"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_demonstrations_are_those_of_inference(family: str, symmetric: bool) -> None:
    loss = shown_kinds(family)
    kind = loss._kinds[0 if symmetric else 1]
    shown = loss._demonstrations([kind], INSTRUCTION, np.random.default_rng(8))[0]
    again = np.random.default_rng(8)  # the same draws
    count = int(again.integers(1, 4))
    numbers = [(again.integers(1), int(again.integers(len(QUERIES))))[1] for _ in range(count)]
    assert len(shown) == count
    pairs = tuple(Demonstration(QUERIES[i], PASSAGES[i]) for i in numbers)
    task = Task("alike", INSTRUCTION, pairs, symmetric=symmetric)
    encoder = EpicEncoder(loss.checkpoint, PromptCache(None))
    template = loss.checkpoint.config.template
    prompt = loss._rows.embed(build_prompt(template, task.instruction, shown))
    row = [*words(loss.checkpoint, ["the cat"])[0], loss.checkpoint.config.eos_token_id]
    found = normalize(loss._rows.encode([row], loss._rows.behind(prompt)).float(), dim=1)
    wanted = encoder.encode_queries(["the cat"], task, "epic", show_progress=False)
    np.testing.assert_allclose(found.detach().numpy(), wanted, atol=2e-5)


def test_a_step_depends_on_its_number_alone_and_reaches_all_weights() -> None:
    loss = shown_kinds("llama")
    first, parts = loss(3)
    assert torch.equal(loss(3)[0], first)
    assert not torch.equal(loss(4)[0], first)
    assert {"shown_cosine", "read"} == set(parts)
    first.backward()
    for module in (loss.model, loss.projector):
        assert all(one.grad is not None for one in module.parameters())
    gradient = loss.projector.hidden.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_the_loss_is_of_the_aims_of_each_kind() -> None:
    loss = shown_kinds("llama", apart=0.0)
    rng = np.random.default_rng([3, 5, 1])
    chosen = rng.choice(3, size=2, replace=False)
    instruction = loss._instructions[int(rng.integers(1))]
    rows = [[*loss._texts[int(i)].tolist(), loss._end] for i in chosen]
    cosines = []
    for number, shown in enumerate(loss._demonstrations(loss._kinds, instruction, rng)):
        prompt = loss._rows.embed(build_prompt(loss.checkpoint.config.template, instruction, shown))
        found = normalize(loss._rows.encode(rows, loss._rows.behind(prompt)).float(), dim=1)
        aims = normalize(loss._aims[number][chosen], dim=1)
        cosines.append((found * aims).sum(dim=1).mean().item())
    found, parts = loss(5)
    assert parts["shown_cosine"].item() == pytest.approx(np.mean(cosines), abs=1e-5)
    assert found.item() == pytest.approx(1 - np.mean(cosines), abs=1e-5)
    assert shown_kinds("llama", apart=10.0)(5)[0] > found  # of the same draws


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 1}, "1 kind of likeness is shown; expected 2 or more"),
        ({"texts": 4}, "texts is 4; expected at most 3"),
    ],
)
def test_what_cannot_be_shown(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        shown_kinds("llama", **changes)


def test_texts_to_show_are_of_lessons_and_of_every_kind() -> None:
    lessons = column([[100 + i] * 9 for i in range(40)] + [[]])
    kinds = [
        Kind(str(k), [token_pairs([[k, i] for i in range(1, 6)], [[7]] * 5)], symmetric=True)
        for k in (1, 2)
    ]
    weights = np.array([0.0] * 10 + [1 / 31] * 31)
    found = shown_texts(lessons, weights, kinds, 24, 4, seed=1)
    rows = [found[i].tolist() for i in range(len(found))]
    assert len(rows) == 12 + 2 * 6
    assert all(len(row) == 4 and row[0] >= 110 for row in rows[:12])
    assert [row[0] for row in rows[12:]] == [1] * 6 + [2] * 6
    again = shown_texts(lessons, weights, kinds, 24, 4, seed=1)
    assert np.array_equal(again.ids, found.ids)
