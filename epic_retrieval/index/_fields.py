"""Metadata as (key, value) pairs that SQLite can compare, each with the rows that have it.

Knows nothing of passages or conditions.

Table `keys`: a number for each key; keys of nested objects are joined by ".". Table `fields`: for
each key and value the rows, as a posting list. Values are compared as pairs (kind, value):

    kind        value
    NULL        0
    BOOLEAN     0 or 1; so that true is not 1
    BELOW       whole numbers below -2**63: the complement of what ABOVE has for their opposite
    NUMBER      SQLite's own numbers, compared exactly, also 1 with 1.0
    ABOVE       whole numbers from 2**63 on (larger floats are whole): length, then bytes
    TEXT        UTF-8; of long texts the beginning and a hash
    PRESENT     0; every row that has the key, whatever stands there, be it an empty list
"""

import hashlib
import itertools
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.index.passage import JSON

NULL, BOOLEAN, BELOW, NUMBER, ABOVE, TEXT, PRESENT = range(7)
Form: TypeAlias = tuple[int, int | float | bytes]
Pair: TypeAlias = tuple[str, int, int | float | bytes]
Mask: TypeAlias = NDArray[np.bool_]

# Longer texts would each take a page of 4,096 bytes of their own.
LONGEST_TEXT = 256

SCHEMA = (
    "CREATE TABLE keys (number INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE)",
    (
        "CREATE TABLE fields (key INTEGER, kind INTEGER, value, rows BLOB NOT NULL, "
        "PRIMARY KEY (key, kind, value)) WITHOUT ROWID"
    ),
)
_STAGED = (
    "CREATE TABLE scratch.staged (key INTEGER, kind INTEGER, value, row INTEGER, rows BLOB, "
    "PRIMARY KEY (key, kind, value, row)) WITHOUT ROWID"
)
# So many row numbers are gathered in memory, at some 300 bytes where all values differ.
_GATHERED = 200_000
# Old builds of SQLite take at most 999 parameters.
_BATCH = 500


def form(value: bool | float | str | None) -> Form:
    """How a value is stored and compared. Numbers are finite."""
    if value is None:
        return NULL, 0
    if isinstance(value, bool):
        return BOOLEAN, int(value)
    return (TEXT, _text(value)) if isinstance(value, str) else _number(value)


def is_cut(text: str) -> bool:
    """Whether only the beginning of a text is stored: then it equals others, but has no order."""
    return len(_bytes(text)) > LONGEST_TEXT


def _text(value: str) -> bytes:
    text = _bytes(value)
    if len(text) <= LONGEST_TEXT:
        return text
    # Longer than any text that is stored whole, so never equal to one; and compared with one of
    # those, the beginning decides.
    return text[:LONGEST_TEXT] + hashlib.blake2b(text, digest_size=16).digest()


def _number(value: float) -> Form:
    if abs(value) < 2**63:
        return NUMBER, value
    whole = int(value)  # as every float of this size is
    if whole == -(2**63):
        return NUMBER, whole
    size = abs(whole).bit_length() // 8 + 1
    key = size.to_bytes(4, "big") + abs(whole).to_bytes(size, "big")
    return (ABOVE, key) if whole > 0 else (BELOW, bytes(255 - byte for byte in key))


def flattened(metadata: Mapping[str, JSON]) -> set[Pair]:
    """Every key, at any depth, with every value that stands under it; list items on their own."""
    pairs: set[Pair] = set()
    rest: list[tuple[str, JSON]] = list(metadata.items())
    while rest:
        key, value = rest.pop()
        pairs.add((key, PRESENT, 0))
        # Scalars first, since asking for Mapping takes long.
        if value is None or isinstance(value, str | int | float):
            pairs.add((key, *form(value)))
        elif isinstance(value, Mapping):
            rest += ((f"{key}.{name}", item) for name, item in value.items())
        else:
            rest += ((key, item) for item in value)
    return pairs


