"""`EpicVectorStore`: an index folder behind LangChain's `VectorStore`.

Knows LangChain's interface and the public names of epic_retrieval; neither files nor models.
"""

import copy
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from typing_extensions import override

from epic_retrieval import (
    Collection,
    EncoderInfo,
    InputError,
    PassageIndex,
    PassageIndexError,
    Task,
)
from langchain_epic._documents import as_list, document_of, passages_of
from langchain_epic._searching import Searching, refuse
from langchain_epic._vectors import PROBE, probed, units
from langchain_epic.embeddings import EpicEmbeddings, configured


class EpicVectorStore(Searching):
    """Documents in an index folder, found by the cosine of their embeddings.

        store = EpicVectorStore("index", EpicEmbeddings(task="web-search"))
        store.add_texts(["Asthma is treated with inhaled corticosteroids."], [{"year": 2021}])
        store.similarity_search("how is asthma treated", k=1, filter={"year": {"$gte": 2020}})

    Every search takes `filter`, a condition on metadata as MongoDB writes them, and `parameters`,
    which replace those stored with the index ("nprobe", "efSearch", "candidates"). Scores are
    cosines, in [-1, 1]; relevance scores are (1 + cosine) / 2, in [0, 1].

    What is added is on the disk, and found, when the call returns; each call costs some 25 ms
    besides embedding, so add many documents at once. Threads and processes may share a folder:
    each search sees its state at that moment, and those who write wait for each other.

    Page content reaches the embeddings unchanged, and metadata come back as JSON has them (tuples
    as lists). A passage that was indexed from a file with a title has it in its metadata as
    "title", which a filter does not see; a document that is added again with its id and this
    "title" keeps it there, and so its vector.

    Documents without ids get new ones at each call, so a program that adds them each time it runs
    doubles the index: give ids, or use LangChain's `index()` with a record manager.

    Args:
        folder: An index, or where one is to be made by the first documents; None is a temporary
            one that goes with the store.
        embedding: `EpicEmbeddings`, of any task; or others, which embed a sentence now, so that
            an index of another model is refused. Their vectors are brought to length 1.
        patience: Seconds to wait for another process that changes the folder.

    Raises:
        PassageIndexError: The index was built with another model, or is damaged.
        InputError: The folder holds something else, or the embeddings give no vectors.
        MissingExtraError: FAISS is not installed.
    """

    def __init__(
        self, folder: str | Path | None, embedding: Embeddings, *, patience: float = 30.0
    ) -> None:
        if not isinstance(embedding, Embeddings):
            raise InputError(
                f"embedding is of type {type(embedding).__name__}; expected LangChain Embeddings,"
                " such as EpicEmbeddings()"
            )
        info = _encoder_info(embedding, folder)
        place = tempfile.mkdtemp(prefix="epic-") if folder is None else folder
        super().__init__(Collection(place, info, patience=patience), embedding)
        if folder is None:
            weakref.finalize(self.collection, shutil.rmtree, place, ignore_errors=True)

    @classmethod
    def open(cls, folder: str | Path, *, patience: float = 30.0, **settings: Any) -> Self:  # noqa: ANN401 (of EpicEmbeddings, which checks them)
        """Open an index, such as `epic index build` makes, with the model that it names.

        Args:
            folder: The index.
            patience: As for the class.
            settings: Of `EpicEmbeddings`: task, mode, device and so on. The task of a symmetric
                index is its own by default.

        Raises:
            PassageIndexError: There is no index, or it is damaged, or the model has changed.
            InputError: A setting cannot be used, such as the name of a task that there is not; or
                the index was built with embeddings that have to be given.
            CheckpointError: The model cannot be loaded.
        """
        with PassageIndex.open(folder, check=False) as index:
            built = index.manifest.encoder
        if built.fingerprint.startswith(PROBE):
            raise InputError(
                f"{folder} was built with {built.name}, which has to be given:"
                " EpicVectorStore(folder, embedding)"
            )
        if built.task is not None and not settings.keys() & {"task", "instruction"}:
            settings["task"] = built.task
        if "encoder" not in settings:
            settings.setdefault("model", built.name)
        return cls(folder, configured(settings), patience=patience)

    @property
    @override
    def embeddings(self) -> Embeddings:
        """As they were given."""
        return self._embedding

    def with_task(self, task: Task | str) -> Self:
        """The same folder, for queries of another task; nothing is indexed again.

        Raises:
            InputError: The task is unknown, or one of the two is symmetric, whose passages are
                encoded with its instruction and demonstrations; or the embeddings know no tasks.
        """
        if not isinstance(self._embedding, EpicEmbeddings):
            raise InputError(f"{type(self._embedding).__name__} has no tasks; use EpicEmbeddings")
        changed = self._embedding.with_task(task)
        if changed.info() != self._embedding.info():
            raise InputError(
                f"the passages in {self.collection.folder} are not encoded as those for the task"
                f" {task if isinstance(task, str) else task.name!r}, since the one or the other is"
                " symmetric; make another store, in another folder"
            )
        other = copy.copy(self)
        other._embedding = changed  # noqa: SLF001 (of this class)
        return other

    @override
    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed texts and add them, all or none; those whose ids are there are replaced.

        A long call that was stopped goes on where it was, if it is made again with the same ids.

        Args:
            texts: Any number; none blank.
            metadatas: One for each text, of what JSON can hold.
            ids: One for each text; None makes one. Of several texts with one id the last counts.
            batch_size: Most texts in a call of the embeddings; 1,024 if it is not given.

        Returns:
            The ids, in order.

        Raises:
            InputError: Something is not as described.
            PassageIndexError: Another process went on writing for longer than `patience`; or
                writing failed, as on a full disk.
        """
        refuse(kwargs)
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected at least 1")
        named = None if ids is None else as_list(ids, "ids")
        there = self.collection.get([one for one in named or () if isinstance(one, str)])
        passages = passages_of(texts, metadatas, named, there)

        def encode(contents: list[str]) -> np.ndarray:
            step = batch_size or len(contents)
            batches = (contents[n : n + step] for n in range(0, len(contents), step))
            return units([row for some in batches for row in self._embedding.embed_documents(some)])

        self.collection.update({passage.id: passage for passage in passages}.values(), encode)
        return [passage.id for passage in passages]

    @override
    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete documents by their ids, those that are there; without any argument, all.

        Args:
            ids: Theirs.
            kwargs: `filter`: instead of ids, a condition on metadata.

        Returns:
            True.

        Raises:
            InputError: A filter that is empty or None, or one together with ids.
        """
        by_condition = "filter" in kwargs
        condition = kwargs.pop("filter", None)
        refuse(kwargs)
        if ids is not None:
            if condition is not None:
                raise InputError("got both ids and a filter; expected one of them")
            self.collection.delete(as_list(ids, "ids"))
        elif not by_condition:
            self.collection.clear()
        elif condition is None or condition == {}:
            raise InputError(
                f"filter is {condition}, which would delete everything; call delete() without"
                " arguments for that"
            )
        else:
            self.collection.delete_where(condition)
        return True

    @override
    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents with these ids, in their order; absent ones are left out."""
        return [document_of(found) for found in self.collection.get(as_list(ids, "ids")).values()]

    @classmethod
    @override
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        folder: str | Path | None = None,
        **kwargs: Any,
    ) -> Self:
        """A store with these texts added; of the class's arguments and those of `add_texts`."""
        patience = {key: kwargs.pop(key) for key in ("patience",) if key in kwargs}
        store = cls(folder, embedding, **patience)
        store.add_texts(texts, metadatas, ids=ids, **kwargs)
        return store

    def __len__(self) -> int:
        """How many documents there are."""
        return len(self.collection)

    def __bool__(self) -> bool:
        return True  # an empty store is a store: `if store` asks whether there is one

    def __repr__(self) -> str:
        try:
            state = f"{len(self)} documents"
        except PassageIndexError:
            state = "closed or damaged"
        whose = self._embedding
        # A task that was given by name is a Task by now.
        task = whose.task if isinstance(whose, EpicEmbeddings) else None
        asks = f"task {task.name!r}" if isinstance(task, Task) else type(whose).__name__
        return f"{type(self).__name__}({str(self.collection.folder)!r}, {state}, {asks})"

    def close(self) -> None:
        """Let go of memory and files; those that `with_task` made are closed with it."""
        self.collection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _encoder_info(embedding: Embeddings, folder: str | Path | None) -> EncoderInfo:
    if isinstance(embedding, EpicEmbeddings):
        return embedding.info()
    if folder is None:
        return probed(embedding, None)
    with Collection(folder) as there:
        manifest = there.manifest
    return probed(embedding, None if manifest is None else manifest.encoder)
