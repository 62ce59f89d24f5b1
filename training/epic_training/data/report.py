"""What a mix will train on: rows, batches and tokens per data set, and one example as it is read.

For looking at before a run (`epic train --dry-run`).

Knows nothing of models and losses.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from epic_retrieval.errors import InputError
from epic_retrieval.prompt import Prompt, Template, Text, passage_prompt, query_prompt
from epic_retrieval.tasks.task import located
from epic_retrieval.tokenization import TextTokenizer
from epic_training.data.mix import TrainingSet
from epic_training.data.plan import BatchPlan
from epic_training.data.rows import TrainingRow

_UNCUT = 2**31  # tokens
_WIDTH = 120  # characters of the tables
_SHOWN = 1200  # characters of an example's text


@dataclass(frozen=True)
class TokenCounts:
    """Tokens per text in a sample.

    The template's suffix and the end token count, as they do for `max_length`; the prompt before
    the text does not.

    Attributes:
        texts: size of the sample.
        mean, median, p95, longest: before anything is cut.
        cut: share of the texts, from 0 to 1, that lose tokens at `max_length`.
    """

    texts: int
    mean: float
    median: float
    p95: float
    longest: int
    cut: float


@dataclass(frozen=True)
class DatasetReport:
    """One data set of a mix.

    Attributes:
        name: as in the mix.
        rows: trained on.
        development: held out.
        ratio: share of the rows used per epoch.
        rows_per_epoch: drawn in an epoch.
        batch_size: rows per batch; below the plan's where there are too few.
        batches: per epoch; a fraction where several data sets share batches.
        share: of all batches, from 0 to 1.
        negatives: hard negatives per row, the mean over the rows trained on.
        query: token counts of queries.
        positive: ... of positives.
        negative: ... of hard negatives; None where there are none.
        example_query: a query with its prompt, <bos> and <eos>.
        example_positive: its positive in the same way.
        example_negative: a negative in the same way, or None.
    """

    name: str
    rows: int
    development: int
    ratio: float
    rows_per_epoch: int
    batch_size: int
    batches: float
    share: float
    negatives: float
    query: TokenCounts
    positive: TokenCounts
    negative: TokenCounts | None
    example_query: str
    example_positive: str
    example_negative: str | None


@dataclass(frozen=True)
class MixReport:
    """All data sets, in the order of the mix, and what holds for all of them."""

    datasets: tuple[DatasetReport, ...]
    batches_per_epoch: int
    max_length: int


def describe_mix(
    sets: Sequence[TrainingSet],
    plan: BatchPlan,
    tokenizer: TextTokenizer,
    template: Template,
    max_length: int,
    sample: int = 512,
) -> MixReport:
    """Describe a mix.

    Args:
        sets: the data sets of `plan`.
        plan: whose batches are counted.
        tokenizer: of the model that is to be trained.
        template: the wording of prompts.
        max_length: where texts are cut, suffix and end token included.
        sample: most rows per data set that are tokenised; they are spread evenly over it, each with
            one positive and one negative.

    Raises:
        InputError: naming the data set, for a text without a token, or a `max_length` or `sample`
            that is too small.
    """
    if sample < 1:
        raise InputError(f"sample is {sample}; expected at least 1")
    described = []
    for one in sets:
        with located(f"data set {one.name!r}"):
            described.append(_describe(one, plan, tokenizer, template, max_length, sample))
    return MixReport(tuple(described), plan.batches_per_epoch, max_length)


def _describe(
    one: TrainingSet,
    plan: BatchPlan,
    tokenizer: TextTokenizer,
    template: Template,
    max_length: int,
    sample: int,
) -> DatasetReport:
    share = next(share for share in plan.shares if one in share.sets)
    rows_per_epoch = share.rows[share.sets.index(one)]
    batches = share.batches * rows_per_epoch / sum(share.rows)
    task = one.tasks[0]
    asked = query_prompt(template, task, "none")
    answered = asked if task.symmetric else passage_prompt(template)
    spread = np.linspace(0, len(one.train) - 1, min(sample, len(one.train))).round().astype(int)
    rows = [_first_texts(one, int(number)) for number in one.train[spread]]
    negatives = [row.negatives[0] for row in rows if row.negatives]

    def counted(texts: Sequence[str], prompt: Prompt) -> TokenCounts:
        return _count(texts, prompt, tokenizer, max_length)

    def shown(text: str, prompt: Prompt) -> str:
        before = "".join(piece.text for piece in prompt.prefix if isinstance(piece, Text))
        start = "<bos>" if tokenizer.bos_id is not None else ""
        return f"{start}{before}{text}{prompt.suffix}<eos>"

    return DatasetReport(
        name=one.name,
        rows=len(one.train),
        development=len(one.development),
        ratio=one.ratio,
        rows_per_epoch=rows_per_epoch,
        batch_size=share.size,
        batches=batches,
        share=batches / plan.batches_per_epoch,
        negatives=float(one.rows.negative_counts()[one.train].mean()),
        query=counted([row.query for row in rows], asked),
        positive=counted([row.positives[0] for row in rows], answered),
        negative=counted(negatives, answered) if negatives else None,
        example_query=shown(rows[0].query, asked),
        example_positive=shown(rows[0].positives[0], answered),
        example_negative=shown(rows[0].negatives[0], answered) if rows[0].negatives else None,
    )


def _first_texts(one: TrainingSet, number: int) -> TrainingRow:
    _, negatives = one.rows.counts(number)
    return one.rows.select(number, 0, range(min(1, negatives)))


def _count(
    texts: Sequence[str], prompt: Prompt, tokenizer: TextTokenizer, max_length: int
) -> TokenCounts:
    tokenizer.text_ids([], prompt, max_length)  # is there room for a text at all?
    lengths = np.array([len(row) for row in tokenizer.text_ids(texts, prompt, _UNCUT)])
    return TokenCounts(
        texts=len(lengths),
        mean=float(lengths.mean()),
        median=float(np.median(lengths)),
        p95=float(np.percentile(lengths, 95)),
        longest=int(lengths.max()),
        cut=float((lengths > max_length).mean()),
    )


def render(report: MixReport) -> str:
    """The report as plain text: two tables and the examples, long texts shortened."""
    out = io.StringIO()
    # Texts of users: no markup, no emoji codes, no colours in them.
    console = Console(
        file=out, width=_WIDTH, color_system=None, markup=False, emoji=False, highlight=False
    )
    console.print(_rows_table(report))
    console.print(_tokens_table(report))
    for one in report.datasets:
        for word, text in (
            ("query", one.example_query),
            ("positive", one.example_positive),
            ("negative", one.example_negative),
        ):
            shown = _shortened(text) if text is not None else "none"
            console.print(f"{one.name}, {word}:\n{shown}\n", soft_wrap=True)
    return out.getvalue()


def _rows_table(report: MixReport) -> Table:
    table = Table(title=f"{report.batches_per_epoch:,} batches per epoch", title_justify="left")
    table.add_column("data set", overflow="fold")
    for heading in ("rows", "held out", "ratio", "rows/epoch", "batch", "batches", "share"):
        table.add_column(heading, justify="right")
    table.add_column("negatives/row", justify="right")
    for one in report.datasets:
        table.add_row(
            one.name,
            f"{one.rows:,}",
            f"{one.development:,}",
            f"{one.ratio:g}",
            f"{one.rows_per_epoch:,}",
            str(one.batch_size),
            f"{one.batches:,.0f}",
            f"{one.share:.1%}",
            f"{one.negatives:.1f}",
        )
    return table


def _tokens_table(report: MixReport) -> Table:
    table = Table(title=f"tokens per text (cut at {report.max_length})", title_justify="left")
    table.add_column("data set", overflow="fold")
    table.add_column("text")
    for heading in ("sample", "mean", "median", "95 %", "longest", "cut"):
        table.add_column(heading, justify="right")
    for one in report.datasets:
        for word, counts in (
            ("query", one.query),
            ("positive", one.positive),
            ("negative", one.negative),
        ):
            if counts is not None:
                table.add_row(
                    one.name,
                    word,
                    str(counts.texts),
                    f"{counts.mean:.1f}",
                    f"{counts.median:.0f}",
                    f"{counts.p95:.0f}",
                    f"{counts.longest:,}",
                    f"{counts.cut:.1%}",
                )
    return table


def _shortened(text: str) -> str:
    """The start and the end of a text, without what a terminal would obey."""
    if len(text) > _SHOWN:
        half = _SHOWN // 2
        text = f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
    return "".join(
        char if char in "\n\t" or char.isprintable() else f"\\x{ord(char):02x}" for char in text
    )
