"""The fast path against a naive twin: one text at a time, no cache, no padding, no sharing."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from epic_retrieval import Demonstration, EpicEncoder, Task
from epic_retrieval.prefix import Prefix
from epic_retrieval.prompt import MODES, Mode, Prompt, Vectors, query_prompt
from epic_retrieval.prompt_cache import PromptCache
from tests.models import FAMILIES, tiny_encoder

DEMONSTRATIONS = (
    Demonstration("what is a fern", "A plant that makes spores and has neither seeds nor flowers."),
    Demonstration("tallest mountain?", "Everest, 8,849 m."),
    Demonstration("who wrote it", "Nobody knows."),
)
TASK = Task("parity", "Given a question, retrieve passages that answer it", DEMONSTRATIONS)
SYMMETRIC = Task("twins", "Retrieve questions that mean the same", DEMONSTRATIONS, symmetric=True)
TEXTS = [
    "a",
    "why is the sky blue in the morning",
    "Which river?",
    "naïve 漢字 😀",
    "why 12 + 30 = 42",
]
# In bfloat16 and float16 the weights of the tiny models, larger than usual, round roughly.
ROUGH = {"bfloat16": 0.99, "float16": 0.999}


def naive_state(encoder: EpicEncoder, *pieces: str | Tensor) -> Tensor:
    """(d,) state at the end token of one sequence of texts and vectors."""
    model, tokenizer = encoder.checkpoint.backbone.model, encoder.checkpoint.tokenizer.hf
    embed = model.get_input_embeddings()
    ids = tokenizer.convert_tokens_to_ids
    rows = [embed(torch.tensor([ids("<s>")]))]
    for piece in pieces:
        if isinstance(piece, str):
            rows.append(embed(torch.tensor(tokenizer.encode(piece, add_special_tokens=False))))
        else:
            rows.append(piece[None])
    rows.append(embed(torch.tensor([ids("</s>")])))
    state: Tensor = model(inputs_embeds=torch.cat(rows)[None], use_cache=False).last_hidden_state
    return state[0, -1]


def naive_query(encoder: EpicEncoder, text: str, task: Task, mode: Mode) -> Tensor:
    """(d,) state of a query, straight from Eq. 3 and 4 and the default template."""
    opening, g = f"Instruct: {task.instruction}\nQuery: ", encoder.checkpoint.projector
    pieces: list[str | Tensor] = [""]
    for shown in task.demonstrations if mode != "none" else ():
        if mode == "text":
            pieces[-1] += f"{opening}{shown.query}\nPassage: {shown.passage}\n\n"  # type: ignore[operator]
        else:
            assert g is not None
            q = g(naive_state(encoder, opening + shown.query))
            p = g(naive_state(encoder, (opening if task.symmetric else "") + shown.passage))
            pieces[-1] += opening  # type: ignore[operator]
            pieces += [q, p, "\n\n"]
    pieces[-1] += opening + text  # type: ignore[operator]
    return naive_state(encoder, *pieces)


@torch.no_grad()
def naive_vectors(
    encoder: EpicEncoder, texts: list[str], task: Task, mode: Mode
) -> NDArray[np.float32]:
    states = torch.stack([naive_query(encoder, text, task, mode) for text in texts])
    vectors: NDArray[np.float32] = torch.nn.functional.normalize(states, dim=1).numpy()
    return vectors


@pytest.fixture(scope="module", params=FAMILIES)
def encoder(request: pytest.FixtureRequest) -> EpicEncoder:
    return tiny_encoder(request.param)


@pytest.mark.parametrize("mode", MODES)
def test_queries_equal_the_naive_twin(encoder: EpicEncoder, mode: Mode) -> None:
    found = encoder.encode_queries(TEXTS, TASK, mode)
    np.testing.assert_allclose(found, naive_vectors(encoder, TEXTS, TASK, mode), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_an_unshared_prompt_gives_the_same(encoder: EpicEncoder, mode: Mode) -> None:
    shared = encoder.encode_queries(TEXTS, TASK, mode)
    unshared = encoder.encode_queries(TEXTS, TASK, mode, share_prefix=False)
    np.testing.assert_allclose(shared, unshared, atol=1e-5, rtol=0)


@torch.no_grad()
def test_passages_equal_the_naive_twin(encoder: EpicEncoder) -> None:
    states = torch.stack([naive_state(encoder, text) for text in TEXTS])
    expected = torch.nn.functional.normalize(states, dim=1).numpy()
    for task in (None, TASK):
        found = encoder.encode_passages(TEXTS, task)
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_passages_of_a_symmetric_task_are_queries(encoder: EpicEncoder, mode: Mode) -> None:
    passages = encoder.encode_passages(TEXTS, SYMMETRIC, mode)
    np.testing.assert_array_equal(passages, encoder.encode_queries(TEXTS, SYMMETRIC, mode))
    expected = naive_vectors(encoder, TEXTS, SYMMETRIC, mode)
    np.testing.assert_allclose(passages, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_batch_and_order_do_not_matter(encoder: EpicEncoder, mode: Mode) -> None:
    together = encoder.encode_queries(TEXTS, TASK, mode)
    singly = encoder.encode_queries(TEXTS, TASK, mode, batch_size=1)
    backwards = encoder.encode_queries(TEXTS[::-1], TASK, mode, batch_size=2)[::-1]
    np.testing.assert_allclose(together, singly, atol=1e-5, rtol=0)
    np.testing.assert_allclose(together, backwards, atol=1e-5, rtol=0)


def test_demonstrations_change_the_vectors(encoder: EpicEncoder) -> None:
    epic, text, none = (encoder.encode_queries(TEXTS, TASK, mode) for mode in MODES)
    fewer = TASK.with_demonstrations(DEMONSTRATIONS[:2])
    turned = TASK.with_demonstrations(DEMONSTRATIONS[::-1])
    for other in (
        none,
        text,
        encoder.encode_queries(TEXTS, fewer, "epic"),
        encoder.encode_queries(TEXTS, turned, "epic"),
    ):
        changed = np.abs(epic - other).max(axis=1)
        # With a window, demonstrations are out of a long text's sight.
        windowed = getattr(encoder.checkpoint.backbone.model.config, "sliding_window", None)
        assert (changed.max() if windowed else changed.min()) > 1e-2


def test_use_leaves_a_prefix_unchanged_even_by_threads(encoder: EpicEncoder) -> None:
    prefix = encoder._prefix(TASK, "epic")
    before = [tensor.clone() for tensor in (*prefix.keys, *prefix.values)]
    expected = encoder.encode_queries(TEXTS, TASK, "epic")
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(encoder.encode_queries, TEXTS, TASK, "epic") for _ in range(16)]
    for job in jobs:
        np.testing.assert_array_equal(job.result(), expected)
    assert encoder._prefix(TASK, "epic") is prefix
    for old, new in zip(before, (*prefix.keys, *prefix.values), strict=True):
        assert torch.equal(old, new)


def test_instructed_demonstration_passages_follow_equation_3() -> None:
    """With the flag, p_i is encoded as in a symmetric task, whatever the task."""
    plain = tiny_encoder("llama")
    config = replace(plain.checkpoint.config, instruct_demonstration_passages=True)
    literal = EpicEncoder(replace(plain.checkpoint, config=config), PromptCache(None))
    mirrored = Task("mirrored", TASK.instruction, DEMONSTRATIONS, symmetric=True)
    found = literal.encode_queries(TEXTS, TASK, "epic")
    expected = naive_vectors(plain, TEXTS, mirrored, "epic")
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert np.abs(found - plain.encode_queries(TEXTS, TASK, "epic")).max() > 1e-3


def shared_states(encoder: EpicEncoder) -> Tensor:
    """(n, d) states of TEXTS behind TASK's prompt, as training computes them, with gradients."""
    backbone, tokens = encoder.checkpoint.backbone, encoder.checkpoint.tokenizer
    template, g = encoder.checkpoint.config.template, encoder.checkpoint.projector
    assert g is not None

    def prefix(prompt: Prompt) -> Prefix:
        pieces = tokens.prompt_ids(prompt)
        return backbone.prefix(
            backbone.embed([x.values if isinstance(x, Vectors) else x for x in pieces])
        )

    plain = query_prompt(template, TASK, "none")
    queries = tokens.text_ids([shown.query for shown in DEMONSTRATIONS], plain, 64)
    passages = tokens.text_ids([shown.passage for shown in DEMONSTRATIONS], Prompt(), 64)
    q = g(backbone.encode(queries, prefix(plain)))
    p = g(backbone.encode([[1, *row] for row in passages]))
    pairs = [{"query": a[None], "passage": b[None]} for a, b in zip(q, p, strict=True)]
    prompt = query_prompt(template, TASK, "epic", pairs)
    return backbone.encode(tokens.text_ids(TEXTS, prompt, 64), prefix(prompt))


