"""Every ablation of the paper at inference, against a naive twin: one text at a time, one pass."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from epic_retrieval import Demonstration, EpicEncoder, InputError, Task
from epic_retrieval.backbone import Backbone, sampled_counts
from epic_retrieval.method import Attention, Field, Method, PoolingName
from epic_retrieval.pooling import LatentPooling, pool_eos, pool_mean
from epic_retrieval.projector import LearnedTokens
from epic_retrieval.prompt import TEMPLATES, Template
from epic_retrieval.prompt_cache import PromptCache
from tests.models import tiny_encoder, tiny_model

SHOWN = (
    Demonstration("what is a fern", "A plant that makes spores and has neither seeds nor flowers."),
    Demonstration("tallest mountain?", "Everest, 8,849 m."),
)
TASK = Task("t", "Given a question, retrieve passages", SHOWN)
TEXTS = ["a", "why is the sky blue in the morning", "Which river?"]
EPIC = TEMPLATES["epic"]
OPENING = "Instruct: Given a question, retrieve passages\nQuery: "
FAMILIES = ("qwen3", "mistral-full", "gemma")


def encoder_of(
    method: Method, template: Template = EPIC, family: str = "qwen3", learned: int = 0
) -> EpicEncoder:
    base = tiny_encoder(family).checkpoint
    torch.manual_seed(4)
    pooling: Any = {"eos": pool_eos, "mean": pool_mean}.get(method.pooling)
    if pooling is None:
        pooling = LatentPooling(32, latents=6).eval()
        torch.nn.init.normal_(pooling.attention.out_proj.weight)
        torch.nn.init.normal_(pooling.mlp[-1].weight)
    backbone = Backbone(base.backbone.model, pooling=pooling, causal=method.causal)
    tokens = LearnedTokens(learned, 32) if learned else None
    config = replace(base.config, method=method, template=template)
    made = replace(base, backbone=backbone, config=config, learned=tokens)
    return EpicEncoder(made, PromptCache(None))


class Twin:
    """Sequences written out from the paper's formulas."""

    def __init__(self, encoder: EpicEncoder) -> None:
        self.encoder, self.checkpoint = encoder, encoder.checkpoint
        self.hf = self.checkpoint.tokenizer.hf

    def ids(self, text: str) -> list[int]:
        return list(self.hf.encode(text, add_special_tokens=False))

    def rows(self, pieces: list[str | Tensor]) -> Tensor:
        """Embeddings of pieces behind <s>; adjacent texts are one string."""
        table = self.checkpoint.backbone.model.get_input_embeddings()
        rows, text = [table(torch.tensor([1]))], ""
        for piece in [*pieces, torch.empty(0, 32)]:
            if isinstance(piece, str):
                text += piece
                continue
            if text:
                rows.append(table(torch.tensor(self.ids(text))))
            text = ""
            rows.append(piece)
        return torch.cat(rows)

    def states(self, before: list[str | Tensor], text: str) -> Tensor:
        """(own tokens, d) final states of a text and its end token behind a prompt."""
        whole = self.rows([*before, text])
        prompt = self.rows([*before[:-1], str(before[-1]).rstrip()] if before else [])
        end = self.checkpoint.backbone.model.get_input_embeddings()(torch.tensor([2]))
        sequence = torch.cat([whole, end])[None]
        n = sequence.shape[1]
        see = torch.full((n, n), torch.finfo(torch.float32).min)
        see = torch.zeros(n, n) if not self.checkpoint.backbone.causal else see.triu(1)
        output = self.checkpoint.backbone.model(
            inputs_embeds=sequence, attention_mask=see[None, None], use_cache=False
        )
        states: Tensor = output.last_hidden_state[0, len(prompt) :]
        return states

    def pooled(self, states: Tensor) -> Tensor:
        method, pooling = self.checkpoint.config.method, self.checkpoint.backbone.pooling
        if method.pooling == "eos":
            return states[-1]
        if method.pooling == "mean":
            return states.mean(0)
        return pooling(states[None], torch.ones(1, len(states)))[0]

    def vectors(self, states: Tensor) -> Tensor:
        every = self.checkpoint.config.method.every
        g = self.checkpoint.projector
        assert g is not None
        if not every:
            return g(self.pooled(states))[None]  # type: ignore[no-any-return]
        picked = [states[i] for i in range(len(states) - 1, -1, -every)][::-1]
        return g(torch.stack(picked))  # type: ignore[no-any-return]

    def query(self, text: str) -> Tensor:
        return self.vectors(self.states([OPENING], text))

    def passage(self, text: str) -> Tensor:
        return self.vectors(self.states([], text))


