"""Plain data as Markdown: tables, cells, YAML. Knows nothing of models."""

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import yaml


def as_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table with a column for each key of any row, in the order that they come in."""
    known = list(rows)
    columns = list(dict.fromkeys(key for row in known for key in row))
    lines = ["| " + " | ".join(cell(column) for column in columns) + " |"]
    lines.append("|---" * len(columns) + "|")
    lines += [
        "| " + " | ".join(cell(row.get(column)) for column in columns) + " |" for row in known
    ]
    return "\n".join(lines)


def cell(value: object) -> str:
    """One line that does not break a table; nothing for None, four digits for a fraction."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        text = ", ".join(f"{key} {cell(item)}" for key, item in value.items())
    elif isinstance(value, list | tuple):
        text = ", ".join(cell(item) for item in value)
    else:
        text = str(value)
    return " ".join(text.split()).replace("|", "\\|")


def as_yaml(value: object) -> str:
    """Block style, keys in their own order."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)


def without_folders(value: Any) -> Any:  # noqa: ANN401 (plain data of any shape)
    """The same data with absolute paths cut down to their last names."""
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    if isinstance(value, str) and "\n" not in value:
        for path in (PurePosixPath(value), PureWindowsPath(value)):
            if path.is_absolute() and path.name:
                return path.name
    return value
