"""Reads the files of a local evaluation set, and says where one breaks a rule.

Knows nothing of mteb or models: what comes out is plain lists.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from epic_retrieval.errors import InputError
from epic_retrieval.index._tables import jsonl_cells, text_lines

_LINE_BYTES = 64 * 2**20
ENDINGS = (".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class Reranking:
    """A query with the passages to be ranked for it."""

    query: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


def file_of(folder: Path, name: str, *endings: str) -> Path | None:
    """The file of this name with one of the endings, `.gz` or not; None when there is none."""
    for ending in endings:
        for path in (folder / f"{name}{ending}", folder / f"{name}{ending}.gz"):
            if path.is_file():
                return path
    return None


def split_names(folder: Path) -> dict[str, Path]:
    """Files by what stands before their endings: the splits of a set that has a file for each."""
    found = {}
    for path in sorted(folder.iterdir()):
        ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), None)
        if ending and path.is_file():
            found[path.name.removesuffix(ending)] = path
    return found


def read_queries(path: Path) -> dict[str, str]:
    """Texts by id, of JSON Lines with `_id` (or `id`) and `text`."""
    queries: dict[str, str] = {}
    for number, row in jsonl_cells(path, _LINE_BYTES):
        name = row.get("_id", row.get("id"))
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise InputError(f'{path}, line {number}: no "_id"; every query needs one, a text')
        text = _text(row.get("text"), path, number, '"text"')
        if str(name) in queries:
            raise InputError(f'{path}, line {number}: the id "{name}" stands twice')
        queries[str(name)] = text
    return queries


def read_judgements(path: Path) -> dict[str, dict[str, int]]:
    """Grades by query and passage, of lines `query<TAB>passage<TAB>grade`, with a header or not."""
    grades: dict[str, dict[str, int]] = {}
    for number, (query, passage, grade) in _rows(path, 3, "query, passage and grade"):
        try:
            value = int(grade)
        except ValueError:
            if number == 1:
                continue
            raise InputError(
                f"{path}, line {number}: the grade is {grade!r}; expected a whole number"
            ) from None
        grades.setdefault(query, {})[passage] = value
    if not grades:
        raise InputError(f"{path}: no judgements; expected lines of query, passage and grade")
    return grades


def read_rerankings(path: Path) -> list[Reranking]:
    """JSON Lines with `query`, `positive` and `negative`, the latter two lists of texts."""
    rows = []
    for number, row in jsonl_cells(path, _LINE_BYTES):
        query = _text(row.get("query"), path, number, '"query"')
        sides = []
        for side in ("positive", "negative"):
            texts = row.get(side)
            if not isinstance(texts, list):
                raise InputError(f'{path}, line {number}: "{side}" is no list of texts')
            sides.append(tuple(_text(text, path, number, f'"{side}"') for text in texts))
        rows.append(Reranking(query, *sides))
    return rows


def read_scored_pairs(path: Path) -> list[tuple[float, str, str]]:
    """Lines `score<TAB>text<TAB>text`; the score is any finite number."""
    rows = []
    for number, (score, first, second) in _rows(path, 3, "score and two texts"):
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f"{path}, line {number}: {score!r} is no score; expected a number")
        one, other = _texts((first, second), path, number)
        rows.append((value, one, other))
    if len({value for value, *_ in rows}) < 2:
        raise InputError(f"{path}: all scores are equal, or there are none: nothing to correlate")
    return rows


def read_labelled_pairs(path: Path) -> list[tuple[int, str, str]]:
    """Lines `label<TAB>text<TAB>text`; the label is 1 where the texts belong together, else 0."""
    rows = []
    for number, (label, first, second) in _rows(path, 3, "label and two texts"):
        if label not in {"0", "1"}:
            raise InputError(f"{path}, line {number}: the label is {label!r}; expected 0 or 1")
        one, other = _texts((first, second), path, number)
        rows.append((int(label), one, other))
    _check_variety(path, {label for label, *_ in rows})
    return rows


def read_labelled(path: Path) -> list[tuple[str, str]]:
    """Lines `label<TAB>text`; labels are names."""
    rows = []
    for number, (label, text) in _rows(path, 2, "label and text"):
        if not label.strip():
            raise InputError(f"{path}, line {number}: the label is blank")
        rows.append((label, _text(text, path, number, "the text")))
    _check_variety(path, {label for label, _ in rows})
    return rows


def form_of(path: Path) -> str:
    """What a tsv file holds: "scored pairs", "labelled pairs" or "labelled" single texts."""
    marks = set()
    fields = 0
    for _, line in text_lines(path, _LINE_BYTES):
        cells = line.rstrip("\r\n").split("\t")
        fields = fields or len(cells)
        marks.add(cells[0])
    if fields == 2:
        return "labelled"
    if fields == 3:
        return "labelled pairs" if marks <= {"0", "1"} else "scored pairs"
    raise InputError(f"{path}: expected lines of two or three fields with tabs between them")


def _rows(path: Path, fields: int, meaning: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in text_lines(path, _LINE_BYTES):
        cells = line.rstrip("\r\n").split("\t")
        if cells == [""]:
            continue
        if len(cells) != fields:
            raise InputError(
                f"{path}, line {number}: {len(cells)} fields; expected {fields} with tabs between"
                f" them: {meaning}"
            )
        yield number, cells


def _text(value: object, path: Path, number: int, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(
            f"{path}, line {number}: {field} is {'blank' if isinstance(value, str) else 'no text'};"
            " give it one, or remove the line"
        )
    return value


def _texts(texts: Iterable[str], path: Path, number: int) -> Iterator[str]:
    return (_text(text, path, number, "a text") for text in texts)


def _check_variety(path: Path, labels: Iterable[object]) -> None:
    if len(set(labels)) < 2:
        raise InputError(f"{path}: fewer than two different labels; expected at least two")


def check_known(path: Path, kind: str, names: Iterable[str], known: Mapping[str, object]) -> None:
    """Refuse judgements of queries or passages that are not there.

    Raises:
        InputError: naming the first of them.
    """
    missing = [name for name in names if name not in known]
    if missing:
        raise InputError(
            f'{path}: judges {len(missing):,} {kind} that are not there, such as "{missing[0]}";'
            " remove these lines, or complete the set"
        )
