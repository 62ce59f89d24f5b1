"""Rows of a table become passages: which column is the id, the text, the title, the rest.

Knows nothing of the file format that the rows came from.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from epic_retrieval.errors import InputError
from epic_retrieval.index._types import converted
from epic_retrieval.index.passage import JSON, Passage, is_blank

# Columns that are surely meant as the id. Where one stands in for "id", numbering the rows
# instead would lose the link to the user's relevance judgements without a word.
_ALMOST_ID = frozenset(
    {"_ID", "ID", "Id", "corpus-id", "corpus_id", "doc_id", "docid", "docno", "document_id"}
    | {"passage_id", "pid", "uid", "uuid"}
)
# Columns of other programs' vectors, where they hold numbers. As metadata they would be a burden.
_VECTORS = frozenset({"emb", "embedding", "embeddings", "vector", "vectors"})


@dataclass(frozen=True)
class Row:
    """One row: where it stands ("line 7"), its number there, and its cells by column name."""

    place: str
    number: int
    cells: Mapping[str, object]


class RowReader:
    """Turns the rows of one file into passages. The first row decides whether rows have ids.

    Args:
        skip_empty: Give None instead of an error for a row whose text and title are blank.
        types: Of columns whose texts stand for something else; as `check_types` wants them.

    Attributes:
        met: The columns with types that were met so far.
        left_out: Those that held vectors so far, which are no metadata.
    """

    def __init__(self, *, skip_empty: bool, types: Mapping[str, str] | None = None) -> None:
        self.met: set[str] = set()
        self.left_out: set[str] = set()
        self._skip_empty = skip_empty
        self._types = types or {}
        self._first: Row | None = None

    def passage(self, row: Row) -> Passage | None:
        """The passage of a row, or None for a blank row that is to be skipped.

        Raises:
            InputError: The row breaks a rule. The message does not name the file.
        """
        first = self._first = self._first or row
        if (_id_column(row) is None) != (_id_column(first) is None):
            fault = 'no "_id" or "id", though {} has one'
            if _id_column(row) is not None:
                fault = 'an id, though {} has none ("_id" or "id")'
            raise InputError(
                f"{fault.format(first.place)}: "
                "give every row an id, or none (then ids are the row numbers)."
            )
        text, title = _text(row), _title(row)
        if self._skip_empty and is_blank(text, title):
            return None
        return Passage(_id(row), text, title, self._metadata(row))

    def _metadata(self, row: Row) -> Mapping[str, JSON]:
        vectors = {name for name in _VECTORS & row.cells.keys() if _is_vector(row.cells[name])}
        self.left_out |= vectors
        found = _metadata(row, vectors)
        if not self._types:
            return found
        self.met |= found.keys() & self._types.keys()
        return converted(found, self._types)


def _id_column(row: Row) -> str | None:
    return next((name for name in ("_id", "id") if name in row.cells), None)


def _id(row: Row) -> str:
    column = _id_column(row)
    if column is None:
        near = sorted(_ALMOST_ID.intersection(row.cells))
        if near:
            raise InputError(
                f'no "_id" or "id", but there is "{near[0]}": rename it to "id" '
                "(or remove it, then ids are the row numbers)."
            )
        return str(row.number)
    value = row.cells[column]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f'"{column}" is {_shown(value)}: expected text or a whole number.')
    return value


def _text(row: Row) -> str:
    if "text" not in row.cells:
        names = ", ".join(f'"{name}"' for name in row.cells) or "nothing"
        raise InputError(f'no "text"; there is {names}: rename the passage\'s column to "text".')
    value = row.cells["text"]
    if not isinstance(value, str):
        raise InputError(f'"text" is {_shown(value)}: expected text.')
    return value


def _title(row: Row) -> str:
    value = row.cells.get("title")
    if value is not None and not isinstance(value, str):
        raise InputError(f'"title" is {_shown(value)}: expected text.')
    return value or ""


def _metadata(row: Row, left_out: set[str]) -> Mapping[str, JSON]:
    known = {"text", "title", _id_column(row), *left_out}
    rest = {name: value for name, value in row.cells.items() if name not in known}
    explicit = rest.get("metadata")
    if isinstance(explicit, Mapping):
        del rest["metadata"]
        twice = sorted(name for name in explicit if name in rest and rest[name] != explicit[name])
        if twice:
            raise InputError(
                f'"{twice[0]}" stands both beside and inside "metadata", with two values: '
                "keep one of them."
            )
        rest.update(explicit)
    # Passage checks that every value is JSON.
    return cast(Mapping[str, JSON], rest)


def _is_vector(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and any(isinstance(item, float) for item in value)
        and all(isinstance(item, int | float) for item in value)
    )


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def rows_of(cells: Iterator[tuple[int, Mapping[str, object]]], word: str) -> Iterator[Row]:
    """Rows from numbered cells; `word` is what a number counts: "line" or "row"."""
    return (Row(f"{word} {number}", number, row) for number, row in cells)
