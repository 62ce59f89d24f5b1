"""Cached contrastive gradients (GradCache, Gao et al. 2021): a large batch in a chunk's memory.

InfoNCE needs all vectors of a batch at once, but not all activations. The forward pass keeps each
chunk's vectors only. Once the gradient of the loss with respect to them is known, the backward pass
re-runs one chunk after the other. That is gradient checkpointing with a chunk as the unit, so
autograd finds the order: a chunk may depend on others' vectors (EPIC's demonstrations), and the
loss is any function of the results. Knows nothing of models, prompts and losses.

What runs twice must do the same twice. torch's random numbers (dropout) are replayed; a generator
of one's own is not, a loop variable that a lambda looks up late has moved on, and a collective
operation would be called by some processes more often than by others: keep all three outside.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")


def in_chunks(
    run: Callable[..., Tensor], chunks: Sequence[Chunk], *shared: object, cached: bool = True
) -> Tensor:
    """`run(chunk, *shared)` for every chunk, one after the other.

    Args:
        run: returns a chunk's vectors, (rows, d).
        chunks: slices of a batch, of any type; one or more.
        shared: what every chunk takes beside itself: vectors of demonstrations, a `Prefix`.
            Gradients reach its tensors.
        cached: False keeps all activations, which is faster and takes the memory of the batch.

    Returns:
        (sum of rows, d), in the order of the chunks.
    """
    if not chunks:
        raise ValueError("no chunks; expected one or more")
    if not cached:
        return torch.cat([run(chunk, *shared) for chunk in chunks])
    return torch.cat([rerun_in_backward(run, chunk, *shared) for chunk in chunks])


def rerun_in_backward(run: Callable[..., Result], *inputs: object) -> Result:
    """`run(*inputs)`, whose activations are not kept but computed again in the backward pass.

    Without gradients it is just run. Whatever `run` returns stays in memory, a `Prefix` for
    example.
    """
    # Random numbers are replayed on the devices of these tensors only. Token ids are lists, and
    # weights no inputs, so that nothing else would name the GPU: dropout would differ, silently.
    seen = [value for value in inputs if isinstance(value, Tensor)]
    if torch.cuda.is_initialized():
        seen.append(torch.empty(0, device="cuda"))
    result: Result = checkpoint(lambda *_: run(*inputs), *seen, use_reentrant=False)
    return result
