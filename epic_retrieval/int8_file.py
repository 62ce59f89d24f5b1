"""Weights on disk in 8 bits: a quarter of their size in float32; in memory they are floats again.

A matrix is rounded row by row, with one scale each; everything else is kept in float16. Knows
nothing of models and what they are for.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

INT8_NAME = "model.int8.safetensors"
_SCALE = ".scale"


def write_int8(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write `INT8_NAME` into a folder.

    Args:
        weights: floats of any dtype and shape, by name.
        folder: exists.
    """
    state: dict[str, Tensor] = {}
    for name, weight in weights.items():
        values = weight.detach().float().cpu()
        if values.ndim != 2:
            state[name] = values.half()
            continue
        scale = values.abs().amax(dim=1, keepdim=True) / 127  # 0 for a row of zeros
        state[name] = (values / scale.clamp_min(1e-12)).round().to(torch.int8)
        state[name + _SCALE] = scale
    partial = folder / f"{INT8_NAME}.partial"
    save_file(state, partial, metadata={"format": "pt"})
    partial.replace(folder / INT8_NAME)


def read_int8(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights that `write_int8` wrote, as floats."""
    state = load_file(folder / INT8_NAME)
    scales = {
        name.removesuffix(_SCALE): state.pop(name) for name in list(state) if name.endswith(_SCALE)
    }
    return {
        name: (weight.float() * scales[name] if name in scales else weight).to(dtype)
        for name, weight in state.items()
    }
