"""What a shard is made of: settings, and some passages of a corpus, which together name it.

Knows nothing of vectors, and of files only where the settings are kept.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from epic_retrieval.errors import InputError
from epic_retrieval.index._twins import Duplicate
from epic_retrieval.index.manifest import DTYPES, SETTINGS, EncoderInfo
from epic_retrieval.index.passage import Passage

_FORMAT = "epic-retrieval shards 1"
# A shard is in memory as text before it is encoded: long texts make shards of fewer passages.
_SHARD_BYTES = 2**28


@dataclass(frozen=True)
class EncodingSettings:
    """What the bytes of shards depend on, beside the passages.

    Args:
        encoder: With the dimension that it gives.
        dtype: Of the stored vectors: "float32" or "float16".
        dimension: To keep of each vector, from its start; at most the encoder's.
        shard_size: Passages in a shard, at most.

    Raises:
        InputError: One of them is not as described.
    """

    encoder: EncoderInfo
    dtype: str
    dimension: int
    shard_size: int

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype is {self.dtype!r}: expected one of {', '.join(DTYPES)}.")
        if not 1 <= self.dimension <= self.encoder.dimension:
            raise InputError(
                f"dimension is {self.dimension}: expected 1 to {self.encoder.dimension}, which is "
                "what the encoder gives."
            )
        if self.shard_size < 1:
            raise InputError(f"shard_size is {self.shard_size}: expected at least 1.")

    @property
    def stored(self) -> EncoderInfo:
        """The encoder with the dimension of the stored vectors."""
        return replace(self.encoder, dimension=self.dimension)

    @property
    def truncated_from(self) -> int | None:
        """The dimension that the encoder gives, if fewer are kept."""
        full = self.encoder.dimension
        return full if self.dimension < full else None

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=2, sort_keys=True) + "\n"

    def fits(self, other: "EncodingSettings") -> bool:
        """Whether shards made with the one can be those of the other."""
        return replace(self, encoder=replace(self.encoder, name="any")) == replace(
            other, encoder=replace(other.encoder, name="any")
        )

    def __str__(self) -> str:
        encoder = self.encoder
        task = f", task {encoder.task}" if encoder.task else ""
        return (
            f'"{encoder.name}" (fingerprint {encoder.fingerprint}, {encoder.dimension} dimensions'
            f"{task}), kept {self.dimension} in {self.dtype}, {self.shard_size:,} passages a shard"
        )


def read_settings(folder: Path) -> EncodingSettings | None:
    """The settings that a folder of shards was begun with; None if it was not, or is damaged."""
    try:
        content = json.loads((folder / SETTINGS).read_bytes())
        if content.pop("format") != _FORMAT:
            return None
        return EncodingSettings(encoder=EncoderInfo(**content.pop("encoder")), **content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


@dataclass(frozen=True)
class Batch:
    """The passages of one shard, and its name.

    Args:
        passages: One or more.
        start: How many passages came before them.
        name: Follows from the passages and the settings.
        bytes: Of the passages as text.
    """

    passages: Sequence[Passage]
    start: int
    name: str
    bytes: int


def batches(passages: Iterable[Passage], settings: EncodingSettings) -> Iterator[Batch]:
    """Cut passages into shards; where the cuts are depends on them and `shard_size` alone.

    Raises:
        InputError: Something is no passage, or an id stands twice in a shard.
    """
    rest = iter(passages)
    start = 0
    while batch := _next_batch(rest, start, settings):
        yield batch
        start += len(batch.passages)


def _next_batch(
    passages: Iterator[Passage], start: int, settings: EncodingSettings
) -> Batch | None:
    encoder = settings.encoder
    digest = hashlib.sha256()
    about = [_FORMAT, encoder.fingerprint, encoder.task, settings.dtype, settings.dimension]
    digest.update(f"{json.dumps(about)}\n".encode())
    rows: dict[str, int] = {}
    found: list[Passage] = []
    size = 0
    for passage in passages:
        if not isinstance(passage, Passage):
            given = type(passage).__name__
            raise InputError(f"passages holds a {given}: expected Passage objects.")
        row = start + len(found)
        first = rows.setdefault(passage.id, row)
        if first != row:
            raise InputError(str(Duplicate(passage.id, first, row)))
        line = _line(passage)
        digest.update(line)
        size += len(line)
        found.append(passage)
        if len(found) == settings.shard_size or size >= _SHARD_BYTES:
            break
    if not found:
        return None
    return Batch(found, start, f"s-{digest.hexdigest()[:16]}", size)


def _line(passage: Passage) -> bytes:
    """Everything of a passage, in bytes that no other passage has."""
    content = [passage.id, passage.title, passage.text, passage.metadata]
    try:
        text = json.dumps(content, sort_keys=True, allow_nan=False, default=dict)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f'The metadata of passage "{passage.id}" cannot be stored as JSON ({error}): '
            "change or remove it."
        ) from error
    return text.encode() + b"\n"
