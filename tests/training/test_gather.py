"""Gathered rows carry exact gradients to every process, with cached chunks and a wrapper too.

Run as a module it is one of two processes, which compare themselves with one process. It imports
little, so that they start soon.
"""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from epic_training.gather import counts, gather_rows, mean_weight, share
from epic_training.gradient_cache import in_chunks
from epic_training.loss import false_negatives, info_nce

ROOT = Path(__file__).resolve().parents[2]


def in_two_processes(module: str, folder: Path) -> None:
    """Run `python -m module FOLDER RANK` for ranks 0 and 1; each must end well.

    They meet through a file in the folder and talk over the loopback interface.
    """
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "error::UserWarning", "-m", module, str(folder), str(rank)],
            cwd=ROOT,
            env={**os.environ, "GLOO_SOCKET_IFNAME": loopback},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        complaints = [process.communicate(timeout=120)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(complaints)


@given(n=st.integers(0, 60), world=st.integers(1, 9))
@settings(database=None, deadline=None, max_examples=60)
def test_shares_follow_one_another_and_differ_by_at_most_one(n: int, world: int) -> None:
    items = list(range(n))
    shares = [items[share(n, rank, world)] for rank in range(world)]
    assert [item for part in shares for item in part] == items
    assert [len(part) for part in shares] == counts(n, world)
    assert max(counts(n, world)) - min(counts(n, world)) <= 1


def test_weighted_means_of_processes_average_to_the_mean_of_all() -> None:
    values = torch.arange(7.0)
    for world in (1, 2, 3, 7):
        sizes = counts(7, world)
        means = [
            values[share(7, rank, world)].mean() * mean_weight(sizes, rank) for rank in range(world)
        ]
        assert torch.stack(means).mean().item() == pytest.approx(3)


def test_a_process_alone_keeps_its_rows() -> None:
    rows = torch.randn(3, 4)
    assert gather_rows(rows, [3]) is rows


@pytest.mark.parametrize("sizes", [[4], [3, 3], []])
def test_sizes_that_do_not_fit_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="one size per process"):
        gather_rows(torch.randn(3, 4), sizes)


class Toy(nn.Module):
    """Everything that a step encodes, as one linear map each for queries and passages."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.passage = nn.Linear(6, 5).double(), nn.Linear(6, 5).double()


def toy_loss(toy: Toy, sizes: list[int], hard: list[int], rank: int | None) -> Tensor:
    """InfoNCE of the queries of one process, or of all (None), against everyone's passages."""
    generator = torch.Generator().manual_seed(1)
    n, h = sum(sizes), sum(hard)
    queries, positives, negatives = (
        torch.randn(rows, 6, generator=generator, dtype=torch.float64) for rows in (n, n, h)
    )
    query_keys = torch.randint(0, n, (n,), generator=generator)
    passage_keys = torch.randint(0, n, (n + h,), generator=generator)
    if rank is None:
        masked = false_negatives(query_keys, passage_keys)
        passages = toy.passage(torch.cat([positives, negatives]))
        return info_nce(toy.query(queries), passages, masked, 0.05)
    mine, own_hard = (
        slice(sum(counted[:rank]), sum(counted[: rank + 1])) for counted in (sizes, hard)
    )
    everyones = [
        # A process without rows hands in a tensor that asks for no gradient.
        gather_rows(toy.passage(rows) if len(rows) else rows.new_zeros(0, 5), counted)
        for rows, counted in ((positives[mine], sizes), (negatives[own_hard], hard))
    ]
    positions = torch.arange(mine.start, mine.stop)
    masked = false_negatives(query_keys[mine], passage_keys, positions, query_keys)
    here = toy.query(queries[mine])
    loss = info_nce(here, torch.cat(everyones), masked, 0.05, positions)
    return loss * mean_weight(sizes, rank)


def check_gradients(rank: int, sizes: list[int], hard: list[int]) -> None:
    toy = Toy()
    loss = toy_loss(toy, sizes, hard, rank)
    loss.backward()
    alone = Toy()
    expected = toy_loss(alone, sizes, hard, None)
    expected.backward()
    # What DistributedDataParallel does: the average over processes.
    value = loss.detach() / 2
    dist.all_reduce(value)
    assert torch.allclose(value, expected)
    for ours, theirs in zip(toy.parameters(), alone.parameters(), strict=True):
        average = torch.zeros_like(ours) if ours.grad is None else ours.grad / 2
        dist.all_reduce(average)
        assert theirs.grad is not None
        assert torch.allclose(average, theirs.grad)


