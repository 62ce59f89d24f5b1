"""Rows of all processes in each process, with gradients: every GPU contrasts with all passages.

Each process encodes its slice of a batch (`share`), gathers the vectors of all, and computes the
loss of its own queries. Knows nothing of models and losses.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import FunctionCtx, once_differentiable


def counts(n: int, world: int) -> list[int]:
    """How many of n items each of `world` processes takes: sizes differ by at most one."""
    return [n // world + (rank < n % world) for rank in range(world)]


def share(n: int, rank: int, world: int) -> slice:
    """Which of n items a process takes, as `counts` says; the shares follow one another."""
    sizes = counts(n, world)
    start = sum(sizes[:rank])
    return slice(start, start + sizes[rank])


def mean_weight(sizes: Sequence[int], rank: int) -> float:
    """What to multiply a process's mean loss with before DistributedDataParallel averages.

    It averages over processes, each counting the same. With this weight the result is the mean over
    all rows, also where one process holds more of them than another.
    """
    return sizes[rank] * len(sizes) / sum(sizes)


def gather_rows(
    local: Tensor, sizes: Sequence[int], group: dist.ProcessGroup | None = None
) -> Tensor:
    """The rows of all processes, in the order of their ranks; gradients flow to every process.

    The backward pass sums: a row is a negative of other processes' queries too, so its gradient is
    the sum of what every process's loss asks for. DistributedDataParallel divides by the number of
    processes afterwards; so what is minimised is the mean of the processes' losses, exactly.

    Every process must call this, and run its backward pass, equally often and in the same order.
    The backward pass calls `all_reduce` while DistributedDataParallel does, whose order may differ
    between processes where they use different parameters. Give it a group of its own
    (`torch.distributed.new_group()`), so that neither can take the other's message.

    Args:
        local: (sizes[rank], d), also with 0 rows; d and dtype are the same everywhere.
        sizes: rows of every process, the same list everywhere.
        group: default: the group of all processes.

    Returns:
        (sum of sizes, d); `local` itself where there is one process only.

    Raises:
        ValueError: when `sizes` does not describe the processes, or not this one's rows.
    """
    several = dist.is_available() and dist.is_initialized()
    rank = dist.get_rank(group) if several else 0
    world = dist.get_world_size(group) if several else 1
    if len(sizes) != world or sizes[rank] != len(local):
        raise ValueError(
            f"sizes {list(sizes)}, and {len(local)} rows in process {rank} of {world}; expected one"
            " size per process, this one's equal to its rows"
        )
    if world == 1:
        return local
    # The empty tensor asks for a gradient even where `local` does not (a process without rows):
    # a process that left out the backward pass would keep the others waiting for ever.
    asks = torch.empty(0, device=local.device, requires_grad=True)
    gathered: Tensor = _Gather.apply(  # type: ignore[no-untyped-call]
        local, asks, tuple(sizes), rank, group
    )
    return gathered


class _Gather(torch.autograd.Function):
    """Forward: all rows in every process. Backward: the sum over processes, own rows of it."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        local: Tensor,
        _asks: Tensor,
        sizes: tuple[int, ...],
        rank: int,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        start = sum(sizes[:rank])
        ctx.own, ctx.group = slice(start, start + sizes[rank]), group  # type: ignore[attr-defined]
        # Collective operations want equal shapes: filled up to the largest, and cut again.
        padded = local.new_zeros(max(sizes), *local.shape[1:])
        padded[: len(local)] = local
        received = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(received, padded, group=group)
        return torch.cat([rows[:size] for rows, size in zip(received, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        total = gradient.contiguous().clone()  # all_reduce works in place
        dist.all_reduce(total, group=ctx.group)  # type: ignore[attr-defined]
        return total[ctx.own], None, None, None, None  # type: ignore[attr-defined]
