"""`epic train`: train EPIC, textual ICL, the plain baseline or an ablation.

Parses, calls `epic_training`, prints. Knows nothing of models and data.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from epic_retrieval.errors import InputError


def train(
    configs: Annotated[
        list[Path],
        typer.Argument(
            help="Configuration; settings of later files take the place of earlier ones'.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for everything that is made.", show_default=False)
    ] = None,
    mix: Annotated[
        Path | None, typer.Option(help="Mix file, in place of the configuration's.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder that the mix file's paths are relative to.")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, as optimizer.steps=100; may be repeated."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Describe what would be trained on, and stop.")
    ] = False,
) -> None:
    """Train a model; run the same command again after an interruption to go on.

    On several GPUs: torchrun --nproc-per-node 8 -m epic_retrieval.cli train ...
    """
    try:
        from epic_training.config import load_config
        from epic_training.run import dry_run as describe
        from epic_training.run import train as run
    except ImportError as error:
        raise InputError(
            f"training needs the extra `train` ({error}); install it with"
            ' pip install "epic-retrieval[train]"'
        ) from error
    config = load_config(configs, override or (), mix=mix, data=data)
    if dry_run:
        typer.echo(describe(config))
        return
    if out is None:
        raise InputError("no folder to write to; name one with --out, or look first with --dry-run")
    result = run(config, out)
    if os.environ.get("RANK", "0") == "0":  # of several processes, one speaks
        typer.echo(f"trained {result}")
