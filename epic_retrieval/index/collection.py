"""A folder of passages that is searched and changed through one object, by many threads at once.

Reads come from an open `PassageIndex`, which is opened again once the folder has changed; writes
take an `IndexWriter` for as long as one call lasts. Knows nothing of models: encoding is handed
in as a function.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias, TypeVar

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._faiss import load_faiss
from epic_retrieval.index._finding import checked_count
from epic_retrieval.index._lock import LockHeldError
from epic_retrieval.index._shard_folder import Encode
from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index._words import counted
from epic_retrieval.index.build import build_index
from epic_retrieval.index.manifest import MANIFEST, EncoderInfo, Manifest, read_manifest
from epic_retrieval.index.passage import Passage
from epic_retrieval.index.search import Hit, PassageIndex, Where
from epic_retrieval.index.where import Condition, parse
from epic_retrieval.index.writer import IndexWriter, Updated, checked_demand

# Changes whenever the manifest is replaced: its times, its inode, its size.
_State: TypeAlias = tuple[int, int, int, int]
Result = TypeVar("Result")

_PAUSE = 0.05  # seconds


class Collection:
    """Passages in an index folder, for those who read and write it in turn. Thread-safe.

        passages = Collection("out", encoder.info())
        passages.update([Passage("1", "To open a file, call open().")], encoder.encode_passages)
        hits = passages.search(encoder.encode_queries(["read a file"]), 10)

    Each call sees the state of the folder at its beginning, changes of other processes included;
    several calls on what `snapshot` returns see the same one. A change is all of it or nothing,
    and synced to the disk when the call returns: a passage takes some 25 ms on a local disk, as
    do a hundred, besides encoding; the first search afterwards some milliseconds more. So give
    `add` and `update` many passages rather than call them for each.

    A folder that does not exist is empty, and is made at the first `add` or `update`, with the
    defaults of `build_index`. For other settings build it with that; for another structure later,
    see `writing`.

    Args:
        folder: An index, or where one is to be; its parents are made too.
        encoder: Of queries and passages. None takes what is there: nothing is compared then, and
            no folder can be made.
        patience: Seconds to wait for another process that changes the folder, which it does for
            as long as a call lasts, encoding included.

    Raises:
        PassageIndexError: The folder holds an index that is damaged, or of another encoder.
        InputError: It holds something else.
        MissingExtraError: FAISS is not installed.
    """

    def __init__(
        self, folder: str | Path, encoder: EncoderInfo | None = None, *, patience: float = 30.0
    ) -> None:
        load_faiss()
        # A relative path, or a link, may lead elsewhere later.
        self._folder = Path(folder).resolve()
        self._encoder = encoder
        self._patience = patience
        self._closed = False
        self._index: PassageIndex | None = None
        self._state: _State | None = None
        self._opening = threading.Lock()
        self._writing = threading.Lock()
        if self.snapshot() is None:
            _check_free(self._folder)

    @property
    def folder(self) -> Path:
        """Where the passages are."""
        return self._folder

    @property
    def encoder(self) -> EncoderInfo | None:
        """As it was given."""
        return self._encoder

    @property
    def manifest(self) -> Manifest | None:
        """What the folder holds; None as long as there is no index in it."""
        index = self.snapshot()
        return None if index is None else index.manifest

    def snapshot(self) -> PassageIndex | None:
        """The folder as it is now; None as long as there is no index in it.

        Whatever is written afterwards, it stays as it is, and its files stay in place while
        somebody holds it. It is shared with other callers, so do not close it.

        Raises:
            PassageIndexError: The collection is closed; or the index is damaged, or was built
                again with another encoder.
        """
        with self._opening:
            if self._closed:
                raise PassageIndexError(f"{self._folder}: this collection is closed. Open another.")
            state = _state(self._folder)
            if state is None:
                self._index = None
            elif self._index is None or state != self._state:
                # Large files were compared with their checksums when the first one was opened.
                # Nobody closes the former one: it goes when the last search in it has ended.
                index = PassageIndex.open(self._folder, check=self._state is None)
                if self._encoder is not None:
                    index.check_encoder(self._encoder)
                self._index, self._state = index, state
            return self._index

    def __len__(self) -> int:
        """Number of passages."""
        index = self.snapshot()
        return 0 if index is None else len(index)

    def __repr__(self) -> str:
        # Opens nothing and waits for nobody: it may be asked for in the midst of anything.
        held = "no index yet"
        if _state(self._folder) is not None:
            try:
                manifest = read_manifest(self._folder)
                held = f"{counted(manifest.count, 'passage')}, {manifest.kind}"
            except PassageIndexError:
                held = "damaged"
        closed = ", closed" if self._closed else ""
        return f"Collection({str(self._folder)!r}, {held}{closed})"

    @property
    def passages(self) -> Iterator[Passage]:
        """All passages in the order of their rows, as they are when the first one is asked for."""
        index = self.snapshot()
        if index is not None:
            yield from index.passages

    def search(
        self,
        vectors: Vectors,
        k: int,
        where: Where | None = None,
        parameters: Mapping[str, int] | None = None,
    ) -> list[list[Hit]]:
        """The k passages with the highest cosine, for each query; see `PassageIndex.search`."""
        index = self.snapshot()
        if index is not None:
            return index.search(vectors, k, where, parameters)
        # What is wrong is wrong before there is anything, too.
        checked_count("k", k)
        if where is not None and not isinstance(where, Condition):
            parse(where)
        return [[] for _ in vectors]

    def get(self, ids: Iterable[str]) -> dict[str, Passage]:
        """The passages with these ids, in the order of the ids; absent ones are left out."""
        index = self.snapshot()
        return {} if index is None else index.get(ids)

    def add(self, passages: Iterable[Passage], encode: Encode) -> int:
        """Append passages with new ids.

        Args:
            passages: Any number, streamed.
            encode: From the `content` of up to 1,024 passages to their vectors, an array of shape
                (n, encoder.dimension), float32, each row of length 1.

        Returns:
            How many were added.

        Raises:
            InputError: An id is there already, or stands twice; or vectors are not as described.
            PassageIndexError: Another process went on writing for longer than `patience`; or
                writing failed, as on a full disk.
        """
        return self._written(passages, encode, replace=False).added

    def update(self, passages: Iterable[Passage], encode: Encode) -> Updated:
        """Append passages, in place of those that have their ids.

        A passage that is there as it is, to the letter, is neither encoded nor counted. Arguments
        and errors as for `add`; each id once.
        """
        return self._written(passages, encode, replace=True)

    def delete(self, ids: Iterable[str]) -> int:
        """Delete the passages with these ids; see `IndexWriter.delete`.

        Returns:
            How many were there.
        """
        return self._change(lambda writer: writer.delete(ids))

    def delete_where(self, condition: Where) -> int:
        """Delete the passages that match a condition on their metadata, which is not empty.

        Returns:
            How many did.
        """
        # What is wrong is wrong before there is anything, too.
        parsed = checked_demand(condition)
        return self._change(lambda writer: writer.delete_where(parsed))

    def clear(self) -> int:
        """Delete all passages; the folder keeps its encoder.

        Returns:
            How many there were.
        """
        return self._change(lambda writer: writer.clear())

    def compact(self) -> None:
        """Drop for good what was deleted, and join small shards; see `IndexWriter.compact`."""
        if self.snapshot() is not None:
            with self.writing() as writer:
                writer.compact()

    @contextmanager
    def writing(self) -> Iterator[IndexWriter]:
        """Several changes without another writer in between, or one that has no method here.

            with passages.writing() as writer:
                writer.rebuild("ivf")

        Raises:
            PassageIndexError: There is no index yet; or another process went on writing for longer
                than `patience`.
        """
        with self._writing, ExitStack() as stack:
            yield self._patiently(lambda: stack.enter_context(IndexWriter(self._folder)))

    def close(self) -> None:
        """Let go of memory and files, once the calls that run have ended; twice does nothing."""
        with self._opening:
            self._closed = True
            self._index = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _written(self, passages: Iterable[Passage], encode: Encode, *, replace: bool) -> Updated:
        rest = iter(passages)
        first = list(islice(rest, 1))
        if not first:
            return Updated(0, 0)
        everything = chain(first, rest)
        if self.snapshot() is None:
            with self._writing:
                manifest = self._patiently(lambda: self._made(everything, encode))
            if manifest is not None:
                return Updated(manifest.count, 0)
        with self.writing() as writer:
            if replace:
                return writer.update(everything, encode, encoder=self._encoder)
            return Updated(writer.add(everything, encode, encoder=self._encoder), 0)

    def _made(self, passages: Iterable[Passage], encode: Encode) -> Manifest | None:
        """The index, made from its first passages; None if somebody else was quicker."""
        if self._encoder is None:
            raise InputError(
                f"{self._folder} does not exist, and cannot be made without knowing who encodes: "
                "give the collection an encoder."
            )
        try:
            return build_index(passages, encode, self._folder, encoder=self._encoder)
        except InputError:
            # Refused before a passage was read, if there is one now.
            if _state(self._folder) is None:
                raise
            return None

    def _change(self, change: Callable[[IndexWriter], int]) -> int:
        if self.snapshot() is None:
            return 0
        with self.writing() as writer:
            return change(writer)

    def _patiently(self, attempt: Callable[[], Result]) -> Result:
        """Tried until no other process holds a lock, or patience ends."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return attempt()
            except LockHeldError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_PAUSE)


def _state(folder: Path) -> _State | None:
    try:
        found = (folder / MANIFEST).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size


def _check_free(folder: Path) -> None:
    """Whether an index can be made here is said now, not at the first passage."""
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    # Somebody may have made one at this moment.
    if taken and _state(folder) is None:
        raise InputError(
            f"{folder} holds something that is no index: give the folder of one, or an empty "
            "folder, or one that does not exist yet."
        )
