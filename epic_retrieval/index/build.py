"""Builds an index folder from passages and an encode function, in stages that can be resumed.

Knows nothing of models: encoding is handed in as a function.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._batches import EncodingSettings
from epic_retrieval.index._engine import kept_text
from epic_retrieval.index._faiss import load_faiss
from epic_retrieval.index._memory import default_memory
from epic_retrieval.index._searchable import (
    Reporter,
    Searchable,
    check_kind,
    check_target,
    choice_text,
    folder_for,
    make_searchable,
)
from epic_retrieval.index._shard_folder import Encode
from epic_retrieval.index._swap import shortage
from epic_retrieval.index._workplace import Workplace, workplace
from epic_retrieval.index.choice import FLAT, choose
from epic_retrieval.index.encode import Progress, encode_shards
from epic_retrieval.index.manifest import EncoderInfo, Manifest, SearchInfo, ShardInfo
from epic_retrieval.index.passage import Passage
from epic_retrieval.index.shards import Shards


def build_index(  # noqa: PLR0913 (the options of a build)
    passages: Iterable[Passage],
    encode: Encode | Callable[[], Encode],
    out: str | Path,
    *,
    encoder: EncoderInfo,
    kind: str = "auto",
    memory: int | None = None,
    dtype: str = "float32",
    dimension: int | None = None,
    shard_size: int = 50_000,
    chunk_size: int = 1024,
    overwrite: bool = False,
    target_recall: float = 0.95,
    total: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    corpus: str = "",
    engine: Callable[..., list[ShardInfo]] = encode_shards,
) -> Manifest:
    """Encode passages and write them, with a structure that finds them, as the folder `out`.

    The work is done in a hidden folder beside `out`, and put in place at the very end in one step.
    A build that is stopped, at any moment, leaves no folder that could be taken for an index; the
    same call goes on where it was, and at most one shard is encoded again. In memory: the texts of
    two shards, and for the structure what `memory` says.

    1. Passages are encoded, shard by shard; a shard that is finished is never encoded again, also
       if others change. An index that is replaced gives the shards that are still the same.
    2. A structure is chosen by number, width and memory, trained on a sample, and filled.
    3. Its recall is measured against exact search with queries made from stored vectors, and its
       parameters are set so that the recall is as wished with 95 % confidence.

    Args:
        passages: Any number, streamed, by a thread that reads ahead; at least one.
        encode: From the `content` of up to `chunk_size` passages to their vectors, an array of
            shape (n, encoder.dimension), float32, each row of length 1; or what `engine` wants.
        out: The folder to make; parents are made too. A path that exists must be an empty folder,
            or an index if `overwrite`.
        encoder: Who encodes, with the dimension that it gives; searching checks it.
        kind: "auto", "flat" (exact), "hnsw", "ivf", "ivf-sq8", "ivf-pq", or a string of FAISS's
            index_factory.
        memory: Bytes that the structure may take while it is made; None is half of what is free.
        dtype: Of the stored vectors: "float32" or "float16".
        dimension: Keep so many numbers of each vector, from its start, and normalise again, for
            encoders that were trained for it; None keeps all.
        shard_size: Passages in a shard, at most.
        chunk_size: Passages for each call of `encode`.
        overwrite: Replace an index, and throw away unfinished work with other settings. The old
            index serves until the new one is complete, and its readers keep what they opened.
        target_recall: Wished recall@10, more than 0 and at most 1; without meaning for "flat".
        total: Number of passages where `passages` has no length but it is known: for progress,
            and to refuse a `kind` that cannot work before anything is encoded.
        progress: Called after each chunk and step.
        corpus: Name of the corpus, for the manifest.
        engine: Makes the shards, from `encode` as it wants it: `encode_shards`, or
            `encode_shards_ray` with its options as a `functools.partial`, on many machines.

    Returns:
        The manifest of the new index.

    Raises:
        InputError: No passages, a repeated id, vectors that are not as described, settings that
            are impossible, or an `out` that must not be replaced or cannot be written.
        PassageIndexError: Another process is building or changing `out`, or writing failed (a full
            disk). What is finished is kept.
        MissingExtraError: FAISS is not installed.
    """
    load_faiss()
    settings = EncodingSettings(
        encoder, dtype, encoder.dimension if dimension is None else dimension, shard_size
    )
    if total is None and isinstance(passages, Sized):
        total = len(passages)
    check_target(target_recall)
    if memory is not None and memory < 1:
        raise InputError(f"memory is {memory}: expected a number of bytes, or None.")
    check_kind(kind, total, settings.dimension, memory or default_memory())
    with workplace(Path(out), overwrite=overwrite) as place:
        place.begin(settings)
        with _keeping(place):
            shards = engine(
                passages,
                encode,
                place.folder,
                settings=settings,
                chunk_size=chunk_size,
                reuse=place.others,
                total=total,
                progress=progress,
            )
            if not shards:
                raise InputError("There are no passages to index: give at least one.")
            report = Reporter(progress, len(shards))
            made = _made_searchable(
                place, shards, kind, memory or default_memory(), target_recall, report
            )
            with _disk(place, shards):
                manifest = _manifest(settings, shards, made.info if made else None, corpus)
                return place.finish(manifest, made.file if made else None)


def _made_searchable(
    place: Workplace,
    shards: Sequence[ShardInfo],
    kind: str,
    memory: int,
    target: float,
    report: Reporter,
) -> Searchable | None:
    with Shards(place.folder, shards) as rows:
        choice = choose(kind, len(rows), rows.dimension, memory)
        report("choosing", len(rows), len(rows), note=choice_text(choice))
        if choice.factory == FLAT:
            return None
        with _disk(place, shards, choice.bytes_per_vector * len(rows)):
            folder = folder_for(place.training, choice, shards)
            return make_searchable(
                rows, choice, folder, memory=memory, target=target, report=report
            )


def _manifest(
    settings: EncodingSettings,
    shards: Sequence[ShardInfo],
    search: SearchInfo | None,
    corpus: str,
) -> Manifest:
    now = dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")
    return Manifest(
        generation=1,  # set when it is published
        count=sum(shard.rows for shard in shards),
        dtype=settings.dtype,
        encoder=settings.stored,
        shards=tuple(shards),
        search=search,
        deleted=None,
        created=now,
        updated=now,
        package_version=package_version(),
        corpus=corpus,
        truncated_from=settings.truncated_from,
    )


@contextmanager
def _keeping(place: Workplace) -> Iterator[None]:
    """Says of every failure what it leaves behind, and leaves nothing if that is of no use."""
    try:
        yield
    except BaseException as error:
        finished = place.finished()
        if finished:
            error.add_note(
                f"{kept_text(place.folder, finished)} The same command goes on from there."
            )
        else:
            if isinstance(error, KeyboardInterrupt):
                error.add_note("With a smaller shard_size less is lost.")
            place.remove()
        raise


@contextmanager
def _disk(
    place: Workplace, shards: Sequence[ShardInfo], needed: float | None = None
) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PassageIndexError(
            f"Writing the index failed ({error}). {kept_text(place.folder, shards)} "
            f"{shortage(place.folder, needed)} Then run the same command again: it goes on from "
            "there."
        ) from error


def package_version() -> str:
    """Of this package; "unknown" where it is used from a source tree that was never installed."""
    try:
        return metadata.version("epic-retrieval")
    except metadata.PackageNotFoundError:
        return "unknown"
