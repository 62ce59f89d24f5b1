"""Files of an index, by size and checksum, and checks of what a manifest says.

Knows nothing of what the files hold.
"""

import hashlib
import math
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epic_retrieval.errors import InputError, PassageIndexError

REBUILD = "Copy the index again from its source, or build it again."

_NAME = re.compile(r"[a-z]-[0-9a-f]{8,32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Rows are counted in 64 bits.
_MOST = 2**62


@dataclass(frozen=True)
class FileInfo:
    """A file of the index: its size in bytes and its SHA-256, in hex."""

    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        check_count("A file's size", self.bytes, 0)
        check_text("A file's sha256", self.sha256)
        if not _SHA256.fullmatch(self.sha256):
            raise InputError(f"A file's sha256 is {self.sha256!r}: expected 64 hex digits.")

    @classmethod
    def of(cls, path: Path) -> "FileInfo":
        """Size and checksum of a file as it is now."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(file.tell(), digest)

    def check_size(self, path: Path) -> None:
        """Make sure that a file is there, is no link, and has this size; nothing is read.

        Raises:
            PassageIndexError: It is not so.
        """
        try:
            found = path.lstat()
        except OSError as error:
            raise PassageIndexError(f"{path}: cannot be read ({error.strerror}). {REBUILD}") from (
                error
            )
        if not stat.S_ISREG(found.st_mode):
            raise PassageIndexError(f"{path}: not a file of its own, but a link or such. {REBUILD}")
        if found.st_size != self.bytes:
            raise PassageIndexError(
                f"{path}: has {found.st_size:,} bytes, but was built with {self.bytes:,}. {REBUILD}"
            )


def check_folder(path: Path) -> None:
    """Make sure that a folder inside an index is there and is no link.

    Raises:
        PassageIndexError: It is not so.
    """
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise PassageIndexError(f"{path}: cannot be read ({error.strerror}). {REBUILD}") from error
    if not stat.S_ISDIR(mode):
        raise PassageIndexError(f"{path}: not a folder of its own, but a link or such. {REBUILD}")


def check_count(what: str, value: object, least: int) -> None:
    """A whole number, at least `least`.

    Raises:
        InputError: From here and the others: it is not so. `what` names it.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole and least <= value < _MOST):  # type: ignore[operator]  # a whole number by now
        raise InputError(f"{what} is {value!r}: expected a whole number, at least {least}.")


def check_text(what: str, value: object) -> None:
    """Text."""
    if not isinstance(value, str):
        raise InputError(f"{what} is {value!r}: expected text.")


def check_name(what: str, value: object) -> None:
    """A name that cannot lead out of a folder."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InputError(
            f"{what} is named {value!r}: expected a letter, a hyphen and 8 to 32 hex digits."
        )


def check_all(what: str, values: Any, kind: Any) -> None:  # noqa: ANN401 (types are checked here)
    """Values of this type."""
    for value in values:
        if not isinstance(value, kind):
            raise InputError(f"{what}: found a {type(value).__name__}, expected {kind}.")


def is_share(value: object) -> bool:
    """Whether it is a number from 0 to 1."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value <= 1  # type: ignore[arg-type,operator]
