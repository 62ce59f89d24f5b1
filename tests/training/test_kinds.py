"""Kinds of likeness that demonstrations show: maps, aims, prompts as inference makes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from epic_retrieval import Demonstration, EpicEncoder, Task
from epic_retrieval.checkpoint import Checkpoint
from epic_retrieval.errors import InputError
from epic_retrieval.prompt import build_prompt, passage_prompt
from epic_retrieval.prompt_cache import PromptCache
from epic_training.kinds import Kind, ShownConfig, ShownKinds, fitted_map, make_kinds, told_apart
from epic_training.pairs import tokenise_pairs
from tests.models import tiny_encoder
from tests.training.samples import ANIMALS, column, token_pairs, write_toy_data
from tests.training.teachers import write_teacher

WIDTH = 32  # of the tiny models


def pairs_that_share(shared: int, count: int = 400, width: int = 16) -> tuple[Tensor, ...]:
    """Vectors whose first coordinates a pair shares, the others query and hard negative."""
    generator = torch.Generator().manual_seed(5)
    vectors = torch.randn(3 * count, width, generator=generator)
    queries, positives, negatives = vectors.split(count)
    positives[:, :shared] = queries[:, :shared]
    negatives[:, shared:] = queries[:, shared:]
    rows = torch.arange(3 * count).split(count)
    return normalize(vectors, dim=1), *rows


def nearer(vectors: Tensor, matrix: Tensor, rows: tuple[Tensor, ...]) -> float:
    """How often a query is nearer to its passage than to its hard negative."""
    query, positive, negative = (normalize(vectors[one] @ matrix, dim=1) for one in rows)
    right = (query * positive).sum(dim=1) > (query * negative).sum(dim=1)
    return float(right.float().mean())


def test_a_map_brings_out_what_pairs_share() -> None:
    vectors, *rows = pairs_that_share(4)
    kept: dict[str, Any] = {"symmetric": True, "keep": 0.1}
    found = fitted_map(vectors, *rows, **kept)
    plain = torch.eye(vectors.shape[1])
    assert nearer(vectors, plain, tuple(rows)) < 0.1
    assert nearer(vectors, found, tuple(rows)) > 0.9
    assert torch.equal(fitted_map(vectors, *rows, **kept), found)
    half = fitted_map(vectors, *rows, **kept, strength=0.5)
    torch.testing.assert_close(half - plain, 0.5 * (found - plain))
    # A change that costs more is smaller.
    dear = fitted_map(vectors, *rows, symmetric=True, keep=50.0)
    assert (dear - plain).norm() < 0.7 * (found - plain).norm()


def test_where_passages_stay_only_queries_are_mapped() -> None:
    vectors, queries, positives, negatives = pairs_that_share(4)
    turned = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))[0]
    vectors[positives] = vectors[queries] @ turned
    none = torch.full_like(negatives, -1)
    found = fitted_map(vectors, queries, positives, none, symmetric=False, keep=0.1)
    before = (vectors[queries] * vectors[positives]).sum(dim=1).mean()
    after = (normalize(vectors[queries] @ found, dim=1) * vectors[positives]).sum(dim=1).mean()
    assert after > before + 0.2


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


def shown_kinds(family: str, **changes: Any) -> ShownKinds:  # noqa: ANN401 (of ShownConfig)
    checkpoint = tiny_encoder(family).checkpoint
    asked = words(checkpoint, QUERIES)
    generator = torch.Generator().manual_seed(2)
    kinds = [
        Kind(
            name,
            [token_pairs(asked, words(checkpoint, PASSAGES, behind=symmetric))],
            symmetric,
            torch.randn(WIDTH, WIDTH, generator=generator),
            drawn,
        )
        for name, symmetric, drawn in (("a", True, False), ("b", False, False), ("c", False, True))
    ]
    texts = column(words(checkpoint, ["the cat", "hides in a barn", "near the lake", "owl"]))
    plain, drawn = torch.randn(2, 4, WIDTH, generator=generator)
    config = ShownConfig(**{"texts": 2, "at_once": 3, "most": 3} | changes)
    return ShownKinds(
        checkpoint, kinds, texts, plain, drawn, np.array([0.4, 0.3, 0.3, 0.0]),
        [INSTRUCTION], config, seed=3, end=checkpoint.config.eos_token_id,
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
    rows = np.array([0, 2])
    mapped, drawn = loss._aims(loss._kinds[1], rows), loss._aims(loss._kinds[2], rows)
    torch.testing.assert_close(mapped, normalize(loss._plain[rows] @ loss._kinds[1].matrix, dim=1))
    torch.testing.assert_close(drawn, normalize(loss._drawn[rows], dim=1))
    apart = shown_kinds("llama", apart=10.0)
    assert apart(0)[0] > loss(0)[0]  # of the same draws


def test_few_kinds_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = shown_kinds("llama", opening=2, first=("a", "c"))
    seen: list[list[str]] = []
    show = loss._demonstrations

    def noted(kinds: list[Kind], *rest: Any) -> Any:  # noqa: ANN401 (handed on)
        seen.append([kind.name for kind in kinds])
        return show(kinds, *rest)

    monkeypatch.setattr(loss, "_demonstrations", noted)
    for step in range(3):
        loss(step)
    assert seen[:2] == [["a", "c"]] * 2
    assert sorted(seen[2]) == ["a", "b", "c"]


def test_some_kinds_are_always_shown_and_some_never(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for without in ((), ("b",)):
        loss = shown_kinds("llama", at_once=2, always=("c",), without=without)
        show = loss._demonstrations

        def noted(kinds: list[Kind], *rest: Any) -> Any:  # noqa: ANN401 (handed on)
            seen.append({kind.name for kind in kinds})
            return show(kinds, *rest)  # noqa: B023 (called in this turn)

        monkeypatch.setattr(loss, "_demonstrations", noted)
        for step in range(8):
            loss(step)
    assert all("c" in names and len(names) == 2 for names in seen)
    assert {"a", "b"} <= set().union(*seen[:8])
    assert "b" not in set().union(*seen[8:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"at_once": 1}, "at_once is 1; expected 2 to 3"),
        ({"at_once": 4}, "at_once is 4; expected 2 to 3"),
        ({"opening": 1, "first": ("a", "x")}, "first names x"),
        ({"opening": 1, "first": ("a",)}, "first names 1 kind"),
        ({"texts": 4}, "texts is 4; expected at most 3"),
        ({"without": ("x",)}, "without names x"),
        ({"without": ("a",)}, "at_once is 3; expected 2 to 2"),
        ({"at_once": 2, "always": ("a", "b", "c")}, "at_once is 2; expected 3 to 3"),
    ],
)
def test_what_cannot_be_shown(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        shown_kinds("llama", **changes)


def test_maps_are_fitted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path / "packages")
    write_teacher(tmp_path / "packages")
    write_toy_data(tmp_path / "data")
    folders = {name: tmp_path / "data" / name for name in ("animals", "twins")}
    checkpoint = tiny_encoder("llama").checkpoint
    for name, folder in folders.items():
        tokenise_pairs(
            folder, tmp_path / "out" / "tokens" / name, checkpoint.tokenizer.hf.backend_tokenizer,
            max_tokens=32, dev_percent=1.0,
        )  # fmt: skip
    config = {
        "seed": 1, "dev_percent": 1.0, "teacher": {"package": "tiny_teacher", "max_tokens": 32},
        "data": {"animals": {}, "twins": {"symmetric": True}},
        "kinds": {"shown": {
            "question": {"of": ["animals"], "pairs": 60, "keep": 1.0, "strength": 0.5},
            "alike": {"of": ["twins"], "pairs": 60},
            "as drawn": {"of": ["animals"], "pairs": 1, "drawn": True},
        }},
    }  # fmt: skip
    found = {kind.name: kind for kind in make_kinds(config, folders, tmp_path / "out")}
    assert [kind.symmetric for kind in found.values()] == [False, True, False]
    assert found["as drawn"].drawn
    assert len(found["alike"].pairs[0]) > 250
    eye = torch.eye(48)  # the teacher's width
    assert torch.equal(found["as drawn"].matrix, eye)
    assert not torch.allclose(found["question"].matrix, eye)
    monkeypatch.setattr("epic_training.kinds.Teacher", None)  # not asked again
    again = make_kinds(config, folders, tmp_path / "out")
    for kind in again:
        assert torch.equal(kind.matrix, found[kind.name].matrix)
