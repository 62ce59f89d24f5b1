"""Tasks: what they refuse, that files give back what was saved, and what is built in."""

import copy
import dataclasses
import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from epic_retrieval.errors import InputError
from epic_retrieval.tasks import (
    Demonstration,
    Task,
    builtin_tasks,
    icl_demonstrations,
    icl_tasks,
    load_task,
    task_source,
)

PAIR = Demonstration("who wrote Emma?", "Emma is a novel by Jane Austen.")
OTHER = Demonstration("who wrote Ulysses?", "James Joyce wrote Ulysses.")
TASK = Task("books", "Given a question, retrieve passages that answer it", (PAIR, OTHER))


# --- values


def test_a_task_keeps_its_texts_unchanged() -> None:
    texts = ["  two spaces ", "line\n\n  line\r\n", "naïve 東京 😀", "\tx"]
    demonstration = Demonstration(texts[0], texts[1])
    task = Task("t", texts[2], (demonstration, Demonstration(texts[3], texts[3])))
    assert (demonstration.query, demonstration.passage, task.instruction) == tuple(texts[:3])


def test_tasks_are_values() -> None:
    same = Task(TASK.name, TASK.instruction, [PAIR, OTHER])  # type: ignore[arg-type]
    assert same == TASK
    assert hash(same) == hash(TASK)
    assert same.demonstrations == (PAIR, OTHER)
    assert copy.deepcopy(TASK) == TASK
    with pytest.raises(dataclasses.FrozenInstanceError):
        TASK.name = "other"  # type: ignore[misc]


def test_demonstrations_are_swapped_in_a_copy() -> None:
    one = TASK.with_demonstrations(pair for pair in [OTHER])
    assert one.demonstrations == (OTHER,)
    assert one.without_demonstrations().demonstrations == ()
    assert dataclasses.replace(one, demonstrations=(PAIR, OTHER)) == TASK
    assert TASK.demonstrations == (PAIR, OTHER)


@pytest.mark.parametrize("field", ["query", "passage"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is ''; expected a text that is not blank"),
        (" \n\t", "not blank"),
        (None, r"is None \(NoneType\); expected a text"),
        (False, r"is False \(bool\).*quotes"),
        ("half \ud83d", "half a surrogate pair at character 5"),
    ],
)
def test_a_demonstration_refuses(field: str, text: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(InputError, match=f"^{field} {message}|^{field}.*{message}"):
        Demonstration(**{"query": "q", "passage": "p", field: text})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "name is ''"),
        ({"name": 7}, r"name is 7 \(int\)"),
        ({"name": "a/b"}, "name is 'a/b'; expected at most 100 letters"),
        ({"name": ".."}, "the first a letter or digit"),
        ({"name": "-x"}, "the first a letter or digit"),
        ({"name": "été"}, "rename the task"),
        ({"name": "x\n"}, "rename the task"),
        ({"name": "x" * 101}, "at most 100"),
        ({"instruction": "  "}, "instruction is '  '.*not blank"),
        ({"instruction": ["x"]}, r"instruction is .* \(list\)"),
        ({"symmetric": "yes"}, "symmetric is 'yes'; expected true or false"),
        ({"symmetric": 1}, "symmetric is 1"),
        ({"demonstrations": "PAIR"}, "demonstrations is 'PAIR'; expected a sequence"),
        ({"demonstrations": {"query": "q"}}, "expected a sequence of Demonstration"),
        ({"demonstrations": 3}, "expected a sequence of Demonstration"),
        ({"demonstrations": None}, "expected a sequence of Demonstration"),
        ({"demonstrations": (PAIR, ("q", "p"))}, r"demonstration 2 is .* \(tuple\)"),
        ({"demonstrations": (PAIR, OTHER, PAIR)}, "demonstrations 1 and 3 are the same pair"),
    ],
)
def test_a_task_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Task(**{"name": "t", "instruction": "i", **change})


def test_the_copy_refuses_too() -> None:
    with pytest.raises(InputError, match="demonstrations 1 and 2 are the same pair"):
        TASK.with_demonstrations([PAIR, Demonstration(PAIR.query, PAIR.passage)])


def test_pairs_may_share_a_query() -> None:
    both = (PAIR, Demonstration(PAIR.query, OTHER.passage))
    assert TASK.with_demonstrations(both).demonstrations == both


# --- plain data


