"""The manifest: what an index folder holds, by whom it was encoded, and every file's checksum.

Everything else in the folder is written once; the manifest alone is replaced. Names in it are
checked, so that no path leads out of the folder. Knows nothing of FAISS or SQLite.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._files import (
    REBUILD,
    FileInfo,
    check_all,
    check_count,
    check_folder,
    check_name,
    check_text,
    is_share,
)

__all__ = [
    "DELETED",
    "DTYPES",
    "FORMAT",
    "FORMAT_VERSION",
    "IDS",
    "INDEX",
    "MANIFEST",
    "PASSAGES",
    "REBUILD",
    "SEARCH",
    "SETTINGS",
    "SHARDS",
    "SHARD_FILES",
    "VECTORS",
    "DeletedInfo",
    "EncoderInfo",
    "FileInfo",
    "Manifest",
    "SearchInfo",
    "ShardInfo",
    "check_folder",
    "is_index",
    "read_manifest",
    "read_manifest_file",
]

FORMAT = "epic-retrieval passage index"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
# In a folder of encoded shards, which is no index yet.
SETTINGS = "encoding.json"

SHARDS = "shards"
VECTORS = "vectors.npy"
PASSAGES = "passages.sqlite"
IDS = "ids.npy"
SHARD_FILES = (VECTORS, PASSAGES, IDS)
SEARCH = "search"
INDEX = "index.faiss"
DELETED = "deleted"
DTYPES = ("float32", "float16")

_PARAMETER = re.compile(r"[A-Za-z_]{1,40}")


@dataclass(frozen=True)
class EncoderInfo:
    """The encoder of an index's passages.

    Args:
        name: For people: a model's name or folder.
        fingerprint: Changes with everything that changes a passage's vector, and with nothing
            else; demonstrations on the query side leave it as it is.
        dimension: Width of the vectors as they are stored (after truncation, if any).
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
        check_count("EncoderInfo.dimension", self.dimension, 1)
        if self.task is not None and not isinstance(self.task, str):
            raise InputError(f"EncoderInfo.task is {self.task!r}: expected text or None.")


@dataclass(frozen=True)
class ShardInfo:
    """A shard: its folder's name under `shards/`, its rows (1 or more), its three files by name."""

    name: str
    rows: int
    files: Mapping[str, FileInfo]

    def __post_init__(self) -> None:
        check_name("A shard", self.name)
        check_count(f"rows of the shard {self.name}", self.rows, 1)
        if set(self.files) != set(SHARD_FILES):
            raise InputError(
                f"The shard {self.name} has the files {sorted(map(str, self.files))}: "
                f"expected {sorted(SHARD_FILES)}."
            )
        check_all("A shard's files", self.files.values(), FileInfo)
        object.__setattr__(self, "files", dict(self.files))


@dataclass(frozen=True)
class SearchInfo:
    """The FAISS structure over the first `rows` rows.

    Args:
        name: Of its folder under `search/`.
        factory: FAISS index_factory string.
        rows: How many rows it holds: global rows 0 to rows - 1.
        file: index.faiss.
        parameters: Of a search: {"nprobe": 16, "candidates": 64}, or with "efSearch".
        recall: Measured with these parameters, in [0, 1]; None if it was not measured.
        recall_k: The k of that recall.
        target: The recall that was wished for, if any.
    """

    name: str
    factory: str
    rows: int
    file: FileInfo
    parameters: Mapping[str, int]
    recall: float | None
    recall_k: int
    target: float | None

    def __post_init__(self) -> None:
        check_name("The search structure", self.name)
        check_text("SearchInfo.factory", self.factory)
        if not self.factory:
            raise InputError("SearchInfo.factory is empty: expected FAISS's index_factory string.")
        check_count("SearchInfo.rows", self.rows, 1)
        check_all("SearchInfo.file", [self.file], FileInfo)
        for name, value in self.parameters.items():
            check_text("The name of a parameter", name)
            if not _PARAMETER.fullmatch(name):
                raise InputError(f"SearchInfo.parameters has the name {name!r}: expected a word.")
            check_count(f"The parameter {name}", value, 1)
        check_count("SearchInfo.recall_k", self.recall_k, 1)
        for name in ("recall", "target"):
            value = getattr(self, name)
            if value is not None and not is_share(value):
                raise InputError(f"SearchInfo.{name} is {value!r}: expected 0 to 1, or None.")
        object.__setattr__(self, "parameters", dict(self.parameters))


