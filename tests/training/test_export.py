"""Exported folders give the checkpoint's vectors, here and in sentence-transformers."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoTokenizer

from epic_retrieval import CheckpointError, Demonstration, EpicEncoder, InputError, Task
from epic_retrieval.backbone import Backbone
from epic_retrieval.checkpoint import BUNDLED_MODEL, Checkpoint
from epic_retrieval.errors import EpicError
from epic_retrieval.method import Method
from epic_retrieval.pooling import LatentPooling
from epic_retrieval.projector import LearnedTokens
from epic_retrieval.prompt import MODES, TEMPLATES, Template, build_prompt
from epic_retrieval.prompt_cache import PromptCache
from epic_retrieval.tokenization import TextTokenizer, find_bos_eos
from epic_training import export as export_module
from epic_training.export import export_checkpoint
from epic_training.export_hub import push_to_hub
from epic_training.export_sentence_transformers import save_sentence_transformers, save_tokenizer
from tests.models import save_tiny_encoder, tiny_encoder, tiny_model
from tests.vocabularies import vocabulary

# peft asks transformers by a name that transformers 5 is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

PLAIN = Task("t", "Retrieve what answers")
TASK = PLAIN.with_demonstrations([Demonstration("q", "p"), Demonstration("Q?", "P!")])
TEXTS = [
    "hello",
    "why is it so :)",
    " x",
    ":) y",
    "\n\nz \n",
    "漢字 é",
    "</s> <s>a<mark>",
    "x y " * 99,
]


def load(folder: Path) -> EpicEncoder:
    return EpicEncoder.from_pretrained(folder, device="cpu", cache=PromptCache(None))


def assert_equal(first: EpicEncoder, second: EpicEncoder, atol: float = 0.0) -> None:
    """The same vectors in every mode that the first one knows."""
    for mode in MODES if first.reads_vectors else ("none", "text"):
        found, expected = (
            one.encode_queries(TEXTS, TASK, mode, batch_size=4) for one in (second, first)
        )
        np.testing.assert_allclose(found, expected, atol=atol)
    np.testing.assert_allclose(
        second.encode_passages(TEXTS), first.encode_passages(TEXTS), atol=atol
    )


def dtypes(path: Path) -> set[str]:
    with safe_open(path, framework="pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that holds an adapter and names its base model, as training writes it."""
    root = tmp_path_factory.mktemp("adapted")
    model = tiny_model("llama")
    model.save_pretrained(root / "base")
    torch.manual_seed(5)
    adapter = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    )
    for name, weights in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.2)
    made = tiny_encoder("llama").checkpoint
    unmerged = Checkpoint(
        "unmerged",
        Backbone(model),
        made.tokenizer,
        made.projector,
        made.config,
        adapter=adapter.eval(),
        folders=(root / "base",),
    )
    EpicEncoder(unmerged, PromptCache(None)).save_pretrained(root / "checkpoint")
    return root / "checkpoint"


def test_an_adapter_is_merged(adapted: Path, tmp_path: Path) -> None:
    out = export_checkpoint(adapted, tmp_path / "out")
    names = {path.name for path in out.iterdir()}
    assert "model.safetensors" in names
    assert not {name for name in names if "adapter" in name}
    assert not [name for name in names if name.startswith(".")]
    exported = load(out)
    assert exported.checkpoint.config.base_model is None
    assert exported.checkpoint.adapter is None
    assert_equal(load(adapted), exported)
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert not [key for key in file.keys() if "lora" in key or "base_layer" in key]  # noqa: SIM118
    # A second export changes nothing any more.
    again = export_checkpoint(out, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_an_adapter_is_kept_if_asked(adapted: Path, tmp_path: Path) -> None:
    out = export_checkpoint(adapted, tmp_path / "out", merge=False)
    assert (out / "adapter_model.safetensors").is_file()
    assert not (out / "model.safetensors").exists()
    assert load(out).checkpoint.config.base_model == str(adapted.parent / "base")
    assert_equal(load(adapted), load(out), atol=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        Method(source="learned"),
        Method(source="soft-prompt", pooling="latent"),
        Method(pooling="mean", attention="bidirectional"),
    ],
    ids=["learned", "soft-prompt", "bidirectional"],
)
def test_every_part_of_a_method_is_exported(method: Method, tmp_path: Path) -> None:
    made = tiny_encoder("qwen3").checkpoint
    torch.manual_seed(2)
    if method.pooling == "latent":
        made.backbone.pooling = LatentPooling(32, 8).eval()
    learned = LearnedTokens(4, 32) if method.source != "encoded" else None
    config = replace(made.config, method=method)
    EpicEncoder(replace(made, learned=learned, config=config)).save_pretrained(tmp_path / "in")
    out = export_checkpoint(tmp_path / "in", tmp_path / "out")
    assert_equal(load(tmp_path / "in"), load(out))
    if method.pooling != "eos":
        with pytest.raises(InputError, match='use layout="epic"'):
            export_checkpoint(tmp_path / "in", tmp_path / "st", layout="sentence-transformers")


