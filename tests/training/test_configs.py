"""The configuration files that come with the project: they load, say what the paper says, train."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from epic_retrieval import Demonstration, EpicEncoder, InputError, Task
from epic_retrieval.checkpoint import load_tokenizer
from epic_retrieval.method import Method
from epic_retrieval.prompt import TEMPLATES, Piece, Template, Text, build_prompt
from epic_retrieval.prompt_cache import PromptCache
from epic_retrieval.tokenization import TextTokenizer
from epic_training.config import TrainConfig, load_config
from epic_training.data import BatchPlan, load_mix, open_mix
from epic_training.run import train
from tests.training.runs import ASKED, losses, records, write_mix, write_toy_run

# peft asks transformers by a name that transformers 5 is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

CONFIGS = Path(__file__).resolve().parents[2] / "training" / "configs"
BASES = sorted(
    path
    for folder in ("paper", "small", "mini")
    for path in (CONFIGS / folder).glob("*.yaml")
    if not path.name.endswith(".mix.yaml")
)
OVERLAYS = sorted((CONFIGS / "ablations").glob("*.yaml"))

# As test_method.py words and tests them.
PLAIN = "Instruct: {instruction}\nQuery: "
WORDED = PLAIN + "{query}\nPassage: {passage}\n\n"
METHODS = {
    "compress-instruction": Method(vectors=("instruction", "query", "passage")),
    "only-query": Method(vectors=("query",)),
    "only-passage": Method(vectors=("passage",)),
    "every-64": Method(every=64),
    "every-32": Method(every=32),
    "every-16": Method(every=16),
    "learned-tokens": Method(source="learned"),
    "soft-prompt": Method(source="soft-prompt"),
    "bidirectional-eos": Method(attention="bidirectional"),
    "bidirectional-mean": Method(attention="bidirectional", pooling="mean"),
    "bidirectional-latent": Method(attention="bidirectional", pooling="latent"),
}
WORDINGS = {
    "no-pair": Template("epic, no pair", vector_demonstration=PLAIN + "\n\n"),
    "no-passage": Template("epic, no passage", vector_demonstration=PLAIN + "{query}\n\n"),
    "no-query": Template("epic, no query", vector_demonstration=PLAIN + "{passage}\n\n"),
    "one-instruction": Template(
        "epic, one instruction", vector_demonstration="{query}{passage}", vector_start=PLAIN
    ),
    "compress-instruction": Template("epic, worded", vector_demonstration=WORDED),
    "only-query": Template("epic, worded", vector_demonstration=WORDED),
    "only-passage": Template("epic, worded", vector_demonstration=WORDED),
}
# What an overlay changes beside method and template.
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"regime": "plain"},
    "text": {"regime": "text"},
    "epic-sample": {"demonstrations": {"prompts": "sample"}},
    "epic-group": {"demonstrations": {"prompts": "group"}},
    "k-0": {"regime": "plain", "demonstrations": {"most": 0}},
    "k-1": {"demonstrations": {"most": 1}},
    "k-2": {"demonstrations": {"most": 2}},
    "k-8": {"demonstrations": {"most": 8}},
    "rank-16": {"lora": {"rank": 16, "alpha": 32}},
    "rank-32": {"lora": {"rank": 32, "alpha": 32}},
    "rank-64": {"lora": {"rank": 64, "alpha": 32}},
    "soft-prompt": {"learned_tokens": 10},
    "bidirectional-latent": {"latents": 512},
}


def names(paths: Sequence[Path]) -> list[str]:
    return [path.stem for path in paths]


@pytest.mark.parametrize("base", BASES, ids=names(BASES))
def test_every_overlay_on_every_base(base: Path) -> None:
    alone = load_config([base])
    assert alone.regime == "epic"
    assert alone.method == Method()
    assert alone.template is None
    assert alone.mix.is_file()
    for overlay in OVERLAYS:
        name = overlay.stem
        config = load_config([base, overlay])
        assert config.method == METHODS.get(name, Method()), name
        assert config.template == WORDINGS.get(name), name
        expected = merged(alone.to_dict(), SETTINGS.get(name, {}))
        for key, value in config.to_dict().items():
            if key not in ("method", "template"):
                assert value == expected[key], (name, key)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """A mapping on top of one that may lack sections."""
    found = dict(below)
    for key, value in above.items():
        old = found[key]
        if isinstance(value, dict):
            found[key] = {"dropout": 0.0, **value} if old is None else {**old, **value}
        else:
            found[key] = value
    return found


def test_every_overlay_is_known_and_names_its_table() -> None:
    assert set(names(OVERLAYS)) == METHODS.keys() | WORDINGS.keys() | SETTINGS.keys()
    tables = {"no-": "Table 4a", "compress": "Table 4b", "only": "Table 4b", "every": "Table 3"}
    tables |= {"learned": "Table 5", "soft": "Table 5", "bidirectional": "Table 6"}
    tables |= {"k-": "Table 8", "rank": "Table 10", "one": "Table 4a", "plain": "Tables 2 and 5"}
    for overlay in OVERLAYS:
        first = overlay.read_text(encoding="utf-8").splitlines()[0]
        expected = [table for start, table in tables.items() if overlay.stem.startswith(start)]
        assert first.startswith(f"# {expected[0]}," if expected else "# "), overlay


@pytest.mark.parametrize(
    ("name", "steps"), [("mistral-7b", 1000), ("qwen2.5-7b", 800), ("llama-3.1-8b", 800)]
)
def test_the_papers_recipe(name: str, steps: int) -> None:
    config = load_config([CONFIGS / "paper" / f"{name}.yaml"])
    assert config.optimizer.steps == steps
    assert (config.optimizer.warmup, config.optimizer.learning_rate) == (300, 1e-4)
    assert config.lora is not None
    assert (config.lora.rank, config.lora.alpha) == (64, 32)
    assert (config.batches.size, config.batches.negatives, config.max_length) == (512, 1, 512)
    assert (config.demonstrations.prompts, config.demonstrations.most) == ("sample", 5)
    assert (config.loss.temperature, config.run.seed) == (0.05, 42)
    assert config.memory.precision == "bfloat16"
    assert config.memory.gradient_cache
    # What the files spell out and the defaults of the code are the same recipe.
    apart = ("optimizer", "memory", "demonstrations")
    plain, spelled = TrainConfig(base=config.base, mix=config.mix).to_dict(), config.to_dict()
    assert {k: v for k, v in plain.items() if k not in apart} == {
        k: v for k, v in spelled.items() if k not in apart
    }
    assert plain["optimizer"] == {**spelled["optimizer"], "steps": 800}


# Table 7; NLI and Quora have two instructions.
SAME = "Given a question, retrieve questions that are semantically equivalent to the given question"
TABLE_7 = {
    "Provided a user question, retrieve the highest voted answers on Reddit ELI5 forum": 1,
    "Given a multi-hop question, retrieve documents that can help answer the question": 1,
    "Given a claim, retrieve documents that support or refute the claim": 1,
    "Given a question, retrieve Wikipedia passages that answer the question": 3,
    "Given a web search query, retrieve relevant passages that answer the query": 1,
    "Given a web search query, retrieve relevant documents that answer the query": 1,
    "Given a premise, retrieve a hypothesis that is entailed by the premise": 1,
    "Retrieve semantically similar text": 1,
    "Retrieve Wikipedia passages that answer the question": 2,
    SAME: 2,
    "Find questions that have the same meaning as the input question": 2,
    "Given a Chinese search query, retrieve web passages that answer the question": 2,
}


def test_the_mix_of_the_paper(tmp_path: Path) -> None:
    path = CONFIGS / "paper" / "e5-public.mix.yaml"
    with pytest.raises(InputError, match=r"eli5_question_answer\.jsonl"):
        load_mix(path, tmp_path)  # the data is not here
    for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["datasets"].values():
        row = '{"query": "a?", "positive": "a", "negative": "b"}\n'
        (tmp_path / entry["path"]).write_text(row, encoding="utf-8")
    mix = load_mix(path, tmp_path)
    asked = [text for one in mix.datasets for text in one.instructions]
    assert {text: asked.count(text) for text in asked} == TABLE_7
    ratios = {one.name: one.ratio for one in mix.datasets if one.ratio != 1}
    assert ratios == {
        "eli5": 0.1,
        "msmarco-passage": 0.5,
        "msmarco-document": 0.2,
        "quora": 0.1,
        "quora-2": 0.1,
        "t2ranking": 0.5,
    }
    symmetric = {one.name for one in mix.datasets if one.symmetric}
    assert symmetric == {"nli-similarity", "quora", "quora-2"}
    assert {one.format for one in mix.datasets} == {"pairs"}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than a toy run."""
    monkeypatch.setattr("epic_training.curves.draw_curves", lambda _records, _path: None)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_toy_run(tmp_path_factory.mktemp("toy"), "llama").parent
    write_mix(folder / "short.yaml", {"animals": {"instruction": "Find where it lives"}})
    return folder


