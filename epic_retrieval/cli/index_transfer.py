"""`epic index export|merge`: an index carried elsewhere, and several made one.

Parses, calls the library, prints.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from epic_retrieval.cli.index import Folder
from epic_retrieval.errors import InputError

transfer_app = typer.Typer()


@transfer_app.command()
def export(
    folder: Folder,
    out: Annotated[
        str, typer.Argument(help="A .parquet file, or Qdrant's folder or URL.", show_default=False)
    ],
    to: Annotated[Literal["parquet", "qdrant"], typer.Option(help="What to write.")] = "parquet",
    collection: Annotated[str | None, typer.Option(help="Of Qdrant.", show_default=False)] = None,
) -> None:
    """Write passages, metadata and vectors for other systems; FOLDER may also hold shards."""
    from tqdm import tqdm

    from epic_retrieval.index.export import export_parquet
    from epic_retrieval.index.qdrant import export_qdrant

    with tqdm(unit=" passages") as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        if to == "parquet":
            export_parquet(folder, out, progress=advance)
        elif collection is None:
            raise InputError("--to qdrant needs --collection NAME")
        else:
            export_qdrant(folder, collection, location=out, progress=advance)
    typer.echo(f"{folder}: exported to {out}")


@transfer_app.command()
def merge(
    folders: Annotated[
        list[Path], typer.Argument(help="Indexes or folders of shards.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    on_duplicate: Annotated[
        Literal["error", "first", "last"],
        typer.Option(help="Which passage to keep where an id stands twice."),
    ] = "error",
) -> None:
    """Make one index of several that the same encoder made; nothing is encoded."""
    from epic_retrieval.index.merge import merge as join

    join(folders, out, on_duplicate=on_duplicate)
    typer.echo(f"{len(folders)} merged into {out}")
