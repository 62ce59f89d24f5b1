"""A causal decoder that begins as the teacher itself: its words, its positions, its layers.

The teacher is a BERT: layers that normalise after adding, positions that are learned, attention in
both directions, the mean of the last states as the vector. Of transformers' decoders OPT, set to
normalise after adding, has the same layers, so that only two things change: a token no longer sees
what follows it, and one more layer lets the end token take the mean. Most of what the teacher knows
survives that, and distillation restores much of the rest. Knows nothing of files.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import OPTConfig, OPTModel, PreTrainedModel

from epic_retrieval.errors import InputError

_SAMPLED = 64  # positions over which a word is averaged
_EVERY = 100  # a word of so many is one of those over which a position is averaged
_AT_ONCE = 512  # words
_MEAN_SCALE = 2.0  # of values and of outputs: the mean outweighs the end token's own state


def inherited_decoder(
    teacher: PreTrainedModel,
    ids: Sequence[int],
    layers: Sequence[int],
    positions: int,
    special: tuple[int, int, int],
) -> OPTModel:
    """A decoder with the teacher's weights.

    Args:
        teacher: a BertModel.
        ids: of the teacher's vocabulary, for each of the decoder's.
        layers: of the teacher, those that are kept, from 0; one more comes after them.
        positions: of the decoder; beyond the teacher's they begin again.
        special: the decoder's ids of padding, beginning and end.

    Raises:
        InputError: for another family, or layers that the teacher has not.
    """
    theirs: Any = teacher
    config = theirs.config
    if config.model_type != "bert":
        raise InputError(f"the teacher is a {config.model_type}; layers are inherited from a bert")
    if not set(layers) <= set(range(config.num_hidden_layers)):
        raise InputError(
            f"inherit.layers are {list(layers)}; expected some of 0 to"
            f" {config.num_hidden_layers - 1}, which the teacher has"
        )
    model = OPTModel(
        OPTConfig(
            vocab_size=len(ids),
            hidden_size=config.hidden_size,
            word_embed_proj_dim=config.hidden_size,
            ffn_dim=config.intermediate_size,
            num_hidden_layers=len(layers) + 1,
            num_attention_heads=config.num_attention_heads,
            max_position_embeddings=positions,
            activation_function=config.hidden_act,
            do_layer_norm_before=False,
            dropout=0.0,
            attention_dropout=0.0,
            tie_word_embeddings=True,
            pad_token_id=special[0],
            bos_token_id=special[1],
            eos_token_id=special[2],
        )
    )
    words, places = _additive(theirs.embeddings, torch.tensor(ids))
    decoder: Any = model.decoder
    with torch.no_grad():
        decoder.embed_tokens.weight.copy_(words)
        table = decoder.embed_positions
        rows = torch.arange(len(table.weight)) - table.offset
        table.weight.copy_(places[rows.clamp_min(0) % len(places)])
        *kept, last = decoder.layers
        for own, number in zip(kept, layers, strict=True):
            _copy_layer(own, theirs.encoder.layer[number])
        _start_as_mean(last)
    return model


@torch.no_grad()
def _additive(embeddings: Any, ids: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401 (of BERT)
    """(n, d) of words and (p, d) of positions, whose sums come close to what the layers take.

    BERT normalises the sum of word and position, a decoder does not: so the mean over positions,
    and the mean over words of what a position changes.
    """
    word = embeddings.word_embeddings.weight[ids] + embeddings.token_type_embeddings.weight[0]
    position = embeddings.position_embeddings.weight
    some = position[:_SAMPLED]
    words = torch.cat(
        [embeddings.LayerNorm(part[:, None] + some).mean(dim=1) for part in word.split(_AT_ONCE)]
    )
    few = slice(None, None, _EVERY)
    changes = embeddings.LayerNorm(word[few, None] + position) - words[few, None]
    return words, changes.mean(dim=0)


def _copy_layer(own: Any, theirs: Any) -> None:  # noqa: ANN401 (layers of OPT and BERT)
    pairs: list[tuple[nn.Module, nn.Module]] = [
        (own.self_attn.q_proj, theirs.attention.self.query),
        (own.self_attn.k_proj, theirs.attention.self.key),
        (own.self_attn.v_proj, theirs.attention.self.value),
        (own.self_attn.out_proj, theirs.attention.output.dense),
        (own.self_attn_layer_norm, theirs.attention.output.LayerNorm),
        (own.fc1, theirs.intermediate.dense),
        (own.fc2, theirs.output.dense),
        (own.final_layer_norm, theirs.output.LayerNorm),
    ]
    for to, of in pairs:
        to.load_state_dict(of.state_dict())


def _start_as_mean(layer: Any) -> None:  # noqa: ANN401 (a layer of OPT)
    """Attend to all tokens alike and add nothing more; what is zero here learns from there."""
    attention = layer.self_attn
    for linear in (attention.q_proj, attention.v_proj, attention.out_proj, layer.fc2):
        linear.weight.zero_()
        linear.bias.zero_()
    for linear in (attention.v_proj, attention.out_proj):
        linear.weight.fill_diagonal_(_MEAN_SCALE)
