"""Ids around texts: the end token survives, texts stay texts, cuts are those of one string."""

from functools import cache
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from epic_retrieval import CheckpointError, Demonstration, InputError, Task
from epic_retrieval.prompt import Prompt, Text, Vectors, get_template, query_prompt
from epic_retrieval.tokenization import TextTokenizer, find_bos_eos
from tests.models import tiny_tokenizer
from tests.vocabularies import NAMES, vocabulary

TASK = Task("questions", "Given a question, retrieve passages that answer it")
MARKERS = ["</s>", "<s>", "<pad>", "<mark>", "<|im_end|>", "<response>", "<|endoftext|>"]
# Beginnings that tokenizers like to join with what stands before them, and the rest of the world.
STARTS = [
    "hello",
    "x",
    " one",
    "  two",
    "\nline",
    "\n\n  x",
    "\r\nx",
    "\ttab",
    "\u00a0wide",
    "7",
    "123 4",
]
STARTS += [":)", "?!", "-x", "...", "'s", "// code", '"quoted"', "(a)", "é", "\u0301mark", "ﬁ"]
STARTS += ["漢字かな", "😀 smile", "👩‍👩‍👧", "مرحبا", "def f():\n    return 1", "a  b\n\nc "]


@pytest.fixture(params=NAMES)
def real(request: pytest.FixtureRequest, data_root: Path) -> PreTrainedTokenizerFast:
    return vocabulary(data_root / "tokenizers", request.param)


@cache
def text_tokenizer(hf: PreTrainedTokenizerFast) -> TextTokenizer:
    bos, eos = find_bos_eos(hf)
    return TextTokenizer(hf, bos_id=bos, eos_id=eos)


def tiny(*, bos: bool = True) -> TextTokenizer:
    return TextTokenizer(tiny_tokenizer(bos=bos), bos_id=1 if bos else None, eos_id=2)


def start_ids(tokenizer: TextTokenizer, prompt: Prompt) -> list[int]:
    pieces = tokenizer.prompt_ids(prompt)
    return [token for piece in pieces if not isinstance(piece, Vectors) for token in piece]


def with_markers(hf: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer of bge-en-icl's making: its markers are added tokens."""
    grown = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(hf.backend_tokenizer.to_str()), eos_token=hf.eos_token
    )
    grown.add_special_tokens({"additional_special_tokens": ["<instruct>", "<query>", "<response>"]})
    return grown


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("template", ["epic", "bge-en-icl"])
def test_truncation_cuts_the_text_alone(template: str, bos: bool) -> None:
    tokenizer = tiny(bos=bos)
    prompt = query_prompt(get_template(template), TASK, "none")
    text = "abcdefghijklmnopqrstuvwxyz " * 3
    [whole] = tokenizer.text_ids([text], prompt, 1000)
    [other] = tokenizer.text_ids(["z"], prompt, 1000)
    after = next(n for n in range(len(other), 0, -1) if whole[-n:] == other[-n:])
    own, suffix = whole[:-after], whole[-after:]
    assert suffix[-1] == 2
    wording = "" if template == "epic" else "\n<response>"
    assert tokenizer.hf.decode(suffix) == wording + "</s>"
    for limit in range(after + 1, len(whole) + 5):
        assert tokenizer.text_ids([text], prompt, limit) == [own[: limit - after] + suffix]
    start = start_ids(tokenizer, prompt)
    assert start.count(1) == int(bos)
    assert start[0] == 1 or not bos
    assert 1 not in whole
    assert whole.count(2) == 1


def test_the_beginning_token_stands_before_vectors_too() -> None:
    tokenizer = tiny()
    vectors = Vectors(torch.zeros(1, 4))
    assert tokenizer.prompt_ids(Prompt((vectors, Text("a")))) == [
        [1],
        vectors,
        tokenizer.hf.encode("a"),
    ]
    assert tokenizer.prompt_ids(Prompt()) == [[1]]
    assert tiny(bos=False).prompt_ids(Prompt()) == []


