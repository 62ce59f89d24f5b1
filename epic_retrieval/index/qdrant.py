"""Passages and their vectors for Qdrant, on a server or in a folder of this machine.

Knows nothing of search.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epic_retrieval.errors import InputError, MissingExtraError, PassageIndexError
from epic_retrieval.index._source import Source, open_source
from epic_retrieval.index.passage import Passage

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

# Qdrant takes numbers and UUIDs as ids, no text. Never change this.
_NAMESPACE = uuid.UUID("0bd0c5a4-8f0c-4f5b-9a6e-6f3f0f0f7d51")
_OWN = ("id", "title", "text")
_ABOUT = "epic_retrieval"
_TIMEOUT = 120  # seconds, for one batch


def point_id(passage_id: str) -> str:
    """The UUID of a passage's point: the same for the same id, wherever it comes from."""
    return str(uuid.uuid5(_NAMESPACE, passage_id))


def export_qdrant(
    folder: str | Path,
    collection: str,
    *,
    location: str | Path,
    api_key: str | None = None,
    metadata_key: str | None = None,
    batch_size: int = 256,
    check: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Put the passages that are not deleted into a collection of Qdrant.

    The collection is made if it is not there: cosine distance, and for an index in float16 vectors
    of that type. A point's id follows from the passage's id (`point_id`), so a transfer that was
    stopped is simply run again; points that are there are replaced. Points of passages that the
    index no longer has are not removed.

    Args:
        folder: An index, or a folder of encoded shards.
        collection: Its name.
        location: Address of a server ("http://localhost:6333"), or a folder for Qdrant's local
            mode, which is slow and suits small corpora.
        api_key: Of the server.
        metadata_key: A point's payload is the passage's metadata with id, title and text added.
            With this key, metadata becomes one object under it.
        batch_size: Points for each request.
        check: Compare every file of the index with its checksum first; those known to be whole
            are not read again.
        progress: Called after each batch with the number of passages sent, and of all.

    Returns:
        The number of passages.

    Raises:
        InputError: The collection has vectors of another kind or from another encoder, or metadata
            has a key that the payload needs, or `folder` is not as described.
        PassageIndexError: A file is missing or damaged, or Qdrant refuses or cannot be reached.
        MissingExtraError: qdrant-client is not installed.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: expected at least 1.")
    if metadata_key in _OWN or metadata_key == "":
        raise InputError(f"metadata_key is {metadata_key!r}: expected another name.")
    with (
        open_source(folder, check=check) as source,
        source.open() as shards,
        _client(location, api_key) as client,
    ):
        with _talking(location):
            _make_collection(client, collection, source)
        sent = 0
        for rows in source.live(batch_size):
            passages = shards.fetch(rows)
            payloads = [_payload(passage, metadata_key) for passage in passages]
            vectors = shards.take(rows)
            with _talking(location, sent):
                client.upload_collection(
                    collection,
                    vectors=vectors,
                    payload=payloads,
                    ids=[point_id(passage.id) for passage in passages],
                    batch_size=batch_size,
                    max_retries=3,
                    wait=True,
                )
            sent += len(passages)
            if progress is not None:
                progress(sent, source.count)
    return sent


def _payload(passage: Passage, metadata_key: str | None) -> dict[str, Any]:
    own = {"id": passage.id, "title": passage.title, "text": passage.text}
    if metadata_key is not None:
        return {**own, metadata_key: dict(passage.metadata)}
    taken = sorted(own.keys() & passage.metadata.keys())
    if taken:
        raise InputError(
            f'The metadata of passage "{passage.id}" has the key "{taken[0]}", which a point needs '
            "for the passage itself. Give a metadata_key, under which all metadata goes."
        )
    return {**own, **passage.metadata}


def _make_collection(client: "QdrantClient", name: str, source: Source) -> None:
    from qdrant_client import models

    encoder = source.encoder
    about = {"fingerprint": encoder.fingerprint, "encoder": encoder.name, "task": encoder.task}
    if not client.collection_exists(name):
        half = source.dtype == "float16"
        client.create_collection(
            name,
            vectors_config=models.VectorParams(
                size=encoder.dimension,
                distance=models.Distance.COSINE,
                datatype=models.Datatype.FLOAT16 if half else None,
            ),
            metadata={_ABOUT: about},
        )
        return
    config = client.get_collection(name).config
    vectors = config.params.vectors
    if not isinstance(vectors, models.VectorParams):
        raise InputError(
            f'The collection "{name}" exists with named vectors or none: expected one unnamed '
            f"vector of {encoder.dimension} dimensions. Choose another name."
        )
    if (vectors.size, vectors.distance) != (encoder.dimension, models.Distance.COSINE):
        raise InputError(
            f'The collection "{name}" exists with vectors of {vectors.size} dimensions and '
            f"{vectors.distance.value} distance: expected {encoder.dimension} and Cosine. Choose "
            "another name, or remove the collection."
        )
    known = (config.metadata or {}).get(_ABOUT)
    # One that somebody else made says nothing of this.
    if isinstance(known, Mapping) and known.get("fingerprint") != encoder.fingerprint:
        raise InputError(
            f'The collection "{name}" holds vectors of the encoder "{known.get("encoder")}" '
            f'(fingerprint {known.get("fingerprint")}), these are of "{encoder.name}" '
            f"({encoder.fingerprint}): they cannot be compared. Choose another name."
        )


@contextmanager
def _client(location: str | Path, api_key: str | None) -> Iterator["QdrantClient"]:
    try:
        from qdrant_client import QdrantClient
    except ImportError as error:
        raise MissingExtraError(
            f"Export to Qdrant needs qdrant-client ({error}). In epic-retrieval's source folder "
            'run pip install ".[qdrant]".'
        ) from error
    with _talking(location):
        if str(location).startswith(("http://", "https://")):
            # A server that does not answer is found out by the first request.
            client = QdrantClient(
                url=str(location),
                api_key=api_key,
                timeout=_TIMEOUT,
                check_compatibility=False,
            )
        elif "://" in str(location):
            raise InputError(f'{location}: expected "http://...", "https://..." or a folder.')
        else:
            parent = Path(location).parent
            if not parent.is_dir():
                raise InputError(f"{parent}: no such folder; make it first, or choose another.")
            client = QdrantClient(path=str(location))
    try:
        yield client
    finally:
        client.close()


@contextmanager
def _talking(location: str | Path, sent: int = 0) -> Iterator[None]:
    from qdrant_client.common.client_exceptions import QdrantException
    from qdrant_client.http.exceptions import ApiException

    try:
        yield
    except InputError:
        raise
    # In local mode Qdrant raises what Python has, such as RuntimeError for a folder in use.
    except (ApiException, QdrantException, OSError, RuntimeError, ValueError) as error:
        raise PassageIndexError(
            f"Qdrant at {location}: {str(error) or type(error).__name__}. {sent:,} passages were "
            "sent. See to it, then run the same command again: what is there is replaced."
        ) from error
