"""Texts that are made, of documentation and of code."""

import json
from pathlib import Path

import pytest

from epic_retrieval.errors import InputError
from epic_training import made
from epic_training.made import (
    asked,
    code_pairs,
    data_folders,
    sentences,
    stdlib_pairs,
)
from epic_training.pairs import Pair, read_pairs


def test_documentation_becomes_pairs(tmp_path: Path) -> None:
    (tmp_path / "shutil.py").write_text(
        "def copyTree_all(src):\n    '''Copy a whole directory tree elsewhere. Links are kept.'''\n"
    )
    first, question, name = stdlib_pairs(tmp_path)
    assert first.query == "Copy a whole directory tree elsewhere."
    assert first.positive == "shutil.copyTree_all(src)\nLinks are kept."
    assert question.query == "how to copy a whole directory tree elsewhere in python"
    assert question.positive.startswith("shutil copy Tree all\nCopy a whole directory tree")
    assert name.query == "shutil copy Tree all"
    assert name.positive.endswith("elsewhere. Links are kept.")


def test_a_sentence_becomes_a_question() -> None:
    found = {asked(f"Returns the {noun} of a list.") for noun in "abcdefghij"}
    assert all("get the" in one and not one.endswith(".") for one in found)
    assert len({one.partition("get the")[0] for one in found}) > 2
    assert "pass " in asked("Pass a message on.")
    assert asked("Copies it.") == asked("Copies it.")


CODE = '''
def walk(top):
    """Go through all the folders. Deeply."""
    for one in top:
        yield one

def copy(a):
    return list(a)

def nothing(self):
    """There is no code in this one."""
    pass
'''


def test_functions_become_pairs_with_their_code(tmp_path: Path) -> None:
    (tmp_path / "shutil.py").write_text(CODE)
    walk, copy = code_pairs(tmp_path)
    assert walk.query == "Go through all the folders."
    assert walk.positive == "def walk(top):\n    for one in top:\n        yield one"
    assert (copy.query, copy.positive) == ("shutil copy", "def copy(a):\n    return list(a)")


def test_sentences_are_cut_out_of_longer_texts() -> None:
    texts = ["One sentence is not cut at all.", "Too short. But this one has enough words!\n\nEnd"]
    assert list(sentences(texts)) == ["But this one has enough words!"]


def test_made_data_sets_lie_in_the_training_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair("open a file", "open(file)\nOpen a file.")
    monkeypatch.setitem(made.MAKERS, "stdlib", (lambda: iter([pair]), "free"))
    config = {"data": {"given": {}, "ours": {"made": "stdlib"}}}
    found = data_folders(config, tmp_path / "data", tmp_path / "out")
    assert found == {"given": tmp_path / "data/given", "ours": tmp_path / "out/made/ours"}
    meta = json.loads((found["ours"] / "meta.json").read_text())
    pairs = list(read_pairs(found["ours"] / "pairs.jsonl.gz"))
    assert pairs == [pair]
    assert meta == {"pairs": 1, "licence": "free"}
    written = (found["ours"] / "pairs.jsonl.gz").stat().st_mtime_ns
    assert data_folders(config, tmp_path / "data", tmp_path / "out") == found
    assert (found["ours"] / "pairs.jsonl.gz").stat().st_mtime_ns == written
    with pytest.raises(InputError, match="made is 'stdlb'; expected stdlib"):
        data_folders({"data": {"x": {"made": "stdlb"}}}, tmp_path, tmp_path / "out")