@pytest.mark.parametrize("limit", [-1, 0, 1])
def test_a_limit_without_room_for_text(limit: int) -> None:
    with pytest.raises(InputError, match=f"max_length is {limit}, .* take 1 tokens; .* at least 2"):
        tiny().text_ids(["a"], Prompt(), limit)


def test_special_tokens_in_texts_stay_text() -> None:
    check_plain(text_tokenizer(with_markers(tiny_tokenizer())))


def test_special_tokens_in_texts_stay_text_for_real_vocabularies(
    real: PreTrainedTokenizerFast,
) -> None:
    check_plain(text_tokenizer(real))


def check_plain(tokenizer: TextTokenizer) -> None:
    for marker in MARKERS:
        check_plain_marker(tokenizer, marker)


def check_plain_marker(tokenizer: TextTokenizer, marker: str) -> None:
    task = Task("hostile", f"{marker} a {marker}", (Demonstration(f"q{marker}", f"{marker} p"),))
    prompt = query_prompt(get_template("epic"), task, "text")
    special = set(tokenizer.hf.added_tokens_decoder)
    assert special
    start = start_ids(tokenizer, prompt)
    assert not special & set(start[tokenizer.bos_id is not None :])
    for text in (marker, f"a{marker}b", f" {marker}{marker}", f"x {marker} y"):
        [row] = tokenizer.text_ids([text], prompt, 100)
        assert not special & set(row[:-1])
        assert str(tokenizer.hf.decode(row[:-1])).strip() == text.strip()


def test_special_tokens_in_markup_are_special() -> None:
    tokenizer = text_tokenizer(with_markers(tiny_tokenizer()))
    known = tokenizer.hf.get_added_vocab()
    instruct, query, response = (known[name] for name in ("<instruct>", "<query>", "<response>"))
    shown = TASK.with_demonstrations([Demonstration("a <query>", "<response> b")])
    prompt = query_prompt(get_template("bge-en-icl"), shown, "text")
    start = start_ids(tokenizer, prompt)
    assert [token for token in start if token >= instruct] == [
        instruct,
        query,
        response,
        instruct,
        query,
    ]
    [row] = tokenizer.text_ids(["<response>"], prompt, 100)
    assert row[-2:] == [response, 2]
    assert row.count(response) == 1


@pytest.mark.parametrize("template", ["e5", "qwen3-embedding", "epic"])
def test_cuts_are_those_of_the_whole_string(real: PreTrainedTokenizerFast, template: str) -> None:
    tokenizer, chosen = text_tokenizer(real), get_template(template)
    prompt = query_prompt(chosen, TASK, "none")
    start = start_ids(tokenizer, prompt)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for text, row in zip(STARTS, tokenizer.text_ids(STARTS, prompt, 1000), strict=True):
        whole = chosen.query.format(instruction=TASK.instruction, query=text)
        expected = real.backend_tokenizer.encode(whole, add_special_tokens=False).ids
        assert start + row == [*bos, *expected, tokenizer.eos_id], text


@pytest.mark.parametrize("name", ["gpt2", "llama-sp"])
def test_cuts_around_markers_are_those_of_the_whole_string(name: str, data_root: Path) -> None:
    """Also where the tokenizer puts a space before texts that stand alone."""
    grown = with_markers(vocabulary(data_root / "tokenizers", name))
    tokenizer, chosen = TextTokenizer(grown, bos_id=None, eos_id=5), get_template("bge-en-icl")
    shown = TASK.with_demonstrations([Demonstration("who?", "me"), Demonstration(" 1", "漢字")])
    prompt = query_prompt(chosen, shown, "text")
    start = start_ids(tokenizer, prompt)
    texts = [text for text in STARTS if text[-1].isalnum()]
    before = "".join(
        chosen.text_demonstration.format(
            instruction=shown.instruction, query=one.query, passage=one.passage
        )
        for one in shown.demonstrations
    )
    for text, row in zip(texts, tokenizer.text_ids(texts, prompt, 1000), strict=True):
        whole = before + chosen.query.format(instruction=shown.instruction, query=text)
        expected = grown.backend_tokenizer.encode(whole, add_special_tokens=False).ids
        assert start + row == [*expected, tokenizer.eos_id], text


