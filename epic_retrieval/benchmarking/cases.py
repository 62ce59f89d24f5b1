"""Tasks, demonstrations and queries of any number and length, made of what there is.

Knows no times; of models only their tokenizer.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from epic_retrieval.errors import InputError
from epic_retrieval.index import Passage
from epic_retrieval.tasks import Demonstration, Task, load_task
from epic_retrieval.tasks.library import icl_tasks

if TYPE_CHECKING:
    from epic_retrieval.tokenization import TextTokenizer

_QUERY_WORDS = 24


def tasks_named(names: Sequence[str], demonstrations: Path | None) -> list[Task]:
    """The tasks to measure, none of them symmetric, since here passages never get a prompt.

    Args:
        names: built-in tasks, files, or, with a folder, the names of its files.
        demonstrations: a folder in bge-en-icl's form, one file of pairs for each MTEB task.

    Raises:
        InputError: an unknown task, or a file that cannot be used.
    """
    if demonstrations is None:
        found = [load_task(name) for name in names]
    else:
        held = icl_tasks(demonstrations)
        for name in names:
            if name not in held:
                raise InputError(
                    f"{demonstrations} has no demonstrations for {name!r}; expected some of"
                    f" {', '.join(held)}"
                )
        found = [held[name] for name in names]
    return [replace(task, symmetric=False) for task in found]


def with_count(task: Task, count: int, passages: Sequence[Passage]) -> Task:
    """The task with so many demonstrations, those that it lacks made of passages."""
    own = task.demonstrations[:count]
    made = _made(passages, own)
    more = [next(made) for _ in range(count - len(own))]
    return task.with_demonstrations([*own, *more])


def with_lengths(
    task: Task, count: int, tokens: int, passages: Sequence[Passage], tokenizer: "TextTokenizer"
) -> Task:
    """The task with demonstrations whose passages have so many tokens each, made of passages."""
    texts = _endless(passages)
    shown = []
    for number in range(count):
        text = text_of_length(texts, tokens, tokenizer)
        query = f"{number + 1} {passages[number % len(passages)].title}".strip()
        shown.append(Demonstration(tokenizer.cut(query, 16), text))
    return task.with_demonstrations(shown)


def text_of_length(texts: Iterator[str], tokens: int, tokenizer: "TextTokenizer") -> str:
    """A text of so many tokens, joined of several where one is too short."""
    text = next(texts)
    while tokenizer.cut(text, tokens) == text:
        text += " " + next(texts)
    return tokenizer.cut(text, tokens)


def queries_of_length(
    count: int, tokens: int, passages: Sequence[Passage], tokenizer: "TextTokenizer"
) -> list[str]:
    """Texts of so many tokens each, prompt and end token apart."""
    texts = _endless(passages)
    return [text_of_length(texts, tokens, tokenizer) for _ in range(count)]


def queries_from(passages: Sequence[Passage], count: int, seed: int) -> list[str]:
    """First lines of passages drawn at random, cut to 3 to 24 words: as short and as long as asked.

    Raises:
        InputError: no passage has a first line.
    """
    generator = np.random.default_rng(seed)
    lines = [line for line in (one.text.strip().partition("\n")[0] for one in passages) if line]
    if not lines:
        raise InputError("no passage has a text to make queries of; give some with --queries")
    chosen = generator.choice(len(lines), size=count, replace=len(lines) < count)
    lengths = generator.integers(3, _QUERY_WORDS + 1, size=count)
    pairs = zip(chosen.tolist(), lengths.tolist(), strict=True)
    return [" ".join(lines[place].split()[:words]) for place, words in pairs]


def spread_out(passages: Sequence[Passage], count: int) -> list[Passage]:
    """So many passages, evenly taken over all of them."""
    step = max(1.0, len(passages) / count)
    return [passages[int(place * step)] for place in range(min(count, len(passages)))]


def read_queries(path: Path) -> list[str]:
    """The lines of a text file that are not blank; of `.jsonl` files, their "text".

    Raises:
        InputError: it cannot be read, or has none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); expected a query on each line"
        ) from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise InputError(f"{path} has no queries; expected one on each line")
    return [_text_of(path, line) for line in found] if path.suffix == ".jsonl" else found


def _text_of(path: Path, line: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f'{path}: {line[:80]!r} is no query; expected lines such as {{"text": "..."}}'
        ) from error
    return str(text)


def _made(passages: Sequence[Passage], taken: Sequence[Demonstration]) -> Iterator[Demonstration]:
    """Demonstrations that ask for a passage by its title, or else by its first words."""
    known = set(taken)
    for one in passages:
        query = one.title.strip() or " ".join(one.text.split()[:8])
        if query and one.text.strip() and (made := Demonstration(query, one.text)) not in known:
            known.add(made)
            yield made
    raise InputError(
        f"{len(passages)} passages are too few to make demonstrations of; ask for fewer, or give"
        " a larger corpus"
    )


def _endless(passages: Sequence[Passage]) -> Iterator[str]:
    texts = [text for text in (" ".join(one.text.split()) for one in passages) if text]
    if not texts:
        raise InputError("no passage has a text; give another corpus")
    while True:
        yield from texts
