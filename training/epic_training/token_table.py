"""The gradient of a token table, summed where it lies.

A step runs many small forward passes, and each would make a gradient as large as the whole table
for the few rows it read: a seventh of a small model's step. Knows nothing of losses.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class _Rows(torch.autograd.Function):
    """Rows of a table; the backward pass adds to the table's `grad` at these rows only."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, ids: Tensor, table: nn.Parameter) -> Tensor:  # noqa: ANN401, ARG004
        ctx.save_for_backward(ids)
        ctx.table = table
        return nn.functional.embedding(ids, table.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # noqa: ANN401
        (ids,), table = ctx.saved_tensors, ctx.table
        if table.grad is None:
            table.grad = torch.zeros_like(table)
        table.grad.index_add_(0, ids.reshape(-1), grads[0].reshape(ids.numel(), -1))
        return None, None, None


@contextmanager
def summed_in_place(table: nn.Embedding) -> Iterator[None]:
    """Within, `table` looks rows up as ever, with the same gradients.

    Not for `torch.autograd.grad` and hooks on the weight: they see nothing of it.
    """
    weight = table.weight
    anchor = torch.zeros((), requires_grad=True)  # what autograd follows in the weight's place

    def forward(input: Tensor) -> Tensor:  # noqa: A002 (as torch calls it)
        if not (weight.requires_grad and torch.is_grad_enabled()):
            return nn.functional.embedding(input, weight)
        rows: Tensor = _Rows.apply(anchor, input, weight)  # type: ignore[no-untyped-call]
        return rows

    table.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del table.forward
