"""A mix: the data sets of a training run, from a YAML (or JSON) file, and what is trained on.

    root: .                       # of relative paths; relative to the mix file itself
    development_percent: 0.0      # of the queries, held out by a hash of their text
    datasets:
      fever_dev:
        path: fever_dev           # default: the name
        format: pairs             # default: guessed
        instruction: Given a claim, retrieve documents that support or refute the claim
        # instructions: [..., ...]  one is drawn per batch; default: what the rows carry
        ratio: 1.0                # share of the rows used per epoch; above 1 they repeat
        symmetric: false          # default: the rows' kind is symmetric_sts, symmetric_clustering
        in_batch_negatives: true  # default: not if it is symmetric_class, symmetric_clustering
        development: 0.0          # default: development_percent

A row is held out when its query is, so the same query never stands on both sides, in any data set.

Knows nothing of how rows are stored, and of batches.
"""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.errors import InputError
from epic_retrieval.tasks import Task
from epic_retrieval.tasks.files import read_document
from epic_retrieval.tasks.task import check_keys, located
from epic_training.data.formats import guess_format, source_files
from epic_training.data.store import RowStore, open_rows
from epic_training.data.tables import is_hub_id
from epic_training.pairs import is_development

_KEYS = (
    "path",
    "format",
    "instruction",
    "instructions",
    "ratio",
    "symmetric",
    "in_batch_negatives",
    "development",
)
_SYMMETRIC_KINDS = ("symmetric_sts", "symmetric_clustering")
# Their passages are labels, or stand for one: another row's may be right too.
_OWN_NEGATIVES_KINDS = ("symmetric_class", "symmetric_clustering")
# Rows of the other formats cannot carry an instruction.
_WITH_INSTRUCTIONS = ("flagembedding", "parquet")


@dataclass(frozen=True)
class DatasetSettings:
    """One entry of a mix file.

    Attributes:
        name: of letters, digits, ".", "_" and "-".
        path: of file or folder, or a hub id.
        format: one of `formats.FORMATS`.
        instructions: one or more; empty: what the rows carry.
        ratio: share of the training rows used per epoch, above 0.
        symmetric: both texts of a pair are of one kind; None: what the rows' kind says.
        in_batch_negatives: other rows' passages are negatives; None: what the rows' kind says.
        development: percent of the queries held out, from 0 to below 100.

    Raises:
        InputError: naming the setting.
    """

    name: str
    path: Path
    format: str
    instructions: tuple[str, ...] = ()
    ratio: float = 1.0
    symmetric: bool | None = None
    in_batch_negatives: bool | None = None
    development: float = 0.0

    def __post_init__(self) -> None:
        _tasks(self.name, self.instructions or ("to be found",), symmetric=False)  # checks both
        source_files(self.path, self.format)
        if not self.instructions and self.format not in _WITH_INSTRUCTIONS:
            raise InputError(
                f"no instruction, and rows of format {self.format!r} carry none; add"
                ' "instruction: ..."'
            )
        _check_number("ratio", self.ratio)
        if self.ratio == 0:
            raise InputError("ratio is 0; remove the dataset instead")
        if self.ratio < 0:
            raise InputError(f"ratio is {self.ratio}; expected a number above 0")
        _check_number("development", self.development)
        if not 0 <= self.development < 100:
            raise InputError(
                f"development is {self.development}; expected a percentage from 0 to below 100"
            )
        for setting in ("symmetric", "in_batch_negatives"):
            if not isinstance(getattr(self, setting), bool | None):
                given = reprlib.repr(getattr(self, setting))
                raise InputError(f"{setting} is {given}; expected true or false")


@dataclass(frozen=True)
class Mix:
    """The data sets of a run, in the order of the file `path`."""

    path: Path
    datasets: tuple[DatasetSettings, ...]


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """A data set as it is trained on.

    Attributes:
        name: as in the mix.
        tasks: one per instruction, without demonstrations.
        rows: all rows.
        train: (n,) int64, numbers of the rows to train on, ascending.
        development: (m,) int64, numbers of the rows held out, ascending.
        ratio: share of `train` used per epoch.
        in_batch_negatives: whether other rows' passages are negatives; otherwise only a row's own.
    """

    name: str
    tasks: tuple[Task, ...]
    rows: RowStore
    train: NDArray[np.int64]
    development: NDArray[np.int64]
    ratio: float = 1.0
    in_batch_negatives: bool = True


