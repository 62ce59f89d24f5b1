"""The pieces of every mode and template, and what templates refuse."""

import pytest
import torch

from epic_retrieval import Demonstration, InputError, Task
from epic_retrieval.prompt import (
    MODES,
    TEMPLATES,
    Piece,
    Prompt,
    Template,
    Text,
    Vectors,
    check_mode,
    get_template,
    passage_prompt,
    query_prompt,
)

TASK = Task(
    "capitals",
    "Find {query} capitals",  # a placeholder in an instruction is text
    (Demonstration("France?", "Paris"), Demonstration("Peru? {passage}", "Lima")),
)
PAIRS = [
    {"query": torch.full((1, 4), float(n)), "passage": torch.full((1, 4), n + 0.5)}
    for n in range(2)
]


def spelled(prompt: Prompt) -> str:
    """A prompt as one string, «n» for a vector of n's."""

    def spell(piece: Piece) -> str:
        return piece.text if isinstance(piece, Text) else f"«{piece.values[0, 0].item():g}»"

    return "".join(map(spell, prompt.prefix)) + "|" + prompt.suffix


INSTRUCT = "Instruct: Find {query} capitals\nQuery: "
FRANCE, PERU = INSTRUCT + "France?", INSTRUCT + "Peru? {passage}"
BGE = "<instruct>Find {query} capitals\n<query>"
BGE_FRANCE, BGE_PERU = f"{BGE}France?\n<response>", f"{BGE}Peru? {{passage}}\n<response>"


@pytest.mark.parametrize(
    ("template", "none", "text", "epic"),
    [
        (
            name,
            f"{INSTRUCT}|",
            f"{FRANCE}\nPassage: Paris\n\n{PERU}\nPassage: Lima\n\n{INSTRUCT}|",
            f"{INSTRUCT}«0»«0.5»\n\n{INSTRUCT}«1»«1.5»\n\n{INSTRUCT}|",
        )
        for name in ("epic", "e5")
    ]
    + [
        (
            "bge-en-icl",
            f"{BGE}|\n<response>",
            f"{BGE_FRANCE}Paris\n\n{BGE_PERU}Lima\n\n{BGE}|\n<response>",
            f"{BGE}«0»\n<response>«0.5»\n\n{BGE}«1»\n<response>«1.5»\n\n{BGE}|\n<response>",
        ),
    ],
)
def test_pieces_of_every_mode(template: str, none: str, text: str, epic: str) -> None:
    chosen = get_template(template)
    assert spelled(query_prompt(chosen, TASK, "none")) == none
    assert spelled(query_prompt(chosen, TASK, "text")) == text
    assert spelled(query_prompt(chosen, TASK, "epic", PAIRS)) == epic


def test_qwen3_has_no_space_behind_the_colon() -> None:
    prompt = query_prompt(get_template("qwen3-embedding"), TASK, "none")
    assert spelled(prompt) == "Instruct: Find {query} capitals\nQuery:|"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_only_the_template_s_own_words_are_markup(template: str, mode: str) -> None:
    pairs = PAIRS if mode == "epic" else []
    prompt = query_prompt(get_template(template), TASK, check_mode(mode), pairs)
    texts = [piece for piece in prompt.prefix if isinstance(piece, Text)]
    ours = {
        TASK.instruction,
        *(text for shown in TASK.demonstrations for text in (shown.query, shown.passage)),
    }
    assert {piece.text for piece in texts if not piece.markup} <= ours
    assert not any(word in piece.text for piece in texts if piece.markup for word in ours)


def test_vectors_enter_as_they_are() -> None:
    prompt = query_prompt(get_template("epic"), TASK, "epic", PAIRS)
    given = [piece.values for piece in prompt.prefix if isinstance(piece, Vectors)]
    assert [id(one) for one in given] == [id(one) for pair in PAIRS for one in pair.values()]


def test_passages_have_no_prompt_unless_the_template_gives_them_one() -> None:
    for template in TEMPLATES.values():
        assert passage_prompt(template) == Prompt()
    worded = Template("worded", passage="Passage: {passage} (end)")
    assert passage_prompt(worded) == Prompt((Text("Passage: ", markup=True),), " (end)")


@pytest.mark.parametrize(
    ("field", "wording"),
    [
        ("query", "{instruction}"),
        ("query", "{instruction} {query} {query}"),
        ("query", "{instruction} {passage}"),
        ("query", "{query} {instruction}"),
        ("query", "{query}"),
        ("text_demonstration", "{query}"),
        ("text_demonstration", "{passage} {query}"),
        ("vector_demonstration", "{passage} {query}"),
        ("vector_start", "{query}"),
        ("vector_demonstration", "{query} {passage} {passage}"),
        ("passage", ""),
        ("passage", "{query}"),
    ],
)
def test_templates_without_their_placeholders_are_refused(field: str, wording: str) -> None:
    with pytest.raises(InputError, match=f"template 'mine': {field} is .*expected"):
        Template("mine", **{field: wording})


def test_unknown_template_and_mode() -> None:
    with pytest.raises(InputError, match="unknown template 'e6'; expected one of bge-en-icl, e5"):
        get_template("e6")
    with pytest.raises(InputError, match="unknown mode 'icl'; expected one of epic, text, none"):
        check_mode("icl")


@pytest.mark.parametrize("mode", ["text", "epic"])
def test_modes_that_show_demonstrations_need_some(mode: str) -> None:
    bare = TASK.without_demonstrations()
    with pytest.raises(InputError, match=r"'capitals' has no demonstrations.*mode=\"none\""):
        query_prompt(get_template("epic"), bare, check_mode(mode))
    assert spelled(query_prompt(get_template("epic"), bare, "none")) == f"{INSTRUCT}|"


def test_a_missing_vector_pair_is_refused() -> None:
    with pytest.raises(InputError, match="vectors of 1 demonstrations for the 2 of"):
        query_prompt(get_template("epic"), TASK, "epic", PAIRS[:1])
