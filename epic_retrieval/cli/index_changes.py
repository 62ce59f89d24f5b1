"""`epic index add|update|delete|compact|rebuild|tune`: an index that lives.

Parses, calls the library, prints.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from epic_retrieval.cli.filters import condition_of
from epic_retrieval.cli.index import tell, tell_hints
from epic_retrieval.cli.index_options import (
    CorpusArgument,
    DimOption,
    Folder,
    KindOption,
    MaxCharsOption,
    MemoryOption,
    RecallOption,
    SkipEmptyOption,
    TypesOption,
    WhereOption,
    memory_of,
    types_of,
)
from epic_retrieval.cli.models import (
    BatchSizeOption,
    DeviceOption,
    DtypeOption,
    IndexModelOption,
    encoder_info,
    load_encoder,
    model_named,
)
from epic_retrieval.errors import InputError

changes_app = typer.Typer()

_OTHER_KINDS = (".json", ".csv", ".tsv", ".parquet", ".gz")
_LONGEST_LINE = 2**20  # bytes


@changes_app.command()
def add(  # noqa: PLR0913, PLR0917 (options of a command)
    folder: Folder,
    corpus: CorpusArgument,
    update: Annotated[
        bool, typer.Option("--update", help="Replace passages whose ids are there.")
    ] = False,
    task: Annotated[
        str | None, typer.Option(help="Of a symmetric index, if it is a file.", show_default=False)
    ] = None,
    model: IndexModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchSizeOption = None,
    max_chars: MaxCharsOption = 100_000,
    skip_empty: SkipEmptyOption = False,
    types: TypesOption = None,
) -> None:
    """Encode a corpus and add it to an index; the same command goes on after a stop."""
    from epic_retrieval.cli.building import chunk_size_of, passage_function, quick_count
    from epic_retrieval.cli.lengths import Lengths
    from epic_retrieval.cli.progress import stage_bars
    from epic_retrieval.index import IndexWriter, read_corpus, read_manifest
    from epic_retrieval.tasks import load_task

    passages = read_corpus(
        corpus, max_chars=max_chars, skip_empty=skip_empty, types=types_of(types)
    )
    built_with = read_manifest(folder).encoder
    name = task or built_with.task
    found = None if name is None else load_task(name)
    encoder = load_encoder(model_named(model or built_with.name), device, dtype)
    encode, info = passage_function(encoder, found, batch_size), encoder_info(encoder, found)
    total, lengths = quick_count(corpus), Lengths(encoder, found)
    coming = lengths.counting(passages)
    with IndexWriter(folder) as writer, stage_bars() as progress:
        change = writer.update if update else writer.add
        done = change(
            coming,
            encode,
            encoder=info,
            chunk_size=chunk_size_of(encoder),
            total=total,
            progress=progress,
        )
    added, replaced = done if isinstance(done, tuple) else (done, 0)
    typer.echo(f"{added:,} added, {replaced:,} replaced in {folder}")
    lengths.tell()


@changes_app.command()
def delete(
    folder: Folder,
    ids: Annotated[
        list[str] | None,
        typer.Argument(help="Ids; - reads them from stdin, one a line.", show_default=False),
    ] = None,
    where: WhereOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Delete all passages.")] = False,
) -> None:
    """Delete passages by id, by a condition on their metadata, or all of them."""
    from epic_retrieval.index import IndexWriter
    from epic_retrieval.index._words import counted, first_few
    from epic_retrieval.index.where import demands_nothing, parse

    condition = condition_of(where)
    if [bool(ids), condition is not None, everything].count(True) != 1:
        raise InputError("say what to delete: give ids, --where or --all, one of them alone")
    if condition is not None and demands_nothing(parse(condition)):
        raise InputError(
            f"--where {where} matches every passage; say which to delete, such as "
            '{"lang": "en"}, or delete all with --all'
        )
    missing: list[str] = []
    with IndexWriter(folder) as writer:
        if everything:
            count = writer.clear()
        elif condition is None:
            wanted = _ids(ids or [])
            missing = writer.missing(wanted)
            count = writer.delete(wanted)
        else:
            count = writer.delete_where(condition)
    typer.echo(f"{counted(count, 'passage')} deleted from {folder}")
    if missing:
        typer.echo(
            f"epic: not in the index: {counted(len(missing), 'id')}, {first_few(missing)}", err=True
        )
    if condition is not None:
        tell_hints(folder, condition)


@changes_app.command()
def compact(folder: Folder) -> None:
    """Drop deleted passages for good, and join small shards."""
    from epic_retrieval.cli.progress import stage_bars
    from epic_retrieval.index import IndexWriter

    with IndexWriter(folder) as writer, stage_bars() as progress:
        manifest = writer.compact(progress=progress)
    tell(folder, manifest)


@changes_app.command()
def rebuild(
    folder: Folder,
    kind: KindOption = "auto",
    memory: MemoryOption = None,
    recall: RecallOption = 0.95,
    dim: DimOption = None,
) -> None:
    """Make another kind of index from the stored vectors; nothing is encoded."""
    from epic_retrieval.cli.progress import stage_bars
    from epic_retrieval.index import IndexWriter

    limit = memory_of(memory)
    with IndexWriter(folder) as writer, stage_bars() as progress:
        manifest = writer.rebuild(
            kind, memory=limit, dimension=dim, target=recall, progress=progress
        )
    tell(folder, manifest)


@changes_app.command()
def tune(
    folder: Folder,
    recall: RecallOption = 0.95,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="At least 50, a line each, or .jsonl with `query` or `text`; by default stored "
            "passages stand in.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Of the queries.", show_default=False)] = None,
    model: IndexModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Find the quickest search that reaches a recall, and keep it."""
    from epic_retrieval.index import IndexWriter, read_manifest
    from epic_retrieval.tasks import load_task

    vectors = None
    if queries is not None:
        lines = _lines(queries)
        built_with = read_manifest(folder).encoder
        found = load_task(task or built_with.task or "web-search")
        encoder = load_encoder(model_named(model or built_with.name), device, dtype)
        vectors = encoder.encode_queries(lines, found)
    with IndexWriter(folder) as writer:
        typer.echo(str(writer.tune(recall, vectors)))


def _lines(path: Path) -> list[str]:
    """Queries of a text file, or of JSON Lines.

    Raises:
        InputError: The file is neither, or without queries.
    """
    kind = path.suffix.lower()
    if kind in _OTHER_KINDS:
        raise InputError(
            f"--queries {path}: expected a text file with a query a line, or .jsonl with the key "
            "`query` or `text`"
        )
    if kind == ".jsonl":
        return list(_texts(path))
    try:
        found = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--queries {path}: cannot be read ({error}); expected a UTF-8 text file with a query "
            "a line"
        ) from error
    if not found:
        raise InputError(f"--queries {path}: no queries; expected one a line")
    return found


def _texts(path: Path) -> Iterator[str]:
    from epic_retrieval.index._tables import jsonl_cells

    number = 0
    for number, cells in jsonl_cells(path, _LONGEST_LINE):
        text = cells.get("query", cells.get("text"))
        if not isinstance(text, str) or not text.strip():
            raise InputError(
                f"--queries {path}, line {number}: expected the query as text under `query` or "
                f"`text`; there are {', '.join(cells) or 'no keys'}"
            )
        yield text
    if not number:
        raise InputError(f"--queries {path}: no queries; expected one a line")


def _ids(given: list[str]) -> list[str]:
    if given != ["-"]:
        return given
    return [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
