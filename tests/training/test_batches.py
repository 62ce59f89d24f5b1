from collections import Counter
from dataclasses import replace

import pytest
import torch

from epic_retrieval.errors import InputError
from epic_retrieval.tasks import Task
from epic_training.batch import Batch, Row
from epic_training.batches import BatchMaker, Source
from tests.training.samples import token_pairs

# Every token says where it comes from: 1000 * row + position.
LONG = [[1000 * row + place for place in range(60)] for row in range(1, 41)]
SHORT = [[100_000 + row] * 5 for row in range(30)]


def source(name: str, weight: float = 1.0, *, crop: bool = False) -> Source:
    queries = [row[:9] for row in LONG]
    negatives = [[-token for token in row] if row[0] % 2000 else [] for row in LONG]
    return Source(
        Task(name, "Find it"), token_pairs(queries, LONG, negatives, name=name), weight, crop
    )


END = 2


def ended(row: Row) -> Row:
    """A row without the end token, which it must have."""
    assert row[-1] == END
    return row[:-1]


def maker(*sources: Source, seed: int = 42, negatives: int = 4, size: int = 12) -> BatchMaker:
    return BatchMaker(sources, size, negatives, query_tokens=7, passage_tokens=(42, 50), seed=seed)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    make = maker(source("a"), source("b"), source("c", crop=True))
    batches = [make(step) for step in range(6)]
    again = maker(source("a"), source("b"), source("c", crop=True))
    assert [again(step) for step in reversed(range(6))] == batches[::-1]
    assert len({str(batch) for batch in batches}) == 6
    other = maker(source("a"), source("b"), source("c", crop=True), seed=43)
    assert other(0) != batches[0]


def test_a_batch_is_of_one_dataset_as_often_as_its_weight_says() -> None:
    short = Source(Task("b", "Find it"), token_pairs(SHORT, SHORT), 3.0)
    make = maker(source("a", 1.0), short)
    seen: Counter[str] = Counter()
    for step in range(400):
        batch = make(step)
        seen[batch.task.name] += 1
        tokens = {token for row in batch.queries + batch.positives for token in ended(row)}
        assert all((token >= 100_000) == (batch.task.name == "b") for token in tokens)
    assert seen["b"] / 400 == pytest.approx(0.75, abs=0.07)


def test_other_instructions_change_nothing_else() -> None:
    plain = maker(source("a"))
    varied = replace(plain, instructions=("Seek it", "Look for it"), own=0.25)
    seen: Counter[str] = Counter()
    for step in range(200):
        batch, other = plain(step), varied(step)
        seen[other.task.instruction] += 1
        assert replace(other, task=batch.task) == batch
        assert replace(other.task, instruction="Find it") == batch.task
    assert set(seen) == {"Find it", "Seek it", "Look for it"}
    assert seen["Find it"] / 200 == pytest.approx(0.25, abs=0.1)


def test_rows_belong_together_and_keep_to_the_limits() -> None:
    make = maker(source("a"))
    longest = set()
    for step in range(30):
        batch = make(step)
        assert len(batch.queries) == len(batch.positives) == 12
        assert 0 < len(batch.negatives) <= 4
        for query, positive in zip(batch.queries, batch.positives, strict=True):
            assert ended(query) == ended(positive)[:7]
        (length,) = {len(ended(row)) for row in batch.passages}
        longest.add(length)
    assert longest == {42, 50}


