"""The step against a naive twin: one query at a time, every sequence written out in full."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from epic_retrieval import Demonstration, EpicEncoder, Task
from epic_retrieval.prompt import TEMPLATES
from epic_training.batches import Batch, Row
from epic_training.contrastive import ContrastiveConfig, ContrastiveStep
from epic_training.loss import false_negatives, info_nce
from tests.models import tiny_encoder

SIZE = 7
TASK = Task("toy", "given a question, find it")
TWINS = Task("twins", "find the same", symmetric=True)


def make_batch(task: Task = TASK, size: int = SIZE) -> Batch:
    rng = np.random.default_rng(5)

    def rows(count: int) -> list[Row]:
        return [rng.integers(4, 400, size=rng.integers(3, 12)).tolist() for _ in range(count)]

    queries, positives = rows(size), rows(size)
    return Batch(task, queries, positives, [*rows(2), positives[1]])


def make_step(encoder: EpicEncoder, settings: dict[str, Any] | None = None) -> ContrastiveStep:
    checkpoint = encoder.checkpoint
    assert checkpoint.projector is not None
    return ContrastiveStep(
        checkpoint.backbone,
        checkpoint.projector,
        checkpoint.tokenizer,
        TEMPLATES["epic"],
        ContrastiveConfig(rows_at_once=3, **(settings or {})),
    )


class Twin:
    """f and g of the paper, without batches, padding, shared prefixes and our prompt code."""

    def __init__(self, step: ContrastiveStep, task: Task) -> None:
        self.step, self.task = step, task
        self.raw = step.tokenizer.hf.backend_tokenizer

    def embed(self, ids: list[int]) -> Tensor:
        embedded: Tensor = self.step.backbone.model.get_input_embeddings()(torch.tensor(ids))
        return embedded

    def text(self, text: str) -> Tensor:
        return self.embed(self.raw.encode(text, add_special_tokens=False).ids)

    def last_state(self, *pieces: Tensor) -> Tensor:
        sequence = torch.cat([self.embed([1]), *pieces, self.embed([2])])
        states: Tensor = self.step.backbone.model(inputs_embeds=sequence[None]).last_hidden_state
        return states[0, -1]

    def query(self, row: Row, shown: list[tuple[Tensor, Tensor]]) -> Tensor:
        start = f"Instruct: {self.task.instruction}\nQuery:"
        pieces, between = [], ""
        for q, p in shown:
            pieces += [self.text(f"{between}{start} "), q[None], p[None]]
            between = "\n\n"
        return self.last_state(*pieces, self.text(between + start), self.embed(row))

    def passage(self, row: Row) -> Tensor:
        return self.query(row, []) if self.task.symmetric else self.last_bare(row)

    def last_bare(self, row: Row) -> Tensor:
        return self.last_state(self.embed(row))

    def loss(self, batch: Batch, rng: np.random.Generator) -> tuple[Tensor, list[int]]:
        """The loss, and how many demonstrations each query saw."""
        config, n = self.step.config, len(batch.queries)
        plain = [self.query(row, []) for row in batch.queries]
        passages = [self.passage(row) for row in batch.positives + batch.negatives]
        shown, counts = list(plain), [0] * n
        for group in np.array_split(rng.permutation(n), config.groups):
            pairs = self.step._draw(group, n, rng)
            states = [(plain[i], passages[i]) for i in pairs]
            if config.detach_demonstrations:
                states = [(q.detach(), p.detach()) for q, p in states]
            vectors = [(self.step.projector(q), self.step.projector(p)) for q, p in states]
            for i in group:
                shown[i] = self.query(batch.queries[i], vectors)
                counts[i] = len(pairs)
        masked = false_negatives(*batch.keys())
        both = [
            info_nce(torch.stack(queries), torch.stack(passages), masked, config.temperature)
            for queries in (shown, plain)
        ]
        weight = config.plain_weight
        return (both[0] + weight * both[1]) / (1 + weight), counts


def gradients(loss: Tensor, step: ContrastiveStep) -> dict[str, Tensor]:
    table: Any = step.backbone.model.get_input_embeddings()
    named = {"embeddings": table.weight, **dict(step.projector.named_parameters())}
    found = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
    return dict(zip(named, found, strict=True))


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen3", {"groups": 3, "plain_weight": 0.5}),
        ("qwen3", {"groups": SIZE, "temperature": 0.2}),  # a prompt per query
        ("qwen3", {"groups": 2, "detach_demonstrations": True}),
        ("mistral", {"groups": 2}),  # with a sliding window
    ],
    ids=["plain loss too", "prompt per query", "detached", "mistral"],
)
def test_the_loss_equals_the_naive_one(family: str, settings: dict[str, Any]) -> None:
    step = make_step(tiny_encoder(family), settings)
    batch = make_batch()
    seen: set[int] = set()
    for seed in (0, 2):
        loss, parts = step(batch, np.random.default_rng(seed))
        expected, counts = Twin(step, TASK).loss(batch, np.random.default_rng(seed))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert set(parts) == ({"epic", "plain"} if "plain_weight" in settings else {"epic"})
        seen.update(counts)
        ours, naive = gradients(loss, step), gradients(expected, step)
        for name in ours:
            # By norm: single elements near zero are rounding noise that differs from CPU to CPU.
            assert (ours[name] - naive[name]).norm() <= 1e-4 * naive[name].norm()
    assert len(seen) > 1  # more than one number of demonstrations was compared


def test_symmetric_tasks_prompt_their_passages() -> None:
    step, batch = make_step(tiny_encoder(), {"groups": 2}), make_batch(TWINS)
    loss, _ = step(batch, np.random.default_rng(1))
    expected, _ = Twin(step, TWINS).loss(batch, np.random.default_rng(1))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    asymmetric = make_batch(Task("twins", TWINS.instruction))
    assert step(asymmetric, np.random.default_rng(1))[0].item() != pytest.approx(loss.item())


@pytest.mark.parametrize("settings", [{"groups": 1}, {"groups": 4, "max_demonstrations": 0}])
def test_without_demonstrations_both_losses_are_one(settings: dict[str, Any]) -> None:
    step = make_step(tiny_encoder(), {"plain_weight": 1.0, **settings})
    _, parts = step(make_batch(), np.random.default_rng(0))
    assert parts["epic"] == parts["plain"]


def test_a_batch_of_one_query() -> None:
    loss, _ = make_step(tiny_encoder())(make_batch(size=2), np.random.default_rng(0))
    assert torch.isfinite(loss)
    alone = Batch(TASK, [[7, 8]], [[9, 10]], [])
    loss, _ = make_step(tiny_encoder())(alone, np.random.default_rng(0))
    assert loss.item() == 0


@pytest.mark.parametrize("groups", [2, 3, SIZE])
def test_no_group_sees_a_pair_of_its_own(groups: int) -> None:
    step = make_step(tiny_encoder(), {"groups": groups})
    shown_with: set[tuple[int, int]] = set()
    for seed in range(150):
        rng = np.random.default_rng(seed)
        for group in np.array_split(rng.permutation(SIZE), groups):
            drawn = step._draw(group, SIZE, rng).tolist()
            assert len(set(drawn)) == len(drawn) <= min(5, SIZE - len(group))
            assert not set(drawn) & set(group.tolist())
            shown_with |= {(int(i), j) for i in group for j in drawn}
    # Every other pair is shown to every query sooner or later.
    assert len(shown_with) == SIZE * (SIZE - 1)


def test_the_number_of_demonstrations_is_uniform_from_none_to_all() -> None:
    step, rng = make_step(tiny_encoder(), {"max_demonstrations": 5}), np.random.default_rng(0)
    counts = Counter(len(step._draw(np.arange(4), 16, rng)) for _ in range(3000))
    assert set(counts) == set(range(6))
    assert all(abs(count - 500) < 100 for count in counts.values())  # five standard deviations


@pytest.mark.parametrize("detach", [False, True])
def test_gradients_through_the_demonstration_vectors(detach: bool) -> None:
    step = make_step(tiny_encoder(), {"detach_demonstrations": detach})
    queries, passages = torch.randn(2, 32, requires_grad=True), torch.randn(2, 32)
    vectors = [vector for pair in step._vectors(queries, passages) for vector in pair]
    assert [tuple(vector.shape) for vector in vectors] == [(1, 32)] * 4
    total = torch.cat(vectors).sum()
    reached = torch.autograd.grad(total, queries, retain_graph=True, allow_unused=True)[0]
    assert (reached is None) == detach
    for parameter in step.projector.parameters():
        assert torch.autograd.grad(total, parameter, retain_graph=True)[0].abs().sum() > 0


def test_detaching_takes_the_demonstrations_part_of_the_gradient() -> None:
    batch = make_batch()
    found = {}
    for detach in (False, True):
        step = make_step(tiny_encoder(), {"groups": SIZE, "detach_demonstrations": detach})
        loss, _ = step(batch, np.random.default_rng(0))
        found[detach] = gradients(loss, step)
    assert all(gradient.abs().sum() > 0 for gradient in found[False].values())
    assert all(found[True][name].abs().sum() > 0 for name in ("hidden.weight", "output.weight"))
    assert not torch.allclose(found[False]["embeddings"], found[True]["embeddings"], rtol=1e-2)


def test_demonstrations_as_text_are_worded_as_in_inference() -> None:
    encoder = tiny_encoder()
    step, batch = make_step(encoder, {"text_share": 1.0}), make_batch()
    pairs = np.array([2, 0])
    decode = step.tokenizer.hf.decode
    task = batch.task.with_demonstrations(
        [
            Demonstration(str(decode(batch.queries[i])), str(decode(batch.positives[i])))
            for i in pairs
        ]
    )
    expected = encoder._prompt_embeddings(task, "text")
    assert torch.equal(step._text_prompt(batch, pairs), expected)


def test_text_takes_the_place_of_vectors_as_often_as_it_should() -> None:
    batch = make_batch()
    for share, reaches_projector in ((0.0, True), (1.0, False)):
        step = make_step(tiny_encoder(), {"text_share": share, "groups": 2})
        loss, _ = step(batch, np.random.default_rng(3))
        reached = gradients(loss, step)["output.weight"].abs().sum() > 0
        assert bool(reached) == reaches_projector
