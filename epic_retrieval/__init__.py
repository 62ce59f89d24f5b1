"""Text embeddings that learn a task from a few demonstrations, each compressed to one vector.

Every public name loads on first use, so that importing the package stays free of torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from epic_retrieval.encoder import EpicEncoder
    from epic_retrieval.errors import (
        CheckpointError,
        EpicError,
        InputError,
        MissingExtraError,
        PassageIndexError,
    )
    from epic_retrieval.index import Collection, EncoderInfo, Hit, Passage, PassageIndex
    from epic_retrieval.pool import EncoderPool
    from epic_retrieval.shared import DemonstrationLike, as_task, open_encoder, shared_encoder
    from epic_retrieval.tasks import Demonstration, Task, builtin_tasks, load_task

    __version__: str

__all__ = [
    "CheckpointError",
    "Collection",
    "Demonstration",
    "DemonstrationLike",
    "EncoderInfo",
    "EncoderPool",
    "EpicEncoder",
    "EpicError",
    "Hit",
    "InputError",
    "MissingExtraError",
    "Passage",
    "PassageIndex",
    "PassageIndexError",
    "Task",
    "__version__",
    "as_task",
    "builtin_tasks",
    "load_task",
    "open_encoder",
    "shared_encoder",
]

_HOMES = {
    "CheckpointError": "errors",
    "Collection": "index",
    "Demonstration": "tasks",
    "DemonstrationLike": "shared",
    "EncoderInfo": "index",
    "EncoderPool": "pool",
    "EpicEncoder": "encoder",
    "EpicError": "errors",
    "Hit": "index",
    "InputError": "errors",
    "MissingExtraError": "errors",
    "Passage": "index",
    "PassageIndex": "index",
    "PassageIndexError": "errors",
    "Task": "tasks",
    "as_task": "shared",
    "builtin_tasks": "tasks",
    "load_task": "tasks",
    "open_encoder": "shared",
    "shared_encoder": "shared",
}


def __getattr__(name: str) -> object:
    """Imports the module that a public name lives in (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        return version("epic-retrieval")
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
