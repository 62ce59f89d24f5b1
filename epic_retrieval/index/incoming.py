"""Passages on their way into an index: which are new, which replace others, which are there.

Knows nothing of encoding or writing.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

import numpy as np

from epic_retrieval.errors import InputError
from epic_retrieval.index._searchable import Report
from epic_retrieval.index.encode import Progress
from epic_retrieval.index.passage import Passage
from epic_retrieval.index.rows import Rows
from epic_retrieval.index.shards import Shards
from epic_retrieval.index.store import metadata_text

# Few enough that long texts do no harm.
_AT_ONCE = 256


class Incoming:
    """Compares passages with those that an index holds, a few hundred at a time.

    Args:
        shards: Of the index.
        deleted: Its rows that do not count, sorted.
        replace: Whether passages may replace others with their ids.
    """

    def __init__(self, shards: Shards, deleted: Rows, *, replace: bool) -> None:
        self._shards = shards
        self._deleted = deleted
        self._replace = replace
        self._replaced = array("q")
        self._met: np.ndarray | None = None
        self._same = 0

    @property
    def replaced(self) -> Rows:
        """The rows that are replaced by what was given out so far, sorted."""
        return np.sort(np.array(self._replaced, dtype=np.int64))

    @property
    def same(self) -> int:
        """How many were left out, since they are there as they are."""
        return self._same

    def counting(self, progress: Report | None) -> Report | None:
        """The same for those who count all passages: what is there as it is needs no encoding."""
        if progress is None:
            return None
        tell = progress

        def told(now: Progress) -> None:
            tell(now if now.total is None else replace(now, total=now.total - self._same))

        return told

    def wanted(self, passages: Iterable[Passage]) -> Iterator[Passage]:
        """The passages that must be written, in order.

        Raises:
            InputError: Something is no passage; or its id is there, and must not be replaced; or
                such an id stands twice.
        """
        rest = iter(passages)
        done = 0
        while some := list(islice(rest, _AT_ONCE)):
            for passage in some:
                if not isinstance(passage, Passage):
                    given = type(passage).__name__
                    raise InputError(f"passages holds a {given}: expected Passage objects.")
            yield from self._compared(some, done)
            done += len(some)

    def _compared(self, some: list[Passage], done: int) -> Iterator[Passage]:
        rows = self._shards.find((passage.id for passage in some), self._deleted)
        if rows and not self._replace:
            raise InputError(
                f'The id "{next(iter(rows))}" is in the index already. Use update to replace its '
                "passage, or give the new one another id."
            )
        kept = dict(zip(rows, self._shards.fetch(list(rows.values())), strict=True))
        for place, passage in enumerate(some, start=done + 1):
            if passage.id not in rows:
                yield passage
                continue
            self._meet(rows[passage.id], passage.id, place)
            if _is_same(passage, kept[passage.id]):
                self._same += 1
            else:
                self._replaced.append(rows[passage.id])
                yield passage

    def _meet(self, row: int, name: str, place: int) -> None:
        if self._met is None:
            self._met = np.zeros(len(self._shards), dtype=np.bool_)
        if self._met[row]:
            raise InputError(
                f'The id "{name}" stands twice, the second time at passage {place:,} (counted from '
                "1). Give one passage for each id."
            )
        self._met[row] = True


def _is_same(passage: Passage, kept: Passage) -> bool:
    # Texts of metadata: 1, 1.0 and True are equal but not the same, lists and tuples the reverse.
    return (passage.title, passage.text, metadata_text(passage)) == (
        kept.title,
        kept.text,
        metadata_text(kept),
    )