class FieldsWriter:
    """Fills the tables of a new store: rows are gathered for each value, and sorted at the end.

    Args:
        connection: To the new store, outside a transaction.
        scratch: A file for what memory should not hold; made here, and removed by `finish`.
    """

    def __init__(self, connection: sqlite3.Connection, scratch: Path) -> None:
        self._connection = connection
        self._scratch = scratch
        self._keys: dict[str, int] = {}
        self._gathered: dict[Pair, list[int]] = {}
        self._count = 0
        connection.execute("ATTACH DATABASE ? AS scratch", (str(scratch),))
        connection.execute("PRAGMA scratch.journal_mode = OFF")
        connection.execute("PRAGMA scratch.synchronous = OFF")
        for statement in (*SCHEMA, _STAGED):
            connection.execute(statement)

    def add(self, row: int, metadata: Mapping[str, JSON]) -> None:
        """The metadata of one row. Call with growing rows."""
        pairs = flattened(metadata)
        for pair in pairs:
            rows = self._gathered.get(pair)
            if rows is None:
                self._gathered[pair] = [row]
            else:
                rows.append(row)
        self._count += len(pairs)
        if self._count > _GATHERED:
            self._stage()

    def write(self, rows: int) -> None:
        """Write the tables; `rows` is how many rows the store has."""
        self._stage()
        self._connection.executemany(
            "INSERT INTO keys VALUES (?, ?)",
            ((number, _bytes(key)) for key, number in self._keys.items()),
        )
        staged = self._connection.cursor().execute(
            "SELECT key, kind, value, rows FROM scratch.staged ORDER BY key, kind, value, row"
        )
        self._connection.executemany(
            "INSERT INTO fields VALUES (?, ?, ?, ?)",
            (
                (*pair, _packed(b"".join(cells[3] for cells in group), rows))
                for pair, group in itertools.groupby(staged, key=lambda cells: cells[:3])
            ),
        )

    def finish(self) -> None:
        """Let go of the scratch file; after the transaction has ended."""
        self._connection.execute("DETACH DATABASE scratch")
        self._scratch.unlink()

    def _stage(self) -> None:
        numbers = self._keys
        lists = [
            (
                numbers.setdefault(key, len(numbers)),
                kind,
                value,
                rows[0],
                np.array(rows, dtype="<u4").tobytes(),
            )
            for (key, kind, value), rows in self._gathered.items()
        ]
        # In the order of the table, which is quicker to fill so.
        lists.sort(key=lambda cells: cells[:3])
        self._connection.executemany("INSERT INTO scratch.staged VALUES (?, ?, ?, ?, ?)", lists)
        self._gathered.clear()
        self._count = 0


class FieldsReader:
    """Answers which rows of a store have a value, as masks of shape (rows,)."""

    def __init__(self, connection: sqlite3.Connection, rows: int) -> None:
        self.connection = connection
        self.rows = rows

    def equal(self, key: str, values: Iterable[Form]) -> Mask:
        """The rows that have one of these values under the key."""
        found: list[bytes] = []
        for kind, group in itertools.groupby(sorted(set(values), key=_kind), key=_kind):
            forms = [value for _, value in group]
            for start in range(0, len(forms), _BATCH):
                batch = forms[start : start + _BATCH]
                test = f"kind = ? AND value IN ({', '.join('?' * len(batch))})"
                found += self._postings(key, test, [kind, *batch])
        return self._mask(found)

    def compared(self, key: str, sign: str, value: Form) -> Mask:
        """The rows with a value under the key that is `sign` (<, <=, >, >=) this number or text."""
        low, high = (TEXT, TEXT) if value[0] == TEXT else (BELOW, ABOVE)
        edge, limit = ("<=", high) if sign.startswith(">") else (">=", low)
        test = f"(kind, value) {sign} (?, ?) AND kind {edge} ?"
        return self._mask(self._postings(key, test, [*value, limit]))

    def present(self, key: str) -> Mask:
        """The rows that have the key at all."""
        return self.equal(key, [(PRESENT, 0)])

    def _postings(self, key: str, test: str, values: Sequence[object]) -> list[bytes]:
        # The signs come from the caller's code, never from a user; values are parameters.
        query = (
            "SELECT rows FROM fields "  # noqa: S608
            f"WHERE key = (SELECT number FROM keys WHERE name = ?) AND {test}"
        )
        cursor = self.connection.execute(query, (_bytes(key), *values))
        found = [rows for (rows,) in cursor.fetchall()]
        if not all(isinstance(rows, bytes) for rows in found):
            raise sqlite3.DatabaseError("a list of rows is of another type")
        return found

    def _mask(self, postings: list[bytes]) -> Mask:
        mask = np.zeros(self.rows, dtype=np.bool_)
        size = _bitmap_bytes(self.rows)
        for bits in postings:
            if len(bits) == size:
                unpacked = np.unpackbits(
                    np.frombuffer(bits, dtype=np.uint8), count=self.rows, bitorder="little"
                )
                mask |= unpacked.view(np.bool_)
        lists = b"".join(rows for rows in postings if len(rows) != size)
        if len(lists) % 4:
            raise sqlite3.DatabaseError("a list of rows is cut off")
        rows = np.frombuffer(lists, dtype="<u4")
        if rows.size and int(rows.max()) >= self.rows:
            raise sqlite3.DatabaseError("a list of rows names a row that is not there")
        mask[rows] = True
        return mask


def _packed(rows: bytes, count: int) -> bytes:
    """Row numbers of 32 bits, as they are or as a bitmap; the length tells which."""
    if len(rows) < _bitmap_bytes(count):
        return rows
    mask = np.zeros(count, dtype=np.bool_)
    mask[np.frombuffer(rows, dtype="<u4")] = True
    return np.packbits(mask, bitorder="little").tobytes()


def _bitmap_bytes(rows: int) -> int:
    return (rows + 7) // 8


def _kind(value: Form) -> int:
    return value[0]


def _bytes(text: str) -> bytes:
    # Half a surrogate pair is no text for SQLite; these bytes keep its place in the order.
    return text.encode("utf-8", "surrogatepass")
