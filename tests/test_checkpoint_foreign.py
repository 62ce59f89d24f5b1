"""Folders of other embedders: plain decoders, bge-en-icl, and models of the wrong kind."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import processors
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5Model,
)

from epic_retrieval import CheckpointError, Demonstration, EpicEncoder, InputError, Task
from epic_retrieval.prompt_cache import PromptCache
from tests.models import SHAPE, tiny_model, tiny_tokenizer

TASK = Task("t", "Retrieve what answers", (Demonstration("q", "p"), Demonstration("Q?", "P!")))
TEXTS = ["hello", "why is it so"]


def load(folder: Path, template: str | None = None) -> EpicEncoder:
    cache = PromptCache(None)
    return EpicEncoder.from_pretrained(folder, device="cpu", template=template, cache=cache)


def decoder(folder: Path, ends: str = "<s> $A </s>", added: tuple[str, ...] = ()) -> Path:
    """What transformers saves of a decoder and its tokenizer."""
    tiny_model("mistral-full").save_pretrained(folder)
    hf = tiny_tokenizer()
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing(
        ends, None, [("<s>", 1), ("</s>", 2), ("<mark>", 3)]
    )
    if added:
        hf.add_special_tokens({"additional_special_tokens": list(added)})
    hf.save_pretrained(folder)
    return folder


@torch.no_grad()
def reference(folder: Path, text: str) -> NDArray[np.float32]:
    """(d,) of a whole sequence, as the model's own tokenizer makes it."""
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    states = AutoModel.from_pretrained(folder).eval()(ids, use_cache=False).last_hidden_state
    vector: NDArray[np.float32] = torch.nn.functional.normalize(states[0, -1], dim=0).numpy()
    return vector


@pytest.mark.parametrize("ends", ["<s> $A </s>", "$A <mark>"])
def test_a_plain_decoder_embeds_as_its_tokenizer_says(tmp_path: Path, ends: str) -> None:
    folder = decoder(tmp_path / "plain", ends)
    encoder = load(folder)
    assert not encoder.reads_vectors
    assert encoder.checkpoint.config.template.name == "e5"
    assert encoder.default_mode(TASK) == "none"
    assert encoder.checkpoint.config.max_length == 512
    opening = f"Instruct: {TASK.instruction}\nQuery: "
    for text in TEXTS:
        found = encoder.encode_queries([text], TASK, "none")[0]
        np.testing.assert_allclose(found, reference(folder, opening + text), atol=1e-5)
        passage = encoder.encode_passages([text])[0]
        np.testing.assert_allclose(passage, reference(folder, text), atol=1e-5)


def test_mode_epic_needs_a_projector(tmp_path: Path) -> None:
    folder = decoder(tmp_path / "plain")
    with pytest.raises(CheckpointError, match=r"plain has no projector.*load an EPIC checkpoint"):
        load(folder).encode_queries(TEXTS, TASK, "epic")


def test_the_template_can_be_named(tmp_path: Path) -> None:
    folder = decoder(tmp_path / "plain")
    assert load(folder, "qwen3-embedding").checkpoint.config.template.name == "qwen3-embedding"
    with pytest.raises(InputError, match="unknown template 'e6'"):
        load(folder, "e6")


def test_bge_en_icl(tmp_path: Path) -> None:
    markers = ("<instruct>", "<query>", "<response>")
    folder = decoder(tmp_path / "some-model", added=markers)
    encoder = load(folder)
    assert encoder.checkpoint.config.template.name == "bge-en-icl"
    assert encoder.default_mode(TASK) == "text"
    assert encoder.default_mode(TASK.without_demonstrations()) == "none"
    shown = "".join(
        f"<instruct>{TASK.instruction}\n<query>{one.query}\n<response>{one.passage}\n\n"
        for one in TASK.demonstrations
    )
    asked = f"<instruct>{TASK.instruction}\n<query>{TEXTS[0]}\n<response>"
    for mode, whole in (("none", asked), ("text", shown + asked)):
        found = encoder.encode_queries(TEXTS[:1], TASK, mode)[0]  # type: ignore[arg-type]
        np.testing.assert_allclose(found, reference(folder, whole), atol=1e-5)


def test_bge_en_icl_is_known_by_its_name_too(tmp_path: Path) -> None:
    folder = decoder(tmp_path / "my-bge-en-icl")
    assert load(folder).checkpoint.config.template.name == "bge-en-icl"


def test_a_language_model_with_its_head(tmp_path: Path) -> None:
    folder = decoder(tmp_path / "lm")
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder)
    found = load(folder).encode_passages(TEXTS)
    np.testing.assert_allclose(found[0], reference(folder, TEXTS[0]), atol=1e-5)


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    folder = decoder(tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model("mistral-full").state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="the weights cannot be loaded"):
        load(folder)


def test_a_tokenizer_without_end_token(tmp_path: Path) -> None:
    folder = decoder(tmp_path / "endless", "<s> $A")
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer().backend_tokenizer)
    bare.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="no end-of-sequence token"):
        load(folder)


def test_models_that_look_to_the_right_are_refused(tmp_path: Path) -> None:
    shape = {key: value for key, value in SHAPE.items() if "key_value" not in key}
    folder = decoder(tmp_path / "bert")
    BertModel(BertConfig(**shape)).save_pretrained(folder)
    with pytest.raises(CheckpointError, match="'bert' attends in both directions; expected a"):
        load(folder)
    model = tiny_model("llama")
    model.config.is_causal = False
    model.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="'llama' attends in both directions"):
        load(folder)


def test_encoder_decoders_are_refused(tmp_path: Path) -> None:
    folder = decoder(tmp_path / "t5")
    small = T5Config(vocab_size=400, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    T5Model(small).save_pretrained(folder)
    with pytest.raises(
        CheckpointError, match="'t5' is an encoder with a decoder; expected a causal"
    ):
        load(folder)


def test_untested_families_work_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = decoder(tmp_path / "olmo")
    torch.manual_seed(0)
    Olmo2Model(Olmo2Config(**SHAPE)).save_pretrained(folder)
    with caplog.at_level(logging.WARNING):
        encoder = load(folder)
    assert "'olmo2' is not among those that the tests cover" in caplog.text
    shared = encoder.encode_queries(TEXTS, TASK, "text")
    unshared = encoder.encode_queries(TEXTS, TASK, "text", share_prefix=False)
    np.testing.assert_allclose(shared, unshared, atol=1e-5)
