import gzip
import json
from pathlib import Path

import pytest

from epic_retrieval.demonstrations import read_labelled
from epic_retrieval.errors import InputError
from tests.demonstrations.samples import write_pairs


def test_pairs_are_joined_by_query_and_by_passage(tmp_path: Path) -> None:
    rows = [
        {"query": "a", "positive": "one", "negative": "three"},
        {"query": "b", "passage": "one"},
        {"query": "a", "pos": ["two"], "neg": ["four", " "], "prompt": "Find it"},
    ]
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    found = read_labelled(path)
    assert found.queries == ("a", "b")
    assert list(found.passages.values()) == ["one", "three", "two", "four"]
    texts = [{found.passages[one] for one in answers} for answers in found.relevant]
    assert texts == [{"one", "two"}, {"one"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    corpus = [{"_id": "d1", "title": "Tea", "text": "A drink."}, {"_id": "d2", "text": "Milk."}]
    corpus.append({"_id": "d3", "text": " "})
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    for prefix, text in (("train_", "what is tea"), ("dev_", "what is milk"), ("", "a secret")):
        row = {"_id": "q1", "text": text}
        (tmp_path / f"{prefix}queries.jsonl").write_text(json.dumps(row))
        judged = "q1\td1\t2\nq1\td2\t0\nq1\td3\t1\n"
        (tmp_path / f"{prefix}qrels.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    return tmp_path


def test_a_folder_gives_its_training_queries(folder: Path) -> None:
    found = read_labelled(folder)
    assert found.queries == ("what is tea",)
    assert found.relevant == ({"d1": 2},), "grade 0 and blank passages answer nothing"
    assert found.passages == {"d1": "Tea\nA drink.", "d2": "Milk."}


def test_a_folder_gives_the_split_that_is_named(folder: Path) -> None:
    assert read_labelled(folder, "dev").queries == ("what is milk",)
    assert read_labelled(folder, "test").queries == ("a secret",)


def test_the_layout_of_beir(folder: Path) -> None:
    (folder / "train_qrels.tsv").unlink()
    (folder / "qrels").mkdir()
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    assert read_labelled(folder).queries == ("a secret",)


def test_test_queries_are_never_taken_unasked(folder: Path) -> None:
    for prefix in ("train_", "dev_"):
        (folder / f"{prefix}qrels.tsv").unlink()
    with pytest.raises(InputError, match=r"neither a train nor a dev split.*report no scores"):
        read_labelled(folder)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "a"}, "line 1: without a text"),
        ({"query": " ", "positive": "p"}, "line 1: without a text"),
        ({"query": "a", "positive": [" "]}, "line 1: without a text"),
        ({"query": ["a", "b"], "positive": "p"}, "line 1: without a text"),
        ({"query": "a", "positive": 7}, "'positive' is 7; expected a text or a list"),
    ],
)
def test_rows_that_cannot_be_used(row: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_labelled(write_pairs(tmp_path / "p.jsonl", [row]))


def test_files_that_cannot_be_used(folder: Path) -> None:
    empty = write_pairs(folder / "empty.jsonl", [])
    with pytest.raises(InputError, match="holds no pairs"):
        read_labelled(empty)
    with pytest.raises(InputError, match="expected JSON Lines"):
        read_labelled(folder / "pairs.csv")
    with pytest.raises(InputError, match="is no folder, so it has no split 'train'"):
        read_labelled(empty, "train")
    with pytest.raises(InputError, match="has no split 'other'"):
        read_labelled(folder, "other")
    (folder / "train_qrels.tsv").write_text("q1\td1\tmany\nq1 d1 1\n")
    with pytest.raises(InputError, match="line 2: 'q1 d1 1'; expected query, passage and grade"):
        read_labelled(folder)
    (folder / "train_qrels.tsv").write_text("q9\t0\td1\t1\n")
    with pytest.raises(InputError, match="line 1: there is no query 'q9'"):
        read_labelled(folder)
    (folder / "train_qrels.tsv").write_text("q1\td9\t1\n")
    with pytest.raises(InputError, match="judges no passage of the corpus relevant"):
        read_labelled(folder)
