import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from transformers import LlamaConfig, LlamaModel

from epic_retrieval.backbone import Backbone
from epic_retrieval.projector import Projector
from epic_training.static_embeddings import (
    RESERVED,
    StaticConfig,
    StaticEmbedder,
    fit,
    flat,
    install,
    sentence_basis,
    start_unnoticed,
    zipf_log_weights,
)
from tests.training.samples import column

VOCABULARY, WIDTH = 50, 62
PAD, BOS, EOS = 0, 1, 2


def embedder() -> StaticEmbedder:
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(VOCABULARY, WIDTH, generator=generator)
    return StaticEmbedder(vectors, torch.randn(VOCABULARY, generator=generator) - 1)


def rows(count: int, seed: int = 5) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCABULARY, rng.integers(1, 12)).tolist() for _ in range(count)]


def as_arrays(texts: list[list[int]]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int32) for row in texts]


def test_it_is_a_weighted_mean() -> None:
    static = embedder()
    found = static(*flat(as_arrays([[4, 9, 9], [7]])))
    by_hand = torch.stack([static.log_weights[i].exp() * static.vectors[i] for i in (4, 9, 9)])
    assert torch.allclose(found[0], normalize(by_hand.sum(dim=0), dim=0), atol=1e-6)
    assert torch.allclose(found[1], normalize(static.vectors[7], dim=0), atol=1e-6)


def test_the_basis_keeps_the_most_telling_directions() -> None:
    rng = np.random.default_rng(0)
    inner = rng.normal(size=(200, 5)).astype(np.float16)
    outer = np.linalg.qr(rng.normal(size=(30, 5)))[0].T
    vectors = (inner @ outer).astype(np.float16)
    basis = sentence_basis(vectors, 5)
    assert torch.allclose(basis.T @ basis, torch.eye(5), atol=1e-5)
    given = torch.from_numpy(vectors.astype(np.float32))
    assert torch.allclose(given @ basis @ basis.T, given, atol=0.01)


def test_frequent_tokens_weigh_less() -> None:
    weights = zipf_log_weights(np.array([0, 0, 100, 10, 0]), prior=0.0)
    assert weights[4] == 0
    assert weights[2] < weights[3] < weights[4]
    weights = zipf_log_weights(np.zeros(500, dtype=np.int64))
    assert (weights.diff() > 0).all()  # nothing was counted: by the place alone


def test_fitting_finds_the_means_that_made_the_targets() -> None:
    wanted, texts = embedder(), rows(600)
    with torch.no_grad():
        targets = wanted(*flat(as_arrays(texts)))
    start = StaticEmbedder(
        wanted.vectors + 0.7 * torch.randn(VOCABULARY, WIDTH), torch.zeros(VOCABULARY)
    )
    config = StaticConfig(epochs=8, batch=32, learning_rate=0.03, weight_rate=0.05)
    log = fit(start, column(texts), targets, config)
    assert log[0] < 0.95 < log[-1]
    again = start(*flat(as_arrays(rows(50, seed=6))))
    with torch.no_grad():
        aim = wanted(*flat(as_arrays(rows(50, seed=6))))
    assert (again * aim).sum(dim=1).mean() > 0.9


@pytest.mark.parametrize("rms", [0.05, 1.0])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_decoder_starts_as_the_static_embedder(layers: int, rms: float) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH + RESERVED,
        intermediate_size=80,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    model = LlamaModel(config)
    static = embedder()
    install(model, static, [PAD, BOS, EOS], EOS, rms)
    texts = rows(40)
    backbone = Backbone(model.eval())
    with torch.no_grad():
        states = backbone.encode([[BOS, *row, EOS] for row in texts])
        wanted = static(*flat(as_arrays(texts)))
    assert not states[:, :RESERVED].any()
    cosines = torch.cosine_similarity(states[:, RESERVED:], wanted, dim=1)
    assert cosines.min() > 0.97
    lengths = model.embed_tokens.weight.detach().norm(dim=1)[3:]
    assert lengths.numpy() == pytest.approx(rms * math.sqrt(WIDTH + RESERVED), rel=0.02)


def test_prompt_vectors_start_unnoticed() -> None:
    torch.manual_seed(0)
    model = LlamaModel(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=80, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
        )
    ).eval()  # fmt: skip
    install(model, embedder(), [PAD, BOS, EOS], EOS, 1.0)
    backbone, projector = Backbone(model), Projector(64)
    rows_ = [[*row, EOS] for row in rows(20)]
    with torch.no_grad():
        alone = backbone.encode(rows_)
        projector.scale_to(alone, backbone.embedding_rms())
        behind = {}
        for noticed in (0.0, 0.6, 1.0):
            start_unnoticed(projector, model, BOS, noticed)
            behind[noticed] = backbone.encode(rows_, backbone.prefix(projector(alone[:4])))
    unseen, some, seen = (torch.cosine_similarity(alone, one, dim=1) for one in behind.values())
    assert unseen.min() > 0.99
    assert unseen.min() > some.min() > seen.min()


def test_all_of_such_a_decoder_learns() -> None:
    torch.manual_seed(0)
    model = LlamaModel(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=80, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
        )
    )  # fmt: skip
    install(model, embedder(), [PAD, BOS, EOS], EOS, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):  # what stands before a zero matrix moves one step later
        optimizer.zero_grad()
        states = Backbone(model).encode_padded([[BOS, 5, 6, EOS], [BOS, 7, 8, 9, EOS]])
        (states[:, :32].sum() - states[:, 32:].pow(3).sum()).backward()
        optimizer.step()
    moved = {name for name, value in model.state_dict().items() if (value != before[name]).any()}
    assert moved == set(before)
