"""AdamW with warm-up and linear decay, and saving its state without pickle.

Knows nothing of losses and data.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from epic_retrieval.errors import EpicError


def adamw(
    groups: Iterable[tuple[Iterable[nn.Parameter], float]],
    decay: float,
    betas: tuple[float, float] = (0.9, 0.98),
) -> torch.optim.AdamW:
    """AdamW over (parameters, learning rate) groups; weight decay on matrices only.

    Parameters that do not require gradients are left out. On a GPU the fused kernels run.
    """
    settings = []
    for parameters, rate in groups:
        kept = [parameter for parameter in parameters if parameter.requires_grad]
        matrices = [parameter for parameter in kept if parameter.ndim > 1]
        others = [parameter for parameter in kept if parameter.ndim <= 1]
        for part, used in ((matrices, decay), (others, 0.0)):
            if part:
                settings.append({"params": part, "lr": rate, "base_lr": rate, "weight_decay": used})
    on_gpu = all(p.device.type == "cuda" for group in settings for p in group["params"])  # type: ignore[attr-defined]
    return torch.optim.AdamW(settings, betas=betas, fused=on_gpu or None)


def set_rate(optimizer: torch.optim.Optimizer, step: int, warmup: int, steps: int) -> None:
    """Set the learning rates of step `step` of `steps`: linear warm-up, then linear decay to 0."""
    factor = min((step + 1) / max(1, warmup), (steps - step) / max(1, steps - warmup))
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def save_state(
    path: Path,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    write: bool = True,
) -> None:
    """Write trained weights, optimizer moments and the number of finished steps; all or nothing.

    Args:
        path: a `.safetensors` file, replaced at once.
        step: number of finished steps.
        module: its parameters that require gradients are saved, by name.
        optimizer: over these parameters.
        write: False in all processes but one; parameters that are spread over processes are put
            together, for which each of them must call this.
    """
    tensors: dict[str, Tensor] = {"step": torch.tensor(step)}
    for name, parameter in _trained(module):
        tensors[f"weights/{name}"] = _whole(parameter)
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}/{name}"] = _whole(value)
    if not write:
        return
    partial = path.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in tensors.items()}, partial)
    partial.replace(path)


def load_state(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Read what `save_state` wrote; return the number of finished steps, 0 without a file.

    Raises:
        EpicError: when the file is damaged or of another model.
    """
    if not path.is_file():
        return 0
    try:
        tensors = load_file(path)
        step = int(tensors.pop("step"))
        for name, parameter in _trained(module):
            value = tensors.pop(f"weights/{name}")
            with torch.no_grad():
                parameter.copy_(_spread(value, parameter))
            moments = [key for key in tensors if key.partition("/")[2] == name]
            if moments:
                optimizer.state[parameter] = {
                    key.partition("/")[0]: _moment(tensors.pop(key), parameter) for key in moments
                }
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise EpicError(
            f"{path} is damaged, or of a training with another model: {error!r}; remove it to"
            " start again"
        ) from error
    if tensors:
        raise EpicError(
            f"{path} is of a training with another model: it also has {min(tensors)!r};"
            " remove it to start again"
        )
    return step


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def _whole(value: Tensor) -> Tensor:
    """On the CPU, of all processes together."""
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.detach().cpu()


def _spread(value: Tensor, like: Tensor) -> Tensor:
    """Where and how `like` is held."""
    if value.shape != like.shape:
        raise RuntimeError(f"shape {tuple(value.shape)}, not {tuple(like.shape)}")
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)


def _moment(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """A parameter's moment where the parameter is; torch keeps a count of steps on the CPU."""
    return _spread(value, parameter) if value.ndim else value
