"""A few open SQLite connections, shared by many files and threads.

Knows nothing of tables.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
        self._closed = False
        # In the order of their last use, oldest first.
        self._idle: list[tuple[Path, sqlite3.Connection]] = []
        self._changed = threading.Condition()

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
            raise PassageIndexError(f"{path}: missing or damaged ({error}). {_ADVICE}") from error

    def close(self) -> None:
        """Close all, those in use as soon as they come back; a second call does nothing."""
        with self._changed:
            self._closed = True
            while self._idle:
                self._drop(self._idle.pop()[1])
            self._changed.notify_all()

    def __len__(self) -> int:
        return self._open

    def _taken(self, path: Path) -> sqlite3.Connection:
        with self._changed:
            while True:
                if self._closed:
                    raise PassageIndexError(f"{path}: the index is closed. Open it again.")
                for place in range(len(self._idle) - 1, -1, -1):
                    if self._idle[place][0] == path:
                        return self._idle.pop(place)[1]
                if self._open < self._limit:
                    break
                if self._idle:
                    self._drop(self._idle.pop(0)[1])
                    break
                self._changed.wait()
            self._open += 1
        try:
            return _connected(path)
        except BaseException:
            with self._changed:
                self._open -= 1
                self._changed.notify()
            raise

    def _give_back(self, path: Path, connection: sqlite3.Connection) -> None:
        with self._changed:
            if self._closed:
                self._drop(connection)
            else:
                self._idle.append((path, connection))
            self._changed.notify()

    def _drop(self, connection: sqlite3.Connection) -> None:
        self._open -= 1
        connection.close()


def _connected(path: Path) -> sqlite3.Connection:
    # Nothing writes to a finished file: immutable spares locks and side files.
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    connection = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)
    try:
        # A file from elsewhere may hold views and triggers that call functions; none may run.
        connection.execute("PRAGMA trusted_schema = OFF")
        # The operating system caches pages already; these caches would add up.
        connection.execute("PRAGMA cache_size = -512")
    except BaseException:
        connection.close()
        raise
    return connection