def test_to_dict_is_what_from_dict_reads() -> None:
    data = TASK.to_dict()
    assert data == {
        "name": "books",
        "instruction": TASK.instruction,
        "symmetric": False,
        "demonstrations": [
            {"query": PAIR.query, "passage": PAIR.passage},
            {"query": OTHER.query, "passage": OTHER.passage},
        ],
    }
    assert Task.from_dict(data) == TASK
    assert Task.from_dict({"name": "t", "instruction": "i"}) == Task("t", "i")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instrution": "x"}, "unknown key 'instrution'; the keys are name, instruction, sym"),
        ({"demonstrations": {"query": "q"}}, "demonstrations is .*; expected a list"),
        ({"demonstrations": None}, "demonstrations is None; .* leave the key out"),
        ({"demonstrations": ["q"]}, "demonstration 1: got 'q'; expected a mapping"),
        ({"demonstrations": [{"query": "q"}]}, "demonstration 1: missing key 'passage'"),
        (
            {"demonstrations": [PAIR.to_dict(), {"query": "q", "response": "p"}]},
            "demonstration 2: missing key 'passage', unknown key 'response'; the keys are query,",
        ),
        (
            {"demonstrations": [PAIR.to_dict(), {"query": "q", "passage": " "}]},
            "demonstration 2: passage is ' '",
        ),
    ],
)
def test_from_dict_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Task.from_dict({"name": "t", "instruction": "i", **change})


def test_from_dict_names_what_is_missing() -> None:
    with pytest.raises(InputError, match="missing key 'name', missing key 'instruction'"):
        Task.from_dict({})
    with pytest.raises(InputError, match="got 'books'; expected a mapping"):
        Task.from_dict("books")  # type: ignore[arg-type]


# --- files


AWKWARD = [
    "two\nlines",
    "trailing newline\n",
    "\n  leading, and a tab\t",
    "carriage\r\nreturns\r",
    "東京 – naïve 😀 \u2028 \x85 \x00",
    "yes",
    "1.5",
    "- not: [a list] # nor a comment",
    "'quoted' \"twice\" \\n",
    " spaces around ",
    "a long line " * 30,
]


@pytest.mark.parametrize("ending", ["json", "yaml", "yml", "JSON"])
def test_files_give_back_what_was_saved(tmp_path: Path, ending: str) -> None:
    demonstrations = tuple(Demonstration(text, text[::-1]) for text in AWKWARD)
    path = tmp_path / f"t.{ending}"
    for text in AWKWARD:
        task = Task("T.1-a_b", text, demonstrations, symmetric=True)
        task.save(path)
        assert Task.load(str(path)) == task


def test_random_texts_survive_yaml(tmp_path: Path) -> None:
    pieces = [*" \n\t\r\"'#:-|>%@`&*!?{}[],~a0\\\x07\x85\u2028é中😀\xa0", "---", "\n\n", "null"]
    rng = random.Random(3)  # noqa: S311 (no secrets here)
    path = tmp_path / "t.yaml"
    for _ in range(300):
        texts = ["x" + "".join(rng.choices(pieces, k=9)), "".join(rng.choices(pieces, k=9)) + "x"]
        task = Task("t", texts[0], (Demonstration(*texts),))
        task.save(path)
        assert Task.load(path) == task


def test_files_are_written_for_people(tmp_path: Path) -> None:
    task = Task("cafe-search", "i", (Demonstration("où ?", "ligne 1\nligne 2"),))
    task.save(tmp_path / "t.yaml")
    assert (tmp_path / "t.yaml").read_text(encoding="utf-8") == (
        "name: cafe-search\ninstruction: i\nsymmetric: false\ndemonstrations:\n"
        "- query: où ?\n  passage: |-\n    ligne 1\n    ligne 2\n"
    )
    task.save(tmp_path / "t.json")
    assert "où ?" in (tmp_path / "t.json").read_text(encoding="utf-8")


def test_a_hand_written_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_bytes(
        b"\xef\xbb\xbf# comment\nname: mine\ninstruction: Find it\ndemonstrations:\n"
        b"  - {query: q, passage: p}\n  - query: a\n    passage: >-\n      folded\n      text\n"
    )
    pairs = (Demonstration("q", "p"), Demonstration("a", "folded text"))
    assert load_task(path) == load_task(str(path)) == Task("mine", "Find it", pairs)


