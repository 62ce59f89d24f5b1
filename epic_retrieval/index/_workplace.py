"""Where an index is built: beside `out`, kept when the build is stopped, put in place at the end.

Knows nothing of how it is built.
"""

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._batches import EncodingSettings, read_settings
from epic_retrieval.index._differences import settings_differences
from epic_retrieval.index._lock import exclusive
from epic_retrieval.index._shard_folder import FINISHED, finished_shards
from epic_retrieval.index._swap import place_file, place_folder
from epic_retrieval.index._words import counted
from epic_retrieval.index.generations import publish, sweep, sync, writing
from epic_retrieval.index.manifest import (
    INDEX,
    SEARCH,
    SETTINGS,
    SHARDS,
    Manifest,
    ShardInfo,
    is_index,
    read_manifest,
)

logger = logging.getLogger(__name__)

_TRAINING = "training"
_INDEX = "index"
_OWN = {SETTINGS, SHARDS, FINISHED, _TRAINING, _INDEX}
# Of format 1, which was never released.
_FORMER_FILES = ("vectors.faiss", "passages.sqlite")


class Workplace:
    """The folder of a build that is under way; make one with `workplace`.

    Args:
        out: The index that will be.
        overwrite: Whether it may replace one.
    """

    def __init__(self, out: Path, *, overwrite: bool) -> None:
        self.out = out
        self.folder = out.with_name(f".{out.name}.building")
        self._overwrite = overwrite
        self._locks = ExitStack()
        self._holds_out = False

    @property
    def training(self) -> Path:
        """Where structures are made, each in a folder of its own."""
        return self.folder / _TRAINING

    @property
    def others(self) -> Sequence[Path]:
        """Other folders that may hold finished shards of this build."""
        return [self.folder / _INDEX, self.out]

    def clear(self) -> None:
        """Remove what a build left that was stopped at its very end: all of it is in the index."""
        if self._overwrite or not self.folder.is_dir() or self._foreign():
            return
        try:
            there = {shard.name for shard in read_manifest(self.out).shards}
        except PassageIndexError:
            return
        if {shard.name for shard in self.finished()} <= there:
            self.remove()

    def begin(self, settings: EncodingSettings) -> None:
        """Make the folder ready: what an earlier build left is kept if it is of any use.

        Raises:
            InputError: It holds finished work of another build, or what is not ours.
        """
        foreign = self._foreign()
        if foreign:
            raise InputError(
                f'{self.folder} is where this index would be built, but holds "{foreign[0]}", '
                "which is no part of a build: move it elsewhere, or choose another folder."
            )
        known = read_settings(self.folder)
        if known is None or known.fits(settings):
            return
        finished = len(self.finished())
        if finished and not self._overwrite:
            raise InputError(
                f"{self.folder} holds {counted(finished, 'finished shard')} of a build that was "
                f"stopped, with other settings: {settings_differences(known, settings)}. Go on "
                "with the former ones, or pass overwrite=True (--overwrite) to throw that work "
                "away, or remove the folder."
            )
        if finished:
            logger.warning(
                "%s: threw away %s of a build with other settings, %s",
                self.folder,
                counted(finished, "finished shard"),
                known,
            )
        shutil.rmtree(self.folder)

    def finished(self) -> list[ShardInfo]:
        """The shards that are finished, in no order."""
        return finished_shards(self.folder)

    def finish(self, manifest: Manifest, structure: Path | None) -> Manifest:
        """Put the index in its place; the former one, if any, serves until that moment.

        Args:
            manifest: Of the new index; its shards lie in `folder`.
            structure: The file that `manifest.search` describes, if there is one.

        Returns:
            The manifest as published.

        Raises:
            InputError: `out` is no longer free.
            PassageIndexError: Another process writes to the index at `out`.
            OSError: Writing failed; all work is kept.
        """
        # Hours may have passed: look again before anything is replaced.
        self.check_out()
        target = self.out if is_index(self.out) else self.folder / _INDEX
        if target != self.out:
            shutil.rmtree(target, ignore_errors=True)
        for shard in manifest.shards:
            (target / SHARDS).mkdir(parents=True, exist_ok=True)
            place_folder(self.folder / SHARDS / shard.name, target / SHARDS / shard.name)
        if structure is not None and manifest.search is not None:
            place_file(structure, target / SEARCH / manifest.search.name / INDEX)
        manifest = publish(target, manifest)
        if target == self.out:
            for name in _FORMER_FILES:
                (target / name).unlink(missing_ok=True)
            sweep(target)
        else:
            if self.out.exists():
                self.out.rmdir()
            target.rename(self.out)
        sync(self.out.parent)
        self.remove()
        return manifest

    def remove(self) -> None:
        """Remove the folder and all in it."""
        # Its settings go first: what is left then is nobody's work.
        (self.folder / SETTINGS).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def check_out(self) -> None:
        """Make sure that `out` may become the index, and that nobody else writes to it.

        Raises:
            InputError: It must not be replaced.
            PassageIndexError: It is an index that another process writes to.
        """
        out = self.out
        if not out.exists():
            return
        if not out.is_dir():
            raise InputError(f"{out} is a file: an index is a folder; choose another path.")
        if not any(out.iterdir()):
            return
        if not is_index(out):
            raise InputError(
                f"{out} exists and is not an index, so it is left alone: choose another folder, or "
                "remove this one yourself."
            )
        if not self._overwrite:
            raise InputError(
                f"{out} already holds an index: choose another folder, pass overwrite=True "
                "(--overwrite) to replace it, or add to it with IndexWriter (epic index add)."
            )
        if not self._holds_out:
            # What is added to an index while it is built again would be lost.
            self._locks.enter_context(writing(out))
            self._holds_out = True

    def close(self) -> None:
        """Let go of the index at `out`."""
        self._locks.close()

    def _foreign(self) -> list[str]:
        if not self.folder.exists():
            return []
        names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else {"."}
        return sorted(name for name in names - _OWN if not name.startswith(f".{SETTINGS}."))


@contextmanager
def workplace(out: Path, *, overwrite: bool) -> Iterator[Workplace]:
    """Be the one who builds `out`.

    Raises:
        InputError: `out` is something that must not be replaced, or cannot be written.
        PassageIndexError: Another process is building `out`, or changing the index there.
    """
    out = Path(os.path.realpath(out))
    if not out.name:
        raise InputError(f"{out}: the root of a file system is no place for an index.")
    with ExitStack() as stack:
        place = Workplace(out, overwrite=overwrite)
        stack.callback(place.close)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(out.with_name(f".{out.name}.lock"), str(out)))
            place.clear()
            place.check_out()
        except OSError as error:
            raise InputError(
                f"{out}: an index cannot be written here ({error.strerror or error}; "
                f"{error.filename or out.parent}). Choose a folder that you may write to."
            ) from error
        yield place
