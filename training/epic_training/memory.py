"""Gradient checkpointing of a model's layers, also behind a shared prefix.

Knows nothing of training steps.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from epic_retrieval.errors import InputError


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Keep one layer's activations at a time; they are computed again in the backward pass.

    transformers leaves a layer out when it gets a cache, because most caches are written to. Ours
    is only read, so that layers say they can.
    """
    layers = _layers(model)
    if not layers or not all(hasattr(layer, "_can_checkpoint_with_cache") for layer in layers):
        raise InputError(
            f"this release of transformers cannot checkpoint the layers of {type(model).__name__}"
            " behind a shared prompt; set checkpoint_layers: false (gradient_cache saves memory"
            " too), or upgrade transformers"
        )
    enable = getattr(model, "activation_checkpointing_enable", None)  # its name from 5.2x on
    (enable or model.gradient_checkpointing_enable)()
    for layer in layers:
        layer._can_checkpoint_with_cache = True  # noqa: SLF001


@contextmanager
def whole_layers(model: PreTrainedModel) -> Iterator[None]:
    """No checkpointing inside: for a pass that writes keys and values."""
    switched = [layer for layer in _layers(model) if layer.gradient_checkpointing]
    for layer in switched:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer in switched:
            layer.gradient_checkpointing = True


def _layers(model: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
