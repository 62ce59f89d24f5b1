"""Passages in an SQLite file, where a row's number is the number of its vector.

Knows nothing of vectors or FAISS.
"""

import functools
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._connections import Connections
from epic_retrieval.index._fields import FieldsReader, FieldsWriter, Form, Mask
from epic_retrieval.index.passage import Passage, stored_passage
from epic_retrieval.index.where import ID, Condition, evaluate, mask

_SCHEMA = """
CREATE TABLE passages (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL,
    text TEXT NOT NULL,
    metadata TEXT NOT NULL
)
"""


def _refused(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


# Made once: json.dumps makes one for each call. Mappings may be others than dicts.
_JSON = json.JSONEncoder(allow_nan=False, default=dict)
# NaN and infinities are no JSON; stores hold none.
_DECODED = json.JSONDecoder(parse_constant=_refused).raw_decode
_COLUMNS = "row, id, title, text, metadata"
_ONE = f"SELECT {_COLUMNS} FROM passages WHERE row = ?"  # noqa: S608
# Old builds of SQLite take at most 999 parameters.
_BATCH = 500
_T = TypeVar("_T", int, str)


def metadata_text(passage: Passage) -> str:
    """A passage's metadata as the JSON that is stored.

    Raises:
        InputError: JSON cannot hold it: a number of more than 4,300 digits, say.
    """
    try:
        return _JSON.encode(passage.metadata)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f'The metadata of passage "{passage.id}" cannot be stored as JSON ({error}): '
            "change or remove it."
        ) from error


class StoreWriter:
    """Writes a new store. It is complete once `commit` and `close` returned, worthless before.

    Args:
        path: The file to make. A file beside it, with ".scratch" appended, comes and goes.

    Raises:
        sqlite3.Error: From here and every method: writing failed, as on a full disk.
    """

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._connection = sqlite3.connect(path, isolation_level=None)
        try:
            # A half-written store is thrown away with its folder, so no journal is needed.
            self._connection.execute("PRAGMA journal_mode = OFF")
            self._connection.execute("PRAGMA synchronous = OFF")
            self._connection.execute(_SCHEMA)
            self._fields = FieldsWriter(self._connection, path.with_name(f"{path.name}.scratch"))
            self._connection.execute("BEGIN")
        except BaseException:
            self._connection.close()
            raise

    def add(self, passages: Iterable[Passage]) -> None:
        """Append passages.

        Raises:
            InputError: An id is there already, or JSON cannot hold its metadata.
        """
        for passage in passages:
            cells = (self.count, passage.id, passage.title, passage.text, metadata_text(passage))
            try:
                self._connection.execute("INSERT INTO passages VALUES (?, ?, ?, ?, ?)", cells)
            except sqlite3.IntegrityError as error:
                raise InputError(self._twice(passage.id)) from error
            self._fields.add(self.count, passage.metadata)
            self.count += 1

    def commit(self) -> None:
        """Write what is still in memory, and what filters need. Nothing can be added afterwards."""
        self._fields.write(self.count)
        self._connection.execute("COMMIT")
        self._fields.finish()

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def _twice(self, passage_id: str) -> str:
        query = "SELECT row FROM passages WHERE id = ?"
        first = self._connection.execute(query, (passage_id,)).fetchone()[0]
        return (
            f'The id "{passage_id}" stands twice, at passages {first + 1} and {self.count + 1} '
            "(counted from 1). Give every passage its own id."
        )


