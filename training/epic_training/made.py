"""Training texts that the project makes itself: documentation and code at hand, bent sentences.

Small models learn from a teacher what they are shown, so rare kinds of text are made: longer ones
of neighbouring passages, and pairs of sentences that share most words and differ in meaning (words
replaced, moved, left out, joined with another sentence). What each then means, the teacher says.
Knows nothing of models.
"""

import ast
import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from epic_retrieval.errors import InputError
from epic_retrieval.stdlib_docs import (
    stdlib_definitions,
    stdlib_passages,
    summary,
    words_of,
)
from epic_retrieval.storage import write_atomically
from epic_training.pairs import Pair

_QUESTIONS = (
    "{}",
    "how do I {}",
    "how to {} in python",
    "python {}",
    "I want to {}",
    "function to {}",
)
_MOST_CODE = 800  # characters of a function
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\s*\n")
_FEWEST_WORDS, _MOST_WORDS = 5, 40  # of a sentence
_SHORTEST, _LONGEST = 300, 1100  # characters of texts put together
_TRIES = 5
WRITTEN = Path(__file__).parents[1] / "written"  # in the repository, not in the package
_RULES = ("replaced", "moved", "shortened", "joined")
_FELLOWS = 3  # of a label, that a text is put together with
_RARE = 2  # words that occur less often are left out of the lexicon: mostly typing errors and codes


def data_folders(config: Mapping[str, Any], data: Path, out: Path) -> dict[str, Path]:
    """Where each data set of a configuration lies; those that are made are made on first use.

    Args:
        config: of the whole training; a data set with `made: NAME` is made by us.
        data: folder of the others.
        out: of the training; `made/` in it holds what is made.
    """
    folders = {}
    for name, settings in config["data"].items():
        maker = settings.get("made")
        folders[name] = data / name if maker is None else out / "made" / name
        if maker is not None and not (folders[name] / "meta.json").is_file():
            if maker not in MAKERS:
                raise InputError(
                    f"data set {name}: made is {maker!r}; expected {', '.join(MAKERS)}"
                )
            pairs, licence = MAKERS[maker]
            _write(folders[name], list(pairs(name)), licence)
    return folders


def stdlib_pairs(stdlib: Path | None = None) -> Iterator[Pair]:
    """What a docstring begins with, as it is and as a question, or a name's words; and its passage.

    Args:
        stdlib: folder of sources; this interpreter's standard library by default.
    """
    for passage in stdlib_passages(stdlib):
        first, *rest = _SENTENCE_END.split(passage.text.strip(), maxsplit=1)
        if len(first.split()) >= _FEWEST_WORDS:
            sentence = " ".join(first.split())
            yield Pair(sentence, f"{passage.title}\n{rest[0] if rest else first}")
            yield Pair(asked(sentence), summary(passage).content)
        words = words_of(".".join(passage.id.split(".")[-2:]))
        yield Pair(words, f"{passage.title}\n{passage.text}")


def asked(sentence: str) -> str:
    """What somebody might type who needs the function that a sentence describes."""
    start, _, rest = sentence.rstrip(".").partition(" ")
    verb = start.lower()
    if verb in {"return", "returns"}:
        verb = "get"
    elif verb.endswith("s") and not verb.endswith("ss"):
        verb = verb.removesuffix("s")
    digest = hashlib.blake2b(sentence.encode(), digest_size=1).digest()[0]
    return _QUESTIONS[digest % len(_QUESTIONS)].format(f"{verb} {rest}")


def code_pairs(stdlib: Path | None = None) -> Iterator[Pair]:
    """The first sentence of a function's docstring, or its name's words; and its code without it.

    Args:
        stdlib: as in `stdlib_pairs`.
    """
    seen: set[str] = set()
    for name, node in stdlib_definitions(stdlib):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        documentation = ast.get_docstring(node)
        body = node.body[1:] if documentation else node.body
        if all(isinstance(one, ast.Pass | ast.Raise | ast.Expr) for one in body):
            continue  # nothing to see, or only a call of another function
        node.body = body
        code = ast.unparse(node)[:_MOST_CODE]
        query = _SENTENCE_END.split((documentation or "").strip(), maxsplit=1)[0]
        if len(query.split()) < _FEWEST_WORDS:
            query = words_of(".".join(name.split(".")[-2:]))
        if code not in seen:
            seen.add(code)
            yield Pair(" ".join(query.split()), code)


