"""InfoNCE with in-batch and hard negatives (Eq. 5 and 6), false negatives masked.

Pure functions of tensors.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def false_negatives(query_keys: Tensor, passage_keys: Tensor) -> Tensor:
    """Which passages must not count as negatives of which query.

    Args:
        query_keys: (n,) int64, equal for equal query texts.
        passage_keys: (m,) int64, equal for equal passage texts, m >= n; passage i < n is the
            positive of query i, the rest are hard negatives.

    Returns:
        (n, m) bool: true where passage j is the positive's text, or the positive of an equal query,
        and j is not i itself.
    """
    n = len(query_keys)
    same = passage_keys[None, :] == passage_keys[:n, None]
    same[:, :n] |= query_keys[None, :] == query_keys[:, None]
    same[torch.arange(n), torch.arange(n)] = False
    return same


def info_nce(queries: Tensor, passages: Tensor, masked: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy (nats) of finding each query's positive among all passages by cosine.

    Args:
        queries: (n, d), any length; passages: (m, d), passage i is the positive of query i.
        masked: (n, m) bool, passages to leave out of a query's softmax.
        temperature: tau of Eq. 6.
    """
    scores = normalize(queries, dim=1) @ normalize(passages, dim=1).T / temperature
    scores = scores.masked_fill(masked, float("-inf"))
    return cross_entropy(scores, torch.arange(len(queries), device=scores.device))
