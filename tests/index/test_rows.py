from pathlib import Path

import numpy as np
import pytest

from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index.rows import ArrayRows, VectorRows

VECTORS = np.arange(24, dtype=np.float32).reshape(8, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_takes_rows_in_any_order_with_repeats_as_a_copy(dtype: type) -> None:
    rows: VectorRows = ArrayRows(VECTORS.astype(dtype))
    taken = rows.take(np.array([5, 0, 5]))
    assert taken.dtype == np.float32
    assert taken.tolist() == VECTORS[[5, 0, 5]].tolist()
    taken[:] = 0
    assert rows.take(np.array([5])).tolist() == VECTORS[[5]].tolist()
    assert rows.take(np.array([], dtype=np.int64)).shape == (0, 3)
    assert (len(rows), rows.dimension) == (8, 3)


@pytest.mark.parametrize("bad", [-1, 8, 2**40])
def test_a_row_that_is_not_there_is_named(bad: int) -> None:
    with pytest.raises(PassageIndexError, match=f"no row {bad}; there are 8"):
        ArrayRows(VECTORS).take(np.array([0, bad]))


@pytest.mark.parametrize("size", [1, 3, 8, 100])
@pytest.mark.parametrize("start", [0, 1, 7, 8, 9])
def test_blocks_are_all_rows_from_the_start_in_order(size: int, start: int) -> None:
    blocks = list(ArrayRows(VECTORS.astype(np.float16)).blocks(size, start))
    assert all(1 <= len(block) <= size and block.dtype == np.float32 for _, block in blocks)
    firsts = [first for first, _ in blocks]
    assert firsts == list(range(start, 8, size))
    joined = np.concatenate([np.empty((0, 3)), *(block for _, block in blocks)])
    assert joined.tolist() == VECTORS[start:].tolist()


def test_other_shapes_and_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shape"):
        ArrayRows(np.zeros(3, dtype=np.float32))
    with pytest.raises(ValueError, match="rows_at_once is 0"):
        next(ArrayRows(VECTORS).blocks(0))