SMALLER = (
    "batches.size=6",
    "batches.workers=0",
    "demonstrations.groups=2",
    "optimizer.steps=2",
    "optimizer.warmup=1",
    "memory.precision=float32",
)
TASK = Task(
    "toy",
    ASKED,
    (
        Demonstration("where does the owl live?", "The owl hides in the barn."),
        Demonstration("who swims in the lake?", "The seal of the valley does."),
    ),
)
TEXTS = ["where does the cat live?", "the wolf 🐺"]


def check_run(
    files: Sequence[Path], toy: Path, out: Path, *overrides: str, mix: str = "animals.yaml"
) -> None:
    """A run of two steps ends in a folder that loads and encodes in all of its modes."""
    config = load_config(files, [*SMALLER, *overrides], mix=toy / mix)
    result = train(config, out)
    assert len(losses(out)) == 2
    assert all(np.isfinite(losses(out)))
    encoder = EpicEncoder.from_pretrained(result, device="cpu", cache=PromptCache(None))
    made = encoder.checkpoint.config
    regime = {"epic": ("epic", "none"), "text": ("text", "none"), "plain": ("none",)}
    assert made.modes == regime[config.regime]
    assert made.method == config.method
    assert made.template == (config.template or TEMPLATES["epic"])
    passages = encoder.encode_passages(TEXTS)
    for mode in made.modes:
        found = encoder.encode_queries(TEXTS, TASK, mode)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
        assert found.shape == passages.shape


