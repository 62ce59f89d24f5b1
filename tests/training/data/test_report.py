from pathlib import Path

import numpy as np
import pytest

from epic_retrieval.errors import InputError
from epic_retrieval.prompt import TEMPLATES, passage_prompt, query_prompt
from epic_retrieval.tokenization import TextTokenizer
from epic_training.data.plan import BatchPlan
from epic_training.data.report import describe_mix, render
from tests.models import tiny_tokenizer
from tests.training.data.samples import MIXED, Row, flag_rows, pair_rows, training_set

TEMPLATE = TEMPLATES["bge-en-icl"]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(tiny_tokenizer(), bos_id=1, eos_id=2)


def test_a_mix_is_described(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    rows: list[Row] = [
        {"query": f"{MIXED} {n}", "positive": "word " * n + "end", "negative": ["a", "b"][: n % 3]}
        for n in range(60)
    ]
    plain = training_set(tmp_path, rows, name="plain", ratio=0.5, held_out=[0, 1, 2])
    twins = training_set(
        tmp_path, pair_rows(30), name="twins", instructions=["alike"], symmetric=True
    )
    plan = BatchPlan([plain, twins], 10, 1, seed=1)
    report = describe_mix([plain, twins], plan, tokenizer, TEMPLATE, max_length=40)
    assert (report.batches_per_epoch, report.max_length) == (5, 40)
    first, second = report.datasets
    assert (first.name, first.rows, first.development, first.ratio) == ("plain", 57, 3, 0.5)
    assert (first.rows_per_epoch, first.batch_size, first.batches) == (28, 10, 2)
    assert (first.share, second.share) == (2 / 5, 3 / 5)
    assert first.negatives == pytest.approx(1.0)  # 0, 1, 2, 0, 1, 2, ...

    kept = [plain.rows[n] for n in plain.train]
    asked, answered = query_prompt(TEMPLATE, plain.tasks[0], "none"), passage_prompt(TEMPLATE)
    for counts, texts, prompt in (
        (first.query, [row.query for row in kept], asked),
        (first.positive, [row.positives[0] for row in kept], answered),
        (first.negative, [row.negatives[0] for row in kept if row.negatives], answered),
    ):
        assert counts is not None
        lengths = [len(tokenizer.text_ids([text], prompt, 10**6)[0]) for text in texts]
        assert counts.texts == len(lengths)
        assert counts.mean == pytest.approx(np.mean(lengths))
        assert counts.median == np.median(lengths)
        assert counts.p95 == pytest.approx(np.percentile(lengths, 95))
        assert counts.longest == max(lengths)
        cut = [
            len(tokenizer.text_ids([text], prompt, 40)[0]) < n
            for text, n in zip(texts, lengths, strict=True)
        ]
        assert counts.cut == pytest.approx(np.mean(cut))
    assert 0 < first.positive.cut < 1

    start = "<bos><instruct>Given a question, retrieve passages that answer it\n<query>"
    assert first.example_query == f"{start}{MIXED} 3\n<response><eos>"
    assert first.example_positive == "<bos>word word word end<eos>"
    assert first.example_negative is None
    assert second.negative is None
    # Passages of a symmetric task are read as its queries are.
    assert second.example_positive == ("<bos><instruct>alike\n<query> passage 0.\n<response><eos>")


def test_a_sample_is_spread_over_the_rows(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    rows: list[Row] = [{"query": "q", "positive": "x" * (n + 1)} for n in range(1000)]
    one = training_set(tmp_path, rows)
    plan = BatchPlan([one], 10, 1, seed=1)
    (found,) = describe_mix([one], plan, tokenizer, TEMPLATE, 64, sample=11).datasets
    assert (found.query.texts, found.positive.texts) == (11, 11)
    every = describe_mix([one], plan, tokenizer, TEMPLATE, 64, sample=5000).datasets[0]
    assert every.positive.texts == 1000
    assert found.positive.longest == every.positive.longest
    assert found.positive.mean == pytest.approx(every.positive.mean, rel=0.05)


def test_data_sets_that_share_batches_are_described_each(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    sets = [training_set(tmp_path, pair_rows(n, name=f"{n}"), name=f"s{n}") for n in (10, 30)]
    plan = BatchPlan(sets, 8, 1, seed=1, same_dataset=False)
    report = describe_mix(sets, plan, tokenizer, TEMPLATE, 64)
    assert [one.share for one in report.datasets] == [0.25, 0.75]
    assert sum(one.batches for one in report.datasets) == plan.batches_per_epoch == 5


def test_the_report_is_plain_text(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    rows = [dict(row) for row in flag_rows(20, type="normal")]
    rows[0]["query"] = f"[bold]{MIXED}[/bold] :smile: \x1b[2J"
    rows[0]["pos"] = ["start " + "x" * 100_000 + " finish"]
    one = training_set(tmp_path, rows, name="toy_set", format="flagembedding", held_out=[7])
    plan = BatchPlan([one], 4, 1, seed=1)
    text = render(describe_mix([one], plan, tokenizer, TEMPLATE, max_length=64))
    assert "\x1b" not in text
    assert len(text) < 5000
    for expected in (
        "4 batches per epoch",
        "toy_set",
        "100.0%",
        "[bold]Wie geht's? 你好 🙂",
        "[/bold] :smile: \\x1b[2J",
        "<bos><instruct>Given a question, retrieve passages that answer it\n<query>[bold]",
        "<bos>start xxx",
        "characters ...]",
        "xxx finish<eos>",
        "toy_set, negative:\n<bos>other 0-0<eos>",
    ):
        assert expected in text
    rows_line = next(line for line in text.splitlines() if "toy_set" in line)
    assert [cell.strip() for cell in rows_line.split("│")[1:-1]] == [
        "toy_set", "19", "1", "1", "19", "4", "4", "100.0%", "4.0",
    ]  # fmt: skip


def test_what_cannot_be_described_is_an_error(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    one = training_set(tmp_path, pair_rows(4))
    plan = BatchPlan([one], 4, 1, seed=1)
    with pytest.raises(InputError, match="sample is 0"):
        describe_mix([one], plan, tokenizer, TEMPLATE, 64, sample=0)
    with pytest.raises(InputError, match="data set 'toy': max_length is 3"):
        describe_mix([one], plan, tokenizer, TEMPLATE, 3)
