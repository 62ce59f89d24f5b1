"""`epic demos`: choose a task's demonstrations on labelled queries, and check those that it has.

Parses, calls `epic_retrieval.demonstrations`, prints.
"""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from epic_retrieval.cli.mine import task_of
from epic_retrieval.cli.models import (
    BatchSizeOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    load_encoder,
)
from epic_retrieval.errors import InputError

if TYPE_CHECKING:
    from epic_retrieval.demonstrations import Choice, Split
    from epic_retrieval.encoder import EpicEncoder
    from epic_retrieval.tasks import Task

demos_app = typer.Typer(
    no_args_is_help=True, help="Choose demonstrations on labelled queries; check those there are."
)


@demos_app.command()
def select(  # noqa: PLR0913 (options of a command)
    labelled: Annotated[
        Path,
        typer.Argument(
            help='JSON Lines with "query" and "positive", or a folder with corpus, queries, qrels.',
            show_default=False,
        ),
    ],
    *,
    out: Annotated[
        Path, typer.Option(help="Task file to write: .yaml or .json.", show_default=False)
    ],
    task: Annotated[
        str | None,
        typer.Option(help="Whose instruction: a built-in task or a task file.", show_default=False),
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Or just an instruction.", show_default=False)
    ] = None,
    symmetric: Annotated[
        bool, typer.Option(help="With --instruction: passages get it as well.")
    ] = False,
    split: Annotated[
        str | None,
        typer.Option(help="Of a folder; by default train, else dev.", show_default=False),
    ] = None,
    dev: Annotated[
        Path | None,
        typer.Option(
            help="Other labelled queries to score on; by default a part of LABELLED.",
            show_default=False,
        ),
    ] = None,
    dev_split: Annotated[
        str | None, typer.Option(help="Of the --dev folder; by default dev.", show_default=False)
    ] = None,
    k: Annotated[
        list[int] | None,
        typer.Option("-k", min=1, help="Demonstrations; may be repeated.  [default: 5]"),
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(help="random, diverse, typical; may be repeated.  [default: all]"),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Random draws to compare.")] = 3,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            help="How they enter the prompt: epic or text; may be repeated. By default what the"
            " model was trained for.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of draws and of the bootstrap.")] = 42,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the best also if it may not help.")
    ] = False,
    confidence: Annotated[float, typer.Option(help="Of the interval that decides.")] = 0.95,
    pool: Annotated[float, typer.Option(help="Share of LABELLED that may be shown.")] = 0.3,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Pairs with a longer text are not shown.")
    ] = 256,
    max_queries: Annotated[
        int, typer.Option(min=1, help="To choose on, and as many to decide on.")
    ] = 1000,
    max_passages: Annotated[
        int, typer.Option(min=1, help="To find the right ones among.")
    ] = 100_000,
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchSizeOption = None,
) -> None:
    """Choose demonstrations, and keep them if they help; run again, it goes on after a stop."""
    from epic_retrieval.demonstrations import (
        SelectionSettings,
        read_labelled,
        select_demonstrations,
        split_labelled,
    )
    from epic_retrieval.prompt import check_mode
    from epic_retrieval.tasks.files import SUFFIXES

    if out.suffix.lower() not in SUFFIXES or not out.parent.is_dir():
        raise InputError(f"{out}: expected a file in a folder that exists, {' or '.join(SUFFIXES)}")
    found = task_of(task, instruction, symmetric=symmetric)
    if found is None:
        raise InputError("no instruction was given; name a task with --task, or use --instruction")
    if instruction is not None:
        found = replace(found, name=_name_of(out))
    settings = SelectionSettings(
        counts=tuple(k or (5,)),
        draws=draws,
        seed=seed,
        modes=tuple(check_mode(one) for one in mode or ()),
        most_tokens=max_tokens,
        keep=keep,
        confidence=confidence,
        **({"strategies": tuple(strategy)} if strategy else {}),  # type: ignore[arg-type]
    )
    parts = split_labelled(
        read_labelled(labelled, split),
        None if dev is None else read_labelled(dev, dev_split or ("dev" if dev.is_dir() else None)),
        pool_share=pool,
        most_queries=max_queries,
        most_passages=max_passages,
    )
    _announce(parts)
    encoder = load_encoder(model, device, dtype)
    work = out.with_name(f".{out.name}.work")
    choice = select_demonstrations(
        encoder, found, parts, settings, folder=work, batch_size=batch_size, show_progress=True
    )
    choice.task.save(out)
    shutil.rmtree(work, ignore_errors=True)
    _print_choice(choice, encoder, out)


