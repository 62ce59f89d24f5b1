from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from epic_retrieval.errors import InputError
from epic_retrieval.prompt import Text, Vectors, build_prompt, passage_prompt
from epic_retrieval.tasks import Task
from epic_training.distil import DistilConfig, Distillation, alike_pairs, distillation_loss
from epic_training.encoding import Runner
from tests.models import tiny_encoder
from tests.training.samples import column


def test_the_loss_is_zero_for_the_teachers_vectors_whatever_their_length() -> None:
    targets = torch.randn(6, 8)
    loss, parts = distillation_loss(3 * targets, targets, relational=1.0, temperature=0.1)
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert parts["cosine"].item() == pytest.approx(1)


def test_the_divergence_by_hand() -> None:
    students, teachers = torch.randn(4, 8), torch.randn(4, 8)
    loss, parts = distillation_loss(students, teachers, relational=2.0, temperature=0.3)
    s, t = normalize(students, dim=1), normalize(teachers, dim=1)
    total = 0.0
    for i in range(4):
        others = [j for j in range(4) if j != i]
        wanted = (t[others] @ t[i] / 0.3).softmax(0)
        found = (s[others] @ s[i] / 0.3).softmax(0)
        total += float((wanted * (wanted / found).log()).sum()) / 4
    assert parts["divergence"].item() == pytest.approx(total, rel=1e-4)
    cosine = float((s * t).sum(dim=1).mean())
    assert loss.item() == pytest.approx(1 - cosine + 2 * total, rel=1e-4)


def test_the_divergence_from_anchors_by_hand() -> None:
    students, teachers, anchors = torch.randn(4, 8), torch.randn(4, 8), torch.randn(6, 8)
    _, parts = distillation_loss(students, teachers, 1.0, 0.3, anchors)
    s, t, a = (normalize(one, dim=1) for one in (students, teachers, anchors))
    wanted, found = (t @ a.T / 0.3).softmax(dim=1), (s @ a.T / 0.3).softmax(dim=1)
    total = float((wanted * (wanted / found).log()).sum()) / 4
    assert parts["divergence"].item() == pytest.approx(total, rel=1e-4)
    # One text's loss does not depend on what the student makes of another.
    other = torch.cat([students[:3], torch.randn(1, 8)])
    losses = [
        torch.autograd.grad(distillation_loss(one, teachers, 1.0, 0.3, anchors)[0], one)[0][:3]
        for one in (students.requires_grad_(), other.requires_grad_())
    ]
    torch.testing.assert_close(*losses)


def test_nothing_stands_before_the_first_texts() -> None:
    checkpoint = tiny_encoder("llama").checkpoint
    texts, targets = column([[n, n + 1] for n in range(5, 45)]), torch.randn(40, 32)

    def at(number: int, bare: int = 0, anchors: int = 0) -> float:
        config = DistilConfig(batch=12, behind=1.0, bare=bare, anchors=anchors)
        step = Distillation(checkpoint, texts, targets, ["Find it"], config)
        return float(step(number)[0].item())

    bare = Distillation(checkpoint, texts, targets, [""], DistilConfig(batch=12, behind=0.0))
    assert at(3, bare=4) == pytest.approx(bare(3)[0].item(), rel=1e-5)
    assert at(4, bare=4) == at(4) != pytest.approx(bare(4)[0].item(), rel=1e-5)
    assert at(3, anchors=20) == at(3, anchors=20) != at(3)


def test_a_step_depends_on_its_number_alone_and_reaches_all_weights() -> None:
    checkpoint = tiny_encoder("llama").checkpoint
    rng = np.random.default_rng(0)
    texts = column([rng.integers(4, 400, rng.integers(1, 9)).tolist() for _ in range(30)] + [[]])
    targets = torch.randn(31, 32)
    step = Distillation(
        checkpoint, texts, targets, ["Find it", "Find another"], DistilConfig(batch=12, behind=0.4)
    )
    loss, parts = step(3)
    assert torch.equal(step(3)[0], loss)
    assert not torch.equal(step(4)[0], loss)
    assert parts["cosine"].item() < 1
    loss.backward()
    assert all(parameter.grad is not None for parameter in checkpoint.backbone.model.parameters())


