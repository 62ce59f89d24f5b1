"""Checkpoints that hold a LoRA adapter and name the model that it belongs to."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3Model

from epic_retrieval import CheckpointError, Demonstration, EpicEncoder, Task
from epic_retrieval.backbone import Backbone
from epic_retrieval.checkpoint import Checkpoint, save_checkpoint
from epic_retrieval.errors import InputError
from epic_retrieval.prompt import MODES
from epic_retrieval.prompt_cache import PromptCache
from tests.models import SHAPE, tiny_encoder, tiny_model

# peft asks transformers by a name that transformers 5 is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TASK = Task("t", "Retrieve what answers", (Demonstration("q", "p"), Demonstration("Q?", "P!")))
TEXTS = ["hello", "why is it so"]


def load(folder: Path) -> EpicEncoder:
    return EpicEncoder.from_pretrained(folder, device="cpu", cache=PromptCache(None))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model("qwen3").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def unmerged(base: Path) -> Checkpoint:
    """As training holds it: the adapter beside the weights, its B matrices not zero."""
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    model = tiny_model("qwen3")
    torch.manual_seed(5)
    adapter = get_peft_model(model, lora)
    for name, weights in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.2)
    made = tiny_encoder("qwen3").checkpoint
    return Checkpoint(
        "unmerged",
        Backbone(model),
        made.tokenizer,
        made.projector,
        made.config,
        adapter=adapter.eval(),
        folders=(base,),
    )


@pytest.fixture
def folder(unmerged: Checkpoint, tmp_path: Path) -> Path:
    out = tmp_path / "adapter"
    EpicEncoder(unmerged, PromptCache(None)).save_pretrained(out)
    return out


def test_vectors_are_those_of_the_unmerged_model(unmerged: Checkpoint, folder: Path) -> None:
    training, loaded = EpicEncoder(unmerged, PromptCache(None)), load(folder)
    for mode in MODES:
        found = loaded.encode_queries(TEXTS, TASK, mode)
        np.testing.assert_allclose(found, training.encode_queries(TEXTS, TASK, mode), atol=1e-5)
        plain = tiny_encoder("qwen3").encode_queries(TEXTS, TASK, mode)
        assert np.abs(found - plain).max() > 1e-2, "the adapter changes nothing"


def test_the_base_model_is_named_and_not_copied(folder: Path, base: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "projector.safetensors", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    loaded = load(folder)
    assert loaded.checkpoint.config.base_model == str(base)
    assert loaded.checkpoint.folders == (folder, base)
    assert isinstance(loaded.checkpoint.adapter, PeftModel)


def test_save_again(folder: Path, base: Path, tmp_path: Path) -> None:
    first = load(folder)
    first.save_pretrained(tmp_path / "again")
    second = load(tmp_path / "again")
    for mode in MODES:
        np.testing.assert_array_equal(
            first.encode_queries(TEXTS, TASK, mode), second.encode_queries(TEXTS, TASK, mode)
        )
    assert second.checkpoint.config.base_model == str(base)
    assert second.passage_fingerprint() == first.passage_fingerprint()
    assert second._key(TASK, "epic") == first._key(TASK, "epic")


def test_fingerprints_name_adapter_and_base(folder: Path, base: Path, tmp_path: Path) -> None:
    first = load(folder).passage_fingerprint()
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1e-3}, path, {"format": "pt"})
    assert load(folder).passage_fingerprint() != first
    save_file(weights, path, {"format": "pt"})

    other = tmp_path / "other-base"
    shutil.copytree(base, other)
    assert with_base(folder, other).passage_fingerprint() == first, "the place does not matter"
    tiny_model("qwen3", seed=9).save_pretrained(other)
    assert with_base(folder, other).passage_fingerprint() != first


def with_base(folder: Path, base: Path) -> EpicEncoder:
    path = folder / "epic_config.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(state | {"base_model": str(base)}), encoding="utf-8")
    return load(folder)


def test_a_missing_base_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected an existing folder, a hub id"):
        with_base(folder, tmp_path / "gone")
    (folder / "epic_config.json").unlink()
    path = folder / "adapter_config.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(state | {"base_model_name_or_path": None}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="adapter without its base model; set base_model"):
        load(folder)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json cannot be read"):
        load(folder)


def test_a_base_model_of_another_shape(folder: Path, tmp_path: Path) -> None:
    config = Qwen3Config(**SHAPE | {"hidden_size": 16}, head_dim=8)
    Qwen3Model(config).save_pretrained(tmp_path / "narrow")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors cannot be loaded"):
        with_base(folder, tmp_path / "narrow")


def test_a_damaged_adapter(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    for content in (b"", whole[:-10], b"\x80\x04K\x01." * 99):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors cannot be loaded"):
            load(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors cannot be loaded"):
        load(folder)


# peft warns and goes on; we do not.
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_an_incomplete_adapter(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    weights.pop(next(name for name in weights if "lora_B" in name))
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weights are missing \(base_model.*lora_B"):
        load(folder)


def test_adapters_are_not_rounded(unmerged: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="merge it first"):
        save_checkpoint(unmerged, tmp_path, rounded=True)
