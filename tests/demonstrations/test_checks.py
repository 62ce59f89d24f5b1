import pytest

from epic_retrieval.checkpoint import load_tokenizer
from epic_retrieval.demonstrations import check_task
from epic_retrieval.demonstrations.checks import script_of
from epic_retrieval.tasks import Demonstration, Task, builtin_tasks

GOOD = [
    Demonstration("who wrote Emma?", "Emma is a novel by Jane Austen."),
    Demonstration("when was the Eiffel Tower built", "It was finished in March 1889."),
    Demonstration("why is the sky blue", "Air scatters short waves of light more than long ones."),
]


def messages(*shown: Demonstration) -> list[str]:
    return [f"{one.where}: {one.message}" for one in check_task(Task("t", "Find it", shown))]


def test_nothing_is_wrong_with_good_ones() -> None:
    assert messages(*GOOD) == []
    assert [one.severity for one in check_task(Task("t", "Find it"))] == ["note"]


def test_the_built_in_tasks_are_clean() -> None:
    tokenizer, config = load_tokenizer()
    for task in builtin_tasks().values():
        found = check_task(task, tokenizer, config, 2048)
        assert not [one for one in found if one.severity == "warning"], task.name


@pytest.mark.parametrize(
    ("query", "passage", "expected"),
    [
        ("Who wrote Emma", "someone", "demonstration 4: the same query as demonstration 1"),
        ("why is the sky blue?!", "x", "demonstration 4: the same query as demonstration 3"),
        ("why is the sky blue 2", "Rayleigh", "almost the same query as demonstration 3"),
        ("copy me", "Copy me!", "demonstration 4: query and passage are the same"),
        ("?!", "an answer", "demonstration 4, query: neither a letter nor a digit"),
        (
            "cafÃ© near me",
            "a place",
            "4, query: characters that were decoded wrongly",
        ),
        ("what\ufffds up", "not much", "decoded wrongly"),
        ("a bell", "rings\x07", "demonstration 4, passage: control characters"),
        ("Query: what is it", "it is", "begins with 'Query:', which the template adds"),
        ("<instruct>Find", "found", "begins with '<instruct>'"),
        ("a page", "<p>Some text</p>", "demonstration 4, passage: markup of a web page"),
        ("salt &amp; pepper", "spices", "markup of a web page"),
        (" a space", "at its start", "demonstration 4, query: white space at an end"),
        ("what is new", "x" * 2000, "passage texts have from 30 to 2000 characters"),
        ("東京の人口は", "一千四百万人", "demonstration 4: query not in latin script"),
    ],
)
def test_what_is_found(query: str, passage: str, expected: str) -> None:
    found = messages(*GOOD, Demonstration(query, passage))
    assert [one for one in found if expected in one], found


def test_code_and_comparisons_are_no_markup() -> None:
    code = Demonstration("is a < b && c > d", "if (a < b && c > d) { x &= 1; }")
    assert messages(*GOOD, code) == []


def test_lengths_are_counted_in_tokens() -> None:
    tokenizer, config = load_tokenizer()
    task = Task("t", "Find it", (*GOOD, Demonstration("long", "word " * 2000)))
    found = [one.message for one in check_task(task, tokenizer, config, 2048)]
    lost = f"tokens; as vectors, what follows the first {config.max_length} is lost"
    assert any(lost in one for one in found)
    assert any("mode text is not possible" in one for one in found)
    short = check_task(Task("t", "Find it", tuple(GOOD)), tokenizer, config, 2048)
    assert short == []


def test_scripts() -> None:
    assert script_of("Ceci n'est pas 東") == "latin"
    assert script_of("東京") == "cjk"
    assert script_of("Привет") == "cyrillic"
    assert script_of("123 ?!") is None