def load_mix(path: Path, root: Path | None = None) -> Mix:
    """Read and check a mix file; the data sets must be there, but no row is read.

    Args:
        path: the mix file.
        root: folder of relative paths, in place of the file's own `root`.

    Raises:
        InputError: naming the file and the data set: unknown keys, a data set given twice or not
            found, a ratio of 0, no instruction, no data sets.
    """
    document = read_document(path)
    with located(str(path)):
        top = check_keys(document, required=("datasets",), optional=("root", "development_percent"))
        entries = top["datasets"]
        if not isinstance(entries, Mapping) or not entries:
            raise InputError(
                f"datasets is {reprlib.repr(entries)}; expected a mapping of one or more names to"
                " settings"
            )
        if root is None:
            given = top.get("root", ".")
            if not isinstance(given, str):
                raise InputError(f"root is {reprlib.repr(given)}; expected a folder")
            root = path.parent / Path(given).expanduser()
        percent = top.get("development_percent", 0.0)
        settings = []
        for name, entry in entries.items():
            with located(f"dataset {name!r}"):
                settings.append(_settings(name, {} if entry is None else entry, root, percent))
    return Mix(path, tuple(settings))


def open_mix(mix: Mix, cache: Path) -> list[TrainingSet]:
    """Open every data set of a mix, reading each that was not read before (see `open_rows`).

    Raises:
        InputError: naming the mix file and the data set: a malformed row, rows that carry different
            instructions or kinds where the mix does not say which counts, nothing to train on.
    """
    opened = []
    for settings in mix.datasets:
        with located(f"{mix.path}: dataset {settings.name!r}"):
            opened.append(_open(settings, cache))
    return opened


def _settings(name: object, entry: object, root: Path, percent: object) -> DatasetSettings:
    given = dict(check_keys(entry, required=(), optional=_KEYS))
    if not isinstance(name, str):
        raise InputError(f"its name is a {type(name).__name__}; put it in quotes")
    where = given.get("path", name)
    if not isinstance(where, str) or not where:
        raise InputError(f"path is {reprlib.repr(where)}; expected a file or folder")
    path = root / Path(where).expanduser()
    named = given.get("format")
    if named == "triplets" and is_hub_id(Path(where)) and not path.exists():
        path = Path(where)
    # DatasetSettings checks the types.
    settings: dict[str, Any] = {"development": percent} | given
    settings["format"] = guess_format(path) if named is None else named
    settings["instructions"] = _instructions(given)
    settings.pop("instruction", None)
    return DatasetSettings(**(settings | {"name": name, "path": path}))


def _instructions(given: Mapping[str, object]) -> tuple[str, ...]:
    if "instruction" in given and "instructions" in given:
        raise InputError("both instruction and instructions; keep one of them")
    several = given.get("instructions", [given["instruction"]] if "instruction" in given else None)
    if several is None:
        return ()
    if not isinstance(several, list) or not several:
        raise InputError(f"instructions is {reprlib.repr(several)}; expected a list of sentences")
    twice = [text for number, text in enumerate(several) if text in several[:number]]
    if twice:
        raise InputError(f"the instruction {reprlib.repr(twice[0])} stands twice; remove one")
    return tuple(several)


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} is {reprlib.repr(value)}; expected a number")


def _tasks(name: str, instructions: tuple[str, ...], *, symmetric: bool) -> tuple[Task, ...]:
    """A task per instruction: called like the data set, the second one `<name>-2`, ..."""
    return tuple(
        Task(name if number == 1 else f"{name}-{number}", text, symmetric=symmetric)
        for number, text in enumerate(instructions, start=1)
    )


def _open(settings: DatasetSettings, cache: Path) -> TrainingSet:
    rows = open_rows(settings.path, settings.format, cache)
    instructions = settings.instructions or (_instruction_of(rows),)
    symmetric, in_batch = settings.symmetric, settings.in_batch_negatives
    if symmetric is None or in_batch is None:
        try:
            kind = rows.constant("kind")
        except InputError as error:
            raise InputError(
                f"{error}; say symmetric and in_batch_negatives in the mix, or split the data set"
            ) from error.__cause__
        symmetric = kind in _SYMMETRIC_KINDS if symmetric is None else symmetric
        in_batch = kind not in _OWN_NEGATIVES_KINDS if in_batch is None else in_batch
    if not in_batch and not rows.negative_counts().any():
        raise InputError(
            "in_batch_negatives is false, but no row has a negative of its own, so there is nothing"
            " to learn; set it to true, or add negatives"
        )
    held_out = np.zeros(len(rows), dtype=bool)
    if settings.development:
        for number in range(len(rows)):
            held_out[number] = is_development(rows.query(number), settings.development)
    train = np.flatnonzero(~held_out)
    if not len(train):
        raise InputError(
            f"all {len(rows)} rows are held out (development: {settings.development}); expected"
            " some to train on"
        )
    return TrainingSet(
        settings.name,
        _tasks(settings.name, instructions, symmetric=symmetric),
        rows,
        train,
        np.flatnonzero(held_out),
        float(settings.ratio),
        in_batch,
    )


def _instruction_of(rows: RowStore) -> str:
    try:
        found = rows.constant("instruction")
    except InputError as error:
        raise InputError(
            f'{error}; add "instruction: ..." to the mix, or split the data set'
        ) from error.__cause__
    if found is None:
        raise InputError('no instruction, and the rows carry none; add "instruction: ..."')
    return found
