"""Passages and their vectors as Arrow and Parquet, for any other program.

Columns: id, title, text, metadata (JSON as text), vector (of fixed size). The schema's metadata
says whose vectors they are. Knows nothing of search.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from epic_retrieval.errors import InputError, MissingExtraError, PassageIndexError
from epic_retrieval.index._source import Source, open_source
from epic_retrieval.index._swap import shortage
from epic_retrieval.index._tables import EXPORT_FORMAT
from epic_retrieval.index.generations import sync
from epic_retrieval.index.rows import Rows
from epic_retrieval.index.shards import Shards
from epic_retrieval.index.store import metadata_text

if TYPE_CHECKING:
    import pyarrow as pa

Told: TypeAlias = Callable[[int, int], None]

# Vectors in a group of rows, which is in memory as a whole when it is written or read.
_GROUP_BYTES = 2**26
_GROUP_ROWS = 2**16


def to_arrow(
    folder: str | Path, *, rows_at_once: int = 1024, check: bool = True
) -> "pa.RecordBatchReader":
    """The passages that are not deleted, in order, streamed as record batches.

    The reader is an iterator of `pyarrow.RecordBatch`, and an Arrow stream for every library that
    takes one. It holds the index as it is when the first batch is asked for.

    Args:
        folder: An index, or a folder of encoded shards.
        rows_at_once: Rows of each batch; the last one may have fewer.
        check: Compare every file with its checksum before the first batch; those known to be whole
            are not read again.

    Raises:
        InputError: `folder` is neither, or its shards are not complete.
        PassageIndexError: A file is missing or damaged; also while reading.
        MissingExtraError: pyarrow is not installed.
    """
    if rows_at_once < 1:
        raise InputError(f"rows_at_once is {rows_at_once}: expected at least 1.")
    with open_source(folder, check=False) as source:
        arrow = _load_pyarrow()
        schema = _schema(arrow, source)

    def batches() -> Iterator["pa.RecordBatch"]:
        with open_source(folder, check=check) as source, source.open() as shards:
            if not _schema(arrow, source).equals(schema, check_metadata=True):
                raise PassageIndexError(
                    f"{folder}: another index stands here than when the export began. Start again."
                )
            for rows in source.live(rows_at_once):
                yield _batch(arrow, schema, shards, rows)

    return arrow.RecordBatchReader.from_batches(schema, batches())


def export_parquet(
    folder: str | Path,
    path: str | Path,
    *,
    rows_per_file: int | None = None,
    check: bool = True,
    progress: Told | None = None,
) -> int:
    """Write the passages that are not deleted to Parquet, in order, whole or not at all.

    Memory stays bounded: groups of rows with some 64 MB of vectors are written one after another.

    Args:
        folder: An index, or a folder of encoded shards.
        path: The .parquet file to make; with `rows_per_file` a folder of part-00000.parquet and
            so on.
        rows_per_file: Begin a new file after so many rows.
        check: As in `to_arrow`.
        progress: Called with the number of passages that are written, and of all.

    Returns:
        The number of passages.

    Raises:
        InputError: There is something at `path`, or no folder for it, or its name ends in
            something else, or `folder` is not as described.
        PassageIndexError: A file is missing or damaged, or writing failed (a full disk).
        MissingExtraError: pyarrow is not installed.
    """
    path = Path(path)
    if rows_per_file is not None and rows_per_file < 1:
        raise InputError(f"rows_per_file is {rows_per_file}: expected at least 1.")
    if rows_per_file is None and path.suffix.lower() != ".parquet":
        raise InputError(
            f"{path}: expected a file name that ends in .parquet, by which other programs know "
            f"what it is, such as {path.stem or 'out'}.parquet."
        )
    with _aside(path) as fresh:
        # What is wrong with the folder is said before a library is asked for.
        with open_source(folder, check=False):
            arrow = _load_pyarrow()
        return _write(arrow, folder, fresh, rows_per_file, check=check, progress=progress)


def _write(
    arrow: Any,  # noqa: ANN401 (a module)
    folder: str | Path,
    fresh: Path,
    rows_per_file: int | None,
    *,
    check: bool,
    progress: Told | None,
) -> int:
    with open_source(folder, check=check) as source, source.open() as shards:
        schema = _schema(arrow, source)
        files = _Files(fresh, schema, rows_per_file)
        try:
            for rows in source.live(_group_rows(source)):
                files.write(_batch(arrow, schema, shards, rows))
                if progress is not None:
                    progress(files.rows, source.count)
        finally:
            files.close()
        return files.rows


class _Files:
    """One Parquet file, or a folder of them."""

    def __init__(self, path: Path, schema: "pa.Schema", rows_per_file: int | None) -> None:
        self.rows = 0
        self._path = path
        self._schema = schema
        self._limit = rows_per_file
        self._closing: list[Any] = []
        if rows_per_file is not None:
            path.mkdir()
        self._open()

    def write(self, batch: "pa.RecordBatch") -> None:
        while batch.num_rows:
            part = batch
            if self._limit is not None:
                if self.rows and self.rows % self._limit == 0:
                    self.close()
                    self._open()
                part = batch.slice(0, self._limit - self.rows % self._limit)
            self._writer.write_batch(part)
            self.rows += part.num_rows
            batch = batch.slice(part.num_rows)

    def close(self) -> None:
        for part in self._closing:
            part.close()
        self._closing = []

    def _open(self) -> None:
        import pyarrow.parquet as pq

        path = self._path
        if self._limit is not None:
            path = path / f"part-{self.rows // self._limit:05d}.parquet"
        file = path.open("xb")
        texts = ["id", "title", "text", "metadata"]
        self._writer = pq.ParquetWriter(
            file,
            self._schema,
            # Vectors are noise: nothing makes them smaller.
            compression=dict.fromkeys(texts, "zstd"),
            use_dictionary=["metadata"],
            write_statistics=["id"],
        )
        self._closing = [self._writer, file]


def _group_rows(source: Source) -> int:
    width = source.encoder.dimension * (2 if source.dtype == "float16" else 4)
    # Texts take room, too.
    return min(max(_GROUP_BYTES // width, 1), _GROUP_ROWS)


def _schema(arrow: Any, source: Source) -> "pa.Schema":  # noqa: ANN401 (a module)
    encoder = source.encoder
    number = arrow.float16() if source.dtype == "float16" else arrow.float32()
    about = {
        "format": EXPORT_FORMAT.decode(),
        "dimension": encoder.dimension,
        "dtype": source.dtype,
        "metric": "cosine",
        "encoder": {"name": encoder.name, "fingerprint": encoder.fingerprint, "task": encoder.task},
        "truncated_from": source.truncated_from,
        "corpus": source.corpus,
    }
    texts = [
        arrow.field(name, arrow.string(), nullable=False)
        for name in ("id", "title", "text", "metadata")
    ]
    vector = arrow.field("vector", arrow.list_(number, encoder.dimension), nullable=False)
    return arrow.schema(
        [*texts, vector],
        metadata={
            f"epic_retrieval.{key}": value if isinstance(value, str) else json.dumps(value)
            for key, value in about.items()
        },
    )


def _batch(
    arrow: Any,  # noqa: ANN401 (a module)
    schema: "pa.Schema",
    shards: Shards,
    rows: Rows,
) -> "pa.RecordBatch":
    passages = shards.fetch(rows)
    vector = schema.field("vector").type
    # What was stored in half precision comes back as it was.
    numbers = shards.take(rows).astype(vector.value_type.to_pandas_dtype(), copy=False)
    return arrow.RecordBatch.from_arrays(
        [
            arrow.array([passage.id for passage in passages], arrow.string()),
            arrow.array([passage.title for passage in passages], arrow.string()),
            arrow.array([passage.text for passage in passages], arrow.string()),
            arrow.array([metadata_text(passage) for passage in passages], arrow.string()),
            arrow.FixedSizeListArray.from_arrays(arrow.array(numbers.reshape(-1)), type=vector),
        ],
        schema=schema,
    )


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to; what is there in the end moves to `path`."""
    fresh = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        _check_free(path)
        yield fresh
        for file in [*fresh.iterdir()] if fresh.is_dir() else []:
            sync(file)
        sync(fresh)
        _check_free(path)
        fresh.rename(path)
        sync(path.parent)
    except BaseException as error:
        if fresh.is_dir():
            shutil.rmtree(fresh, ignore_errors=True)
        else:
            fresh.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise PassageIndexError(
                f"{path}: writing failed ({error}). {shortage(path.parent, None)} Nothing of it "
                "was left there; the index is as it was."
            ) from error
        raise


def _check_free(path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder; make it first, or choose another path.")
    if path.exists() or path.is_symlink():
        raise InputError(f"{path} exists: choose another path, or remove it first.")


def _load_pyarrow() -> Any:  # noqa: ANN401 (a module without types)
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingExtraError(
            f"Arrow and Parquet need pyarrow ({error}). In epic-retrieval's source folder run "
            'pip install ".[parquet]".'
        ) from error
    return pa
