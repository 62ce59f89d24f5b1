import json
from pathlib import Path

import numpy as np
import pytest
import torch

from epic_retrieval.errors import CheckpointError, InputError
from epic_training import teacher
from epic_training.pairs import is_development
from epic_training.teacher import Teacher, taught_so_far, teach, teacher_texts
from tests.training.samples import write_toy_data
from tests.training.teachers import write_teacher

SHARES = {"animals": 1.0, "twins": 0.5}


def folders(data: Path) -> dict[str, Path]:
    return {name: data / name for name in SHARES}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(tmp_path / "packages")
    return write_teacher(tmp_path / "packages")


def test_texts_are_distinct_shuffled_and_of_the_training_split(data: Path) -> None:
    texts = teacher_texts(folders(data), SHARES, dev_percent=8.0)
    assert len(set(texts)) == len(texts)
    assert texts == teacher_texts(folders(data), SHARES, dev_percent=8.0)
    assert texts != sorted(texts)
    asked = [text for text in texts if text.startswith("where does")]
    assert 250 < len(asked) < 300
    assert not any(is_development(text, 8.0) for text in asked)
    fewer = teacher_texts(folders(data), {"animals": 0.2}, dev_percent=8.0)
    assert set(fewer) < set(texts)
    with pytest.raises(InputError, match="no texts for the teacher"):
        teacher_texts(folders(data), {"animals": 0.0}, dev_percent=8.0)


def test_vectors_are_means_of_states_whatever_the_batch(package: str) -> None:
    encoder = Teacher(package)
    texts = ["the cat hides near the river .", "owl", "the wolf sings", "people saw it by the lake"]
    found = encoder.encode(texts, max_tokens=16)
    assert found.shape == (4, 48)
    for text, vector in zip(texts, found, strict=True):
        ids = torch.tensor([encoder.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            mean = encoder.model(input_ids=ids).last_hidden_state[0].mean(dim=0)
        assert torch.cosine_similarity(mean, vector, dim=0) > 0.999  # bfloat16
        assert vector.norm().item() == pytest.approx(1, abs=1e-3)


def test_a_stopped_run_goes_on_at_the_first_missing_shard(
    data: Path, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "_SHARD", 100)
    config = {"package": package, "texts": 250, "max_tokens": 12, "shares": SHARES}
    out = tmp_path / "teacher"
    with pytest.raises(FileNotFoundError):
        taught_so_far(out)
    whole = teach(config, folders(data), out, 8.0)
    assert whole.vectors.shape == (250, 48)
    assert whole.vectors.dtype == np.float16
    assert json.loads((out / "texts.json").read_text()) == list(whole.texts)
    kept = (out / "vectors-0000.npy").stat().st_mtime_ns
    (out / "vectors-0001.npy").unlink()
    assert len(taught_so_far(out).texts) == len(taught_so_far(out).vectors) == 100
    again = teach(config, folders(data), out, 8.0)
    assert np.array_equal(again.vectors, whole.vectors)
    assert (out / "vectors-0000.npy").stat().st_mtime_ns == kept
    for path in out.glob("vectors-*.npy"):
        path.unlink()
    with pytest.raises(InputError, match="no finished shard"):
        taught_so_far(out)


def test_a_teacher_that_is_not_there() -> None:
    with pytest.raises(CheckpointError, match="pip install --no-deps no-such-teacher"):
        Teacher("no_such_teacher")
