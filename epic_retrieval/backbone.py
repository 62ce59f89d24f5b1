"""A causal language model as an encoder: token ids behind a shared prefix in, end-token state out.

Works with every decoder that transformers' `AutoModel` gives and whose layers take a key-value
cache; Llama, Mistral, Qwen2, Qwen3, Gemma and Phi-3 are tested. Knows no prompts, tasks or texts.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from epic_retrieval.prefix import Prefix


class Backbone:
    """Runs a model on padded batches.

    Gradients flow where the caller leaves them on; so training and inference share this code.

    Args:
        model: returns `last_hidden_state`, after its final norm; no language-model head.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, keys and values."""
        return self.model.dtype

    @property
    def dimension(self) -> int:
        """d, the width of hidden states and of token embeddings."""
        return int(self.model.config.hidden_size)

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

    def encode(self, rows: Sequence[Sequence[int]], prefix: Prefix | None = None) -> Tensor:
        """Raw final hidden states at each row's last token.

        Args:
            rows: n lists of token ids, none empty, each ending in the end token.
            prefix: what all rows continue; None when nothing precedes them.

        Returns:
            (n, d) float32, not normalised.
        """
        ids, mask = self._padded(rows)
        past = 0 if prefix is None else prefix.length
        if prefix is None:
            output = self.model(input_ids=ids, attention_mask=mask, use_cache=False)
        else:
            # The mask must cover the prefix too: a mask of the new tokens alone is silently wrong.
            output = self.model(
                input_ids=ids,
                attention_mask=torch.cat([mask.new_ones(len(rows), past), mask], dim=1),
                past_key_values=prefix.as_cache(),
                use_cache=False,
            )
        states: Tensor = output.last_hidden_state
        last = mask.sum(dim=1) - 1
        return states[torch.arange(len(rows), device=self.device), last].float()

    def encode_unshared(self, rows: Sequence[Sequence[int]], embeddings: Tensor) -> Tensor:
        """The same as `encode` with the prompt run again for every row, as in the paper.

        Args:
            rows: as in `encode`.
            embeddings: (P, d) of the prompt, from `embed`.
        """
        ids, mask = self._padded(rows)
        own: Tensor = self.model.get_input_embeddings()(ids)
        past = embeddings.shape[0]
        output = self.model(
            inputs_embeds=torch.cat([embeddings.expand(len(rows), -1, -1), own], dim=1),
            attention_mask=torch.cat([mask.new_ones(len(rows), past), mask], dim=1),
            use_cache=False,
        )
        states: Tensor = output.last_hidden_state
        last = past + mask.sum(dim=1) - 1
        return states[torch.arange(len(rows), device=self.device), last].float()

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Right-padded ids and mask, (n, longest). Left padding is wrong with sliding windows."""
        longest = max(len(row) for row in rows)
        # The value of the padding is irrelevant: no token of a row looks to the right.
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(longest)[None, :] < lengths[:, None]).long()
        return ids.to(self.device), mask.to(self.device)