def test_saving_replaces_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.json"
    TASK.save(path)

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="disk full"):
            TASK.without_demonstrations().save(path)
    assert Task.load(path) == TASK
    assert [one.name for one in tmp_path.iterdir()] == ["t.json"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", '{"name": "t"', "not valid JSON"),
        ("t.yaml", "name: [t", "not valid YAML"),
        ("t.yaml", "!!python/name:os.system\n", "not valid YAML.*could not determine"),
        ("t.json", '{"name": "t", "name": "u"}', "the key 'name' stands 2 times"),
        (
            "t.yaml",
            "name: t\ndemonstrations:\n- query: q\n  passage: p\n  query: r\n  passage: s\n",
            "the key 'query' stands 2 times in one mapping",
        ),
        ("t.yaml", "", "got None; expected a mapping"),
        ("t.json", "[]", "expected a mapping"),
        ("t.yaml", "name: t\n", "missing key 'instruction'"),
        ("t.yaml", "name: t\ninstruction: No\n", r"instruction is False \(bool\).*quotes"),
        (
            "t.yaml",
            "name: t\ninstruction: i\ndemonstrations:\n- query: q\n  passage: 1984\n",
            "demonstration 1: passage is 1984",
        ),
        ("t.txt", "name: t", "expected a file that ends in .json, .yaml, .yml"),
    ],
)
def test_errors_name_file_and_field(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        Task.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: café".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.yaml: not UTF-8 at byte 9"):
        Task.load(tmp_path / "latin.yaml")
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read \(No such file"):
        load_task(str(tmp_path / "none.yaml"))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match=r"folder\.json: cannot be read"):
        Task.load(tmp_path / "folder.json")


def test_saving_refuses_bad_places(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t\.toml: expected a file that ends in \.json"):
        TASK.save(tmp_path / "t.toml")
    with pytest.raises(InputError, match=r"there is no folder .*none; create it first"):
        TASK.save(tmp_path / "none" / "t.json")


# --- built in


def test_what_is_built_in() -> None:
    tasks = builtin_tasks()
    assert all(name == task.name for name, task in tasks.items())
    assert len({name.casefold() for name in tasks}) == len(tasks)
    assert Counter(map(task_source, tasks)) == {"epic": 13, "mteb": 56, "training": 16}
    assert builtin_tasks() is tasks
    with pytest.raises(TypeError):
        tasks["web-search"] = TASK  # type: ignore[index]


PAPER = """
SciFact: Given a scientific claim, retrieve documents that support or refute the claim
Banking77Classification: Given a online banking query, find the corresponding intents
AmazonCounterfactualClassification: Classify a given Amazon customer review text as either \
counterfactual or not-counterfactual.
EmotionClassification: Classify the emotion expressed in the given Twitter message into one of \
the six emotions: anger, fear, joy, love, sadness, and surprise.
CQADupstackRetrieval: Given a question, retrieve detailed question descriptions from \
Stackexchange that are duplicates to the given question.
QuoraRetrieval: Given a question, retrieve questions that are semantically equivalent to the \
given question.
SICK-R: Retrieve semantically similar text.
STSBenchmark: Retrieve semantically similar text.
TweetSentimentExtractionClassification: Classify the sentiment of a given tweet as either \
positive, negative, or neutral
AskUbuntuDupQuestions: Retrieve duplicate questions from AskUbuntu forum
SummEval: Given a news summary, retrieve other semantically similar summaries
train-eli5: Provided a user question, retrieve the highest voted answers on Reddit ELI5 forum
train-nli-2: Retrieve semantically similar text
train-quora-duplicates-2: Find questions that have the same meaning as the input question
train-t2ranking: Given a Chinese search query, retrieve web passages that answer the question
"""


@pytest.mark.parametrize("line", PAPER.strip().splitlines())
def test_the_papers_instructions(line: str) -> None:
    name, _, instruction = line.partition(": ")
    task = builtin_tasks()[name]
    assert task.instruction == instruction
    assert task.demonstrations == ()


def test_which_mteb_tasks_are_one_sided() -> None:
    mteb = [task for name, task in builtin_tasks().items() if task_source(name) == "mteb"]
    one_sided = {task.name for task in mteb if not task.symmetric}
    assert len(one_sided) == 16  # the 15 of retrieval and MindSmallReranking
    assert {"ArguAna", "QuoraRetrieval", "TRECCOVID", "MindSmallReranking"} < one_sided


def test_our_own_demonstrations() -> None:
    tasks = [task for name, task in builtin_tasks().items() if task_source(name) == "epic"]
    pairs = [pair for task in tasks for pair in task.demonstrations]
    assert {len(task.demonstrations) for task in tasks} == {5}
    texts = [text for pair in pairs for text in (pair.query, pair.passage)]
    assert len(set(texts)) == len(texts)
    assert all(text == text.strip() for text in texts)
    assert max(map(len, texts)) < 500
    assert {task.name for task in tasks if task.symmetric} == {
        "duplicate-questions",
        "semantic-similarity",
    }


def test_code_demonstrations_are_code() -> None:
    for pair in builtin_tasks()["code-search"].demonstrations:
        compile(pair.passage, "<demonstration>", "exec")


def test_names_are_found_in_any_case() -> None:
    assert load_task("scifact") is load_task("SciFact") is builtin_tasks()["SciFact"]
    assert load_task("Train-HotpotQA").name == "train-hotpotqa"
    assert task_source("FIQA2018") == "mteb"


@pytest.mark.parametrize("find", [load_task, task_source])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scifcat", "no built-in task 'scifcat'; did you mean 'SciFact'"),
        ("web search", "did you mean 'web-search'"),
        ("zzzzzz", "no built-in task 'zzzzzz'; `epic tasks` lists them all"),
        ("", "no built-in task ''; `epic tasks`"),
    ],
)
def test_unknown_names_get_a_suggestion(find: Any, name: str, message: str) -> None:  # noqa: ANN401
    with pytest.raises(InputError, match=message):
        find(name)


