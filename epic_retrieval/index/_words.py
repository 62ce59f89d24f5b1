"""Numbers and lists in messages for people.

Knows nothing of what is counted.
"""

from collections.abc import Sequence


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 passage", "2,000 passages"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def first_few(names: Sequence[str], few: int = 3) -> str:
    """The first names in quotes, and how many more there are: '"a", "b", "c" and 12 more'."""
    shown = ", ".join(f'"{name}"' for name in names[:few])
    return shown if len(names) <= few else f"{shown} and {len(names) - few:,} more"