def test_a_text_that_joins_with_the_prompt_s_last_letter_is_cut_alone() -> None:
    tokenizer = tiny()
    encode = tokenizer.hf.encode
    assert encode("passage") != encode("pass") + encode("age")
    prompt = Prompt((Text("pass"),))
    assert start_ids(tokenizer, prompt) == [1, *encode("pass")]
    assert tokenizer.text_ids(["age"], prompt, 100) == [[*encode("age"), 2]]


@pytest.mark.parametrize("text", ["\ud800", "good \udfff bad"])
def test_lone_surrogates_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"cannot be tokenised .* lone surrogates"):
        tiny().text_ids([text], Prompt(), 10)


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="finds no token in ''"):
        tiny().text_ids([""], Prompt(), 10)


def with_processor(template: str, **tokens: int) -> PreTrainedTokenizerFast:
    hf = tiny_tokenizer()
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing(
        template,
        None,
        [(f"<{name}>" if name != "end" else "</s>", n) for name, n in tokens.items()],
    )
    return hf


@pytest.mark.parametrize(
    ("hf", "expected"),
    [
        (tiny_tokenizer(), (None, 2)),
        (tiny_tokenizer(bos=False), (None, 2)),
        (with_processor("<s> $A </s>", s=1, end=2), (1, 2)),
        (with_processor("<s> $A", s=1), (1, 2)),
        # As Qwen3-Embedding: the end token of the processor is not `eos_token`.
        (with_processor("$A <mark>", mark=3), (None, 3)),
        (with_processor("<mark> $A <pad>", mark=3, pad=0), (3, 0)),
    ],
)
def test_bos_and_eos(hf: PreTrainedTokenizerFast, expected: tuple[int | None, int]) -> None:
    assert find_bos_eos(hf) == expected


def test_bos_and_eos_of_real_vocabularies(data_root: Path) -> None:
    gpt2, qwen2, llama = (vocabulary(data_root / "tokenizers", name) for name in NAMES)
    assert find_bos_eos(gpt2) == (None, 50256)
    assert find_bos_eos(qwen2) == (None, qwen2.convert_tokens_to_ids("<|im_end|>"))
    assert find_bos_eos(llama) == (1, 2)


@pytest.mark.parametrize(("asked", "expected"), [(True, 1), (False, None)])
def test_bos_without_a_processor_is_what_the_settings_say(asked: bool, expected: int) -> None:
    hf = tiny_tokenizer()
    hf.add_bos_token = asked  # type: ignore[misc]  # a property whose setter mypy does not see
    assert find_bos_eos(hf) == (expected, 2)


def test_a_tokenizer_without_end_token_is_refused() -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer().backend_tokenizer)
    with pytest.raises(
        CheckpointError, match=r"no end-of-sequence token.*set tokenizer\.eos_token"
    ):
        find_bos_eos(bare)


def test_truncation_and_padding_of_the_given_tokenizer_do_not_matter() -> None:
    plain, touched = tiny(), tiny()
    touched.hf(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    assert touched.fingerprint() == plain.fingerprint()
    text = ["what is a passage, and what is a query?"]
    assert touched.text_ids(text, Prompt(), 99) == plain.text_ids(text, Prompt(), 99)
    rebuilt = text_tokenizer(touched.hf)
    assert rebuilt.text_ids(text, Prompt(), 99) == plain.text_ids(text, Prompt(), 99)


def test_the_fingerprint_names_what_decides_ids() -> None:
    hf = tiny_tokenizer()
    prints = [
        TextTokenizer(hf, bos_id=1, eos_id=2).fingerprint(),
        TextTokenizer(hf, bos_id=None, eos_id=2).fingerprint(),
        TextTokenizer(hf, bos_id=1, eos_id=3).fingerprint(),
        TextTokenizer(with_markers(hf), bos_id=1, eos_id=2).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    assert prints[0] == TextTokenizer(tiny_tokenizer(), bos_id=1, eos_id=2).fingerprint()
