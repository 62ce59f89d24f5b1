"""The step against a naive twin: one query at a time, every sequence written out in full."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from epic_retrieval import Demonstration, EpicEncoder, InputError, Task
from epic_retrieval.backbone import Backbone
from epic_retrieval.method import Field, Method
from epic_retrieval.pooling import LatentPooling, pool_eos, pool_mean
from epic_retrieval.projector import LearnedTokens
from epic_retrieval.prompt import TEMPLATES, Template
from epic_retrieval.prompt_cache import PromptCache
from epic_training.batch import Batch, Row
from epic_training.draw import Draw
from epic_training.memory import checkpoint_layers
from epic_training.objective import Objective
from epic_training.step import ContrastiveStep, StepConfig
from tests.models import tiny_encoder

SIZE = 7
TASK = Task("toy", "given a question, find it")
TWINS = Task("twins", "find the same", symmetric=True)
WORDS = ["what", "is", "a", "passage", "that", "answers", "given", "questions", "in", "order"]


def make_batch(task: Task = TASK, size: int = SIZE) -> Batch:
    """Texts, and their ids as the encoder makes them."""
    tokenizer = tiny_encoder().checkpoint.tokenizer.hf
    rng = np.random.default_rng(5)

    def texts(count: int) -> list[str]:
        return [" ".join(rng.choice(WORDS, rng.integers(2, 7))) for _ in range(count)]

    def rows(given: Sequence[str], *, spaced: bool) -> list[Row]:
        return [
            [*tokenizer.encode(" " * spaced + text, add_special_tokens=False), 2] for text in given
        ]

    queries, positives = texts(size), texts(size)
    negatives = [*texts(2), positives[min(1, size - 1)]]
    return Batch(
        task,
        rows(queries, spaced=True),
        rows(positives, spaced=task.symmetric),
        rows(negatives, spaced=task.symmetric),
        owners=(0, 1, 2) if size > 2 else (0, 0, 0),
        texts=list(zip(queries, positives, strict=True)),
    )


def make_step(
    family: str = "qwen3",
    settings: dict[str, Any] | None = None,
    method: Method | None = None,
    template: Template | None = None,
    *,
    instruct: bool = False,
) -> ContrastiveStep:
    made = tiny_encoder(family).checkpoint
    chosen = method or Method()
    torch.manual_seed(3)
    pooling: Any = {"eos": pool_eos, "mean": pool_mean}.get(chosen.pooling) or LatentPooling(32, 4)
    config = replace(
        made.config,
        method=chosen,
        template=template or TEMPLATES["epic"],
        instruct_demonstration_passages=instruct,
    )
    checkpoint = replace(
        made,
        backbone=Backbone(made.backbone.model, pooling=pooling, causal=chosen.causal),
        config=config,
        learned=LearnedTokens(10, 32) if chosen.source != "encoded" else None,
    )
    given = dict(settings or {})
    names = {one.name for one in fields(Objective)}
    objective = Objective(**{name: given.pop(name) for name in names & set(given)})
    return ContrastiveStep(checkpoint, StepConfig(rows_at_once=3, objective=objective, **given))


class Twin:
    """The encoder of the library, a text at a time; the demonstrations' task is built by hand.

    It stands for the paper's f: test_method.py and test_parity.py compare it with formulas.
    """

    def __init__(self, step: ContrastiveStep, batch: Batch) -> None:
        self.step, self.batch = step, batch
        self.encoder = EpicEncoder(step.checkpoint, PromptCache(None))

    def state(self, prompt: Tensor, row: Row) -> Tensor:
        return self.step.checkpoint.backbone.encode_unshared([row], prompt)[0]

    def query(self, index: int, draw: Draw) -> Tensor:
        shown = [Demonstration(*self.batch.texts[i]) for i in draw.shown]
        task = self.batch.task.with_demonstrations(shown)
        mode = "text" if draw.textual or self.step.config.mode == "text" else self.step.config.mode
        source = self.step.checkpoint.config.method.source
        if mode == "none" or (not shown and source != "soft-prompt"):
            mode = "none"
        one = EpicEncoder(self._cropped(len(shown)), PromptCache(None))
        embeddings = _with_gradients(one, task, mode)
        return self.state(embeddings, self.batch.queries[index])

    def _cropped(self, shown: int) -> Any:  # noqa: ANN401 (a Checkpoint)
        """As many learned pairs as this prompt shows."""
        checkpoint = self.step.checkpoint
        if checkpoint.config.method.source != "learned":
            return checkpoint
        assert checkpoint.learned is not None
        table = checkpoint.learned.table[: 2 * shown]
        cropped: Any = lambda: table  # noqa: E731 (stands for a module)
        return replace(checkpoint, learned=cropped)

    def passage(self, row: Row) -> Tensor:
        if self.batch.task.symmetric:
            plain = _with_gradients(self.encoder, self.batch.task, "none")
            return self.state(plain, row)
        start = self.step.checkpoint.backbone.token_embeddings([1])
        return self.state(start, row)

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Mean of the queries' losses, one after the other."""
        config = self.step.config
        draws = self.step._draws(self.batch, rng)
        passages = [self.passage(row) for row in self.batch.passages]
        total = torch.zeros(())
        for draw in draws:
            for index in map(int, draw.members):
                losses = [self.one(self.query(index, draw), passages, index)]
                if config.plain_weight:
                    alone = self.query(index, Draw(draw.members, np.arange(0)))
                    losses.append(config.plain_weight * self.one(alone, passages, index))
                total = total + sum(losses) / (1 + config.plain_weight)
        return total / len(self.batch)

    def one(self, query: Tensor, passages: list[Tensor], index: int) -> Tensor:
        batch = self.batch
        scores = {}
        for j, passage in enumerate(passages):
            own = j == index
            right = any(
                batch.queries[k] == batch.queries[index] and batch.positives[k] == batch.passages[j]
                for k in range(len(batch))
            )
            foreign = j < len(batch) or batch.owners[j - len(batch)] != index
            if own or not (right or (foreign and not batch.in_batch_negatives)):
                cosine = torch.cosine_similarity(query, passage, dim=0)
                scores[j] = cosine / self.step.config.objective.temperature
        return torch.stack(list(scores.values())).logsumexp(0) - scores[index]


