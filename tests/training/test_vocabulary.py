import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from epic_retrieval.errors import InputError
from epic_retrieval.prompt import Prompt
from epic_retrieval.tokenization import TextTokenizer
from epic_training.tokenizer import save_tokenizer
from epic_training.vocabulary import english_pieces, teacher_ids, wordpiece_tokenizer
from tests.training.teachers import write_teacher


def test_english_pieces_only() -> None:
    pieces = ["[CLS]", "[unused7]", "the", "##ing", "中", "##中", "é", "β", "€", "—", "[", "##/"]
    found = english_pieces({piece: i for i, piece in enumerate(pieces)})
    assert found == ["the", "##ing", "β", "€", "—", "[", "##/"]


def test_the_tokenizer_splits_like_the_teacher_and_at_camel_case(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    tokenizer = wordpiece_tokenizer(tmp_path / "tiny_teacher" / "model")
    assert [tokenizer.id_to_token(i) for i in range(4)] == ["<pad>", "<s>", "</s>", "[UNK]"]
    assert tokenizer.encode("The owlSings.", add_special_tokens=False).tokens == [
        "the", "owl", "sings", ".",
    ]  # fmt: skip
    assert tokenizer.encode("cats 中", add_special_tokens=False).tokens == ["cat", "##s", "[UNK]"]
    assert tokenizer.decode(tokenizer.encode("cats").ids) == "cats"


def test_pieces_are_found_in_the_teachers_vocabulary(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    folder = tmp_path / "tiny_teacher" / "model"
    tokenizer, teacher = wordpiece_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    names = teacher.convert_ids_to_tokens(teacher_ids(tokenizer, teacher))
    assert names[:4] == ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    assert names[4:] == [tokenizer.id_to_token(i) for i in range(4, len(names))]


def test_it_works_as_a_checkpoints_tokenizer(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    save_tokenizer(wordpiece_tokenizer(tmp_path / "tiny_teacher" / "model"), tmp_path / "own")
    tokenizer = TextTokenizer(AutoTokenizer.from_pretrained(tmp_path / "own"), bos_id=1, eos_id=2)
    [row] = tokenizer.text_ids(["the cat </s>"], Prompt(), 20)
    assert row.count(2) == 1  # the end token's name in a text is no end token
    assert row[-1] == 2


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE"}}))
    with pytest.raises(InputError, match="is a BPE tokenizer; expected WordPiece"):
        wordpiece_tokenizer(tmp_path)
