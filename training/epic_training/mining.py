"""Hard-negative mining: for each query, passages that score high and yet do not answer it.

A passage is retrieved for a query by an encoder or by BM25 and is kept as a negative when

1. it is no positive of the query, nor of any row with the same query, nor the query itself;
2. its rank among all candidates, positives included, lies in a window;
3. it scores below every positive of the row by a margin, since a passage that scores as high as the
   answer often is one that nobody has labelled (Moreira et al. 2024, NV-Retriever).

What comes out are rows in FlagEmbedding's format, in the order of the input. Knows nothing of how
scores are made.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from tqdm import tqdm

from epic_retrieval.errors import InputError
from epic_retrieval.index._lock import exclusive
from epic_retrieval.index.corpus import read_corpus
from epic_training.data.formats import guess_format, read_rows, source_files
from epic_training.data.rows import TrainingRow
from epic_training.mining_blocks import Workspace, check_output, digest_of_input, files_below
from epic_training.mining_pool import Pool, read_pool
from epic_training.mining_sources import NegativeSource, Ranked, Ranker

Pick = Literal["top", "random"]

_ROWS_AT_ONCE = 512  # searched, and saved, together
_DIGITS = 6  # of scores in the output


@dataclass(frozen=True)
class MiningSettings:
    """Which of the retrieved passages become negatives.

    Attributes:
        negatives: how many a row gets, at most.
        rank_min: the best rank that may be taken, from 1.
        rank_max: the last one; so many candidates are retrieved.
        margin: keep a candidate only if its score is at most the positive's minus this. Cosines
            for an encoder. BM25's scores have another size for each query, so that only the
            relative margin makes sense there.
        relative_margin: keep it only if its score is at most this share of the positive's, 0 to 1;
            for a negative cosine p, at most p - (1 - share) * |p|. With several positives, both
            margins are measured from the lowest of them.
        pick: "top" takes the best ranks of what is left, "random" any.
        seed: of the random choice, which depends on nothing but this and the row's number.
        add: keep the negatives that a row has already, and append; False replaces them.
        scores: write the scores of positives and negatives too, for distillation.

    Raises:
        InputError: for a value that has no meaning.
    """

    negatives: int = 7
    rank_min: int = 1
    rank_max: int = 100
    margin: float | None = None
    relative_margin: float | None = 0.95
    pick: Pick = "top"
    seed: int = 42
    add: bool = False
    scores: bool = False

    def __post_init__(self) -> None:
        for name in ("negatives", "rank_min"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.rank_max < self.rank_min:
            raise InputError(
                f"ranks {self.rank_min} to {self.rank_max} hold no passage; expected rank_max to be"
                " at least rank_min"
            )
        if self.margin is not None and not self.margin >= 0:
            raise InputError(f"margin is {self.margin}; expected at least 0, or none")
        if self.relative_margin is not None and not 0 < self.relative_margin <= 1:
            raise InputError(
                f"relative_margin is {self.relative_margin}; expected a share of the positive's"
                " score, above 0 and at most 1, or none"
            )
        if self.pick not in get_args(Pick):
            raise InputError(f"pick is {self.pick!r}; expected {' or '.join(get_args(Pick))}")

    def ceiling(self, positives: Sequence[float]) -> float:
        """The highest score that a negative may have beside positives with these scores."""
        lowest = min(positives)
        ceiling = float("inf")
        if self.margin is not None:
            ceiling = lowest - self.margin
        if self.relative_margin is not None:
            ceiling = min(ceiling, lowest - (1 - self.relative_margin) * abs(lowest))
        return ceiling


@dataclass(frozen=True)
class MiningReport:
    """What a run found.

    Attributes:
        rows: of the training data.
        mined: negatives that were found for them.
        without: rows that no candidate was left for.
        answers: candidates in the window that were dropped as positives, negatives that the row
            has, or the query itself.
        too_close: candidates that were dropped for a margin.
        candidates: passages to choose from, each counted once.
        outside: texts of the rows that a given corpus lacks.
    """

    rows: int
    mined: int
    without: int
    answers: int
    too_close: int
    candidates: int
    outside: int


def mine_negatives(
    pairs: str | Path,
    out: str | Path,
    source: NegativeSource,
    settings: MiningSettings | None = None,
    *,
    format: str | None = None,  # noqa: A002 (the readers' own word)
    corpus: str | Path | None = None,
    show_progress: bool = False,
) -> MiningReport:
    """Read training data, find hard negatives, write the rows with them.

    The data is read twice, streaming. Work is kept in `OUT.partial` until `out` is complete:
    the same call goes on where a former one was stopped, with the same result.

    Args:
        pairs: training data in any format of `epic_training.data.formats`.
        out: a `.jsonl` or `.jsonl.gz` file, which must not be there.
        source: `EncoderSource` or `Bm25Source`.
        settings: which candidates become negatives; None: the defaults.
        format: of `pairs`; None guesses.
        corpus: passages to choose from, as `epic index build` reads them (blank ones left out);
            None takes the positives and negatives of the data itself.
        show_progress: progress bars on stderr.

    Raises:
        InputError: for data, settings or an output that cannot be used, or when `OUT.partial` was
            begun with other data or settings.
        PassageIndexError: another process is making `out`.
    """
    pairs, out, settings = Path(pairs), Path(out), settings or MiningSettings()
    check_output(out)
    chosen = format or guess_format(pairs)
    made_from = {
        "data": digest_of_input(pairs, source_files(pairs, chosen)),
        "format": chosen,
        "corpus": None if corpus is None else _corpus_digest(Path(corpus)),
        "settings": asdict(settings),
        "source": dict(source.identity()),
        "rows_at_once": _ROWS_AT_ONCE,
    }
    with exclusive(out.with_name(f".{out.name}.lock"), str(out)):
        workspace = Workspace(out, made_from)
        try:
            checked = _checked_rows(pairs, chosen, source, show_progress=show_progress)
            pool = read_pool(checked, _corpus_texts(corpus, show_progress=show_progress))
        except InputError:
            workspace.leave_if_empty()  # what mends the error may be another setting
            raise
        run = _Run(source, settings, pool, workspace, show_progress)
        counts, blocks = run.mine(read_rows(pairs, chosen))
        workspace.finish(blocks)
    return MiningReport(
        rows=counts["rows"],
        mined=counts["mined"],
        without=counts["without"],
        answers=counts["answers"],
        too_close=counts["too_close"],
        candidates=pool.candidates,
        outside=len(pool.texts) - pool.candidates,
    )


@dataclass
class _Run:
    """One run: what is searched, and where finished blocks go."""

    source: NegativeSource
    settings: MiningSettings
    pool: Pool
    workspace: Workspace
    show_progress: bool

    def mine(self, rows: Iterator[TrainingRow]) -> tuple[Counter[str], int]:
        """Write every block that is not there; counts of all, and how many blocks there are."""
        blocks = -(-self.pool.rows // _ROWS_AT_ONCE)
        done = [self.workspace.counts(number) for number in range(blocks)]
        # A run that was stopped at the very end needs no encoder any more.
        ranker = self._ranker() if None in done else None
        total: Counter[str] = Counter()
        hidden = not self.show_progress
        with tqdm(total=self.pool.rows, desc="queries", unit="row", disable=hidden) as bar:
            for number, counts in enumerate(done):
                block = list(islice(rows, _ROWS_AT_ONCE))
                if counts is None and ranker is not None:
                    counts = Counter()  # noqa: PLW2901 (filled while the lines are made)
                    lines = self._mined(block, number * _ROWS_AT_ONCE, ranker, counts)
                    self.workspace.write(number, lines, counts)
                total += counts or Counter()
                bar.update(len(block))
        return total, blocks

    def _ranker(self) -> Ranker:
        return self.source.open(self.pool, self.workspace.folder, show_progress=self.show_progress)

    def _mined(
        self, block: Sequence[TrainingRow], first: int, ranker: Ranker, counts: Counter[str]
    ) -> list[str]:
        """The output lines of a block of rows, the first of which has number `first`."""
        wanted = [
            [self.pool.number(text) for text in (*row.positives, *row.negatives)] for row in block
        ]
        lines = []
        ranked = ranker.rank(block, wanted, self.settings.rank_max)
        for number, (row, said) in enumerate(zip(block, ranked, strict=True), start=first):
            chosen = self._chosen(row, said, number, counts)
            counts["rows"] += 1
            counts["mined"] += len(chosen)
            counts["without"] += not chosen
            lines.append(self._line(row, said, chosen))
        return lines

    def _chosen(
        self, row: TrainingRow, said: Ranked, number: int, counts: Counter[str]
    ) -> list[tuple[int, float]]:
        """(passage, score) of a row's new negatives, best first."""
        settings = self.settings
        taboo = self.pool.not_to_choose(row, keep_negatives=settings.add)
        ceiling = settings.ceiling(said.wanted[: len(row.positives)])
        window = said.found[settings.rank_min - 1 : settings.rank_max]
        fair = [(passage, score) for passage, score in window if passage not in taboo]
        left = [(passage, score) for passage, score in fair if score <= ceiling]
        counts["answers"] += len(window) - len(fair)
        counts["too_close"] += len(fair) - len(left)
        if settings.pick == "top" or len(left) <= settings.negatives:
            return left[: settings.negatives]
        rng = np.random.default_rng([settings.seed, number])
        places = rng.choice(len(left), size=settings.negatives, replace=False)
        return [left[place] for place in sorted(places)]

    def _line(self, row: TrainingRow, said: Ranked, chosen: list[tuple[int, float]]) -> str:
        """A row in FlagEmbedding's format. Scores that it had come from elsewhere: left out."""
        kept = row.negatives if self.settings.add else ()
        cells: dict[str, object] = {
            "query": row.query,
            "pos": row.positives,
            "neg": [*kept, *(self.pool.texts[passage] for passage, _ in chosen)],
        }
        if self.settings.scores:
            positives = said.wanted[: len(row.positives)]
            negatives = [*said.wanted[len(row.positives) :][: len(kept)], *(s for _, s in chosen)]
            cells["pos_scores"] = [round(score, _DIGITS) for score in positives]
            cells["neg_scores"] = [round(score, _DIGITS) for score in negatives]
        if row.instruction is not None:
            cells["prompt"] = row.instruction
        if row.kind is not None:
            cells["type"] = row.kind
        return json.dumps(cells, ensure_ascii=False)


def _checked_rows(
    pairs: Path, format_name: str, source: NegativeSource, *, show_progress: bool
) -> Iterator[TrainingRow]:
    rows = read_rows(pairs, format_name)
    shown = tqdm(rows, desc="reading", unit="row", disable=not show_progress)
    for number, row in enumerate(shown, start=1):
        try:
            source.check(row)
        except InputError as error:
            raise InputError(f"{pairs}, row {number}: {error}") from error
        yield row


def _corpus_digest(corpus: Path) -> str:
    read_corpus(corpus)  # says now what is wrong with the path
    return digest_of_input(corpus, files_below(corpus))


def _corpus_texts(corpus: str | Path | None, *, show_progress: bool) -> Iterator[str] | None:
    if corpus is None:
        return None
    passages = read_corpus(corpus, skip_empty=True)
    shown = tqdm(passages, desc="corpus", unit="passage", disable=not show_progress)
    return (passage.content for passage in shown)
