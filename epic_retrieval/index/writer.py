"""An index that lives: passages are added, replaced and deleted while others read it.

Each change is one generation, all of it or nothing. Knows nothing of models: encoding is handed
in as a function.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._differences import encoder_differences, incomparable
from epic_retrieval.index._searchable import Report
from epic_retrieval.index._shard_folder import Encode
from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index._words import counted
from epic_retrieval.index.changes import Changes, Limits
from epic_retrieval.index.generations import writing
from epic_retrieval.index.incoming import Incoming
from epic_retrieval.index.manifest import EncoderInfo, Manifest, read_manifest
from epic_retrieval.index.passage import JSON, Passage
from epic_retrieval.index.rows import Rows
from epic_retrieval.index.tune import Tuned
from epic_retrieval.index.where import Condition, demands_nothing, parse

_IDS_AT_ONCE = 10_000


class Updated(NamedTuple):
    """What an update did.

    Attributes:
        added: Passages with new ids.
        replaced: Passages that took the place of others.
    """

    added: int
    replaced: int


class IndexWriter:
    """The one who may change an index; use it in a `with` block, from one thread.

        with IndexWriter("out") as writer:
            writer.update(passages, encode)

    Every method makes one generation, or leaves the index as it is: at any moment, also of a crash
    or of a full disk. Whoever reads the index keeps what was opened; only opening it again shows
    the change. A long `add` that was stopped goes on with its finished shards when it is called
    again with the same passages.

    Args:
        folder: What `build_index` made.
        shard_size: Passages in a new shard, at most. By default as many as the largest shard has,
            and at least 50,000.
        exact_rows: So many passages may stand behind the FAISS structure, searched exactly, before
            `add` and `update` put them into it; a tenth of its own if that is more.
        memory: Bytes that making a structure may take; by default half of what is free.

    Raises:
        InputError: An option is not as described.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        shard_size: int | None = None,
        exact_rows: int = 50_000,
        memory: int | None = None,
    ) -> None:
        # A relative path, or a link, may lead elsewhere later.
        self._folder = Path(folder).resolve()
        self._limits = Limits(shard_size, exact_rows, memory)
        self._changes: Changes | None = None
        self._held = ExitStack()

    def __enter__(self) -> Self:
        """Begin to write.

        Raises:
            InputError: The folder cannot be written to.
            PassageIndexError: Another process writes to it, which the message names; or it is no
                index, or damaged.
        """
        if self._changes is not None:
            raise PassageIndexError(f"{self._folder}: this writer is open already.")
        # Says what is wrong with a folder that is no index, where a lock would only say "no".
        read_manifest(self._folder)
        with ExitStack() as stack:
            stack.enter_context(writing(self._folder))
            self._changes = Changes(self._folder, self._limits)
            stack.callback(self._changes.present.close)
            self._held = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let others write; a second call does nothing."""
        self._changes = None
        self._held.close()

    @property
    def manifest(self) -> Manifest:
        """What the index holds now."""
        return self._entered().present.manifest

    def __repr__(self) -> str:
        if self._changes is None:
            return f"IndexWriter({str(self._folder)!r}, not open)"
        manifest = self._changes.present.manifest
        return (
            f"IndexWriter({str(self._folder)!r}, {counted(manifest.count, 'passage')}, "
            f"{manifest.kind})"
        )

    def __len__(self) -> int:
        """Number of passages."""
        return self._entered().present.manifest.count

    def add(
        self,
        passages: Iterable[Passage],
        encode: Encode,
        *,
        encoder: EncoderInfo | None = None,
        chunk_size: int = 1024,
        total: int | None = None,
        progress: Report | None = None,
    ) -> int:
        """Append passages with new ids.

        Args:
            passages: Any number, streamed.
            encode: As for `build_index`; from the same encoder.
            encoder: Whose vectors `encode` gives, with its full dimension, to be compared with
                that of the index. None trusts the caller.
            chunk_size: Passages for each call of `encode`.
            total: Number of passages if it is known and `passages` has no length; for `progress`.
            progress: Called after each chunk, and in the stages that may follow.

        Returns:
            How many were added.

        Raises:
            InputError: An id is in the index already, or stands twice in `passages`; or vectors
                are not as described.
            PassageIndexError: Another encoder; or writing failed, as on a full disk.
        """
        written = self._written(
            passages,
            encode,
            encoder=encoder,
            chunk_size=chunk_size,
            total=total,
            progress=progress,
            replace=False,
        )
        return written.added

    def update(
        self,
        passages: Iterable[Passage],
        encode: Encode,
        *,
        encoder: EncoderInfo | None = None,
        chunk_size: int = 1024,
        total: int | None = None,
        progress: Report | None = None,
    ) -> Updated:
        """Append passages, in place of those that have their ids.

        A passage that is in the index as it is, to the letter, is neither encoded nor counted.

        Args:
            passages: Any number, streamed; each id once.
            encode: From here on as for `add`.
            encoder: To be compared.
            chunk_size: For each call of `encode`.
            total: For `progress`.
            progress: As for `add`.

        Raises:
            InputError: An id stands twice in `passages`; or vectors are not as described.
            PassageIndexError: Another encoder; or writing failed, as on a full disk.
        """
        return self._written(
            passages,
            encode,
            encoder=encoder,
            chunk_size=chunk_size,
            total=total,
            progress=progress,
            replace=True,
        )

    def delete(self, ids: Iterable[str]) -> int:
        """Delete the passages with these ids; ids that are not there are ignored.

        Their texts stay on the disk until `compact`.

        Returns:
            How many were deleted.

        Raises:
            InputError: `ids` is one text, or holds something else than texts.
            PassageIndexError: Writing failed, as on a full disk.
        """
        changes = self._open()
        found: list[int] = []
        for some in _checked_ids(ids):
            found += changes.present.shards.find(some, changes.present.layout.deleted).values()
        return self._deleted(changes, np.unique(np.array(found, dtype=np.int64)))

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Those of these ids that are not in the index, in their order, each once.

        Raises:
            InputError: As `delete`.
        """
        changes = self._open()
        given = ids if isinstance(ids, str | bytes) else list(dict.fromkeys(ids))
        found: set[str] = set()
        for some in _checked_ids(given):
            found |= changes.present.shards.find(some, changes.present.layout.deleted).keys()
        return [key for key in given if key not in found]

    def delete_where(self, condition: Mapping[str, JSON] | Condition) -> int:
        """Delete the passages that match a condition on their metadata.

        Args:
            condition: As `epic_retrieval.index.where.parse` describes, but it demands something:
                to delete everything there is `clear`.

        Returns:
            How many were deleted.

        Raises:
            InputError: The condition is not as described.
            PassageIndexError: Writing failed, as on a full disk.
        """
        changes = self._open()
        parsed = checked_demand(condition)
        matches = changes.present.shards.where(parsed)
        return self._deleted(changes, np.setdiff1d(matches, changes.present.layout.deleted))

    def clear(self) -> int:
        """Delete all passages; the index keeps its encoder.

        Returns:
            How many were deleted.

        Raises:
            PassageIndexError: Writing failed, as on a full disk.
        """
        changes = self._open()
        layout = changes.present.layout
        return self._deleted(changes, np.setdiff1d(np.arange(layout.rows), layout.deleted))

    def compact(self, progress: Report | None = None) -> Manifest:
        """Drop what was deleted, and merge small shards.

        The FAISS structure is filled again, if rows before its end have moved, but not trained
        again; its recall is measured again. Nothing is encoded.

        Args:
            progress: Called now and then.

        Returns:
            The manifest afterwards; the same as before if there was nothing to do.

        Raises:
            InputError: The structure does not fit into memory.
            PassageIndexError: A shard is damaged; or writing failed, as on a full disk.
        """
        return self._open().compact(progress)

    def rebuild(
        self,
        kind: str = "auto",
        *,
        memory: int | None = None,
        dimension: int | None = None,
        target: float = 0.95,
        progress: Report | None = None,
    ) -> Manifest:
        """Train another FAISS structure on the stored vectors; nothing is encoded.

        Args:
            kind: As for `build_index`: "flat" leaves none.
            memory: Bytes to take; None as the writer was made with.
            dimension: Keep only so many dimensions of each vector (Matryoshka), at length 1 again.
                There is no way back.
            target: Wished recall.
            progress: Called now and then.

        Returns:
            The manifest afterwards.

        Raises:
            InputError: The kind does not serve for these vectors, or there are fewer dimensions.
            PassageIndexError: A shard is damaged; or writing failed, as on a full disk.
        """
        return self._open().rebuild(kind, memory, dimension, target, progress)

    def tune(self, target: float = 0.95, queries: Vectors | None = None) -> Tuned:
        """Find the fastest search parameters for a wished recall, and keep them.

        Args:
            target: Wished recall, over 0, at most 1.
            queries: (n, dimension) float32, rows of length 1: queries as they will be asked; of
                an index that keeps less of each vector, the full width will do; fewer than 50
                say little of others. None takes stored vectors, moved away from their places.

        Raises:
            InputError: Queries or target are not as described; or search is exact anyway.
            PassageIndexError: Writing failed, as on a full disk.
        """
        return self._open().tune(target, queries)

    def _written(
        self,
        passages: Iterable[Passage],
        encode: Encode,
        *,
        encoder: EncoderInfo | None,
        chunk_size: int,
        total: int | None,
        progress: Report | None,
        replace: bool,
    ) -> Updated:
        changes = self._open()
        if encoder is not None:
            check_encoder(self._folder, changes.present.manifest, encoder)
        incoming = Incoming(changes.present.shards, changes.present.layout.deleted, replace=replace)
        shards = changes.encoded(
            incoming,
            passages,
            encode,
            chunk_size=chunk_size,
            total=total,
            progress=progress,
        )
        replaced = incoming.replaced
        if shards:
            changes.append(shards, replaced, progress)
        return Updated(sum(shard.rows for shard in shards) - len(replaced), len(replaced))

    def _deleted(self, changes: Changes, rows: Rows) -> int:
        if len(rows):
            changes.remove(rows)
        return len(rows)

    def _entered(self) -> Changes:
        if self._changes is None:
            raise PassageIndexError(
                f"{self._folder}: this writer is not open, and holds no lock. Use it in a `with` "
                "block: `with IndexWriter(folder) as writer: ...`."
            )
        return self._changes

    def _open(self) -> Changes:
        changes = self._entered()
        changes.present.refresh()
        return changes


