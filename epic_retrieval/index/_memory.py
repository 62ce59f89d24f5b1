"""How much memory a build may take when nobody says.

Knows nothing of indexes.
"""

import os
from pathlib import Path

# Where nothing can be found out: small enough for any machine that runs an encoder.
_UNKNOWN = 2 * 2**30
_LEAST = 256 * 2**20
# Of a container, in the two versions that Linux has: folder, limit, what is taken of it.
_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def default_memory() -> int:
    """Half of the memory that is free now, in bytes; at least 256 MiB."""
    found = [size for size in (_of_machine(), *map(_of_container, _GROUPS)) if size is not None]
    return max(min(found, default=_UNKNOWN) // 2, _LEAST)


def _of_machine() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        return int(text.split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        # Not Linux: what there is, of which others have some.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _of_container(group: tuple[str, str, str]) -> int | None:
    folder, limit, used = (Path(group[0], name) for name in ("", *group[1:]))
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
        stat = dict(line.split() for line in lines)
        # Files that were read count as taken, but are let go when memory is wanted.
        taken = int(used.read_text()) - int(stat.get("inactive_file", 0))
        # A group without a limit says "max", or a number larger than any memory.
        return max(int(limit.read_text()) - taken, 0)
    except (OSError, ValueError):
        return None
