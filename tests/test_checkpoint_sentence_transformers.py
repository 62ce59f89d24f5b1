"""Folders that the real sentence-transformers saved give its own vectors, or are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import processors

from epic_retrieval import CheckpointError, EpicEncoder, Task
from epic_retrieval.prompt_cache import PromptCache
from tests.models import tiny_model, tiny_tokenizer

pytest.importorskip("sentence_transformers", reason="comes with the extra eval")

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)

TASK = Task("t", "Retrieve what answers")
TEXTS = ["hello", "why is it so :)", " x", ":) y", "漢字"]
QWEN3 = f"Instruct: {TASK.instruction}\nQuery:"
E5 = f"Instruct: {TASK.instruction}\nQuery: "


def saved(folder: Path, *modules: torch.nn.Module, prompt: str = QWEN3) -> SentenceTransformer:
    """Transformer and `modules` as sentence-transformers saves them; queries get `prompt`."""
    source = folder.with_name("source")
    tiny_model("qwen3").save_pretrained(source)
    hf = tiny_tokenizer()
    # As Qwen3-Embedding's, which ends sequences by its post-processor.
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "$A </s>", None, [("</s>", 2)]
    )
    hf.save_pretrained(source)
    model = SentenceTransformer(
        modules=[Transformer(str(source)), *modules], device="cpu", prompts={"query": prompt}
    )
    model.save(str(folder))
    return model


def load(folder: Path) -> EpicEncoder:
    return EpicEncoder.from_pretrained(folder, device="cpu", cache=PromptCache(None))


@pytest.mark.parametrize(("prompt", "template"), [(QWEN3, "qwen3-embedding"), (E5, "e5")])
def test_last_token_pooling_gives_the_same_vectors(
    tmp_path: Path, prompt: str, template: str
) -> None:
    theirs = saved(tmp_path / "st", Pooling(32, "lasttoken"), Normalize(), prompt=prompt)
    ours = load(tmp_path / "st")
    assert ours.checkpoint.config.template.name == template
    np.testing.assert_allclose(
        ours.encode_queries(TEXTS, TASK, "none"), theirs.encode(TEXTS, prompt=prompt), atol=1e-5
    )
    np.testing.assert_allclose(ours.encode_passages(TEXTS), theirs.encode(TEXTS), atol=1e-5)


def test_other_pooling_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "st", Pooling(32, "mean"), Normalize())
    with pytest.raises(CheckpointError, match="pools by mean; epic-retrieval reads the end token"):
        load(tmp_path / "st")


def test_older_pooling_settings_are_understood(tmp_path: Path) -> None:
    saved(tmp_path / "st", Pooling(32, "lasttoken"))
    path = tmp_path / "st" / "1_Pooling" / "config.json"
    for mode, fine in (("lasttoken", True), ("cls_token", False)):
        flags = {"pooling_mode_cls_token": False, "pooling_mode_lasttoken": False}
        flags[f"pooling_mode_{mode}"] = True
        path.write_text(json.dumps({"word_embedding_dimension": 32, **flags}), encoding="utf-8")
        if fine:
            load(tmp_path / "st")
        else:
            with pytest.raises(CheckpointError, match="pools by pooling_mode_cls_token"):
                load(tmp_path / "st")


def test_other_modules_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "st", Pooling(32, "lasttoken"), Dense(32, 16))
    with pytest.raises(CheckpointError, match="modules Transformer, Pooling, Dense; supported are"):
        load(tmp_path / "st")


def test_a_damaged_module_list(tmp_path: Path) -> None:
    saved(tmp_path / "st", Pooling(32, "lasttoken"))
    (tmp_path / "st" / "modules.json").write_text("[{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"modules\.json cannot be read"):
        load(tmp_path / "st")


def test_max_seq_length_is_taken_over(tmp_path: Path) -> None:
    saved(tmp_path / "st", Pooling(32, "lasttoken"))
    path = tmp_path / "st" / "sentence_bert_config.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(state | {"max_seq_length": 77}), encoding="utf-8")
    assert load(tmp_path / "st").checkpoint.config.max_length == 77
