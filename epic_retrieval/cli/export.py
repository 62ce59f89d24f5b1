"""`epic export`: a trained checkpoint as a folder to hand on, and to the hub if asked.

Parses, calls `epic_training`, prints. Knows nothing of layouts.
"""

from pathlib import Path
from typing import Annotated

import typer

from epic_retrieval.errors import InputError


def export(  # noqa: PLR0913 (options of a command)
    model: Annotated[
        str,
        typer.Argument(
            help="Checkpoint folder, hub name, or epic-mini for the bundled model.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[Path | None, typer.Option(help="Folder to write.", show_default=False)] = None,
    layout: Annotated[str, typer.Option(help="epic or sentence-transformers.")] = "epic",
    merge: Annotated[
        bool, typer.Option(help="Put an adapter's weights into those of its base model.")
    ] = True,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16; by default, what changes no vector.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="For sentence-transformers: whose instruction queries get; by default"
            " web-search's.",
            show_default=False,
        ),
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Or just an instruction.", show_default=False)
    ] = None,
    symmetric: Annotated[
        bool, typer.Option(help="With --instruction: passages get it as well.")
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license", "--licence", help="For the model card: apache-2.0.", show_default=False
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            help="Upload to owner/name on the Hugging Face hub; without --out, MODEL as it is.",
            show_default=False,
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private/--public", help="Who sees it.")] = True,
    revision: Annotated[
        str | None, typer.Option(help="Branch to upload to.", show_default=False)
    ] = None,
) -> None:
    """Write a checkpoint as plain weights with a model card; upload it if asked."""
    from epic_retrieval.checkpoint import BUNDLED_MODEL
    from epic_retrieval.cli.mine import task_of
    from epic_training.export_hub import check_push, check_repository, push_to_hub

    if out is None and push is None:
        raise InputError("nothing to do: give --out FOLDER, --push owner/name, or both")
    shaping = (layout != "epic", not merge, dtype, task, instruction, symmetric, licence)
    if out is None and any(shaping):
        raise InputError(
            "without --out, a folder is uploaded as it is, so the options of an export have no"
            " effect; add --out, or leave them out"
        )
    if push is None and (revision is not None or not private):
        raise InputError("--revision and --public go with --push; leave them out, or add it")
    if push is not None:
        # Before anything is written.
        check_repository(push) if out is not None else check_push(Path(model), push)
    if out is not None:
        from epic_training.export import export_checkpoint

        found = task_of(task, instruction, symmetric=symmetric)
        bundled = model == BUNDLED_MODEL.name and not Path(model).is_dir()
        source = None if bundled else model
        export_checkpoint(
            source, out, merge=merge, layout=layout, dtype=dtype, task=found, licence=licence
        )
        typer.echo(f"{model} in {out}")
    if push is not None:
        address = push_to_hub(out or Path(model), push, private=private, revision=revision)
        typer.echo(f"uploaded: {address}")
