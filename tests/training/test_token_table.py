"""The token table's gradient is autograd's."""

import torch
from torch import nn

from epic_training.token_table import summed_in_place


def test_gradients_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    table, mixing = nn.Embedding(20, 6), torch.randn(6, 6)
    batches = [torch.randint(20, (3, 5)) for _ in range(4)]

    def loss() -> torch.Tensor:
        return torch.stack([((table(ids) @ mixing) ** 3).sum() for ids in batches]).sum()

    value = loss()
    value.backward()
    assert table.weight.grad is not None
    wanted, table.weight.grad = table.weight.grad, None
    with summed_in_place(table):
        again = loss()
        again.backward()
        assert torch.equal(again, value)
    torch.testing.assert_close(table.weight.grad, wanted)
    assert type(table).forward is nn.Embedding.forward
    assert "forward" not in vars(table)


def test_a_table_that_does_not_learn_is_left_alone() -> None:
    table = nn.Embedding(20, 6).requires_grad_(False)
    with summed_in_place(table):
        assert not table(torch.arange(3)).requires_grad
    table.requires_grad_(True)
    with summed_in_place(table), torch.no_grad():
        assert not table(torch.arange(3)).requires_grad
