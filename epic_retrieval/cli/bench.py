"""`epic bench`: latency from the question to the first answer, its report, and comparisons.

Parses, calls the library, prints.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from epic_retrieval.cli.models import DeviceOption, DtypeOption
from epic_retrieval.errors import EpicError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from epic_retrieval.benchmarking.record import Record
    from epic_retrieval.encoder import EpicEncoder
    from epic_retrieval.index import Passage, PassageIndex

bench_app = typer.Typer(no_args_is_help=True, help="Measure latency; report and compare runs.")

_SAMPLE = 2000


@bench_app.command()
def rag(  # noqa: PLR0913, PLR0917 (options of a command)
    out: Annotated[
        Path | None, typer.Option(help="JSON file for the record.", show_default=False)
    ] = None,
    conditions: Annotated[
        Path | None,
        typer.Option(help="YAML of what to measure, where it differs.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            envvar="EPIC_MODEL",
            help="Checkpoint folder, hub name, or random:22m, random:qwen2.5-0.5b for random"
            " weights; by default the small model that comes along.",
            show_default=False,
        ),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="Corpus as for `epic index build`, or an index folder; by default the"
            " documentation of Python's library.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=10, help="Most passages of a corpus to index.")] = 2000,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="A query on each line, or JSONL with text; else made of passages.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Built-in task or file; may be repeated.", show_default=False),
    ] = None,
    demonstrations: Annotated[
        Path | None,
        typer.Option(help="Folder in bge-en-icl's form, a file for each task.", show_default=False),
    ] = None,
    rivals: Annotated[
        str | None, typer.Option(help="Names, with commas between.", show_default=False)
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Parts, with commas between.", show_default=False)
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(help="Interpreter that has FlagEmbedding.", show_default=False),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="Of an OpenAI-compatible server, such as http://localhost:8000/v1; else a"
            " stand-in answers.",
            show_default=False,
        ),
    ] = None,
    endpoint_model: Annotated[str, typer.Option(help="The model's name there.")] = "default",
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="Tokenizer folder of a random model.", show_default=False),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of torch.", show_default=False)
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Time every stage from the question to the first answer, beside other ways to encode it."""
    from epic_retrieval.benchmarking import (
        Bench,
        Conditions,
        Record,
        environment,
        open_answerer,
        open_model,
        queries_from,
        read_queries,
        run,
        summary_lines,
        tasks_named,
        with_projector,
    )

    if out is not None and (out.suffix.lower() != ".json" or not out.absolute().parent.is_dir()):
        raise InputError(f"{out}: expected a name that ends in .json, in a folder that exists")
    plan = Conditions.load(conditions).with_options(
        tasks=tuple(task) if task else None, rivals=_names(rivals), only=_names(only)
    )
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    found = tasks_named(plan.tasks, demonstrations)
    asked = None if queries is None else read_queries(queries)
    answerer = open_answerer(plan.answering, endpoint, endpoint_model)
    record = Record(environment(), plan.to_dict() | {"answers": endpoint and "endpoint"})
    with tempfile.TemporaryDirectory(prefix="epic-bench-") as name:
        workspace = Path(name)
        encoder = with_projector(
            open_model(model, workspace, device=device, dtype=dtype, vocabulary=vocabulary)
        )
        with _opened(encoder, corpus, limit, workspace) as (index, passages):
            bench = Bench(
                encoder=encoder,
                index=index,
                passages=passages,
                tasks=found,
                queries=(asked or queries_from(passages, plan.queries, plan.seed))[: plan.queries],
                answerer=answerer,
                conditions=plan,
                record=record,
                workspace=workspace,
                python=python,
                tell=_Tell(),
            )
            run(bench)
    if out is not None:
        record.save(out)
    for line in summary_lines(record):
        typer.echo(line)
    _check_agreement(record)


@bench_app.command()
def report(
    record: Annotated[Path, typer.Argument(help="What `epic bench rag` wrote.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    png: Annotated[
        Path | None, typer.Option(help="Folder for the figures, too.", show_default=False)
    ] = None,
) -> None:
    """Write a run as one page that needs no other file."""
    from epic_retrieval.benchmarking import Record, write_figures, write_page

    found = Record.load(record)
    write_page(found, out)
    typer.echo(f"{out}")
    if png is not None:
        for path in write_figures(found, png):
            typer.echo(f"{path}")


@bench_app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="Record of the earlier run.")],
    after: Annotated[Path, typer.Argument(help="Record of the later run.")],
    control: Annotated[
        list[Path] | None,
        typer.Option(
            help="Record of a further run of the earlier code: what it changed is noise. May be"
            " repeated.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Also what did not change.")] = False,
) -> None:
    """Say what changed from one run to another beyond noise."""
    from epic_retrieval.benchmarking import Record, comparison_lines

    one, other, *controls = (Record.load(path) for path in (before, after, *(control or ())))
    for line in comparison_lines(one, other, controls=controls, every=every):
        typer.echo(line)


@contextmanager
def _opened(
    encoder: "EpicEncoder", corpus: Path | None, limit: int, workspace: Path
) -> "Iterator[tuple[PassageIndex, Sequence[Passage]]]":
    """An index of the corpus, and some of its passages."""
    from itertools import islice

    from epic_retrieval.benchmarking import spread_out
    from epic_retrieval.cli.building import build_with_progress
    from epic_retrieval.cli.models import encoder_info
    from epic_retrieval.index import PassageIndex, read_corpus

    folder = workspace / "index"
    if corpus is not None and (corpus / "manifest.json").is_file():
        with PassageIndex.open(corpus) as index:
            index.check_encoder(encoder_info(encoder))
            yield index, list(islice(index.passages, _SAMPLE))
        return
    if corpus is None:
        from epic_retrieval.stdlib_docs import stdlib_passages

        passages = spread_out(list(stdlib_passages()), limit)
    else:
        passages = list(islice(read_corpus(corpus, skip_empty=True), limit))
    build_with_progress(encoder, passages, folder, total=len(passages))
    with PassageIndex.open(folder) as index:
        yield index, passages[:_SAMPLE]


def _names(given: str | None) -> tuple[str, ...] | None:
    return None if given is None else tuple(part.strip() for part in given.split(",") if part)


class _Tell:
    """What happens, on stderr: on one line of a terminal, else a line for each kind of work."""

    def __init__(self) -> None:
        self._kind = ""

    def __call__(self, line: str) -> None:
        kind = re.split("[:,]", line)[0]
        if sys.stderr.isatty():
            width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
            typer.echo(f"\r{line[:width]:<{width}}", nl=False, err=True)
        elif kind != self._kind:
            typer.echo(kind, err=True)
        self._kind = kind


def _check_agreement(record: "Record") -> None:
    apart = [one for one in record.agreement if one["checked"] and not one["agree"]]
    if apart:
        pairs = "; ".join(
            f"{one['one']} and {one['other']}: cosine {one['smallest_cosine']}" for one in apart
        )
        raise EpicError(
            f"some vectors that should be equal are not ({pairs}); do not use the times"
        )
