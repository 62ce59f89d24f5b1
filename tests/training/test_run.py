"""Whole runs of every regime and method on toy data: they learn, and their folders load."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from epic_retrieval import Demonstration, EpicEncoder, Task
from epic_retrieval.prompt import Mode
from epic_retrieval.prompt_cache import PromptCache
from epic_training.batch import Batch
from epic_training.config import TrainConfig
from epic_training.draw import Draw
from epic_training.model import build_checkpoint
from epic_training.run import _Trainer, train
from epic_training.step import ContrastiveStep
from tests.training.runs import ASKED, configured, losses, records, write_mix, write_toy_run
from tests.training.samples import write_pairs

# peft asks transformers by a name that transformers 5 is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

SHOWN = (
    Demonstration("where does the owl live?", "The owl hides in the barn."),
    Demonstration("who swims in the lake?", "The seal of the valley does."),
)
TASK = Task("toy", ASKED, SHOWN)
TEXTS = ["where does the cat live?", "the wolf 🐺", "x"]
REGIMES = {
    "group": ["demonstrations.prompts=group", "batches.workers=2"],
    "sample": ["demonstrations.prompts=sample", "memory.gradient_cache=false"],
    "text": ["regime=text"],
    "plain": ["regime=plain", "memory.gradient_cache=false", "batches.workers=2"],
}
LORA = "lora={rank: 4, alpha: 8}"


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than a toy run."""
    monkeypatch.setattr("epic_training.curves.draw_curves", lambda _records, _path: None)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_run(tmp_path_factory.mktemp("toy")).parent


def run_and_load(config: TrainConfig, out: Path) -> tuple[EpicEncoder, EpicEncoder]:
    """The model in memory after training, and what its folder gives."""
    trainer = _Trainer(config, out)
    folder = trainer.run()
    trainer.wrapped.eval()
    loaded = EpicEncoder.from_pretrained(folder, device="cpu", cache=PromptCache(None))
    return EpicEncoder(trainer.checkpoint, PromptCache(None)), loaded


def check_equal(trained: EpicEncoder, loaded: EpicEncoder) -> None:
    config = loaded.checkpoint.config
    assert config.method == trained.checkpoint.config.method
    assert config.training == trained.checkpoint.config.training
    for mode in config.modes:
        expected = trained.encode_queries(TEXTS, TASK, mode)
        found = loaded.encode_queries(TEXTS, TASK, mode)
        np.testing.assert_allclose(found, expected, atol=2e-6)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    passages = loaded.encode_passages(TEXTS)
    np.testing.assert_allclose(passages, trained.encode_passages(TEXTS), atol=2e-6)


@pytest.mark.parametrize("regime", REGIMES)
def test_every_regime_learns_and_loads(regime: str, toy: Path, tmp_path: Path) -> None:
    config = configured(toy, "optimizer.steps=9", *REGIMES[regime])
    trained, loaded = run_and_load(config, tmp_path)
    curve = losses(tmp_path)
    assert len(curve) == 9
    assert np.mean(curve[-3:]) < 0.9 * np.mean(curve[:3]), curve
    check_equal(trained, loaded)
    modes: dict[str, tuple[Mode, ...]] = {"text": ("text", "none"), "plain": ("none",)}
    assert loaded.checkpoint.config.modes == modes.get(regime, ("epic", "none"))
    assert (loaded.checkpoint.projector is None) == (regime in modes)
    shown = [record["demonstrations"] for record in records(tmp_path) if "loss" in record]
    assert (max(shown) > 0) == (regime != "plain")


def test_cache_and_workers_change_no_loss(toy: Path, tmp_path: Path) -> None:
    curves = []
    for number, chosen in enumerate(
        (
            ["memory.gradient_cache=true"],
            ["memory.gradient_cache=true", "batches.workers=3"],
            ["memory.gradient_cache=false"],
            ["memory.checkpoint_layers=true"],
            ["memory.rows_at_once=2"],
        )
    ):
        config = configured(toy, "optimizer.steps=2", *chosen)
        train(config, tmp_path / str(number))
        curves.append(losses(tmp_path / str(number)))
    assert curves[0] == curves[1]
    for curve in curves[2:]:
        np.testing.assert_allclose(curve, curves[0], rtol=2e-4)