@dataclass(frozen=True)
class DeletedInfo:
    """The deleted rows: name of the file `deleted/<name>.npy`, and how many (1 or more)."""

    name: str
    rows: int
    file: FileInfo

    def __post_init__(self) -> None:
        check_name("The file of deleted rows", self.name)
        check_count("DeletedInfo.rows", self.rows, 1)
        check_all("DeletedInfo.file", [self.file], FileInfo)


@dataclass(frozen=True)
class Manifest:
    """What an index folder holds.

    Args:
        generation: From 1 on, one more with every change of the folder.
        count: Number of passages that are not deleted; may be 0.
        dtype: Of the stored vectors: "float32" or "float16".
        encoder: Of the passages.
        shards: In the order of their rows. The same shard may stand twice: deleted, then added
            again.
        search: None where search is exact ("Flat").
        deleted: None where nothing is deleted.
        created: Of the first generation: UTC, ISO 8601.
        updated: Of this generation.
        package_version: Of epic-retrieval.
        corpus: Name of the corpus, as the builder gave it; may be empty.
        truncated_from: The width that the encoder gives, where vectors are cut to fewer
            dimensions (Matryoshka); else None.

    Raises:
        InputError: A field, or how they fit together, is not as described.
    """

    generation: int
    count: int
    dtype: str
    encoder: EncoderInfo
    shards: tuple[ShardInfo, ...]
    search: SearchInfo | None
    deleted: DeletedInfo | None
    created: str
    updated: str
    package_version: str
    corpus: str = ""
    truncated_from: int | None = None

    def __post_init__(self) -> None:
        check_count("generation", self.generation, 1)
        check_count("count", self.count, 0)
        if self.dtype not in DTYPES:
            raise InputError(f"dtype is {self.dtype!r}: expected one of {', '.join(DTYPES)}.")
        check_all("encoder", [self.encoder], EncoderInfo)
        object.__setattr__(self, "shards", tuple(self.shards))
        check_all("shards", self.shards, ShardInfo)
        check_all("search", [self.search], SearchInfo | None)
        check_all("deleted", [self.deleted], DeletedInfo | None)
        for name in ("created", "updated", "package_version", "corpus"):
            check_text(name, getattr(self, name))
        if self.truncated_from is not None:
            check_count("truncated_from", self.truncated_from, self.dimension + 1)
        self._check_rows()

    def _check_rows(self) -> None:
        gone = self.deleted.rows if self.deleted else 0
        if self.count != self.rows - gone:
            raise InputError(
                f"count is {self.count:,}, but the shards have {self.rows:,} rows, of which "
                f"{gone:,} are deleted."
            )
        if self.search is not None and self.search.rows > self.rows:
            raise InputError(
                f"The search structure holds {self.search.rows:,} rows, but the shards have only "
                f"{self.rows:,}."
            )
        if len({shard.name for shard in self.shards}) != len(self.shards):
            known: dict[str, ShardInfo] = {}
            for shard in self.shards:
                if known.setdefault(shard.name, shard) != shard:
                    raise InputError(f"Two different shards are named {shard.name}.")

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self.encoder.dimension

    @property
    def rows(self) -> int:
        """Number of rows of all shards, deleted ones included."""
        return sum(shard.rows for shard in self.shards)

    @property
    def kind(self) -> str:
        """Of the search: "Flat" (exact), or the FAISS index_factory string."""
        return self.search.factory if self.search else "Flat"

    @property
    def metric(self) -> str:
        """Of the scores."""
        return "cosine"

    @property
    def files(self) -> dict[str, FileInfo]:
        """Every file but the manifest itself, by its path in the folder, with "/"."""
        found = {
            f"{SHARDS}/{shard.name}/{name}": info
            for shard in self.shards
            for name, info in shard.files.items()
        }
        if self.search is not None:
            found[f"{SEARCH}/{self.search.name}/{INDEX}"] = self.search.file
        if self.deleted is not None:
            found[f"{DELETED}/{self.deleted.name}.npy"] = self.deleted.file
        return found

    def to_text(self) -> str:
        """The manifest as JSON, with a checksum of its own content."""
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **asdict(self),
            **_derived(self),
        }
        content["checksum"] = _checksum(content)
        return json.dumps(content, indent=2, sort_keys=True) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an index folder.

    Raises:
        PassageIndexError: There is none, or it is damaged, or of another format version.
    """
    if folder.is_file():
        raise PassageIndexError(
            f"{folder} is a file, and no index: expected the folder of one, as `epic index build` "
            "writes it."
        )
    try:
        return read_manifest_file(folder / MANIFEST)
    except FileNotFoundError as error:
        raise PassageIndexError(_missing(folder)) from error


def read_manifest_file(path: Path) -> Manifest:
    """A manifest by its own path, whatever its name.

    Raises:
        FileNotFoundError: There is none.
        PassageIndexError: It is damaged, or of another format version.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PassageIndexError(
            f"{path}: cannot be read ({error.strerror}). Expected the folder of an index that you "
            "may read."
        ) from error
    except (ValueError, RecursionError) as error:
        raise PassageIndexError(f"{path}: damaged, not JSON ({error}). {REBUILD}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise PassageIndexError(
            f'{path}: not the manifest of a passage index (expected "format": "{FORMAT}"). '
            "Give the folder of an index."
        )
    _check_version(path, content.get("format_version"))
    if content.pop("checksum", None) != _checksum(content):
        raise PassageIndexError(
            f"{path}: damaged or edited, its checksum does not fit its content. {REBUILD}"
        )
    try:
        return _from_content(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PassageIndexError(f"{path}: not as expected ({error}). {REBUILD}") from error


def is_index(folder: Path) -> bool:
    """Whether a folder claims to be an index (of any format version), complete or damaged."""
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def _derived(manifest: Manifest) -> dict[str, object]:
    # For people and other programs; checked when read.
    return {
        "dimension": manifest.dimension,
        "rows": manifest.rows,
        "kind": manifest.kind,
        "metric": manifest.metric,
    }


def _from_content(content: dict[str, Any]) -> Manifest:
    del content["format"], content["format_version"]
    derived = {name: content.pop(name) for name in ("dimension", "rows", "kind", "metric")}
    search, deleted = content.pop("search"), content.pop("deleted")
    manifest = Manifest(
        encoder=EncoderInfo(**content.pop("encoder")),
        shards=tuple(
            ShardInfo(**{**shard, "files": _files(shard["files"])})
            for shard in content.pop("shards")
        ),
        search=search and SearchInfo(**{**search, "file": FileInfo(**search["file"])}),
        deleted=deleted and DeletedInfo(**{**deleted, "file": FileInfo(**deleted["file"])}),
        **content,
    )
    if derived != _derived(manifest):
        raise InputError(f"{derived} does not fit the rest, which gives {_derived(manifest)}")
    return manifest


def _files(files: Mapping[str, Mapping[str, Any]]) -> dict[str, FileInfo]:
    return {name: FileInfo(**info) for name, info in files.items()}


def _check_version(path: Path, version: object) -> None:
    if version == FORMAT_VERSION and not isinstance(version, bool | float):
        return
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise PassageIndexError(
            f"{path}: format version {version}, written by a newer epic-retrieval; this one reads "
            f"{FORMAT_VERSION}. Upgrade epic-retrieval."
        )
    raise PassageIndexError(
        f"{path}: format version {version!r}; this version of epic-retrieval reads "
        f"{FORMAT_VERSION}. Build the index again."
    )


def _checksum(content: Mapping[str, object]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _missing(folder: Path) -> str:
    if not folder.exists():
        aside = sorted(folder.parent.glob(f".{folder.name}.replaced-*"))
        if aside:
            return (
                f"{folder}: no such folder; a build that was stopped left the former index as "
                f"{aside[0]}. Rename that back, or build the index again."
            )
        return f"{folder}: no such folder. Give the folder of an index, or build it first."
    if (folder / SETTINGS).is_file():
        return (
            f"{folder}: encoded shards, not an index yet. Build one of them, with `epic index "
            "build` or `merge`."
        )
    return f"{folder}: not an index, it has no {MANIFEST}. Give the folder of an index."