@pytest.mark.parametrize("behind", [0.0, 1.0])
def test_rows_stand_where_inference_puts_them(behind: float) -> None:
    """The teacher's vectors are the student's own: there is nothing to learn."""
    encoder = tiny_encoder("llama")
    task = Task("toy", "Find it")
    texts = ["what is a passage", "given a question", "answer it"]
    if behind:
        vectors = encoder.encode_queries(texts, task, "none")
    else:
        vectors = encoder.encode_passages(texts)
    tokenizer, template = encoder.checkpoint.tokenizer, encoder.checkpoint.config.template
    prompt = build_prompt(template, task.instruction) if behind else passage_prompt(template)
    rows = [row[:-1] for row in tokenizer.text_ids(texts, prompt, 50)]
    step = Distillation(
        encoder.checkpoint,
        column(rows),
        torch.from_numpy(vectors),
        [task.instruction],
        DistilConfig(batch=3, behind=behind),
    )
    assert step(0)[1]["cosine"].item() == pytest.approx(1, abs=1e-5)


def test_demonstrations_in_prompts_reach_the_projector() -> None:
    checkpoint = tiny_encoder("llama").checkpoint
    texts = column([[n, n + 1] for n in range(5, 45)])
    config = DistilConfig(batch=12)
    targets = torch.randn(4, 32).repeat(10, 1)  # of every fourth text the same
    plain, shown, foreign = (
        Distillation(checkpoint, texts, vectors, ["Find it"], config, most_shown=most)
        for most, vectors in ((0, targets), (3, targets), (3, torch.eye(40)[:, :32]))
    )
    assert checkpoint.projector is not None
    plain(0)[0].backward()
    weight = checkpoint.projector.output.weight
    assert weight.grad is None
    for step in range(4):
        foreign(step)[0].backward()  # nothing is alike, so nothing is shown
    assert weight.grad is None
    for step in range(4):  # one in four shows none
        shown(step)[0].backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_foreign_text_before_the_instruction() -> None:
    checkpoint = tiny_encoder("llama").checkpoint
    texts, targets = column([[n, n + 1] for n in range(5, 45)]), torch.randn(40, 32)
    step = Distillation(checkpoint, texts, targets, ["Find it"], DistilConfig(batch=12, textual=3))
    kept = build_prompt(checkpoint.config.template, "Find it").prefix
    shown = []
    for number in range(30):
        rng = np.random.default_rng(number)
        (prompt,) = step._prompts("Find it", torch.zeros(0, 32), np.arange(0), rng)
        words = "".join(piece.text for piece in prompt.prefix if isinstance(piece, Text))
        end = "".join(piece.text for piece in kept if isinstance(piece, Text))
        assert words.endswith(end)
        shown.append(words.count("Find it") - 1)
    assert set(shown) == {0, 1, 2, 3}
    assert 8 < shown.count(0) < 22
    decode = checkpoint.tokenizer.hf.decode
    for cut in (1, 2):
        config = DistilConfig(batch=12, textual=3, shown_tokens=(cut,))
        step = Distillation(checkpoint, texts, targets, ["Find it"], config)
        whole = {decode([n, n + 1][:cut]) for n in range(5, 45)}
        pairs = step._foreign(np.random.default_rng(0))
        assert {piece.text for pair in pairs for piece in pair.values()} <= whole  # type: ignore[union-attr]
    assert torch.isfinite(step(1)[0])


def test_texts_that_are_alike_become_pairs() -> None:
    targets = torch.tensor([[1.0, 0, 0], [0, 2, 0], [1, 0.1, 0], [1, 0.9, 0], [0, 1, 0.3]])
    assert alike_pairs(targets, 5, 0.5) == [(0, 2), (1, 4)]  # 3 is like all of them
    assert alike_pairs(targets, 1, 0.5) == [(0, 2)]
    assert alike_pairs(torch.eye(4), 5, 0.5) == []
    assert alike_pairs(-torch.eye(4) - 1, 5, -1.0) == [(0, 1), (2, 3)]  # no row twice
    assert alike_pairs(torch.zeros(0, 3), 5, -1.0) == []
    opposite = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    assert alike_pairs(opposite, 2, -1.0) == [(0, 2), (1, 3)]


