"""Parquet files and Hugging Face `datasets` as placed rows of cells, by record batches.

Only the columns that some kind of training row looks at are read.

Knows nothing of rows: `epic_training.data.columns` says which column means what.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from epic_retrieval.errors import InputError
from epic_retrieval.tasks.task import located
from epic_training.data.columns import check_columns, is_read
from epic_training.data.files import PlacedCells, reading

if TYPE_CHECKING:
    from datasets import Dataset

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?", re.ASCII)
_ROWS_AT_ONCE = 512


def parquet_columns(path: Path) -> tuple[str, ...]:
    """Names of the columns of a Parquet file.

    Raises:
        InputError: it is none.
    """
    try:
        with reading(path), pq.ParquetFile(path) as file:
            return tuple(file.schema_arrow.names)
    except pa.ArrowException as error:
        raise _unreadable(path, 0, error) from error


def parquet_rows(path: Path) -> Iterator[PlacedCells]:
    """The rows of a Parquet file.

    Raises:
        InputError: with file and row, for a file that is not Parquet or is damaged.
    """
    columns = list(filter(is_read, parquet_columns(path)))
    row = 0
    try:
        with reading(path), pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
                for cells in batch.to_pylist():
                    row += 1
                    yield f"row {row}", cells
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _unreadable(path, row, error) from error


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets`' `save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def saved_dataset_rows(folder: Path) -> Iterator[PlacedCells]:
    """The rows of a data set that `save_to_disk` wrote; of one with splits, those of "train".

    Raises:
        InputError: the folder is damaged, or has splits and none is called "train".
    """
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise InputError(
            f"{folder}: datasets.load_from_disk cannot read it ({error}); write it again with"
            " save_to_disk"
        ) from error
    if isinstance(found, datasets.DatasetDict):
        if "train" not in found:
            raise InputError(
                f'{folder}: holds the splits {", ".join(found)}; expected "train": name the folder'
                " of one split"
            )
        found = found["train"]
    return _dataset_rows(found, folder)


def is_hub_id(path: Path) -> bool:
    """Whether a path that does not exist may be a hub id, `owner/name` or `owner/name:config`."""
    return _HUB_ID.fullmatch(path.as_posix()) is not None and not path.exists()


def hub_rows(path: Path) -> Iterator[PlacedCells]:
    """The rows of split "train" of a data set on the Hugging Face hub: may use the network.

    Raises:
        InputError: no such file or data set, or no network.
    """
    import datasets

    name, config = _HUB_ID.fullmatch(path.as_posix()).groups()  # type: ignore[union-attr]
    try:
        found = datasets.load_dataset(name, config, split="train")
    except Exception as error:  # what the hub, the network and files raise has no common base
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: there is no such file or folder, and as the id of a data set on the hub it"
            f" cannot be loaded ({type(error).__name__}: {reason}); correct the path or the id,"
            " or go online once"
        ) from error
    return _dataset_rows(found, path)


def _dataset_rows(dataset: "Dataset", where: Path) -> Iterator[PlacedCells]:
    with located(str(where)):
        check_columns("triplets", tuple(dataset.column_names))
    known = dataset.select_columns([name for name in dataset.column_names if is_read(name)])
    row = 0
    for table in known.with_format("arrow").iter(_ROWS_AT_ONCE):
        for cells in table.to_pylist():
            row += 1
            yield f"row {row}", cells


def _unreadable(path: Path, row: int, error: Exception) -> InputError:
    return InputError(f"{path}, after row {row}: not a readable Parquet file ({error})")
