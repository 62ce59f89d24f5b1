"""The loop of one stage of the bundled model's training; it goes on where it was stopped.

Knows nothing of losses and data.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from epic_retrieval.projector import Projector
from epic_training.optimization import adamw, load_state, save_state, set_rate
from epic_training.step import Parts
from epic_training.token_table import summed_in_place

_SAVE_EVERY = 50
SCHEDULE = (
    "steps",
    "warmup",
    "learning_rate",
    "table_learning_rate",
    "projector_learning_rate",
    "bfloat16",
)


def run_stage(
    name: str,
    plan: Mapping[str, Any],
    decay: float,
    compute: Callable[[int], tuple[Tensor, Parts]],
    module: nn.Module,
    out: Path,
) -> None:
    """Train the parameters of a module; state and log are named after the stage.

    Args:
        name: of the stage.
        plan: `steps`, `warmup`, `learning_rate`; `projector_learning_rate` where there is a
            projector; `table_learning_rate` of the token embeddings, by default as the rest;
            `bfloat16`: products in half precision where that is fast (`half_is_fast`).
        decay: weight decay of matrices.
        compute: from the number of a step to its loss and what to log of it.
        module: has the decoder as `model` and, where it is trained, a `projector`.
        out: folder of `NAME.safetensors` and `NAME.jsonl`.
    """
    model: Any = module.model
    steps = plan["steps"]
    optimizer = adamw(_groups(module, plan), decay)
    state = out / f"{name}.safetensors"
    first = load_state(state, module, optimizer)
    model.train()
    recent: list[dict[str, float]] = []
    progress = tqdm(total=steps, initial=first, desc=name, mininterval=10)
    started = time.monotonic()
    with (out / f"{name}.jsonl").open("a", encoding="utf-8") as log:
        for step in range(first, steps):
            set_rate(optimizer, step, plan["warmup"], steps)
            with summed_in_place(model.get_input_embeddings()):
                with _precision(plan, model.device.type):
                    loss, parts = compute(step)
                if loss.requires_grad:  # not where only a projector learns, and nothing is shown
                    loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            recent.append({key: value.item() for key, value in parts.items()})
            progress.update()
            if (step + 1) % _SAVE_EVERY == 0 or step + 1 == steps:
                save_state(state, step + 1, module, optimizer)
                mean = _means(recent)
                seconds = round(time.monotonic() - started)
                log.write(json.dumps({"step": step + 1, **mean, "seconds": seconds}) + "\n")
                log.flush()
                progress.set_postfix(mean)
                recent.clear()
    progress.close()


def _means(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of every key over the records that have it."""
    keys = dict.fromkeys(key for record in records for key in record)
    return {key: float(np.mean([one[key] for one in records if key in one])) for key in keys}


def half_is_fast(device: str) -> bool:
    """Whether bfloat16 takes less time than float32: on a CPU that lacks it, six times as much."""
    return device != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001


def _precision(plan: Mapping[str, Any], device: str) -> Any:  # noqa: ANN401 (a context of torch, or none)
    half = plan.get("bfloat16") and half_is_fast(device)
    return torch.autocast(device, torch.bfloat16) if half else nullcontext()


def _groups(module: nn.Module, plan: Mapping[str, Any]) -> list[tuple[list[nn.Parameter], float]]:
    """Parameters with their learning rates."""
    model: Any = module.model
    table = model.get_input_embeddings().weight
    body = [parameter for parameter in model.parameters() if parameter is not table]
    rate = plan["learning_rate"]
    groups = [(body, rate), ([table], plan.get("table_learning_rate", rate))]
    projector = getattr(module, "projector", None)
    if isinstance(projector, Projector):
        groups.append((list(projector.parameters()), plan["projector_learning_rate"]))
    return groups