@pytest.mark.parametrize("overlay", OVERLAYS, ids=names(OVERLAYS))
def test_every_overlay_trains_saves_loads_and_encodes(
    overlay: Path, toy: Path, tmp_path: Path
) -> None:
    files = [CONFIGS / "mini" / "stories.yaml", overlay]
    check_run(files, toy, tmp_path, f"base={toy / 'base'}", "latents=4")
    most = max(record["demonstrations"] for record in records(tmp_path))
    assert (most == 0) == (overlay.stem in {"plain", "k-0", "soft-prompt"})


@pytest.mark.parametrize("name", ["paper/mistral-7b", "small/qwen3-0.6b", "mini/bundled"])
def test_base_configurations_train(name: str, toy: Path, tmp_path: Path) -> None:
    """One of each kind; those beside it differ in numbers only."""
    check_run([CONFIGS / f"{name}.yaml"], toy, tmp_path, f"base={toy / 'base'}", "max_length=48")


@pytest.mark.parametrize("name", ["epic-sample", "text", "bidirectional-latent"])
def test_a_real_base(name: str, data_root: Path, toy: Path, tmp_path: Path) -> None:
    files = [CONFIGS / "mini" / "stories.yaml", CONFIGS / "ablations" / f"{name}.yaml"]
    base = f"base={data_root / 'models' / 'stories260K'}"
    check_run(files, toy, tmp_path, base, "latents=4", mix="short.yaml")


def test_the_small_mix_and_its_held_out_rows(data_root: Path, tmp_path: Path) -> None:
    mix = load_mix(CONFIGS / "mini" / "clean.mix.yaml", data_root / "train_clean")
    bundled = yaml.safe_load((CONFIGS / "bundled.yaml").read_text(encoding="utf-8"))
    for one in mix.datasets:
        assert one.name in bundled["data"]
        assert one.development == bundled["dev_percent"], "the bundled model has seen other rows"
    [tldr] = [one for one in mix.datasets if one.name == "tldr"]
    [opened] = open_mix(type(mix)(mix.path, (tldr,)), tmp_path)
    assert len(opened.development) > 300
    assert BatchPlan([opened], 32, 1, 42).batches_per_epoch > 200


@pytest.mark.parametrize("overlay", OVERLAYS, ids=names(OVERLAYS))
def test_the_longest_prompts_fit_512_positions(overlay: Path, data_root: Path) -> None:
    """Whatever texts the small mix shows, cut as the training step cuts them."""
    config = load_config([CONFIGS / "mini" / "stories.yaml", overlay])
    tokenizer, _ = load_tokenizer(data_root / "models" / "stories260K")
    mix = load_mix(config.mix, data_root / "train_clean")
    asked = [text for one in mix.datasets for text in one.instructions]
    longest = max(positions(config, tokenizer, text) for text in asked)
    assert longest + config.max_length <= 512


def positions(config: TrainConfig, tokenizer: TextTokenizer, instruction: str) -> int:
    """The most that a prompt with this instruction can take."""
    template = config.template if isinstance(config.template, Template) else TEMPLATES["epic"]
    if config.regime == "plain" or config.method.source == "soft-prompt":
        plain = build_prompt(template, instruction)
        return len(tokenizer.start_ids(plain)) + config.learned_tokens
    textual = config.regime == "text"
    cut = tokenizer.cut("xylophones and zithers " * 50, config.demonstrations.tokens)
    vectors = () if textual else config.method.vectors
    parts: dict[str, Piece] = {name: Text(cut) for name in ("query", "passage")}
    parts |= {name: Text("") for name in vectors}
    each = -(-config.max_length // config.method.every) if config.method.every else 1
    prompt = build_prompt(
        template, instruction, [parts] * config.demonstrations.most, textual=textual
    )
    shown = template.vector_demonstration
    counted = sum(each for name in vectors if f"{{{name}}}" in shown)
    return len(tokenizer.start_ids(prompt)) + counted * config.demonstrations.most
