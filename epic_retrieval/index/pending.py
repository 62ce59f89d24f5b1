"""What a change of an index that was stopped leaves behind, for the same command to go on with.

`pending/encoding` has shards of passages that are being added, `pending/copies` those that are
written anew, `pending/structure` a FAISS structure that is being made. All of it may be removed
while nobody writes. Knows nothing of what is in the index.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index._batches import EncodingSettings, read_settings
from epic_retrieval.index._engine import kept_text
from epic_retrieval.index._shard_folder import FINISHED, finished_shards
from epic_retrieval.index._words import counted
from epic_retrieval.index.manifest import SHARDS, Manifest, ShardInfo
from epic_retrieval.storage import write_atomically

logger = logging.getLogger(__name__)

PENDING = "pending"

_PROMISE = "promise.json"


class Pending:
    """The unfinished work in an index folder; for its writer alone.

    Args:
        folder: The index.
        present: Its manifest.

    Raises:
        PassageIndexError: What should hold it is a link.
    """

    def __init__(self, folder: Path, present: Manifest) -> None:
        self.folder = folder / PENDING
        self.encoding = self.folder / "encoding"
        self.copies = self.folder / "copies"
        self.structure = self.folder / "structure"
        for path in (self.folder, self.encoding, self.copies, self.structure):
            if path.is_symlink():
                raise PassageIndexError(
                    f"{path} is a link, which could lead out of the index: remove it."
                )
        self.settle(present)
        kept = self._encoded()
        if kept:
            logger.info(
                "%s: %s The command that was stopped goes on from there; to give it up, remove "
                "that folder.",
                folder,
                kept_text(self.encoding, kept),
            )

    def settle(self, present: Manifest) -> None:
        """Forget what a command that was stopped right after it published this is done with."""
        names = self._promised(present)
        if names is not None:
            self.forget(names)

    def settings(self, wanted: EncodingSettings) -> EncodingSettings:
        """The settings to go on encoding with; what was begun for other vectors is removed."""
        known = read_settings(self.encoding)
        if known is not None:
            # Elsewhere cut, its shards would not be found.
            wanted_so = replace(wanted, shard_size=known.shard_size)
            if known.fits(wanted_so):
                return wanted_so
            if self._encoded():
                logger.warning(
                    "%s: threw away %s begun with other settings, %s",
                    self.encoding,
                    counted(len(self._encoded()), "finished shard"),
                    known,
                )
            shutil.rmtree(self.encoding)
        return wanted

    def explain(self, error: BaseException) -> None:
        """Say of a failure of encoding what it leaves behind; nothing if that is of no use."""
        kept = self._encoded()
        if kept:
            error.add_note(f"{kept_text(self.encoding, kept)} The same command goes on from there.")
        else:
            self.tidy()

    def tidy(self) -> None:
        """Remove the folder for encoding if nothing in it is finished."""
        if not self._encoded():
            self._remove(self.encoding)

    def promise(self, manifest: Manifest, names: Iterable[str]) -> None:
        """Note what can be forgotten once this manifest is published, should that be a kill's time.

        Args:
            manifest: That will be.
            names: Of the shards in `encoding` that it holds.

        Raises:
            OSError: As on a full disk.
        """
        if self.folder.is_dir():
            content = {"updated": manifest.updated, "encoded": list(names)}
            write_atomically(self.folder / _PROMISE, json.dumps(content).encode())

    def forget(self, names: Iterable[str]) -> None:
        """Remove what is in the index now: copies, structures, and these shards of `encoding`.

        Shards of another command that was stopped stay.
        """
        if not self.folder.is_dir():
            return
        self._remove(self.copies)
        self._remove(self.structure)
        for name in names:
            with contextlib.suppress(OSError):
                (self.encoding / FINISHED / f"{name}.json").unlink()
            shutil.rmtree(self.encoding / SHARDS / name, ignore_errors=True)
        self.tidy()
        with contextlib.suppress(OSError):
            for path in [*self.folder.glob(_PROMISE), *self.folder.glob(f".{_PROMISE}.*")]:
                path.unlink()
            self.folder.rmdir()

    def _promised(self, present: Manifest) -> list[str] | None:
        """The shards that a command published just before it was stopped; None if it did not."""
        try:
            content = json.loads((self.folder / _PROMISE).read_bytes())
            names = [str(name) for name in content["encoded"]]
            return names if content["updated"] == present.updated else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _encoded(self) -> list[ShardInfo]:
        return finished_shards(self.encoding)

    def _remove(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()
