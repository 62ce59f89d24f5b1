"""A prompt is a sequence of pieces, each piece text or vectors; templates say in which order.

Plain instructions, textual in-context learning and EPIC differ in their pieces and in nothing else:

    none   I                              before the query's own text
    text   I Q_1 P_1 ... I Q_k P_k I      demonstrations as text (bge-en-icl)
    epic   I q_1 p_1 ... I q_k p_k I      demonstrations as two vectors each (EPIC, Eq. 3 and 4)

Knows no model and no tokenizer.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from epic_retrieval.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

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
        vector_demonstration: the same where {query} and {passage} become one vector each.
        passage: a passage of an asymmetric task.
    """

    name: str
    query: str = "Instruct: {instruction}\nQuery: {query}"
    text_demonstration: str = "Instruct: {instruction}\nQuery: {query}\nPassage: {passage}\n\n"
    vector_demonstration: str = "Instruct: {instruction}\nQuery: {query}{passage}\n\n"
    passage: str = "{passage}"

    def __post_init__(self) -> None:
        for field, needed in (
            ("query", ["query"]),
            ("text_demonstration", ["query", "passage"]),
            ("vector_demonstration", ["query", "passage"]),
            ("passage", ["passage"]),
        ):
            found = _PLACEHOLDER.findall(getattr(self, field))
            if [name for name in found if name != "instruction"] != needed:
                raise InputError(
                    f"template {self.name!r}: {field} is {getattr(self, field)!r}; expected"
                    f" {' and '.join('{' + name + '}' for name in needed)} once each, in this order"
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
    vectors: "Sequence[tuple[Tensor, Tensor]]" = (),
) -> Prompt:
    """The prompt of a task's queries (and, in a symmetric task, of its passages).

    Args:
        template: the wording.
        task: instruction and demonstrations.
        mode: what becomes of the demonstrations.
        vectors: for mode "epic", per demonstration (q_i, p_i), each of shape (n, d), n usually 1.

    Raises:
        InputError: mode "text" or "epic" for a task without demonstrations.
    """
    check_demonstrations(task, mode)
    pieces: list[Piece] = []
    if mode == "text":
        for shown in task.demonstrations:
            fill: dict[str, Piece] = {"query": Text(shown.query), "passage": Text(shown.passage)}
            pieces += _fill(template.text_demonstration, task.instruction, fill)
    elif mode == "epic":
        if len(vectors) != len(task.demonstrations):
            raise InputError(
                f"{len(vectors)} vector pairs for {len(task.demonstrations)} demonstrations of task"
                f" {task.name!r}; expected one pair each"
            )
        for query, passage in vectors:
            fill = {"query": Vectors(query), "passage": Vectors(passage)}
            pieces += _fill(template.vector_demonstration, task.instruction, fill)
    before, after = template.query.split("{query}")
    pieces += _fill(before, task.instruction, {})
    return Prompt(tuple(pieces), after)


def _fill(wording: str, instruction: str, fill: dict[str, Piece]) -> Iterator[Piece]:
    for position, part in enumerate(_PLACEHOLDER.split(wording)):
        if position % 2:
            yield Text(instruction) if part == "instruction" else fill[part]
        elif part:
            yield Text(part, markup=True)