def question_pairs(stdlib: Path | None = None) -> Iterator[Pair]:
    """Questions that were written for passages of `epic demo`, and the passages.

    In an order that is random but always the same, so that the first of them are a sample.

    Args:
        stdlib: as in `stdlib_pairs`; questions on what it lacks are left out.
    """
    passages = {one.id: one.content for one in map(summary, stdlib_passages(stdlib))}
    rows = list(_written("stdlib_questions", 2, 2))
    for i in np.random.default_rng(len(rows)).permutation(len(rows)):
        name, question = rows[i]
        if name in passages:
            yield Pair(question, passages[name])


def written_pairs(name: str) -> Iterator[Pair]:
    """Texts that were written as query and passage, and perhaps a near miss: `written/NAME.tsv`."""
    for row in _written(name, 2, 3):
        yield Pair(*row)


def function_pairs(name: str) -> Iterator[Pair]:
    """As `written_pairs`, of code: backslash and n stand for the end of a line."""
    for row in _written(name, 2, 3):
        yield Pair(*(text.replace("\\n", "\n") for text in row))


def group_pairs(name: str) -> Iterator[Pair]:
    """Texts that were written for a label: `written/NAME.tsv`, label and text.

    Each stands with `_FELLOWS` others of its label, as far as there are so many, and with a text of
    another label as what does not belong to it. In an order that is random but always the same.
    """
    groups: dict[str, list[str]] = {}
    for label, text in _written(name, 2, 2):
        groups.setdefault(label, []).append(text)
    rng = np.random.default_rng(len(groups))
    others = {one: [text for two in groups if two != one for text in groups[two]] for one in groups}
    rows = []
    for label, texts in groups.items():
        ring = [texts[i] for i in rng.permutation(len(texts))]
        for apart in range(1, min(_FELLOWS, len(ring) - 1) + 1):
            for text, fellow in zip(ring, ring[apart:] + ring[:apart], strict=True):
                strange = others[label]
                rows.append(Pair(text, fellow, strange[int(rng.integers(len(strange)))]))
    yield from (rows[i] for i in rng.permutation(len(rows)))


def _written(name: str, fewest: int, most: int) -> Iterator[list[str]]:
    """The fields of each line of a file in `written`.

    Raises:
        InputError: with file and line, for another number of fields or an empty one.
    """
    file = WRITTEN / f"{name}.tsv"
    if not file.is_file():
        raise InputError(f"{file} is missing; written texts are in the project's repository only")
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        fields = [field.strip() for field in line.split("\t")]
        if not (fewest <= len(fields) <= most and all(fields)):
            raise InputError(
                f"{file}, line {number}: {len(fields)} fields; expected {fewest} to {most} with"
                " one tab between two, none empty"
            )
        yield fields


# By the name of the data set.
MAKERS: dict[str, tuple[Callable[[str], Iterator[Pair]], str]] = {
    "stdlib": (
        lambda _: stdlib_pairs(),
        "PSF-2.0 (docstrings of the standard library that trains it)",
    ),
    "stdlib-code": (
        lambda _: code_pairs(),
        "PSF-2.0 (functions of the standard library that trains it)",
    ),
    "stdlib-questions": (
        lambda _: question_pairs(),
        "Apache-2.0 (questions of this project) and PSF-2.0 (docstrings)",
    ),
    "written": (written_pairs, "Apache-2.0 (texts of this project)"),
    "functions": (function_pairs, "Apache-2.0 (functions of this project)"),
    "groups": (group_pairs, "Apache-2.0 (texts of this project)"),
}


def _write(folder: Path, pairs: Sequence[Pair], licence: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "pairs.jsonl.gz", "wt", encoding="utf-8") as file:
        for pair in pairs:
            row = {"query": pair.query, "positive": pair.positive, "negative": pair.negative}
            row = {column: text for column, text in row.items() if text}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    meta = {"pairs": len(pairs), "licence": licence}
    write_atomically(folder / "meta.json", json.dumps(meta).encode())


