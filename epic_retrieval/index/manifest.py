"""The manifest: what an index folder holds, by whom it was encoded, and every file's checksum.

Knows nothing of FAISS or SQLite.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from epic_retrieval.errors import InputError, PassageIndexError

FORMAT = "epic-retrieval passage index"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
VECTORS = "vectors.faiss"
PASSAGES = "passages.sqlite"


@dataclass(frozen=True)
class EncoderInfo:
    """The encoder of an index's passages.

    Args:
        name: For people: a model's name or folder.
        fingerprint: Changes with everything that changes a passage's vector, and with nothing
            else; demonstrations on the query side leave it as it is.
        dimension: Width of the vectors.
        task: The task's name where passages are encoded with its instruction (a symmetric task),
            else None.
    """

    name: str
    fingerprint: str
    dimension: int
    task: str | None = None

    def __post_init__(self) -> None:
        for field in ("name", "fingerprint"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value:
                raise InputError(f"EncoderInfo.{field} is {value!r}: expected text.")
        if not _is_count(self.dimension) or self.dimension < 1:
            raise InputError(f"EncoderInfo.dimension is {self.dimension!r}: expected 1 or more.")
        if self.task is not None and not isinstance(self.task, str):
            raise InputError(f"EncoderInfo.task is {self.task!r}: expected text or None.")


@dataclass(frozen=True)
class FileInfo:
    """A file of the index: its size in bytes and its SHA-256, in hex."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileInfo":
        """Size and checksum of a file as it is now."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(file.tell(), digest)


@dataclass(frozen=True)
class Manifest:
    """What an index folder holds.

    Args:
        count: Number of passages, and of vectors.
        metric: "cosine".
        kind: Of FAISS index: "Flat".
        encoder: Of the passages.
        files: By file name.
        created: UTC, ISO 8601.
        package_version: Of epic-retrieval.
        corpus: Name of the corpus, as the builder gave it; may be empty.
    """

    count: int
    metric: str
    kind: str
    encoder: EncoderInfo
    files: Mapping[str, FileInfo]
    created: str
    package_version: str
    corpus: str

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self.encoder.dimension

    def to_text(self) -> str:
        """The manifest as JSON, with a checksum of its own content."""
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **asdict(self),
            "dimension": self.dimension,
        }
        content["checksum"] = _checksum(content)
        return json.dumps(content, indent=2, sort_keys=True) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an index folder.

    Raises:
        PassageIndexError: There is none, or it is damaged, or of another format version.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise PassageIndexError(_missing(folder)) from error
    except OSError as error:
        raise PassageIndexError(
            f"{path}: cannot be read ({error.strerror}). Expected the folder of an index that you "
            "may read."
        ) from error
    except (ValueError, RecursionError) as error:
        raise PassageIndexError(f"{path}: damaged, not JSON ({error}). {_REBUILD}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise PassageIndexError(
            f'{path}: not the manifest of a passage index (expected "format": "{FORMAT}"). '
            "Give the folder of an index."
        )
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise PassageIndexError(
            f"{path}: format version {version!r}; this version of epic-retrieval reads "
            f"{FORMAT_VERSION}. Upgrade epic-retrieval, or build the index again."
        )
    if content.pop("checksum", None) != _checksum(content):
        raise PassageIndexError(
            f"{path}: damaged or edited, its checksum does not fit its content. {_REBUILD}"
        )
    try:
        return _from_content(content)
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise PassageIndexError(f"{path}: not as expected ({error}). {_REBUILD}") from error


def is_index(folder: Path) -> bool:
    """Whether a folder claims to be an index (of any format version), complete or damaged."""
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


_REBUILD = "Copy the index again from its source, or build it again."


def _from_content(content: dict[str, Any]) -> Manifest:
    files = {name: FileInfo(**info) for name, info in content["files"].items()}
    manifest = Manifest(
        encoder=EncoderInfo(**content["encoder"]),
        files=files,
        **{name: content[name] for name in ("count", "metric", "kind")},
        **{name: content[name] for name in ("created", "package_version", "corpus")},
    )
    texts = (manifest.metric, manifest.kind, manifest.created, manifest.package_version)
    if not all(isinstance(text, str) for text in (*texts, manifest.corpus)):
        raise ValueError("a text field is no text")
    if not _is_count(manifest.count) or manifest.count < 1:
        raise ValueError(f"count is {manifest.count!r}")
    if content["dimension"] != manifest.dimension:
        raise ValueError("dimension differs from the encoder's")
    # Version 1 has exactly these two, so no name can lead out of the folder.
    if set(files) != {VECTORS, PASSAGES}:
        raise ValueError(f"files are {sorted(files)}")
    if (manifest.metric, manifest.kind) != ("cosine", "Flat"):
        raise ValueError(f"metric {manifest.metric!r} with kind {manifest.kind!r} is unknown")
    return manifest


def _checksum(content: Mapping[str, object]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _missing(folder: Path) -> str:
    if not folder.exists():
        aside = sorted(folder.parent.glob(f".{folder.name}.replaced-*"))
        if aside:
            return (
                f"{folder}: no such folder; a build that was stopped left the former index as "
                f"{aside[0]}. Rename that back, or build the index again."
            )
        return f"{folder}: no such folder. Give the folder of an index, or build it first."
    return f"{folder}: not an index, it has no {MANIFEST}. Give the folder of an index."
