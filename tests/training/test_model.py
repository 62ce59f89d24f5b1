"""What a training run starts from: base, adapters, g, and what a method adds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from epic_retrieval import CheckpointError, EpicEncoder, InputError
from epic_retrieval.checkpoint import Checkpoint, load_checkpoint, load_tokenizer
from epic_retrieval.pooling import LatentPooling, pool_mean
from epic_retrieval.prompt import Prompt, get_template
from epic_retrieval.prompt_cache import PromptCache
from epic_training.model import base_path, build_checkpoint, precision_of, template_of
from tests.models import save_tiny_encoder, tiny_encoder, tiny_model, tiny_tokenizer
from tests.training.runs import configured, write_toy_run

# peft asks transformers by a name that transformers 5 is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TEXTS = ["where does the owl live?", "x", "the wolf 🐺 sings by the river"]
CPU = torch.device("cpu")
LORA = "lora={rank: 4, alpha: 8, dropout: 0.25}"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_run(tmp_path_factory.mktemp("toy")).parent


@pytest.fixture(scope="module")
def epic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("epic") / "model")


def build(toy: Path, *chosen: str) -> Checkpoint:
    return build_checkpoint(configured(toy, *chosen), CPU, TEXTS)


def trained(module: nn.Module) -> list[str]:
    return [name for name, weights in module.named_parameters() if weights.requires_grad]


def test_a_new_projector_gives_vectors_the_size_of_token_embeddings(toy: Path) -> None:
    made = build(toy)
    g, backbone = made.projector, made.backbone
    assert g is not None
    # With this template nothing stands before passages.
    rows = made.tokenizer.text_ids(TEXTS, Prompt(), made.config.max_length)
    with torch.no_grad():
        size = g(backbone.encode(rows)).pow(2).mean().sqrt()
    assert float(size) == pytest.approx(backbone.embedding_rms(), rel=1e-4)
    assert trained(g) == ["hidden.weight", "hidden.bias", "output.weight", "output.bias"]


def test_new_weights_come_from_the_seed(toy: Path) -> None:
    chosen = [LORA, "method.pooling=latent"]
    first, again, other = (
        build(toy, *chosen),
        build(toy, *chosen),
        build(toy, *chosen, "run.seed=1"),
    )
    assert first.vectors_fingerprint() == again.vectors_fingerprint()
    assert first.pooling_fingerprint() == again.pooling_fingerprint()
    assert first.weights_fingerprint() == again.weights_fingerprint()
    assert first.vectors_fingerprint() != other.vectors_fingerprint()
    assert first.pooling_fingerprint() != other.pooling_fingerprint()


def test_all_weights_or_adapters_on_every_linear_layer(toy: Path) -> None:
    full = build(toy)
    assert full.adapter is None
    assert len(trained(full.backbone.model)) == len(list(full.backbone.model.parameters()))
    lora = build(toy, LORA)
    names = trained(lora.backbone.model)
    assert names
    assert all("lora_" in name for name in names)
    linear = sum(isinstance(module, nn.Linear) for module in full.backbone.model.modules())
    assert len(names) == 2 * linear
    settings = lora.adapter.peft_config["default"]
    assert (settings.r, settings.lora_alpha, settings.lora_dropout) == (4, 8, 0.25)
    # Adapters start as nothing.
    found = EpicEncoder(lora, PromptCache(None)).encode_passages(TEXTS)
    expected = EpicEncoder(full, PromptCache(None)).encode_passages(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_a_method_adds(toy: Path) -> None:
    learned = build(toy, "method.source=learned", "method.vectors=[query]")
    assert learned.learned is not None
    assert learned.learned.table.shape == (2, 32)
    assert learned.projector is None
    size = float(learned.learned.table.detach().pow(2).mean().sqrt())
    assert size == pytest.approx(learned.backbone.embedding_rms(), rel=1e-4)
    soft = build(toy, "method.source=soft-prompt", "learned_tokens=7")
    assert soft.learned is not None
    assert soft.learned.table.shape == (7, 32)
    latent = build(toy, "method.pooling=latent").backbone.pooling
    assert isinstance(latent, LatentPooling)
    assert latent.latents.shape == (4, 32)
    assert build(toy, "method.pooling=mean").backbone.pooling is pool_mean
    both_ways = build(toy, "method.attention=bidirectional").backbone
    assert not both_ways.causal
    plain = build(toy, "regime=plain")
    assert (plain.projector, plain.learned, plain.config.modes) == (None, None, ("none",))


def test_a_trained_base_keeps_projector_and_template(toy: Path, tmp_path: Path) -> None:
    before = tiny_encoder(template="qwen3-embedding")
    before.save_pretrained(tmp_path / "own")
    made = build(toy, f"base={tmp_path / 'own'}")
    assert made.vectors_fingerprint() == before.checkpoint.vectors_fingerprint()
    assert made.config.template == get_template("qwen3-embedding")
    assert build(toy, f"base={tmp_path / 'own'}", "template=e5").config.template.name == "e5"
    assert build(toy, "base=bundled").config.base_model is None
    bundled = build(toy, "base=bundled", LORA)
    assert Path(bundled.config.base_model or "").is_dir()


@pytest.mark.parametrize("template", [None, "e5"])
def test_what_is_shown_before_a_run_is_what_it_takes(
    template: str | None, toy: Path, epic: Path
) -> None:
    for base in (str(toy / "base"), str(epic), "bundled"):
        chosen = [f"base={base}", *([f"template={template}"] if template else [])]
        config = configured(toy, *chosen)
        _, guessed = load_tokenizer(base_path(config))
        made = build_checkpoint(config, CPU, TEXTS)
        assert template_of(config, guessed) == made.config.template


def test_the_record_of_a_checkpoint_is_its_configuration(toy: Path) -> None:
    config = configured(toy, LORA, "instruct_demonstration_passages=true", "max_length=48")
    made = build_checkpoint(config, CPU, TEXTS)
    assert made.config.training == config.to_dict()
    assert json.loads(json.dumps(made.config.training)) == made.config.training
    assert (made.config.max_length, made.config.base_model) == (48, str(toy / "base"))
    assert made.config.instruct_demonstration_passages


def test_an_unmerged_adapter_is_no_base(toy: Path, tmp_path: Path) -> None:
    made = build(toy, LORA)
    EpicEncoder(made, PromptCache(None)).save_pretrained(tmp_path)
    assert load_checkpoint(tmp_path).adapter is not None
    with pytest.raises(InputError, match="is a LoRA checkpoint; merge it first"):
        build(toy, f"base={tmp_path}")


@pytest.mark.parametrize("base", ["absent", "./absent", "someone/absent"])
def test_an_unknown_base(base: str, toy: Path) -> None:
    with pytest.raises(CheckpointError, match="absent"):
        build(toy, f"base={base}")


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (["max_length=1024"], "max_length is 1024, but .* has 1024 positions"),
        (["memory.attention=quick"], "memory.attention 'quick' cannot be had here"),
        (
            ["memory.attention=flex_attention", "method.attention=bidirectional"],
            "bidirectional attention needs sdpa or eager",
        ),
        (["loss.matryoshka=[16, 33]"], "loss.matryoshka names 33 dimensions, but .* has 32"),
    ],
)
def test_what_the_base_cannot_do(chosen: list[str], said: str, toy: Path) -> None:
    with pytest.raises(InputError, match=said):
        build(toy, *chosen)


def test_attention_is_chosen(toy: Path) -> None:
    model = build(toy, "memory.attention=eager", "method.attention=bidirectional").backbone.model
    assert model.config._attn_implementation == "eager"


def test_precision_without_a_gpu(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert precision_of(configured(toy)) == "float32"
    assert precision_of(configured(toy, "memory.precision=bfloat16")) == "bfloat16"
    half = "memory.precision=bfloat16"
    assert build(toy, half).backbone.dtype == torch.float32, "trained weights need their digits"
    lora = build(toy, half, LORA)
    assert lora.backbone.dtype == torch.bfloat16
    assert all(
        weights.dtype == torch.float32
        for weights in lora.backbone.model.parameters()
        if weights.requires_grad
    )
    assert lora.projector is not None
    assert lora.projector.hidden.weight.dtype == torch.float32


def test_a_base_without_an_end_token(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy / "base", tmp_path / "base")
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "base")
    tiny_model("llama").save_pretrained(tmp_path / "base")
    with pytest.raises(CheckpointError, match="no end-of-sequence token"):
        build(toy, f"base={tmp_path / 'base'}")
