"""`epic index add|update|delete|compact|rebuild|tune`: an index that lives.

Parses, calls the library, prints.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from epic_retrieval.cli.index import (
    CorpusArgument,
    DimOption,
    Folder,
    KindOption,
    MaxCharsOption,
    MemoryOption,
    RecallOption,
    SkipEmptyOption,
    WhereOption,
    condition_of,
)
from epic_retrieval.cli.models import (
    BatchSizeOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    encoder_info,
    load_encoder,
    model_named,
)
from epic_retrieval.errors import InputError

changes_app = typer.Typer()


@changes_app.command()
def add(
    folder: Folder,
    corpus: CorpusArgument,
    update: Annotated[bool, typer.Option(help="Replace passages whose ids are there.")] = False,
    task: Annotated[
        str | None, typer.Option(help="Of a symmetric index, if it is a file.", show_default=False)
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchSizeOption = None,
    max_chars: MaxCharsOption = 100_000,
    skip_empty: SkipEmptyOption = False,
) -> None:
    """Encode a corpus and add it to an index; the same command goes on after a stop."""
    from epic_retrieval.cli.building import passage_function, stage_bars
    from epic_retrieval.index import IndexWriter, read_corpus, read_manifest
    from epic_retrieval.tasks import load_task

    passages = read_corpus(corpus, max_chars=max_chars, skip_empty=skip_empty)
    built_with = read_manifest(folder).encoder
    name = task or built_with.task
    found = None if name is None else load_task(name)
    encoder = load_encoder(model or model_named(built_with.name), device, dtype)
    encode, info = passage_function(encoder, found, batch_size), encoder_info(encoder, found)
    with IndexWriter(folder) as writer, stage_bars() as progress:
        if update:
            added, replaced = writer.update(passages, encode, encoder=info, progress=progress)
        else:
            added, replaced = writer.add(passages, encode, encoder=info, progress=progress), 0
    typer.echo(f"{added:,} added, {replaced:,} replaced in {folder}")


@changes_app.command()
def delete(
    folder: Folder,
    ids: Annotated[
        list[str] | None,
        typer.Argument(help="Ids; - reads them from stdin, one a line.", show_default=False),
    ] = None,
    where: WhereOption = None,
) -> None:
    """Delete passages by id, or by a condition on their metadata."""
    from epic_retrieval.index import IndexWriter

    condition = condition_of(where)
    if (condition is None) == (not ids):
        raise InputError("give ids, or --where, and not both")
    with IndexWriter(folder) as writer:
        if condition is None:
            count = writer.delete(_ids(ids or []))
        else:
            count = writer.delete_where(condition)
    typer.echo(f"{count:,} deleted from {folder}")


@changes_app.command()
def compact(folder: Folder) -> None:
    """Drop deleted passages for good, and join small shards."""
    from epic_retrieval.cli.building import stage_bars
    from epic_retrieval.index import IndexWriter

    with IndexWriter(folder) as writer, stage_bars() as progress:
        writer.compact(progress=progress)
    typer.echo(f"{folder}: compacted")


@changes_app.command()
def rebuild(
    folder: Folder,
    kind: KindOption = "auto",
    memory: MemoryOption = None,
    recall: RecallOption = 0.95,
    dim: DimOption = None,
) -> None:
    """Make another kind of index from the stored vectors; nothing is encoded."""
    from epic_retrieval.cli.building import bytes_of, stage_bars
    from epic_retrieval.index import IndexWriter

    limit = bytes_of(memory)
    with IndexWriter(folder) as writer, stage_bars() as progress:
        writer.rebuild(kind, memory=limit, dimension=dim, target=recall, progress=progress)
    typer.echo(f"{folder}: rebuilt")


@changes_app.command()
def tune(
    folder: Folder,
    recall: RecallOption = 0.95,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="Text file with a query a line; by default stored passages stand in.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Of the queries.", show_default=False)] = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Find the quickest search that reaches a recall, and keep it."""
    from epic_retrieval.index import IndexWriter, read_manifest
    from epic_retrieval.tasks import load_task

    vectors = None
    if queries is not None:
        lines = [line for line in queries.read_text(encoding="utf-8").split("\n") if line.strip()]
        built_with = read_manifest(folder).encoder
        found = load_task(task or built_with.task or "web-search")
        encoder = load_encoder(model or model_named(built_with.name), device, dtype)
        vectors = encoder.encode_queries(lines, found)
    with IndexWriter(folder) as writer:
        typer.echo(str(writer.tune(recall, vectors)))


def _ids(given: list[str]) -> list[str]:
    if given != ["-"]:
        return given
    return [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
