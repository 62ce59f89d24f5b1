"""Texts that are made: of documentation and of code, and of sentences by rules."""

import json
import re
from pathlib import Path

import pytest

from epic_retrieval.errors import InputError
from epic_training import made
from epic_training.bundled import read_recipe
from epic_training.made import (
    asked,
    bent,
    code_pairs,
    data_folders,
    families,
    function_pairs,
    group_pairs,
    joined,
    question_pairs,
    sentences,
    stdlib_pairs,
    written_pairs,
)
from epic_training.pairs import Pair, read_pairs

SENTENCES = [f"the {a} {v} near the old {p}" for a in "ab" for v in "cdef" for p in "ghij"]
SHORT = [f"word {n}" for n in range(11)]


def test_families_are_blocks_of_a_sentence_and_its_variants() -> None:
    texts = families([*SHORT, *SENTENCES], count=20, variants=3)
    assert texts == families([*SHORT, *SENTENCES], count=20, variants=3)
    blocks = [texts[start : start + 4] for start in range(0, len(texts), 4)]
    parents = [block for block in blocks if block[0] in SENTENCES[:20]]
    assert len(parents) == 20
    for sentence, *variants in parents:
        assert len({sentence, *variants}) == 4
        for variant in variants:
            assert set(variant.split()) & set(sentence.split())
    others = [text for block in blocks if block not in parents for text in block]
    assert len(others) == 20  # of 11 + 12, what fills blocks
    assert set(others) <= {*SHORT, *SENTENCES[20:]}


def test_a_sentence_is_bent_in_every_way() -> None:
    sentence, other = "a man is slicing an onion on a board", "the bank left its rates unchanged"
    found = {variant for word in ("", "1", "2") for variant in bent(sentence + word, other, [], 12)}
    words = sentence.split()
    assert any(sorted(one.split()) == sorted(words) != one.split() for one in found), "moved"
    assert any(len(one.split()) < len(words) and set(one.split()) < set(words) for one in found)
    assert any(one.startswith("the bank left") for one in found), "joined"
    assert bent("no no no no no", "no no no no no", ["no"], 3)[-1] == "no no no no no"


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
    monkeypatch.setitem(made.MAKERS, "stdlib", (lambda _: iter([pair]), "free"))
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


def test_neighbours_are_joined_to_longer_texts() -> None:
    texts = [f"passage {n // 2} " + "says  this " * 20 for n in range(60)]  # each twice
    found = list(joined(texts))
    assert found == list(joined(iter(texts)))
    assert len(found) > 5
    lengths = [len(text) for text in found]
    assert max(lengths) - min(lengths) > 100
    assert all(300 <= length <= 1100 for length in lengths)
    numbers = [int(n) for text in found for n in re.findall(r"passage (\d+)", text)]
    assert numbers == list(range(len(numbers)))  # in order, each once
    assert not any("  " in text for text in found)


def test_a_text_longer_than_wanted_is_cut() -> None:
    assert [len(text) for text in joined(["word " * 1000])] == [1100]
    assert not list(joined(["too short"]))


def test_written_questions_find_the_passages_at_hand(tmp_path: Path) -> None:
    folder = tmp_path / "stdlib"
    folder.mkdir()
    (folder / "shutil.py").write_text("def which(cmd):\n    'Where a command is on the path.'\n")
    found = list(question_pairs(folder))
    assert len(found) >= 3
    assert {pair.positive for pair in found} == {"shutil which\nWhere a command is on the path."}
    everywhere = list(question_pairs())
    assert everywhere == list(question_pairs())
    assert len({pair.positive for pair in everywhere}) > 3000
    modules = {pair.positive.split()[0] for pair in everywhere[:200]}
    assert len(modules) > 50, "the first are a sample"


def test_written_texts_are_read_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_recipe(Path(__file__).parents[2] / "training/configs/bundled-shown.yaml")
    groups = {name for name, one in config["data"].items() if one.get("made") == "groups"}
    assert len(groups) == 6
    for file in made.WRITTEN.glob("*.tsv"):
        rows = list((group_pairs if file.stem in groups else written_pairs)(file.stem))
        assert len(rows) > 100, file
        assert not any(pair.query == pair.positive for pair in rows), file
    monkeypatch.setattr(made, "WRITTEN", tmp_path)
    (tmp_path / "some.tsv").write_text("a query\ta passage\tnear\nanother\tpassage\n")
    assert list(written_pairs("some")) == [
        Pair("a query", "a passage", "near"),
        Pair("another", "passage"),
    ]
    (tmp_path / "some.tsv").write_text("a query\ta passage\nanother\t\n")
    with pytest.raises(InputError, match=r"line 2: 2 fields; expected 2 to 3 .* none empty"):
        list(written_pairs("some"))
    with pytest.raises(InputError, match=r"none.tsv is missing; .* repository"):
        list(written_pairs("none"))


def test_texts_of_a_label_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "WRITTEN", tmp_path)
    groups = {"joy": "abcde", "fear": "xy", "calm": "z"}
    label = {text: name for name, texts in groups.items() for text in texts}
    lines = [f"{name}\t{text}\n" for name, texts in groups.items() for text in texts]
    (tmp_path / "moods.tsv").write_text("".join(lines))
    rows = list(group_pairs("moods"))
    assert rows == list(group_pairs("moods"))
    assert len(rows) == 5 * 3 + 2  # a text alone under its label has nobody
    assert len({(row.query, row.positive) for row in rows}) == len(rows)
    for row in rows:
        assert row.query != row.positive
        assert label[row.query] == label[row.positive] != label[row.negative]


def test_written_functions_have_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "WRITTEN", tmp_path)
    (tmp_path / "code.tsv").write_text("add one\tdef f(x):\\n    return x + 1\n")
    assert list(function_pairs("code")) == [Pair("add one", "def f(x):\n    return x + 1")]
