import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from epic_retrieval import EpicEncoder, Task
from epic_retrieval.errors import InputError
from epic_retrieval.prompt import Mode
from epic_training.data import TrainingSet, load_mix, open_mix
from epic_training.development import (
    DevelopmentScore,
    Summary,
    _gains,
    score_development,
    score_sets,
    summarise,
)
from epic_training.pairs import is_development
from tests.models import tiny_encoder
from tests.training.runs import write_mix
from tests.training.samples import write_pairs

ROWS = [{"query": f"question {n % 80}", "positive": f"answer {n}"} for n in range(100)]
SETTINGS: dict[str, dict[str, Any]] = {"toy": {"instruction": "Find the answer"}}


class Watched(EpicEncoder):
    """Remembers what it was asked."""

    asked: list[tuple[list[str], Task]]

    def encode_queries(
        self,
        texts: Sequence[str],
        task: Task | str = "",
        mode: Mode | None = None,
        *,
        batch_size: int | None = None,
        show_progress: bool | None = None,
        share_prefix: bool = True,
    ) -> NDArray[np.float32]:
        assert isinstance(task, Task)
        self.asked.append((list(texts), task))
        return super().encode_queries(
            texts,
            task,
            mode,
            batch_size=batch_size,
            show_progress=show_progress,
            share_prefix=share_prefix,
        )


@pytest.fixture
def encoder() -> Watched:
    plain = tiny_encoder()
    watched = Watched(plain.checkpoint, plain.cache)
    watched.asked = []
    return watched


def test_scores_are_of_held_out_queries_and_demonstrations_are_not(
    tmp_path: Path, encoder: Watched
) -> None:
    write_pairs(tmp_path / "toy", ROWS)
    [score] = score_development(encoder, {"toy": tmp_path / "toy"}, SETTINGS, 40)
    held_out = [row for row in ROWS[:80] if is_development(row["query"], 40)]
    assert (score.name, score.pairs) == ("toy", len(held_out))
    assert 20 <= score.pairs < 50
    of_task = [(texts, task) for texts, task in encoder.asked if task.name == "toy"]
    assert all(texts == [row["query"] for row in held_out] for texts, _ in of_task)
    shown = [task.demonstrations for _, task in of_task]
    assert [len(demonstrations) for demonstrations in shown] == [0, 5, 5, 5]
    assert len(set(shown)) == 4
    for demonstration in (one for demonstrations in shown for one in demonstrations):
        assert not is_development(demonstration.query, 40)
        assert {"query": demonstration.query, "positive": demonstration.passage} in ROWS

    passages = encoder.encode_passages([row["positive"] for row in held_out])
    for (queries, task), found in zip(of_task, (score.none, *score.shown), strict=True):
        mode: Mode = "epic" if task.demonstrations else "none"
        scores = encoder.encode_queries(queries, task, mode) @ passages.T
        gains = []
        for i, row in enumerate(scores):
            rank = sorted(row, reverse=True).index(row[i]) + 1
            gains.append(1 / math.log2(rank + 1) if rank <= 10 else 0)
        assert found == pytest.approx(sum(gains) / len(gains))


def test_gains() -> None:
    scores = np.zeros((12, 12), dtype=np.float32)
    scores[np.triu_indices(12, 1)] = 2
    np.fill_diagonal(scores, 1)
    expected = [1 / math.log2(rank + 1) if rank <= 10 else 0 for rank in range(12, 0, -1)]
    assert _gains(scores).tolist() == pytest.approx(expected)


def test_an_encoder_that_tells_nothing_apart_finds_nothing() -> None:
    assert _gains(np.ones((20, 20), dtype=np.float32)).tolist() == [0] * 20


@pytest.mark.parametrize("percent", [0, 10])
def test_a_dataset_with_few_held_out_pairs_is_left_out(
    tmp_path: Path, encoder: Watched, percent: float
) -> None:
    write_pairs(tmp_path / "toy", ROWS)
    assert sum(is_development(row["query"], percent) for row in ROWS[:80]) < 20
    assert score_development(encoder, {"toy": tmp_path / "toy"}, SETTINGS, percent) == []


