"""A BEIR folder as training rows: `corpus.jsonl`, `queries.jsonl` and the judgements of a split.

One row per query with a positive, in the order in which the judgements name queries first: its
positives are the passages judged above 0, its negatives those judged 0 or less, both in the order
of the judgements. A passage is its title, a line break and its text, as an index has it.

The corpus may be larger than memory, and `.gz` files cannot be read at an offset. So files are read
once from front to back, and the texts that judgements name go to a temporary file (in `$TMPDIR`,
gone afterwards); memory holds their offsets and ids alone.

Knows nothing of other formats.
"""

import logging
import math
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

import numpy as np

from epic_retrieval.errors import InputError
from epic_retrieval.index.passage import Passage
from epic_training.data.files import Cells, json_rows, text_lines
from epic_training.data.rows import TrainingRow, check_text

logger = logging.getLogger(__name__)

# Judgements, and the queries they are about. A training split comes first: `qrels.tsv` beside it
# is a test split, which nobody wants to train on.
_SPLITS = (
    ("qrels/train.tsv", ("queries.jsonl",)),
    ("train_qrels.tsv", ("train_queries.jsonl", "queries.jsonl")),
    ("qrels.tsv", ("queries.jsonl",)),
)


@dataclass
class _Judgements:
    """Parallel columns, one entry per judgement; ids are numbered in the order they come up."""

    path: Path
    queries: dict[str, int] = field(default_factory=dict)
    passages: dict[str, int] = field(default_factory=dict)
    query: "array[int]" = field(default_factory=lambda: array("q"))
    passage: "array[int]" = field(default_factory=lambda: array("q"))
    relevant: "array[int]" = field(default_factory=lambda: array("b"))
    line: "array[int]" = field(default_factory=lambda: array("q"))


class _Texts:
    """Texts by number in a temporary file: all are put before the first is read."""

    def __init__(self, file: IO[bytes], count: int) -> None:
        self._file = file
        self._starts = array("q", [-1]) * count
        self._lengths = array("q", [0]) * count
        self._end = 0

    def put(self, number: int, text: str) -> None:
        content = text.encode()
        self._file.write(content)
        self._starts[number], self._lengths[number] = self._end, len(content)
        self._end += len(content)

    def __contains__(self, number: int) -> bool:
        return self._starts[number] >= 0

    def __getitem__(self, number: int) -> str:
        self._file.seek(self._starts[number])
        return self._file.read(self._lengths[number]).decode()


def beir_files(folder: Path) -> tuple[Path, Path, Path]:
    """The corpus, the queries and the judgements that training reads.

    Raises:
        InputError: one of them is missing, or stands there both plain and with `.gz`.
    """
    corpus = _one(folder, "corpus.jsonl")
    for judged, asked in _SPLITS:
        judgements = _one(folder, judged)
        queries = next(filter(None, (_one(folder, name) for name in asked)), None)
        if corpus and judgements and queries:
            return corpus, queries, judgements
    expected = "; ".join(f"{judged} with {' or '.join(asked)}" for judged, asked in _SPLITS)
    raise InputError(
        f"{folder}: no BEIR training data; expected corpus.jsonl and one of: {expected} (each with"
        " or without .gz)"
    )


def beir_rows(folder: Path) -> Iterator[TrainingRow]:
    """The rows of a BEIR folder. Queries without a positive are left out; their number is logged.

    Raises:
        InputError: with file and line: a judgement that names an unknown id or contradicts another,
            an id given twice, a text that is blank or no valid Unicode.
    """
    corpus, queries, qrels = beir_files(folder)
    judged = _read_judgements(qrels)
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as answers:
        texts = _Texts(asked, len(judged.queries))
        _keep(queries, judged.queries, texts, _query_text)
        _check_known(judged, judged.query, list(judged.queries), texts, queries)
        passages = _Texts(answers, len(judged.passages))
        _keep(corpus, judged.passages, passages, _passage_text)
        _check_known(judged, judged.passage, list(judged.passages), passages, corpus)
        yield from _grouped(judged, texts, passages)


def _grouped(judged: _Judgements, texts: _Texts, passages: _Texts) -> Iterator[TrainingRow]:
    numbers = np.asarray(judged.query)
    order = np.argsort(numbers, kind="stable")
    without = 0
    for entries in np.split(order, np.cumsum(np.bincount(numbers))[:-1]) if len(order) else ():
        # A judgement given twice counts once.
        verdicts: dict[int, int] = {}
        for entry in entries.tolist():
            passage, verdict = judged.passage[entry], judged.relevant[entry]
            if verdicts.setdefault(passage, verdict) != verdict:
                raise InputError(
                    f"{judged.path}, line {judged.line[entry]}: contradicts an earlier judgement of"
                    " the same query and passage; remove one of them"
                )
        positives = tuple(passages[number] for number, good in verdicts.items() if good)
        if not positives:
            without += 1
            continue
        negatives = tuple(passages[number] for number, good in verdicts.items() if not good)
        yield TrainingRow(texts[judged.query[entries[0]]], positives, negatives)
    if without:
        logger.warning("%s: left out %d queries without a positive", judged.path, without)


def _read_judgements(path: Path) -> _Judgements:
    judged = _Judgements(path)
    may_be_header = True
    for number, line in text_lines(path):
        if not line.strip():
            continue
        fields = line.rstrip("\r\n").split("\t")
        score = _score(fields[2]) if len(fields) == 3 else None
        if score is not None:
            judged.query.append(judged.queries.setdefault(fields[0], len(judged.queries)))
            judged.passage.append(judged.passages.setdefault(fields[1], len(judged.passages)))
            judged.relevant.append(score > 0)
            judged.line.append(number)
        elif len(fields) != 3 or not may_be_header:
            raise InputError(
                f"{path}, line {number}: {line.strip()[:80]!r}; expected query id, passage id and"
                " a score as a number, with tabs between them"
            )
        may_be_header = False
    return judged


def _score(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _keep(
    path: Path, wanted: dict[str, int], texts: _Texts, text_of: Callable[[str, Cells], str]
) -> None:
    """Put the texts of the ids that are wanted; the others may be anything."""
    for place, cells in json_rows(path):
        try:
            name = _id(cells)
            number = wanted.get(name)
            if number is None:
                continue
            if number in texts:
                raise InputError(
                    f"the id {name!r} stood in an earlier line; give every text its own"
                )
            texts.put(number, text_of(name, cells))
        except InputError as error:
            raise InputError(f"{path}, {place}: {error}") from error.__cause__


def _id(cells: Cells) -> str:
    value = cells.get("_id", cells.get("id"))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f'"_id" is {value!r}; expected a text or a whole number')
    return value


def _query_text(name: str, cells: Cells) -> str:
    check_text(f'"text" of {name!r}', cells.get("text"))
    return cast("str", cells["text"])


def _passage_text(name: str, cells: Cells) -> str:
    text, title = cast("str", cells.get("text")), cast("str", cells.get("title") or "")
    return Passage(name, text, title).content  # checks both


def _check_known(
    judged: _Judgements, numbers: Sequence[int], ids: Sequence[str], texts: _Texts, source: Path
) -> None:
    for line, number in zip(judged.line, numbers, strict=True):
        if number not in texts:
            raise InputError(
                f"{judged.path}, line {line}: {source} has no id {ids[number]!r}; remove the"
                " judgement, or add the text"
            )


def _one(folder: Path, name: str) -> Path | None:
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if len(found) > 1:
        raise InputError(f"{folder} holds both {name} and {name}.gz; remove one of them")
    return found[0] if found else None
