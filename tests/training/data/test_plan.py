import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from epic_retrieval.errors import InputError
from epic_retrieval.tasks import Task
from epic_training.data.mix import TrainingSet
from epic_training.data.plan import BatchPlan, TextBatch
from epic_training.data.store import RowStore
from tests.training.data.samples import (
    ROOT,
    Row,
    digest,
    flag_rows,
    pair_rows,
    toy_sets,
    training_set,
)


class Steps(Dataset[TextBatch]):
    """What a trainer hands to a DataLoader: the plan, by step."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan

    def __getitem__(self, step: int) -> TextBatch:
        return self.plan(step)


@pytest.fixture
def sets(tmp_path: Path) -> list[TrainingSet]:
    return toy_sets(tmp_path)


def epoch_of(plan: BatchPlan, number: int = 0) -> list[TextBatch]:
    first = number * plan.batches_per_epoch
    return [plan(step) for step in range(first, first + plan.batches_per_epoch)]


def test_an_epoch_has_each_row_once_but_for_the_rest(sets: list[TrainingSet]) -> None:
    plan = BatchPlan(sets, 8, 2, seed=1)
    # 38 rows: 4 batches, 6 left; half of 50: 3 batches, 1 left; 5 rows: 1 smaller batch.
    assert plan.batches_per_epoch == 4 + 3 + 1
    assert [(share.name, share.size, share.batches) for share in plan.shares] == [
        ("scored", 8, 4), ("plain", 8, 3), ("small", 5, 1),
    ]  # fmt: skip
    batches = epoch_of(plan)
    assert Counter(batch.name for batch in batches) == {"scored": 4, "plain": 3, "small": 1}
    for one, used in zip(sets, (32, 24, 5), strict=True):
        rows = [row for batch in batches if batch.name == one.name for row in batch.rows]
        assert len(rows) == len(set(rows)) == used
        assert set(rows) <= set(one.train.tolist())
    assert [batch.step for batch in batches] == list(range(8))


def test_every_row_gets_its_turn_in_some_epoch(sets: list[TrainingSet]) -> None:
    plan = BatchPlan(sets, 8, 1, seed=1)
    seen: dict[str, Counter[int]] = {one.name: Counter() for one in sets}
    orders = set()
    for number in range(30):
        batches = epoch_of(plan, number)
        orders.add(tuple(batch.name for batch in batches))
        for batch in batches:
            seen[batch.name].update(batch.rows)
    for one in sets:
        assert set(seen[one.name]) == set(one.train.tolist())
    assert len(orders) > 20
    # Half of the rows per epoch: about 15 times in 30 epochs, less the remainder.
    assert np.mean(list(seen["plain"].values())) == pytest.approx(30 * 24 / 50)
    assert max(seen["plain"].values()) < 26


def test_a_ratio_above_one_repeats_the_rows_evenly(tmp_path: Path) -> None:
    one = training_set(tmp_path, pair_rows(20), ratio=2.5)
    plan = BatchPlan([one], 10, 0, seed=3)
    assert plan.batches_per_epoch == 5
    counts = Counter(row for batch in epoch_of(plan) for row in batch.rows)
    assert Counter(counts.values()) == {2: 10, 3: 10}
    for batch in epoch_of(plan):
        assert len(set(batch.rows)) == 10
    few = BatchPlan([training_set(tmp_path, pair_rows(3), name="few", ratio=4.0)], 10, 0, seed=3)
    assert [sorted(batch.rows) for batch in epoch_of(few)] == [[0, 1, 2]] * 4


def test_the_texts_of_a_batch_are_those_of_its_rows(sets: list[TrainingSet]) -> None:
    by_name = {one.name: one for one in sets}
    plan = BatchPlan(sets, 8, 2, seed=5)
    for batch in epoch_of(plan) + epoch_of(plan, 7):
        one = by_name[batch.name]
        assert batch.task in one.tasks
        assert batch.task.demonstrations == ()
        assert batch.in_batch_negatives == one.in_batch_negatives
        assert list(batch.owners) == sorted(batch.owners)
        assert len(batch.queries) == len(batch.positives) == len(batch.rows)
        assert len(batch.negatives) == len(batch.owners)
        for index, number in enumerate(batch.rows):
            row = one.rows[number]
            own = [
                text
                for text, owner in zip(batch.negatives, batch.owners, strict=True)
                if owner == index
            ]
            assert batch.queries[index] == row.query
            assert batch.positives[index] in row.positives
            assert len(own) == len(set(own)) == min(2, len(row.negatives))
            assert set(own) <= set(row.negatives)
            if batch.name == "scored":
                assert batch.scores is not None
                positive = row.positives.index(batch.positives[index])
                assert batch.scores[index] == (
                    row.positive_scores[positive],
                    *(row.negative_scores[row.negatives.index(text)] for text in own),
                )
        assert (batch.scores is None) == (batch.name != "scored")


def test_positives_negatives_and_instructions_are_drawn_evenly(sets: list[TrainingSet]) -> None:
    plan = BatchPlan(sets, 8, 1, seed=5)
    positives: Counter[str] = Counter()
    negatives: Counter[str] = Counter()
    tasks: Counter[str] = Counter()
    for number in range(40):
        for batch in epoch_of(plan, number):
            if batch.name == "scored":
                positives.update(text[-1] for text in batch.positives)
                negatives.update(text[-1] for text in batch.negatives)
            elif batch.name == "plain":
                tasks[batch.task.instruction] += 1
    drawn = 40 * 32
    assert set(positives) == set("012")
    assert set(negatives) == set("0123")
    assert all(abs(count - drawn / 3) < 80 for count in positives.values())
    assert all(abs(count - drawn / 4) < 80 for count in negatives.values())
    assert set(tasks) == {"a", "b"}
    assert all(35 < count < 85 for count in tasks.values())


def test_all_negatives_come_in_order_where_there_are_few(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"query": "q0", "positive": "p0", "negative": ["a", "b", "c"]},
        {"query": "q1", "positive": "p1"},
        {"query": "q2", "positive": "p2", "negative": "d"},
    ]
    one = training_set(tmp_path, rows)
    batch = BatchPlan([one], 3, 7, seed=0)(0)
    own = {
        query: [n for n, o in zip(batch.negatives, batch.owners, strict=True) if o == index]
        for index, query in enumerate(batch.queries)
    }
    assert own == {"q0": ["a", "b", "c"], "q1": [], "q2": ["d"]}
    none = BatchPlan([one], 3, 0, seed=0)(0)
    assert (none.negatives, none.owners) == ((), ())


def test_scores_need_every_row_of_the_batch(tmp_path: Path) -> None:
    rows = [dict(row) for row in flag_rows(4)]
    one = training_set(tmp_path, rows, format="flagembedding")
    batch = BatchPlan([one], 4, 0, seed=0)(0)
    assert batch.scores == tuple((float(row),) for row in batch.rows)
    del rows[2]["pos_scores"], rows[2]["neg_scores"]
    some = training_set(tmp_path, rows, name="some", format="flagembedding")
    assert BatchPlan([some], 4, 2, seed=0)(0).scores is None


OTHER_PROCESS = """
import sys
from pathlib import Path
from epic_training.data.plan import BatchPlan
from tests.training.data.samples import digest, toy_sets
plan = BatchPlan(toy_sets(Path(sys.argv[1])), 8, 2, seed=9)
print(digest([plan(step) for step in reversed(range(20))][::-1]))
"""


def test_a_batch_is_a_function_of_seed_and_step(sets: list[TrainingSet], tmp_path: Path) -> None:
    steps = list(range(20))
    expected = [BatchPlan(sets, 8, 2, seed=9)(step) for step in steps]
    plan = BatchPlan(sets, 8, 2, seed=9)
    assert [plan(step) for step in steps] == expected
    assert [plan(step) for step in reversed(steps)] == expected[::-1]
    assert [BatchPlan(toy_sets(tmp_path), 8, 2, 9)(step) for step in steps] == expected
    assert [BatchPlan(sets, 8, 2, seed=10)(step) for step in steps] != expected
    paths = os.pathsep.join([str(ROOT), str(ROOT / "training")])
    other = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, tmp_path],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == digest(expected)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a single core
@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_gives_the_same_batches(sets: list[TrainingSet], workers: int) -> None:
    plan = BatchPlan(sets, 8, 2, seed=9)
    expected = [plan(step) for step in range(5, 25)]
    steps = cast("Sequence[int]", range(5, 25))
    loader = DataLoader(Steps(plan), batch_size=None, sampler=steps, num_workers=workers)
    assert list(loader) == expected


def test_a_data_set_smaller_than_a_batch_is_told_once(
    sets: list[TrainingSet], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        plan = BatchPlan(sets, 8, 2, seed=1)
        epoch_of(plan)
        epoch_of(plan, 1)
    assert len(caplog.records) == 1
    assert "data set small: batches of 5 rows instead of 8" in caplog.text


def test_what_a_ratio_leaves_may_be_smaller_than_a_batch(tmp_path: Path) -> None:
    one = training_set(tmp_path, pair_rows(20), ratio=0.2)
    plan = BatchPlan([one], 8, 0, seed=1)
    assert [len(plan(step).rows) for step in range(3)] == [4, 4, 4]


@pytest.mark.parametrize(("rows", "ratio"), [(1, 1.0), (20, 0.05), (20, 0.01), (1, 5.0)])
def test_a_data_set_with_fewer_than_two_rows_is_an_error(
    tmp_path: Path, rows: int, ratio: float
) -> None:
    one = training_set(tmp_path, pair_rows(rows), ratio=ratio)
    with pytest.raises(InputError, match=f"data set 'toy' has {rows} rows .* at least 2"):
        BatchPlan([one], 8, 0, seed=1)


def test_bad_arguments_are_named(sets: list[TrainingSet]) -> None:
    with pytest.raises(InputError, match="batch_size is 1; expected at least 2"):
        BatchPlan(sets, 1, 0, seed=1)
    with pytest.raises(InputError, match="negatives is -1; expected at least 0"):
        BatchPlan(sets, 8, -1, seed=1)
    with pytest.raises(InputError, match="seed is -1; expected at least 0"):
        BatchPlan(sets, 8, 1, seed=-1)
    with pytest.raises(InputError, match="no data sets"):
        BatchPlan([], 8, 1, seed=1)
    with pytest.raises(InputError, match="'small' has in_batch_negatives off"):
        BatchPlan(sets, 8, 0, seed=1)
    with pytest.raises(InputError, match="step is -1; expected at least 0"):
        BatchPlan(sets, 8, 1, seed=1)(-1)


def test_data_sets_may_share_batches_where_they_share_prompts(tmp_path: Path) -> None:
    first = training_set(tmp_path, pair_rows(10, name="first"), name="first", held_out=[0])
    second = training_set(tmp_path, pair_rows(30, name="second"), name="second", ratio=0.5)
    plan = BatchPlan([first, second], 8, 0, seed=1, same_dataset=False)
    assert plan.batches_per_epoch == (9 + 15) // 8
    mixed = 0
    for batch in epoch_of(plan) + epoch_of(plan, 1):
        assert batch.name == "first+second"
        mixed += len({query.split()[0] for query in batch.queries}) == 2
        for number, query in zip(batch.rows, batch.queries, strict=True):
            row = first.rows[number] if number < 10 else second.rows[number - 10]
            assert row.query == query
    assert mixed > 3
    other = training_set(tmp_path, pair_rows(10), name="other", instructions=["another"])
    with pytest.raises(InputError, match="'first' and 'other' differ in instructions"):
        BatchPlan([first, second, other], 8, 0, seed=1, same_dataset=False)


class Rows(RowStore):
    """So many rows that nobody wrote."""

    def __init__(self, count: int) -> None:
        super().__init__(Path("nowhere"))
        self._count = count

    def __len__(self) -> int:
        return self._count


def test_the_order_of_a_large_epoch_is_quick() -> None:
    count = 1_500_000
    one = TrainingSet(
        "large", (Task("large", "find"),), Rows(count), np.arange(count), np.arange(0)
    )
    plan = BatchPlan([one], 512, 1, seed=1)
    start = time.perf_counter()
    epoch = plan._epoch(10**6 // plan.batches_per_epoch)
    # 0.1 s; the bound leaves room for a busy machine.
    assert time.perf_counter() - start < 1
    assert plan._epoch(epoch.number) is epoch
    assert np.bincount(epoch.rows[0]).max() == 1


def test_a_late_step_costs_no_more_than_an_early_one(sets: list[TrainingSet]) -> None:
    plan = BatchPlan(sets, 8, 2, seed=1)
    start = time.perf_counter()
    assert plan(10**6).step == 10**6
    assert plan(10**15).rows
    assert time.perf_counter() - start < 0.5
