"""`epic index`: build and search a passage index.

Parses, calls the library, prints. Knows nothing of file formats or models. What an index holds is
told in index_checks.py; how it is changed stands in index_changes.py, how it is carried elsewhere
in index_transfer.py.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from epic_retrieval.cli.filters import condition_of, filter_hints
from epic_retrieval.cli.index_options import (
    TASK_HELP,
    CorpusArgument,
    DimOption,
    EngineOption,
    Folder,
    KindOption,
    MaxCharsOption,
    MemoryOption,
    RecallOption,
    ShardSizeOption,
    SkipEmptyOption,
    StoreOption,
    TypesOption,
    WhereOption,
    WorkersOption,
    check_workers,
    memory_of,
    types_of,
)
from epic_retrieval.cli.models import (
    BatchSizeOption,
    DeviceOption,
    DtypeOption,
    IndexModelOption,
    ModelOption,
    encoder_info,
    load_encoder,
    model_named,
)
from epic_retrieval.errors import EpicError, InputError

if TYPE_CHECKING:
    from epic_retrieval.index import Hit, Manifest

index_app = typer.Typer(no_args_is_help=True, help="Build, search, change and verify an index.")


@index_app.command()
def build(  # noqa: PLR0913, PLR0917 (options of a command)
    corpus: CorpusArgument,
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    model: ModelOption = None,
    task: Annotated[
        str | None, typer.Option(help=TASK_HELP + " Matters only to a symmetric task's index.")
    ] = None,
    kind: KindOption = "auto",
    memory: MemoryOption = None,
    recall: RecallOption = 0.95,
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
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an index that is there.")
    ] = False,
) -> None:
    """Encode a corpus and write an index of it; the same command goes on after a stop.

    CORPUS may also be a folder of shards that `epic encode` made: nothing is encoded then.
    """
    from epic_retrieval.cli.building import (
        check_wishes,
        chunk_size_of,
        engine_of,
        quick_count,
        refuse_index,
        with_first_read,
    )
    from epic_retrieval.cli.lengths import Lengths
    from epic_retrieval.cli.progress import stage_bars
    from epic_retrieval.index import build_index, read_corpus
    from epic_retrieval.index._workplace import workplace
    from epic_retrieval.index.manifest import SETTINGS
    from epic_retrieval.tasks import load_task

    check_workers(engine, workers)
    limit = memory_of(memory)
    if (corpus / SETTINGS).is_file():
        settled = {
            "--task": task,
            "--device": device,
            "--dtype": dtype,
            "--batch-size": batch_size,
            "--types": types,
            "--skip-empty": skip_empty,
            "--workers": workers,
            "--overwrite": overwrite,
        }
        _refuse_settled(corpus, [name for name, value in settled.items() if value])
        tell(out, _from_shards(corpus, out, kind, limit, recall, dim))
        return
    # A wrong path or task must not wait for a model to load.
    refuse_index(corpus)
    passages = read_corpus(
        corpus, max_chars=max_chars, skip_empty=skip_empty, types=types_of(types)
    )
    found = None if task is None else load_task(task)
    with workplace(out, overwrite=overwrite):
        pass  # nor must a folder that cannot be written
    total = quick_count(corpus)
    check_wishes(model, dim, kind, total, limit)
    passages = with_first_read(passages)
    encoder = load_encoder(model, device, dtype)
    encode, make_shards = engine_of(
        engine, workers, encoder, model, device, dtype, found, batch_size
    )
    about = encoder_info(encoder, found)
    lengths, chunk_size = Lengths(encoder, found), chunk_size_of(encoder)
    # Workers load their own.
    del encoder
    with stage_bars() as progress:
        manifest = build_index(
            lengths.counting(passages),
            encode,
            out,
            encoder=about,
            engine=make_shards,
            dtype=store,
            dimension=dim,
            shard_size=shard_size,
            chunk_size=chunk_size,
            kind=kind,
            memory=limit,
            target_recall=recall,
            overwrite=overwrite,
            total=total,
            progress=progress,
            corpus=corpus.resolve().name,
        )
    tell(out, manifest)
    lengths.tell()


def _refuse_settled(shards: Path, given: list[str]) -> None:
    if given:
        raise InputError(
            f"{shards} holds shards that are encoded already, for which {given[0]} has no effect; "
            "leave it out"
        )


def _from_shards(
    shards: Path, out: Path, kind: str, memory: int | None, recall: float, dim: int | None
) -> "Manifest":
    from epic_retrieval.cli.progress import stage_bars
    from epic_retrieval.index import IndexWriter
    from epic_retrieval.index.merge import merge

    merge([shards], out, corpus=shards.resolve().name)
    with IndexWriter(out) as writer, stage_bars() as progress:
        try:
            return writer.rebuild(
                kind, memory=memory, dimension=dim, target=recall, progress=progress
            )
        except EpicError as error:
            error.add_note(
                f"Until then search of {out} is exact: go on with `epic index rebuild {out}`."
            )
            raise


@index_app.command()
def search(
    folder: Folder,
    query: Annotated[
        list[str],
        typer.Argument(help="Queries; - reads them from stdin, one a line.", show_default=False),
    ],
    task: Annotated[str | None, typer.Option(help=TASK_HELP)] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="How demonstrations enter the prompt: epic, text or none.", show_default=False
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Hits for a query.")] = 10,
    where: WhereOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a line a query.")] = False,
    model: IndexModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Find the passages that answer a query."""
    from epic_retrieval.index import PassageIndex
    from epic_retrieval.prompt import check_mode
    from epic_retrieval.tasks import load_task

    chosen = None if mode is None else check_mode(mode)
    condition = condition_of(where)
    queries = list(_queries(query))
    if len(query) > 1 and not any(len(text.split()) > 1 or text == "-" for text in query):
        typer.echo(
            f"epic: {len(query)} queries of one word each; if they are one query, put it in "
            f'quotes: "{" ".join(query)}"',
            err=True,
        )
    with PassageIndex.open(folder) as index:
        built_with = index.manifest.encoder
        found = load_task(task or built_with.task or "web-search")
        encoder = load_encoder(model_named(model or built_with.name), device, dtype)
        index.check_encoder(encoder_info(encoder, found, chosen))
        vectors = encoder.encode_queries(queries, found, chosen, show_progress=False)
        nothing = "no passage matches" if len(index) else "the index holds no passages"
        nothing += f" {where}" if len(index) and where else ""
        for text, hits in zip(queries, index.search(vectors, k, where=condition), strict=True):
            _print_json_hits(text, hits) if as_json else _print_hits(text, hits, nothing)
    if condition is not None:
        tell_hints(folder, condition)