def check_encoder(folder: Path, manifest: Manifest, encoder: EncoderInfo) -> None:
    """Make sure that passages of this encoder may join those of an index.

    Args:
        folder: For messages.
        manifest: Of the index.
        encoder: With the dimension that it gives.

    Raises:
        PassageIndexError: They may not.
    """
    built = manifest.encoder
    full = manifest.truncated_from or built.dimension
    whole = replace(built, dimension=full)
    if encoder_differences(whole, encoder):
        raise PassageIndexError(incomparable(folder, whole, encoder))


def checked_demand(condition: Mapping[str, JSON] | Condition) -> Condition:
    """A condition that says what to delete, as a tree.

    Raises:
        InputError: It is not as `parse` describes, or demands nothing, so that all would go.
    """
    parsed = condition if isinstance(condition, Condition) else parse(condition)
    if demands_nothing(parsed):
        raise InputError(
            "The condition is empty, which every passage matches: say which to delete, such as "
            '{"lang": "en"}, or use clear() to delete all.'
        )
    return parsed


def _checked_ids(ids: Iterable[str]) -> Iterator[list[str]]:
    """The ids, some thousands at a time."""
    if isinstance(ids, str | bytes):
        raise InputError(f"ids is one text, {ids!r}: expected a list of ids, such as [{ids!r}].")
    rest = iter(ids)
    while some := list(islice(rest, _IDS_AT_ONCE)):
        for key in some:
            if not isinstance(key, str):
                raise InputError(f"ids holds {key!r}: expected texts, as ids are.")
        # Half a surrogate pair is in no id.
        yield [key for key in some if key.encode(errors="ignore").decode() == key]
