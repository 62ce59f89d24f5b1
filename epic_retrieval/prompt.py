"""A prompt is a sequence of pieces, each piece text or vectors; templates say in which order.

Plain instructions, textual in-context learning and EPIC differ in their pieces and in nothing else:

    none   I                              before the query's own text
    text   I Q_1 P_1 ... I Q_k P_k I      demonstrations as text (bge-en-icl)
    epic   I q_1 p_1 ... I q_k p_k I      demonstrations as two vectors each (EPIC, Eq. 3 and 4)

Knows no model and no tokenizer.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from epic_retrieval.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from epic_retrieval.method import Method
    from epic_retrieval.tasks import Task

Mode = Literal["epic", "text", "none"]
MODES: tuple[Mode, ...] = get_args(Mode)

_PLACEHOLDER = re.compile(r"\{(instruction|query|passage)\}")


@dataclass(frozen=True)
class Text:
    """A piece of text.

    In `markup`, a template's own words, special tokens are special; elsewhere they are text.
    """

    text: str
    markup: bool = False


@dataclass(frozen=True, eq=False)
class Vectors:
    """A piece that enters where token embeddings enter: (n, d), one row per position."""

    values: "Tensor"


Piece = Text | Vectors


@dataclass(frozen=True)
class Prompt:
    """What stands around a query's own text: `prefix` pieces before it, `suffix` after it.

    The end-of-sequence token follows the suffix; a beginning-of-sequence token, where the tokenizer
    has one, precedes the first piece. Neither is part of a prompt.
    """

    prefix: tuple[Piece, ...] = ()
    suffix: str = ""


@dataclass(frozen=True)
class Template:
    """How an encoder words its prompts; the placeholders are {instruction}, {query}, {passage}.

    Attributes:
        name: of the template.
        query: a query with its instruction; what follows {query} is the suffix.
        text_demonstration: a demonstration as text, its separator included.
        vector_demonstration: the same where parts become vectors; {query} and {passage} may be left
            out (Table 4a).
        vector_start: stands once before the first of them, for an instruction that is not repeated.
        passage: a passage of an asymmetric task.
    """

    name: str
    query: str = "Instruct: {instruction}\nQuery: {query}"
    text_demonstration: str = "Instruct: {instruction}\nQuery: {query}\nPassage: {passage}\n\n"
    vector_demonstration: str = "Instruct: {instruction}\nQuery: {query}{passage}\n\n"
    passage: str = "{passage}"
    vector_start: str = ""

    def __post_init__(self) -> None:
        for field, needed in (
            ("query", ["query"]),
            ("text_demonstration", ["query", "passage"]),
            ("passage", ["passage"]),
        ):
            found = _PLACEHOLDER.findall(getattr(self, field))
            if [name for name in found if name != "instruction"] != needed:
                raise InputError(
                    f"template {self.name!r}: {field} is {getattr(self, field)!r}; expected"
                    f" {' and '.join('{' + name + '}' for name in needed)} once each, in this order"
                )
        shown = [n for n in _PLACEHOLDER.findall(self.vector_demonstration) if n != "instruction"]
        if shown not in (["query", "passage"], ["query"], ["passage"], []):
            raise InputError(
                f"template {self.name!r}: vector_demonstration is {self.vector_demonstration!r};"
                " expected {query} and {passage} at most once each, in this order"
            )
        if set(_PLACEHOLDER.findall(self.vector_start)) - {"instruction"}:
            raise InputError(
                f"template {self.name!r}: vector_start is {self.vector_start!r}; expected no other"
                " placeholder than {instruction}"
            )
        if "{instruction}" not in self.query.split("{query}")[0]:
            raise InputError(
                f"template {self.name!r}: query is {self.query!r}; expected"
                " {instruction} before {query}"
            )


TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        Template("epic"),
        # Wang et al. 2024 (e5-mistral-7b-instruct) and most instruction embedders after it.
        Template("e5"),
        # Li et al. 2025. The response marker ends every query, with or without demonstrations.
        Template(
            "bge-en-icl",
            query="<instruct>{instruction}\n<query>{query}\n<response>",
            text_demonstration="<instruct>{instruction}\n<query>{query}\n<response>{passage}\n\n",
            vector_demonstration="<instruct>{instruction}\n<query>{query}\n<response>{passage}\n\n",
        ),
        # Zhang et al. 2025: no space after the colon.
        Template("qwen3-embedding", query="Instruct: {instruction}\nQuery:{query}"),
    )
}


def get_template(name: str) -> Template:
    """Return a built-in template by name."""
    try:
        return TEMPLATES[name]
    except KeyError:
        raise InputError(
            f"unknown template {name!r}; expected one of {', '.join(sorted(TEMPLATES))}"
        ) from None


def check_mode(mode: str) -> Mode:
    """Return `mode` if it is one of "epic", "text", "none"; raise InputError otherwise."""
    for known in MODES:
        if mode == known:
            return known
    raise InputError(f"unknown mode {mode!r}; expected one of {', '.join(MODES)}")


def check_demonstrations(task: "Task", mode: Mode) -> None:
    """Raise InputError when `mode` shows demonstrations and the task has none."""
    if mode != "none" and not task.demonstrations:
        raise InputError(
            f"task {task.name!r} has no demonstrations, which mode {mode!r} needs; give it some"
            ' with task.with_demonstrations([...]) or in a task file, or use mode="none"'
        )


def passage_prompt(template: Template) -> Prompt:
    """The prompt of a passage of an asymmetric task; with most templates it is empty."""
    before, after = template.passage.split("{passage}")
    return Prompt((Text(before, markup=True),) if before else (), after)


def query_prompt(
    template: Template,
    task: "Task",
    mode: Mode,
    vectors: "Sequence[Mapping[str, Tensor]]" = (),
) -> Prompt:
    """The prompt of a task's queries (and, in a symmetric task, of its passages).

    Args:
        template: the wording.
        task: instruction and demonstrations.
        mode: what becomes of the demonstrations.
        vectors: for mode "epic", per demonstration the vectors (n, d), n usually 1, of its parts
            that are not text: "query", "passage" or "instruction".

    Raises:
        InputError: mode "text" or "epic" for a task without demonstrations.
    """
    check_demonstrations(task, mode)
    if mode == "none":
        return build_prompt(template, task.instruction)
    if mode == "epic" and len(vectors) != len(task.demonstrations):
        raise InputError(
            f"vectors of {len(vectors)} demonstrations for the {len(task.demonstrations)} of task"
            f" {task.name!r}; expected them for each"
        )
    parts: list[dict[str, Piece]] = []
    for number, one in enumerate(task.demonstrations):
        texts: dict[str, Piece] = {"query": Text(one.query), "passage": Text(one.passage)}
        given = vectors[number] if mode == "epic" else {}
        parts.append(texts | {name: Vectors(values) for name, values in given.items()})
    return build_prompt(template, task.instruction, parts, textual=mode == "text")


def build_prompt(
    template: Template,
    instruction: str,
    demonstrations: Sequence[Mapping[str, Piece]] = (),
    *,
    textual: bool = False,
) -> Prompt:
    """The prompt of an instruction behind these demonstrations, whatever their parts are.

    Args:
        template: the wording.
        instruction: of the task.
        demonstrations: each with what stands for its "query" and "passage" and, where it is not the
            text, its "instruction".
        textual: word them as text (`text_demonstration`).
    """
    pieces: list[Piece] = []
    if demonstrations and not textual:
        pieces += _fill(template.vector_start, instruction, {})
    wording = template.text_demonstration if textual else template.vector_demonstration
    for parts in demonstrations:
        pieces += _fill(wording, instruction, parts)
    before, after = template.query.split("{query}")
    pieces += _fill(before, instruction, {})
    return Prompt(tuple(pieces), after)


def learned_prompt(
    template: Template,
    instruction: str,
    method: "Method",
    tokens: "Tensor",
    count: int | None = None,
) -> Prompt:
    """The prompt of an instruction behind trained vectors (Table 5).

    Args:
        template: the wording.
        instruction: of the task.
        method: whether they stand for demonstrations or before the instruction.
        tokens: (m, d); for demonstrations, those of the first come first.
        count: how many demonstrations to show; None: all that there are vectors for.
    """
    if method.source == "soft-prompt":
        plain = build_prompt(template, instruction)
        return Prompt((Vectors(tokens), *plain.prefix), plain.suffix)
    each = len(method.vectors)
    shown = range(len(tokens) // each if count is None else count)
    rows = [tokens[i * each : (i + 1) * each].split(1) for i in shown]
    return build_prompt(
        template,
        instruction,
        [dict(zip(method.vectors, map(Vectors, row), strict=True)) for row in rows],
    )


def _fill(wording: str, instruction: str, parts: Mapping[str, Piece]) -> Iterator[Piece]:
    known: dict[str, Piece] = {"instruction": Text(instruction), **parts}
    for position, part in enumerate(_PLACEHOLDER.split(wording)):
        if position % 2:
            yield known[part]
        elif part:
            yield Text(part, markup=True)
