"""`epic mine`: hard negatives for training data.

Parses, calls `epic_training`, prints. Knows nothing of formats, models or what a negative is.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from epic_retrieval.cli.models import (
    BatchSizeOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    load_encoder,
)
from epic_retrieval.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from epic_retrieval.tasks import Task
    from epic_training.mining import MiningReport

_SOURCES = ("encoder", "bm25")


def mine(  # noqa: PLR0913 (options of a command)
    pairs: Annotated[
        Path,
        typer.Argument(
            help="Training data: pairs, FlagEmbedding, BEIR, triplets or Parquet.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[
        Path, typer.Option(help="File to write: .jsonl or .jsonl.gz.", show_default=False)
    ],
    source: Annotated[str, typer.Option(help="Who retrieves: encoder or bm25.")] = "encoder",
    data_format: Annotated[
        str | None,
        typer.Option("--format", help="Of the training data; guessed.", show_default=False),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="Passages to choose from, as `epic index build` reads them; by default those of"
            " the training data.",
            show_default=False,
        ),
    ] = None,
    negatives: Annotated[int, typer.Option(min=1, help="New negatives of a row, at most.")] = 7,
    rank_min: Annotated[int, typer.Option(min=1, help="The best rank to take.")] = 1,
    rank_max: Annotated[int, typer.Option(min=1, help="The last rank to take.")] = 100,
    margin: Annotated[
        float | None,
        typer.Option(
            help="Negatives score at least so much below the positive.", show_default=False
        ),
    ] = None,
    relative_margin: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Negatives score at most this share of the positive; 0: any."
        ),
    ] = 0.95,
    pick: Annotated[str, typer.Option(help="Of what is left: top or random.")] = "top",
    seed: Annotated[int, typer.Option(min=0, help="Of the random choice.")] = 42,
    add: Annotated[bool, typer.Option(help="Keep the negatives that rows have.")] = False,
    scores: Annotated[bool, typer.Option(help="Write scores too, for distillation.")] = False,
    task: Annotated[
        str | None,
        typer.Option(
            help="A built-in task or task file for all queries; by default, each row's own"
            " instruction.",
            show_default=False,
        ),
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Or just an instruction for them.", show_default=False)
    ] = None,
    symmetric: Annotated[
        bool, typer.Option(help="With --instruction: passages get it as well.")
    ] = False,
    mode: Annotated[
        str | None,
        typer.Option(
            help="How demonstrations enter the prompt: epic, text or none.", show_default=False
        ),
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchSizeOption = None,
) -> None:
    """Find hard negatives; run again after an interruption to go on."""
    try:
        from epic_training.mining import MiningSettings, mine_negatives
        from epic_training.mining_blocks import check_output
        from epic_training.mining_bm25 import Bm25Source
        from epic_training.mining_encoder import EncoderSource
        from epic_training.mining_sources import NegativeSource
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"mining needs the extra `train` ({error}); install it with"
            ' pip install "epic-retrieval[train]"'
        ) from error
    from epic_retrieval.prompt import check_mode

    if source not in _SOURCES:
        raise InputError(f"source is {source!r}; expected {' or '.join(_SOURCES)}")
    # What is wrong with the options must not wait for a model to load.
    settings = MiningSettings(
        negatives=negatives,
        rank_min=rank_min,
        rank_max=rank_max,
        margin=margin,
        relative_margin=relative_margin or None,
        pick=pick,  # type: ignore[arg-type]  # MiningSettings checks it
        seed=seed,
        add=add,
        scores=scores,
    )
    check_output(out)
    found = task_of(task, instruction, symmetric=symmetric)
    chosen = None if mode is None else check_mode(mode)
    retriever: NegativeSource
    if source == "bm25":
        _refuse_for_bm25(task=task, instruction=instruction, mode=mode)
        retriever = Bm25Source()
    else:
        encoder = load_encoder(model, device, dtype)
        retriever = EncoderSource(encoder, found, chosen, batch_size)
    report = mine_negatives(
        pairs, out, retriever, settings, format=data_format, corpus=corpus, show_progress=True
    )
    typer.echo(_described(report, out))


def task_of(task: str | None, instruction: str | None, *, symmetric: bool) -> "Task | None":
    """The task that `--task`, or `--instruction` and `--symmetric`, ask for; None for neither.

    Raises:
        InputError: they contradict each other, or there is no such task.
    """
    from epic_retrieval.tasks import Task, load_task

    if task is not None and instruction is not None:
        raise InputError("--task and --instruction were both given; expected one of them")
    if instruction is not None:
        return Task("instruction", instruction, symmetric=symmetric)
    if symmetric:
        raise InputError("--symmetric goes with --instruction; a task says itself whether it is")
    return None if task is None else load_task(task)


def _refuse_for_bm25(**given: str | None) -> None:
    named = [f"--{name}" for name, value in given.items() if value is not None]
    if named:
        raise InputError(f"{named[0]} is for encoders; leave it out with --source bm25")


def _described(report: "MiningReport", out: Path) -> str:
    lines = [f"{report.mined:,} negatives for {report.rows:,} rows in {out}"]
    if report.without:
        lines.append(f"{report.without:,} rows without a new one: no candidate was left")
    lines.append(
        f"{report.candidates:,} candidates; left out as answers {report.answers:,}, for their"
        f" scores {report.too_close:,}"
    )
    if report.outside:
        lines.append(f"{report.outside:,} passages of the data are not in the corpus")
    return "\n".join(lines)
