"""The encoder that a command asks for, and the options that say which.

Knows nothing of corpora or indexes.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from epic_retrieval.encoder import EpicEncoder
    from epic_retrieval.index import EncoderInfo
    from epic_retrieval.prompt import Mode
    from epic_retrieval.tasks import Task

ModelOption = Annotated[
    str | None,
    typer.Option(
        envvar="EPIC_MODEL",
        help="Checkpoint folder or hub name; by default the small model that comes along.",
        show_default=False,
    ),
]
IndexModelOption = Annotated[
    str | None,
    typer.Option(
        help="Checkpoint folder or hub name; by default the model that the index was built with.",
        show_default=False,
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="For example cpu, cuda, cuda:1, mps.", show_default=False)
]
DtypeOption = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16, float16, or int8 on a CPU.", show_default=False),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(min=1, help="Most texts in a forward pass; by default what memory allows."),
]


def load_encoder(
    model: str | None, device: str | None = None, dtype: str | None = None
) -> "EpicEncoder":
    """Loads an encoder; the library itself says so when it is the bundled one.

    Raises:
        CheckpointError: the model cannot be loaded.
    """
    from epic_retrieval.encoder import EpicEncoder

    return EpicEncoder.from_pretrained(model_given(model), device=device, dtype=dtype)


def model_given(model: str | None) -> str | None:
    """What to load for `--model`: a folder by its full path, None for the bundled model."""
    from epic_retrieval.checkpoint import BUNDLED_MODEL

    if model is not None and Path(model).is_dir():
        # An index remembers the name, and will be searched from other folders.
        return str(Path(model).resolve())
    return None if model == BUNDLED_MODEL.name else model


def model_named(name: str) -> str:
    """What to load for the encoder's name in an index's manifest.

    The bundled model by its folder, since it is somebody's choice here, and no default.
    """
    from epic_retrieval.checkpoint import BUNDLED_MODEL

    return str(BUNDLED_MODEL) if name == BUNDLED_MODEL.name else name


def encoder_info(
    encoder: "EpicEncoder", task: "Task | None" = None, mode: "Mode | None" = None
) -> "EncoderInfo":
    """What an index notes of the encoder of its passages; task and mode only if symmetric."""
    return encoder.info(task, mode)
