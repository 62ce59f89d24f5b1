import pytest
import torch
from transformers import LlamaConfig

from epic_retrieval import Demonstration, Task
from epic_retrieval.benchmarking.costs import payback
from epic_retrieval.benchmarking.shapes import Shape, counted_costs, known_shapes, shape_of
from tests.models import tiny_encoder, tiny_model


def test_keys_and_values_of_known_models_by_hand() -> None:
    shapes, assumed = known_shapes()
    sizes = {one.name: one.bytes_per_position() for one in shapes}
    # Layers x (keys and values) x key-value heads x head size x 2 bytes.
    assert sizes == {
        "Mistral-7B-v0.3": 32 * 2 * 8 * 128 * 2,
        "Qwen2.5-7B": 28 * 2 * 4 * 128 * 2,
        "Llama-3.1-8B": 32 * 2 * 8 * 128 * 2,
    }
    assert assumed.positions == {"none": 20, "epic": 130, "text": 870}
    rows = {row["way"]: row for row in counted_costs(shapes[0], assumed)}
    assert rows["EPIC, shared"]["keys_values_mib"] == 16.25
    assert rows["demonstrations as text, shared"]["keys_values_mib"] == 108.75
    assert rows["EPIC, shared"]["tokens_run"] == 20
    assert rows["demonstrations as text, prompt run again"]["tokens_run"] == 890


def test_operations_against_counting_token_by_token() -> None:
    shape = Shape("small", layers=3, hidden=8, inner=16, heads=4, key_value_heads=2, head=4)
    matrices = 2 * (8 * 16) + 2 * (8 * 8) + 3 * (8 * 16)  # q and o, k and v, the three of the MLP
    expected = 0
    for token in range(5):
        attended = 7 + token + 1
        expected += 3 * (2 * matrices + 2 * 2 * 16 * attended)
    assert shape.operations(5, before=7) == expected


def test_the_ratios_of_a_large_model() -> None:
    shapes, assumed = known_shapes()
    over = {row["way"]: row["over_epic"] for row in counted_costs(shapes[0], assumed)}
    assert over["demonstrations as text, prompt run again"] == pytest.approx(44, abs=2)
    assert over["EPIC, prompt run again"] == pytest.approx(7.4, abs=0.3)
    assert over["demonstrations as text, shared"] == pytest.approx(1.03, abs=0.02)
    assert over["EPIC, shared"] == 1
    assert over["instruction, shared"] < 1


@pytest.mark.parametrize("family", ["qwen3", "llama", "phi3", "opt"])
def test_bytes_of_a_model_that_is_here(family: str) -> None:
    encoder = tiny_encoder(family)
    task = Task("t", "find it", (Demonstration("a question", "an answer"),))
    shape = shape_of(encoder.checkpoint.backbone.model.config, family)
    prefix = encoder._prefix(task, "epic")
    assert prefix.length * shape.bytes_per_position(4) == prefix.nbytes


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_operations_are_those_of_the_linear_layers(family: str) -> None:
    model = tiny_model(family)
    linear = [one for one in model.modules() if isinstance(one, torch.nn.Linear)]
    weights = sum(one.in_features * one.out_features for one in linear)
    shape = shape_of(model.config, family)
    attention = 4 * shape.layers * shape.heads * shape.head  # of one token to itself
    assert shape.operations(1) == 2 * weights + attention


def test_a_configuration_without_the_newer_entries() -> None:
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2)
    shape = shape_of(config, "llama")
    assert (shape.head, shape.key_value_heads) == (8, 4)


def test_payback_by_hand() -> None:
    assert payback(100.0, 5.0, 30.0) == 4
    assert payback(101.0, 5.0, 30.0) == 5
    assert payback(100.0, 5.0, 5.0) is None
    assert payback(100.0, 6.0, 5.0) is None
