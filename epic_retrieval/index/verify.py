"""Checks an index folder in full: every byte as built, and every count as stated.

Knows nothing of encoders.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index._open import file_problems, read_vectors
from epic_retrieval.index.manifest import (
    MANIFEST,
    PASSAGES,
    VECTORS,
    Manifest,
    read_manifest,
)
from epic_retrieval.index.store import PassageStore


@dataclass(frozen=True)
class Problem:
    """One fault: what kind, in which file, and what it is, for people."""

    kind: Literal["manifest", "file", "extra", "vectors", "passages"]
    file: str
    message: str

    def __str__(self) -> str:
        return f"{self.file} {self.message}"


@dataclass(frozen=True)
class VerifyReport:
    """What a check found; `manifest` is None if it could not be read."""

    folder: Path
    manifest: Manifest | None
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether the index is exactly as it was built."""
        return not self.problems


def verify_index(folder: str | Path) -> VerifyReport:
    """Check an index folder; faults are reported, never raised.

    Every file has its size and checksum, none is missing and none is there that does not belong;
    the manifest is byte for byte as written; vectors and passages are as many as it says, of its
    dimension and metric, with ids that are unique.

    Raises:
        MissingExtraError: FAISS is not installed.
    """
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
    except PassageIndexError as error:
        return VerifyReport(folder, None, (Problem("manifest", MANIFEST, f"fails: {error}"),))
    problems = [*_manifest_problems(folder, manifest), *_extra_files(folder, manifest)]
    damaged = set()
    for name, message in file_problems(folder, manifest, checksums=True):
        damaged.add(name)
        problems.append(Problem("file", name, message))
    # A file that is not as built is not opened: FAISS and SQLite may believe what it says.
    if VECTORS not in damaged:
        problems += _vector_problems(folder, manifest)
    if PASSAGES not in damaged:
        problems += _passage_problems(folder, manifest)
    return VerifyReport(folder, manifest, tuple(problems))


def _manifest_problems(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    try:
        found = (folder / MANIFEST).read_bytes()
    except OSError as error:
        yield Problem("manifest", MANIFEST, f"cannot be read ({error.strerror})")
        return
    if found != manifest.to_text().encode():
        yield Problem("manifest", MANIFEST, "says what it should, but not byte for byte as written")


def _extra_files(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    known = {MANIFEST, *manifest.files}
    for path in sorted(folder.iterdir()):
        if path.name not in known:
            yield Problem("extra", path.name, "is no part of the index; move it elsewhere")


def _vector_problems(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    try:
        read_vectors(folder, manifest)
    except PassageIndexError as error:
        yield Problem("vectors", VECTORS, f"fails: {error}")


def _passage_problems(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    try:
        with PassageStore(folder / PASSAGES) as store:
            if len(store) != manifest.count:
                message = f"holds {len(store):,} passages; the manifest says {manifest.count:,}"
                yield Problem("passages", PASSAGES, message)
            for fault in store.problems():
                yield Problem("passages", PASSAGES, f"is inconsistent: {fault}")
    except PassageIndexError as error:
        yield Problem("passages", PASSAGES, f"fails: {error}")