class Step(nn.Module):
    """A whole step, as a wrapper sees it: the encoder is called many times, also upon its results.

    Queries read the mean of demonstrations, which are other rows' states projected.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)).double()
        self.projector = nn.Linear(6, 6).double()
        self.unused = nn.Linear(2, 2).double()

    def encode(self, rows: Tensor, behind: Tensor) -> Tensor:
        vectors: Tensor = self.encoder(rows + behind)
        return vectors

    def forward(
        self, texts: Tensor, demonstrated: int, part: slice, group: dist.ProcessGroup | None
    ) -> tuple[Tensor, Tensor]:
        """Queries (those of `part`) and passages (all), of texts (2, n, 6).

        Each of the first `demonstrated` queries sees the passage of the query before it.
        """
        queries, positives = texts[0], texts[1]
        alone = texts.new_zeros(1, 6)
        local = in_chunks(self.encode, positives[part].split(2), alone)
        passages = local
        if group is not None:
            passages = gather_rows(local, counts(len(positives), group.size()), group)
        shown = []
        for i in range(len(queries))[part]:
            behind = self.projector(passages[[i - 1]]) if i < demonstrated else alone
            shown.append(in_chunks(self.encode, [queries[i : i + 1]], behind))
        return torch.cat(shown), passages


def step_loss(vectors: tuple[Tensor, Tensor], part: slice) -> Tensor:
    queries, passages = vectors
    masked = torch.zeros(len(queries), len(passages), dtype=torch.bool)
    return info_nce(queries, passages, masked, 0.05, torch.arange(len(passages))[part])


def check_wrapped(rank: int, demonstrated: int, group: dist.ProcessGroup) -> None:
    """Cached chunks, gathering and DistributedDataParallel give the gradients of one process."""
    generator = torch.Generator().manual_seed(2)
    texts = torch.randn(2, 7, 6, generator=generator, dtype=torch.float64)
    step, alone = Step(), Step()
    # A bucket per parameter: the wrapper's messages leave as soon as they can, in any order.
    wrapped = DistributedDataParallel(step, find_unused_parameters=True, bucket_cap_mb=1e-6)
    mine, everyone = share(7, rank, 2), slice(0, 7)
    for _ in range(2):  # the second step would meet what the first left behind
        loss = step_loss(wrapped(texts, demonstrated, mine, group), mine)
        (loss * mean_weight(counts(7, 2), rank)).backward()
        step_loss(alone(texts, demonstrated, everyone, None), everyone).backward()
    for (name, ours), theirs in zip(step.named_parameters(), alone.parameters(), strict=True):
        expected = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        assert ("unused" in name) == (expected.abs().sum() == 0)
        assert torch.allclose(torch.zeros_like(ours) if ours.grad is None else ours.grad, expected)


def process(folder: Path, rank: int) -> None:
    """One of two."""
    store = f"file://{folder / 'store'}"
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    # Values, order, and dtypes without gradients.
    everyones = gather_rows(torch.full((3 - rank,), 10 + rank), [3, 2])
    assert everyones.tolist() == [10, 10, 10, 11, 11]
    assert not everyones.requires_grad
    with torch.no_grad():
        assert not gather_rows(torch.ones(2, 3), [2, 2]).requires_grad
    # Gradients, by the sum: each process asks for its own multiple of every row.
    rows = torch.ones(1 + rank, 2, requires_grad=True)
    (gather_rows(rows, [1, 2]) * torch.tensor([[1.0], [2.0], [3.0]]) * 10**rank).sum().backward()
    assert rows.grad is not None
    assert rows.grad[:, 0].tolist() == ([11.0] if rank == 0 else [22.0, 33.0])
    # And of a whole loss, in double precision: equal, unequal and empty shares.
    for sizes, hard in (([4, 4], [2, 2]), ([5, 3], [1, 4]), ([1, 6], [3, 0]), ([4, 0], [0, 2])):
        check_gradients(rank, sizes, hard)
    # With demonstrations everywhere, and in process 0 only: then process 1 has no use for g.
    group = dist.new_group()
    check_wrapped(rank, 7, group)
    check_wrapped(rank, 3, group)
    # A mistake is named in every process, and nobody waits.
    with pytest.raises(ValueError, match=f"process {rank} of 2"):
        gather_rows(torch.ones(2, 3), [1, 1])
    dist.destroy_process_group()


def test_two_processes_find_the_gradients_of_one(tmp_path: Path) -> None:
    in_two_processes("tests.training.test_gather", tmp_path)


if __name__ == "__main__":
    process(Path(sys.argv[1]), int(sys.argv[2]))