class PassageStore:
    """Reads a store, from any number of threads; passages are fetched when asked for.

    Args:
        path: The file. It is opened when first needed.
        rows: How many passages it holds; None counts them now.
        connections: Lends connections to this and other stores, and is closed by whoever made it.
            None makes one for this store alone.

    Raises:
        PassageIndexError: From every method, when the file is missing, damaged or closed.
    """

    def __init__(
        self, path: Path, rows: int | None = None, connections: Connections | None = None
    ) -> None:
        self._path = path
        self._own = connections is None
        self._connections = Connections(limit=8) if connections is None else connections
        self._count = rows if rows is not None else self._counted()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Passage]:
        for start in range(0, self._count, _BATCH):
            yield from self.fetch(range(start, min(start + _BATCH, self._count)))

    def fetch(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Passage]:
        """The passages of these rows (0 to len - 1), in the order asked for; repeats allowed.

        Raises:
            PassageIndexError: A row is not there.
        """
        wanted = _listed(rows)
        cells = self._by_row(_COLUMNS, wanted)
        found = {row: self._passage(cells[row]) for row in cells}
        return [found[row] for row in wanted]

    def fetch_one(self, row: int) -> Passage:
        """As `fetch([row])[0]`, and quicker.

        Raises:
            PassageIndexError: The row is not there.
        """
        if 0 <= row < self._count:
            for cells in self._connections.rows(self._path, _ONE, (row,)):
                return self._passage(cells)
        # Says what is wrong.
        return self.fetch([row])[0]

    def ids(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The ids of these rows, in the order asked for; repeats allowed.

        Raises:
            PassageIndexError: A row is not there.
        """
        wanted = _listed(rows)
        found = self._by_row("row, id", wanted)
        return [str(found[row][1]) for row in wanted]

    def find(self, ids: Iterable[str]) -> dict[str, Passage]:
        """The passages with these ids; ids that are not there are left out."""
        wanted = list(dict.fromkeys(ids))
        found: dict[str, Passage] = {}
        for batch in _batches(wanted):
            query = f"SELECT {_COLUMNS} FROM passages WHERE id IN ({_marks(batch)})"  # noqa: S608
            found.update((cells[1], self._passage(cells)) for cells in self._rows(query, batch))
        return {key: found[key] for key in wanted if key in found}

    def where(self, condition: Condition) -> NDArray[np.int64]:
        """The rows that match, in order."""
        with self._connections.borrow(self._path) as connection:
            return evaluate(condition, _StoredFields(connection, self._count))

    def mask(self, condition: Condition) -> Mask:
        """For each row, (rows,), whether it matches."""
        with self._connections.borrow(self._path) as connection:
            return mask(condition, _StoredFields(connection, self._count))

    def problems(self) -> list[str]:
        """What is wrong inside the store: rows that are missing, ids that stand twice."""
        query = "SELECT count(*), min(row), max(row), count(DISTINCT id) FROM passages NOT INDEXED"
        count, first, last, ids = self._rows(query)[0]
        faults = []
        if count != self._count:
            faults.append(f"it has {count:,} rows, but should have {self._count:,}")
        if count and (first, last) != (0, count - 1):
            faults.append(f"{count:,} rows are numbered {first:,} to {last:,}, not from 0 on")
        if ids != count:
            faults.append(f"{count:,} rows have only {ids:,} different ids")
        return faults

    def close(self) -> None:
        """Let go of the file; a second call does nothing. Shared connections stay open."""
        if self._own:
            self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _counted(self) -> int:
        try:
            return int(self._rows("SELECT count(*) FROM passages")[0][0])
        except PassageIndexError:
            self.close()
            raise

    def _by_row(self, columns: str, rows: Sequence[int]) -> dict[int, tuple[Any, ...]]:
        found: dict[int, tuple[Any, ...]] = {}
        absent = [row for row in rows if not 0 <= row < self._count]
        if not absent:
            for batch in _batches(rows):
                for cells in self._rows(_selection(columns, len(batch)), batch):
                    found[cells[0]] = cells
            if len(found) == len(rows):
                return found
            absent = [row for row in rows if row not in found]
        if absent:
            raise PassageIndexError(
                f"{self._path}: no row {min(absent)}; there are {self._count}. Rows count from 0; "
                "if this row comes from a search, build the index again."
            )
        return found

    def _rows(self, query: str, values: Sequence[int | str] = ()) -> list[tuple[Any, ...]]:
        return self._connections.rows(self._path, query, values)

    def _passage(self, cells: tuple[Any, ...]) -> Passage:
        _, passage_id, title, text, metadata = cells
        try:
            if not type(passage_id) is type(title) is type(text) is str:
                raise TypeError("not text")
            values, end = _DECODED(metadata)
            if type(values) is not dict or end != len(metadata):
                raise ValueError("metadata are no JSON object")
        except (ValueError, TypeError, RecursionError) as error:
            raise PassageIndexError(
                f"{self._path}: damaged ({error}). Build the index again."
            ) from error
        return stored_passage(passage_id, text, title, values)


@functools.lru_cache(maxsize=64)
def _selection(columns: str, count: int) -> str:
    # As texts that stay the same, so that connections keep them prepared.
    return f"SELECT {columns} FROM passages WHERE row IN ({', '.join('?' * count)})"  # noqa: S608


def _listed(rows: Sequence[int] | NDArray[np.int64]) -> list[int]:
    listed: list[int] = (
        rows.tolist() if isinstance(rows, np.ndarray) else [int(row) for row in rows]
    )
    return listed


class _StoredFields(FieldsReader):
    """The metadata of a store, and its ids under their own key."""

    def equal(self, key: str, values: Iterable[Form]) -> Mask:
        if key != ID:
            return super().equal(key, values)
        found = np.zeros(self.rows, dtype=np.bool_)
        for batch in _batches([_id(value) for value in values]):
            found |= self._with_id(f"id IN ({_marks(batch)})", batch)
        return found

    def compared(self, key: str, sign: str, value: Form) -> Mask:
        if key != ID:
            return super().compared(key, sign, value)
        return self._with_id(f"id {sign} ?", [_id(value)])

    def present(self, key: str) -> Mask:
        return super().present(key) if key != ID else np.ones(self.rows, dtype=np.bool_)

    def _with_id(self, test: str, values: Sequence[str]) -> Mask:
        query = f"SELECT row FROM passages WHERE {test}"  # noqa: S608 (values are parameters)
        found = np.zeros(self.rows, dtype=np.bool_)
        rows = [row for (row,) in self.connection.execute(query, values)]
        if rows and not (min(rows) >= 0 and max(rows) < self.rows):
            raise sqlite3.DatabaseError("there are more rows than there should be")
        found[rows] = True
        return found


def _id(value: Form) -> str:
    text = value[1]
    return text.decode() if isinstance(text, bytes) else str(text)


def _batches(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (values[start : start + _BATCH] for start in range(0, len(values), _BATCH))


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
