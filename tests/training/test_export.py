"""Exported folders give the checkpoint's vectors, in plain weights."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from epic_retrieval import Demonstration, EpicEncoder, InputError, Task
from epic_retrieval.checkpoint import BUNDLED_MODEL
from epic_retrieval.method import Method
from epic_retrieval.pooling import LatentPooling
from epic_retrieval.projector import LearnedTokens
from epic_retrieval.prompt import MODES
from epic_retrieval.prompt_cache import PromptCache
from epic_training import export as export_module
from epic_training.export import export_checkpoint
from tests.models import tiny_encoder
from tests.training.adapters import save_adapted

# peft asks transformers by a name that transformers 5 is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

PLAIN = Task("t", "Retrieve what answers")
TASK = PLAIN.with_demonstrations([Demonstration("q", "p"), Demonstration("Q?", "P!")])
TEXTS = [
    "hello",
    "why is it so :)",
    " x",
    ":) y",
    "\n\nz \n",
    "漢字 é",
    "</s> <s>a<mark>",
    "x y " * 20,  # cut by the tiny models
]


def load(folder: Path) -> EpicEncoder:
    return EpicEncoder.from_pretrained(folder, device="cpu", cache=PromptCache(None))


def assert_equal(first: EpicEncoder, second: EpicEncoder, atol: float = 0.0) -> None:
    """The same vectors in every mode that the first one knows."""
    for mode in MODES if first.reads_vectors else ("none", "text"):
        found, expected = (
            one.encode_queries(TEXTS, TASK, mode, batch_size=4) for one in (second, first)
        )
        np.testing.assert_allclose(found, expected, atol=atol)
    np.testing.assert_allclose(
        second.encode_passages(TEXTS), first.encode_passages(TEXTS), atol=atol
    )


def dtypes(path: Path) -> set[str]:
    with safe_open(path, framework="pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapted(tmp_path_factory.mktemp("adapted"))


def test_an_adapter_is_merged(adapted: Path, tmp_path: Path) -> None:
    out = export_checkpoint(adapted, tmp_path / "out")
    names = {path.name for path in out.iterdir()}
    assert "model.safetensors" in names
    assert not {name for name in names if "adapter" in name}
    assert not [name for name in names if name.startswith(".")]
    exported = load(out)
    assert exported.checkpoint.config.base_model is None
    assert exported.checkpoint.adapter is None
    assert_equal(load(adapted), exported)
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert not [key for key in file.keys() if "lora" in key or "base_layer" in key]  # noqa: SIM118
    # A second export changes nothing any more.
    again = export_checkpoint(out, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_an_adapter_is_kept_if_asked(adapted: Path, tmp_path: Path) -> None:
    out = export_checkpoint(adapted, tmp_path / "out", merge=False)
    assert (out / "adapter_model.safetensors").is_file()
    assert not (out / "model.safetensors").exists()
    assert load(out).checkpoint.config.base_model == str(adapted.parent / "base")
    assert_equal(load(adapted), load(out), atol=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        Method(source="learned"),
        Method(source="soft-prompt", pooling="latent"),
        Method(pooling="mean", attention="bidirectional"),
    ],
    ids=["learned", "soft-prompt", "bidirectional"],
)
def test_every_part_of_a_method_is_exported(method: Method, tmp_path: Path) -> None:
    made = tiny_encoder("qwen3").checkpoint
    torch.manual_seed(2)
    if method.pooling == "latent":
        made.backbone.pooling = LatentPooling(32, 8).eval()
    learned = LearnedTokens(4, 32) if method.source != "encoded" else None
    config = replace(made.config, method=method)
    EpicEncoder(replace(made, learned=learned, config=config)).save_pretrained(tmp_path / "in")
    out = export_checkpoint(tmp_path / "in", tmp_path / "out")
    assert_equal(load(tmp_path / "in"), load(out))
    if method.pooling != "eos":
        with pytest.raises(InputError, match='use layout="epic"'):
            export_checkpoint(tmp_path / "in", tmp_path / "st", layout="sentence-transformers")


def test_stored_dtypes_are_kept(tmp_path: Path) -> None:
    out = export_checkpoint(None, tmp_path / "out")
    # What is stored in 8 bits are floats, and no half precision holds all of them.
    assert dtypes(out / "model.safetensors") == {"F32"}
    name = "projector.safetensors"
    assert dtypes(out / name) == dtypes(BUNDLED_MODEL / name) == {"F16"}
    bundled = EpicEncoder.from_pretrained(device="cpu", cache=PromptCache(None))
    assert_equal(bundled, load(out))
    assert load(out).checkpoint.config == bundled.checkpoint.config

    half = export_checkpoint(None, tmp_path / "half", dtype="float16")
    again = export_checkpoint(half, tmp_path / "again")
    for name in ("model.safetensors", "projector.safetensors"):
        assert dtypes(again / name) == dtypes(half / name) == {"F16"}
    assert_equal(load(half), load(again))


def test_a_dtype_is_taken(adapted: Path, tmp_path: Path) -> None:
    assert dtypes(export_checkpoint(adapted, tmp_path / "a") / "model.safetensors") == {"F32"}
    out = export_checkpoint(adapted, tmp_path / "b", dtype="bfloat16")
    for name in ("model.safetensors", "projector.safetensors"):
        assert dtypes(out / name) == {"BF16"}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert_equal(load(adapted), load(out), atol=0.1)


def test_options_that_do_not_go_together(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"layout": "onnx"}, "expected one of epic, sentence-transformers"),
        ({"dtype": "int8"}, "expected one of float32"),
        ({"layout": "sentence-transformers", "merge": False}, "has to be merged"),
        ({"task": "web-search"}, "encodes any task"),
    ]
    for options, message in wrong:
        with pytest.raises(InputError, match=message):
            export_checkpoint(tiny_encoder_folder, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_nothing_is_replaced(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_checkpoint(tiny_encoder_folder, tmp_path / "out")
    with pytest.raises(InputError, match="exists, and nothing is replaced"):
        export_checkpoint(tiny_encoder_folder, tmp_path / "out")


def test_a_failure_leaves_nothing(
    tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a killed export left behind goes, too.
    (tmp_path / ".out.exporting").mkdir()

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(export_module, "write_card", fail)
    with pytest.raises(InputError, match=r"cannot be written \(no space left"):
        export_checkpoint(tiny_encoder_folder, tmp_path / "out")
    assert not list(tmp_path.iterdir())
