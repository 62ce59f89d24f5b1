"""Which column of a row is the query, a positive, a negative: one function per kind of row.

Columns that no training set of that kind has are ignored (an id, a source), except where they look
like a misspelt one: hard negatives that nobody reads would be lost without a word.

Knows nothing of files.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Literal, cast

from epic_retrieval.errors import InputError
from epic_training.data.files import Cells
from epic_training.data.rows import TrainingRow

RowKind = Literal["pairs", "flagembedding", "triplets"]

_QUERY = ("anchor", "query", "sentence1", "question")
_POSITIVE = ("positive", "sentence2", "answer", "response")
_NUMBERED = re.compile(r"negative_([0-9]+)")
# Beside a second sentence these say whether it is a positive at all.
_JUDGED = ("label", "labels", "score", "scores")
_FLAGEMBEDDING = ("query", "pos", "neg", "pos_scores", "neg_scores", "prompt", "type")
# Columns that one kind of row has and the other would pass over.
_FOREIGN = {
    "pairs": {"pos", "neg", "positives", "negatives"},
    "flagembedding": {"positive", "negative", "positives", "negatives"},
    "triplets": {"pos", "neg", "positives", "negatives"},
}
_EXPECTED = {
    "pairs": '"query", "positive" and, optionally, "negative" (a text or a list)',
    "flagembedding": '"query", "pos" (a list) and, optionally, "neg", "pos_scores", "neg_scores",'
    ' "prompt" and "type"',
    "triplets": f"one of {', '.join(_QUERY)}; one of {', '.join(_POSITIVE)}; and, optionally,"
    " negative, negative_1, negative_2, ...",
}


def is_read(column: str) -> bool:
    """Whether some kind of row looks at this column."""
    known = {"negative", *_QUERY, *_POSITIVE, *_JUDGED, *_FLAGEMBEDDING}.union(*_FOREIGN.values())
    return column in known or _NUMBERED.fullmatch(column) is not None


def kind_of(columns: Iterable[str]) -> RowKind:
    """The kind of row that has these columns; "triplets" where none of them says otherwise."""
    names = set(columns)
    if "pos" in names:
        return "flagembedding"
    numbered = any(_NUMBERED.fullmatch(name) for name in names)
    return "pairs" if {"query", "positive"} <= names and not numbered else "triplets"


def row_of(cells: Cells, kind: RowKind) -> TrainingRow:
    """The training row that a row of cells is.

    Raises:
        InputError: a missing or misspelt column, or whatever `TrainingRow` refuses. The message
            names no file.
    """
    check_columns(kind, tuple(cells))
    return _READERS[kind](cells)


def _pair(cells: Cells) -> TrainingRow:
    query, positives = cells["query"], _as_given(cells["positive"])
    return TrainingRow(
        cast("str", query), positives, _as_given(cells.get("negative"), may_lack=True)
    )


def _flagembedding(cells: Cells) -> TrainingRow:
    def listed(name: str) -> tuple[str, ...]:
        return cast("tuple[str, ...]", () if cells.get(name) is None else cells[name])

    return TrainingRow(
        cast("str", cells["query"]),
        cast("tuple[str, ...]", cells["pos"]),
        listed("neg"),
        cast("tuple[float, ...]", listed("pos_scores")),
        cast("tuple[float, ...]", listed("neg_scores")),
        # FlagEmbedding writes "" where there is none.
        cast("str | None", cells.get("prompt") or None),
        cast("str | None", cells.get("type") or None),
    )


def _triplet(cells: Cells) -> TrainingRow:
    query, positive, negatives = _triplet_columns(tuple(cells))
    found = (_as_given(cells[name], may_lack=True) for name in negatives)
    return TrainingRow(
        cast("str", cells[query]),
        _as_given(cells[positive]),
        tuple(text for texts in found for text in texts),
    )


_READERS: dict[RowKind, Callable[[Cells], TrainingRow]] = {
    "pairs": _pair,
    "flagembedding": _flagembedding,
    "triplets": _triplet,
}


def _as_given(value: object, *, may_lack: bool = False) -> tuple[str, ...]:
    """A text or a list of them as a tuple. An optional one may be null or "", meaning none."""
    if may_lack and (value is None or value == ""):
        return ()
    if isinstance(value, list | tuple):
        return tuple(value)
    return (cast("str", value),)  # TrainingRow checks the type


@lru_cache(maxsize=64)
def check_columns(kind: RowKind, columns: tuple[str, ...]) -> None:
    """Raise InputError when rows with these columns cannot be of this kind."""
    needed = {"pairs": ("query", "positive"), "flagembedding": ("query", "pos")}.get(kind, ())
    missing = [name for name in needed if name not in columns]
    foreign = sorted(_FOREIGN[kind].intersection(columns))
    if kind == "pairs":
        foreign += [name for name in columns if _NUMBERED.fullmatch(name)]
    if missing or foreign:
        fault = f'no "{missing[0]}"' if missing else f'"{foreign[0]}" would not be read'
        raise InputError(f"{fault}; {_has(columns)}; format {kind!r} expects {_EXPECTED[kind]}")
    if kind == "triplets":
        _triplet_columns(columns)


@lru_cache(maxsize=64)
def _triplet_columns(columns: tuple[str, ...]) -> tuple[str, str, list[str]]:
    found = []
    for word, names in (("query", _QUERY), ("positive", _POSITIVE)):
        here = [name for name in names if name in columns]
        if len(here) != 1:
            fault = f"both {here[0]!r} and {here[1]!r}" if here else "no column"
            raise InputError(
                f"{fault} for the {word}; {_has(columns)}; format 'triplets' expects"
                f" {_EXPECTED['triplets']}: rename or remove columns"
            )
        found.append(here[0])
    judged = [name for name in _JUDGED if name in columns]
    if judged and found[1] != "positive":
        raise InputError(
            f"{judged[0]!r} may say that {found[1]!r} is no positive; keep the rows whose"
            f" {found[1]!r} is one, and remove the column or rename {found[1]!r} to 'positive'"
        )
    numbered = sorted(
        (name for name in columns if _NUMBERED.fullmatch(name)), key=lambda name: int(name[9:])
    )
    return found[0], found[1], [name for name in ("negative",) if name in columns] + numbered


def _has(columns: tuple[str, ...]) -> str:
    return f"the row has {', '.join(columns[:12]) or 'no columns'}"
