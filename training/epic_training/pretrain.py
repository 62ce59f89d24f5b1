"""Language-model pretraining of a small decoder from nothing, on a CPU in minutes.

Two stages: token embeddings from a factorised co-occurrence matrix (shifted positive PMI and a
truncated SVD, as in Levy and Goldberg 2014, which gives word meanings for the price of two matrix
products), then next-token prediction. Knows nothing of demonstrations or contrastive losses.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm
from transformers import PreTrainedModel

from epic_retrieval.errors import InputError
from epic_retrieval.storage import write_atomically

_EMBEDDING_RMS = 0.05
_LOG_EVERY = 50


@dataclass(frozen=True)
class PretrainConfig:
    """`steps` steps of `batch` sequences of `length` tokens; linear warm-up, linear decay."""

    steps: int
    batch: int
    length: int
    muon_lr: float = 0.01
    adam_lr: float = 2e-3
    warmup: int = 50
    candidates: int = 3072
    seed: int = 42
    save_every: int = 100


def cooccurrence_embeddings(
    ids: NDArray[np.int32], vocabulary: int, dimension: int, *, window: int = 5, seed: int = 42
) -> Tensor:
    """Token embeddings from how often tokens stand within `window` of each other.

    Args:
        ids: (tokens,) running text.
        vocabulary: number of rows to return.
        dimension: length of a row.

    Returns:
        (vocabulary, dimension) float32, centred, with root mean square 0.05. Tokens that never
        occur get small random rows.
    """
    counts = np.zeros(vocabulary * vocabulary, dtype=np.float32)
    for distance in range(1, window + 1):
        for start in range(0, len(ids) - distance, 4_000_000):
            left = ids[start : start + 4_000_000 + distance].astype(np.int64)
            keys, occurrences = np.unique(
                left[:-distance] * vocabulary + left[distance:], return_counts=True
            )
            counts[keys] += occurrences.astype(np.float32) / distance
    matrix = torch.from_numpy(counts).view(vocabulary, vocabulary)
    matrix += matrix.T.clone()
    totals = matrix.sum(dim=1)
    seen = totals > 0
    context = totals.pow(0.75)
    context /= context.sum()
    # PMI = log(p(w, c) / (p(w) p(c))), with the smoothed context distribution; negative ones to 0.
    matrix.div_(totals.clamp_min(1e-9)[:, None]).div_(context.clamp_min(1e-9)[None, :])
    matrix.clamp_min_(1.0).log_()
    torch.manual_seed(seed)
    left_vectors, values, _ = torch.svd_lowrank(matrix, q=dimension, niter=3)
    embeddings = left_vectors * values.sqrt()
    embeddings -= embeddings[seen].mean(dim=0)
    # Frequent tokens would otherwise carry the longest vectors and drown the telling ones.
    embeddings = functional.normalize(embeddings, dim=1) * math.sqrt(dimension) * _EMBEDDING_RMS
    embeddings[~seen] = torch.randn(int((~seen).sum()), dimension) * _EMBEDDING_RMS / 10
    return embeddings


def _optimizers(model: PreTrainedModel, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and "embed_tokens" not in name
        (matrices if is_matrix else others).append(parameter)
    return [
        torch.optim.Muon(
            matrices, lr=config.muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=config.adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _schedule(step: int, config: PretrainConfig) -> float:
    return min((step + 1) / max(1, config.warmup), max(0.02, 1 - step / config.steps))


def _batches(ids: NDArray[np.int32], config: PretrainConfig, first: int) -> Iterator[Tensor]:
    """Yield (batch, length + 1) int64: random windows, a function of seed and step alone."""
    for step in range(first, config.steps):
        starts = np.random.default_rng([config.seed, step]).integers(
            0, len(ids) - config.length - 1, size=config.batch
        )
        rows = starts[:, None] + np.arange(config.length + 1)[None, :]
        yield torch.from_numpy(ids[rows].astype(np.int64))


def next_token_loss(model: PreTrainedModel, tokens: Tensor, candidates: int) -> Tensor:
    """Mean cross-entropy in nats of tokens[:, 1:] given what stands before; tied output layer.

    The softmax runs over the batch's own targets and `candidates` random tokens, not over the whole
    vocabulary: that halves the cost of a step of a small model, whose output layer outweighs its
    body. The value is therefore lower than the true cross-entropy.

    Args:
        model: returns the last hidden states, (batch, length, d).
        tokens: (batch, length + 1) int64.
        candidates: how many random tokens of the vocabulary to add.
    """
    states = model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
    table: Any = model.get_input_embeddings()
    embeddings: Tensor = table.weight
    targets = tokens[:, 1:].flatten()
    sampled = torch.randint(len(embeddings), (candidates,))
    classes = torch.cat([targets, sampled]).unique()  # sorted
    logits = states.flatten(0, 1) @ embeddings[classes].T
    return functional.cross_entropy(logits, torch.searchsorted(classes, targets))


def pretrain(
    model: PreTrainedModel, ids: NDArray[np.int32], config: PretrainConfig, folder: Path
) -> list[dict[str, float]]:
    """Train `model` in place on the running text `ids`; resumes from `folder` after a crash.

    The weights are kept in `pretrain.safetensors`, the log in `pretrain.json`. The optimizers' own
    state is not: they start afresh where a run is resumed.

    Returns:
        One record per 50 steps, and one for what is left over at the end: step, loss (nats per
        token, mean since the record before), seconds.

    Raises:
        InputError: when the text is shorter than one sequence.
    """
    if len(ids) < config.length + 2:
        raise InputError(
            f"the text has {len(ids)} tokens; expected more than {config.length + 1} to train on"
            f" sequences of {config.length}: add data, or set a smaller length"
        )
    folder.mkdir(parents=True, exist_ok=True)
    state_file, log_file = folder / "pretrain.safetensors", folder / "pretrain.json"
    first = 0
    if state_file.is_file():
        state = load_file(state_file)
        first = int(state.pop("step"))
        model.load_state_dict(state)
    optimizers = _optimizers(model, config)
    base_rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    log = _read_log(log_file, first)
    recent: list[float] = []
    started = time.monotonic() - (log[-1]["seconds"] if log else 0)
    model.train()
    progress = tqdm(total=config.steps, initial=first, desc="pretraining", mininterval=10)
    for step, tokens in enumerate(_batches(ids, config, first), start=first):
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, base_rates, strict=True):
            group["lr"] = rate * _schedule(step, config)
        loss = next_token_loss(model, tokens, config.candidates)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        progress.update()
        if len(recent) == _LOG_EVERY or step + 1 == config.steps:
            mean = sum(recent) / len(recent)
            log.append({"step": step + 1, "loss": mean, "seconds": time.monotonic() - started})
            progress.set_postfix(loss=f"{mean:.3f}")
            recent.clear()
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            write_atomically(log_file, json.dumps(log, indent=1).encode())
            weights = {name: value.contiguous() for name, value in model.state_dict().items()}
            partial = state_file.with_suffix(".partial")
            save_file({**weights, "step": torch.tensor(step + 1)}, partial)
            partial.replace(state_file)
    progress.close()
    return log


def _read_log(path: Path, finished: int) -> list[dict[str, float]]:
    """What an earlier run wrote about its first `finished` steps."""
    if not path.is_file():
        return []
    records = json.loads(path.read_text(encoding="utf-8"))
    return [record for record in records if record["step"] <= finished]