def _queries(given: list[str]) -> Iterator[str]:
    """The queries as given, `-` replaced by the lines of stdin; blank lines are skipped."""
    for text in given:
        if text != "-":
            if not text.strip():
                raise InputError("a query is blank; write what you look for")
            yield text
            continue
        lines = [line.strip("\r\n") for line in sys.stdin]
        found = [line for line in lines if line.strip()]
        if not found:
            raise InputError("- asks for queries on stdin, but there are none; give one a line")
        yield from found


def tell_hints(folder: Path, condition: dict[str, Any]) -> None:
    """Says on stderr what of a condition can match nothing, whether or not the rest does."""
    for hint in filter_hints(folder, condition):
        typer.echo(f"epic: {hint}", err=True)


def _print_hits(query: str, hits: "list[Hit]", nothing: str) -> None:
    typer.echo(typer.style(query, bold=True))
    if not hits:
        typer.echo(f"     {nothing}")
    for hit in hits:
        passage = hit.passage
        # A Markdown file's first heading is its title, and stays in its text.
        titled = passage.text.partition("\n")[0].strip("# \t\r") == passage.title
        shown = " ".join((passage.text if titled else passage.content).split())
        cut = shown if len(shown) <= 100 else shown[:99].rstrip() + "…"
        typer.echo(f"{hit.rank:>3}  {hit.score:.4f}  {passage.id}  {cut}")


def _print_json_hits(query: str, hits: "list[Hit]") -> None:
    rows = [{"rank": hit.rank, "score": hit.score, **asdict(hit.passage)} for hit in hits]
    typer.echo(json.dumps({"query": query, "hits": rows}, ensure_ascii=False))


def tell(folder: Path, manifest: "Manifest") -> None:
    """Says in one line what an index is now."""
    from epic_retrieval.index._words import counted

    line = f"{counted(manifest.count, 'passage')} in {folder}"
    found = manifest.search
    if found is not None and found.recall is not None:
        line += f"; {found.factory}, recall@{found.recall_k} {found.recall:.3f}"
    typer.echo(line)