def test_no_query_and_no_positive_comes_twice() -> None:
    queries = [[row % 10, 1] for row in range(40)]  # equal queries, different positives
    positives = [[row // 2, 2] for row in range(40)]
    make = maker(Source(Task("twice", "Find it"), token_pairs(queries, positives), 1.0))
    for step in range(30):
        batch = make(step)
        for rows in (batch.queries, batch.positives):
            assert len({tuple(row) for row in rows}) == len(rows) <= 10


def test_texts_without_tokens_are_left_out() -> None:
    pairs = token_pairs([[], [1], [2]], [[5], [], [6]])
    batch = maker(Source(Task("gaps", "Find it"), pairs, 1.0), size=30)(0)
    assert (batch.queries, batch.positives, batch.negatives) == ([[2, END]], [[6, END]], [])


@pytest.mark.parametrize("crop", [False, True])
def test_a_dataset_of_which_nothing_can_be_used(crop: bool) -> None:
    pairs = token_pairs(SHORT, SHORT if crop else [[] for _ in SHORT])
    make = maker(Source(Task("nothing", "Find it"), pairs, 1.0, crop))
    with pytest.raises(InputError, match="nothing: none of the 30 training pairs"):
        make(0)


def crops() -> list[tuple[Row, Row]]:
    """Spans and passages from sources whose queries would give themselves away."""
    pairs = token_pairs([[-1]] * 60, LONG + [row[:39] for row in LONG[:20]])
    make = BatchMaker([Source(Task("c", "Find it"), pairs, 1.0, crop=True)], 12, 0, 48, (60,))
    batches = [make(step) for step in range(150)]
    return [
        (ended(query), ended(positive))
        for batch in batches
        for query, positive in zip(batch.queries, batch.positives, strict=True)
    ]


def test_a_crop_is_a_span_of_its_passage_which_loses_it_two_times_out_of_three() -> None:
    found = crops()
    assert len(found) > 1000
    lengths, removed = Counter[int](), 0
    for span, passage in found:
        start = span[0] % 1000
        whole = LONG[span[0] // 1000 - 1]  # never one of the passages below 40 tokens
        assert whole[start : start + len(span)] == span
        assert passage in (whole, whole[:start] + whole[start + len(span) :])
        lengths[len(span)] += 1
        removed += passage != whole
    assert set(lengths) == set(range(4, 25))
    assert removed / len(found) == pytest.approx(2 / 3, abs=0.04)


def test_equal_texts_have_equal_keys() -> None:
    batch = Batch(Task("a", "b"), [[1], [2], [1]], [[3, 4], [5], [6]], [[5], [4, 3]])
    queries, passages = batch.row_keys()
    assert queries.dtype == passages.dtype == torch.int64
    assert queries[0] == queries[2] != queries[1]
    assert passages.shape == (5,)
    assert [int(key == passages[1]) for key in passages] == [0, 1, 0, 1, 0]
    assert passages[0] != passages[4]


def test_mixed_batches_want_two_things_of_the_same_kind_of_text() -> None:
    asked = [[1000 * row + 100 + place for place in range(9)] for row in range(1, 41)]
    both = Source(Task("a", "Find it"), token_pairs(asked, LONG), 1.0)
    make = replace(maker(both, size=12), mixed=1.0, instructions=("Find one", "Find two"))
    instructions, directions = set(), set()
    for step in range(40):
        batch = make(step)
        instructions.add(batch.task.instruction)
        assert len(batch) == 6  # half: every query has a hard negative
        assert batch.kinds == (0, 1, 0, 1, 0, 1)
        assert batch.owners == tuple(range(6))
        texts = [tuple(row) for row in batch.queries + batch.passages]
        assert len(set(texts)) == len(texts)
        for number, query in enumerate(map(ended, batch.queries)):
            row = query[0] // 1000
            found = [ended(batch.positives[number]), ended(batch.negatives[number])]
            direct, other = found if number % 2 == 0 else found[::-1]
            if query[0] % 1000 == 100:
                directions.add("forwards")  # its passage, or itself without some words
                assert direct in (LONG[row - 1][:42], LONG[row - 1][:50])
                assert set(other) <= set(query)
            else:
                directions.add("backwards")  # its query, or how it goes on
                assert direct == asked[row - 1][:7]
                assert other in (LONG[row - 1][21:42], LONG[row - 1][25:50])
    assert instructions == {"Find one", "Find two"}
    assert directions == {"forwards", "backwards"}


def test_texts_too_short_for_two_things_make_ordinary_batches() -> None:
    short = Source(Task("short", "Find it"), token_pairs([row[:3] for row in SHORT], SHORT), 1.0)
    assert not replace(maker(short), mixed=1.0)(0).kinds
