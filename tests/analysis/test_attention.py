"""The end token's attention against a run of the whole sequence that returns all weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from epic_retrieval import Demonstration, EpicEncoder, Task
from epic_retrieval.analysis import SEGMENTS, attention_shares, prompt_segments
from epic_retrieval.analysis.attention import end_attention
from epic_retrieval.backbone import Backbone
from epic_retrieval.errors import CheckpointError, InputError
from epic_retrieval.prompt import Mode, query_prompt
from tests.models import FAMILIES, tiny_encoder

SHOWN = (
    Demonstration("who wrote Emma", "Emma is a novel\nby Jane Austen."),
    Demonstration("what is a passage?", "a part of a text"),
)
TASK = Task("t", "Retrieve what answers the question", SHOWN)
MODES: tuple[Mode, ...] = ("none", "text", "epic")
QUERIES = ["what is it", "a longer question, about passages and what they are for"]


def whole(encoder: EpicEncoder, mode: Mode, query: str) -> np.ndarray:
    """(layers, T) by one forward pass over everything, in the slow way."""
    checkpoint = encoder.checkpoint
    wording = query_prompt(checkpoint.config.template, TASK, "none")
    [row] = checkpoint.tokenizer.text_ids([query], wording, 64)
    with torch.no_grad():
        prompt = checkpoint.embed_prompt(encoder.prompt(TASK, mode))
        everything = torch.cat([prompt, checkpoint.backbone.token_embeddings(row)])
        model = checkpoint.backbone.model
        usual = model.config._attn_implementation
        model.set_attn_implementation("eager")
        output = model(inputs_embeds=everything[None], use_cache=False, output_attentions=True)
        model.set_attn_implementation(usual)
    found: np.ndarray = torch.stack([one[0, :, -1].mean(0) for one in output.attentions]).numpy()
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_agrees_with_the_whole_sequence(family: str, mode: Mode) -> None:
    encoder = tiny_encoder(family)
    before = encoder.encode_queries(QUERIES, TASK, mode)
    expected = whole(encoder, mode, QUERIES[1])
    checkpoint = encoder.checkpoint
    wording = query_prompt(checkpoint.config.template, TASK, "none")
    [row] = checkpoint.tokenizer.text_ids(QUERIES[1:], wording, 64)
    with torch.no_grad():
        prompt = checkpoint.embed_prompt(encoder.prompt(TASK, mode))
        found = end_attention(encoder, prompt, row)
    assert found.shape == expected.shape == (3, len(prompt) + len(row))
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-9)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    if family == "mistral":
        assert (found[:, :-12] == 0).all(), "outside of the window of 12"
    np.testing.assert_array_equal(encoder.encode_queries(QUERIES, TASK, mode), before)


@pytest.mark.parametrize("template", ["epic", "bge-en-icl"])
@pytest.mark.parametrize("bos", [True, False])
def test_masses_add_up_and_positions_are_counted(template: str, bos: bool) -> None:
    encoder = tiny_encoder(template=template, bos=bos)
    wording = query_prompt(encoder.checkpoint.config.template, TASK, "none")
    rows = encoder.checkpoint.tokenizer.text_ids(QUERIES, wording, 64)
    for mode in MODES:
        found = attention_shares(encoder, TASK, QUERIES, mode)
        assert found.shares.shape == (3, len(SEGMENTS))
        np.testing.assert_allclose(found.shares.sum(axis=1), 1, atol=1e-9)
        own = np.mean([len(row) for row in rows])
        assert found.tokens.sum() == encoder.prepare(TASK, mode) + own
        counts = dict(zip(SEGMENTS, found.tokens.tolist(), strict=True))
        assert (counts["first"], counts["end"]) == (1, 1)
        assert (counts["demonstrations"] > 0) == (counts["wording"] > 0) == (mode != "none")
        if mode == "epic":
            assert counts["demonstrations"] == 4
        expected = np.mean([whole(encoder, mode, query)[:, 0] for query in QUERIES], axis=0)
        np.testing.assert_allclose(found.of("first"), expected, atol=2e-5)


def test_segments_of_a_prompt_in_words() -> None:
    encoder = tiny_encoder()
    template, tokenizer = encoder.checkpoint.config.template, encoder.checkpoint.tokenizer
    prompt = encoder.prompt(TASK, "text")
    segments = prompt_segments(tokenizer, template, TASK.instruction, prompt)
    ids = tokenizer.start_ids(prompt)
    assert len(segments) == len(ids)

    def written(kind: str) -> str:
        own = [one for one, at in zip(ids, segments, strict=True) if at == kind]
        return str(tokenizer.hf.decode(own))

    shown = "".join(one.query + one.passage for one in SHOWN)
    assert written("first") == "<s>"
    # White space around a text is the template's, but its token may hold the text's first word.
    assert "".join(written("demonstrations").split()) == "".join(shown.split())
    assert written("instruction") == f"Instruct: {TASK.instruction}\nQuery:"
    assert written("wording").count(TASK.instruction) == 2
    assert written("query") == written("end") == ""


def test_a_vector_is_one_position_of_demonstrations() -> None:
    encoder = tiny_encoder()
    template, tokenizer = encoder.checkpoint.config.template, encoder.checkpoint.tokenizer
    prompt = encoder.prompt(TASK, "epic")
    segments = prompt_segments(tokenizer, template, TASK.instruction, prompt)
    pieces = tokenizer.prompt_ids(prompt)
    at = 0
    for piece in pieces:
        length = len(piece) if isinstance(piece, list) else len(piece.values)
        if not isinstance(piece, list):
            assert segments[at : at + length] == ["demonstrations"]
        at += length
    assert len(segments) == at == encoder.prepare(TASK, "epic")


def test_the_bundled_model(data_root: Path) -> None:
    encoder = EpicEncoder.from_pretrained(device="cpu")
    lines = (data_root / "retrieval" / "scifact" / "queries.jsonl").read_text().splitlines()[:2]
    found = attention_shares(encoder, TASK, lines, "epic")
    assert found.shares.shape == (6, len(SEGMENTS))
    np.testing.assert_allclose(found.shares.sum(axis=1), 1, atol=1e-9)


def test_what_cannot_be_measured() -> None:
    encoder = tiny_encoder()
    with pytest.raises(InputError, match="there are no queries"):
        attention_shares(encoder, TASK, [], "none")
    with pytest.raises(InputError, match="no demonstrations"):
        attention_shares(encoder, TASK.without_demonstrations(), QUERIES, "text")
    both_ways = Backbone(encoder.checkpoint.backbone.model, causal=False)
    other = EpicEncoder(replace(encoder.checkpoint, backbone=both_ways), encoder.cache)
    with pytest.raises(CheckpointError, match="attends in both directions"):
        attention_shares(other, TASK, QUERIES, "none")
