import json
from pathlib import Path

import pytest

from epic_retrieval.demonstrations import TestSet, find_leaks, read_test_set
from epic_retrieval.demonstrations.similar import Shingles
from epic_retrieval.errors import InputError
from epic_retrieval.tasks import Demonstration, Task, icl_tasks
from tests.demonstrations.samples import rows, write_pairs

LONG = (
    "The lighthouse keeper wrote down the weather every morning for forty years, and when he died"
    " his daughters found nineteen notebooks that nobody had ever read before that winter."
)
LIKE = LONG.replace("forty years", "40 years").replace("daughters", "two daughters").upper()
OTHER = (
    "The lighthouse was built by engineers from the north, who used granite that had been cut on"
    " the island itself, and it was finished in the year before the great storm of November."
)


def likeness(one: str, other: str) -> str | None:
    found = Shingles.of(one).compare(Shingles.of(other))
    assert found == Shingles.of(other).compare(Shingles.of(one))
    return None if found is None else found[0]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("who wrote Emma?", " Who wrote: emma", "exact"),
        ("ｗｈｏ wrote Emma", "who wrote Emma", "exact"),
        ("how do I sort a list in python", "how do i sort a list in python3", "near"),
        ("how do I sort a list in python", "how do I copy a list in python", None),
        ("who wrote Emma", "who wrote Ulysses", None),
        ("???", "!!!", None),
        ("???", "???", "exact"),
        ("東京の人口", "東京の人口は", None),
        (LONG, LIKE, "near"),
        (LONG, f"Once upon a time. {LONG} And so on, and on. " + OTHER * 3, "near"),
        (LONG, OTHER, None),
        (LONG, "the lighthouse keeper", None),
    ],
)
def test_likeness(one: str, other: str, expected: str | None) -> None:
    assert likeness(one, other) == expected


def test_unrelated_questions_are_not_alike() -> None:
    queries = [row["query"] for row in rows(40)]
    pairs = [(a, b) for a in queries for b in queries if a < b]
    assert not [pair for pair in pairs if likeness(*pair)]


TASK = Task(
    "t",
    "Find it",
    (Demonstration("who keeps the light?", LONG), Demonstration("what is new", "nothing much")),
)


def test_leaks_are_found_where_they_are() -> None:
    test = TestSet("secret", ("What is new?", "something else"), (OTHER, LIKE))
    found = find_leaks(TASK, [TestSet("other", ("nothing alike here",), ()), test])
    assert [(one.number, one.part, one.of, one.kind, one.test) for one in found] == [
        (2, "query", "query", "exact", "secret"),
        (1, "passage", "answer", "near", "secret"),
    ]
    assert found[1].text == LIKE
    assert 0.5 <= found[1].similarity < 1


def test_labels_are_shared_by_every_split() -> None:
    task = Task("t", "Classify", (Demonstration("my card is gone", "lost or stolen card"),))
    test = TestSet("secret", ("someone took my card",), ("lost or stolen card",))
    assert find_leaks(task, [test]) == []
    same_query = TestSet("secret", ("My card is gone!",), ("lost or stolen card",))
    assert [one.part for one in find_leaks(task, [same_query])] == ["query"]


def test_a_symmetric_task_has_texts_of_one_kind() -> None:
    test = TestSet("secret", ("nothing much",), ("what is new",))
    assert find_leaks(TASK, [test]) == []
    both = Task("t", "Find it", TASK.demonstrations, symmetric=True)
    assert {(one.part, one.of) for one in find_leaks(both, [test])} == {
        ("passage", "query"),
        ("query", "answer"),
    }


def test_what_is_merely_in_the_corpus_gives_nothing_away(tmp_path: Path) -> None:
    corpus = [{"_id": "a", "text": LONG}, {"_id": "b", "text": OTHER}]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (tmp_path / "queries.jsonl").write_text(json.dumps({"_id": "1", "text": "who built it"}))
    qrels = tmp_path / "qrels.tsv"
    qrels.write_text("query-id\tcorpus-id\tscore\n1\tb\t1\n")
    test = read_test_set(tmp_path)
    assert (test.queries, test.answers) == (("who built it",), (OTHER,))
    assert find_leaks(TASK, [test]) == []
    qrels.write_text("query-id\tcorpus-id\tscore\n1\ta\t1\n")
    assert [one.part for one in find_leaks(TASK, [read_test_set(tmp_path)])] == ["passage"]


def test_other_forms_of_test_sets(tmp_path: Path) -> None:
    pairs = read_test_set(write_pairs(tmp_path / "pairs.jsonl", rows(3)))
    assert (len(pairs.queries), len(pairs.answers)) == (3, 3)
    (tmp_path / "q.txt").write_text("one\n\n two \n")
    assert read_test_set(tmp_path / "q.txt").queries == ("one", "two")
    (tmp_path / "q.txt").write_text(" \n")
    with pytest.raises(InputError, match="holds no query"):
        read_test_set(tmp_path / "q.txt")


def test_demonstrations_of_others_do_not_leak(data_root: Path) -> None:
    task = icl_tasks(data_root / "bge-en-icl-demonstrations")["SciFact"]
    test = read_test_set(data_root / "retrieval" / "scifact")
    assert len(test.queries) == 300
    assert find_leaks(task, [test]) == []
    leaky = task.with_demonstrations([Demonstration(test.queries[5], "x"), *task.demonstrations])
    assert {one.number for one in find_leaks(leaky, [test])} == {1}
