"""What an index and a folder of encoded shards have in common: passages and vectors to take away.

Knows nothing of where they go.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._batches import read_settings
from epic_retrieval.index._open import read_deleted
from epic_retrieval.index._shard_folder import FINISHED, finished_shards
from epic_retrieval.index._words import counted
from epic_retrieval.index.checksums import check_files
from epic_retrieval.index.generations import reading
from epic_retrieval.index.manifest import (
    DELETED,
    IDS,
    SETTINGS,
    SHARDS,
    EncoderInfo,
    FileInfo,
    ShardInfo,
    check_folder,
    is_index,
)
from epic_retrieval.index.rows import Rows
from epic_retrieval.index.shards import Shards
from epic_retrieval.storage import write_atomically

# Among the notes of finished shards: they are all there, and this is their order.
COMPLETE = f"{FINISHED}/corpus.json"

_FORMAT = "epic-retrieval corpus 1"


@dataclass(frozen=True)
class Source:
    """Shards, and which of their rows count.

    Args:
        folder: Holds `shards/<name>/` for each shard.
        encoder: Of the passages, with the dimension of the stored vectors.
        dtype: Of the stored vectors.
        truncated_from: The width that the encoder gives, where fewer dimensions are stored.
        corpus: Its name; may be empty.
        infos: In the order of their rows.
        deleted: Global rows that do not count, sorted.
    """

    folder: Path
    encoder: EncoderInfo
    dtype: str
    truncated_from: int | None
    corpus: str
    infos: tuple[ShardInfo, ...]
    deleted: Rows

    @property
    def rows(self) -> int:
        """How many rows there are, with those that do not count."""
        return sum(info.rows for info in self.infos)

    @property
    def count(self) -> int:
        """How many rows count."""
        return self.rows - len(self.deleted)

    def open(self) -> Shards:
        """The shards, for whoever closes them."""
        return Shards(self.folder, self.infos, dimension=self.encoder.dimension, dtype=self.dtype)

    def live(self, at_once: int) -> Iterator[Rows]:
        """The rows that count in order, `at_once` at a time; at the end what is left."""
        if at_once < 1:
            raise InputError(f"{at_once} rows at once: expected at least 1.")
        pending = np.empty(0, dtype=np.int64)
        for start in range(0, self.rows, at_once):
            rows = np.arange(start, min(start + at_once, self.rows))
            first, last = np.searchsorted(self.deleted, [start, start + at_once])
            alive = np.delete(rows, self.deleted[first:last] - start)
            pending = np.concatenate([pending, alive])
            if len(pending) >= at_once:
                yield pending[:at_once]
                pending = pending[at_once:]
        if len(pending):
            yield pending


@contextmanager
def open_source(folder: str | Path, *, check: bool = True) -> Iterator[Source]:
    """What a folder holds, for as long as the block runs, whatever a writer does meanwhile.

    Args:
        folder: An index, or what `encode_shards` filled to the end.
        check: Compare every file with its checksum; those known to be whole are not read again.
            Without it that is done for ids and deletions only.

    Raises:
        InputError: It is neither, or its shards are not complete.
        PassageIndexError: A file is missing or damaged.
    """
    folder = Path(folder)
    if is_index(folder):
        with reading(folder) as held:
            manifest = held.manifest
            if manifest.deleted is not None:
                check_folder(folder / DELETED)
                deleted = {f"{DELETED}/{manifest.deleted.name}.npy": manifest.deleted.file}
            else:
                deleted = {}
            _check(folder, manifest.shards, deleted, check=check)
            yield Source(
                folder,
                manifest.encoder,
                manifest.dtype,
                manifest.truncated_from,
                manifest.corpus,
                manifest.shards,
                read_deleted(folder, manifest),
            )
        return
    settings = read_settings(folder)
    if settings is None:
        raise InputError(
            f"{folder}: neither an index nor a folder of encoded shards (no manifest.json, no "
            f"{SETTINGS}). Give a folder of either kind."
        )
    infos = tuple(complete_shards(folder))
    _check(folder, infos, {}, check=check)
    nothing = np.empty(0, dtype=np.int64)
    yield Source(
        folder, settings.stored, settings.dtype, settings.truncated_from, "", infos, nothing
    )


def mark_complete(folder: Path, shards: Sequence[ShardInfo]) -> None:
    """Note that a folder holds all shards of a corpus, and in which order.

    Raises:
        PassageIndexError: Writing failed.
    """
    content = {"format": _FORMAT, "shards": [shard.name for shard in shards]}
    with _noting(folder):
        write_atomically(folder / COMPLETE, (json.dumps(content, indent=2) + "\n").encode())


def mark_incomplete(folder: Path) -> None:
    """Take the note back: shards will be added.

    Raises:
        PassageIndexError: Writing failed.
    """
    with _noting(folder):
        (folder / COMPLETE).unlink(missing_ok=True)


@contextmanager
def _noting(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PassageIndexError(
            f"{folder / COMPLETE}: writing failed ({error}). Finished shards are kept: run the "
            "same command again."
        ) from error


def complete_shards(folder: Path) -> list[ShardInfo]:
    """All shards of the corpus that a folder was filled from, in order.

    Raises:
        InputError: They are not complete.
        PassageIndexError: One of them is gone, or the note that names them is damaged.
    """
    path = folder / COMPLETE
    finished = {info.name: info for info in finished_shards(folder)}
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}")
        return [finished[name] for name in content["shards"]]
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: encoding has not come to its end; {counted(len(finished), 'shard')} "
            f"{'is' if len(finished) == 1 else 'are'} finished. Run the command that encodes "
            "again: it goes on from there."
        ) from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PassageIndexError(
            f"{path}: damaged, or a shard that it names is gone ({error}). Run the command that "
            "encodes again: it makes what is missing."
        ) from error


def _check(
    folder: Path, infos: Sequence[ShardInfo], others: dict[str, FileInfo], *, check: bool
) -> None:
    if infos:
        check_folder(folder / SHARDS)
    for info in infos:
        check_folder(folder / SHARDS / info.name)
    files = {
        f"{SHARDS}/{info.name}/{name}": file
        for info in infos
        for name, file in info.files.items()
        if check or name == IDS
    }
    check_files(folder, files | others)
