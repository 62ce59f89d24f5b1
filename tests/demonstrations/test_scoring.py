"""Scores by an encoder: equal to those of its public verbs, and kept for the next time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from epic_retrieval.demonstrations import (
    Development,
    SelectionSettings,
    read_labelled,
    select_demonstrations,
    split_labelled,
)
from epic_retrieval.demonstrations.ranking import ndcg
from epic_retrieval.demonstrations.scoring import EncoderScorer, model_fingerprint
from epic_retrieval.encoder import EpicEncoder
from epic_retrieval.errors import CheckpointError, InputError
from epic_retrieval.prompt import Mode
from epic_retrieval.tasks import Task
from tests.demonstrations.samples import labelled, pool, rows, write_pairs
from tests.models import tiny_encoder

TASK = Task("t", "Find it", tuple(pool(2)))
MODES: tuple[Mode, ...] = ("none", "text", "epic")


@pytest.fixture(scope="module")
def encoder() -> EpicEncoder:
    return tiny_encoder()


@pytest.fixture(scope="module")
def development(tmp_path_factory: pytest.TempPathFactory) -> Development:
    return split_labelled(labelled(tmp_path_factory.mktemp("pairs"))).development


@pytest.mark.parametrize("symmetric", [False, True])
def test_scores_are_those_of_the_public_verbs(
    encoder: EpicEncoder, development: Development, symmetric: bool
) -> None:
    task = replace(TASK, symmetric=symmetric)
    numbers = {one: row for row, one in enumerate(development.passages)}
    relevant = [{numbers[one]: g for one, g in row.items()} for row in development.relevant]
    score = EncoderScorer(encoder, development)
    for mode in MODES:
        asked = encoder.encode_queries(development.queries, task, mode)
        found = encoder.encode_passages(list(development.passages.values()), task, mode)
        expected = ndcg(asked, found, relevant)
        for part in (slice(0, 20), slice(20, None)):
            np.testing.assert_allclose(score(task, mode, part), expected[part], atol=1e-12)


class Counting(EpicEncoder):
    """Counts what it encodes."""

    seen = 0

    def _encode(self, *args: object, **kwargs: object) -> np.ndarray:
        type(self).seen += len(args[0])  # type: ignore[arg-type]
        return super()._encode(*args, **kwargs)  # type: ignore[arg-type]


def test_a_second_run_goes_on_where_the_first_stopped(
    encoder: EpicEncoder, development: Development, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epic_retrieval.demonstrations.scoring.EpicEncoder", Counting)
    choosing = slice(0, 20)

    def run(model: EpicEncoder, *modes: Mode) -> list[np.ndarray]:
        Counting.seen = 0
        score = EncoderScorer(model, development, tmp_path)
        return [score(TASK, mode, choosing) for mode in modes]

    [first] = run(encoder, "none")
    assert Counting.seen == len(development.passages) + 20
    again, more = run(encoder, "none", "text")
    assert Counting.seen == 20, "the new prompt's queries and nothing else"
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, more)
    run(tiny_encoder("llama"), "none")
    assert Counting.seen == len(development.passages) + 20, "another model begins anew"


def test_the_fingerprint_follows_what_decides_a_query(encoder: EpicEncoder) -> None:
    same, projectorless = tiny_encoder(), tiny_encoder(projector=False)
    assert model_fingerprint(encoder) == model_fingerprint(same)
    assert model_fingerprint(encoder) != model_fingerprint(projectorless)
    assert model_fingerprint(encoder) != model_fingerprint(tiny_encoder(template="bge-en-icl"))


def test_select_from_end_to_end(encoder: EpicEncoder, tmp_path: Path) -> None:
    split = split_labelled(labelled(tmp_path))
    settings = SelectionSettings(counts=(1, 2), draws=2, modes=("epic", "text"), keep=True)
    choice = select_demonstrations(encoder, TASK, split, settings)
    again = select_demonstrations(encoder, TASK, split, settings, folder=tmp_path / "work")
    assert choice == again
    record = choice.task.selection
    assert record is not None
    # With one demonstration, a draw and another strategy may come upon the same.
    assert 12 <= len(choice.scores) == record.candidates <= 2 * 2 * 4
    assert set(choice.task.demonstrations) <= set(split.pool)
    assert record.fingerprint == model_fingerprint(encoder)
    assert (record.queries_choosing, record.passages) == (split.development.choosing, 120)


def test_long_texts_are_not_shown(encoder: EpicEncoder, tmp_path: Path) -> None:
    pairs = [
        row | ({"positive": row["positive"] + " word" * 300} if number % 3 else {})
        for number, row in enumerate(rows(120))
    ]
    split = split_labelled(read_labelled(write_pairs(tmp_path / "long.jsonl", pairs)))
    settings = SelectionSettings(strategies=("random",), counts=(3,), keep=True)
    choice = select_demonstrations(encoder, TASK, split, settings)
    for one, _ in choice.scores:
        assert all(len(pair.passage) < 100 for pair in one.demonstrations)
    with pytest.raises(InputError, match=r"\d+ pairs to choose 30 .* allow longer texts"):
        select_demonstrations(encoder, TASK, split, replace(settings, counts=(30,)))


def test_modes_and_lengths_that_are_not_possible(encoder: EpicEncoder, tmp_path: Path) -> None:
    split = split_labelled(labelled(tmp_path))
    with pytest.raises(CheckpointError, match="no projector"):
        select_demonstrations(
            tiny_encoder(projector=False), TASK, split, SelectionSettings(modes=("epic",))
        )
    with pytest.raises(InputError, match='mode "none" shows no demonstrations'):
        select_demonstrations(encoder, TASK, split, SelectionSettings(modes=("none",)))
    settings = SelectionSettings(strategies=("random",), counts=(25,), modes=("text",))
    with pytest.raises(InputError, match=r"random, k 25, .* tokens, but the model has room"):
        select_demonstrations(encoder, TASK, split, settings)
    with pytest.raises(InputError, match="confidence 95"):
        SelectionSettings(confidence=95)


def test_a_model_without_vectors_shows_text(tmp_path: Path) -> None:
    split = split_labelled(labelled(tmp_path))
    settings = SelectionSettings(strategies=("random",), counts=(1,), draws=1)
    choice = select_demonstrations(tiny_encoder(projector=False), TASK, split, settings)
    assert choice.best.mode == "text"
