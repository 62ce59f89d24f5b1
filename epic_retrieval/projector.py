"""What makes prompt vectors: g, the MLP of Eq. 3, and the trained vectors of Table 5.

Knows nothing of prompts and tasks.
"""

import torch
from torch import Tensor, nn


class Projector(nn.Module):
    """Linear, GELU, linear, all d -> d with biases.

    Args:
        dimension: d, the width of the model's hidden states and token embeddings.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.dimension = dimension
        self.hidden = nn.Linear(dimension, dimension)
        self.output = nn.Linear(dimension, dimension)

    def forward(self, states: Tensor) -> Tensor:
        """Map raw final hidden states (..., d) to prompt vectors (..., d), in g's dtype."""
        hidden = nn.functional.gelu(self.hidden(states.to(self.hidden.weight.dtype)))
        projected: Tensor = self.output(hidden)
        return projected

    @torch.no_grad()
    def scale_to(self, states: Tensor, rms: float) -> None:
        """Scale the output layer so that `states` (n, d) map to vectors of root mean square `rms`.

        Final hidden states are orders of magnitude larger than token embeddings; without this the
        first prompts would drown the text around them.
        """
        factor = rms / self(states).float().pow(2).mean().sqrt().clamp_min(1e-12)
        self.output.weight.mul_(factor)
        self.output.bias.mul_(factor)


class LearnedTokens(nn.Module):
    """Trained vectors in place of demonstrations or before an instruction (Table 5).

    Args:
        count: number of vectors.
        dimension: d.
    """

    def __init__(self, count: int, dimension: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(count, dimension))

    def forward(self) -> Tensor:
        """(count, d), in the order in which a prompt takes them."""
        table: Tensor = self.table
        return table

    @torch.no_grad()
    def scale_to(self, rms: float) -> None:
        """Scale the vectors to this root mean square, that of the model's token embeddings."""
        self.table.mul_(rms / self.table.pow(2).mean().sqrt())