def _name_of(out: Path) -> str:
    """What a task is called that only its file names."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", out.stem).strip("-._")[:100] or "task"


def _announce(parts: "Split") -> None:
    shown = parts.development
    deciding = len(shown.queries) - shown.choosing
    typer.echo(
        f"{len(parts.pool):,} pairs to choose from; {shown.choosing:,} queries to choose on,"
        f" {deciding:,} to decide on; {len(shown.passages):,} passages"
    )
    if parts.answers:
        typer.echo(f"{parts.answers:,} pairs left out: their passage answers one of these queries")


def _print_choice(choice: "Choice", encoder: "EpicEncoder", out: Path) -> None:
    record = choice.task.selection
    if record is None:
        return
    best = choice.best
    rows = [("instruction alone", choice.none), *((one.label, s) for one, s in choice.scores)]
    width = max(len(label) for label, _ in rows)
    typer.echo(f"\n{'CHOOSING':{width}}  {record.metric}")
    for label, score in rows:
        mark = "  <- best" if label == best.label and score > choice.none else ""
        typer.echo(f"{label:{width}}  {score:.4f}{mark}")
    low, high = record.interval
    typer.echo(
        f"\nOn the {record.queries_deciding:,} other queries: {record.score_without:.4f} without,"
        f" {record.score_with:.4f} with {best.label}; gain {record.gain:+.4f},"
        f" {record.confidence:.0%} interval {low:+.4f} to {high:+.4f}"
    )
    typer.echo(_verdict(choice, encoder, out))


def _verdict(choice: "Choice", encoder: "EpicEncoder", out: Path) -> str:
    record = choice.task.selection
    if record is None or record.outcome == "without":
        return (
            f"A gain is not certain, so {out} holds the instruction alone; --keep keeps the"
            " demonstrations"
        )
    why = "kept as you asked, though a gain is not certain" if record.forced else "they help"
    usual = encoder.default_mode(choice.task)
    note = f'; {encoder.name} uses them with mode "{record.mode}" only' if usual == "none" else ""
    return f"{record.k} demonstrations in {out}: {why}{note}"


@demos_app.command()
def check(
    task: Annotated[str, typer.Argument(help="A task file, or a built-in task.")],
    test: Annotated[
        list[Path] | None,
        typer.Option(
            help="What will be tested on: a retrieval folder, pairs in JSON Lines, or queries in a"
            " .txt file; may be repeated.",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = None,
) -> None:
    """Look for test data and oddities among demonstrations; exit code 1 if test data leak."""
    from epic_retrieval.checkpoint import load_tokenizer
    from epic_retrieval.demonstrations import check_task, find_leaks, read_test_set
    from epic_retrieval.tasks import load_task

    found = load_task(task)
    tests = [read_test_set(path) for path in test or ()]
    tokenizer, config = load_tokenizer(model)
    leaks = find_leaks(found, tests)
    for leak in leaks:
        how = "is" if leak.kind == "exact" else f"is {leak.similarity:.0%} alike"
        typer.echo(
            f"LEAK     demonstration {leak.number}, {leak.part} {how} {leak.of} of {leak.test}:"
            f" {_shortened(leak.text)}"
        )
    findings = check_task(found, tokenizer, config, _positions(model))
    for finding in findings:
        typer.echo(f"{finding.severity.upper():8} {finding.where}: {finding.message}")
    warnings = sum(finding.severity == "warning" for finding in findings)
    names = ", ".join(one.name for one in tests)
    against = f"leaks from {names}" if tests else "leaks (no --test was given)"
    typer.echo(
        f"{len(found.demonstrations)} demonstrations: {len(leaks)} {against},"
        f" {warnings} warnings, {len(findings) - warnings} notes{_age(found)}"
    )
    if leaks:
        raise typer.Exit(1)


def _positions(model: str | None) -> int | None:
    """How many positions the model has; None where no configuration lies in its folder."""
    import json

    from epic_retrieval.checkpoint import BUNDLED_MODEL

    path = Path(model or BUNDLED_MODEL) / "config.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8")).get("max_position_embeddings")
    return found if isinstance(found, int) else None


def _age(task: "Task") -> str:
    record = task.selection
    if record is None or (record.outcome == "with" and record.k == len(task.demonstrations)):
        return ""
    if record.outcome == "without" and not task.demonstrations:
        return ""
    return f"; its record is of {record.k} demonstrations, outcome {record.outcome!r}: choose again"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:77]}..."
