"""AdamW with warm-up and linear decay, and saving its state without pickle.

Knows nothing of losses and data.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def adamw(
    groups: Iterable[tuple[Iterable[nn.Parameter], float]], decay: float
) -> torch.optim.AdamW:
    """AdamW over (parameters, learning rate) groups; weight decay on matrices only."""
    settings = []
    for parameters, rate in groups:
        kept = list(parameters)
        matrices = [parameter for parameter in kept if parameter.ndim > 1]
        others = [parameter for parameter in kept if parameter.ndim <= 1]
        for part, used in ((matrices, decay), (others, 0.0)):
            settings.append({"params": part, "lr": rate, "base_lr": rate, "weight_decay": used})
    return torch.optim.AdamW(settings, betas=(0.9, 0.98))


def set_rate(optimizer: torch.optim.Optimizer, step: int, warmup: int, steps: int) -> None:
    """Set the learning rates of step `step` of `steps`: linear warm-up, then linear decay to 0."""
    factor = min((step + 1) / max(1, warmup), (steps - step) / max(1, steps - warmup))
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def save_state(
    path: Path, step: int, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer
) -> None:
    """Write weights, optimizer moments and the number of finished steps; all or nothing."""
    tensors: dict[str, Tensor] = {"step": torch.tensor(step)}
    for name, module in modules.items():
        tensors |= {
            f"{name}/{key}": value.contiguous() for key, value in module.state_dict().items()
        }
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": value for key, value in moments.items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(path)


def load_state(path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> int:
    """Read what `save_state` wrote; return the number of finished steps, 0 without a file."""
    if not path.is_file():
        return 0
    tensors = load_file(path)
    for name, module in modules.items():
        start = f"{name}/"
        module.load_state_dict(
            {
                key.removeprefix(start): value
                for key, value in tensors.items()
                if key.startswith(start)
            }
        )
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, moment = key.split("/")
            state.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    return int(tensors["step"])
