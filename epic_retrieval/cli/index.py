"""`epic index`: build, search, describe and verify a passage index.

Parses, calls the library, prints. Knows nothing of file formats or models.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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

if TYPE_CHECKING:
    from epic_retrieval.index import Hit, Manifest

index_app = typer.Typer(no_args_is_help=True, help="Build, search, describe and verify an index.")

Folder = Annotated[Path, typer.Argument(help="Folder of the index.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_TASK_HELP = "A built-in task (see `epic tasks`), or the path of a task file."


@index_app.command()
def build(
    corpus: Annotated[
        Path,
        typer.Argument(
            help="JSONL, CSV, TSV or Parquet file, a folder of texts, or a BEIR folder.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    model: ModelOption = None,
    task: Annotated[
        str | None, typer.Option(help=_TASK_HELP + " Matters only to a symmetric task's index.")
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchSizeOption = None,
    max_chars: Annotated[
        int, typer.Option(min=1, help="A longer passage is an error; nothing is cut silently.")
    ] = 100_000,
    skip_empty: Annotated[bool, typer.Option(help="Leave out passages without text.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an index that is there.")] = False,
) -> None:
    """Encode a corpus and write an index of it."""
    from epic_retrieval.cli.building import build_with_progress, quick_count
    from epic_retrieval.index import read_corpus
    from epic_retrieval.tasks import load_task

    # A wrong path or task must not wait for a model to load.
    passages = read_corpus(corpus, max_chars=max_chars, skip_empty=skip_empty)
    found = None if task is None else load_task(task)
    encoder = load_encoder(model, device, dtype)
    manifest = build_with_progress(
        encoder,
        passages,
        out,
        task=found,
        total=quick_count(corpus),
        corpus=corpus.name,
        batch_size=batch_size,
        overwrite=overwrite,
    )
    typer.echo(f"{manifest.count:,} passages in {out}")


@index_app.command()
def search(
    folder: Folder,
    query: Annotated[
        list[str],
        typer.Argument(help="Queries; - reads them from stdin, one a line.", show_default=False),
    ],
    task: Annotated[str | None, typer.Option(help=_TASK_HELP)] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="How demonstrations enter the prompt: epic, text or none.", show_default=False
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Hits for a query.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a line a query.")] = False,
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Find the passages that answer a query."""
    from epic_retrieval.index import PassageIndex
    from epic_retrieval.prompt import check_mode
    from epic_retrieval.tasks import load_task

    chosen = None if mode is None else check_mode(mode)
    queries = list(_queries(query))
    with PassageIndex.open(folder) as index:
        built_with = index.manifest.encoder
        found = load_task(task or built_with.task or "web-search")
        encoder = load_encoder(model or model_named(built_with.name), device, dtype)
        index.check_encoder(encoder_info(encoder, found, chosen))
        vectors = encoder.encode_queries(queries, found, chosen, show_progress=False)
        for text, hits in zip(queries, index.search(vectors, k), strict=True):
            _print_json_hits(text, hits) if as_json else _print_hits(text, hits)


@index_app.command()
def info(folder: Folder, as_json: JsonOption = False) -> None:
    """Show what an index holds and which encoder made it."""
    from epic_retrieval.index import read_manifest

    manifest = read_manifest(folder)
    if as_json:
        typer.echo(json.dumps(asdict(manifest), ensure_ascii=False, indent=2))
    else:
        typer.echo(_described(manifest))


@index_app.command()
def verify(folder: Folder) -> None:
    """Read every byte; exit with 0 only if all is as it was built."""
    from epic_retrieval.index import verify_index

    report = verify_index(folder)
    for problem in report.problems:
        typer.echo(f"{folder}: {problem}", err=True)
    if not report.ok:
        raise typer.Exit(1)
    typer.echo(f"{folder}: as it was built")


def _queries(given: list[str]) -> Iterator[str]:
    """The queries as given, `-` replaced by the lines of stdin; blank lines are skipped."""
    for text in given:
        if text != "-":
            yield text
            continue
        lines = [line.strip("\r\n") for line in sys.stdin]
        found = [line for line in lines if line.strip()]
        if not found:
            raise InputError("- asks for queries on stdin, but there are none; give one a line")
        yield from found


def _print_hits(query: str, hits: "list[Hit]") -> None:
    typer.echo(typer.style(query, bold=True))
    for hit in hits:
        shown = " ".join(hit.passage.content.split())
        cut = shown if len(shown) <= 100 else shown[:99].rstrip() + "…"
        typer.echo(f"{hit.rank:>3}  {hit.score:.4f}  {hit.passage.id}  {cut}")


def _print_json_hits(query: str, hits: "list[Hit]") -> None:
    rows = [{"rank": hit.rank, "score": hit.score, **asdict(hit.passage)} for hit in hits]
    typer.echo(json.dumps({"query": query, "hits": rows}, ensure_ascii=False))


def _described(manifest: "Manifest") -> str:
    encoder = manifest.encoder
    size = sum(file.bytes for file in manifest.files.values())
    return "\n".join(
        (
            f"corpus       {manifest.corpus or '-'}",
            f"passages     {manifest.count:,}",
            f"dimension    {manifest.dimension}",
            f"kind         {manifest.kind}, {manifest.metric}",
            f"size         {size / 1e6:,.1f} MB",
            f"encoder      {encoder.name}",
            f"fingerprint  {encoder.fingerprint}",
            f"task         {encoder.task or 'any asymmetric task'}",
            f"created      {manifest.created} by epic-retrieval {manifest.package_version}",
        )
    )
