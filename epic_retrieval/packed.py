"""Rows of any lengths in one sequence, without padding, behind one copy of a shared prefix.

transformers' layers run as they are; only attention is ours. A token attends to the prefix in one
product for all tokens together, to its own row in one call per row length, and the two results are
merged by the log-sum-exp of their scores, which is exact. The last layer computes for the end
tokens alone what comes after attention. Without gradients, causal attention and end-token pooling
only. Knows nothing of prompts, tasks and texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from epic_retrieval.prefix import Prefix

NAME = "epic_packed"  # of the attention, among those of transformers
# Their decoder layers are norm, attention, sum, norm, MLP, sum, but OPT's, which may have the norms
# after the sums; the last layer is run in two parts.
FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "opt"})


@dataclass(frozen=True, eq=False)
class Packing:
    """Rows one after the other, equal lengths together.

    Attributes:
        ids: (T,) token ids.
        positions: (T,) of each token behind the prefix.
        runs: (start, rows, length) of rows of equal length.
        ends: (n,) where each row's last token is, in the order that was given.
        prefix: what all rows continue, or None.
    """

    ids: Tensor
    positions: Tensor
    runs: tuple[tuple[int, int, int], ...]
    ends: Tensor
    prefix: Prefix | None


def pack(rows: Sequence[Sequence[int]], prefix: Prefix | None, device: torch.device) -> Packing:
    """Pack n rows of token ids, none of them empty."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    past = 0 if prefix is None else prefix.length
    ids: list[int] = []
    positions: list[int] = []
    ends = [0] * len(rows)
    for i in order:
        ids += rows[i]
        positions += range(past, past + len(rows[i]))
        ends[i] = len(ids) - 1
    runs, start = [], 0
    for length, group in groupby(order, key=lambda i: len(rows[i])):
        count = len(list(group))
        runs.append((start, count, length))
        start += count * length
    numbers = torch.tensor([ids, positions], device=device)
    return Packing(numbers[0], numbers[1], tuple(runs), torch.tensor(ends, device=device), prefix)


def enable_packing(model: PreTrainedModel) -> None:
    """Let packed rows through a model's attention; anything else goes the way it went before."""
    if model.config.model_type in FAMILIES and model.config._attn_implementation == "sdpa":  # noqa: SLF001
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def can_pack(model: PreTrainedModel, positions: int) -> bool:
    """Whether rows can be packed whose last positions are below `positions`.

    Needs `enable_packing`, a CPU (whose fused attention tells the log-sum-exp), and a sliding
    window, where there is one, that is wide enough to see everything.
    """
    window = getattr(model.config, "sliding_window", None)
    return (
        model.config._attn_implementation == NAME  # noqa: SLF001
        and model.device.type == "cpu"
        and (window is None or positions <= window)
    )


@torch.no_grad()
def encode_packed(model: Any, packing: Packing) -> Tensor:  # noqa: ANN401 (a decoder of transformers)
    """(n, d) final hidden states at each row's last token, in the model's dtype."""
    run = _encode_opt if model.config.model_type == "opt" else _encode_rotary
    return run(model, packing)


def _encode_rotary(model: Any, packing: Packing) -> Tensor:  # noqa: ANN401
    states = model.get_input_embeddings()(packing.ids[None])  # (1, T, d)
    rotation = model.rotary_emb(states, position_ids=packing.positions[None])
    shared = {"position_embeddings": rotation, "attention_mask": None, "packing": packing}
    *layers, last = model.layers[: model.config.num_hidden_layers]
    for layer in layers:
        states = layer(states, **shared)
    attended, _ = last.self_attn(hidden_states=last.input_layernorm(states), **shared)
    ends = (states + attended)[0, packing.ends]  # (n, d)
    ends = ends + last.mlp(last.post_attention_layernorm(ends))
    final: Tensor = model.norm(ends)
    return final


def _encode_opt(model: Any, packing: Packing) -> Tensor:  # noqa: ANN401
    def through(layer: nn.Module | None, states: Tensor) -> Tensor:
        return states if layer is None else layer(states)

    decoder, places = model.decoder, model.decoder.embed_positions
    states = through(decoder.project_in, model.get_input_embeddings()(packing.ids[None]))
    states = states + nn.functional.embedding(packing.positions + places.offset, places.weight)
    shared = {"attention_mask": None, "packing": packing}
    *layers, last = decoder.layers
    for layer in layers:
        states = layer(states, **shared)
    norms = [last.self_attn_layer_norm, last.final_layer_norm]
    before, after = (norms, [None] * 2) if last.do_layer_norm_before else ([None] * 2, norms)
    attended, _ = last.self_attn(hidden_states=through(before[0], states), **shared)
    ends = through(after[0], (states + attended)[0, packing.ends])  # (n, d)
    inner = last.activation_fn(last.fc1(through(before[1], ends)))
    ends = through(after[1], ends + last.fc2(inner))
    return through(decoder.project_out, through(decoder.final_layer_norm, ends))


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    packing: Packing | None = None,
    **kwargs: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor | None]:
    """Attention of query (1, H, T, D) to key and value (1, H_kv, T, D): (1, T, H, D)."""
    if packing is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return plain
    layer: Any = module.layer_idx
    model: Any = module.config
    # Of the last layer's results only the end tokens' are asked for.
    last = layer == model.num_hidden_layers - 1
    heads, tokens, size = query.shape[1:]
    scale = scaling or size**-0.5
    out = (query.new_zeros if last else query.new_empty)(1, tokens, heads, size)
    wide = torch.promote_types(query.dtype, torch.float32)
    normaliser = query.new_empty(1, heads, tokens, dtype=wide)
    for start, rows, length in packing.runs:
        part = slice(start, start + rows * length)
        asked = slice(start + length - 1, part.stop, length) if last else part

        def by_row(tensor: Tensor, part: slice, rows: int = rows) -> Tensor:
            cut: Tensor = tensor[0, :, part].unflatten(1, (rows, -1))
            return cut.transpose(0, 1)  # (n, H, L, D)

        own, weight = _fused(
            by_row(query, asked), by_row(key, part), by_row(value, part), scale, causal=not last
        )
        out[0, asked] = own.transpose(1, 2).flatten(0, 1)
        normaliser[0, :, asked] = weight.transpose(0, 1).flatten(1)
    if packing.prefix is not None:
        keys, values = packing.prefix.keys[layer], packing.prefix.values[layer]
        if last:
            query, normaliser = query[:, :, packing.ends], normaliser[..., packing.ends]
        # Heads that share keys stand in one sequence: (1, H_kv, H / H_kv * T, D).
        past, weight = _fused(
            query.reshape(1, key.shape[1], -1, size), keys, values, scale, causal=False
        )
        share = torch.sigmoid(weight.reshape(normaliser.shape) - normaliser)  # of the prefix
        share = share.transpose(1, 2)[..., None].to(out.dtype)
        past = past.reshape(1, heads, -1, size).transpose(1, 2)
        if last:
            out[:, packing.ends] = torch.lerp(out[:, packing.ends], past, share)
        else:
            out.lerp_(past, share)
    return out, None


def _fused(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, causal: bool
) -> tuple[Tensor, Tensor]:
    """Attention (n, H, L, D) and the log-sum-exp (n, H, L) of its scores."""
    out, weight, *_ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001
        query, key, value, 0.0, causal, scale=scale
    )
    return out, weight
