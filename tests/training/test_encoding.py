"""How rows are put into forward passes."""

import numpy as np
import pytest
import torch

from epic_training.encoding import RowEncoder
from tests.models import FAMILIES, tiny_encoder


@pytest.mark.parametrize("family", FAMILIES)
def test_slices_give_what_one_pass_gives(family: str) -> None:
    checkpoint = tiny_encoder(family).checkpoint
    rng = np.random.default_rng(1)
    rows = [rng.integers(4, 200, length).tolist() for length in rng.integers(1, 30, 17)]
    whole = RowEncoder(checkpoint, len(rows), cached=False)
    cut = RowEncoder(checkpoint, 6, cached=False, tokens_at_once=40)
    torch.testing.assert_close(
        cut.encode(rows, cut.bare), whole.encode(rows, whole.bare), atol=1e-4, rtol=1e-4
    )


def test_no_pass_has_more_rows_or_tokens_than_are_allowed() -> None:
    lengths = [50, 3, 3, 9, 3, 20, 3, 19, 3, 2]
    rows = [[5] * length for length in lengths]
    seen: list[list[int]] = []

    def run(part: list[list[int]], every: int = 0) -> torch.Tensor:
        seen.append([len(row) for row in part])
        return torch.tensor([[float(len(row))] for row in part])

    encoder = RowEncoder(
        tiny_encoder("llama").checkpoint, rows_at_once=4, cached=False, tokens_at_once=40
    )
    states = encoder.encode(rows, run)
    assert states[:, 0].tolist() == lengths
    # Four rows, then 19 would pad 3 and 9 to more than 40 tokens; 50 alone is longer than that.
    assert seen == [[2, 3, 3, 3], [3, 3, 9], [19, 20], [50]]
