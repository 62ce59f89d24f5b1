"""Loads the encoder that a command asks for, and says so when it is the bundled one.

Knows nothing of corpora or indexes.
"""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from epic_retrieval.encoder import EpicEncoder

ModelOption = Annotated[
    str | None,
    typer.Option(
        envvar="EPIC_MODEL",
        help="Checkpoint folder or hub name; by default the small model that comes along.",
        show_default=False,
    ),
]
DeviceOption = Annotated[str | None, typer.Option(help="For example cpu, cuda, cuda:1, mps.")]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16.", show_default=False)
]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Texts in a forward pass.")]


def load_encoder(
    model: str | None, device: str | None = None, dtype: str | None = None
) -> "EpicEncoder":
    """Loads an encoder; a notice on stderr says when nobody chose it.

    Raises:
        CheckpointError: the model cannot be loaded.
    """
    from epic_retrieval.encoder import EpicEncoder

    encoder = EpicEncoder.from_pretrained(model, device=device, dtype=dtype)
    if encoder.is_bundled:
        typer.echo(
            f"Using the bundled model {encoder.name} ({encoder.dimension} dimensions): small and "
            "quick, made for trying things out. --model takes a larger one.",
            err=True,
        )
    return encoder
