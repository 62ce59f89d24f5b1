"""Shards written anew from shards: without their deleted rows, in the usual size, or cut shorter.

The copies are made as a build makes shards, so a run that was stopped goes on where it was.
Knows nothing of manifests.
"""

import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from epic_retrieval.index._batches import EncodingSettings, batches, read_settings
from epic_retrieval.index._searchable import Reporter
from epic_retrieval.index._shard_folder import ShardFolder, is_whole
from epic_retrieval.index._swap import place_folder
from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index.checksums import check_files
from epic_retrieval.index.layout import Layout
from epic_retrieval.index.manifest import SHARDS, ShardInfo
from epic_retrieval.index.passage import Passage
from epic_retrieval.index.rows import Rows
from epic_retrieval.index.shards import Shards

_CHUNK = 1024


def rewritten(
    folder: Path,
    layout: Layout,
    groups: Sequence[range],
    *,
    settings: EncodingSettings,
    scratch: Path,
    report: Reporter,
) -> Layout:
    """Copy the living rows of some groups of shards; nothing of the index is changed.

    Args:
        folder: The index; the copies are put there, beside what is there.
        layout: Of it.
        groups: Of neighbouring shards, in order.
        settings: Of the copies; its encoder has the dimension of the vectors as they are, and
            vectors are cut to `settings.dimension`.
        scratch: Where copies are made; what an earlier run with other settings left there is
            removed. It may be removed once the result is published.
        report: Is told of every copy.

    Returns:
        The layout with the copies in place of the groups.

    Raises:
        PassageIndexError: A shard is damaged, or writing failed.
        InputError: A vector is nothing but zeros where it is cut.
        OSError: Writing failed.
    """
    known = read_settings(scratch)
    if known is not None and not known.fits(settings):
        shutil.rmtree(scratch)
    kept = ShardFolder(scratch, settings)
    kept.remove_unfinished()
    starts = layout.starts
    total = sum(len(_living(layout, starts, group)) for group in groups)
    done = written = 0
    copies = []
    for group in groups:
        members = layout.shards[group.start : group.stop]
        # A copy gets checksums of its own, which must not cover damage up.
        files = {f"{SHARDS}/{s.name}/{name}": s.files[name] for s in members for name in s.files}
        check_files(folder, files)
        rows = _living(layout, starts, group) - starts[group.start]
        with Shards(folder, members) as source:
            made = []
            for info in _copied(source, rows, kept, settings):
                made.append(info)
                done += info.rows
                written += sum(file.bytes for file in info.files.values())
                report("merging", done, total, written=written)
        copies.append([placed(folder, scratch / SHARDS / info.name, info) for info in made])
    return layout.exchanged(groups, copies)


def placed(folder: Path, source: Path, info: ShardInfo) -> ShardInfo:
    """Put a finished shard into an index, beside what is there; no file there is replaced.

    Args:
        folder: The index.
        source: Where its files lie; they may move.
        info: What they are.

    Returns:
        The same shard, under another name if another one has its own.

    Raises:
        OSError: As on a full disk.
    """
    target = folder / SHARDS / info.name
    if target.exists() and not is_whole(target, info):
        # The same passages with other bytes, which a reader may be reading: an encoder does not
        # always round the same way.
        info = replace(info, name=f"s-{secrets.token_hex(8)}")
        target = folder / SHARDS / info.name
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        place_folder(source, target)
    return info


def _living(layout: Layout, starts: Sequence[int], group: range) -> Rows:
    return layout.alive(starts[group.start], starts[group.stop])


def _copied(
    source: Shards, rows: Rows, kept: ShardFolder, settings: EncodingSettings
) -> Iterator[ShardInfo]:
    for batch in batches(_passages(source, rows), settings):
        info = kept.finished(batch.name)
        if info is None:
            vectors = _InOrder(source, rows[batch.start : batch.start + len(batch.passages)])
            info = kept.write(batch, vectors, _CHUNK)
        yield info


def _passages(source: Shards, rows: Rows) -> Iterator[Passage]:
    for start in range(0, len(rows), _CHUNK):
        yield from source.fetch(rows[start : start + _CHUNK])


class _InOrder:
    """Gives the stored vectors of some rows, call by call, as if it encoded their texts."""

    def __init__(self, source: Shards, rows: Rows) -> None:
        self._source = source
        self._rows = rows
        self._done = 0

    def __call__(self, texts: list[str]) -> Vectors:
        part = self._rows[self._done : self._done + len(texts)]
        self._done += len(part)
        return self._source.take(part)
