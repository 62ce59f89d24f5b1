"""Training texts that the project makes itself, of the documentation and the code at hand.

Knows nothing of models.
"""

import ast
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from epic_retrieval.errors import InputError
from epic_retrieval.stdlib_docs import (
    stdlib_definitions,
    stdlib_passages,
    stdlib_summaries,
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
            _write(folders[name], list(pairs()), licence)
    return folders


def stdlib_pairs(stdlib: Path | None = None) -> Iterator[Pair]:
    """What a docstring begins with, as it is and as a question, or a name's words; and its passage.

    Args:
        stdlib: folder of sources; this interpreter's standard library by default.
    """
    for passage, summary in zip(stdlib_passages(stdlib), stdlib_summaries(stdlib), strict=True):
        first, *rest = _SENTENCE_END.split(passage.text.strip(), maxsplit=1)
        if len(first.split()) >= _FEWEST_WORDS:
            sentence = " ".join(first.split())
            yield Pair(sentence, f"{passage.title}\n{rest[0] if rest else first}")
            yield Pair(asked(sentence), f"{summary.title}\n{summary.text}")
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


MAKERS: dict[str, tuple[Callable[[], Iterator[Pair]], str]] = {
    "stdlib": (stdlib_pairs, "PSF-2.0 (docstrings of the standard library that trains it)"),
    "stdlib-code": (code_pairs, "PSF-2.0 (functions of the standard library that trains it)"),
}


def _write(folder: Path, pairs: Sequence[Pair], licence: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "pairs.jsonl.gz", "wt", encoding="utf-8") as file:
        for pair in pairs:
            row = {"query": pair.query, "positive": pair.positive}
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