def test_stored_dtypes_are_kept(tmp_path: Path) -> None:
    out = export_checkpoint(None, tmp_path / "out")
    for name in ("model.safetensors", "projector.safetensors"):
        assert dtypes(out / name) == dtypes(BUNDLED_MODEL / name) == {"F16"}
    bundled = EpicEncoder.from_pretrained(device="cpu", cache=PromptCache(None))
    assert_equal(bundled, load(out))
    assert load(out).checkpoint.config == bundled.checkpoint.config


def test_a_dtype_is_taken(adapted: Path, tmp_path: Path) -> None:
    assert dtypes(export_checkpoint(adapted, tmp_path / "a") / "model.safetensors") == {"F32"}
    out = export_checkpoint(adapted, tmp_path / "b", dtype="bfloat16")
    for name in ("model.safetensors", "projector.safetensors"):
        assert dtypes(out / name) == {"BF16"}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert_equal(load(adapted), load(out), atol=0.1)


@pytest.fixture(scope="module", params=["llama", "qwen3", "mistral", "adapted", "bundled"])
def both(
    request: pytest.FixtureRequest, adapted: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[EpicEncoder, Path]]:
    """An encoder, and the folder for sentence-transformers that was made of it."""
    root = tmp_path_factory.mktemp(request.param)
    source: Path | None = {"adapted": adapted, "bundled": None}.get(request.param, root / "in")
    if source == root / "in":
        save_tiny_encoder(source, request.param)
    out = export_checkpoint(source, root / "st", layout="sentence-transformers", task=PLAIN)
    encoder = EpicEncoder.from_pretrained(source, device="cpu", cache=PromptCache(None))
    yield encoder, out
    shutil.rmtree(root)


def sentence_transformer(folder: Path) -> Any:  # noqa: ANN401 (an optional library's class)
    pytest.importorskip("sentence_transformers", reason="comes with the extra eval")
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})


def test_sentence_transformers_gives_the_same_vectors(both: tuple[EpicEncoder, Path]) -> None:
    ours, folder = both
    theirs = sentence_transformer(folder)
    texts = [*TEXTS, "long " * 2 * ours.checkpoint.config.max_length]
    small: Any = {"batch_size": 2}  # little padding
    queries = ours.encode_queries(texts, PLAIN, "none", **small)
    passages = ours.encode_passages(texts, **small)
    named = theirs.encode(texts, prompt_name="query", **small)
    for found in (named, theirs.encode_query(texts, **small)):
        np.testing.assert_allclose(found, queries, atol=1e-5)
    np.testing.assert_allclose(theirs.encode_document(texts, **small), passages, atol=1e-5)
    # Without a prompt's name there is one limit only, the query's: the documented difference.
    short = [len(text) < 40 for text in texts]
    plain = np.abs(theirs.encode(texts, **small) - passages).max(axis=1)
    assert plain[short].max() < 1e-5
    assert plain[-1] > 1e-5


def test_our_own_encoder_reads_that_folder_too(both: tuple[EpicEncoder, Path]) -> None:
    ours, folder = both
    again = load(folder)
    short = [text for text in TEXTS if len(text) < 40]
    np.testing.assert_allclose(
        again.encode_queries(short, PLAIN, "none"),
        ours.encode_queries(short, PLAIN, "none"),
        atol=1e-5,
    )


