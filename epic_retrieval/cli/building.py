"""What `epic index`, `epic encode` and the demo need to fill an index.

Knows nothing of options.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from epic_retrieval.cli.models import encoder_info, load_encoder
from epic_retrieval.cli.progress import stage_bars

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from epic_retrieval.encoder import EpicEncoder
    from epic_retrieval.index import Manifest, Passage
    from epic_retrieval.index.manifest import ShardInfo
    from epic_retrieval.tasks import Task

# Files that take longer than a moment to count are encoded without a total.
_COUNT_AT_MOST = 2**29  # bytes
_PACKED_AT_MOST = 2**26
_BEIR = ("corpus.jsonl", "corpus.jsonl.gz")


def build_with_progress(
    encoder: "EpicEncoder",
    passages: "Iterable[Passage]",
    out: Path,
    *,
    task: "Task | None" = None,
    batch_size: int | None = None,
    **options: Any,  # noqa: ANN401 (they are checked where they arrive)
) -> "Manifest":
    """Encodes passages and writes them as the index folder `out`.

    Args:
        encoder: encodes the passages; the index remembers it.
        passages: any number, streamed.
        out: the folder to write.
        task: matters when it is symmetric: its passages are then encoded behind its prompt.
        batch_size: most texts in a forward pass; None takes what memory allows.
        options: of `build_index`.

    Raises:
        InputError, PassageIndexError, MissingExtraError: as `build_index` does.
    """
    from epic_retrieval.index import build_index

    with stage_bars() as progress:
        return build_index(
            passages,
            passage_function(encoder, task, batch_size),
            out,
            encoder=encoder_info(encoder, task),
            progress=progress,
            **options,
        )


def passage_function(
    encoder: "EpicEncoder", task: "Task | None", batch_size: int | None
) -> "Callable[[list[str]], NDArray[np.float32]]":
    """What an index needs of an encoder: texts in, vectors out."""
    return lambda texts: encoder.encode_passages(
        texts, task, batch_size=batch_size, show_progress=False
    )


def make_encode(
    model: str | None,
    device: str | None,
    dtype: str | None,
    task: "Task | None",
    batch_size: int | None,
) -> "Callable[[list[str]], NDArray[np.float32]]":
    """The same in another process, which loads the encoder for itself."""
    return passage_function(load_encoder(model, device, dtype), task, batch_size)


def engine_of(
    engine: Literal["local", "ray"],
    workers: int | None,
    encoder: "EpicEncoder",
    model: str | None,
    device: str | None,
    dtype: str | None,
    task: "Task | None",
    batch_size: int | None,
) -> "tuple[Callable[..., Any], Callable[..., list[ShardInfo]]]":
    """Where passages are encoded: what stands for the encoder, and what makes shards with it.

    Workers of Ray load encoders of their own, by the same name; `encoder` says where it runs.
    """
    from epic_retrieval.index import encode_shards

    if engine == "local":
        return passage_function(encoder, task, batch_size), encode_shards
    from epic_retrieval.index.ray_engine import RayOptions, encode_shards_ray

    # Workers have another working directory.
    name = str(Path(model).resolve()) if model and Path(model).is_dir() else model
    options = RayOptions(workers, gpus=float(encoder.device.type == "cuda"))
    return (
        partial(make_encode, name, device, dtype, task, batch_size),
        partial(encode_shards_ray, options=options),
    )


def quick_count(corpus: Path) -> int | None:
    """How many passages a file has; None where counting would cost, or fail."""
    try:
        if corpus.is_dir():
            corpus = next(corpus / name for name in _BEIR if (corpus / name).is_file())
        name = corpus.name.lower()
        if name.endswith(".parquet"):
            import pyarrow.parquet as pq

            return int(pq.read_metadata(corpus).num_rows)
        if corpus.stat().st_size > (_PACKED_AT_MOST if name.endswith(".gz") else _COUNT_AT_MOST):
            return None
        with gzip.open(corpus) if name.endswith(".gz") else corpus.open("rb") as file:
            if name.removesuffix(".gz").endswith(".jsonl"):
                return sum(1 for line in file if line.strip())
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            delimiter = "," if name.removesuffix(".gz").endswith(".csv") else "\t"
            return sum(1 for record in csv.reader(text, delimiter=delimiter) if record) - 1
    except (OSError, EOFError, ValueError, ImportError, StopIteration, csv.Error, zlib.error):
        # What is wrong with a file is told where it is read.
        return None
