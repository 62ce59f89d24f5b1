"""What the engines of the first stage have in common: local or on a cluster, they make the same.

Finds finished shards again, checks ids over all of them, and says what a failure leaves behind.
Knows nothing of how passages are encoded.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._batches import Batch, EncodingSettings
from epic_retrieval.index._shard_folder import ShardFolder, ShardNotWrittenError
from epic_retrieval.index._swap import shortage
from epic_retrieval.index._twins import duplicates
from epic_retrieval.index._words import counted
from epic_retrieval.index.manifest import ShardInfo, read_manifest
from epic_retrieval.index.shards import Shards


def read_ahead(coming: Iterator[Batch]) -> Iterator[Batch]:
    """The same, the next one being read while one is encoded."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, coming, None)
        while (batch := following.result()) is not None:
            following = pool.submit(next, coming, None)
            yield batch


def find_shard(
    name: str, kept: ShardFolder, elsewhere: Sequence[tuple[Path, Mapping[str, ShardInfo]]]
) -> ShardInfo | None:
    """A shard that need not be encoded, wherever it is; it is in `kept` afterwards."""
    own = kept.finished(name)
    for place, shards in elsewhere:
        info = shards.get(name)
        if info is None and own is None:
            # A build that was stopped while it moved its shards there left the note here.
            info = kept.note(name)
        # What another index holds under this name must be the same, bit for bit.
        if info is not None and info != own and kept.adopt(info, place / name):
            return info
    return own


def shards_of(folder: Path) -> dict[str, ShardInfo]:
    """The shards of an index by name; none if it is no index, or a damaged one."""
    try:
        return {shard.name: shard for shard in read_manifest(folder).shards}
    except PassageIndexError:
        return {}


def check_ids(folder: Path, shards: Sequence[ShardInfo]) -> None:
    """Make sure that no id stands twice; memory stays bounded.

    Raises:
        InputError: One does, at two passages that the message tells.
    """
    if not shards:
        return
    with Shards(folder, shards) as opened:
        twin = duplicates([shard for _, shard in opened])
    if twin is not None:
        raise InputError(str(twin))


def explained(
    error: ShardNotWrittenError,
    folder: Path,
    shards: Sequence[ShardInfo],
    batch: Batch | None,
    settings: EncodingSettings,
    total: int | None,
) -> PassageIndexError:
    """The error for a shard that could not be written, with what is kept and how much is missing.

    Args:
        error: What happened.
        folder: Holds the finished shards.
        shards: These.
        batch: The passages that were being written, if that is known.
        settings: Of the vectors.
        total: Number of passages, if it is known.
    """
    needed = None
    if batch is not None:
        rows = sum(shard.rows for shard in shards)
        size = sum(file.bytes for shard in shards for file in shard.files.values())
        left = len(batch.passages) if total is None else max(total - rows, len(batch.passages))
        # Before the first shard a guess: text and what finds it take more than the text alone.
        width = settings.dimension * (4 if settings.dtype == "float32" else 2)
        guess = width + 16 + 1.5 * batch.bytes / len(batch.passages)
        needed = left * (size / rows if rows else guess)
    return PassageIndexError(
        f"{error} {kept_text(folder, shards)} {shortage(folder, needed)} Then run the same command "
        "again: it goes on from there."
    )


def kept_text(folder: Path, shards: Sequence[ShardInfo]) -> str:
    """One sentence on what a run that fails leaves behind."""
    if not shards:
        return f"No shard was finished yet in {folder}."
    rows = sum(shard.rows for shard in shards)
    are = "is" if len(shards) == 1 else "are"
    kept = f"{counted(len(shards), 'finished shard')} ({counted(rows, 'passage')})"
    return f"{kept} {are} kept in {folder}."