def test_too_few_short_pairs_to_show(tmp_path: Path, encoder: Watched) -> None:
    rows = [{**row, "positive": row["positive"] + " and" * 200} for row in ROWS]
    write_pairs(tmp_path / "toy", rows)
    with pytest.raises(InputError, match="toy has fewer than 5 short training pairs"):
        score_development(encoder, {"toy": tmp_path / "toy"}, SETTINGS, 40)


def open_toy(folder: Path, rows: Sequence[Mapping[str, str]], percent: float) -> TrainingSet:
    write_pairs(folder / "data" / "toy", rows)
    mix = write_mix(folder / "mix.yaml", {"toy": {"instruction": "Find the answer"}}, percent)
    [one] = open_mix(load_mix(mix), folder / "cache")
    return one


def test_sets_are_scored_on_held_out_rows_with_pairs_of_the_others(
    tmp_path: Path, encoder: Watched
) -> None:
    one = open_toy(tmp_path, ROWS, 20)
    [score] = score_sets(encoder, [one], "epic", draws=2, shown=3)
    held_out = [row["query"] for row in ROWS[:80] if is_development(row["query"], 20)]
    of_task = [(texts, task) for texts, task in encoder.asked if task.name == "toy"]
    assert all(texts == held_out for texts, _ in of_task)
    assert [len(task.demonstrations) for _, task in of_task] == [0, 3, 3]
    pairs = [(one.query, one.passage) for _, task in of_task for one in task.demonstrations]
    assert not any(is_development(query, 20) for query, _ in pairs)
    assert set(pairs) <= {(row["query"], row["positive"]) for row in ROWS}
    assert (score.name, score.pairs, len(score.shown)) == ("toy", len(held_out), 2)
    assert [score] == score_sets(encoder, [one], "epic", draws=2, shown=3), "draws are fixed"
    [short] = score_sets(encoder, [one], "epic", most=7)
    assert (short.pairs, len(short.shown)) == (7, 3)


@pytest.mark.parametrize(("mode", "shown"), [("none", 5), ("epic", 0), ("text", 0)])
def test_instructions_alone(mode: Mode, shown: int, tmp_path: Path, encoder: Watched) -> None:
    [score] = score_sets(encoder, [open_toy(tmp_path, ROWS, 20)], mode, shown=shown)
    assert score.shown == ()
    assert all(task.demonstrations == () for _, task in encoder.asked)


def test_long_and_few_pairs_are_cut_and_shown_all_the_same(
    tmp_path: Path, encoder: Watched
) -> None:
    """A run of days must not end because a data set has long passages."""
    rows = [{"query": f"q {n}", "positive": f"{n} " + "word " * 500} for n in range(8)]
    one = open_toy(tmp_path, rows, 60)
    assert 1 <= len(one.train) < 5
    [score] = score_sets(encoder, [one], "text", draws=1, tokens=20)
    assert len(score.shown) == 1
    shown = encoder.asked[-1][1].demonstrations
    assert len(shown) == len(one.train)
    cut = encoder.checkpoint.tokenizer.hf
    assert all(len(cut.encode(d.passage, add_special_tokens=False)) <= 20 for d in shown)
    assert all(len(d.passage) > 10 for d in shown)


def test_sets_without_held_out_rows_are_left_out(tmp_path: Path, encoder: Watched) -> None:
    assert score_sets(encoder, [open_toy(tmp_path, ROWS, 0)], "epic") == []


def test_means_are_over_data_sets() -> None:
    scores = [
        DevelopmentScore("a", 300, 0.5, (0.5, 0.75)),
        DevelopmentScore("b", 3, 0.25, (0.0,)),
    ]
    found = summarise(scores)
    assert found == Summary(0.375, 0.3125)
    assert (found.best, found.helped()) == (0.375, False)
    plain = summarise([DevelopmentScore("a", 9, 0.5)])
    assert plain == Summary(0.5, None)
    assert (plain.best, plain.helped()) == (0.5, False)
    assert Summary(0.5, 0.5).helped()
    assert Summary(0.5, 0.75).best == 0.75