def _with_gradients(encoder: EpicEncoder, task: Task, mode: Any) -> Tensor:  # noqa: ANN401 (a Mode)
    """(P, d) of a prompt, with the graph that the encoder never keeps."""
    undecorated: Any = EpicEncoder._prompt_embeddings
    unshared: Any = EpicEncoder._query_states
    watched: Any = encoder
    watched._kept_embeddings = lambda t, m: undecorated.__wrapped__(encoder, t, m)
    watched._query_states = lambda t, m: unshared(encoder, t, m, False)
    embeddings: Tensor = undecorated.__wrapped__(encoder, task, mode)
    return embeddings


def gradients(loss: Tensor, step: ContrastiveStep) -> dict[str, Tensor]:
    named = {name: p for name, p in step.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
    return dict(zip(named, found, strict=True))


def assert_alike(
    ours: dict[str, Tensor], naive: dict[str, Tensor], tolerance: float = 1e-4
) -> None:
    scale = max(gradient.norm() for gradient in naive.values())
    assert scale > 0
    for name, gradient in ours.items():
        # By norm: single elements near zero are rounding noise that differs from CPU to CPU.
        bound = tolerance * naive[name].norm() + 1e-7 * scale
        assert (gradient - naive[name]).norm() <= bound, name


PLAIN = "Instruct: {instruction}\nQuery: "
WORDED = Template("worded", vector_demonstration=PLAIN + "{query}\nPassage: {passage}\n\n")
ONE = Template("one", vector_demonstration="{query}{passage}", vector_start=PLAIN)
NO_PAIR = Template("no pair", vector_demonstration=PLAIN + "\n\n")
ALL: tuple[Field, ...] = ("instruction", "query", "passage")

CASES: dict[str, tuple[str, dict[str, Any], Method, Template | None]] = {
    "epic, plain loss too": ("qwen3", {"groups": 3, "plain_weight": 0.5}, Method(), None),
    "epic, a prompt per query": ("qwen3", {"prompts": "sample"}, Method(), None),
    "epic, window": ("mistral", {"groups": 2}, Method(), None),
    "epic, detached": ("llama", {"groups": 2, "detach_demonstrations": True}, Method(), None),
    "plain": ("llama", {"mode": "none"}, Method(), None),
    "text": ("qwen3", {"mode": "text", "groups": 2}, Method(), None),
    "text, a prompt per query": ("gemma", {"mode": "text", "prompts": "sample"}, Method(), None),
    "some as text": ("qwen3", {"text_share": 0.5, "groups": 4}, Method(), None),
    "no pair": ("qwen3", {"groups": 2}, Method(), NO_PAIR),
    "one instruction": ("phi3", {"groups": 2}, Method(), ONE),
    "query compressed": ("qwen2", {"groups": 2}, Method(vectors=("query",)), WORDED),
    "passage compressed": ("qwen2", {"groups": 2}, Method(vectors=("passage",)), WORDED),
    "all compressed": ("qwen2", {"groups": 2}, Method(vectors=ALL), WORDED),
    "several vectors": ("qwen3", {"groups": 2}, Method(every=2), None),
    "learned": ("qwen3", {"groups": 3}, Method(source="learned"), None),
    "soft prompt": ("qwen3", {}, Method(source="soft-prompt"), None),
    "both ways, mean": (
        "llama",
        {"groups": 2, "plain_weight": 1.0},
        Method(attention="bidirectional", pooling="mean"),
        None,
    ),
    "both ways, latent": (
        "qwen3",
        {"prompts": "sample"},
        Method(attention="bidirectional", pooling="latent"),
        None,
    ),
    "causal, mean": ("qwen3", {"groups": 2}, Method(pooling="mean"), None),
}


@pytest.mark.parametrize("cached", [False, True], ids=["kept", "cached"])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_equal_the_naive_ones(name: str, cached: bool) -> None:
    family, settings, method, template = CASES[name]
    step = make_step(family, {**settings, "gradient_cache": cached}, method, template)
    batch = make_batch()
    shown = set()
    for seed in (0, 2):
        loss, parts = step(batch, np.random.default_rng(seed))
        expected = Twin(step, batch).loss(np.random.default_rng(seed))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        if not settings.get("detach_demonstrations"):  # the twin knows no detaching
            assert_alike(gradients(loss, step), gradients(expected, step))
        shown.add(parts["demonstrations"].item())
    assert (shown == {0.0}) == (name in {"plain", "soft prompt"})


@pytest.mark.parametrize("instruct", [False, True])
def test_symmetric_tasks_and_instructed_passages(instruct: bool) -> None:
    for task in (TWINS, TASK):
        step, batch = make_step(settings={"groups": 2}, instruct=instruct), make_batch(task)
        loss, _ = step(batch, np.random.default_rng(1))
        twin = Twin(step, batch)
        expected = twin.loss(np.random.default_rng(1))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert_alike(gradients(loss, step), gradients(expected, step))


def test_data_without_in_batch_negatives() -> None:
    batch = replace(make_batch(), in_batch_negatives=False)
    step = make_step(settings={"groups": 2})
    loss, parts = step(batch, np.random.default_rng(1))
    expected = Twin(step, batch).loss(np.random.default_rng(1))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert parts["negatives"].item() == pytest.approx(3 / SIZE)


def test_distillation_and_matryoshka_enter_the_loss() -> None:
    scores = [[0.9, 0.4], [0.8, 0.7], [0.6, 0.1]] + [[0.5]] * (SIZE - 3)
    batch = replace(make_batch(), scores=scores)
    rng = np.random.default_rng
    base, _ = make_step()(batch, rng(1))
    teacher = {"distillation_weight": 0.5, "teacher_temperature": 0.1}
    both = [make_step(settings=s)(batch, rng(1))[0] for s in (teacher, {"matryoshka": (8, 16)})]
    assert all(torch.isfinite(loss) and loss != base for loss in both)
    unscored, _ = make_step(settings=teacher)(replace(batch, scores=None), rng(1))
    assert unscored == base


def test_batches_of_one_and_two_queries() -> None:
    for settings in ({}, {"prompts": "sample"}, {"mode": "text"}):
        for size in (1, 2):
            batch = replace(make_batch(size=size), negatives=[], owners=())
            loss, parts = make_step(settings=settings)(batch, np.random.default_rng(0))
            assert torch.isfinite(loss)
            if size == 1:
                assert loss.item() == 0
                assert parts["demonstrations"] == 0


def test_no_text_is_encoded_twice() -> None:
    """Only the queries that demonstrations are made of are run behind their bare instruction."""
    step, batch = make_step(settings={"groups": 2, "max_demonstrations": 2}), make_batch()
    rows: list[int] = []
    backbone: Any = step.checkpoint.backbone
    encode = backbone.encode

    def counting(given: Sequence[Row], *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        rows.append(len(given))
        states: Tensor = encode(given, *args, **kwargs)
        return states

    backbone.encode = counting
    for seed in range(8):
        rows.clear()
        draws = step._draws(batch, np.random.default_rng(seed))
        step(batch, np.random.default_rng(seed))
        demonstrations = {int(i) for draw in draws for i in draw.shown}
        bare = {int(i) for draw in draws if not len(draw.shown) for i in draw.members}
        behind = sum(len(draw.members) for draw in draws if len(draw.shown))
        assert sum(rows) == len(batch.passages) + len(demonstrations | bare) + behind


def test_checkpointed_layers_give_the_same_gradients() -> None:
    batch = make_batch()
    found = []
    for layers in (False, True):
        step = make_step("llama", {"groups": 2})
        if layers:
            checkpoint_layers(step.checkpoint.backbone.model)
        step.train()
        loss, _ = step(batch, np.random.default_rng(3))
        found.append((loss.item(), gradients(loss, step)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert_alike(found[1][1], found[0][1], 1e-5)


def test_finite_differences_through_demonstrations_and_projector() -> None:
    """In double precision, along a random direction of every tensor's elements."""
    step = make_step("llama", {"groups": 2})
    # transformers' norms compute in float32 whatever comes in.
    for module in step.checkpoint.backbone.model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, LlamaRMSNorm):
                setattr(module, name, torch.nn.RMSNorm(32, eps=child.variance_epsilon))
    step.double()
    batch = make_batch()

    def loss() -> Tensor:
        return step(batch, np.random.default_rng(2))[0]  # type: ignore[no-any-return]

    analytic = gradients(loss(), step)
    generator = torch.manual_seed(0)
    watched = [name for name in analytic if "projector" in name or "embed_tokens" in name]
    assert len(watched) == 5
    for name in watched:
        parameter = dict(step.named_parameters())[name]
        way = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        way /= way.norm()
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(way, alpha=sign * 1e-4)
                values.append(loss().item())
                parameter.add_(way, alpha=-sign * 1e-4)
        numeric = (values[0] - values[1]) / 2e-4
        assert numeric == pytest.approx((analytic[name] * way).sum().item(), rel=1e-4, abs=1e-6)


def test_detaching_takes_the_demonstrations_part_of_the_gradient() -> None:
    batch, found = make_batch(), {}
    for detach in (False, True):
        step = make_step(settings={"prompts": "sample", "detach_demonstrations": detach})
        loss, _ = step(batch, np.random.default_rng(0))
        found[detach] = gradients(loss, step)
    key = next(name for name in found[True] if name.endswith("embed_tokens.weight"))
    assert all(found[True][f"projector.{n}.weight"].abs().sum() > 0 for n in ("hidden", "output"))
    assert not torch.allclose(found[False][key], found[True][key], rtol=1e-2)


def test_a_long_text_shown_is_cut_at_a_token() -> None:
    tokenizer = tiny_encoder().checkpoint.tokenizer
    text = "naïve 漢字 answers 😀 passage </s> that"
    ids = tokenizer.hf.encode(text.replace("</s>", "<>"), add_special_tokens=False)
    for limit in range(1, len(ids) + 9):
        cut = tokenizer.cut(text, limit)
        assert text.startswith(cut)
        assert len(cut) >= min(limit, 2) - 1
    assert tokenizer.cut(text, 100) == text


def test_prompts_that_leave_no_room_are_refused() -> None:
    step = make_step(settings={"mode": "text", "demonstration_tokens": 900, "groups": 2})
    batch = make_batch()
    batch = replace(batch, texts=[(q + " why" * 400, p) for q, p in batch.texts])
    with pytest.raises(InputError, match="the model has 1024 positions; show fewer demonstrations"):
        step(batch, np.random.default_rng(0))


def test_a_mode_without_what_makes_its_vectors_is_refused() -> None:
    bare = tiny_encoder(projector=False).checkpoint
    with pytest.raises(InputError, match="needs a projector"):
        ContrastiveStep(bare, StepConfig())
    config = replace(bare.config, method=Method(source="learned"))
    with pytest.raises(InputError, match="needs trained vectors"):
        ContrastiveStep(replace(bare, config=config), StepConfig())
