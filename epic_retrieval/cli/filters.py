"""Conditions on metadata from the command line, and why they may match nothing.

Knows nothing of searching.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epic_retrieval.errors import InputError

if TYPE_CHECKING:
    from epic_retrieval.index import Manifest
    from epic_retrieval.index._fields import Form
    from epic_retrieval.index.shards import Shards
    from epic_retrieval.index.where import Condition

# As many of the first passages tell which fields there are.
_LOOKED_AT = 100
# Parts of a passage that have columns of their own, if metadata has no such field.
_NOT_METADATA = ("title", "text")
_WRITTEN = {"number": "a number", "boolean": "true or false"}


def condition_of(where: str | None) -> dict[str, Any] | None:
    """A condition on metadata from the command line.

    Raises:
        InputError: It is not a JSON object.
    """
    if where is None:
        return None
    try:
        found = json.loads(where)
    except ValueError as error:
        raise InputError(
            f'--where is not valid JSON ({error}); expected, for example, \'{{"lang": "en"}}\''
        ) from error
    if not isinstance(found, dict):
        raise InputError(f'--where is {where}; expected an object, such as {{"lang": "en"}}')
    return found


def filter_hints(folder: Path, condition: dict[str, Any]) -> list[str]:
    """What of a condition can match no passage at all: fields that are not there, other types.

    Values are compared within one type only, so a number never finds a text that looks like it.

    Args:
        folder: The index.
        condition: Is as it should be.
    """
    from epic_retrieval.index._source import open_source
    from epic_retrieval.index.where import parse

    wanted = dict.fromkeys(_demands(parse(condition)))
    with open_source(folder, check=False) as source, source.open() as shards:
        if not source.rows:
            return []
        hints = [_hint(shards, key, kind) for key, kind in wanted]
    return list(dict.fromkeys(hint for hint in hints if hint))


def first_fields(folder: Path, manifest: "Manifest") -> list[str]:
    """Names of metadata of the first passages, sorted; few enough that one shard is looked at.

    Raises:
        PassageIndexError: The first shard is missing or damaged.
    """
    from epic_retrieval.index.shards import Shards

    shards = Shards(folder, manifest.shards[:1], dimension=manifest.dimension)
    try:
        return _names(shards)
    finally:
        shards.close()


def _demands(condition: "Condition") -> Iterator[tuple[str, str]]:
    """(field, type of the value) for each value that a condition names."""
    from epic_retrieval.index.where import ID, Compares, Equals, Every, Not, Some

    match condition:
        case Every(parts) | Some(parts):
            for part in parts:
                yield from _demands(part)
        case Not(part):
            yield from _demands(part)
        case Equals(key, values) if key != ID:
            yield from ((key, _kind(value)) for value in values if _kind(value))
        case Compares(key, _, value) if key != ID:
            yield key, _kind(value)
        case _:
            pass


def _kind(value: "Form") -> str:
    from epic_retrieval.index._fields import ABOVE, BELOW, BOOLEAN, NUMBER, TEXT

    if value[0] in (BELOW, NUMBER, ABOVE):
        return "number"
    return {TEXT: "text", BOOLEAN: "boolean"}.get(value[0], "")


def _hint(shards: "Shards", key: str, kind: str) -> str:
    if not _has(shards, {key: {"$exists": True}}):
        if key == "id":
            return 'an id is not among the metadata; to filter by it write "_id"'
        if key in _NOT_METADATA:
            return f"a {key} is not among the metadata, and cannot be filtered by"
        names = _names(shards)
        there = f"there are {', '.join(names)}" if names else "there is no metadata at all"
        return f'no passage has the field "{key}"; {there}'
    kinds = [name for name, test in _OF_KIND.items() if _has(shards, test(key))]
    if not kinds or kind in kinds:
        return ""
    hint = f'"{key}" holds {" and ".join(f"{name}s" for name in kinds)} only, never a {kind}: '
    if "text" not in kinds:
        return f"{hint}write {' or '.join(_WRITTEN[name] for name in kinds)}, without quotes"
    types = "bool" if kind == "boolean" else "int (or float)"
    return (
        f"{hint}write the value in quotes to compare texts, or build the index again with "
        f"--types {key}={types}"
    )


def _names(shards: "Shards") -> list[str]:
    looked_at = shards.fetch(range(min(_LOOKED_AT, len(shards))))
    return sorted({name for passage in looked_at for name in passage.metadata})


def _has(shards: "Shards", condition: dict[str, Any]) -> bool:
    from epic_retrieval.index.where import parse

    parsed = parse(condition)
    # Shard by shard: mostly the first one tells, however many there are.
    return any(shard.store.mask(parsed).any() for _, shard in shards)


_OF_KIND: dict[str, Callable[[str], dict[str, Any]]] = {
    "number": lambda key: {"$or": [{key: {"$gte": 0}}, {key: {"$lt": 0}}]},
    "text": lambda key: {key: {"$gte": ""}},
    "boolean": lambda key: {key: {"$in": [True, False]}},
}
