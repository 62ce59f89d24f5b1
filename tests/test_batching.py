"""Batches by tokens, and going on with smaller ones where memory does not suffice."""

import logging

import pytest
import torch
from torch import Tensor

from epic_retrieval.batching import Batcher, is_out_of_memory
from epic_retrieval.errors import EpicError

ROWS = [[1] * n for n in (3, 9, 1, 4, 4, 12, 2)]


def collect(batcher: Batcher, limit: int | None = None, **kwargs: int) -> tuple[list[int], Tensor]:
    """Sizes of the passes, and every row's length as the passes saw it, in order."""
    sizes: list[int] = []
    found = torch.zeros(len(ROWS))

    def run(rows: list[list[int]]) -> Tensor:
        if limit is not None and len(rows) * len(rows[0]) > limit:
            raise torch.OutOfMemoryError("not enough")
        sizes.append(len(rows))
        return torch.tensor([float(len(row)) for row in rows])

    for batch, states in batcher(ROWS, run, **kwargs):  # type: ignore[arg-type]
        found[batch] = states
    return sizes, found


@pytest.mark.parametrize("tokens", [1, 5, 12, 20, 1000])
def test_every_row_is_run_once_within_the_number_of_tokens(tokens: int) -> None:
    sizes, found = collect(Batcher(tokens))
    assert found.tolist() == [len(row) for row in ROWS]
    assert sum(sizes) == len(ROWS)
    if tokens == 1:
        assert sizes == [1] * len(ROWS)
    if tokens == 1000:
        assert sizes == [len(ROWS)]


def test_rows_per_pass_and_prompts_per_row_count() -> None:
    assert max(collect(Batcher(1000), most=2)[0]) == 2
    assert collect(Batcher(48), extra=0)[0][0] == 4
    assert collect(Batcher(48), extra=12)[0][0] == 2


def test_out_of_memory_halves_the_batch_and_is_remembered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    batcher = Batcher(1000)
    with caplog.at_level(logging.WARNING):
        sizes, found = collect(batcher, limit=25)
    assert found.tolist() == [len(row) for row in ROWS]
    assert batcher.tokens <= 25
    assert "out of memory: going on with" in caplog.text
    caplog.clear()
    collect(batcher, limit=25)
    assert not caplog.text
    assert len(sizes) > 1


def test_a_row_that_never_fits_is_an_error() -> None:
    with pytest.raises(EpicError, match="does not suffice for one text of 12 tokens"):
        collect(Batcher(1000), limit=11)


def test_other_errors_pass() -> None:
    def broken(_rows: object) -> Tensor:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        list(Batcher(10)(ROWS, broken))


def test_a_cpu_says_so_by_its_message() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
