"""Rows to forward passes: like lengths together, as many tokens as memory holds.

Knows nothing of models but their size, and nothing of texts.
"""

import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from epic_retrieval.backbone import Backbone
from epic_retrieval.errors import EpicError

logger = logging.getLogger(__name__)

_CPU_TOKENS = 4096  # beyond some hundred, more tokens at once gain little on a CPU
_LEAST, _MOST = 1024, 65536


def tokens_at_once(backbone: Backbone) -> int:
    """How many tokens a forward pass may take: on a GPU, what fits into half of its free memory."""
    if backbone.device.type != "cuda":
        return _CPU_TOKENS
    free, _ = torch.cuda.mem_get_info(backbone.device)
    config = backbone.model.config
    inner = getattr(config, "ffn_dim", None) or config.intermediate_size  # OPT has its own name
    # States, queries, keys, values and what attention copies; the MLP's two branches and product.
    per_token = backbone.dtype.itemsize * (8 * config.hidden_size + 3 * inner)
    return int(min(_MOST, max(_LEAST, free // 2 // per_token)))


class Batcher:
    """Runs rows in batches; where memory does not suffice, in smaller ones from then on.

    Args:
        tokens: most tokens of a forward pass, padding included.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def __call__(
        self,
        rows: Sequence[Sequence[int]],
        run: Callable[[Sequence[Sequence[int]]], Tensor],
        most: int | None = None,
        extra: int = 0,
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield indices of rows and what `run` makes of them, until all are done.

        Args:
            rows: token ids.
            run: a forward pass: n rows to a tensor of n rows.
            most: most rows of a pass; None leaves it to the number of tokens.
            extra: tokens of a prompt that a pass holds once for each row.

        Raises:
            EpicError: when memory does not suffice for a single row.
        """
        # Longest first: if it does not fit, that shows at once.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)
        start = 0
        while start < len(order):
            cost = len(rows[order[start]]) + extra
            count = max(1, self.tokens // cost)
            batch = order[start : start + min(count, most or count)]
            try:
                states = run([rows[i] for i in batch])
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise EpicError(
                        f"memory does not suffice for one text of {cost} tokens; lower"
                        " max_length, or use a smaller model or dtype"
                    ) from error
                self.tokens = len(batch) * cost // 2
                logger.warning("out of memory: going on with %d tokens at once", self.tokens)
                continue
            yield batch, states
            start += len(batch)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not allocate memory; on a CPU it says so by the message alone."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
