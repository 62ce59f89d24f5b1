"""Finished folders: linked, put in place, and what to say when the disk is full.

Knows nothing of what they hold.
"""

import contextlib
import shutil
from pathlib import Path

from epic_retrieval.index.generations import sync


def link_files(source: Path, target: Path, *, copy: bool) -> None:
    """Make the folder `target` anew, of the very files of `source`.

    Raises:
        OSError: The file system has no links, or is another one, and a `copy` is not wished for.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in source.iterdir():
        try:
            (target / file.name).hardlink_to(file)
        except OSError:
            if not copy:
                raise
            shutil.copyfile(file, target / file.name)
            sync(target / file.name)
    sync(target)


def place_folder(source: Path, target: Path) -> None:
    """Have the files of `source` at `target` too; where there are no links, they move there.

    What is at `target` already is replaced, but for the moment between two renames.
    """
    if _is_same(source, target):
        return
    fresh = target.with_name(f"{target.name}.new")
    try:
        link_files(source, fresh, copy=False)
    except OSError:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh = source
    former = target.with_name(f"{target.name}.replaced")
    shutil.rmtree(former, ignore_errors=True)
    if target.exists():
        target.rename(former)
    fresh.rename(target)
    shutil.rmtree(former, ignore_errors=True)


def place_file(source: Path, target: Path) -> None:
    """Have a file at `target` too; where there are no links, it moves there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        source.replace(target)


def _is_same(source: Path, target: Path) -> bool:
    try:
        names = [path.name for path in source.iterdir()]
        return all((source / name).samefile(target / name) for name in names)
    except OSError:
        return False


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder, in which files may come and go."""
    size = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            size += path.lstat().st_size
    return size


def shortage(folder: Path, needed: float | None) -> str:
    """What to do about a file that could not be written, in one sentence.

    Args:
        folder: Where it should have been.
        needed: Bytes that are still to be written there; None if nobody knows.
    """
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return "Check the disk."
    if needed is None:
        return f"{human(free)} are free there: make room if that is too little."
    if needed <= free:
        return (
            f"About {human(needed)} are still needed, and {human(free)} are free there: look for a "
            "quota, or a limit on the size of files."
        )
    return (
        f"About {human(needed)} are still needed, but only {human(free)} are free there: make room "
        f"for {human(needed - free)} more."
    )


def human(size: float) -> str:
    """Bytes for people: "1.5 GB" (powers of 1,000, as disks are sold)."""
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"
