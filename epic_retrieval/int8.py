"""Linear layers in 8 bits on a CPU: weights per output channel, activations per call.

Three to four times faster than float32 there, at a small loss. The scale of the activations is that
of a whole forward pass, so a text's vector depends a little on what it is batched with. Knows
nothing of what the layers are for.
"""

import warnings

import torch
from torch import Tensor, nn


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, one scale per output channel.

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


def quantise(model: nn.Module) -> None:
    """Replace every linear layer of a model in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child))
