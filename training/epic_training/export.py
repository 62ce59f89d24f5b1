"""A trained checkpoint becomes a folder to hand on: plain weights, what loads them, a card.

Two layouts: `epic`, which `EpicEncoder.from_pretrained` loads, and `sentence-transformers`, which
that library loads, for queries without demonstrations. Knows nothing of training and of the hub.
"""

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import safe_open

from epic_retrieval.checkpoint import (
    LEARNED_NAME,
    POOLING_NAME,
    PROJECTOR_NAME,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from epic_retrieval.encoder import DEFAULT_TASK
from epic_retrieval.errors import InputError
from epic_retrieval.index._lock import exclusive
from epic_retrieval.pooling import LatentPooling
from epic_retrieval.tasks import Task, load_task
from epic_training.export_card import write_card
from epic_training.export_markdown import without_folders
from epic_training.export_sentence_transformers import (
    check_exportable,
    save_sentence_transformers,
)

Layout = Literal["epic", "sentence-transformers"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def export_checkpoint(
    folder: str | Path | None,
    out: str | Path,
    *,
    merge: bool = True,
    layout: str = "epic",
    dtype: str | None = None,
    task: Task | str | None = None,
    licence: str | None = None,
) -> Path:
    """Write a checkpoint as a complete folder that needs no other one.

    Happens on the CPU, in float32: 4 bytes of memory for each weight. The folder appears when it is
    complete, or not at all.

    Args:
        folder: a checkpoint folder or hub id; None for the model bundled with the package.
        out: the folder to make; an empty one may be there.
        merge: put the weights of a LoRA adapter into those of its base model. False keeps the
            adapter, and the exported folder goes on naming its base model.
        layout: "epic" keeps every mode. "sentence-transformers" keeps queries behind the
            instruction of one task, without demonstrations; see
            `epic_training.export_sentence_transformers` for what is equal and what is not.
        dtype: "float32", "bfloat16" or "float16" of the written weights. None writes what keeps
            every vector as it is: float32 where an adapter was merged, since the sums of base and
            adapter would be rounded in half precision, else the dtype that they are stored in.
        task: whose instruction sentence-transformers puts before queries; None takes "web-search".
        licence: for the model card; None takes what the folder's `run.json` or README.md says.

    Returns:
        The path of `out`.

    Raises:
        InputError: for an `out` that holds something, an unknown layout or dtype, or a model that
            the layout cannot express.
        CheckpointError: the checkpoint cannot be loaded.
        PassageIndexError: another process is writing `out`.
    """
    chosen = _checked(layout, dtype, merge=merge, task=task)
    found = load_task(task or DEFAULT_TASK) if not isinstance(task, Task) else task
    _check_free(Path(out))
    checkpoint = load_checkpoint(folder, device="cpu", dtype=torch.float32)
    if chosen == "sentence-transformers":
        check_exportable(checkpoint, found)
    merged = merge and checkpoint.adapter is not None
    source = checkpoint.folders[0]
    if merged:
        checkpoint = _merged(checkpoint)
    _cast(checkpoint, source, None if dtype is None else _DTYPES[dtype], merged=merged)
    with _appearing(Path(out)) as unfinished:
        if chosen == "epic":
            # Whoever gets the folder has no use for where things lay on this machine.
            handed_on = without_folders(dict(checkpoint.config.training))
            config = replace(checkpoint.config, training=handed_on)
            save_checkpoint(replace(checkpoint, config=config), unfinished)
        else:
            save_sentence_transformers(checkpoint, found, unfinished)
        write_card(
            unfinished,
            source,
            name=Path(out).resolve().name,
            config=checkpoint.config,
            query_task=found if chosen == "sentence-transformers" else None,
            licence=licence,
        )
    return Path(out)


def _checked(layout: str, dtype: str | None, *, merge: bool, task: Task | str | None) -> Layout:
    """The layout, when all options are known and go together."""
    known: list[Layout] = [one for one in LAYOUTS if one == layout]
    if not known:
        raise InputError(f"layout is {layout!r}; expected one of {', '.join(LAYOUTS)}")
    if dtype is not None and dtype not in _DTYPES:
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(_DTYPES)}")
    if layout == "sentence-transformers" and not merge:
        raise InputError(
            "sentence-transformers gets plain weights, so an adapter has to be merged; leave merge"
            ' on, or use layout="epic"'
        )
    if layout == "epic" and task is not None:
        raise InputError(
            "a task was given, but an EPIC folder encodes any task; leave it out, or use"
            ' layout="sentence-transformers"'
        )
    return known[0]


def _merged(checkpoint: Checkpoint) -> Checkpoint:
    """The same model without the adapter's layers; `load_checkpoint` has added up the weights."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All adapters are already merged")
        plain = checkpoint.adapter.merge_and_unload()
    if plain is not checkpoint.backbone.model:
        raise RuntimeError("peft gave another model than the one that it was put around")
    # From memory now: the files of the base model and of the adapter no longer say what it is.
    return replace(
        checkpoint, adapter=None, folders=(), config=replace(checkpoint.config, base_model=None)
    )


def _cast(checkpoint: Checkpoint, source: Path, dtype: torch.dtype | None, *, merged: bool) -> None:
    """Give weights the dtype that they are to be written in, each part its own."""
    pooling = checkpoint.backbone.pooling
    parts: list[tuple[torch.nn.Module | None, list[Path]]] = [
        (checkpoint.projector, [source / PROJECTOR_NAME]),
        (checkpoint.learned, [source / LEARNED_NAME]),
        (pooling if isinstance(pooling, LatentPooling) else None, [source / POOLING_NAME]),
    ]
    if checkpoint.adapter is not None:
        parts.append((checkpoint.adapter, [source / "adapter_model.safetensors"]))
    else:
        files = [] if merged else sorted(source.glob("model*.safetensors"))
        parts.append((checkpoint.backbone.model, files))
    for part, files in parts:
        if part is not None:
            part.to(dtype or _stored_dtype(files))


def _stored_dtype(files: Sequence[Path]) -> torch.dtype:
    """The dtype that holds all tensors of some files; float32 for none or for others."""
    found = set()
    for path in files:
        with safe_open(path, framework="pt") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    dtypes = [_STORED.get(name, torch.float32) for name in sorted(found)]
    return reduce(torch.promote_types, dtypes) if dtypes else torch.float32


def _check_free(out: Path) -> None:
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists():
        raise InputError(
            f"{out} exists, and nothing is replaced: choose another folder, or remove this one"
        )


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` if the block ends without an error."""
    out = out.resolve()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(out.with_name(f".{out.name}.lock"), str(out)):
            _check_free(out)
            unfinished = out.with_name(f".{out.name}.exporting")
            # Under the lock, so what lies there was left by an export that was killed.
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            try:
                yield unfinished
                if out.is_dir():
                    out.rmdir()
                unfinished.rename(out)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"{out} cannot be written ({error}); choose a folder that you may write to, on a disk"
            " with enough space"
        ) from error
