"""Several processes give the vectors of one, in order, and say why when they cannot."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from epic_retrieval import EpicEncoder, EpicError, InputError
from epic_retrieval.errors import CheckpointError
from epic_retrieval.pool import EncoderPool
from tests.models import save_tiny_encoder

TEXTS = [f"text number {i} " + "and so on " * (i % 7) for i in range(50)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    save_tiny_encoder(out)
    return out


@pytest.fixture(scope="module")
def pool(folder: Path) -> Iterator[EncoderPool]:
    with EncoderPool(folder, devices=["cpu", "cpu"], chunk_size=8, max_length=20) as made:
        yield made


def test_vectors_are_those_of_one_process(pool: EncoderPool, folder: Path) -> None:
    alone = EpicEncoder.from_pretrained(folder, device="cpu", max_length=20)
    found = pool.encode_passages(TEXTS, show_progress=False)
    np.testing.assert_allclose(found, alone.encode_passages(TEXTS), atol=2e-6)
    for mode in ("none", "epic"):
        asked = pool.encode_queries(TEXTS[:20], "python-docs", mode)
        expected = alone.encode_queries(TEXTS[:20], "python-docs", mode)
        np.testing.assert_allclose(asked, expected, atol=2e-6)


def test_no_texts(pool: EncoderPool, folder: Path) -> None:
    dimension = EpicEncoder.from_pretrained(folder, device="cpu").dimension
    assert pool.encode_passages([]).shape == (0, dimension)


def test_errors_come_back_as_they_are_and_the_pool_goes_on(pool: EncoderPool) -> None:
    with pytest.raises(InputError, match="no-such-task"):
        pool.encode_queries(["a"], "no-such-task")  # found out by the other process
    with pytest.raises(InputError, match="text 1 is empty"):
        pool.encode_passages(["a", " "])
    with pytest.raises(InputError, match="NoneType"):
        pool.encode_passages(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pass \\[text\\]"):
        pool.encode_passages("a")
    assert len(pool.encode_passages(["a"])) == 1


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    with (
        EncoderPool(tmp_path / "nothing", devices=["cpu"]) as pool,
        pytest.raises(CheckpointError, match="no model at"),
    ):
        pool.encode_passages(["a"])


def test_a_process_that_dies(folder: Path) -> None:
    with EncoderPool(folder, devices=["cpu"]) as pool:
        pool.encode_passages(["a"])
        (worker,) = pool._pool._processes
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(EpicError, match="died"):
            pool.encode_passages(["a"])


@pytest.mark.parametrize("devices", ["cpu", []])
def test_devices_are_a_list_of_names(devices: object) -> None:
    with pytest.raises(InputError, match="devices is"):
        EncoderPool(devices=devices)  # type: ignore[arg-type]
