"""Pooling: from the states of a text's own tokens to one vector each.

Every pooling takes states (n, L, d) and a mask (n, L) that is true at a text's own tokens, the end
token included, the prompt and the padding excluded, and returns (n, d). Knows no model.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Pooling = Callable[[Tensor, Tensor], Tensor]


def pool_eos(states: Tensor, mask: Tensor) -> Tensor:
    """The state of the end token, a text's last (Eq. 1)."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (positions * mask).argmax(dim=1)
    return states[torch.arange(len(states), device=states.device), last]


def pool_mean(states: Tensor, mask: Tensor) -> Tensor:
    """The mean over a text's own tokens."""
    weights = mask.to(states.dtype)[..., None]
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


class LatentPooling(nn.Module):
    """Latent-attention pooling of NV-Embed (Lee et al. 2025, section 3.1): attend, MLP, mean.

    The states are the queries of a cross-attention whose keys and values are trained latents; an
    MLP follows, then the mean. We add both to the states (residuals), as transformer layers do:
    without them a fresh layer would replace a pretrained model's states by noise.

    There are 8 heads, as in that paper, or the next smaller number that divides d.

    Args:
        dimension: d.
        latents: number of trained latents (512 in that paper).
    """

    def __init__(self, dimension: int, latents: int = 512) -> None:
        super().__init__()
        heads = next(count for count in range(8, 0, -1) if dimension % count == 0)
        self.latents = nn.Parameter(torch.randn(latents, dimension) * dimension**-0.5)
        self.attention = nn.MultiheadAttention(dimension, heads, batch_first=True)
        last = nn.Linear(dimension, dimension)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dimension), nn.Linear(dimension, dimension), nn.GELU(), last
        )
        self.norm = nn.LayerNorm(dimension)
        # Both branches start at zero: training starts from mean pooling.
        for layer in (self.attention.out_proj, last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Pool states (n, L, d) over mask (n, L) to (n, d), in the states' dtype."""
        read = states.to(self.latents.dtype)
        latents = self.latents.expand(len(read), -1, -1)
        attended, _ = self.attention(self.norm(read), latents, latents, need_weights=False)
        read = read + attended
        return pool_mean(read + self.mlp(read), mask).to(states.dtype)
