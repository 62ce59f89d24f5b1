from pathlib import Path

import pytest

from epic_retrieval import Demonstration, Task
from epic_retrieval.benchmarking.cases import (
    queries_from,
    queries_of_length,
    read_queries,
    spread_out,
    tasks_named,
    with_count,
    with_lengths,
)
from epic_retrieval.errors import InputError
from epic_retrieval.index import Passage
from tests.models import tiny_encoder

PASSAGES = [
    Passage(str(number), f"text {number} has some words\nand a second line", f"title {number}")
    for number in range(20)
]
TASK = Task("t", "find it", (Demonstration("q", "p"), Demonstration("title 0", PASSAGES[0].text)))


def test_demonstrations_that_are_missing_are_made_of_passages() -> None:
    assert with_count(TASK, 1, PASSAGES).demonstrations == TASK.demonstrations[:1]
    four = with_count(TASK, 4, PASSAGES).demonstrations
    assert four[:2] == TASK.demonstrations
    assert [one.query for one in four[2:]] == ["title 1", "title 2"]  # title 0 is there already
    assert with_count(TASK, 0, PASSAGES).demonstrations == ()
    with pytest.raises(InputError, match="too few"):
        with_count(TASK, 40, PASSAGES)


@pytest.mark.parametrize("tokens", [3, 30, 200])
def test_texts_of_a_length(tokens: int) -> None:
    tokenizer = tiny_encoder().checkpoint.tokenizer
    shown = with_lengths(TASK, 3, tokens, PASSAGES, tokenizer).demonstrations
    texts = [*(one.passage for one in shown), *queries_of_length(2, tokens, PASSAGES, tokenizer)]
    for text in texts:
        assert len(tokenizer.hf(text, add_special_tokens=False)["input_ids"]) == tokens
    assert len(set(shown)) == 3


def test_queries_are_short_and_the_same_each_time() -> None:
    found = queries_from(PASSAGES, 30, seed=0)
    assert found == queries_from(PASSAGES, 30, seed=0) != queries_from(PASSAGES, 30, seed=1)
    assert len(found) == 30
    assert not any("\n" in one or "second" in one for one in found)
    assert {len(one.split()) for one in found} <= {3, 4, 5}
    with pytest.raises(InputError, match="--queries"):
        queries_from([Passage("1", "", "only a title")], 3, seed=0)


def test_queries_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("one\n\n  two \n")
    assert read_queries(tmp_path / "q.txt") == ["one", "two"]
    (tmp_path / "q.txt").write_text("\n")
    with pytest.raises(InputError, match="no queries"):
        read_queries(tmp_path / "q.txt")
    (tmp_path / "q.jsonl").write_text('{"_id": "1", "text": "of a data set"}\n')
    assert read_queries(tmp_path / "q.jsonl") == ["of a data set"]
    (tmp_path / "q.jsonl").write_text('{"query": "of a data set"}\n')
    with pytest.raises(InputError, match="is no query"):
        read_queries(tmp_path / "q.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        read_queries(tmp_path / "absent.txt")


def test_passages_spread_over_all() -> None:
    assert [one.id for one in spread_out(PASSAGES, 4)] == ["0", "5", "10", "15"]
    assert spread_out(PASSAGES, 100) == PASSAGES


def test_tasks_by_name_are_not_symmetric(tmp_path: Path) -> None:
    (task,) = tasks_named(["duplicate-questions"], None)
    assert task.demonstrations
    assert not task.symmetric
    (tmp_path / "SciFact.json").write_text('[{"query": "q", "response": "r"}]')
    (mine,) = tasks_named(["SciFact"], tmp_path)
    assert mine.demonstrations == (Demonstration("q", "r"),)
    with pytest.raises(InputError, match="no demonstrations for 'NQ'"):
        tasks_named(["NQ"], tmp_path)


def test_demonstrations_of_bge_en_icl(data_root: Path) -> None:
    from epic_retrieval.benchmarking.conditions import Conditions

    path = Path(__file__).resolve().parents[2] / "benchmarks" / "rag_tasks.yaml"
    names = Conditions.load(path).tasks
    tasks = tasks_named(names, data_root / "bge-en-icl-demonstrations")
    assert len(tasks) >= 8
    lengths = [len(task.demonstrations[0].passage) for task in tasks]
    assert max(lengths) > 10 * min(lengths)
