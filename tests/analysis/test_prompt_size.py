"""Counts without a model against the prompts that an encoder computes."""

from dataclasses import replace
from pathlib import Path

import pytest

from epic_retrieval import Demonstration, EpicEncoder, Task, builtin_tasks
from epic_retrieval.analysis import SHAPES, KeyValueShape, key_value_shape, prompt_size
from epic_retrieval.checkpoint import load_tokenizer
from epic_retrieval.errors import InputError
from epic_retrieval.method import Method
from epic_retrieval.prompt_cache import PromptCache
from tests.models import tiny_encoder

SHOWN = (Demonstration("who wrote Emma", "Jane Austen " * 20), Demonstration("and why", "ask her"))
TASK = Task("t", "Find it", SHOWN)


def sizes(encoder: EpicEncoder, task: Task) -> tuple[int, int, int | None]:
    found = prompt_size(encoder.checkpoint.tokenizer, encoder.checkpoint.config, task)
    return found.none, found.text, found.epic


@pytest.mark.parametrize("template", ["epic", "bge-en-icl"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "method",
    [
        Method(),
        Method(vectors=("passage",)),
        Method(every=4),
        Method(vectors=("instruction", "query", "passage")),
    ],
    ids=str,
)
def test_counts_are_those_of_real_prompts(template: str, symmetric: bool, method: Method) -> None:
    made = tiny_encoder(template=template).checkpoint
    checkpoint = replace(made, config=replace(made.config, method=method))
    encoder = EpicEncoder(checkpoint, PromptCache(None))
    task = replace(TASK, symmetric=symmetric)
    assert sizes(encoder, task) == tuple(
        encoder.prepare(task, mode) for mode in ("none", "text", "epic")
    )


def test_the_bundled_model_without_its_weights() -> None:
    encoder = EpicEncoder.from_pretrained(device="cpu")
    tokenizer, config = load_tokenizer()
    task = builtin_tasks()["web-search"]
    found = prompt_size(tokenizer, config, task, ["how is asthma treated", "what"])
    assert found.text == encoder.prepare(task, "text")
    assert found.epic == encoder.prepare(task, "epic")
    assert found.none < found.epic < found.text
    prefix = encoder._prefix(task, "epic")
    shape = key_value_shape(None, encoder.checkpoint.folders[0])
    assert shape is not None
    assert found.epic * shape.bytes_per_position(4) == prefix.nbytes
    assert found.query == pytest.approx(4.0, abs=1.5)


def test_tasks_without_demonstrations_and_learned_vectors() -> None:
    encoder = tiny_encoder()
    none, text, epic = sizes(encoder, TASK.without_demonstrations())
    assert none == text == epic
    config = replace(encoder.checkpoint.config, method=Method(source="learned"))
    assert prompt_size(encoder.checkpoint.tokenizer, config, TASK).epic is None


def test_shapes(tmp_path: Path) -> None:
    assert key_value_shape("Mistral-7B", None) == SHAPES["mistral-7b"]
    assert SHAPES["mistral-7b"].bytes_per_position() == 2 * 32 * 8 * 128 * 2 == 131_072
    assert key_value_shape("4x2x64", None) == KeyValueShape(4, 2, 64)
    assert key_value_shape(None, tmp_path) is None
    (tmp_path / "config.json").write_text(
        '{"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32}'
    )
    assert key_value_shape(None, tmp_path) == KeyValueShape(3, 4, 8)
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 3}')
    with pytest.raises(InputError, match="does not say how many layers and heads"):
        key_value_shape(None, tmp_path)
    for wrong in ("big", "4x2", "4x0x64"):
        with pytest.raises(InputError, match=f"shape is '{wrong}'; expected layers x"):
            key_value_shape(wrong, None)
