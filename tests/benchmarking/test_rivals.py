import sys
from pathlib import Path

import numpy as np
import pytest

from epic_retrieval import Demonstration, EpicEncoder, Task
from epic_retrieval.benchmarking.flag_process import FlagProcess
from epic_retrieval.benchmarking.matches import LEAST_COSINE, _agreement
from epic_retrieval.benchmarking.models import (
    folder_for_others,
    open_model,
    parameters_of,
    with_projector,
    with_template,
)
from epic_retrieval.benchmarking.rivals import make_rival
from epic_retrieval.errors import EpicError, InputError
from tests.models import tiny_encoder

TASK = Task("t", "find it", (Demonstration("a question", "an answer"), Demonstration("b", "c")))
TEXTS = ["what is it?", "a somewhat longer question about nothing", "short"]
# A library of this name that answers with what it was given.
LIBRARY = """
import numpy as np
print("libraries print")
class FlagICLModel:
    def __init__(self, folder, **settings):
        self.settings = settings
    def encode_queries(self, texts, batch_size):
        shown = self.settings["examples_for_task"]
        row = lambda text: [len(text), len(texts), len(shown), len(shown[0]["response"])]
        return np.array([row(text) for text in texts], dtype=np.float32)
"""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> EpicEncoder:
    return with_template(open_model("random:tiny", tmp_path_factory.mktemp("model")), "bge-en-icl")


@pytest.fixture(scope="module")
def folder(encoder: EpicEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_for_others(encoder, tmp_path_factory.mktemp("others"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("epic-shared", "epic-rerun"),
        ("text-shared", "text-rerun"),
        ("text-shared", "text-transformers"),
        ("instruction", "sentence-transformers"),
    ],
)
def test_rivals_do_the_same_work(encoder: EpicEncoder, folder: Path, one: str, other: str) -> None:
    rivals = [make_rival(name, encoder, folder, TASK, None) for name in (one, other)]
    found = [rival(TEXTS, len(TEXTS)).vectors for rival in rivals]
    assert (found[0] * found[1]).sum(axis=1).min() > 0.9999
    alone = rivals[1](TEXTS, 1)
    assert np.allclose(alone.vectors, found[1], atol=1e-5)
    assert alone.wall > 0


def test_different_work_is_noticed(encoder: EpicEncoder, folder: Path) -> None:
    names = ("no-prompt", "epic-shared", "text-shared")
    found = {
        name: make_rival(name, encoder, folder, TASK, None)(TEXTS, 3).vectors for name in names
    }
    assert (found["no-prompt"] * found["epic-shared"]).sum(axis=1).max() < 0.9999
    swapped = {"epic-shared": found["epic-shared"], "epic-rerun": -found["epic-shared"]}
    (row,) = _agreement(swapped, "torch.float32")
    assert row["smallest_cosine"] < LEAST_COSINE
    assert row["checked"]
    assert not row["agree"]
    (rough,) = _agreement(swapped, "int8")
    assert not rough["checked"]


def test_flagembedding_through_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "FlagEmbedding.py").write_text(LIBRARY)
    (tmp_path / "FlagEmbedding-1.0.dist-info").mkdir()
    (tmp_path / "FlagEmbedding-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: FlagEmbedding\nVersion: 1.0\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = FlagProcess(tmp_path, TASK, sys.executable)
    try:
        assert process.version == "1.0"
        found = process(["12345", "ä"], 2)
        assert found.vectors.tolist() == [[5, 2, 2, 9], [1, 2, 2, 9]]
        assert process(["12345", "ä"], 1).vectors[:, 1].tolist() == [1, 1]
        assert found.wall >= 0
    finally:
        process.close()


def test_flagembedding_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "FlagEmbedding.py").write_text("raise ImportError('no such library')")
    with pytest.raises(InputError, match="cannot be started"):
        FlagProcess(tmp_path, TASK, str(tmp_path / "no-python"))


def test_flagembedding_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "FlagEmbedding.py").write_text("raise ImportError('half installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(InputError, match=r"half installed.*--python"):
        FlagProcess(tmp_path, TASK, None)


def test_random_models() -> None:
    with pytest.raises(InputError, match="unknown shape 'huge'; expected one of tiny"):
        open_model("random:huge", Path())


def test_a_random_model_of_a_known_size(encoder: EpicEncoder) -> None:
    model = encoder.checkpoint.backbone.model
    vocabulary = model.config.vocab_size
    # Per layer: q and o, k and v with biases, three of the MLP, two norms; the last norm.
    layer = 2 * 32 * 32 + 32 + 2 * (32 * 16 + 16) + 3 * 32 * 48 + 2 * 32
    assert parameters_of(encoder) == vocabulary * 32 + 2 * layer + 32
    assert encoder.reads_vectors


def test_a_projector_where_there_is_none() -> None:
    bare = tiny_encoder(projector=False)
    vectors = with_projector(bare).encode_queries(TEXTS, TASK, "epic")
    assert np.isfinite(vectors).all()
    whole = tiny_encoder()
    assert with_projector(whole) is whole


def test_models_in_memory_are_for_nobody_else(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="other libraries cannot"):
        folder_for_others(tiny_encoder(), tmp_path)
    with pytest.raises(EpicError, match="no folder"):
        make_rival("text-transformers", tiny_encoder(), None, TASK, None)
