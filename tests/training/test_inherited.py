"""A decoder that begins as its teacher, against the teacher's own layers run with a causal mask."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm
from transformers import BertConfig, BertModel

from epic_retrieval.backbone import Backbone
from epic_retrieval.errors import InputError
from epic_training.inherited import inherited_decoder
from tests.models import tiny_model

WIDTH, POSITIONS = 32, 70
IDS = [3, 7, 8, *range(20, 120)]  # of the teacher, in the order of the decoder


@pytest.fixture
def teacher() -> BertModel:
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=130,
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=POSITIONS,
        initializer_range=0.2,
    )
    model: BertModel = BertModel(config).eval()
    return model


def decoder(teacher: BertModel, layers: list[int], positions: int = 100) -> Any:  # noqa: ANN401 (its parts have no types)
    return inherited_decoder(teacher, IDS, layers, positions, (0, 1, 2)).eval()


def causal(bert: BertModel, inputs: Tensor, layers: list[int]) -> Tensor:
    """(n, d) states of the teacher's layers where no token sees what follows it."""
    teacher: Any = bert
    length = len(inputs)
    hidden = torch.full((length, length), -1e9).triu(1)[None, None]
    states = inputs[None]
    for number in layers:
        found = teacher.encoder.layer[number](states, hidden)
        states = found[0] if isinstance(found, tuple) else found
    return states[0]


@pytest.mark.parametrize("layers", [[0, 1, 2], [0, 2]])
@torch.no_grad()
def test_it_gives_the_mean_of_the_teachers_layers(teacher: BertModel, layers: list[int]) -> None:
    model = decoder(teacher, layers)
    row = [1, 30, 31, 50, 4, 2]
    table = model.decoder.embed_positions
    inputs = model.get_input_embeddings().weight[row] + table.weight[table.offset :][: len(row)]
    states = causal(teacher, inputs, layers)
    # Twice normalised, the end token's own state is a fifth of what the mean is added to.
    mean = layer_norm(states[-1] + 4 * states.mean(dim=0), (WIDTH,))
    expected = layer_norm(mean, (WIDTH,))
    torch.testing.assert_close(Backbone(model).encode([row])[0], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_words_and_places_add_up_to_what_the_teacher_normalises(teacher: BertModel) -> None:
    embeddings: Any = teacher.embeddings
    embeddings.position_embeddings.weight.mul_(0.1)  # smaller than words, as in trained models
    model = decoder(teacher, [0])
    words, table = model.get_input_embeddings().weight, model.decoder.embed_positions
    row = torch.tensor([1, 30, 31, 50, 4, 2])
    found = words[row] + table.weight[table.offset :][: len(row)]
    expected = embeddings(torch.tensor(IDS)[row][None])[0]
    assert (found - expected).norm() < 0.1 * expected.norm()
    # Where all positions are alike, nothing is lost.
    embeddings.position_embeddings.weight.copy_(embeddings.position_embeddings.weight[:1].clone())
    model = decoder(teacher, [0])
    found = model.get_input_embeddings().weight[row]
    torch.testing.assert_close(found, embeddings(torch.tensor(IDS)[row][None])[0])


@torch.no_grad()
def test_positions_beyond_the_teachers_begin_again(teacher: BertModel) -> None:
    table = decoder(teacher, [0], positions=150).decoder.embed_positions
    rows = table.weight[table.offset :]
    assert rows.shape == (150, WIDTH)
    assert torch.equal(rows[POSITIONS : 2 * POSITIONS], rows[:POSITIONS])
    assert not torch.equal(rows[1], rows[0])


@pytest.mark.parametrize("layers", [[0, 3], [-1]])
def test_layers_that_are_not_there(teacher: BertModel, layers: list[int]) -> None:
    with pytest.raises(InputError, match="expected some of 0 to 2"):
        decoder(teacher, layers)


def test_another_family() -> None:
    with pytest.raises(InputError, match="is a llama; layers are inherited from a bert"):
        inherited_decoder(tiny_model("llama"), IDS, [0], 100, (0, 1, 2))


def test_every_weight_learns(teacher: BertModel) -> None:
    model = decoder(teacher, [0, 1])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    wanted = torch.randn(WIDTH)
    for _ in range(3):
        optimizer.zero_grad()
        states = Backbone(model).encode([[1, 30, 31, 2]])[0]
        torch.nn.functional.mse_loss(states, wanted).backward()
        optimizer.step()
    still = [name for name, one in model.named_parameters() if not one.grad.abs().max() > 0]
    # A bias of all keys alike changes no attention.
    assert all("k_proj.bias" in name for name in still)
