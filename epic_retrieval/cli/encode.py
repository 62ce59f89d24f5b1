"""`epic encode`: a corpus as shards of vectors, on this machine or on many.

Parses, calls the library, prints.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from epic_retrieval.cli.index import (
    CorpusArgument,
    DimOption,
    MaxCharsOption,
    ShardSizeOption,
    SkipEmptyOption,
    StoreOption,
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
        str | None, typer.Option(help="Matters only if it is symmetric.", show_default=False)
    ] = None,
    store: StoreOption = "float32",
    dim: DimOption = None,
    shard_size: ShardSizeOption = 50_000,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchSizeOption = None,
    max_chars: MaxCharsOption = 100_000,
    skip_empty: SkipEmptyOption = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="ray: on a cluster, or all of this machine.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Of ray; by default one a core or GPU.")
    ] = None,
) -> None:
    """Encode a corpus into shards for `epic index build`; run again, it goes on after a stop."""
    from epic_retrieval.cli.building import (
        make_encode,
        passage_function,
        quick_count,
        stage_bars,
    )
    from epic_retrieval.index import EncodingSettings, encode_shards, read_corpus
    from epic_retrieval.tasks import load_task

    passages = read_corpus(corpus, max_chars=max_chars, skip_empty=skip_empty)
    found = None if task is None else load_task(task)
    encoder = load_encoder(model, device, dtype)
    info = encoder_info(encoder, found)
    settings = EncodingSettings(info, store, dim or info.dimension, shard_size)
    total = quick_count(corpus)
    with stage_bars() as progress:
        if engine == "local":
            texts_to_vectors = passage_function(encoder, found, batch_size)
            shards = encode_shards(
                passages, texts_to_vectors, out, settings=settings, total=total, progress=progress
            )
        else:
            from epic_retrieval.index._ray import RayOptions
            from epic_retrieval.index.ray_engine import encode_shards_ray

            uses_gpu = encoder.device.type == "cuda"
            name = str(Path(model).resolve()) if model and Path(model).is_dir() else model
            # The workers load their own; this one was needed for its fingerprint.
            del encoder
            shards = encode_shards_ray(
                passages,
                partial(make_encode, name, device, dtype, found, batch_size),
                out,
                settings=settings,
                options=RayOptions(workers, gpus=float(uses_gpu)),
                total=total,
                progress=progress,
            )
    typer.echo(f"{sum(shard.rows for shard in shards):,} passages in {len(shards):,} shards, {out}")
