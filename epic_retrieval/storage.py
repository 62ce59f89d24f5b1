"""Where cached files lie, how they are written whole or not at all, and digests of files.

Knows nothing of what the files hold.
"""

import contextlib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_SHA256 = re.compile(r"[0-9a-f]{64}")


def cache_folder() -> Path:
    """Folder for prompts and digests: `$EPIC_CACHE_DIR`, or the user's cache folder."""
    chosen = os.environ.get("EPIC_CACHE_DIR")
    if chosen:
        return Path(chosen)
    from platformdirs import user_cache_path

    return user_cache_path("epic-retrieval", appauthor=False)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that readers, other writers and a crash see all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files are closed to other users, whatever the umask.
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def digest_of(value: object) -> str:
    """Hex sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of_tensors(tensors: Mapping[str, "Tensor"]) -> str:
    """Hex sha256 of names, dtypes, shapes and bytes of tensors."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def digest_of_files(files: Iterable[Path]) -> str:
    """Hex sha256 of the names and contents of files.

    Files of gigabytes are read once: their digests are remembered by path, size and time of change.
    The blobs of the Hugging Face cache carry theirs as a name.
    """
    return digest_of({file.name: _file_digest(file) for file in files})


def _file_digest(file: Path) -> str:
    real = file.resolve()
    if _SHA256.fullmatch(real.name):
        return real.name
    status = real.stat()
    key = digest_of([str(real), status.st_size, status.st_mtime_ns, status.st_ino])
    note = cache_folder() / "digests" / key
    try:
        known = note.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        known = ""
    if _SHA256.fullmatch(known):
        return known
    with real.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    # In a read-only home the digest is computed again next time.
    with contextlib.suppress(OSError):
        write_atomically(note, found.encode())
    return found
