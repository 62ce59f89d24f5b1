import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import PreTrainedModel

from epic_retrieval.errors import InputError
from epic_training.pretrain import (
    PretrainConfig,
    cooccurrence_embeddings,
    next_token_loss,
    pretrain,
)
from tests.models import tiny_model


def cycle(tokens: int) -> NDArray[np.int32]:
    """Text in which every token says which one follows."""
    return np.tile(np.random.default_rng(0).permutation(40) + 10, tokens // 40).astype(np.int32)


def test_words_used_alike_are_close() -> None:
    rng = np.random.default_rng(0)
    # Two kinds of sentences, each with words of its own around 1 or 2, and around 3 or 4.
    sentences = []
    for _ in range(2000):
        kind = int(rng.integers(2))
        around = rng.integers(10 + 10 * kind, 20 + 10 * kind, size=4)
        sentences.append([*around[:2], 1 + 2 * kind + int(rng.integers(2)), *around[2:]])
    ids = np.concatenate(sentences).astype(np.int32)
    vectors = cooccurrence_embeddings(ids, 50, 8, window=2)
    assert (vectors.shape, vectors.dtype) == ((50, 8), torch.float32)

    def alike(a: int, b: int) -> float:
        return float(cosine_similarity(vectors[a], vectors[b], dim=0))

    assert alike(1, 2) > 0.9
    assert alike(3, 4) > 0.9
    assert max(alike(a, b) for a in (1, 2) for b in (3, 4)) < 0.5
    seen = torch.zeros(50, dtype=torch.bool)
    seen[[1, 2, 3, 4, *range(10, 30)]] = True
    assert vectors[seen].pow(2).mean().sqrt().item() == pytest.approx(0.05, rel=1e-4)
    assert 0 < vectors[~seen].pow(2).mean().sqrt() < 0.01
    assert torch.equal(cooccurrence_embeddings(ids, 50, 8, window=2), vectors)


def test_next_token_loss_over_all_candidates_is_cross_entropy() -> None:
    model = tiny_model("qwen3")
    table = model.get_input_embeddings().weight
    tokens = torch.arange(400)[torch.randperm(400)].view(4, 100)  # every class is a target, but
    with torch.no_grad():  # for the first token of each row, which 20000 draws do not miss
        loss = next_token_loss(model, tokens, candidates=20_000)
        states = model(input_ids=tokens[:, :-1]).last_hidden_state
        full = cross_entropy((states @ table.T).flatten(0, 1), tokens[:, 1:].flatten())
        few = next_token_loss(model, tokens[:1, :9], candidates=5)
    assert loss.item() == pytest.approx(full.item(), rel=1e-5)
    assert torch.isfinite(few)


def test_the_loss_falls(tmp_path: Path) -> None:
    config = PretrainConfig(steps=70, batch=4, length=16, warmup=10, candidates=50)
    log = pretrain(tiny_model("qwen3"), cycle(2000), config, tmp_path)
    assert [record["step"] for record in log] == [50, 70]
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert log == json.loads((tmp_path / "pretrain.json").read_text())


class KilledError(Exception):
    pass


def counted(model: PreTrainedModel, most: int) -> list[int]:
    """Kill a run after `most` forward passes; the list holds how many there were."""
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1
        if calls[0] > most:
            raise KilledError

    model.register_forward_pre_hook(count)
    return calls


def test_a_killed_run_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    config = PretrainConfig(steps=60, batch=2, length=8, warmup=0, candidates=50, save_every=10)
    first, second, third = (tiny_model("qwen3", seed=seed) for seed in range(3))
    counted(first, most=57)
    with pytest.raises(KilledError):
        pretrain(first, cycle(400), config, tmp_path)
    calls = counted(second, most=100)
    log = pretrain(second, cycle(400), config, tmp_path)
    assert calls == [10]  # 50 steps were saved
    assert [record["step"] for record in log] == [50, 60]
    assert log[0]["seconds"] <= log[1]["seconds"]
    calls = counted(third, most=100)
    assert pretrain(third, cycle(400), config, tmp_path) == log
    assert calls == [0]
    finished = second.state_dict()
    assert all(torch.equal(value, finished[key]) for key, value in third.state_dict().items())


def test_a_text_shorter_than_a_sequence_is_refused(tmp_path: Path) -> None:
    config = PretrainConfig(steps=1, batch=1, length=40)
    with pytest.raises(InputError, match="the text has 40 tokens"):
        pretrain(tiny_model("qwen3"), cycle(40), config, tmp_path)
