"""What EpicEncoder takes, refuses and returns."""

import asyncio
import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from epic_retrieval import (
    CheckpointError,
    Demonstration,
    EpicEncoder,
    EpicError,
    InputError,
    Task,
)
from epic_retrieval import (
    encoder as encoder_module,
)
from epic_retrieval.prompt import MODES, Mode
from epic_retrieval.prompt_cache import PromptCache
from tests.models import tiny_encoder

TASK = Task("t", "Retrieve what answers", (Demonstration("q", "p"), Demonstration("Q?", "P!")))
SYMMETRIC = replace(TASK, symmetric=True)


@pytest.fixture(scope="module")
def encoder() -> EpicEncoder:
    return tiny_encoder()


@pytest.mark.parametrize("mode", MODES)
def test_vectors_are_contiguous_float32_of_length_1(encoder: EpicEncoder, mode: Mode) -> None:
    for vectors in (
        encoder.encode_queries(["a", "bb", "ccc"], TASK, mode),
        encoder.encode_passages(["a", "bb", "ccc"], SYMMETRIC, mode),
        encoder.encode_passages(["a", "bb", "ccc"]),
    ):
        assert vectors.dtype == np.float32
        assert vectors.shape == (3, encoder.dimension)
        assert vectors.flags.c_contiguous
        assert vectors.flags.writeable
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("task", [TASK, SYMMETRIC])
def test_nothing_in_nothing_out(encoder: EpicEncoder, task: Task) -> None:
    for vectors in (encoder.encode_queries([], task), encoder.encode_passages([], task)):
        assert vectors.shape == (0, encoder.dimension)
        assert vectors.dtype == np.float32


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a single text", r"expected a list of texts, got one str; pass \[text\]"),
        (None, "expected a list of texts, got a NoneType"),
        (7, "expected a list of texts, got a int"),
        ((text for text in ["a"]), r"got a generator; if it can be iterated, pass list\(...\)"),
        ({"a": "b"}, "got a dict"),
        ({"a"}, "got a set"),
        (["fine", ""], "text 1 is empty"),
        (["fine", " \n\t\u00a0"], "text 1 is empty"),
        ([None], "text 0 is a NoneType; expected str"),
        ([b"bytes"], "text 0 is a bytes; expected str"),
        (["fine", 3.5], "text 1 is a float; expected str"),
        (["\ud800"], "without lone surrogates"),
    ],
)
def test_texts_that_cannot_be_encoded(encoder: EpicEncoder, texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder.encode_queries(texts, TASK)
    with pytest.raises(InputError, match=message):
        encoder.encode_passages(texts)


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_needs_a_text(encoder: EpicEncoder, size: int) -> None:
    with pytest.raises(InputError, match=f"batch_size is {size}; expected at least 1"):
        encoder.encode_queries(["a"], TASK, batch_size=size)


def test_tuples_and_numpy_texts_are_lists_too(encoder: EpicEncoder) -> None:
    expected = encoder.encode_queries(["a", "b"], TASK)
    for texts in (("a", "b"), np.array(["a", "b"])):
        np.testing.assert_array_equal(encoder.encode_queries(texts, TASK), expected)  # type: ignore[arg-type]


def test_texts_are_neither_stripped_nor_replaced(encoder: EpicEncoder) -> None:
    vectors = encoder.encode_passages(["a b", "a b ", "a\nb", "a  b", "A b"])
    apart = np.abs(vectors[:, None] - vectors[None]).max(axis=2) + np.eye(len(vectors))
    assert apart.min() > 1e-3


def test_many_texts_keep_their_order_across_windows(
    encoder: EpicEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_module, "_WINDOW", 7)
    texts = [f"{'word ' * (n * 5 % 11)}{n}" for n in range(23)]
    together = encoder.encode_passages(texts, batch_size=3)
    for n in (0, 6, 7, 13, 22):
        np.testing.assert_allclose(together[n], encoder.encode_passages([texts[n]])[0], atol=1e-5)


def test_texts_are_cut_at_max_length_and_prompts_are_not(encoder: EpicEncoder) -> None:
    limit = encoder.checkpoint.config.max_length
    [start, longer] = encoder.encode_passages(["x" * (limit - 1), "x" * (limit + 40)])
    np.testing.assert_allclose(start, longer, atol=1e-6)
    long = TASK.with_demonstrations([Demonstration("y" * 300, "z" * 200)])
    assert encoder.prepare(long, "text") > 500
    other = TASK.with_demonstrations([Demonstration("y" * 300, "z" * 199 + "a")])
    found = [encoder.encode_queries(["a"], task, "text") for task in (long, other)]
    assert np.abs(found[0] - found[1]).max() > 1e-4


def limited(max_length: int) -> EpicEncoder:
    checkpoint = tiny_encoder().checkpoint
    config = replace(checkpoint.config, max_length=max_length)
    return EpicEncoder(replace(checkpoint, config=config), PromptCache(None))


@pytest.mark.parametrize("mode", MODES)
def test_a_prompt_that_does_not_fit_the_model(mode: Mode) -> None:
    length = tiny_encoder().prepare(TASK, mode)
    limited(1024 - length).encode_queries(["a"], TASK, mode)
    with pytest.raises(
        InputError,
        match=f"task 't' in mode '{mode}' takes {length} tokens and texts up to {1025 - length},"
        " but the model has 1024 positions; use fewer",
    ):
        limited(1025 - length).encode_queries(["a"], TASK, mode)


def test_texts_that_do_not_fit_the_model() -> None:
    limited(1023).encode_passages(["a"])
    for limit in (1024, 5000):
        with pytest.raises(InputError, match=f"takes 1 tokens and texts up to {limit}.*1024"):
            limited(limit).encode_passages(["a"])


def test_the_default_mode(encoder: EpicEncoder) -> None:
    assert encoder.default_mode(TASK) == "epic"
    assert encoder.default_mode(TASK.without_demonstrations()) == "none"
    assert encoder.default_mode("web-search") == "epic"
    assert tiny_encoder(projector=False).default_mode(TASK) == "none"
    implied = encoder.encode_queries(["a"], TASK)
    np.testing.assert_array_equal(implied, encoder.encode_queries(["a"], TASK, "epic"))


def test_modes_that_cannot_be(encoder: EpicEncoder) -> None:
    with pytest.raises(InputError, match="unknown mode 'icl'"):
        encoder.encode_queries(["a"], TASK, "icl")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'t' has no demonstrations, which mode 'epic' needs"):
        encoder.encode_queries(["a"], TASK.without_demonstrations(), "epic")
    plain = tiny_encoder(projector=False)
    assert not plain.reads_vectors
    for call in (plain.encode_queries, plain.encode_passages):
        with pytest.raises(CheckpointError, match=r"tiny-qwen3 has no projector.*mode=\"none\""):
            call(["a"], SYMMETRIC, "epic")


def test_unknown_tasks(encoder: EpicEncoder) -> None:
    with pytest.raises(InputError, match="did you mean 'web-search'"):
        encoder.encode_queries(["a"], "web-serch")
    with pytest.raises(InputError, match="did you mean 'web-search'"):
        encoder.encode_passages(["a"], "web-serch")


def test_a_task_by_name_file_and_value(encoder: EpicEncoder, tmp_path: Path) -> None:
    TASK.save(tmp_path / "task.yaml")
    np.testing.assert_array_equal(
        encoder.encode_queries(["a"], str(tmp_path / "task.yaml")),
        encoder.encode_queries(["a"], TASK),
    )
    np.testing.assert_array_equal(
        encoder.encode_queries(["a"]), encoder.encode_queries(["a"], "web-search")
    )


@pytest.mark.parametrize(("wanted", "shown"), [(True, True), (False, False), (None, False)])
def test_the_progress_bar(
    encoder: EpicEncoder,
    wanted: bool | None,
    shown: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    encoder.encode_queries(["a", "b"], TASK, show_progress=wanted)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("2/2" in captured.err) == shown


def test_vectors_that_are_not_finite_are_refused() -> None:
    broken = tiny_encoder()
    with torch.no_grad():
        broken.checkpoint.backbone.model.get_input_embeddings().weight[2] = torch.inf  # type: ignore[operator]
    with pytest.raises(EpicError, match=r"tiny-qwen3 gave vectors that are not finite in torch\.f"):
        broken.encode_passages(["a"])


def test_grad_mode_of_the_caller_does_not_matter(encoder: EpicEncoder) -> None:
    with torch.enable_grad():
        prefix = encoder._prefix(Task("fresh", "Fresh", TASK.demonstrations), "epic")
    assert not any(tensor.requires_grad for tensor in (*prefix.keys, *prefix.values))


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("template", ["e5", "bge-en-icl", "qwen3-embedding"])
def test_every_template_encodes_in_every_mode(template: str, bos: bool) -> None:
    encoder = tiny_encoder("llama", template=template, bos=bos)
    for mode in MODES:
        shared = encoder.encode_queries(["a", ":) why"], TASK, mode)
        unshared = encoder.encode_queries(["a", ":) why"], TASK, mode, share_prefix=False)
        np.testing.assert_allclose(shared, unshared, atol=1e-5)


async def test_concurrent_queries_share_forward_passes_and_agree(encoder: EpicEncoder) -> None:
    texts = [f"question number {i}" for i in range(12)]
    passes: list[int] = []
    encode: Any = encoder.encode_queries

    def counting(given: list[str], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        passes.append(len(given))
        return encode(given, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "encode_queries", counting)
        found = await asyncio.gather(*(encoder.aencode_query(text, TASK, "epic") for text in texts))
    np.testing.assert_allclose(np.stack(found), encode(texts, TASK, "epic"), atol=1e-5)
    assert sum(passes) == len(texts)
    assert len(passes) < len(texts)
    with pytest.raises(InputError, match="text 0 is empty"):
        await encoder.aencode_query(" ", TASK)


async def test_a_queue_keeps_no_encoder_alive() -> None:
    mine = tiny_encoder()
    await mine.aencode_query("a", TASK, "none")
    queue = mine._batched
    assert queue is not None
    watched = weakref.ref(mine)
    del mine
    gc.collect()
    assert watched() is None
    with pytest.raises(RuntimeError, match="closed"):
        queue.submit("a", None)
