"""A second teacher, and texts that are drawn to what belongs to them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from epic_retrieval.errors import InputError
from epic_training.pairs import is_development
from epic_training.second import SecondLessons, drawn_together, joint_view, second_lessons
from epic_training.teacher import Teacher, teach
from tests.training.samples import write_pairs, write_toy_data
from tests.training.teachers import write_teacher

ROWS = [
    {"query": "who sings at night", "positive": "the owl sings", "negative": "the owl sleeps"},
    {"query": "a bird that is heard in the dark", "positive": "the owl sings"},
    {"query": "where is the wolf", "positive": "the wolf lives in the valley"},
]


def unit(rows: int, width: int, seed: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def test_cosines_of_the_joint_view_are_the_mean_of_both() -> None:
    first = unit(300, 8, seed=1)
    # Of as few dimensions as fit: then nothing is lost.
    second = first @ np.linalg.qr(np.random.default_rng(2).normal(size=(12, 8)))[0].T
    joint = joint_view(first, second.astype(np.float32))
    np.testing.assert_allclose(joint, first, atol=1e-4)  # turned back to the first's space
    other = unit(300, 4, seed=3)
    joint = joint_view(np.pad(first[:, :4], ((0, 0), (0, 4))) + 0, other)
    first4 = first[:, :4]
    wanted = np.hstack([first4, other])
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(joint @ joint.T, wanted @ wanted.T, atol=1e-4)
    assert joint.shape == (300, 8)


def test_texts_are_drawn_to_the_mean_of_their_partners() -> None:
    own = unit(5, 6, seed=4)
    queries, positives = np.array([0, 1, 2]), np.array([3, 3, 4])
    found = drawn_together(own, own, queries, positives, 0.5)
    for text, partners in {0: [3], 1: [3], 2: [4], 3: [0, 1], 4: [2]}.items():
        wanted = own[text] + 0.5 * own[partners].mean(axis=0)
        np.testing.assert_allclose(found[text], wanted / np.linalg.norm(wanted), atol=1e-6)
    np.testing.assert_allclose(drawn_together(own, own, queries, positives, 0.0), own, atol=1e-6)


Run = Callable[..., SecondLessons]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Both teachers' lessons of toy data."""
    monkeypatch.syspath_prepend(tmp_path / "packages")
    write_teacher(tmp_path / "packages")
    write_toy_data(tmp_path / "data")
    write_pairs(tmp_path / "data" / "written", ROWS)
    folders = {name: tmp_path / "data" / name for name in ("animals", "written")}
    first = {"package": "tiny_teacher", "texts": 50, "max_tokens": 16, "shares": {"animals": 1.0}}
    taught = teach(first, {"animals": folders["animals"]}, tmp_path / "teacher", 8.0)

    def lessons(share: float = 0.5, pull: float = 1.0) -> SecondLessons:
        second = {
            "model": str(tmp_path / "packages" / "tiny_teacher" / "model"),  # a folder
            "texts": 20,
            "max_tokens": 16,
            "written": {"written": {"share": share, "pull": pull}},
        }
        config = {"teacher": first, "second": second, "dev_percent": 0.0}
        return second_lessons(config, folders, taught, tmp_path / "second")

    return lessons


def test_lessons_of_both_teachers(run: Run, tmp_path: Path) -> None:
    found = run()
    texts = found.taught.texts
    assert len(texts) == 20 + 6
    assert not any(is_development(text, 0.0) for text in texts)
    number = {text: i for i, text in enumerate(texts)}
    queries = [number[row["query"]] for row in ROWS]
    passages = sorted({number[row["positive"]] for row in ROWS})
    assert found.weights.sum() == pytest.approx(1)
    assert found.weights[queries] == pytest.approx([0.25 / 3] * 3)
    assert found.weights[passages] == pytest.approx([0.25 / 2] * 2)
    assert np.flatnonzero(found.passages).tolist() == passages

    # Both teachers are the same here, so that the joint view is what either says.
    teacher = Teacher("tiny_teacher")
    said = teacher.encode([ROWS[0]["query"], ROWS[1]["query"], "the owl sings"], 16).numpy()
    aim = said[2] + said[:2].mean(axis=0)
    got = found.taught.vectors[number["the owl sings"]].astype(np.float32)
    assert float(got @ aim / np.linalg.norm(aim)) > 0.999
    alone = run(pull=0.0).taught.vectors[number["the owl sings"]].astype(np.float32)
    assert float(alone @ said[2]) > 0.999
    assert float(got @ said[0]) > float(alone @ said[0])

    # What is encoded is not encoded again.
    shards = sorted((tmp_path / "second").glob("*/*.npy"))
    assert len(shards) == 2
    before = [shard.stat().st_mtime_ns for shard in shards]
    again = run()
    assert [shard.stat().st_mtime_ns for shard in shards] == before
    assert np.array_equal(again.taught.vectors, found.taught.vectors)
    assert json.loads((tmp_path / "second" / "texts.json").read_text()) == list(texts)


def test_shares_leave_room_for_the_others(run: Run) -> None:
    with pytest.raises(InputError, match=r"takes 1\.00 of a step's texts; expected shares"):
        run(share=1.0)
