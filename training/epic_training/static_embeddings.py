"""Token embeddings whose weighted mean already is close to the teacher's vector of a text.

Each token goes through the teacher on its own; then all of them, and one weight each, are fitted so
that means over texts come close to the teacher's vectors of the texts. That is a static embedder
(as model2vec's), made in seconds; `install` writes it into a decoder, which starts from there.
Knows nothing of files.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from epic_retrieval.projector import Projector
from epic_training.pairs import TokenColumn

RESERVED = 2  # coordinates of the decoder that hold no meaning; see `install`
_WEIGHT, _END = 0, 1  # which these are
_WEIGHT_SCALE = 0.02
_SMALLEST_LOG_WEIGHT = -7.0  # of tokens that no mean should notice


@dataclass(frozen=True)
class StaticConfig:
    """How the static embedder is fitted: `epochs` over the texts in batches of `batch`.

    Attributes:
        embedding_rms: root mean square of the decoder's token embeddings. What layers add to them
            starts at zero, and Adam moves weights by the learning rate, whatever their size: the
            first steps drown embeddings that are small.
    """

    epochs: int = 8
    batch: int = 512
    learning_rate: float = 0.01
    weight_rate: float = 0.03
    embedding_rms: float = 1.0
    seed: int = 42


class StaticEmbedder(nn.Module):
    """A weighted mean of token vectors.

    Args:
        vectors: (vocabulary, k).
        log_weights: (vocabulary,).
    """

    def __init__(self, vectors: Tensor, log_weights: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors.clone())
        self.log_weights = nn.Parameter(log_weights.clone())

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """(n, k) of length 1, from flat ids (T,) and where each of n texts begins."""
        weights = self.log_weights[ids].exp()
        mean = functional.embedding_bag(
            ids, self.vectors, offsets, mode="sum", per_sample_weights=weights
        )
        unit: Tensor = functional.normalize(mean, dim=1)
        return unit


def sentence_basis(vectors: NDArray[np.float16], dimension: int) -> Tensor:
    """(width, dimension) orthonormal: what keeps most of the cosines among vectors (n, width)."""
    sample = torch.from_numpy(vectors[:50_000].astype(np.float32))
    _, basis = torch.linalg.eigh(sample.T @ sample)
    kept: Tensor = basis.flip(1)[:, :dimension].contiguous()
    return kept


def zipf_log_weights(
    counts: NDArray[np.int64], prior: float = 0.5, smoothing: float = 1e-3
) -> Tensor:
    """(vocabulary,) log of SIF weights a / (a + p), from how often each token occurs.

    Args:
        counts: of each token, in the order of the vocabulary.
        prior: share of p that comes from Zipf's law by place in the vocabulary, which BERT's has
            sorted by frequency: the training texts are narrow, and never hold many of its tokens.
        smoothing: a.
    """
    expected = 1 / torch.arange(10, len(counts) + 10, dtype=torch.float32)
    counted = torch.from_numpy(counts.astype(np.float32)) / max(1, int(counts.sum()))
    share = prior * expected / expected.sum() + (1 - prior) * counted
    return torch.log(smoothing / (smoothing + share))


def fit(
    embedder: StaticEmbedder, texts: TokenColumn, targets: Tensor, config: StaticConfig
) -> list[float]:
    """Bring the means of texts to `targets` (n, k); returns the mean cosine of each epoch."""
    optimizer = torch.optim.Adam(
        [
            {"params": [embedder.vectors], "lr": config.learning_rate},
            {"params": [embedder.log_weights], "lr": config.weight_rate},
        ],
        betas=(0.9, 0.98),
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    rng = np.random.default_rng(config.seed)
    usable = np.flatnonzero(np.diff(texts.ends, prepend=0))
    targets = functional.normalize(targets, dim=1)
    steps = config.epochs * math.ceil(len(usable) / config.batch)
    log, step = [], 0
    for _ in tqdm(range(config.epochs), desc="static embedder", mininterval=10):
        cosines = []
        for chosen in np.array_split(
            rng.permutation(usable), math.ceil(len(usable) / config.batch)
        ):
            ids, offsets = flat([texts[int(i)] for i in chosen])
            cosine = (embedder(ids, offsets) * targets[chosen]).sum(dim=1).mean()
            optimizer.zero_grad(set_to_none=True)
            (1 - cosine).backward()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - step / steps)
            optimizer.step()
            cosines.append(cosine.item())
            step += 1
        log.append(float(np.mean(cosines)))
    return log


def flat(rows: Sequence[NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
    """(T,) ids of all rows, none of them empty, and (n,) where each begins."""
    ends = np.cumsum([len(row) for row in rows])
    ids = torch.from_numpy(np.concatenate(rows).astype(np.int64))
    return ids, torch.from_numpy(np.concatenate([[0], ends[:-1]]))


@torch.no_grad()
def install(
    model: Any,  # noqa: ANN401 (a decoder of transformers)
    embedder: StaticEmbedder,
    special: Sequence[int],
    end: int,
    rms: float,
) -> None:
    """Make a Llama decoder, new from its configuration, give the static embedder's vectors.

    The last layer's attention, from the end token, takes the mean: its scores are the tokens' log
    weights (coordinate 0 of their embeddings), its values their directions. Everything else adds
    nothing yet: output matrices are zero where they would, and learn from there. The two
    coordinates that steer this are the first two of the final states too, and are zero there.

    Args:
        model: a LlamaModel with as many key-value heads as heads, of width k + 2.
        embedder: (vocabulary, k).
        special: ids that belong to no text.
        end: id whose state is the embedding.
        rms: root mean square of the token embeddings.
    """
    vectors, weights = embedder.vectors.float(), embedder.log_weights.float()
    width = vectors.shape[1] + RESERVED
    # A vector's length is a part of its weight: the first norm of the decoder removes lengths.
    lengths = vectors.norm(dim=1).clamp_min(1e-6)
    logs = (weights + lengths.log()).clamp_min(_SMALLEST_LOG_WEIGHT)
    ordinary = torch.ones(len(logs), dtype=torch.bool)
    ordinary[list(special)] = False
    middle = logs[ordinary].mean()
    size = rms * math.sqrt(width)  # length of a row
    table = torch.zeros(len(vectors), width)
    table[:, RESERVED:] = vectors / lengths[:, None] * size
    table[:, _WEIGHT] = (logs - middle) * _WEIGHT_SCALE * size
    for token in special:
        table[token] = 0
        table[token, _WEIGHT] = (_SMALLEST_LOG_WEIGHT - middle) * _WEIGHT_SCALE * size
    table[end, _END] = size
    model.get_input_embeddings().weight.copy_(table)
    for layer in model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    _weighted_mean(model.layers[-1].self_attn, width, model.config.num_attention_heads)
    model.norm.weight[:RESERVED] = 0


@torch.no_grad()
def start_unnoticed(
    projector: Projector,
    model: Any,  # noqa: ANN401 (a decoder of transformers)
    special: int,
    noticed: float = 0.0,
) -> None:
    """Give prompt vectors the weight of a token that no mean notices, until they learn to be seen.

    Args:
        projector: scaled to the token embeddings.
        model: after `install`.
        special: id of such a token.
        noticed: 0: its weight; 1: that of an ordinary token; between them, between in log weight.
            What is not noticed at all gets next to no gradient, and learns slowly.
    """
    weight = model.get_input_embeddings().weight[special, _WEIGHT]  # 0: an ordinary token
    projector.output.weight[_WEIGHT] = 0
    projector.output.bias[_WEIGHT] = (1 - noticed) * weight


def _weighted_mean(attention: Any, width: int, heads: int) -> None:  # noqa: ANN401 (of transformers)
    """Scores that are log weights, values that are directions, in every head of an attention."""
    head = width // heads
    slowest = head // 2 - 1  # this coordinate turns with positions least of all
    # After its norm a row has length sqrt(width); the end token's is all in its own coordinate.
    # score = query * key / sqrt(head), to be the log weight.
    query = key = math.sqrt(math.sqrt(head) / (width * _WEIGHT_SCALE))
    values = torch.eye(width)
    values[:RESERVED] = 0
    attention.v_proj.weight.copy_(values)
    attention.o_proj.weight.copy_(torch.eye(width))
    for number in range(heads):
        row = number * head + slowest
        attention.q_proj.weight[row] = 0
        attention.k_proj.weight[row] = 0
        attention.k_proj.weight[row + head // 2] = 0
        attention.q_proj.weight[row, _END] = query
        attention.k_proj.weight[row, _WEIGHT] = key