def test_passages_of_a_symmetric_task_get_the_prompt(tmp_path: Path) -> None:
    task = replace(PLAIN, symmetric=True)
    source = save_tiny_encoder(tmp_path / "in")
    out = export_checkpoint(source, tmp_path / "st", layout="sentence-transformers", task=task)
    np.testing.assert_allclose(
        sentence_transformer(out).encode_document(TEXTS),
        load(source).encode_passages(TEXTS, task, "none"),
        atol=1e-5,
    )


def save_with(template: Template, folder: Path, max_length: int = 64) -> Path:
    made = tiny_encoder("qwen3").checkpoint
    config = replace(made.config, template=template, max_length=max_length)
    EpicEncoder(replace(made, config=config), PromptCache(None)).save_pretrained(folder)
    return folder


def test_special_tokens_of_a_template_stay_special(tmp_path: Path) -> None:
    template = Template("marked", "<mark>{instruction}\n{query}", passage="passage: {passage}")
    source = save_with(template, tmp_path / "in")
    out = export_checkpoint(source, tmp_path / "st", layout="sentence-transformers", task=PLAIN)
    theirs, ours, texts = sentence_transformer(out), load(source), TEXTS[:6]
    np.testing.assert_allclose(
        theirs.encode_query(texts), ours.encode_queries(texts, PLAIN, "none"), atol=1e-5
    )
    np.testing.assert_allclose(
        theirs.encode_document(texts), ours.encode_passages(texts), atol=1e-5
    )


@pytest.mark.parametrize("name", ["qwen2", "llama-sp"])
def test_real_vocabularies_cut_alike(data_root: Path, tmp_path: Path, name: str) -> None:
    """Texts at the border of the prompt, with special tokens, white space and punctuation."""
    hf = vocabulary(data_root / "tokenizers", name)
    bos, eos = find_bos_eos(hf)
    ours = TextTokenizer(hf, bos_id=bos, eos_id=eos)
    save_tokenizer(
        replace(tiny_encoder("qwen3").checkpoint, tokenizer=ours), tmp_path, 512, split=True
    )
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    pieces = [*"ab Z:;.,!?'\"()-_<|/\\0é漢🎉\n\t", "  ", "\r\n", "</s>", "<|im_end|>", "'s", "▁"]

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.sampled_from(pieces), min_size=1).map("".join).filter(str.strip))
    def alike(text: str) -> None:
        for template in (TEMPLATES["epic"], TEMPLATES["qwen3-embedding"]):
            prompt = build_prompt(template, PLAIN.instruction)
            [row] = ours.text_ids([text], prompt, 500)
            wording = template.query.format(instruction=PLAIN.instruction, query=text)
            assert theirs(wording)["input_ids"] == [*ours.start_ids(prompt), *row]

    alike()


def test_a_prompt_that_grows_into_the_text_is_refused(data_root: Path, tmp_path: Path) -> None:
    hf = vocabulary(data_root / "tokenizers", "gpt2")
    _, eos = find_bos_eos(hf)
    made = tiny_encoder("qwen3").checkpoint
    template = Template("grown", "{instruction}\ns{query}")
    checkpoint = replace(
        made,
        tokenizer=TextTokenizer(hf, bos_id=None, eos_id=eos),
        config=replace(made.config, template=template),
    )
    with pytest.raises(CheckpointError, match="cuts the query 'hello' otherwise"):
        save_sentence_transformers(checkpoint, PLAIN, tmp_path)


def test_what_sentence_transformers_cannot_express(tmp_path: Path) -> None:
    suffixed = save_with(TEMPLATES["bge-en-icl"], tmp_path / "bge")
    with pytest.raises(InputError, match=r"'bge-en-icl' puts '\\n<response>' behind a query"):
        export_checkpoint(suffixed, tmp_path / "a", layout="sentence-transformers")
    long = save_with(TEMPLATES["epic"], tmp_path / "long", max_length=1020)
    with pytest.raises(InputError, match="positions, but the model has 1024"):
        export_checkpoint(long, tmp_path / "a", layout="sentence-transformers")
    assert not (tmp_path / "a").exists()


