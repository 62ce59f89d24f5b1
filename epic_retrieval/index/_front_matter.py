"""What stands in YAML between two lines of --- at the head of a Markdown file.

Knows nothing of passages.
"""

import math
import re
from datetime import date
from typing import NamedTuple

from epic_retrieval.index.passage import JSON

# From the first line on; the end may also be a line of dots.
_FRONT = re.compile(
    r"---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*\r?(?:\n|\Z)", re.DOTALL | re.MULTILINE
)


class Front(NamedTuple):
    """The head of a file.

    Attributes:
        title: As it stands there, on one line; empty if there is none.
        metadata: All other fields that are a scalar, or a list of scalars.
        length: Characters of the file that it takes; 0 if the file has no such head.
        problem: What is wrong with it, if it looks like one and cannot be read.
    """

    title: str
    metadata: dict[str, JSON]
    length: int
    problem: str = ""


def front_matter(text: str) -> Front:
    """The head of a Markdown file. What is no YAML mapping is text, and stays in the file."""
    nothing = Front("", {}, 0)
    found = _FRONT.match(text)
    if found is None:
        return nothing
    import yaml

    try:
        fields = yaml.safe_load(found[1])
    # Such as a date with a thirteenth month.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return nothing._replace(problem=" ".join(str(error).split()))
    if not isinstance(fields, dict):
        return nothing
    metadata = {key: _value(value) for key, value in fields.items() if isinstance(key, str)}
    title = metadata.pop("title", None)
    shown = " ".join(str(title).split()) if isinstance(title, str | int | float) else ""
    kept: dict[str, JSON] = {key: value for key, value in metadata.items() if value is not None}
    return Front(shown, kept, found.end())


def _value(given: object) -> JSON:
    """A scalar or a list of scalars; None for anything else."""
    if isinstance(given, list):
        items = [_scalar(item) for item in given]
        return [item for item in items if item is not None]
    return _scalar(given)


def _scalar(given: object) -> str | int | float | None:
    if isinstance(given, date):  # or a datetime, which is one
        return given.isoformat()
    if isinstance(given, float) and not math.isfinite(given):
        return None
    return given if isinstance(given, str | int | float) else None
