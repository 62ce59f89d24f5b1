"""Prompts computed once, kept on disk, never served for another question, never served damaged."""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from epic_retrieval import EpicEncoder
from epic_retrieval.prefix import Prefix
from epic_retrieval.prompt_cache import PromptCache
from tests.models import tiny_encoder

CPU = torch.device("cpu")


def prefix(value: float = 1.0) -> Prefix:
    """Two layers, three positions."""
    layers = [torch.full((1, 2, 3, 4), value + layer) for layer in range(2)]
    return Prefix(tuple(layers), tuple(-tensor for tensor in layers))


def same(one: Prefix, other: Prefix) -> bool:
    pairs = zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def refuse() -> Prefix:
    raise AssertionError("computed again")


def kept_file(folder: Path, key: str = "key", value: float = 1.0) -> Path:
    PromptCache(folder).get(key, CPU, lambda: prefix(value))
    return folder / f"{key}.safetensors"


def test_computed_once_and_read_by_the_next_process(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path)
    first = cache.get("key", CPU, prefix)
    assert cache.get("key", CPU, refuse) is first
    assert same(PromptCache(tmp_path).get("key", CPU, refuse), first)
    assert os.listdir(tmp_path) == ["key.safetensors"]  # noqa: PTH208 (hidden files too)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_survives_the_disk(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = prefix(1.5)
    half = Prefix(tuple(k.to(dtype) for k in whole.keys), tuple(v.to(dtype) for v in whole.values))
    PromptCache(tmp_path).get("key", CPU, lambda: half)
    assert same(PromptCache(tmp_path).get("key", CPU, refuse), half)


def test_memory_alone_forgets_the_least_recently_used() -> None:
    cache = PromptCache(None, memory=2)
    a = cache.get("a", CPU, prefix)
    cache.get("b", CPU, prefix)
    assert cache.get("a", CPU, refuse) is a
    cache.get("c", CPU, prefix)
    assert cache.get("a", CPU, refuse) is a
    again = cache.get("b", CPU, lambda: prefix(9.0))
    assert again.keys[0][0, 0, 0, 0] == 9.0


def test_a_failed_computation_leaves_nothing(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path)
    with pytest.raises(AssertionError, match="computed again"):
        cache.get("key", CPU, refuse)
    assert not any(tmp_path.iterdir())
    assert same(cache.get("key", CPU, prefix), prefix())


def check_recovery(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged file is named in a warning, computed again, and whole from then on."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found = PromptCache(folder).get("key", CPU, prefix)
    assert same(found, prefix())
    assert "key.safetensors is damaged" in caplog.text
    assert same(PromptCache(folder).get("key", CPU, refuse), prefix())


def test_a_flipped_byte_anywhere_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = kept_file(tmp_path)
    whole = file.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= (1, 0x20, 0x80)[place % 3]
        file.write_bytes(damaged)
        assert PromptCache(tmp_path)._read("key", CPU) is None, f"byte {place}"
    check_recovery(tmp_path, caplog)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, -1])
def test_a_truncated_file_is_computed_again(
    tmp_path: Path, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    file = kept_file(tmp_path)
    file.write_bytes(file.read_bytes()[:kept])
    check_recovery(tmp_path, caplog)


@pytest.mark.parametrize("content", [b"\x80\x04K\x01.", b"\xff" * 500, b"{}", b"\0" * 64])
def test_other_content_is_computed_again(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    kept_file(tmp_path).write_bytes(content)
    check_recovery(tmp_path, caplog)


def test_another_prompt_s_file_under_this_name_is_not_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = kept_file(tmp_path, "other", value=5.0)
    shutil.copy(other, tmp_path / "key.safetensors")
    check_recovery(tmp_path, caplog)


def test_a_folder_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("not a folder")
    cache = PromptCache(tmp_path / "file" / "prompts")
    with caplog.at_level(logging.WARNING):
        assert same(cache.get("key", CPU, prefix), prefix())
    assert "the prompt cannot be kept in" in caplog.text
    assert same(cache.get("key", CPU, refuse), prefix())


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the prompts that any model has run through."""
    from epic_retrieval.backbone import Backbone

    ran: list[int] = []
    run = Backbone.prefix

    def counting(self: Backbone, embeddings: torch.Tensor) -> Prefix:
        ran.append(len(embeddings))
        return run(self, embeddings)

    monkeypatch.setattr(Backbone, "prefix", counting)
    return ran


def test_an_encoder_runs_a_prompt_once_for_all_processes(
    tmp_path: Path, counted: list[int]
) -> None:
    vectors = []
    for _ in range(2):
        encoder = EpicEncoder(tiny_encoder().checkpoint, PromptCache(tmp_path))
        encoder.prepare("web-search", "epic")
        vectors += [encoder.encode_queries(["what is it"], "web-search", "epic") for _ in range(2)]
    # The instruction alone, for the demonstrations; then the prompt of two vectors each.
    assert len(counted) == 2
    for other in vectors[1:]:
        np.testing.assert_array_equal(vectors[0], other)


def test_a_damaged_file_never_reaches_a_vector(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tiny_encoder().checkpoint
    expected = EpicEncoder(checkpoint, PromptCache(tmp_path)).encode_queries(["what"])
    for file in tmp_path.iterdir():
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    found = EpicEncoder(checkpoint, PromptCache(tmp_path)).encode_queries(["what"])
    np.testing.assert_array_equal(found, expected)
    assert "is damaged" in caplog.text