def test_options_that_do_not_go_together(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"layout": "onnx"}, "expected one of epic, sentence-transformers"),
        ({"dtype": "int8"}, "expected one of float32"),
        ({"layout": "sentence-transformers", "merge": False}, "has to be merged"),
        ({"task": "web-search"}, "encodes any task"),
    ]
    for options, message in wrong:
        with pytest.raises(InputError, match=message):
            export_checkpoint(tiny_encoder_folder, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_nothing_is_replaced(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_checkpoint(tiny_encoder_folder, tmp_path / "out")
    with pytest.raises(InputError, match="exists, and nothing is replaced"):
        export_checkpoint(tiny_encoder_folder, tmp_path / "out")


def test_a_failure_leaves_nothing(
    tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a killed export left behind goes, too.
    (tmp_path / ".out.exporting").mkdir()

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(export_module, "write_card", fail)
    with pytest.raises(InputError, match=r"cannot be written \(no space left"):
        export_checkpoint(tiny_encoder_folder, tmp_path / "out")
    assert not list(tmp_path.iterdir())


RUN = {"commit": "abc123", "hardware": "one | GPU", "gpu": None, "versions": {"torch": "2.13"}}
MIX = """
datasets:
  gsm8k: {path: /home/me/gsm8k, ratio: 0.5, instruction: Solve}
  nli: {}
"""
SCORES = {
    "mean": {"none": 0.61234, "shown": 0.7},
    "datasets": [
        {"name": "gsm8k", "pairs": 80, "none": 0.6, "shown": [0.5, 0.7]},
        {"name": "nli", "pairs": 9, "none": 0.6, "shown": []},
    ],
}


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    head, text = (folder / "README.md").read_text(encoding="utf-8")[4:].split("\n---\n", 1)
    return yaml.safe_load(head), text


def test_the_card_says_what_is_known(adapted: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    shutil.copytree(adapted, source)
    config = json.loads((source / "epic_config.json").read_text())
    # What `epic train` leaves behind.
    (tmp_path / "mix.yaml").write_text(MIX)
    config["training"] = {
        "base": str(adapted.parent / "base"),
        "mix": str(tmp_path / "mix.yaml"),
        "data": str(tmp_path),
        "optimizer": {"steps": 1000},
        "log": str(tmp_path / "log"),
    }
    (source / "epic_config.json").write_text(json.dumps(config))
    (source / "run.json").write_text(json.dumps(RUN))
    (source / "scores.json").write_text(json.dumps(SCORES))
    out = export_checkpoint(source, tmp_path / "my-model", licence="mit")
    head, text = card_of(out)
    assert head["license"] == "mit"
    assert "base_model" not in head, "a folder is no name on the hub"
    assert text.startswith("\n# my-model\n")
    assert "- base model: base\n- commit: abc123\n- hardware: one \\| GPU\n" in text
    assert "- versions: torch 2.13\n" in text
    assert "```yaml\nbase: base\noptimizer:\n  steps: 1000\nlog: log\n```" in text
    assert "| data set | ratio | instruction |\n|---|---|---|\n| gsm8k | 0.5 | Solve |" in text
    assert (
        "| gsm8k | 80 | 0.6 | 0.5, 0.7 |\n| nli | 9 | 0.6 |  |\n| mean |  | 0.6123 | 0.7 |" in text
    )
    assert 'EpicEncoder.from_pretrained("my-model")' in text
    assert "mit. The terms of the base model, base, apply too." in text
    assert str(tmp_path) not in text
    assert "/home/me" not in text
    # The next export knows it again.
    head, text = card_of(export_checkpoint(out, tmp_path / "again"))
    assert head["license"] == "mit"
    assert "- base model: base\n- commit: abc123\n" in text
    assert "| mean |  | 0.6123 | 0.7 |" in text


def test_the_card_of_the_bundled_model(tmp_path: Path) -> None:
    out = export_checkpoint(
        None, tmp_path / "out", layout="sentence-transformers", task="web-search"
    )
    head, text = card_of(out)
    assert head["license"] == "apache-2.0"
    assert head["library_name"] == "sentence-transformers"
    assert "model.encode_query" in text
    assert "| medquad | 147 | 0.9" in text
    assert "| data set | " in text


def test_a_card_of_little(tmp_path: Path, tiny_encoder_folder: Path) -> None:
    head, text = card_of(export_checkpoint(tiny_encoder_folder, tmp_path / "out"))
    assert "license" not in head
    assert "Not stated: ask whoever gave you this model" in text
    assert text.count("Nothing is recorded.") == 2
    broken = tmp_path / "broken"
    shutil.copytree(tiny_encoder_folder, broken)
    (broken / "scores.json").write_text("3")
    with pytest.raises(InputError, match=r"scores\.json: expected"):
        export_checkpoint(broken, tmp_path / "b")
    (broken / "scores.json").write_text('{"a": {"ndcg@10": 0.71234}, "b": 0.5}')
    (broken / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run\.json cannot be read"):
        export_checkpoint(broken, tmp_path / "b")
    (broken / "run.json").write_text('{"base_model": "Qwen/Qwen3-0.6B", "data": ["a", "b"]}')
    head, text = card_of(export_checkpoint(broken, tmp_path / "b"))
    assert head["base_model"] == "Qwen/Qwen3-0.6B"
    assert "| a | 0.7123 |  |\n| b |  | 0.5 |" in text
    assert "- a\n- b" in text


class FakeApi:
    """Stands for the hub, which tests cannot ask; notes what it is asked for."""

    private = True
    error: Exception | None = None

    def __init__(self, token: str | None = None) -> None:
        self.token = token

    def _note(self, what: str, *given: object, **named: object) -> None:
        if self.error is not None:
            raise self.error
        ASKED.append((what, *given, {k: v for k, v in named.items() if k != "commit_message"}))

    def create_repo(self, repo_id: str, **named: object) -> None:
        self._note("create_repo", repo_id, **named)

    def repo_info(self, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def create_branch(self, repo_id: str, **named: object) -> None:
        self._note("create_branch", repo_id, **named)

    def upload_folder(self, **named: object) -> SimpleNamespace:
        self._note("upload_folder", **named)
        return SimpleNamespace(commit_url="https://hub/commit/1")


ASKED: list[tuple[object, ...]] = []


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    ASKED.clear()
    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "private", True)
    monkeypatch.setattr(FakeApi, "error", None)
    return FakeApi


def test_push(hub: type[FakeApi], tiny_encoder_folder: Path) -> None:
    assert push_to_hub(tiny_encoder_folder, "me/model") == "https://hub/commit/1"
    push_to_hub(tiny_encoder_folder, "me/model", private=False, revision="v1")
    model = {"repo_type": "model"}
    upload = {"repo_id": "me/model", "folder_path": tiny_encoder_folder, **model}
    expected: list[tuple[object, ...]] = [
        ("create_repo", "me/model", {"private": True, "exist_ok": True, **model}),
        ("upload_folder", upload | {"revision": None}),
        ("create_repo", "me/model", {"private": False, "exist_ok": True, **model}),
        ("create_branch", "me/model", {"branch": "v1", "exist_ok": True, **model}),
        ("upload_folder", upload | {"revision": "v1"}),
    ]
    assert expected == ASKED


def test_nothing_private_becomes_public(
    hub: type[FakeApi], tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "private", False)
    with pytest.raises(EpicError, match="exists and is public, but a private upload was asked"):
        push_to_hub(tiny_encoder_folder, "me/model")
    assert [asked[0] for asked in ASKED] == ["create_repo"]


def test_a_hub_that_fails(
    hub: type[FakeApi], tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    from huggingface_hub.errors import HfHubHTTPError

    http: Any = HfHubHTTPError.__bases__[0]
    for error in (http("401 Unauthorized.\nmore"), ConnectionError("401 Unauthorized")):
        monkeypatch.setattr(hub, "error", error)
        with pytest.raises(EpicError, match=r"to me/model: 401 Unauthorized\. The folder is com"):
            push_to_hub(tiny_encoder_folder, "me/model")


def test_offline_is_said(tiny_encoder_folder: Path) -> None:
    # The real client: tests run with HF_HUB_OFFLINE=1.
    with pytest.raises(EpicError, match="HF_HUB_OFFLINE is set"):
        push_to_hub(tiny_encoder_folder, "me/model")


@pytest.mark.parametrize("name", ["model", "a/b/c", "https://huggingface.co/a/b", "me/ model", ""])
def test_a_name_that_is_no_repository(
    hub: type[FakeApi], tiny_encoder_folder: Path, name: str
) -> None:
    with pytest.raises(InputError, match='expected "owner/name"'):
        push_to_hub(tiny_encoder_folder, name)
    assert not ASKED


def test_only_models_are_uploaded(hub: type[FakeApi], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no model"):
        push_to_hub(tmp_path, "me/model")
    assert not ASKED