def test_all_kinds_of_prompts_in_one_step() -> None:
    checkpoint = tiny_encoder("llama").checkpoint
    texts, targets = column([[n, n + 1] for n in range(5, 45)]), torch.randn(40, 32)
    config = DistilConfig(
        batch=12, apart=True, textual=2, alike=-1.0, behind=0.5, shown_tokens=(1, 2)
    )
    step = Distillation(checkpoint, texts, targets, ["Find it"], config, most_shown=2)
    vectors, words = set(), set()
    for number in range(30):
        rng = np.random.default_rng(number)
        plain, shown, text = step._prompts("Find it", torch.randn(6, 32), np.arange(6), rng)
        assert plain == build_prompt(checkpoint.config.template, "Find it")
        assert all(isinstance(piece, Text) for piece in text.prefix)
        vectors.add(sum(isinstance(piece, Vectors) for piece in shown.prefix))
        words.add(
            sum(piece.text.count("Find it") for piece in text.prefix if isinstance(piece, Text))
        )
    assert vectors == {2, 4}
    assert words == {2, 3}  # of each demonstration, and of the query
    loss, _ = step(1)
    assert torch.equal(loss, step(1)[0])
    loss.backward()
    assert checkpoint.projector is not None
    assert checkpoint.projector.output.weight.grad is not None
    with pytest.raises(InputError, match="shown is 0 and textual 2"):
        Distillation(checkpoint, texts, targets, ["Find it"], config)


def test_some_of_the_texts_behind_nothing_are_long() -> None:
    checkpoint = tiny_encoder("llama").checkpoint
    rng = np.random.default_rng(0)
    lengths = [200 if n % 10 == 0 else 3 for n in range(200)]
    texts = column([rng.integers(4, 400, length).tolist() for length in lengths])
    targets = torch.randn(200, 32)

    def long_ones(share: float) -> int:
        config = DistilConfig(batch=20, behind=0.0, long=share, max_tokens=100)
        step = Distillation(checkpoint, texts, targets, ["Find it"], config)
        with patch.object(step._rows, "encode", wraps=step._rows.encode) as encode:
            step(0)
        rows = encode.call_args.args[0]
        assert len(rows) == 20
        return sum(len(row) == 101 for row in rows)

    assert long_ones(0.5) >= 10 > long_ones(0.0)


def test_families_are_drawn_together() -> None:
    checkpoint = tiny_encoder("llama").checkpoint
    rows = [[4 + number] for number in range(30)]
    rows[9] = []  # an empty text is passed over, its family is not
    step = Distillation(
        checkpoint, column(rows), torch.randn(30, 32), ["Find it"], DistilConfig(batch=12, family=3)
    )
    met: set[int] = set()
    for number in range(20):
        drawn = step._drawn(np.random.default_rng(number)).tolist()
        assert len(set(drawn)) == len(drawn) in {11, 12}
        assert {row // 3 * 3 + place for row in drawn for place in range(3)} - set(drawn) <= {9}
        met |= set(drawn)
    assert met == set(range(30)) - {9}


def test_weights_say_what_is_drawn_and_passages_stand_behind_nothing() -> None:
    checkpoint = tiny_encoder("llama").checkpoint
    texts, targets = column([[n, n + 1] for n in range(5, 45)]), torch.randn(40, 32)
    weights = np.zeros(40)
    weights[:12] = 1 / 12
    passages = np.arange(40) < 6
    config = DistilConfig(batch=20, behind=0.5)
    step = Distillation(
        checkpoint, texts, targets, ["Find it"], config, weights=weights, passages=passages
    )
    drawn = step._drawn(np.random.default_rng(0))
    assert sorted(drawn.tolist()) == list(range(12))  # no more than can be drawn
    before: list[list[int]] = []
    encode = step._rows.encode

    def spy(rows: list[list[int]], run: Runner) -> torch.Tensor:
        before.append([row[0] - 5 for row in rows])
        return encode(rows, run)

    with patch.object(step._rows, "encode", spy):
        step(3)
    bare, behind = before
    assert sorted(bare) == list(range(6))
    assert sorted(behind) == list(range(6, 12))
