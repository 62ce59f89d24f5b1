"""Makes a FAISS structure over rows: trains it, adds all rows, writes it. A killed run goes on.

Plain inverted lists are built in pieces that need not fit into memory together; any other
structure is held in memory, and saved now and then. Knows nothing of index folders.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from epic_retrieval.errors import InputError
from epic_retrieval.index.adding import Adder
from epic_retrieval.index.lists import (
    GROUP_BYTES,
    FinishedFile,
    Piece,
    PieceFile,
    can_stream,
    merge,
    write_piece,
)
from epic_retrieval.index.manifest import INDEX
from epic_retrieval.index.plan import PLAN, Plan
from epic_retrieval.index.rows import VectorRows
from epic_retrieval.index.sizes import held_bytes, set_aside
from epic_retrieval.index.structure import Parts, make
from epic_retrieval.index.structure_file import read_emptied, read_structure, write_structure
from epic_retrieval.index.training import sample, train, training_rows

Advance: TypeAlias = Callable[[str, int, int], None]

_TRAINED = "trained.faiss"
_SAVED = "saved-*.faiss"
_PIECE = "piece-*.lists"
# What was being written when a process was killed.
_UNFINISHED = ".*"
_MOST_IN_A_PIECE = 2**20
# At most this share of the time goes into saving.
_SAVING = 0.1


def train_and_add(
    rows: VectorRows,
    factory: str,
    *,
    memory: int,
    folder: Path,
    seed: int = 0,
    base: Path | None = None,
    keep_rows: bool = True,
    progress: Advance | None = None,
    save_every: float = 60.0,
) -> Path:
    """Write the structure over all rows as `folder`/index.faiss.

    What is done is kept in `folder`: the same call goes on where another one was stopped, at any
    moment, and with one thread the result is the same to the byte. A finished index.faiss is not
    made again; what was begun with other arguments is removed.

    Args:
        rows: Vectors of length 1, at least one.
        factory: FAISS index_factory string; not "Flat", which needs no structure.
        memory: Bytes to take beyond what the process has now. Plain inverted lists may become
            larger than this; anything else may not.
        folder: For this alone; is made if it is not there.
        seed: Of sampling and k-means.
        base: A finished structure of the same factory, whose training is taken over.
        keep_rows: The rows of `base` are the first of `rows`, and stay as they are in it; else
            all rows are added anew.
        progress: Called with "train", "add" or "merge", and how many of how many rows are done.
        save_every: Seconds between saves, for structures that are not built in pieces; longer
            where saving takes long.

    Returns:
        The path of index.faiss.

    Raises:
        InputError: FAISS cannot make, train or fill such a structure with these rows, or not
            within `memory`; or `base` is another kind of structure.
        PassageIndexError: `base`, or a file in `folder`, is damaged.
        OSError: Writing failed, as on a full disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = Plan.of(rows, factory, seed, base, keep_rows=keep_rows)
    _remove(folder, _UNFINISHED)
    if not plan.is_in(folder):
        # The plan first: what is left of the rest, if this is stopped, belongs to none.
        _remove(folder, PLAN, INDEX, _TRAINED, _SAVED, _PIECE)
        plan.write(folder)
    if not (folder / INDEX).exists():
        work = _Work(rows, factory, memory, folder, seed, base, keep_rows, progress, save_every)
        work.run()
    _remove(folder, _TRAINED, _SAVED, _PIECE)
    return folder / INDEX


def _piece(first: int) -> str:
    return f"piece-{first:012d}.lists"


def _remove(folder: Path, *patterns: str) -> None:
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink()


@dataclass(frozen=True)
class _Work:
    """The arguments of `train_and_add`."""

    rows: VectorRows
    factory: str
    memory: int
    folder: Path
    seed: int
    base: Path | None
    keep_rows: bool
    progress: Callable[[str, int, int], None] | None
    save_every: float

    def run(self) -> None:
        empty = make(self.factory, self.rows.dimension)
        if can_stream(empty):
            self._fill_lists(self._trained(empty))
            return
        held = held_bytes(empty, len(self.rows))
        if held > self.memory:
            raise InputError(
                f'"{self.factory}" takes {held / 2**20:,.0f} MiB of memory for '
                f"{len(self.rows):,} rows; there are {self.memory / 2**20:,.0f}. Give more "
                'memory, or take a kind that is built in pieces, such as "ivf-sq8".'
            )
        # Zeros in front of the number make names sort by it.
        newest = max(self.folder.glob(_SAVED), default=self.base if self.keep_rows else None)
        self._fill_whole(
            self._trained(empty) if newest is None else read_structure(newest, mapped=False)
        )

    def _trained(self, empty: Parts) -> Parts:
        path = self.folder / _TRAINED
        if path.exists():
            return read_structure(path, mapped=False)
        if self.base is not None:
            write_structure(read_emptied(self.base, empty).whole, path)
            return read_structure(path, mapped=False)
        count = training_rows(empty, len(self.rows), self.memory, self.factory)
        if count:
            self._advance("train", 0, count)
            train(empty, sample(self.rows, count, self.seed), self.seed, self.factory)
            write_structure(empty.whole, path)
            self._advance("train", count, count)
        return empty

    def _fill_lists(self, trained: Parts) -> None:
        lists, width = int(trained.inner.nlist), int(trained.inner.code_size)
        pieces: list[Piece] = []
        if self.base is not None and self.keep_rows:
            pieces.append(FinishedFile(self.base))
        done = sum(int(piece.sizes.sum()) for piece in pieces)
        for path in sorted(self.folder.glob(_PIECE)):
            # A piece behind a gap is not looked at, and is written again.
            if path.name == _piece(done):
                pieces.append(PieceFile.open(path, lists, width))
                done += int(pieces[-1].sizes.sum())
        # Lists may hold twice the memory that they need.
        wished = min(self.memory // 4 // (2 * (width + 8)), _MOST_IN_A_PIECE)
        adder = self._adder(trained)
        size = max(wished, adder.at_once)
        group = min(self.memory // 4, GROUP_BYTES)
        while done < len(self.rows):
            stop = min(done + size, len(self.rows))
            for added in adder.add(done, stop):
                self._advance("add", added, len(self.rows))
            path = self.folder / _piece(done)
            write_piece(trained, path, group)
            trained.whole.reset()
            pieces.append(PieceFile.open(path, lists, width))
            done = stop
        self._advance("merge", 0, done)
        merge(trained, pieces, self.folder / INDEX, group)
        self._advance("merge", done, done)

    def _fill_whole(self, parts: Parts) -> None:
        set_aside(parts, len(self.rows))
        saved, cost = time.monotonic(), 0.0
        for added in self._adder(parts).add(parts.whole.ntotal, len(self.rows)):
            self._advance("add", added, len(self.rows))
            now = time.monotonic()
            if now - saved >= max(self.save_every, cost / _SAVING):
                self._save(parts)
                saved = time.monotonic()
                cost = saved - now
        write_structure(parts.whole, self.folder / INDEX)

    def _save(self, parts: Parts) -> None:
        path = self.folder / f"saved-{parts.whole.ntotal:012d}.faiss"
        write_structure(parts.whole, path)
        for other in self.folder.glob(_SAVED):
            if other != path:
                other.unlink()

    def _adder(self, parts: Parts) -> Adder:
        return Adder.of(parts, self.rows, self.factory, self.memory, self.seed)

    def _advance(self, stage: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(stage, done, total)
