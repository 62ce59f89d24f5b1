"""The keys and values of a task's prompt: computed once, shared by all of its queries.

Attention is causal, so what stands before a query does not depend on it. Knows nothing of tasks and
texts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


@dataclass(frozen=True, eq=False)
class Prefix:
    """Per layer, keys and values of one prompt of P tokens: (1, key-value heads, P, head size)."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        """P, the number of tokens and vectors, the beginning token included."""
        return self.keys[0].shape[-2]

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def as_cache(self) -> Cache:
        """A cache that a forward pass reads and cannot change; differentiable, safe for threads."""
        pairs = zip(self.keys, self.values, strict=True)
        return Cache(layers=[_SharedLayer(keys, values) for keys, values in pairs])


class _SharedLayer(DynamicLayer):
    """One layer of a shared prefix, whose `update` joins and never stores.

    transformers' own layer would append each batch's keys to the prefix, even with use_cache=False.
    This one keeps every key on sliding-window layers too; the attention mask does the sliding.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None  # noqa: S101  (set at birth; the base class allows None)
        assert self.values is not None  # noqa: S101
        return _joined(self.keys, key_states), _joined(self.values, value_states)


def _joined(shared: Tensor, own: Tensor) -> Tensor:
    return torch.cat([shared.expand(own.shape[0], -1, -1, -1), own], dim=-2)