def test_gradients_through_a_shared_prefix_equal_the_naive_twin(encoder: EpicEncoder) -> None:
    """Through keys and values of the prompt to g, and through g to the model."""
    model, g = encoder.checkpoint.backbone.model, encoder.checkpoint.projector
    assert g is not None
    watched: list[Any] = [g.hidden.weight, g.output.bias, model.get_input_embeddings().weight]
    fast = shared_states(encoder)
    slow = torch.stack([naive_query(encoder, text, TASK, "epic") for text in TEXTS])
    pull = torch.randn(fast.shape, generator=torch.manual_seed(3))
    for one, other in zip(
        torch.autograd.grad((fast * pull).sum(), watched),
        torch.autograd.grad((slow * pull).sum(), watched),
        strict=True,
    ):
        scale = other.abs().max()
        assert scale > 0
        torch.testing.assert_close(one / scale, other / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", ROUGH)
def test_half_precision_agrees(encoder: EpicEncoder, dtype: str, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    half = EpicEncoder.from_pretrained(tmp_path, dtype=dtype, device="cpu", cache=PromptCache(None))
    assert half.checkpoint.backbone.dtype == getattr(torch, dtype)
    for mode in MODES:
        rough = half.encode_queries(TEXTS, TASK, mode)
        assert rough.dtype == np.float32
        cosines = (rough * encoder.encode_queries(TEXTS, TASK, mode)).sum(axis=1)
        assert cosines.min() > ROUGH[dtype], (mode, cosines)
