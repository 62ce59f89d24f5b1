"""Linear layers for inference on a CPU: weights laid out once for the kernel, or in 8 bits.

A layer's matrix product otherwise lays out the weights anew in every call, which costs a single
query a third of its time. Knows nothing of what the layers are for.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class PrepackedLinear(nn.Module):
    """A linear layer whose weights lie as oneDNN's kernel wants them; the same results in float32.

    Its weights are not trained. Its state is that of the layer it replaces.

    Args:
        linear: in float32, on a CPU.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias: Tensor | None = linear.bias
        # A plain attribute: as a buffer it would enter the state in a layout that nothing reads.
        self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(  # noqa: SLF001
            linear.weight.detach().contiguous()
        )

    @property
    def weight(self) -> Tensor:
        """(out, in) float32, a copy; for whoever reads a layer's weights, as DoRA does."""
        return self.packed.to_dense()

    def forward(self, states: Tensor) -> Tensor:
        """(..., in) float32 to (..., out) float32."""
        if torch.is_grad_enabled() and states.requires_grad:
            return nn.functional.linear(states, self.weight, self.bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
            states, self.packed, self.bias, "none", [], ""
        )
        return out

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:  # noqa: ANN401
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, one scale per output channel, and activations per call.

    Three to four times faster than float32, at a small loss. The scale of the activations is that
    of a whole forward pass, so a text's vector depends a little on what it is batched with.

    Args:
        linear: in float32, on a CPU.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        # Symmetric: no zero points.
        scales = weight.abs().amax(dim=1).clamp_min(1e-12) / 127
        zeros = torch.zeros(len(scales), dtype=torch.long)
        with warnings.catch_warnings():
            # torch will drop quantised tensors some day; its own replacement needs a compiler.
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
            quantised = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
        bias: Tensor | None = linear.bias  # torch says it is always there
        bias = None if bias is None else bias.detach()
        self.packed = torch.ops.quantized.linear_prepack(quantised, bias)

    def forward(self, states: Tensor) -> Tensor:
        """(..., in) float32 to (..., out) float32."""
        out: Tensor = torch.ops.quantized.linear_dynamic(states, self.packed, True)
        return out


def prepack(model: nn.Module) -> None:
    """Replace the linear layers of a model in place, where that is possible."""

    def possible(linear: nn.Linear) -> bool:
        weight = linear.weight
        return weight.device.type == "cpu" and weight.dtype == torch.float32

    if torch.backends.mkldnn.is_available():
        _replace(model, lambda linear: PrepackedLinear(linear) if possible(linear) else linear)


def quantise(model: nn.Module) -> None:
    """Replace the linear layers of a model in place."""
    _replace(model, Int8Linear)


def _replace(model: nn.Module, made: Callable[[nn.Linear], nn.Module]) -> None:
    for path, parent in list(model.named_modules()):
        if "lora_" in path:
            continue  # small, and peft asks such layers for their weights' dtype
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, made(child))
