from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from epic_retrieval import Task
from epic_retrieval.prompt import TEMPLATES, passage_prompt, query_prompt
from epic_retrieval.tokenization import TextTokenizer
from epic_training.tokenizer import save_tokenizer, train_tokenizer

TEXTS = ["Wait for the process to end", "the process ended: waitForIt(), waitForIt()", "ein Prozeß"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS * 20, 285)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return found


def test_vocabulary(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 285
    assert [tokenizer.id_to_token(index) for index in range(3)] == ["<pad>", "<s>", "</s>"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("THE Process", "the process"),
        ("waitForProcess", "wait for process"),
        ("the  \t process", "the process"),
        ("ﬁt", "fit"),  # compatibility characters
    ],
)
def test_texts_that_are_one(tokenizer: Tokenizer, one: str, other: str) -> None:
    assert ids(tokenizer, one) == ids(tokenizer, other)


@pytest.mark.parametrize("text", ["日本語 🙂", "\x00\x7f", "naïve…"])
def test_every_text_has_tokens_of_its_own(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(ids(tokenizer, text)).strip() == text.replace("…", "...")


def test_the_first_word_is_a_word_like_any_other(tokenizer: Tokenizer) -> None:
    assert (
        ids(tokenizer, "process")
        == ids(tokenizer, "the process")[-len(ids(tokenizer, "process")) :]
    )


@pytest.mark.parametrize("text", [*TEXTS, "  (indented", "\n\nlines\n", "3 apples", "\tTabbed É…"])
def test_training_and_inference_cut_a_text_alike(
    tokenizer: Tokenizer, tmp_path: Path, text: str
) -> None:
    save_tokenizer(tokenizer, tmp_path)
    inference = TextTokenizer(AutoTokenizer.from_pretrained(tmp_path), bos_id=1, eos_id=2)
    template = TEMPLATES["epic"]
    for prompt in (
        query_prompt(template, Task("toy", "Find it"), "none"),
        passage_prompt(template),
    ):
        assert inference.text_ids([text], prompt, 99) == [[*ids(tokenizer, text), 2]]
