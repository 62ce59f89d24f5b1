"""What changes the key of a prompt and the fingerprint of passages, and what must not."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import normalizers

from epic_retrieval import Demonstration, EpicEncoder, Task
from epic_retrieval.backbone import Backbone
from epic_retrieval.checkpoint import Checkpoint, load_checkpoint
from epic_retrieval.prompt import Mode
from epic_retrieval.prompt_cache import PromptCache
from epic_retrieval.tokenization import TextTokenizer
from tests.models import tiny_encoder, tiny_model, tiny_tokenizer

SHOWN = (Demonstration("q1", "p1"), Demonstration("q2", "p2"))
TASK = Task("task", "Retrieve what answers", SHOWN)
TWINS = replace(TASK, symmetric=True)
BASE = tiny_encoder().checkpoint


def nudged_weights() -> Checkpoint:
    model = copy.deepcopy(BASE.backbone.model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[7] += 1e-3
    return replace(BASE, backbone=Backbone(model))


def nudged_architecture() -> Checkpoint:
    """Not a weight differs."""
    model = copy.deepcopy(BASE.backbone.model)
    model.config.rms_norm_eps = 1e-3
    return replace(BASE, backbone=Backbone(model))


def nudged_projector() -> Checkpoint:
    projector = copy.deepcopy(BASE.projector)
    assert projector is not None
    with torch.no_grad():
        projector.output.bias[3] += 1e-3
    return replace(BASE, projector=projector)


def other_tokenizer() -> Checkpoint:
    hf = tiny_tokenizer()
    hf.backend_tokenizer.normalizer = normalizers.NFKC()
    return replace(BASE, tokenizer=TextTokenizer(hf, bos_id=1, eos_id=2))


def other_end_token() -> Checkpoint:
    return replace(BASE, tokenizer=TextTokenizer(BASE.tokenizer.hf, bos_id=1, eos_id=3))


def config(**changes: object) -> Callable[[], Checkpoint]:
    return lambda: replace(BASE, config=replace(BASE.config, **changes))  # type: ignore[arg-type]


def template(**changes: str) -> Callable[[], Checkpoint]:
    return config(template=replace(BASE.config.template, **changes))


def key(checkpoint: Checkpoint = BASE, task: Task = TASK, mode: Mode = "epic") -> str:
    return EpicEncoder(checkpoint, PromptCache(None))._key(task, mode)


def passages(
    checkpoint: Checkpoint = BASE, task: Task | None = TASK, mode: Mode | None = None
) -> str:
    return EpicEncoder(checkpoint, PromptCache(None)).passage_fingerprint(task, mode)


MODEL_CHANGES: dict[str, Callable[[], Checkpoint]] = {
    "weights": nudged_weights,
    "architecture": nudged_architecture,
    "tokenizer": other_tokenizer,
    "end token": other_end_token,
    "max_length": config(max_length=63),
    "passage template": template(passage="Passage: {passage}"),
}
QUERY_CHANGES: dict[str, Callable[[], Checkpoint]] = {
    "g": nudged_projector,
    "query template": template(query="Instruct: {instruction}\nQuery:{query}"),
    "demonstration template": template(vector_demonstration="{instruction} {query}{passage}"),
    "literal Eq. 3": config(instruct_demonstration_passages=True),
}
TASK_CHANGES = {
    "instruction": replace(TASK, instruction=TASK.instruction + "."),
    "text of a query": TASK.with_demonstrations([Demonstration("q1 ", "p1"), SHOWN[1]]),
    "text of a passage": TASK.with_demonstrations([Demonstration("q1", "P1"), SHOWN[1]]),
    "texts moved between fields": TASK.with_demonstrations([Demonstration("q1p", "1"), SHOWN[1]]),
    "order": TASK.with_demonstrations(SHOWN[::-1]),
    "fewer": TASK.with_demonstrations(SHOWN[:1]),
    "symmetric": TWINS,
}


@pytest.mark.parametrize("change", MODEL_CHANGES | QUERY_CHANGES)
def test_the_key_changes_with_the_model(change: str) -> None:
    assert key((MODEL_CHANGES | QUERY_CHANGES)[change]()) != key()


def test_prompts_belong_to_a_dtype_and_an_index_to_none(tiny_encoder_folder: Path) -> None:
    full, half = (
        load_checkpoint(tiny_encoder_folder, device="cpu", dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    assert key(full) != key(half)
    assert passages(full) == passages(half)
    assert passages(full, TWINS, "none") == passages(half, TWINS, "none")


@pytest.mark.parametrize("change", TASK_CHANGES)
def test_the_key_changes_with_the_task(change: str) -> None:
    assert key(task=TASK_CHANGES[change]) != key()


def test_keys_of_the_modes_differ() -> None:
    assert len({key(mode=mode) for mode in ("none", "text", "epic")}) == 3


def test_irrelevant_things_do_not_change_the_key() -> None:
    assert key(task=replace(TASK, name="another")) == key()
    assert key(replace(BASE, name="elsewhere")) == key()
    assert key(config(modes=("none",), training={"seed": 1})()) == key()
    # Mode "none" shows no demonstrations and asks g nothing.
    for other in (TASK.with_demonstrations(SHOWN[:1]), TASK.without_demonstrations(), TWINS):
        assert key(task=other, mode="none") == key(mode="none")
    assert key(nudged_projector(), mode="none") == key(mode="none")
    assert key(nudged_projector(), mode="text") == key(mode="text")


@pytest.mark.parametrize("change", MODEL_CHANGES)
def test_passages_change_with_the_model(change: str) -> None:
    assert passages(MODEL_CHANGES[change]()) != passages()
    assert passages(MODEL_CHANGES[change](), TWINS) != passages(task=TWINS)


@pytest.mark.parametrize("change", QUERY_CHANGES)
def test_passages_do_not_change_with_the_query_side(change: str) -> None:
    assert passages(QUERY_CHANGES[change]()) == passages()


@pytest.mark.parametrize("change", sorted(set(TASK_CHANGES) - {"symmetric"}))
def test_passages_do_not_change_with_an_asymmetric_task(change: str) -> None:
    task = TASK_CHANGES[change]
    assert passages(task=task) == passages() == passages(task=None) == passages(mode="none")
    # Passages of a symmetric task are encoded as queries.
    assert passages(task=replace(task, symmetric=True)) != passages(task=TWINS)


def test_passages_of_a_symmetric_task_change_with_the_mode_and_g() -> None:
    assert (
        passages(task=TWINS, mode="none")
        != passages(task=TWINS)
        == passages(task=TWINS, mode="epic")
    )
    assert passages(nudged_projector(), TWINS) != passages(task=TWINS)
    assert passages(task=TWINS) != passages()
    assert passages(task=replace(TWINS, name="another")) == passages(task=TWINS)


def test_other_families_differ() -> None:
    prints = {passages(replace(BASE, backbone=Backbone(tiny_model(f)))) for f in ("llama", "qwen3")}
    assert len(prints) == 2


def test_what_an_index_notes_of_an_encoder() -> None:
    encoder = EpicEncoder(BASE, PromptCache(None))
    noted = encoder.info()
    assert (noted.name, noted.dimension, noted.task) == (encoder.name, encoder.dimension, None)
    assert noted.fingerprint == encoder.passage_fingerprint()
    assert encoder.info(TASK) == encoder.info("web-search") == noted
    symmetric = replace(TASK, symmetric=True)
    assert encoder.info(symmetric, "none").task == TASK.name
    assert encoder.info(symmetric, "none").fingerprint != encoder.info(symmetric).fingerprint
