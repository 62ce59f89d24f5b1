"""What adapters of frameworks share: one loaded model a process, and tasks from plain arguments.

Knows no framework. Loads torch when a model is wanted, not before.
"""

import reprlib
import threading
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from epic_retrieval.errors import InputError
from epic_retrieval.tasks import Demonstration, Task, load_task
from epic_retrieval.tasks.task import located

if TYPE_CHECKING:
    import torch

    from epic_retrieval.encoder import EpicEncoder

DemonstrationLike = Demonstration | tuple[str, str] | Mapping[str, str]

_DEFAULT_TASK = "web-search"
_BUNDLED = "epic-mini"
_Key = tuple[str | None, str | None, str | None]

_lock = threading.Lock()
_loaded: "weakref.WeakValueDictionary[_Key, EpicEncoder]" = weakref.WeakValueDictionary()


def shared_encoder(
    model: str | Path | None = None,
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype | None" = None,
) -> "EpicEncoder":
    """Load an encoder, or return the one already loaded from the same model, device and dtype.

    It is held as long as somebody uses it. A folder whose files change meanwhile is not read again.

    Args:
        model: folder or hub id; None, or the name "epic-mini", is the bundled model, so that the
            `name` of an encoder that was loaded here leads to it again.
        device: as in `EpicEncoder.from_pretrained`.
        dtype: as in `EpicEncoder.from_pretrained`.

    Raises:
        CheckpointError: when the model cannot be loaded.
        InputError: a device that torch does not know, or has not got here.
    """
    from epic_retrieval.encoder import EpicEncoder

    if model == _BUNDLED and not Path(model).is_dir():
        model = None
    name, where, kind = (None if part is None else str(part) for part in (model, device, dtype))
    with _lock:  # two threads that want the same model must not both load it
        encoder = _loaded.get((name, where, kind))
        if encoder is None:
            encoder = EpicEncoder.from_pretrained(model, device=device, dtype=dtype)
            _loaded[name, where, kind] = encoder
    return encoder


def open_encoder(
    encoder: "EpicEncoder | None" = None,
    *,
    model: str | Path | None = None,
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype | None" = None,
) -> "EpicEncoder":
    """The encoder that was given, or else a shared one.

    Raises:
        InputError: an encoder together with what to load one from, or something that is none; or
            a device that is not there.
        CheckpointError: when the model cannot be loaded.
    """
    if encoder is None:
        return shared_encoder(model, device, dtype)
    from epic_retrieval.encoder import EpicEncoder

    if not isinstance(encoder, EpicEncoder):
        raise InputError(
            f"encoder is {reprlib.repr(encoder)}; expected an EpicEncoder, which"
            " EpicEncoder.from_pretrained(...) returns; to load by name, use model="
        )
    given = {"model": model, "device": device, "dtype": dtype}
    if clashing := [name for name, value in given.items() if value is not None]:
        raise InputError(
            f"an encoder was given together with {', '.join(clashing)}; pass either a loaded"
            " encoder, or what to load it from"
        )
    return encoder


def as_task(
    task: Task | str | Path | Mapping[str, object] | None = None,
    *,
    instruction: str | None = None,
    demonstrations: Iterable[DemonstrationLike] | None = None,
) -> Task:
    """A task from what a user of an adapter may write; nothing at all is "web-search".

    Args:
        task: a Task, the name of a built-in one, the path of a task file, or what `Task.to_dict`
            returns.
        instruction: in place of `task`: one sentence. The task is then called "custom" and is not
            symmetric.
        demonstrations: for `instruction`: `Demonstration`s, (query, passage) pairs, or mappings
            with these two keys.

    Raises:
        InputError: an unknown task, a file that cannot be used, a task together with the other two,
            demonstrations without an instruction, or one that is none of the three forms.
    """
    if instruction is None and demonstrations is None:
        return _one_task(task)
    if task is not None:
        raise InputError(
            "a task was given together with instruction or demonstrations; pass either a task, or"
            " instruction and demonstrations; Task.with_demonstrations replaces those of a task"
        )
    if instruction is None:
        raise InputError(
            "demonstrations were given without an instruction; say with instruction= what they show"
        )
    return Task("custom", instruction, tuple(_demonstrations(demonstrations)))


def _one_task(task: object) -> Task:
    match task:
        case Task():
            return task
        case None:
            return load_task(_DEFAULT_TASK)
        case str() | Path():
            return load_task(task)
        case Mapping():
            return Task.from_dict(task)
        case _:
            raise InputError(
                f"task is {reprlib.repr(task)} ({type(task).__name__}); expected a Task, the name"
                " of a built-in task, or the path of a task file"
            )


def _demonstrations(given: object) -> Iterable[Demonstration]:
    if given is None:
        return
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise InputError(
            f"demonstrations is {reprlib.repr(given)}; expected a list of (query, passage) pairs"
        )
    for number, one in enumerate(given, start=1):
        with located(f"demonstration {number}"):
            match one:
                case Demonstration():
                    yield one
                case Mapping():
                    yield Demonstration.from_dict(one)
                case (query, passage):  # a text is no sequence here
                    yield Demonstration(query, passage)
                case _:
                    raise InputError(
                        f"got {reprlib.repr(one)} ({type(one).__name__}); expected a Demonstration,"
                        ' a (query, passage) pair, or {"query": ..., "passage": ...}'
                    )
