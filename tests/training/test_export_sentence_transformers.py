"""Folders for sentence-transformers give our vectors there, or are refused."""

import copy
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from epic_retrieval import CheckpointError, EpicEncoder, InputError, Task
from epic_retrieval.prompt import TEMPLATES, Template, build_prompt
from epic_retrieval.prompt_cache import PromptCache
from epic_retrieval.tokenization import TextTokenizer, find_bos_eos
from epic_training.export import export_checkpoint
from epic_training.export_tokenizer import save_tokenizer
from tests.models import save_tiny_encoder, tiny_encoder
from tests.training.adapters import save_adapted
from tests.vocabularies import vocabulary

# peft asks transformers by a name that transformers 5 is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

PLAIN = Task("t", "Retrieve what answers")
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


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapted(tmp_path_factory.mktemp("adapted"))


@pytest.fixture(scope="module", params=["llama", "qwen3", "mistral", "adapted", "bundled"])
def both(
    request: pytest.FixtureRequest, adapted: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[EpicEncoder, Path]]:
    """An encoder, and the folder for sentence-transformers that was made of it."""
    root = tmp_path_factory.mktemp(request.param)
    source: Path | None = {"adapted": adapted, "bundled": None}.get(request.param, root / "in")
    if source == root / "in":
        save_tiny_encoder(source, request.param)
    out = export_checkpoint(source, root / "st", layout="sentence-transformers", task=PLAIN)
    encoder = EpicEncoder.from_pretrained(source, device="cpu", cache=PromptCache(None))
    yield encoder, out
    shutil.rmtree(root)


def sentence_transformer(folder: Path) -> Any:  # noqa: ANN401 (an optional library's class)
    pytest.importorskip("sentence_transformers", reason="comes with the extra eval")
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})


def test_sentence_transformers_gives_the_same_vectors(both: tuple[EpicEncoder, Path]) -> None:
    ours, folder = both
    theirs = sentence_transformer(folder)
    texts = [*TEXTS, "long " * 2 * ours.checkpoint.config.max_length]
    small: Any = {"batch_size": 2}  # little padding
    queries = ours.encode_queries(texts, PLAIN, "none", **small)
    passages = ours.encode_passages(texts, **small)
    named = theirs.encode(texts, prompt_name="query", **small)
    for found in (named, theirs.encode_query(texts, **small)):
        np.testing.assert_allclose(found, queries, atol=1e-5)
    np.testing.assert_allclose(theirs.encode_document(texts, **small), passages, atol=1e-5)
    # Without a prompt's name there is one limit only, the query's: the documented difference.
    short = [len(text) < 40 for text in texts]
    plain = np.abs(theirs.encode(texts, **small) - passages).max(axis=1)
    assert plain[short].max() < 1e-5
    assert plain[-1] > 1e-5


def test_our_own_encoder_reads_that_folder_too(both: tuple[EpicEncoder, Path]) -> None:
    ours, folder = both
    again = load(folder)
    short = [text for text in TEXTS if len(text) < 40]
    np.testing.assert_allclose(
        again.encode_queries(short, PLAIN, "none"),
        ours.encode_queries(short, PLAIN, "none"),
        atol=1e-5,
    )


def test_passages_of_a_symmetric_task_get_the_prompt(tmp_path: Path) -> None:
    task = replace(PLAIN, symmetric=True)
    source = save_tiny_encoder(tmp_path / "in")
    out = export_checkpoint(source, tmp_path / "st", layout="sentence-transformers", task=task)
    np.testing.assert_allclose(
        sentence_transformer(out).encode_document(TEXTS),
        load(source).encode_passages(TEXTS, task, "none"),
        atol=1e-5,
    )


def save_with(template: Template, folder: Path, max_length: int = 64) -> Path:
    made = tiny_encoder("qwen3").checkpoint
    config = replace(made.config, template=template, max_length=max_length)
    EpicEncoder(replace(made, config=config), PromptCache(None)).save_pretrained(folder)
    return folder


def test_special_tokens_of_a_template_stay_special(tmp_path: Path) -> None:
    template = Template("marked", "<mark>{instruction}\n{query}", passage="passage: {passage}")
    source = save_with(template, tmp_path / "in")
    out = export_checkpoint(source, tmp_path / "st", layout="sentence-transformers", task=PLAIN)
    theirs, ours, texts = sentence_transformer(out), load(source), TEXTS[:6]
    np.testing.assert_allclose(
        theirs.encode_query(texts), ours.encode_queries(texts, PLAIN, "none"), atol=1e-5
    )
    np.testing.assert_allclose(
        theirs.encode_document(texts), ours.encode_passages(texts), atol=1e-5
    )


@pytest.mark.parametrize("name", ["gpt2", "llama-sp"])
def test_real_vocabularies_cut_alike(data_root: Path, tmp_path: Path, name: str) -> None:
    """Texts at the border of the prompt, with special tokens, white space and punctuation."""
    hf = copy.deepcopy(vocabulary(data_root / "tokenizers", name))
    if name == "gpt2":  # ends in a token that is no part of the vocabulary, as Qwen's
        hf.add_special_tokens({"eos_token": "<|im_end|>"})
    bos, eos = find_bos_eos(hf)
    ours = TextTokenizer(hf, bos_id=bos, eos_id=eos)
    save_tokenizer(ours, tmp_path, 512, split=True)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    pieces = [*"ab Z:;.,!?'\"()-_<|/\\0é漢🎉\n\t", "  ", "\r\n", "</s>", "<|im_end|>", "'s", "▁"]

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.sampled_from(pieces), min_size=1).map("".join).filter(str.strip))
    def alike(text: str) -> None:
        for template in (TEMPLATES["epic"], TEMPLATES["qwen3-embedding"]):
            prompt = build_prompt(template, PLAIN.instruction)
            [row] = ours.text_ids([text], prompt, 500)
            wording = template.query.format(instruction=PLAIN.instruction, query=text)
            assert theirs(wording)["input_ids"] == [*ours.start_ids(prompt), *row]

    alike()


def test_a_prompt_that_grows_into_the_text_is_refused(tmp_path: Path) -> None:
    # The tiny tokenizer knows "qu" as one token; the "q" belongs to our shared prompt.
    source = save_with(Template("grown", "{instruction}\nq{query}"), tmp_path / "in")
    with pytest.raises(CheckpointError, match="cuts the query 'un example' otherwise"):
        export_checkpoint(source, tmp_path / "out", layout="sentence-transformers")
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_what_sentence_transformers_cannot_express(tmp_path: Path) -> None:
    suffixed = save_with(TEMPLATES["bge-en-icl"], tmp_path / "bge")
    with pytest.raises(InputError, match=r"'bge-en-icl' puts '\\n<response>' behind a query"):
        export_checkpoint(suffixed, tmp_path / "a", layout="sentence-transformers")
    long = save_with(TEMPLATES["epic"], tmp_path / "long", max_length=1020)
    with pytest.raises(InputError, match="positions, but the model has 1024"):
        export_checkpoint(long, tmp_path / "a", layout="sentence-transformers")
    assert not (tmp_path / "a").exists()
