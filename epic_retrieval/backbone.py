"""A language model as an encoder: token ids behind a shared prefix in, one pooled state each out.

Works with every decoder that transformers' `AutoModel` gives and whose layers take a key-value
cache; Llama, Mistral, Qwen2, Qwen3, Gemma, Phi-3 and OPT are tested.
Knows no prompts, tasks or texts.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from epic_retrieval.linear import Int8Linear
from epic_retrieval.packed import can_pack, enable_packing, encode_packed, pack
from epic_retrieval.pooling import Pooling, pool_eos
from epic_retrieval.prefix import Prefix


class Backbone:
    """Runs a model on padded batches.

    Gradients flow where the caller leaves them on; so training and inference share this code.

    Args:
        model: returns `last_hidden_state`, after its final norm; no language-model head.
        pooling: what becomes of the states of a text's own tokens.
        causal: False lets every token see its whole sequence; then there are no shared prefixes.
    """

    def __init__(
        self, model: PreTrainedModel, *, pooling: Pooling = pool_eos, causal: bool = True
    ) -> None:
        self.model = model
        self.pooling = pooling
        self.causal = causal
        if model.device.type == "cpu":
            enable_packing(model)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, keys and values."""
        return self.model.dtype

    @property
    def precision(self) -> str:
        """The dtype by name, or "int8" where linear layers are quantised."""
        quantised = any(isinstance(module, Int8Linear) for module in self.model.modules())
        return "int8" if quantised else str(self.dtype)

    @property
    def dimension(self) -> int:
        """d, the width of final hidden states and of token embeddings."""
        config = self.model.config
        # Between its layers OPT may have another.
        return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)

    @property
    def max_positions(self) -> int:
        """Most positions of prefix and text together."""
        config = self.model.config
        rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
        if rope.get("rope_type") in {"longrope", "dynamic"}:
            # Beyond this length such models change the rotation of all positions, also of those
            # that a shared prefix holds already.
            original = rope.get("original_max_position_embeddings")
            return int(original or config.original_max_position_embeddings)
        return int(config.max_position_embeddings)

    def token_embeddings(self, ids: Sequence[int]) -> Tensor:
        """(n, d) input embeddings of n token ids, as the model's first layer takes them."""
        index = torch.tensor(ids, dtype=torch.long, device=self.device)
        embedded: Tensor = self.model.get_input_embeddings()(index)
        return embedded

    @torch.no_grad()
    def embedding_rms(self) -> float:
        """Root mean square of all token embeddings: the size that prompt vectors should have."""
        table: Any = self.model.get_input_embeddings()
        vocabulary = table.weight.shape[0]
        return float(self.token_embeddings(range(vocabulary)).float().pow(2).mean().sqrt())

    def embed(self, pieces: Sequence[Sequence[int] | Tensor]) -> Tensor:
        """(P, d): token ids embedded, vectors (n, d) as they are, one after the other."""
        rows = [
            piece.to(self.device, self.dtype)
            if isinstance(piece, Tensor)
            else self.token_embeddings(piece)
            for piece in pieces
        ]
        return torch.cat(rows) if rows else torch.empty(0, self.dimension, device=self.device)

    def prefix(self, embeddings: Tensor) -> Prefix:
        """Keys and values of a prompt.

        Args:
            embeddings: (P, d), P > 0, from `embed`.
        """
        # Without the model's config: a cache that knows of sliding windows would drop the
        # earliest keys, and with them the count of positions.
        cache = DynamicCache()
        self.model(inputs_embeds=embeddings[None], past_key_values=cache, use_cache=True)
        layers: list[Any] = cache.layers
        return Prefix(
            tuple(layer.keys for layer in layers), tuple(layer.values for layer in layers)
        )

    def encode(
        self, rows: Sequence[Sequence[int]], prefix: Prefix | None = None, every: int = 0
    ) -> Tensor:
        """Pooled raw final hidden states of each row's tokens.

        Args:
            rows: n lists of token ids, none empty, each ending in the end token.
            prefix: what all rows continue; None when nothing precedes them.
            every: 0 for one state per row, else the states of every so many tokens, counted back
                from each row's last (`sampled_counts` says how many), that one included.

        Returns:
            (n, d) float32, not normalised; with `every`, (sum of counts, d), row after row.
        """
        if self._can_pack(rows, prefix, every):
            return _widened(encode_packed(self.model, pack(rows, prefix, self.device)))
        return self.encode_padded(rows, prefix, every)

    def encode_padded(
        self, rows: Sequence[Sequence[int]], prefix: Prefix | None = None, every: int = 0
    ) -> Tensor:
        """The same as `encode` for every family, method and device, with gradients, and slower."""
        ids, mask = self._padded(rows)
        if prefix is None:
            output = self.model(
                input_ids=ids, attention_mask=self._attention_mask(mask), use_cache=False
            )
        else:
            if not self.causal:
                raise ValueError("no prefix can be shared where attention is bidirectional")
            # The mask must cover the prefix too: a mask of the new tokens alone is silently wrong.
            past = mask.new_ones(len(rows), prefix.length)
            output = self.model(
                input_ids=ids,
                attention_mask=torch.cat([past, mask], dim=1),
                past_key_values=prefix.as_cache(),
                use_cache=False,
            )
        return self._pooled(output.last_hidden_state, mask.bool(), every)

    def _can_pack(self, rows: Sequence[Sequence[int]], prefix: Prefix | None, every: int) -> bool:
        positions = max(map(len, rows)) + (0 if prefix is None else prefix.length)
        simple = self.causal and self.pooling is pool_eos and not every
        return (
            simple
            and not torch.is_grad_enabled()
            and not self.model.training
            and can_pack(self.model, positions)
        )

    def encode_behind(
        self, start: Sequence[int], rows: Sequence[Sequence[int]], every: int = 0
    ) -> Tensor:
        """The same as `encode` behind a prompt of a few tokens: cheaper than a shared prefix."""
        if not start:
            return self.encode(rows, every=every)
        if self.pooling is pool_eos and not every:
            return self.encode([[*start, *row] for row in rows])
        return self.encode_unshared(rows, self.token_embeddings(start), every)

    def encode_unshared(
        self,
        rows: Sequence[Sequence[int]],
        prompts: Tensor | Sequence[Tensor],
        every: int = 0,
    ) -> Tensor:
        """The same as `encode` with the prompt run again for every row, as in the paper.

        Args:
            rows: as in `encode`.
            prompts: (P, d) of one prompt for all rows, or one such tensor per row; from `embed`.
            every: as in `encode`.
        """
        if isinstance(prompts, Tensor):
            prompts = [prompts] * len(rows)
        own = self.token_embeddings([token for row in rows for token in row])
        parts = own.split([len(row) for row in rows])
        sequences = [torch.cat(pair) for pair in zip(prompts, parts, strict=True)]
        ends = torch.tensor([len(sequence) for sequence in sequences], device=self.device)
        starts = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        positions = torch.arange(int(ends.max()), device=self.device)[None, :]
        mask = positions < ends[:, None]  # (n, T)
        output = self.model(
            inputs_embeds=pad_sequence(sequences, batch_first=True),
            attention_mask=self._attention_mask(mask.long()),
            use_cache=False,
        )
        return self._pooled(output.last_hidden_state, mask & (positions >= starts[:, None]), every)

    def _pooled(self, states: Tensor, own: Tensor, every: int) -> Tensor:
        """From (n, L, d) and a mask (n, L) of the rows' own tokens to what `encode` returns."""
        if not every:
            return _widened(self.pooling(states, own))
        from_end = own.flip(1).cumsum(1).flip(1) - 1  # 0 at each row's last own token
        return _widened(states[own & (from_end % every == 0)])

    def _attention_mask(self, mask: Tensor) -> Tensor:
        """What transformers takes for a padding mask (n, T) of ones and zeros."""
        if self.causal:
            return mask
        # A mask with four dimensions is used as it is, by every family and for sliding windows too.
        allowed = mask.bool()[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
        lowest = torch.finfo(self.dtype).min
        return torch.zeros(allowed.shape, dtype=self.dtype, device=self.device).masked_fill(
            ~allowed, lowest
        )

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Right-padded ids and mask, (n, longest). Left padding is wrong with sliding windows."""
        longest = max(len(row) for row in rows)
        # The value of the padding is irrelevant: no token of a row looks at it.
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(longest)[None, :] < lengths[:, None]).long()
        return ids.to(self.device), mask.to(self.device)


def _widened(states: Tensor) -> Tensor:
    """In float32 at least: half precision ends here."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


def sampled_counts(rows: Sequence[Sequence[int]], every: int) -> list[int]:
    """How many states `encode` returns for each row."""
    return [-(-len(row) // every) if every else 1 for row in rows]
