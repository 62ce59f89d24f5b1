"""Losses of contrastive training: InfoNCE (Eq. 5 and 6), distillation, several lengths at once.

Pure functions of tensors. Whatever comes in, cosines are computed in float32 or wider, under
autocast too. Knows nothing of models, batches and processes; a process that holds a slice of the
queries and all passages says by `positions` where its queries' positives are.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, normalize

from epic_retrieval.errors import InputError


def false_negatives(
    query_keys: Tensor,
    passage_keys: Tensor,
    positions: Tensor | None = None,
    positive_query_keys: Tensor | None = None,
) -> Tensor:
    """Which passages must not count as negatives of which query.

    Args:
        query_keys: (n,) int64, equal for equal query texts.
        passage_keys: (m,) int64, equal for equal passage texts; positives, then hard negatives.
        positions: (n,) int64, index among the passages of each query's positive; 0..n-1 by default.
        positive_query_keys: (N,) int64, keys of the queries whose positives are passages 0..N-1;
            `query_keys` by default, which is right only where all queries are here.

    Returns:
        (n, m) bool: true where passage j is the text of some positive of an equal query (its own
        included) and not the query's own positive itself.
    """
    if positive_query_keys is None:
        if positions is not None:
            raise ValueError("positions without positive_query_keys: whose positives are 0..N-1?")
        positive_query_keys = query_keys
    own = _own_positives(query_keys, positions)
    positives = passage_keys[: len(positive_query_keys)]
    equal_queries = query_keys[:, None] == positive_query_keys[None, :]  # (n, N)
    equal_texts = positives[:, None] == passage_keys[None, :]  # (N, m)
    masked = (equal_queries.float() @ equal_texts.float()) > 0
    return masked.scatter(1, own[:, None], value=False)


def only_own(owners: Tensor, n: int, positions: Tensor | None = None) -> Tensor:
    """The mask of a data set without in-batch negatives (classification, clustering).

    There another query's passage may well be right too. The mask knows no texts: join it with
    that of `false_negatives` by `|`.

    Args:
        owners: (h,) int64, each hard negative's query, by the index of that query's positive.
        n: number of positives; they are passages 0..n-1, the hard negatives follow.
        positions: (queries,) int64, index of each query's positive; 0..n-1 by default.

    Returns:
        (queries, n + h) bool: false at the query's positive and its own hard negatives only.
    """
    belongs_to = torch.cat([torch.arange(n, device=owners.device), owners])
    own = belongs_to[:n] if positions is None else positions
    return belongs_to[None, :] != own[:, None]


def info_nce(
    queries: Tensor,
    passages: Tensor,
    masked: Tensor,
    temperature: float,
    positions: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy (nats) of finding each query's positive among all passages by cosine.

    A query with no passage left but its positive adds 0, to the gradient too. No queries: 0.

    Args:
        queries: (n, d), any length; passages: (m, d).
        masked: (n, m) bool, passages to leave out of a query's softmax; its own positive counts
            whatever the mask says.
        temperature: tau of Eq. 6.
        positions: (n,) int64, index of each query's positive; 0..n-1 by default.
    """
    own = _own_positives(queries, positions)
    masked = masked.scatter(1, own[:, None], value=False)
    scores = (_cosines(queries, passages) / temperature).masked_fill(masked, -torch.inf)
    return cross_entropy(scores, own, reduction="sum") / max(len(queries), 1)


def distillation(
    queries: Tensor,
    passages: Tensor,
    teacher: Tensor,
    candidates: Tensor,
    temperature: float,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """Mean KL(teacher || student), in nats, over each query's own candidates.

    A query with fewer than two candidates adds 0, to the gradient too. No queries: 0.

    Args:
        queries: (n, d), any length; passages: (m, d).
        teacher: (n, c) scores of the candidates, higher is better, finite where a candidate is;
            softmax(score / teacher_temperature) is the distribution to learn.
        candidates: (n, c) int64 indices of passages; -1 where a query has fewer than c.
        temperature: the student's distribution is softmax(cosine / temperature).
        teacher_temperature: in the unit of the teacher's scores.
    """
    absent = candidates < 0
    scores = _cosines(queries, passages).gather(1, candidates.clamp_min(0)) / temperature
    # The lowest number, not -inf, whose softmax is NaN for a query without any candidate.
    lowest = torch.finfo(scores.dtype).min
    student = scores.masked_fill(absent, lowest).log_softmax(1)
    wanted = teacher.detach().to(scores.dtype) / teacher_temperature
    wanted = wanted.masked_fill(absent, lowest).softmax(1)
    divergence = kl_div(
        student.masked_fill(absent, 0), wanted.masked_fill(absent, 0), reduction="sum"
    )
    return divergence / max(len(queries), 1)


def matryoshka(
    loss: Callable[[Tensor, Tensor], Tensor],
    queries: Tensor,
    passages: Tensor,
    dimensions: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Weighted mean of a loss on the first k dimensions, for each k of `dimensions`.

    Args:
        loss: of queries (n, k) and passages (m, k), such as `info_nce` with the rest filled in.
        queries: (n, d); passages: (m, d).
        dimensions: each 1..d; d itself counts only when it is named.
        weights: one per dimension, equal by default.

    Raises:
        InputError: for a length outside 1..d, or weights that do not fit.
    """
    width = queries.shape[1]
    if not dimensions or not all(1 <= k <= width for k in dimensions):
        raise InputError(
            f"matryoshka dimensions {list(dimensions)}; expected one or more from 1 to {width},"
            " the width of the embeddings"
        )
    weights = [1.0] * len(dimensions) if weights is None else weights
    if (
        len(weights) != len(dimensions)
        or not all(0 <= weight < math.inf for weight in weights)
        or not sum(weights)
    ):
        raise InputError(
            f"matryoshka weights {list(weights)} for dimensions {list(dimensions)}; expected one"
            " number for each, none negative and not all 0"
        )
    losses = [loss(queries[:, :k], passages[:, :k]) for k in dimensions]
    weighted = [weight * value for weight, value in zip(weights, losses, strict=True)]
    return torch.stack(weighted).sum() / sum(weights)


def _own_positives(queries: Tensor, positions: Tensor | None) -> Tensor:
    """(n,) index of each query's positive."""
    return torch.arange(len(queries), device=queries.device) if positions is None else positions


def _cosines(queries: Tensor, passages: Tensor) -> Tensor:
    """(n, m) cosines, in float32 at least: tau = 0.05 makes bfloat16's rounding 20 times larger."""
    queries, passages = (
        rows.to(torch.promote_types(rows.dtype, torch.float32)) for rows in (queries, passages)
    )
    with torch.autocast(queries.device.type, enabled=False):
        return normalize(queries, dim=1) @ normalize(passages, dim=1).T
