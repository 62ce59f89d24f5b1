"""Checks an index folder in full: every byte as written, and all contents as they should be.

Knows nothing of encoders; whoever has one can hand in its function.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index._contents import (
    LEAST_COSINE,
    Problem,
    content_problems,
    encoding_problems,
)
from epic_retrieval.index._faiss import load_faiss
from epic_retrieval.index._shard_folder import Encode
from epic_retrieval.index.checksums import file_problems
from epic_retrieval.index.generations import GENERATIONS, WRITE_LOCK, reading
from epic_retrieval.index.manifest import (
    DELETED,
    MANIFEST,
    SEARCH,
    SHARDS,
    Manifest,
    check_folder,
    read_manifest,
)

__all__ = ["Problem", "VerifyReport", "verify_index"]

_NAME = r"[a-z]-[0-9a-f]{8,32}"
# What writers leave until the next one comes by: former generations, and work that was stopped.
_LEFT = re.compile(
    rf"({SHARDS}|{SEARCH})(/{_NAME}(\.(new|replaced))?(/.*)?)?|{DELETED}(/{_NAME}\.npy)?"
    rf"|{GENERATIONS}(/\.?[0-9]+\.(lock|json)(\.[0-9a-f]{{32}})?)?"
    rf"|\.{re.escape(MANIFEST)}\.[0-9a-f]{{32}}|pending(/.*)?"
)
# Empty ones are no leftovers: changes come and go in them.
_PLACES = (SHARDS, SEARCH, DELETED, GENERATIONS)


@dataclass(frozen=True)
class VerifyReport:
    """What a check found.

    Attributes:
        folder: That was checked.
        manifest: Of the generation that was checked; None if it could not be read.
        problems: All faults.
        leftovers: Files of former generations, or of writers that were stopped or are at work;
            they do no harm, and the next change of the index removes those that nobody needs.
    """

    folder: Path
    manifest: Manifest | None
    problems: tuple[Problem, ...]
    leftovers: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every file is as it was written, and fits the others."""
        return not self.problems


def verify_index(
    folder: str | Path,
    encode: Encode | None = None,
    sample: int = 100,
    least: float = LEAST_COSINE,
) -> VerifyReport:
    """Check an index folder; faults are reported, never raised.

    Every file has its size and checksum (all are read, nothing is remembered), none is missing or
    a link, and none is there that does not belong; the manifest is byte for byte as written;
    vectors are finite and of length 1; passages, vectors and hashes of ids are as many as the
    manifest says and fit each other; no id stands twice among what is not deleted; the search
    structure is of the kind and size that the manifest says. Others may read and write meanwhile.

    Args:
        folder: The index.
        encode: As for `build_index`: passages are encoded again, and compared with their vectors.
        sample: How many passages, evenly spread; at least 1.
        least: Cosine from which on two vectors are the same, from 0 to 1. In int8 a vector
            depends on what it is encoded together with: 0.95 does for that.

    Raises:
        InputError: `encode` returned something else than unit vectors of the index's encoder.
        MissingExtraError: FAISS is not installed.
    """
    load_faiss()
    if sample < 1:
        raise InputError(f"sample is {sample}: expected at least 1.")
    if not 0 <= least <= 1:
        raise InputError(f"least is {least}: expected a cosine from 0 to 1.")
    folder = Path(folder).resolve()
    try:
        held = reading(folder)
    except PassageIndexError as error:
        return VerifyReport(folder, None, (Problem("manifest", MANIFEST, f"fails: {error}"),))
    with held:
        manifest = held.manifest
        problems = [*_manifest_problems(folder, manifest), *_folder_problems(folder, manifest)]
        extra, leftovers = _strays(folder, manifest)
        problems += [
            Problem("extra", name, "is no part of the index; move it elsewhere") for name in extra
        ]
        problems += [
            Problem("file", name, message)
            for name, message in file_problems(folder, manifest.files)
        ]
        problems += content_problems(folder, manifest, {problem.file for problem in problems})
        if encode is not None and not any(problem.kind != "extra" for problem in problems):
            problems += encoding_problems(folder, manifest, encode, sample, least)
    return VerifyReport(folder, manifest, tuple(problems), leftovers)


def _manifest_problems(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    path = folder / MANIFEST
    try:
        if path.is_symlink():
            yield Problem("manifest", MANIFEST, "is a link, not a file of its own")
        # A writer may have published the next generation meanwhile.
        if path.read_bytes() != manifest.to_text().encode() and read_manifest(folder) == manifest:
            message = "says what it should, but not byte for byte as written"
            yield Problem("manifest", MANIFEST, message)
    except (OSError, PassageIndexError) as error:
        yield Problem("manifest", MANIFEST, f"fails: {error}")


def _folder_problems(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    parents = {parent for name in manifest.files for parent in Path(name).parents}
    for parent in sorted(parents - {Path()}):
        # What is missing shows in the files.
        if (folder / parent).exists() or (folder / parent).is_symlink():
            try:
                check_folder(folder / parent)
            except PassageIndexError as error:
                yield Problem("file", parent.as_posix(), f"fails: {error}")


def _strays(folder: Path, manifest: Manifest) -> tuple[list[str], tuple[str, ...]]:
    """Paths that do not belong to the index, and those that a writer left or is making."""
    known = {MANIFEST, WRITE_LOCK, f"{GENERATIONS}/{manifest.generation}.lock", *manifest.files}
    kept = {name.rpartition("/")[0] for name in manifest.files} - {DELETED}
    extra: list[str] = []
    left: list[str] = []
    for path in _leaves(folder):
        name = path.relative_to(folder).as_posix()
        if name in known or name in kept or (name in _PLACES and path.is_dir()):
            continue
        inside = name.rpartition("/")[0] in kept
        (left if _LEFT.fullmatch(name) and not inside else extra).append(name)
    return extra, tuple(left)


def _leaves(folder: Path) -> Iterator[Path]:
    """Files, links and empty folders below a folder, in which they may come and go."""
    try:
        inner = sorted(folder.iterdir())
    except OSError:
        return
    for path in inner:
        if path.is_symlink() or not path.is_dir():
            yield path
            continue
        below = [*_leaves(path)]
        yield from below or [path]
