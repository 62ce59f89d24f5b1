"""A passage: what an index stores, encodes and gives back.

Knows nothing of files, vectors or encoders.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from epic_retrieval.errors import InputError

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"


@dataclass(frozen=True)
class Passage:
    """One passage of a corpus.

    Args:
        id: Unique in its corpus, not blank.
        text: The passage itself; may be blank only if there is a title.
        title: Empty when there is none.
        metadata: What JSON can hold, with finite numbers. Copied, so that later changes of the
            caller's mapping do not reach the passage.

    Raises:
        InputError: A field is of another type, blank, or holds a character that cannot be stored
            (NUL, or half a surrogate pair).
    """

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, JSON] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("id", "text", "title"):
            _check_text(name, getattr(self, name))
        if not self.id.strip():
            raise InputError(f"The id is blank ({self.id!r}): give every passage an id.")
        if is_blank(self.text, self.title):
            raise InputError(
                f'Passage "{self.id}" has neither text nor title: remove it, or give it a text.'
            )
        if not isinstance(self.metadata, Mapping):
            given = type(self.metadata).__name__
            raise InputError(f"metadata is a {given}: expected a mapping, such as a dict.")
        _check_json(self.metadata, "metadata")
        object.__setattr__(self, "metadata", dict(self.metadata))

    @property
    def content(self) -> str:
        """What is encoded: the title, a line break and the text; or the one of them there is."""
        return "\n".join(part for part in (self.title, self.text) if part)


def stored_passage(passage_id: str, text: str, title: str, metadata: dict[str, JSON]) -> Passage:
    """A passage of what was one before, as it is: nothing is checked again, and nothing copied."""
    passage = object.__new__(Passage)
    passage.__dict__.update(id=passage_id, text=text, title=title, metadata=metadata)
    return passage


def is_blank(text: str, title: str) -> bool:
    """Whether a passage of these two would have nothing to encode."""
    return not text.strip() and not title.strip()


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputError(f"{name} is of type {type(value).__name__}: expected text (str).")
    if "\0" in value:
        at = value.index("\0")
        raise InputError(f"{name} holds a NUL character at position {at}: remove it.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} holds half a surrogate pair at position {error.start} "
            f"(U+{ord(value[error.start]):04X}), which is no character: remove it."
        ) from error


def _check_json(value: object, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputError(f"{where} has the key {key!r}: expected text keys, as in JSON.")
            _check_json(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _check_json(item, f"{where}[{position}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} is {value}: JSON has finite numbers only; use None for missing.")
    elif not (value is None or isinstance(value, bool | int | float | str)):
        given = type(value).__name__
        raise InputError(
            f"{where} is of type {given}: expected what JSON can hold "
            "(None, bool, int, float, str, lists and dicts of these); convert it to text."
        )