METHODS = {
    "lora": [LORA],
    "lora-latent": [LORA, "method.pooling=latent"],
    "lora-bidirectional": [LORA, "method.attention=bidirectional", "method.pooling=mean"],
    "learned": ["method.source=learned"],
    "soft-prompt": ["method.source=soft-prompt", LORA],
    "mean": ["method.pooling=mean"],
    "latent": ["method.pooling=latent"],
    "bidirectional": ["method.attention=bidirectional"],
    "every-8": ["method.every=8"],
    "vectors-query": ["method.vectors=[query]"],
    "vectors-passage": ["method.vectors=[passage]", "demonstrations.prompts=sample"],
    "vectors-all": ["method.vectors=[instruction, query, passage]"],
    "instructed": ["instruct_demonstration_passages=true"],
    "mixed": ["demonstrations.text_share=0.5", "loss.plain_weight=0.5"],
    "detached": ["demonstrations.detach=true", "loss.matryoshka=[8, 16]"],
    "template": ["template=bge-en-icl", "regime=text"],
    "own-template": ['template={name: own, query: "{instruction}: {query}"}', LORA],
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_saves_loads_and_encodes(
    method: str, toy: Path, tmp_path: Path
) -> None:
    config = configured(toy, "optimizer.steps=2", *METHODS[method], mix="both.yaml")
    trained, loaded = run_and_load(config, tmp_path)
    assert len(losses(tmp_path)) == 2
    check_equal(trained, loaded)
    assert (loaded.checkpoint.adapter is not None) == (config.lora is not None)
    assert (loaded.checkpoint.learned is not None) == (config.method.source != "encoded")
    untrained = build_checkpoint(config, trained.device, TEXTS)
    before = EpicEncoder(untrained, PromptCache(None)).encode_passages(TEXTS)
    assert np.abs(before - loaded.encode_passages(TEXTS)).max() > 1e-5, "nothing was learned"


def test_adapters_name_their_base_from_anywhere(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy)
    config = configured(toy, "base=base", LORA, "optimizer.steps=1")
    folder = train(config, tmp_path)
    assert "model.safetensors" not in {path.name for path in folder.iterdir()}
    adapter = (folder / "adapter_config.json").read_text(encoding="utf-8")
    assert f'"base_model_name_or_path": "{toy / "base"}"' in adapter
    monkeypatch.chdir(tmp_path)
    loaded = EpicEncoder.from_pretrained(folder, device="cpu", cache=PromptCache(None))
    assert loaded.checkpoint.config.base_model == str(toy / "base")
    assert loaded.encode_queries(TEXTS, TASK).shape == (3, 32)


def test_training_goes_on_from_a_trained_checkpoint(toy: Path, tmp_path: Path) -> None:
    """Its projector and template are kept."""
    template = 'template={name: own, query: "{instruction}? {query}"}'
    first = train(configured(toy, template), tmp_path / "first")
    made = EpicEncoder.from_pretrained(first, device="cpu", cache=PromptCache(None))
    config = configured(toy, f"base={first}", LORA, "optimizer.steps=1")
    trainer = _Trainer(config, tmp_path / "second")
    g, before = trainer.checkpoint.projector, made.checkpoint.projector
    assert g is not None
    assert before is not None
    assert (g.output.weight == before.output.weight).all()
    assert trainer.checkpoint.config.template.name == "own"
    second = trainer.run()
    loaded = EpicEncoder.from_pretrained(second, device="cpu", cache=PromptCache(None))
    assert loaded.checkpoint.config.base_model == str(first)
    assert loaded.encode_queries(TEXTS, TASK, "epic").shape == (3, 32)


@pytest.mark.parametrize("prompts", ["group", "sample"])
@pytest.mark.parametrize("regime", ["epic", "text"])
def test_no_query_sees_its_own_pair_or_a_copy_of_it(
    regime: str, prompts: str, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In data full of copies: of queries, of positives, and of queries as positives."""
    rows = [{"query": f"{n % 13} ", "positive": f"answer {n % 7}"} for n in range(60)]
    rows += [{"query": f"answer {n % 7}", "positive": f" {n % 13}"} for n in range(60)]
    write_pairs(toy / "data" / "copies", rows)
    write_mix(toy / "copies.yaml", {"copies": {"instruction": "Find the other"}})
    seen: list[tuple[Batch, list[Draw]]] = []
    draws_of: Callable[..., list[Draw]] = ContrastiveStep._draws

    def watched(self: ContrastiveStep, batch: Batch, rng: np.random.Generator) -> list[Draw]:
        seen.append((batch, draws_of(self, batch, rng)))
        return seen[-1][1]

    monkeypatch.setattr(ContrastiveStep, "_draws", watched)
    chosen = [f"regime={regime}", f"demonstrations.prompts={prompts}", "batches.size=6"]
    train(configured(toy, *chosen, mix="copies.yaml"), tmp_path)
    shown = 0
    for batch, draws in seen:
        assert sorted(int(i) for draw in draws for i in draw.members) == list(range(len(batch)))
        texts = [{query.strip(), positive.strip()} for query, positive in batch.texts]
        for draw in draws:
            for member in draw.members:
                assert all(not texts[member] & texts[other] for other in draw.shown)
                shown += len(draw.shown)
    assert len(seen) == 4
    assert shown > 0
    logged = [record["demonstrations"] for record in records(tmp_path) if "loss" in record]
    assert sum(logged) == pytest.approx(shown / 6)
