"""`epic index`: build, search, describe and verify a passage index.

Parses, calls the library, prints. Knows nothing of file formats or models. How an index is changed
stands in index_changes.py, how it is carried elsewhere in index_transfer.py.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

index_app = typer.Typer(no_args_is_help=True, help="Build, search, change and verify an index.")

Folder = Annotated[Path, typer.Argument(help="Folder of the index.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_TASK_HELP = "A built-in task (see `epic tasks`), or the path of a task file."


KindOption = Annotated[
    str,
    typer.Option(
        help="auto, flat, hnsw, ivf, ivf-sq8, ivf-pq, or a string of FAISS's index_factory."
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        help="What the structure may take while it is built, such as 1.5G; by default half of "
        "what is free.",
        show_default=False,
    ),
]
RecallOption = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Wished recall@10 against exact search.")
]
MaxCharsOption = Annotated[
    int, typer.Option(min=1, help="A longer passage is an error; nothing is cut silently.")
]
SkipEmptyOption = Annotated[bool, typer.Option(help="Leave out passages without text.")]
CorpusArgument = Annotated[
    Path,
    typer.Argument(
        help="JSONL, CSV, TSV or Parquet file, a folder of texts, or a BEIR folder.",
        show_default=False,
    ),
]
StoreOption = Annotated[
    str, typer.Option("--store", help="Stored vectors: float32, or float16 in half the space.")
]
DimOption = Annotated[
    int | None,
    typer.Option(
        "--dim", min=1, help="Keep so many dimensions (Matryoshka models).", show_default=False
    ),
]
ShardSizeOption = Annotated[
    int, typer.Option(min=1, help="Passages in a shard: what a crash can lose at most.")
]
WhereOption = Annotated[
    str | None,
    typer.Option(
        help='Only passages whose metadata match, as JSON: {"year": {"$gte": 2000}}.',
        show_default=False,
    ),
]


@index_app.command()
def build(  # noqa: PLR0913, PLR0917 (options of a command)
    corpus: CorpusArgument,
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    model: ModelOption = None,
    task: Annotated[
        str | None, typer.Option(help=_TASK_HELP + " Matters only to a symmetric task's index.")
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
    overwrite: Annotated[bool, typer.Option(help="Replace an index that is there.")] = False,
) -> None:
    """Encode a corpus and write an index of it; the same command goes on after a stop.

    CORPUS may also be a folder of shards that `epic encode` made: nothing is encoded then.
    """
    from epic_retrieval.cli.building import build_with_progress, bytes_of, quick_count
    from epic_retrieval.index import read_corpus
    from epic_retrieval.index._batches import SETTINGS
    from epic_retrieval.tasks import load_task

    limit = bytes_of(memory)
    if (corpus / SETTINGS).is_file():
        _tell(out, _from_shards(corpus, out, kind, limit, recall))
        return
    # A wrong path or task must not wait for a model to load.
    passages = read_corpus(corpus, max_chars=max_chars, skip_empty=skip_empty)
    found = None if task is None else load_task(task)
    encoder = load_encoder(model, device, dtype)
    manifest = build_with_progress(
        encoder,
        passages,
        out,
        task=found,
        batch_size=batch_size,
        dtype=store,
        dimension=dim,
        shard_size=shard_size,
        kind=kind,
        memory=limit,
        target_recall=recall,
        overwrite=overwrite,
        total=quick_count(corpus),
        corpus=corpus.name,
    )
    _tell(out, manifest)


def _from_shards(
    shards: Path, out: Path, kind: str, memory: int | None, recall: float
) -> "Manifest":
    from epic_retrieval.cli.building import stage_bars
    from epic_retrieval.index import IndexWriter, read_manifest
    from epic_retrieval.index.merge import merge

    merge([shards], out, corpus=shards.name)
    with IndexWriter(out) as writer, stage_bars() as progress:
        writer.rebuild(kind, memory=memory, target=recall, progress=progress)
    return read_manifest(out)


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
    where: WhereOption = None,
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
    condition = condition_of(where)
    queries = list(_queries(query))
    with PassageIndex.open(folder) as index:
        built_with = index.manifest.encoder
        found = load_task(task or built_with.task or "web-search")
        encoder = load_encoder(model or model_named(built_with.name), device, dtype)
        index.check_encoder(encoder_info(encoder, found, chosen))
        vectors = encoder.encode_queries(queries, found, chosen, show_progress=False)
        for text, hits in zip(queries, index.search(vectors, k, where=condition), strict=True):
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


def condition_of(where: str | None) -> dict[str, Any] | None:
    """A condition on metadata from the command line."""
    if where is None:
        return None
    try:
        found = json.loads(where)
    except ValueError as error:
        raise InputError(
            f'--where is no JSON ({error}); expected, for example, \'{{"lang": "en"}}\''
        ) from error
    if not isinstance(found, dict):
        raise InputError(f'--where is {where}; expected an object, such as {{"lang": "en"}}')
    return found


def _tell(folder: Path, manifest: "Manifest") -> None:
    line = f"{manifest.count:,} passages in {folder}"
    found = manifest.search
    if found is not None and found.recall is not None:
        line += f"; {found.factory}, recall@{found.recall_k} {found.recall:.3f}"
    typer.echo(line)


def _described(manifest: "Manifest") -> str:
    encoder = manifest.encoder
    size = sum(file.bytes for file in manifest.files.values())
    deleted = manifest.rows - manifest.count
    search = manifest.search
    lines = [
        f"corpus       {manifest.corpus or '-'}",
        f"passages     {manifest.count:,}" + (f" ({deleted:,} deleted)" if deleted else ""),
        f"dimension    {manifest.dimension}"
        + (f" of {manifest.truncated_from}" if manifest.truncated_from else ""),
        f"kind         {manifest.kind}, {manifest.metric}, {manifest.dtype}",
    ]
    if search is not None:
        known = "not measured" if search.recall is None else f"{search.recall:.3f}"
        chosen = ", ".join(f"{name} {value}" for name, value in search.parameters.items())
        lines.append(f"search       {chosen}; recall@{search.recall_k} {known}")
    lines += [
        f"size         {size / 1e6:,.1f} MB in {len(manifest.shards):,} shards",
        f"encoder      {encoder.name}",
        f"fingerprint  {encoder.fingerprint}",
        f"task         {encoder.task or 'any asymmetric task'}",
        f"created      {manifest.created} by epic-retrieval {manifest.package_version}",
        f"changed      {manifest.updated}, generation {manifest.generation}",
    ]
    return "\n".join(lines)
