"""Passages in an SQLite file, where a row's number is the number of its vector.

Knows nothing of vectors or FAISS.
"""

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index.passage import Passage

_SCHEMA = """
CREATE TABLE passages (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL,
    text TEXT NOT NULL,
    metadata TEXT NOT NULL
)
"""
_COLUMNS = "SELECT row, id, title, text, metadata FROM passages"
# Old builds of SQLite take at most 999 parameters.
_BATCH = 500
_T = TypeVar("_T")


class StoreWriter:
    """Writes a new store. It is complete once `close` returns, and worthless before."""

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._connection = sqlite3.connect(path, isolation_level=None)
        # A half-written store is thrown away with its folder, so no journal is needed.
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute(_SCHEMA)
        self._connection.execute("BEGIN")

    def add(self, passages: Iterable[Passage]) -> None:
        """Append passages.

        Raises:
            InputError: An id is there already.
        """
        for passage in passages:
            metadata = json.dumps(passage.metadata, allow_nan=False, default=dict)
            cells = (self.count, passage.id, passage.title, passage.text, metadata)
            try:
                self._connection.execute("INSERT INTO passages VALUES (?, ?, ?, ?, ?)", cells)
            except sqlite3.IntegrityError as error:
                raise InputError(self._twice(passage.id)) from error
            self.count += 1

    def commit(self) -> None:
        """Write what is still in memory."""
        self._connection.execute("COMMIT")

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

    Raises:
        PassageIndexError: From here and every method, when the file is missing, damaged or closed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # One connection behind a lock, not one for each thread: a connection that is opened
        # later could meet another index, if this one has been replaced in the meantime.
        self._lock = threading.Lock()
        with self._reading():
            # Nothing writes to a finished store: immutable spares locks and side files.
            uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
            self._connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        try:
            # SQLite opens the file at the first query: now, for the same reason.
            self._count = int(self._rows("SELECT count(*) FROM passages")[0][0])
        except PassageIndexError:
            self._connection.close()
            raise

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Passage]:
        for start in range(0, self._count, _BATCH):
            yield from self.fetch(range(start, min(start + _BATCH, self._count)))

    def fetch(self, rows: Sequence[int]) -> list[Passage]:
        """The passages of these rows (0 to len - 1), in the order asked for; repeats allowed.

        Raises:
            PassageIndexError: A row is not there.
        """
        found: dict[int, Passage] = {}
        wanted = sorted({int(row) for row in rows})
        for batch in _batches(wanted):
            query = f"{_COLUMNS} WHERE row IN ({_marks(batch)})"
            found.update((cells[0], self._passage(cells)) for cells in self._rows(query, batch))
        absent = [row for row in wanted if row not in found]
        if absent:
            raise PassageIndexError(
                f"{self._path}: no row {absent[0]}; there are {self._count}. Rows count from 0; "
                "if this row comes from a search, build the index again."
            )
        return [found[int(row)] for row in rows]

    def find(self, ids: Iterable[str]) -> dict[str, Passage]:
        """The passages with these ids; ids that are not there are left out."""
        wanted = list(dict.fromkeys(ids))
        found: dict[str, Passage] = {}
        for batch in _batches(wanted):
            query = f"{_COLUMNS} WHERE id IN ({_marks(batch)})"
            found.update((cells[1], self._passage(cells)) for cells in self._rows(query, batch))
        return {key: found[key] for key in wanted if key in found}

    def problems(self) -> list[str]:
        """What is wrong inside the store: rows that are missing, ids that stand twice."""
        query = "SELECT min(row), max(row), count(DISTINCT id) FROM passages NOT INDEXED"
        first, last, ids = self._rows(query)[0]
        faults = []
        if self._count and (first, last) != (0, self._count - 1):
            faults.append(f"{self._count} rows are numbered {first} to {last}, not from 0 on")
        if ids != self._count:
            faults.append(f"{self._count} rows have only {ids} different ids")
        return faults

    def close(self) -> None:
        """Let go of the file; a second call does nothing."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _rows(self, query: str, values: Sequence[int | str] = ()) -> list[tuple[Any, ...]]:
        with self._lock, self._reading():
            return self._connection.execute(query, tuple(values)).fetchall()

    def _passage(self, cells: tuple[Any, ...]) -> Passage:
        _, passage_id, title, text, metadata = cells
        with self._reading():
            return Passage(passage_id, text, title, json.loads(metadata))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError as error:
            raise PassageIndexError(f"{self._path}: the index is closed. Open it again.") from error
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise PassageIndexError(
                f"{self._path}: missing or damaged ({error}). Build the index again."
            ) from error


def _batches(values: list[_T]) -> Iterator[list[_T]]:
    return (values[start : start + _BATCH] for start in range(0, len(values), _BATCH))


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