def expected(encoder: EpicEncoder, pieces: list[str | Tensor]) -> Any:  # noqa: ANN401 (an array)
    twin = Twin(encoder)
    states = torch.stack([twin.pooled(twin.states(pieces, text)) for text in TEXTS])
    return torch.nn.functional.normalize(states, dim=1).numpy()


def check(encoder: EpicEncoder, pieces: list[str | Tensor], tolerance: float = 1e-5) -> None:
    for share in (True, False):
        found = encoder.encode_queries(TEXTS, TASK, "epic", share_prefix=share)
        np.testing.assert_allclose(found, expected(encoder, pieces), atol=tolerance, rtol=0)


END = "\n\n"
PLAIN = "Instruct: {instruction}\nQuery: "


@torch.no_grad()
@pytest.mark.parametrize(
    ("demonstration", "start", "parts"),
    [
        (PLAIN + "\n\n", "", ""),  # without query and passage
        (PLAIN + "{query}\n\n", "", "q"),
        (PLAIN + "{passage}\n\n", "", "p"),
        ("{query}{passage}", PLAIN, "qp"),  # one instruction
    ],
    ids=["no pair", "no passage", "no query", "one instruction"],
)
def test_prompt_formats_of_table_4a(demonstration: str, start: str, parts: str) -> None:
    template = Template("mine", vector_demonstration=demonstration, vector_start=start)
    encoder = encoder_of(Method(), template)
    twin = Twin(encoder)
    pieces: list[str | Tensor] = [OPENING] if start else []
    for one in SHOWN:
        pieces += [] if start else [OPENING]
        pieces += [twin.query(one.query)] if "q" in parts else []
        pieces += [twin.passage(one.passage)] if "p" in parts else []
        pieces += [] if start else [END]
    check(encoder, [*pieces, OPENING])


@torch.no_grad()
@pytest.mark.parametrize(
    "vectors", [("query",), ("passage",), ("instruction", "query", "passage")], ids="+".join
)
def test_compression_of_table_4b(vectors: tuple[Field, ...]) -> None:
    wording = PLAIN + "{query}\nPassage: {passage}\n\n"
    encoder = encoder_of(Method(vectors=vectors), Template("mine", vector_demonstration=wording))
    twin = Twin(encoder)
    pieces: list[str | Tensor] = []
    for one in SHOWN:
        instruction: str | Tensor = TASK.instruction
        if "instruction" in vectors:
            instruction = twin.passage(TASK.instruction)
        query = twin.query(one.query) if "query" in vectors else one.query
        passage = twin.passage(one.passage) if "passage" in vectors else one.passage
        pieces += ["Instruct: ", instruction, "\nQuery: ", query, "\nPassage: ", passage, "\n\n"]
    check(encoder, [*pieces, OPENING])


