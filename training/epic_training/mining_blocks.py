"""Work that a crash does not lose: finished blocks in `OUT.partial`, one file in the end.

The folder notes what it was made from; another run continues it only if that is the same. Knows
nothing of mining.
"""

import gzip
import json
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from epic_retrieval.errors import InputError
from epic_retrieval.storage import digest_of, digest_of_files, write_atomically

ENDINGS = (".jsonl", ".jsonl.gz")


class Workspace:
    """The folder beside an output file while that is being made.

    Args:
        out: the file that is to appear; it must not be there.
        made_from: everything that decides its content, as JSON holds it.

    Raises:
        InputError: for an `out` that is there or has another ending, or a folder that was begun
            with something else.
    """

    def __init__(self, out: Path, made_from: Mapping[str, object]) -> None:
        self.out = out
        self.folder = out.with_name(out.name + ".partial")
        check_output(out)
        note = self.folder / "made_from.json"
        wanted = json.loads(json.dumps(made_from))
        if not note.is_file():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise InputError(
                    f"{self.folder} is there and was not begun by this command: remove it"
                )
            write_atomically(note, json.dumps(wanted, indent=1).encode())
            return
        found = json.loads(note.read_text(encoding="utf-8"))
        if found != wanted:
            raise InputError(
                f"{self.folder} was begun with something else: {_differences(found, wanted)}. Run"
                " the same command again to go on, choose another output, or remove that folder to"
                " begin anew"
            )

    def leave_if_empty(self) -> None:
        """Take the folder away again while it holds no finished work."""
        if [path.name for path in self.folder.iterdir()] == ["made_from.json"]:
            shutil.rmtree(self.folder)

    def counts(self, number: int) -> Counter[str] | None:
        """What was counted when block `number` was written; None where it still has to be."""
        path = self._block(number)
        if not path.is_file():
            return None
        with path.open(encoding="utf-8") as lines:
            return Counter(json.loads(next(lines)))

    def write(self, number: int, lines: Iterable[str], counts: Mapping[str, int]) -> None:
        """Keep a finished block; lines come without line breaks."""
        text = "".join(f"{line}\n" for line in (json.dumps(counts), *lines))
        write_atomically(self._block(number), text.encode())

    def finish(self, blocks: int) -> None:
        """Put the blocks together as the output file, and remove the folder."""
        temporary = self.out.with_name(f".{self.out.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("xb") as raw:
                if self.out.suffix == ".gz":
                    # Without the time of day: the same input gives the same bytes.
                    with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
                        self._append(blocks, file)
                else:
                    self._append(blocks, raw)
            temporary.replace(self.out)
        finally:
            temporary.unlink(missing_ok=True)
        shutil.rmtree(self.folder)

    def _append(self, blocks: int, file: BinaryIO | gzip.GzipFile) -> None:
        for number in range(blocks):
            with self._block(number).open("rb") as lines:
                next(lines)  # the counts
                shutil.copyfileobj(lines, file)

    def _block(self, number: int) -> Path:
        return self.folder / f"{number:06}.jsonl"


def check_output(out: Path) -> None:
    """Raise InputError unless `out` can become a file of JSON lines."""
    if not out.name.endswith(ENDINGS):
        raise InputError(f"{out}: expected a file that ends in {' or '.join(ENDINGS)}; rename it")
    if out.exists():
        raise InputError(f"{out} exists, and nothing is replaced: choose another name or remove it")
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}; create it first")


def digest_of_input(path: Path, files: Sequence[Path]) -> str:
    """Hex digest of the files that `path` stands for; `path` itself when there are none (a hub)."""
    if not files:
        return str(path)
    return digest_of([digest_of_files([file]) for file in files])


def files_below(path: Path) -> list[Path]:
    """The file itself, or all files below a folder, sorted."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path] if path.is_file() else []


def _differences(found: object, wanted: object) -> str:
    """What differs between two notes, entry by entry."""
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        return "its note is of another kind"
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    parts = []
    for key in keys:
        before, now = found.get(key), wanted.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            parts.append(_differences(before, now))
        else:
            parts.append(f"{key} was {before!r}, now {now!r}")
    return "; ".join(parts)
