"""`epic index info|verify`: what an index holds, and whether it is whole.

Parses, calls the library, prints.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from epic_retrieval.cli.index_options import TASK_HELP, Folder, JsonOption
from epic_retrieval.cli.models import (
    BatchSizeOption,
    DeviceOption,
    DtypeOption,
    IndexModelOption,
    encoder_info,
    load_encoder,
    model_named,
)
from epic_retrieval.errors import InputError, PassageIndexError

if TYPE_CHECKING:
    from epic_retrieval.index import Manifest
    from epic_retrieval.index._shard_folder import Encode

checks_app = typer.Typer()

# Two encodings of a passage in the same precision; activations in int8 have a common scale with
# those of the passages that are encoded together.
_LEAST, _LEAST_INT8 = 0.999, 0.95


@checks_app.command()
def info(folder: Folder, as_json: JsonOption = False) -> None:
    """Show what an index holds and which encoder made it."""
    from epic_retrieval.index import read_manifest

    manifest = read_manifest(folder)
    if as_json:
        typer.echo(json.dumps(asdict(manifest), ensure_ascii=False, indent=2))
    else:
        typer.echo(_described(manifest, _fields(folder, manifest)))


@checks_app.command()
def verify(
    folder: Folder,
    sample: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Encode so many passages again, evenly spread, and compare their vectors.",
            show_default=False,
        ),
    ] = None,
    least: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help=f"Least cosine with what is stored; by default {_LEAST}, or {_LEAST_INT8} with "
            "--dtype int8. Give the --dtype that the index was encoded with.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help=f"Of a symmetric index. {TASK_HELP}", show_default=False),
    ] = None,
    model: IndexModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchSizeOption = None,
) -> None:
    """Read every byte; exit with 0 only if every file is as it was written."""
    from epic_retrieval.index import read_manifest, verify_index
    from epic_retrieval.index._words import counted, first_few

    given = (model, device, dtype, task, batch_size, least)
    if sample is None and given != (None,) * len(given):
        raise InputError("options of the model go with --sample; add it, or leave them out")
    # Says what is wrong with a folder that is no index.
    manifest = read_manifest(folder)
    encode = None
    if sample is not None:
        encode = _encode(folder, manifest, task, model, device, dtype, batch_size)
    if least is None:
        least = _LEAST_INT8 if dtype == "int8" else _LEAST
    report = verify_index(folder, encode, sample or 1, least)
    if report.leftovers:
        typer.echo(
            f"{folder}: {counted(len(report.leftovers), 'leftover')} of former states or of work "
            f"that was stopped, which do no harm: {first_few(report.leftovers)}",
            err=True,
        )
    for problem in report.problems:
        typer.echo(f"{folder}: {problem}", err=True)
    if any(problem.kind == "encoding" for problem in report.problems):
        typer.echo(
            "epic: if the index was encoded in another precision, give it with --dtype, and a "
            f"lower --least: {_LEAST_INT8} for int8",
            err=True,
        )
    if not report.ok:
        raise typer.Exit(1)
    found = "every file is as it was written"
    if sample is not None and report.manifest is not None:
        again = min(sample, report.manifest.count)
        found += f"; {counted(again, 'passage')} encoded again, with the same vectors"
        if not again:
            found = "every file is as it was written; nothing was sampled: it holds no passages"
    typer.echo(f"{folder}: {found}")


def _encode(
    folder: Path,
    manifest: "Manifest",
    task: str | None,
    model: str | None,
    device: str | None,
    dtype: str | None,
    batch_size: int | None,
) -> "Encode":
    """The encoder of an index's passages.

    Raises:
        PassageIndexError: it is another one.
    """
    from epic_retrieval.cli.building import passage_function
    from epic_retrieval.index.writer import check_encoder
    from epic_retrieval.tasks import load_task

    name = task or manifest.encoder.task
    found = None if name is None else load_task(name)
    encoder = load_encoder(model_named(model or manifest.encoder.name), device, dtype)
    check_encoder(folder, manifest, encoder_info(encoder, found))
    return passage_function(encoder, found, batch_size)


def _fields(folder: Path, manifest: "Manifest") -> str:
    from epic_retrieval.cli.filters import first_fields

    try:
        return ", ".join(first_fields(folder, manifest)) or "-"
    # All else is told of a damaged index, too; `verify` says what is wrong.
    except PassageIndexError:
        return "cannot be read"


def _described(manifest: "Manifest", fields: str) -> str:
    from epic_retrieval.index._words import counted

    encoder = manifest.encoder
    size = sum(file.bytes for file in manifest.files.values())
    deleted = manifest.rows - manifest.count
    search = manifest.search
    lines = [
        f"corpus       {manifest.corpus or '-'}",
        f"passages     {manifest.count:,}" + (f" ({deleted:,} deleted)" if deleted else ""),
        f"metadata     {fields}",
        f"dimension    {manifest.dimension}"
        + (f" of {manifest.truncated_from}" if manifest.truncated_from else ""),
        f"kind         {manifest.kind}, {manifest.metric}, {manifest.dtype}",
    ]
    if search is not None:
        known = "not measured" if search.recall is None else f"{search.recall:.3f}"
        chosen = ", ".join(f"{name} {value}" for name, value in search.parameters.items())
        lines.append(f"search       {chosen}; recall@{search.recall_k} {known}")
    lines += [
        f"size         {_size(size)} in {counted(len(manifest.shards), 'shard')}",
        f"encoder      {encoder.name}",
        f"fingerprint  {encoder.fingerprint}",
        f"task         {encoder.task or 'any asymmetric task'}",
        f"created      {manifest.created} by epic-retrieval {manifest.package_version}",
        f"changed      {manifest.updated}, generation {manifest.generation}",
    ]
    return "\n".join(lines)


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"