@torch.no_grad()
@pytest.mark.parametrize("every", [1, 4, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_more_vectors_per_text_of_table_3(every: int, family: str) -> None:
    encoder = encoder_of(Method(every=every), family=family)
    twin = Twin(encoder)
    pieces: list[str | Tensor] = []
    for one in SHOWN:
        pieces += [OPENING, twin.query(one.query), twin.passage(one.passage), END]
    check(encoder, [*pieces, OPENING])
    if every == 64:  # longer than any text here: the end token's state alone, as EPIC has it
        plain = encoder_of(Method(), family=family).encode_queries(TEXTS, TASK, "epic")
        np.testing.assert_allclose(encoder.encode_queries(TEXTS, TASK, "epic"), plain, atol=1e-6)


@torch.no_grad()
def test_learned_tokens_and_soft_prompt_of_table_5() -> None:
    learned = encoder_of(Method(source="learned"), learned=4)
    assert learned.checkpoint.learned is not None
    a, b, c, d = learned.checkpoint.learned().split(1)
    check(learned, [OPENING, a, b, END, OPENING, c, d, END, OPENING])
    soft = encoder_of(Method(source="soft-prompt"), learned=4)
    assert soft.checkpoint.learned is not None
    check(soft, [soft.checkpoint.learned(), OPENING])
    for encoder in (learned, soft):  # they serve tasks that have no demonstrations, alike
        bare = TASK.without_demonstrations()
        assert encoder.default_mode(bare) == "epic"
        found = [encoder.encode_queries(TEXTS, task, "epic") for task in (TASK, bare)]
        np.testing.assert_array_equal(found[0], found[1])


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["eos", "mean", "latent"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_and_pooling_of_table_6(
    pooling: PoolingName, attention: Attention, family: str
) -> None:
    encoder = encoder_of(Method(pooling=pooling, attention=attention), family=family)
    twin = Twin(encoder)
    pieces: list[str | Tensor] = []
    for one in SHOWN:
        pieces += [OPENING, twin.query(one.query), twin.passage(one.passage), END]
    check(encoder, [*pieces, OPENING])
    bare = [twin.pooled(twin.states([], text)) for text in TEXTS]
    passages = torch.nn.functional.normalize(torch.stack(bare), dim=1)
    np.testing.assert_allclose(encoder.encode_passages(TEXTS), passages, atol=1e-5)
    alone = np.concatenate([encoder.encode_passages([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode_passages(TEXTS), alone, atol=1e-5)
    assert encoder.prepare(TASK, "epic") > 20


@pytest.mark.parametrize(
    ("method", "learned"),
    [
        (Method(vectors=("query",)), 0),
        (Method(every=3), 0),
        (Method(source="learned"), 4),
        (Method(source="soft-prompt"), 3),
        (Method(attention="bidirectional", pooling="mean"), 0),
        (Method(attention="bidirectional", pooling="latent"), 0),
        (Method(pooling="latent"), 0),
    ],
    ids=lambda given: str(given)[:70],
)
def test_every_method_survives_saving(method: Method, learned: int, tmp_path: Path) -> None:
    encoder = encoder_of(method, learned=learned)
    encoder.save_pretrained(tmp_path)
    again = EpicEncoder.from_pretrained(tmp_path, cache=PromptCache(tmp_path / "cache"))
    assert again.checkpoint.config.method == method
    for mode in ("none", "epic"):
        before = encoder.encode_queries(TEXTS, TASK, mode)
        np.testing.assert_allclose(again.encode_queries(TEXTS, TASK, mode), before, atol=1e-6)
    assert again.passage_fingerprint() != ""


def test_fingerprints_of_passages_follow_pooling_and_attention_only() -> None:
    methods = [
        Method(),
        Method(attention="bidirectional"),
        Method(pooling="mean"),
        Method(pooling="latent"),
    ]
    found = [encoder_of(method).passage_fingerprint() for method in methods]
    assert len(set(found)) == len(methods)
    assert encoder_of(Method(every=4)).passage_fingerprint() == found[0]
    keys = [encoder_of(m)._key(TASK, "epic") for m in (Method(), Method(every=4))]
    assert keys[0] != keys[1]


def test_sampled_states_end_in_the_pooled_one() -> None:
    backbone = Backbone(tiny_model("llama"))
    rows = [[5, 6, 7, 8, 2], [9, 2], [4, 5, 6, 2]]
    counts = sampled_counts(rows, 2)
    assert counts == [3, 1, 2]
    ends = torch.tensor(counts).cumsum(0) - 1
    torch.testing.assert_close(backbone.encode(rows, every=2)[ends], backbone.encode(rows))


def test_a_shared_prefix_and_bidirectional_attention_exclude_each_other() -> None:
    backbone = Backbone(tiny_model("llama"))
    prefix = backbone.prefix(backbone.token_embeddings([1, 5]))
    backbone.causal = False
    with pytest.raises(ValueError, match="no prefix can be shared"):
        backbone.encode([[5, 2]], prefix)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"vectors": ()}, "expected some of instruction, query, passage"),
        ({"vectors": ("passage", "query")}, "in this order"),
        ({"source": "magic"}, "source is 'magic'; expected one of encoded, learned, soft-prompt"),
        ({"attention": "both"}, "expected one of causal, bidirectional"),
        ({"pooling": "cls"}, "expected one of eos, mean, latent"),
        ({"every": -1}, "expected 0 or a number of tokens"),
        ({"every": 4, "pooling": "mean"}, "goes with pooling"),
    ],
)
def test_methods_without_a_meaning_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Method(**settings)


def test_latent_pooling_starts_as_the_mean() -> None:
    states, mask = torch.randn(3, 5, 32), torch.ones(3, 5)
    mask[1, 3:] = 0
    pooling = LatentPooling(32, latents=4)
    torch.testing.assert_close(pooling(states, mask), pool_mean(states, mask))
