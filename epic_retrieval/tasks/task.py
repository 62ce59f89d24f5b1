"""A task: an instruction and the demonstrations that show what answers a query.

Knows nothing of models, templates or token limits, and nothing of which tasks are built in.
"""

import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Self

from epic_retrieval.errors import InputError
from epic_retrieval.tasks.files import read_document, write_document
from epic_retrieval.tasks.selection import Selection

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A query and a passage that answers it, as the task means it. Texts are kept unchanged.

    For classification and clustering the passage is the label.

    Raises:
        InputError: when a text is not a string, is blank, or is not valid Unicode.
    """

    query: str
    passage: str

    def __post_init__(self) -> None:
        _check_text("query", self.query)
        _check_text("passage", self.passage)

    def to_dict(self) -> dict[str, str]:
        """The form that `from_dict` reads: `{"query": ..., "passage": ...}`."""
        return {"query": self.query, "passage": self.passage}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """Build a demonstration from `{"query": ..., "passage": ...}`.

        Raises:
            InputError: for unknown or missing keys, and whatever the constructor refuses.
        """
        fields = check_keys(data, required=("query", "passage"))
        return cls(**fields)  # type: ignore[arg-type]  # __post_init__ checks the types


@dataclass(frozen=True, slots=True)
class Task:
    """What is searched for, in words and by example.

    Attributes:
        name: a name that can also name a file: letters, digits, `.`, `_`, `-`; at most 100.
        instruction: one sentence, e.g. "Given a question, retrieve passages that answer it".
        demonstrations: none to a few pairs, no pair twice; any iterable is taken, a tuple kept.
        symmetric: both texts of a pair are of one kind (duplicates, similarity), so that
            instruction and demonstrations go on both sides; otherwise on the query alone.
        selection: how the demonstrations were chosen, for the record; no vector depends on it, and
            tasks that differ in nothing else are equal.

    Raises:
        InputError: when a field has the wrong type, a blank text, or a repeated demonstration.
    """

    name: str
    instruction: str
    demonstrations: tuple[Demonstration, ...] = ()
    symmetric: bool = False
    selection: Selection | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _check_text("name", self.name)
        if not _NAME.fullmatch(self.name):
            raise InputError(
                f'name is {reprlib.repr(self.name)}; expected at most 100 letters, digits, ".", "_"'
                ' or "-", the first a letter or digit; rename the task'
            )
        _check_text("instruction", self.instruction)
        if not isinstance(self.symmetric, bool):
            raise InputError(f"symmetric is {reprlib.repr(self.symmetric)}; expected true or false")
        if not isinstance(self.selection, Selection | None):
            raise InputError(f"selection is {reprlib.repr(self.selection)}; expected a Selection")
        object.__setattr__(self, "demonstrations", _checked_demonstrations(self.demonstrations))

    def with_demonstrations(self, demonstrations: Iterable[Demonstration]) -> Self:
        """The same task with these demonstrations in place of its own, which nobody selected."""
        given = _checked_demonstrations(demonstrations)
        return replace(self, demonstrations=given, selection=None)

    def without_demonstrations(self) -> Self:
        """The same task with its instruction alone."""
        return replace(self, demonstrations=(), selection=None)

    def to_dict(self) -> dict[str, object]:
        """Plain data, as a task file holds it and `from_dict` reads it."""
        data: dict[str, object] = {
            "name": self.name,
            "instruction": self.instruction,
            "symmetric": self.symmetric,
            "demonstrations": [one.to_dict() for one in self.demonstrations],
        }
        return data if self.selection is None else data | {"selection": self.selection.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """Build a task from plain data; all but `name` and `instruction` may be left out.

        Raises:
            InputError: for unknown or missing keys, and whatever the constructor refuses.
        """
        fields = dict(
            check_keys(
                data,
                required=("name", "instruction"),
                optional=("symmetric", "demonstrations", "selection"),
            )
        )
        if fields.get("selection") is not None:
            with located("selection"):
                keys = tuple(one.name for one in dataclass_fields(Selection))
                record = check_keys(fields["selection"], required=keys)
                fields["selection"] = Selection(**record)  # type: ignore[arg-type]
        rows = fields.pop("demonstrations", [])
        if not isinstance(rows, list | tuple):
            raise InputError(
                f"demonstrations is {reprlib.repr(rows)}; expected a list of entries with the keys"
                ' "query" and "passage"; leave the key out where there are none'
            )
        demonstrations = []
        for number, row in enumerate(rows, start=1):
            with located(f"demonstration {number}"):
                demonstrations.append(Demonstration.from_dict(row))
        return cls(demonstrations=tuple(demonstrations), **fields)  # type: ignore[arg-type]

    def save(self, path: str | Path) -> None:
        """Write the task to a `.json`, `.yaml` or `.yml` file, replacing an older one at once.

        Raises:
            InputError: for another ending, or a folder that does not exist.
        """
        write_document(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a task from a `.json`, `.yaml` or `.yml` file.

        Raises:
            InputError: naming the file and the field, for whatever cannot be used.
        """
        document = read_document(Path(path))
        with located(str(path)):
            return cls.from_dict(document)  # type: ignore[arg-type]  # check_keys checks the type


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put the place in front of the message of an `InputError` that passes."""
    try:
        yield
    except InputError as error:
        # The cause is passed on, so that a traceback does not tell the same story once per place.
        raise InputError(f"{where}: {error}") from error.__cause__


def check_keys(
    data: object, *, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Mapping[str, object]:
    """Return `data` when it is a mapping with all `required` keys and no unknown ones.

    Raises:
        InputError: naming the keys at fault.
    """
    expected = ", ".join((*required, *(f"{key} (optional)" for key in optional)))
    if not isinstance(data, Mapping):
        raise InputError(f"got {reprlib.repr(data)}; expected a mapping with the keys {expected}")
    missing = [key for key in required if key not in data]
    unknown = [str(key) for key in data if key not in (*required, *optional)]
    if missing or unknown:
        faults = [f"missing key {key!r}" for key in missing]
        faults += [f"unknown key {key!r}" for key in unknown]
        raise InputError(f"{', '.join(faults)}; the keys are {expected}")
    return data


def _check_text(field: str, text: object) -> None:
    if not isinstance(text, str):
        raise InputError(
            f"{field} is {reprlib.repr(text)} ({type(text).__name__}); expected a text;"
            " in a YAML file, put it in quotes"
        )
    if not text.strip():
        raise InputError(f"{field} is {reprlib.repr(text)}; expected a text that is not blank")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{field} holds half a surrogate pair at character {error.start}; expected valid"
            " Unicode; decode the text again from its source"
        ) from error


def _checked_demonstrations(given: Iterable[Demonstration]) -> tuple[Demonstration, ...]:
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise InputError(
            f"demonstrations is {reprlib.repr(given)}; expected a sequence of Demonstration"
        )
    demonstrations = tuple(given)
    first_at: dict[Demonstration, int] = {}
    for number, one in enumerate(demonstrations, start=1):
        if not isinstance(one, Demonstration):
            raise InputError(
                f"demonstration {number} is {reprlib.repr(one)} ({type(one).__name__}); expected"
                " Demonstration(query, passage)"
            )
        if first_at.setdefault(one, number) != number:
            raise InputError(
                f"demonstrations {first_at[one]} and {number} are the same pair; remove one"
            )
    return demonstrations
