"""What `epic index`, `epic encode` and the demo need to fill an index.

Knows nothing of options.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from epic_retrieval.cli.models import encoder_info, load_encoder, model_given
from epic_retrieval.cli.progress import stage_bars
from epic_retrieval.errors import InputError

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
# Passages.
_CHUNK, _CHUNK_ON_CPU, _CHUNK_OF_A_LARGE_MODEL = 1024, 256, 16
# Layers times the square of their width: models of up to a hundred million parameters or so.
_SMALL = 10**7
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
            chunk_size=chunk_size_of(encoder),
            **options,
        )


def chunk_size_of(encoder: "EpicEncoder") -> int:
    """Passages to encode at a time, so that a bar moves every few seconds, also on a CPU.

    A pass holds some thousand tokens there: more at a time would make nothing faster.
    """
    if encoder.device.type == "cuda":
        return _CHUNK
    config = encoder.checkpoint.backbone.model.config
    is_small = config.num_hidden_layers * config.hidden_size**2 < _SMALL
    return _CHUNK_ON_CPU if is_small else _CHUNK_OF_A_LARGE_MODEL


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


def refuse_index(corpus: Path) -> None:
    """Make sure that a corpus is no index.

    Raises:
        InputError: it is one; the message says what can be done with it.
    """
    from epic_retrieval.index.manifest import is_index

    if is_index(corpus):
        raise InputError(
            f"{corpus} is an index, not a corpus: search it with `epic index search`, give it "
            "another structure with `epic index rebuild`, join it with others with `epic index "
            "merge`, or write its passages to a file with `epic index export`"
        )


def with_first_read(passages: "Iterator[Passage]") -> "Iterator[Passage]":
    """The same passages, the first of which is read now: most faults of a corpus show there."""
    return chain([next(passages)], passages)


def check_wishes(
    model: str | None, dim: int | None, kind: str, rows: int | None, memory: int | None
) -> None:
    """Find out before a model is loaded whether an index of it can be as it is wished.

    Raises:
        InputError: it cannot.
        CheckpointError: there is no such model.
        MissingExtraError: FAISS is not installed.
    """
    from epic_retrieval.index._faiss import load_faiss
    from epic_retrieval.index._memory import default_memory
    from epic_retrieval.index._searchable import check_kind

    load_faiss()
    width = check_dim(model, dim)
    if dim or width:
        check_kind(kind, rows, dim or width or 0, memory or default_memory())


def check_dim(model: str | None, dim: int | None) -> int | None:
    """The length of a model's vectors, if its settings say it; `--dim` must not be beyond.

    Raises:
        InputError: it is.
        CheckpointError: there is no such model.
    """
    from epic_retrieval.checkpoint import model_dimension

    width = model_dimension(model_given(model))
    if dim and width and dim > width:
        raise InputError(f"--dim is {dim}: expected 1 to {width}, which is what the model gives")
    return width


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
