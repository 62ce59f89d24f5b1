"""`epic encode`: a corpus as shards of vectors, on this machine or on many.

Parses, calls the library, prints.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from epic_retrieval.cli.index_options import (
    TASK_HELP,
    CorpusArgument,
    DimOption,
    EngineOption,
    MaxCharsOption,
    ShardSizeOption,
    SkipEmptyOption,
    StoreOption,
    TypesOption,
    WorkersOption,
    check_workers,
    types_of,
)
from epic_retrieval.cli.models import (
    BatchSizeOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    encoder_info,
    load_encoder,
)


def encode(  # noqa: PLR0913, PLR0917 (options of a command)
    corpus: CorpusArgument,
    out: Annotated[Path, typer.Option(help="Folder for the shards.", show_default=False)],
    model: ModelOption = None,
    task: Annotated[
        str | None,
        typer.Option(help=f"{TASK_HELP} Matters only if it is symmetric.", show_default=False),
    ] = None,
    store: StoreOption = "float32",
    dim: DimOption = None,
    shard_size: ShardSizeOption = 50_000,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchSizeOption = None,
    max_chars: MaxCharsOption = 100_000,
    skip_empty: SkipEmptyOption = False,
    types: TypesOption = None,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
) -> None:
    """Encode a corpus into shards for `epic index build`; run again, it goes on after a stop."""
    from epic_retrieval.cli.building import (
        check_dim,
        chunk_size_of,
        engine_of,
        quick_count,
        refuse_index,
        with_first_read,
    )
    from epic_retrieval.cli.lengths import Lengths
    from epic_retrieval.cli.progress import stage_bars
    from epic_retrieval.index import EncodingSettings, read_corpus
    from epic_retrieval.index._words import counted
    from epic_retrieval.tasks import load_task

    check_workers(engine, workers)
    refuse_index(corpus)
    passages = read_corpus(
        corpus, max_chars=max_chars, skip_empty=skip_empty, types=types_of(types)
    )
    found = None if task is None else load_task(task)
    check_dim(model, dim)
    passages = with_first_read(passages)
    encoder = load_encoder(model, device, dtype)
    encode_with, make_shards = engine_of(
        engine, workers, encoder, model, device, dtype, found, batch_size
    )
    info = encoder_info(encoder, found)
    lengths, chunk_size = Lengths(encoder, found), chunk_size_of(encoder)
    # Workers load their own.
    del encoder
    with stage_bars() as progress, _kept(out):
        shards = make_shards(
            lengths.counting(passages),
            encode_with,
            out,
            settings=EncodingSettings(info, store, dim or info.dimension, shard_size),
            chunk_size=chunk_size,
            total=quick_count(corpus),
            progress=progress,
        )
    rows = sum(shard.rows for shard in shards)
    typer.echo(f"{counted(rows, 'passage')} in {counted(len(shards), 'shard')}, {out}")
    lengths.tell()


@contextmanager
def _kept(out: Path) -> Iterator[None]:
    """Says of an interruption what it leaves behind."""
    from epic_retrieval.index._engine import kept_text
    from epic_retrieval.index._shard_folder import finished_shards

    try:
        yield
    except KeyboardInterrupt as error:
        finished = finished_shards(out)
        error.add_note(
            f"{kept_text(out, finished)} The same command goes on from there."
            if finished
            else "With a smaller shard_size less is lost."
        )
        raise