def sentences(texts: Sequence[str]) -> Iterator[str]:
    """The sentences of 5 to 40 words of texts that have more than one."""
    for text in texts:
        found = _SENTENCE_END.split(text)
        if len(found) > 1:
            for one in found:
                sentence = " ".join(one.split())
                if _FEWEST_WORDS <= len(sentence.split()) <= _MOST_WORDS:
                    yield sentence


def joined(texts: Iterable[str]) -> Iterator[str]:
    """Neighbours of a collection put together to texts of 300 to 1,100 characters.

    Args:
        texts: in the collection's order, in which neighbours often are of one document; equal ones
            that follow each other count once.
    """
    parts: list[str] = []
    wanted, last = 0, ""
    for text in texts:
        if text == last:
            continue
        last = text
        if not parts:
            draw = hashlib.blake2b(text.encode(), digest_size=2).digest()
            wanted = _SHORTEST + int.from_bytes(draw, "big") % (_LONGEST - _SHORTEST)
        parts.append(" ".join(text.split()))
        together = " ".join(parts)
        if len(together) >= wanted:
            yield together[:_LONGEST]
            parts = []


def families(texts: Sequence[str], count: int, variants: int) -> list[str]:
    """Texts in blocks of 1 + `variants`: a sentence and what was made of it, or unrelated texts.

    Args:
        texts: each once, in any order; their contents alone decide every draw.
        count: families, as far as there are sentences of a fitting length.
        variants: made of each.

    Returns:
        Blocks in an order like that of `texts`; texts that fill no block are left out.
    """
    size = 1 + variants
    lexicon = _lexicon(texts)
    parents = [text for text in texts if _FEWEST_WORDS <= len(text.split()) <= _MOST_WORDS][:count]
    chosen = set(parents)
    others = [text for text in texts if text not in chosen]
    blocks = [
        [parent, *bent(parent, parents[number - 1], lexicon, variants)]
        for number, parent in enumerate(parents)
    ]
    blocks += [others[i : i + size] for i in range(0, len(others) - size + 1, size)]
    order = np.random.default_rng(len(texts)).permutation(len(blocks))
    return [text for i in order for text in blocks[int(i)]]


def _lexicon(texts: Sequence[str]) -> list[str]:
    """Words of letters that occur in at least two texts, in alphabetical order."""
    counts = Counter(word for text in texts for word in set(text.lower().split()))
    return sorted(word for word, n in counts.items() if n >= _RARE and word.isalpha())


def bent(text: str, other: str, lexicon: Sequence[str], count: int) -> list[str]:
    """`count` different sentences made of one.

    Args:
        text: the sentence; it decides all draws.
        other: what it may be joined with.
        lexicon: what words are replaced by; empty: words of `other` are taken.
        count: how many.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    words, foreign = text.split(), other.split()
    found: list[str] = []
    for number in range(count * _TRIES):
        if len(found) == count:
            break
        rule = _RULES[(number + int(digest[0])) % len(_RULES)]
        made = " ".join(_changed(rule, list(words), foreign, lexicon or foreign, rng))
        if made and made != " ".join(words) and made not in found:
            found.append(made)
    # A text of one repeated word can run out of variants; it then stands for itself.
    return found + [text] * (count - len(found))


def _changed(
    rule: str,
    words: list[str],
    foreign: Sequence[str],
    lexicon: Sequence[str],
    rng: np.random.Generator,
) -> list[str]:
    """The words of a sentence after one rule."""
    match rule:
        case "replaced":
            places = rng.choice(len(words), size=1 + int(len(words) > 8), replace=False)
            for place in places:
                words[int(place)] = lexicon[int(rng.integers(len(lexicon)))]
            return words
        case "moved":  # two words change places: who does what to whom
            a, b = (int(i) for i in rng.choice(len(words), size=2, replace=False))
            words[a], words[b] = words[b], words[a]
            return words
        case "shortened":
            kept = rng.random(len(words)) >= 0.3
            return [word for word, keep in zip(words, kept, strict=True) if keep]
        case _:  # joined: one half of each
            half, other = len(words) // 2, len(foreign) // 2
            if rng.random() < 0.5:
                return [*words[:half], *foreign[other:]]
            return [*foreign[:other], *words[half:]]
