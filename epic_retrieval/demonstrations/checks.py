"""What looks wrong about a task's demonstrations: repeats, cut texts, remnants, mixed languages.

Needs a tokenizer for lengths and nothing else of a model.
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Final, Literal

from epic_retrieval.demonstrations.similar import Shingles
from epic_retrieval.prompt import TEMPLATES, Prompt, query_prompt
from epic_retrieval.tasks import Task

if TYPE_CHECKING:
    from epic_retrieval.checkpoint_config import EpicConfig
    from epic_retrieval.tokenization import TextTokenizer

Severity = Literal["warning", "note"]

_TAG: Final = re.compile(r"</?[a-z][a-z0-9]*(?:\s[^<>]*)?/?>", re.IGNORECASE)
_ENTITY: Final = re.compile(r"&(?:#\d+|#x[0-9a-f]+|[a-z]{2,8});", re.IGNORECASE)
# UTF-8 that was read as Latin-1: what "é", "’" and "“" turn into.
_MOJIBAKE: Final = re.compile(r"Ã[\x80-\xbf\u0192-\u2122]|â€|Â[\xa0-\xbf]")
_UNEVEN = 30  # how many times as long as the shortest text of a kind the longest may be


@dataclass(frozen=True)
class Finding:
    """Something to look at; `where` is "demonstration 2, passage" or the like."""

    severity: Severity
    where: str
    message: str


def check_task(
    task: Task,
    tokenizer: "TextTokenizer | None" = None,
    config: "EpicConfig | None" = None,
    max_positions: int | None = None,
) -> list[Finding]:
    """Findings about a task's demonstrations, in their order.

    Args:
        task: what to check.
        tokenizer: of the model that will read them, for lengths; None checks no lengths.
        config: that model's; goes with `tokenizer`.
        max_positions: of that model; None: the prompt's length is not checked.
    """
    if not task.demonstrations:
        return [Finding("note", "task", "no demonstrations: the instruction alone is used")]
    found = [*_repeats(task), *_oddities(task), *_mixed(task)]
    if tokenizer is not None and config is not None:
        found += _lengths(task, tokenizer, config)
        if max_positions is not None:
            found += _room(task, tokenizer, config, max_positions)
    return found


def _texts(task: Task) -> Iterator[tuple[str, str]]:
    for number, one in enumerate(task.demonstrations, start=1):
        for part, text in one.to_dict().items():
            yield f"demonstration {number}, {part}", text


def _repeats(task: Task) -> Iterator[Finding]:
    shingles = [Shingles.of(one.query) for one in task.demonstrations]
    for first, second in combinations(range(len(shingles)), 2):
        if found := shingles[first].compare(shingles[second]):
            how = "the same" if found[0] == "exact" else "almost the same"
            message = f"{how} query as demonstration {first + 1}; it shows nothing new"
            yield Finding("warning", f"demonstration {second + 1}", message)
    for number, one in enumerate(task.demonstrations, start=1):
        if Shingles.of(one.query).text == Shingles.of(one.passage).text:
            message = "query and passage are the same; the task shows no more than copying"
            yield Finding("warning", f"demonstration {number}", message)


def _oddities(task: Task) -> Iterator[Finding]:
    markers = {
        part.strip()
        for template in TEMPLATES.values()
        for part in re.findall(r"<\w+>|\w+:", template.query + template.text_demonstration)
    }
    for where, text in _texts(task):
        if not any(map(str.isalnum, text)):
            yield Finding("warning", where, "neither a letter nor a digit")
        if "\ufffd" in text or _MOJIBAKE.search(text):
            yield Finding("warning", where, "characters that were decoded wrongly; read it again")
        if any(unicodedata.category(sign) == "Cc" and sign not in "\n\r\t" for sign in text):
            yield Finding("warning", where, "control characters; remove them")
        if marker := next((one for one in markers if text.lstrip().startswith(one)), None):
            message = f"begins with {marker!r}, which the template adds itself; remove it"
            yield Finding("warning", where, message)
        elif _TAG.search(text) or any(html.unescape(one) != one for one in _ENTITY.findall(text)):
            yield Finding("note", where, "markup of a web page; fine if all passages have it")
        if text != text.strip():
            yield Finding("note", where, "white space at an end; it becomes part of the prompt")


def _mixed(task: Task) -> Iterator[Finding]:
    """Scripts and lengths that differ between demonstrations."""
    for part in ("query", "passage"):
        texts = [getattr(one, part) for one in task.demonstrations]
        scripts = Counter(filter(None, map(script_of, texts)))
        if len(scripts) > 1:
            usual = scripts.most_common(1)[0][0]
            odd = [n for n, text in enumerate(texts, 1) if script_of(text) not in {usual, None}]
            message = f"{part} not in {usual} script, as most are; fine if the test mixes languages"
            for number in odd:
                yield Finding("note", f"demonstration {number}", message)
        shortest, longest = min(map(len, texts)), max(map(len, texts))
        if longest > shortest * _UNEVEN:
            message = (
                f"{part} texts have from {shortest} to {longest} characters; are all of a kind?"
            )
            yield Finding("note", "demonstrations", message)


def script_of(text: str) -> str | None:
    """The script of most letters, by the first word of their Unicode names ("latin", "cjk")."""
    names = Counter(
        unicodedata.name(sign, "UNKNOWN").split()[0].lower() for sign in text if sign.isalpha()
    )
    return names.most_common(1)[0][0] if names else None


def _lengths(task: Task, tokenizer: "TextTokenizer", config: "EpicConfig") -> Iterator[Finding]:
    for where, text in _texts(task):
        if tokenizer.cut(text, config.max_length - 1) != text:
            [ids] = tokenizer.text_ids([text], Prompt(), 1 << 30)
            message = (
                f"{len(ids)} tokens; as vectors, what follows the first {config.max_length} is lost"
            )
            yield Finding("warning", where, message)


def _room(
    task: Task, tokenizer: "TextTokenizer", config: "EpicConfig", positions: int
) -> Iterator[Finding]:
    length = len(tokenizer.start_ids(query_prompt(config.template, task, "text")))
    if length + config.max_length > positions:
        message = (
            f"as text they take {length} tokens; with texts of {config.max_length} that is more"
            f" than the model's {positions} positions: mode text is not possible"
        )
        yield Finding("warning", "demonstrations", message)
