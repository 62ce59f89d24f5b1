"""A folder that fills with shards, each finished once and then kept.

Knows nothing of a corpus as a whole.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

import numpy as np

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._batches import Batch, EncodingSettings, read_settings
from epic_retrieval.index._differences import settings_differences
from epic_retrieval.index._swap import link_files, size_of
from epic_retrieval.index._vectors import Vectors, checked_vectors
from epic_retrieval.index.generations import sync
from epic_retrieval.index.manifest import SETTINGS, SHARDS, FileInfo, ShardInfo
from epic_retrieval.index.passage import Passage
from epic_retrieval.index.shard import ShardWriter
from epic_retrieval.storage import write_atomically

Encode: TypeAlias = Callable[[list[str]], np.ndarray]

FINISHED = "finished"


class ShardFolder:
    """A folder of shards, `shards/<name>/`, each finished once `finished/<name>.json` is there.

    Several processes may write different shards in it.

    Args:
        folder: Is made if it is not there.
        settings: Of all its shards.

    Raises:
        InputError: It was begun with other settings.
        ShardNotWrittenError: It cannot be written.
    """

    def __init__(self, folder: Path, settings: EncodingSettings) -> None:
        known = read_settings(folder)
        if known is not None and not known.fits(settings):
            raise InputError(
                f"{folder} was begun with other settings: "
                f"{settings_differences(known, settings)}. Go on with the former ones, or choose "
                "another folder."
            )
        self.folder = folder
        self.settings = settings
        with _writing():
            for name in (SHARDS, FINISHED):
                (folder / name).mkdir(parents=True, exist_ok=True)
            write_atomically(folder / SETTINGS, settings.to_text().encode())

    def finished(self, name: str) -> ShardInfo | None:
        """A shard that is there as it was built, every byte of it; else None."""
        info = self.note(name)
        return info if info is not None and is_whole(self._place(name), info) else None

    def adopt(self, info: ShardInfo, source: Path) -> bool:
        """Take over a finished shard from another folder; False if it is not whole there.

        Args:
            info: What it should be.
            source: Where its files lie.

        Raises:
            ShardNotWrittenError: Writing failed, as on a full disk.
        """
        if not is_whole(source, info):
            return False
        with _writing():
            link_files(source, self._place(info.name), copy=True)
            self._finish(info)
        return True

    def write(
        self,
        batch: Batch,
        encode: Encode,
        chunk_size: int,
        advance: Callable[[int, int], None] | None = None,
    ) -> ShardInfo:
        """Encode the passages of one shard and write it; nothing of it stays if that fails.

        Args:
            batch: From `batches` with the same settings.
            encode: As in `encode_shards`.
            chunk_size: Passages for each call of it.
            advance: Called after each chunk with the rows and bytes that are written.

        Raises:
            InputError: Vectors are not as described.
            ShardNotWrittenError: Writing failed, as on a full disk.
        """
        place = self._place(batch.name)
        try:
            info = self._written(place, batch, encode, chunk_size, advance)
            with _writing():
                self._finish(info)
        except BaseException:
            # On a full disk room is what is wanted.
            shutil.rmtree(place, ignore_errors=True)
            raise
        return info

    def _written(
        self,
        place: Path,
        batch: Batch,
        encode: Encode,
        chunk_size: int,
        advance: Callable[[int, int], None] | None,
    ) -> ShardInfo:
        settings = self.settings
        # A chunk is written while the next one is encoded, by one thread, as SQLite wants it.
        with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
            with _writing():
                shutil.rmtree(place, ignore_errors=True)
                opening = pool.submit(ShardWriter, place, settings.dimension, settings.dtype)
                writer = opening.result()
            stack.callback(lambda: pool.submit(writer.close).result())
            written: Future[None] | None = None
            for start in range(0, len(batch.passages), chunk_size):
                chunk = batch.passages[start : start + chunk_size]
                vectors = encoded(chunk, encode, settings)
                with _writing():
                    if written is not None:
                        written.result()
                    written = pool.submit(writer.add, chunk, vectors)
                if advance is not None:
                    advance(start + len(chunk), size_of(place))
            with _writing():
                if written is not None:
                    written.result()
                return pool.submit(writer.finish).result()

    def remove_unfinished(self) -> None:
        """Remove what writers that were killed left; call while nobody writes."""
        for path in (self.folder / SHARDS).iterdir():
            if not self._note_path(path.name).exists():
                shutil.rmtree(path, ignore_errors=True)

    def _place(self, name: str) -> Path:
        return self.folder / SHARDS / name

    def _note_path(self, name: str) -> Path:
        return self.folder / FINISHED / f"{name}.json"

    def note(self, name: str) -> ShardInfo | None:
        """What a finished shard should be; its files are not looked at."""
        return _read_note(self._note_path(name))

    def _finish(self, info: ShardInfo) -> None:
        sync(self.folder / SHARDS)
        note = json.dumps(asdict(info), indent=2, sort_keys=True)
        write_atomically(self._note_path(info.name), note.encode())
        sync(self.folder / FINISHED)


def finished_shards(folder: Path) -> list[ShardInfo]:
    """The finished shards of a folder, in no order; their files are not looked at."""
    found = [_read_note(path) for path in (folder / FINISHED).glob("*.json")]
    return [info for info in found if info is not None]


def _read_note(path: Path) -> ShardInfo | None:
    try:
        content = json.loads(path.read_bytes())
        files = {file: FileInfo(**info) for file, info in content["files"].items()}
        info = ShardInfo(content["name"], content["rows"], files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return info if info.name == path.stem else None


class ShardNotWrittenError(PassageIndexError):
    """A shard could not be written; what was finished before is not touched by that."""


def is_whole(place: Path, info: ShardInfo) -> bool:
    """Whether a folder holds a shard as it was built; reads every byte."""
    try:
        for name, file in info.files.items():
            file.check_size(place / name)
        return all(FileInfo.of(place / name) == file for name, file in info.files.items())
    except (OSError, PassageIndexError):
        return False


def encoded(passages: Sequence[Passage], encode: Encode, settings: EncodingSettings) -> Vectors:
    """The vectors of passages, (n, settings.dimension) float32, each of length 1.

    Raises:
        InputError: `encode` returned something else than one unit vector for each text.
    """
    vectors = encode([passage.content for passage in passages])
    checked = checked_vectors(vectors, settings.encoder.dimension, "encode returned")
    if len(checked) != len(passages):
        raise InputError(
            f"encode returned {len(checked)} vectors for {len(passages)} texts: expected one row "
            "for each text, in their order."
        )
    return truncated(checked, settings.dimension)


def truncated(vectors: Vectors, dimension: int) -> Vectors:
    """The first numbers of each vector, (n, dimension) float32, at length 1 again.

    Raises:
        InputError: A vector has nothing but zeros there.
    """
    if vectors.shape[1] == dimension:
        return vectors
    kept = vectors[:, :dimension].astype(np.float64)
    norms = np.linalg.norm(kept, axis=1, keepdims=True)
    if not norms.all():
        row = int(np.argmin(norms))
        raise InputError(
            f"The vector in row {row} is zero in its first {dimension} dimensions: keep more of "
            "them. An encoder must be trained for it that its vectors can be cut."
        )
    unit: Vectors = (kept / norms).astype(np.float32)
    return unit


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except (OSError, PassageIndexError) as error:
        # ShardWriter's own message does not know what else is kept.
        cause = error.__cause__ or error
        raise ShardNotWrittenError(f"Writing a shard failed ({cause}).") from error
