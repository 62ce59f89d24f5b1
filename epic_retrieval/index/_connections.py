"""A few open SQLite connections, shared by many files and threads.

Knows nothing of tables.
"""

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from epic_retrieval.errors import PassageIndexError

_ADVICE = "Copy the index again from its source, or build it again."


class Connections:
    """Lends read-only connections to finished files; the least recently used are closed first.

    A connection serves one borrower at a time. Borrow one at a time in a thread: who holds one and
    waits for another may wait for ever.

    Args:
        limit: Never are more connections open; who comes later waits.
    """

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._open = 0
        self._waiting = 0
        self._closed = False
        # By file, in the order of their last use, oldest first.
        self._idle: OrderedDict[Path, list[sqlite3.Connection]] = OrderedDict()
        # Taken by itself where nobody is told: that is quicker.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    @contextmanager
    def borrow(self, path: Path) -> Iterator[sqlite3.Connection]:
        """A connection to this file.

        Raises:
            PassageIndexError: Connections are closed, or the file cannot be read, also while it is
                in use.
        """
        try:
            connection = self._taken(path)
            try:
                yield connection
            finally:
                self._give_back(path, connection)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise _unreadable(path, error) from error

    def rows(self, path: Path, query: str, values: Sequence[int | str]) -> list[tuple[Any, ...]]:
        """All rows that a query gives on a connection to this file.

        Raises:
            PassageIndexError: As from `borrow`.
        """
        connection = self._taken(path)
        try:
            return connection.execute(query, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise _unreadable(path, error) from error
        finally:
            self._give_back(path, connection)

    def close(self) -> None:
        """Close all, those in use as soon as they come back; a second call does nothing."""
        with self._changed:
            self._closed = True
            while self._idle:
                self._drop_oldest()
            self._changed.notify_all()

    def __len__(self) -> int:
        return self._open

    def _taken(self, path: Path) -> sqlite3.Connection:
        with self._lock:
            while True:
                if self._closed:
                    raise PassageIndexError(f"{path}: the index is closed. Open it again.")
                idle = self._idle.get(path)
                if idle is not None:
                    connection = idle.pop()
                    if not idle:
                        del self._idle[path]
                    return connection
                if self._open < self._limit:
                    break
                if self._idle:
                    self._drop_oldest()
                    break
                self._waiting += 1
                self._changed.wait()
                self._waiting -= 1
            self._open += 1
        try:
            return _connected(path)
        except BaseException as error:
            with self._changed:
                self._open -= 1
                self._changed.notify()
            if isinstance(error, sqlite3.Error | UnicodeDecodeError):
                raise _unreadable(path, error) from error
            raise

    def _give_back(self, path: Path, connection: sqlite3.Connection) -> None:
        with self._lock:
            if self._closed:
                self._drop(connection)
            else:
                self._idle.setdefault(path, []).append(connection)
                self._idle.move_to_end(path)
            if self._waiting:
                self._changed.notify()

    def _drop_oldest(self) -> None:
        path, idle = next(iter(self._idle.items()))
        self._drop(idle.pop(0))
        if not idle:
            del self._idle[path]

    def _drop(self, connection: sqlite3.Connection) -> None:
        self._open -= 1
        connection.close()


def _unreadable(path: Path, error: Exception) -> PassageIndexError:
    return PassageIndexError(f"{path}: missing or damaged ({error}). {_ADVICE}")


def _connected(path: Path) -> sqlite3.Connection:
    # Nothing writes to a finished file: immutable spares locks and side files.
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    connection = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)
    try:
        # A file from elsewhere may hold views and triggers that call functions; none may run.
        connection.execute("PRAGMA trusted_schema = OFF")
        # The operating system caches pages already: they are read where they lie, as vectors are,
        # and SQLite's own caches, which would add up, stay small.
        connection.execute("PRAGMA mmap_size = 2147418112")
        connection.execute("PRAGMA cache_size = -512")
    except BaseException:
        connection.close()
        raise
    return connection
