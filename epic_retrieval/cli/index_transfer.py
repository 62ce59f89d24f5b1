"""`epic index export|merge`: an index carried elsewhere, and several made one.

Parses, calls the library, prints.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from epic_retrieval.cli.index_options import Folder
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
    metadata_key: Annotated[
        str | None,
        typer.Option(help="Of Qdrant: put metadata under this key.", show_default=False),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="QDRANT_API_KEY", help="Of Qdrant's server.", show_default=False),
    ] = None,
) -> None:
    """Write passages, metadata and vectors for other systems; FOLDER may also hold shards.

    A file is never replaced. In a collection of Qdrant points of the same ids are, so that an
    export that was stopped is simply run again.
    """
    from epic_retrieval.cli.progress import counting_bar
    from epic_retrieval.index._words import counted
    from epic_retrieval.index.export import export_parquet
    from epic_retrieval.index.qdrant import export_qdrant

    if to == "qdrant" and collection is None:
        raise InputError("--to qdrant needs --collection NAME")
    if to == "parquet":
        if collection is not None or metadata_key is not None:
            raise InputError("--collection and --metadata-key go with --to qdrant; add that")
        if "://" in out:
            raise InputError(f"{out} is no file; for a server of Qdrant's add --to qdrant")
    with counting_bar("exporting") as advance:
        if collection is None:
            count = export_parquet(folder, out, progress=advance)
        else:
            count = export_qdrant(
                folder,
                collection,
                location=out,
                api_key=api_key,
                metadata_key=metadata_key,
                progress=advance,
            )
    typer.echo(f"{folder}: {counted(count, 'passage')} exported to {out}")


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
    from epic_retrieval.index._words import counted
    from epic_retrieval.index.merge import merge as join

    manifest = join(folders, out, on_duplicate=on_duplicate)
    typer.echo(
        f"{counted(len(folders), 'folder')} merged into {out}, "
        f"{counted(manifest.count, 'passage')}; search is exact until `epic index rebuild`"
    )
