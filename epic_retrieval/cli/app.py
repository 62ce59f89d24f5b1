"""The command line: its sub-commands, and what becomes of an error.

Knows no model and no index; each command imports what it needs when it runs.
"""

from typing import Annotated

import typer

from epic_retrieval.cli.analyze import analyze_app
from epic_retrieval.cli.bench import bench_app
from epic_retrieval.cli.demo import demo
from epic_retrieval.cli.demos import demos_app
from epic_retrieval.cli.encode import encode
from epic_retrieval.cli.eval import eval_app
from epic_retrieval.cli.export import export
from epic_retrieval.cli.index import index_app
from epic_retrieval.cli.index_changes import changes_app
from epic_retrieval.cli.index_checks import checks_app
from epic_retrieval.cli.index_transfer import transfer_app
from epic_retrieval.cli.mine import mine
from epic_retrieval.cli.tasks import tasks
from epic_retrieval.cli.train import train
from epic_retrieval.cli.wording import as_options
from epic_retrieval.errors import EpicError

app = typer.Typer(
    name="epic",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Semantic search that learns a task from a few demonstrations.",
)
app.command()(tasks)
app.command()(demo)
app.command()(encode)
index_app.add_typer(checks_app)
index_app.add_typer(changes_app)
index_app.add_typer(transfer_app)
app.add_typer(index_app, name="index")
app.add_typer(eval_app, name="eval")
app.command()(train)
app.command()(mine)
app.command()(export)
app.add_typer(demos_app, name="demos")
app.add_typer(analyze_app, name="analyze")
app.add_typer(bench_app, name="bench")


def _print_version(asked: bool) -> None:
    if asked:
        from epic_retrieval import __version__

        typer.echo(f"epic {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line; the exit code is 1 for an error and 2 for wrong usage.

    Errors that the library raises on purpose are one message on stderr. Anything else is a bug
    and shows its traceback.
    """
    try:
        app()
    except EpicError as error:
        said = [str(error), *getattr(error, "__notes__", [])]
        typer.echo(f"epic: {as_options(' '.join(said))}", err=True)
        raise SystemExit(1) from None
