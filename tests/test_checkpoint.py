"""EPIC checkpoints: what is saved comes back, and what is damaged is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from epic_retrieval import CheckpointError, Demonstration, EpicEncoder, InputError, Task
from epic_retrieval.checkpoint import BUNDLED_MODEL, load_checkpoint
from epic_retrieval.prompt import MODES
from epic_retrieval.prompt_cache import PromptCache
from epic_retrieval.storage import digest_of_tensors
from tests.models import FAMILIES, tiny_encoder

TASK = Task("t", "Retrieve what answers", (Demonstration("q", "p"), Demonstration("Q?", "P!")))
TEXTS = ["hello", "why is it so :)"]


def load(folder: Path, **options: Any) -> EpicEncoder:  # noqa: ANN401 (of from_pretrained)
    return EpicEncoder.from_pretrained(folder, device="cpu", cache=PromptCache(None), **options)


def check_equal(one: EpicEncoder, other: EpicEncoder) -> None:
    states = [encoder.checkpoint.backbone.model.state_dict() for encoder in (one, other)]
    assert digest_of_tensors(states[0]) == digest_of_tensors(states[1])
    # One that was loaded has its weights laid out otherwise, which rounds otherwise.
    close = partial(np.testing.assert_allclose, atol=1e-6, rtol=0)
    for mode in MODES if one.reads_vectors else ("text", "none"):
        close(one.encode_queries(TEXTS, TASK, mode), other.encode_queries(TEXTS, TASK, mode))
    close(one.encode_passages(TEXTS), other.encode_passages(TEXTS))


@pytest.fixture
def folder(tiny_encoder_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(tiny_encoder_folder, tmp_path / "model"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    state = json.loads(path.read_text(encoding="utf-8"))
    change(state)
    path.write_text(json.dumps(state), encoding="utf-8")


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load(family: str, tmp_path: Path) -> None:
    made = tiny_encoder(family)
    made.save_pretrained(tmp_path / "a")
    loaded = load(tmp_path / "a")
    check_equal(made, loaded)
    assert loaded.checkpoint.config == made.checkpoint.config
    assert loaded.default_mode(TASK) == "epic"
    loaded.save_pretrained(tmp_path / "b")
    again = load(tmp_path / "b")
    check_equal(made, again)
    for task in (None, TASK, replace(TASK, symmetric=True)):
        assert again.passage_fingerprint(task) == loaded.passage_fingerprint(task)
    assert again._key(TASK, "epic") == loaded._key(TASK, "epic")
    assert {path.suffix for path in (tmp_path / "a").iterdir()} == {".json", ".safetensors"}


def test_save_over_itself_and_over_another_model(folder: Path) -> None:
    made = load(folder)
    made.save_pretrained(folder)
    check_equal(load(folder), tiny_encoder())
    plain = tiny_encoder("llama", projector=False)
    plain.save_pretrained(folder)
    loaded = load(folder)
    assert not loaded.reads_vectors, "g of the model that lay here before"
    check_equal(loaded, plain)


def test_a_checkpoint_without_projector(tmp_path: Path) -> None:
    tiny_encoder(projector=False, template="e5", bos=False).save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert not loaded.reads_vectors
    assert loaded.default_mode(TASK) == "none"
    with pytest.raises(CheckpointError, match="has no projector"):
        loaded.encode_queries(TEXTS, TASK, "epic")
    check_equal(loaded, tiny_encoder(projector=False, template="e5", bos=False))


def test_max_length_can_be_chosen(folder: Path) -> None:
    assert load(folder, max_length=9).checkpoint.config.max_length == 9
    with pytest.raises(InputError, match="max_length is 0; expected a whole number from 2"):
        load(folder, max_length=0)


def test_dtypes(folder: Path) -> None:
    for name in ("bf16", "bfloat16", torch.bfloat16):
        loaded = load(folder, dtype=name)
        assert loaded.checkpoint.backbone.dtype == torch.bfloat16
        assert loaded.checkpoint.projector is not None
        assert loaded.checkpoint.projector.output.weight.dtype == torch.bfloat16
    assert load(folder).checkpoint.backbone.dtype == torch.float32
    with pytest.raises(InputError, match="unknown dtype 'int4'; expected one of float32"):
        load(folder, dtype="int4")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "neither config.json nor adapter_config.json"),
        ("model.safetensors", "the weights cannot be loaded"),
        ("tokenizer.json", "tokenizer"),
    ],
)
def test_a_missing_file(folder: Path, name: str, message: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "projector.safetensors"])
@pytest.mark.parametrize("damage", ["empty", "cut", "garbage"])
def test_damaged_weights(folder: Path, name: str, damage: str) -> None:
    whole = (folder / name).read_bytes()
    content = {"empty": b"", "cut": whole[:-100], "garbage": b"\x80\x04K\x01." * 99}[damage]
    (folder / name).write_bytes(content)
    message = "projector.safetensors is damaged" if "proj" in name else "weights cannot be loaded"
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_missing_and_misshapen_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    gone = weights.pop("layers.1.mlp.up_proj.weight")
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weights are missing \(layers.1.mlp.up_proj"):
        load(folder)
    save_file({**weights, "layers.1.mlp.up_proj.weight": gone[:-1]}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"another shape|cannot be loaded"):
        load(folder)


def test_a_projector_of_another_width(folder: Path) -> None:
    from safetensors.torch import save_file

    from epic_retrieval.projector import Projector

    save_file(Projector(16).state_dict(), folder / "projector.safetensors")
    with pytest.raises(CheckpointError, match=r"damaged or belongs to .* another width than 32"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("format"), "not an EPIC configuration"),
        (lambda c: c.update(format=2), "another format than 1; upgrade"),
        (lambda c: c.pop("template"), "not an EPIC configuration"),
        (lambda c: c.update(template="e5"), "not an EPIC configuration"),
        (lambda c: c["template"].update(query="{query}"), "expected {instruction} before"),
        (lambda c: c.pop("eos_token_id"), "eos_token_id"),
        (lambda c: c.update(eos_token_id=None), "eos_token_id is None; expected a whole number"),
        (lambda c: c.update(eos_token_id="</s>"), "eos_token_id is '</s>'; expected a whole"),
        (lambda c: c.update(bos_token_id=-1), "bos_token_id is -1; expected a whole number from 0"),
        (lambda c: c.update(bos_token_id=True), "bos_token_id is True; expected a whole number"),
        (lambda c: c.update(eos_token_id=400), "eos_token_id is 400, but the model knows 400"),
        (lambda c: c.update(max_length="512"), "max_length is '512'; expected a whole number"),
        (lambda c: c.update(modes=["icl"]), "unknown mode 'icl'"),
        (lambda c: c.update(modes=[]), "modes is empty; expected some of epic"),
        (lambda c: c.update(base_model=5), "base_model is 5; expected"),
        (lambda c: c.update(colour="red"), r"unknown entries \['colour'\]; remove them"),
    ],
)
def test_a_wrong_entry_in_the_configuration(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(folder / "epic_config.json", change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"5", b"{", b"\xff\xfe{}"])
def test_a_configuration_that_is_none(folder: Path, content: bytes) -> None:
    (folder / "epic_config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"epic_config\.json"):
        load(folder)


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/no/where", "~/no-where", "a/b/c", ""])
def test_names_that_are_no_folder(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"expected an existing folder, a hub id|not a model"):
        load_checkpoint(name)


def test_a_path_is_never_looked_up_on_the_hub() -> None:
    with pytest.raises(CheckpointError, match="expected an existing folder"):
        load_checkpoint(Path("some/model"))


@pytest.mark.parametrize("name", ["some/model", "not allowed/on hubs"])
def test_hub_ids_that_cannot_be_fetched(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"'{name}' is not a folder here, and fetching"):
        load_checkpoint(name)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="is not a model folder"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load(tmp_path)


@pytest.mark.parametrize("device", ["foo", "cuda:99", "xpu", "cpu:x"])
def test_a_device_that_is_not_here_is_told_before_anything_is_read(device: str) -> None:
    with pytest.raises(InputError, match=rf'device="{device}".*finds cpu'):
        load_checkpoint("no such model", device=device)


def test_the_bundled_model_has_one_name() -> None:
    assert load_checkpoint(BUNDLED_MODEL, device="cpu").name == BUNDLED_MODEL.name