def test_every_built_in_task_survives_a_file(tmp_path: Path) -> None:
    for task in builtin_tasks().values():
        path = tmp_path / f"{task.name}.yaml"
        task.save(path)
        assert load_task(path) == task


# --- demonstrations of bge-en-icl


def write_icl(path: Path, rows: object) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_icl_files_become_tasks(tmp_path: Path) -> None:
    write_icl(tmp_path / "SciFact.json", [{"query": "q", "response": " p\n"}])
    write_icl(tmp_path / "STS12.json", [{"query": "a", "response": "b"}])
    (tmp_path / "LICENSE").write_text("MIT")
    tasks = icl_tasks(tmp_path)
    assert list(tasks) == ["STS12", "SciFact"]
    built_in = builtin_tasks()["SciFact"]
    assert tasks["SciFact"] == built_in.with_demonstrations([Demonstration("q", " p\n")])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "expected a list of entries"),
        ({"query": "q", "response": "p"}, "expected a list of entries"),
        (["q"], "entry 1: got 'q'"),
        ([{"query": "q", "passage": "p"}], "entry 1: missing key 'response', unknown key"),
        ([{"query": "q", "response": "p"}, {"query": "q", "response": ""}], "entry 2: passage is"),
    ],
)
def test_icl_errors_name_file_and_entry(tmp_path: Path, rows: object, message: str) -> None:
    path = write_icl(tmp_path / "SciFact.json", rows)
    for read in (lambda: icl_demonstrations(path), lambda: icl_tasks(tmp_path)):
        with pytest.raises(InputError, match=message) as caught:
            read()
        assert str(caught.value).startswith(f"{path}: ")


def test_icl_repeats_are_refused_per_task(tmp_path: Path) -> None:
    path = write_icl(tmp_path / "SciFact.json", [{"query": "q", "response": "p"}] * 2)
    assert len(icl_demonstrations(path)) == 2
    with pytest.raises(InputError, match=r"SciFact\.json: demonstrations 1 and 2 are the same"):
        icl_tasks(tmp_path)


def test_icl_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no folder with \.json files"):
        icl_tasks(tmp_path / "none")
    path = write_icl(tmp_path / "web-search.json", [{"query": "q", "response": "p"}])
    with pytest.raises(InputError, match="'web-search' is not an MTEB task"):
        icl_tasks(tmp_path)
    path.rename(tmp_path / "SciFatc.json")
    with pytest.raises(InputError, match=r"SciFatc\.json: .* did you mean 'SciFact'"):
        icl_tasks(tmp_path)


def test_the_real_icl_demonstrations(data_root: Path) -> None:
    folder = data_root / "bge-en-icl-demonstrations"
    if not folder.is_dir():
        pytest.skip(f"needs bge-en-icl's demonstrations in {folder}")
    tasks = icl_tasks(folder)
    mteb = {name for name in builtin_tasks() if task_source(name) == "mteb"}
    assert set(tasks) == mteb
    assert sum(len(task.demonstrations) for task in tasks.values()) == 231
    assert all(1 <= len(task.demonstrations) <= 8 for task in tasks.values())
