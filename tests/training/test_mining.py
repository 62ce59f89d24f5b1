"""Hard negatives: equal to a brute-force search, never an answer, and not lost by a crash."""

import gzip
import json
import math
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epic_retrieval import EpicEncoder, InputError, PassageIndexError, Task
from epic_training import mining, mining_encoder
from epic_training.data.formats import guess_format, read_rows
from epic_training.data.rows import TrainingRow
from epic_training.mining import MiningSettings, mine_negatives
from epic_training.mining_blocks import Workspace
from epic_training.mining_bm25 import Bm25Source
from epic_training.mining_encoder import EncoderSource
from epic_training.mining_sources import NegativeSource
from tests.conftest import ROOT
from tests.models import tiny_encoder
from tests.training.samples import ANIMALS, PLACES, VERBS

TASK = Task("t", "Retrieve what answers")
OPEN = MiningSettings(negatives=4, relative_margin=None)
Rows = list[dict[str, Any]]


def animal_rows(count: int) -> Rows:
    """Questions with one answer each; some share a query, some a positive."""
    rows: Rows = []
    for number in range(count):
        animal, verb = ANIMALS[number % 15], VERBS[number // 15 % 10]
        place = PLACES[number % 5]
        rows.append(
            {
                "query": f"where does the {animal} go that {verb}",
                "pos": [f"The {animal} {verb} near the {place}."],
                "neg": [f"No {animal} was ever seen at the {place} in winter."],
            }
        )
    rows.append({"query": rows[0]["query"], "pos": ["Another answer to the very same question."]})
    rows.append({"query": "who shares an answer with row 1", "pos": rows[1]["pos"]})
    return rows


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[TrainingRow]:
    return list(read_rows(path, guess_format(path)))


@pytest.fixture(scope="module")
def encoder() -> EpicEncoder:
    return tiny_encoder("qwen3")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write(tmp_path / "pairs.jsonl", animal_rows(40))


@pytest.fixture
def source(encoder: EpicEncoder) -> EncoderSource:
    return EncoderSource(encoder, TASK, "none")


def naive(
    rows: Sequence[TrainingRow],
    score: Callable[[str, list[str]], Sequence[float]],
    settings: MiningSettings,
    corpus: Sequence[str] | None = None,
) -> list[list[str]]:
    """The negatives of each row, from all scores of each query, text by text."""
    own = [text for row in rows for text in (*row.positives, *row.negatives)]
    candidates = list(dict.fromkeys(own if corpus is None else corpus))
    found = []
    for row in rows:
        scores = score(row.query, candidates)
        order = sorted(range(len(candidates)), key=lambda i: (-scores[i], i))
        window = order[settings.rank_min - 1 : settings.rank_max]
        answers = {p for other in rows if other.query == row.query for p in other.positives}
        lowest = min(score(row.query, list(row.positives)))
        kept = []
        for place in window:
            close = settings.margin is not None and scores[place] > lowest - settings.margin
            share = settings.relative_margin
            close |= share is not None and scores[place] > lowest - (1 - share) * abs(lowest)
            fits = candidates[place] not in answers and candidates[place] != row.query
            if fits and not close and scores[place] > -math.inf:
                kept.append(candidates[place])
        found.append(kept[: settings.negatives])
    return found


def cosines(encoder: EpicEncoder, task: Task = TASK) -> Callable[[str, list[str]], Sequence[float]]:
    kept: dict[str, np.ndarray] = {}

    def score(query: str, texts: list[str]) -> Sequence[float]:
        new = [text for text in texts if text not in kept]
        if new:
            vectors = encoder.encode_passages(new, task, "none")
            kept.update(zip(new, vectors.astype(float), strict=True))
        vector = encoder.encode_queries([query], task, "none")[0].astype(float)
        return [float(kept[text] @ vector) for text in texts]

    return score


@pytest.mark.parametrize(
    "settings",
    [
        OPEN,
        replace(OPEN, rank_min=3, rank_max=9),
        replace(OPEN, margin=0.05),
        MiningSettings(negatives=3),
        MiningSettings(negatives=50, rank_min=2, relative_margin=0.9, margin=0.01),
    ],
    ids=["open", "window", "absolute", "relative", "both"],
)
@pytest.mark.parametrize("symmetric", [False, True])
def test_equal_to_brute_force(
    pairs: Path, encoder: EpicEncoder, tmp_path: Path, settings: MiningSettings, symmetric: bool
) -> None:
    task = replace(TASK, symmetric=symmetric)
    report = mine_negatives(
        pairs, tmp_path / "out.jsonl", EncoderSource(encoder, task, "none"), settings
    )
    expected = naive(read(pairs), cosines(encoder, task), settings)
    assert [list(row.negatives) for row in read(tmp_path / "out.jsonl")] == expected
    assert report.mined == sum(map(len, expected)) > 0
    assert report.without == expected.count([])
    assert (report.rows, report.outside) == (42, 0)


def test_bm25_is_equal_to_its_formula(pairs: Path, tmp_path: Path) -> None:
    settings = MiningSettings(negatives=5, rank_max=30, relative_margin=0.8)
    mine_negatives(pairs, tmp_path / "out.jsonl", Bm25Source(), settings)
    rows = read(pairs)
    texts = list(dict.fromkeys(t for row in rows for t in (*row.positives, *row.negatives)))
    stop = {"the", "was", "at", "in", "no", "that", "to", "with"}  # of bm25s, as far as met here

    def words(text: str) -> list[str]:
        return [word for word in re.findall(r"\w\w+", text.lower()) if word not in stop]

    passages = {text: Counter(words(text)) for text in texts}
    mean = sum(sum(counts.values()) for counts in passages.values()) / len(passages)

    def score(query: str, given: list[str]) -> list[float]:
        found = []
        for text in given:
            counts = passages[text]
            total = 0.0
            for word in words(query):
                having = sum(word in other for other in passages.values())
                idf = math.log(1 + (len(passages) - having + 0.5) / (having + 0.5))
                norm = 1.5 * (1 - 0.75 + 0.75 * sum(counts.values()) / mean)
                total += idf * counts[word] / (counts[word] + norm)
            # Rounded, since equal sums come out unequal here; what shares no word is not found.
            found.append(round(total, 4) or -math.inf)
        return found

    mined = [list(row.negatives) for row in read(tmp_path / "out.jsonl")]
    for row, negatives, expected in zip(rows, mined, naive(rows, score, settings), strict=True):
        by_score = dict(zip(texts, score(row.query, texts), strict=True))
        # Among passages of equal score, either choice is right.
        assert [by_score[text] for text in negatives] == [by_score[text] for text in expected]
        assert all(by_score[text] > 0 for text in negatives)
    assert sum(map(len, mined)) > 50


@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=4),
    st.none() | st.floats(0, 2),
    st.none() | st.floats(0.01, 1),
)
def test_a_ceiling_is_never_above_a_positive(
    positives: list[float], margin: float | None, share: float | None
) -> None:
    ceiling = MiningSettings(margin=margin, relative_margin=share).ceiling(positives)
    if margin is None and share is None:
        assert ceiling == math.inf
    else:
        assert ceiling <= min(positives)


def test_ceilings() -> None:
    assert MiningSettings(relative_margin=0.95).ceiling([0.8, 0.6]) == pytest.approx(0.57)
    assert MiningSettings(relative_margin=0.5).ceiling([-0.2]) == pytest.approx(-0.3)
    assert MiningSettings(margin=0.1).ceiling([0.8]) == pytest.approx(0.7)
    both = MiningSettings(margin=0.01, relative_margin=0.5)
    assert both.ceiling([0.8]) == pytest.approx(0.4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"negatives": 0},
        {"rank_min": 0},
        {"rank_min": 5, "rank_max": 4},
        {"margin": -0.1},
        {"margin": math.nan},
        {"relative_margin": 0.0},
        {"relative_margin": 1.01},
        {"pick": "best"},
    ],
)
def test_settings_without_a_meaning(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected"):
        MiningSettings(**wrong)


def test_what_answers_is_never_a_negative(tmp_path: Path, source: EncoderSource) -> None:
    rows: Rows = [
        {"query": "q one", "pos": ["first answer"], "neg": []},
        {"query": "q  one ", "pos": ["second answer"], "neg": []},  # the same but for white space
        {"query": "q two", "pos": ["third"], "neg": ["q two", "second\nanswer", "something else"]},
    ]
    pairs = write(tmp_path / "p.jsonl", rows)
    report = mine_negatives(pairs, tmp_path / "out.jsonl", source, OPEN)
    first, second, third = read(tmp_path / "out.jsonl")
    # "second answer" stands there with two kinds of white space: one passage.
    assert report.candidates == 5
    assert set(first.negatives) == set(second.negatives) == {"third", "q two", "something else"}
    # Its own text as a passage is no negative of a query.
    assert set(third.negatives) == {"first answer", "second answer", "something else"}


def test_case_makes_another_passage(tmp_path: Path, source: EncoderSource) -> None:
    rows: Rows = [{"query": "list all", "pos": ["ls -a"], "neg": ["ls -A", "ls -l"]}]
    mine_negatives(write(tmp_path / "p.jsonl", rows), tmp_path / "out.jsonl", source, OPEN)
    assert set(read(tmp_path / "out.jsonl")[0].negatives) == {"ls -A", "ls -l"}


def test_random_picks_depend_on_seed_and_row_only(
    pairs: Path, source: EncoderSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(OPEN, pick="random", rank_max=20)
    mine_negatives(pairs, tmp_path / "a.jsonl", source, settings)
    monkeypatch.setattr(mining, "_ROWS_AT_ONCE", 7)
    monkeypatch.setattr(mining_encoder, "_TEXTS_AT_ONCE", 10)
    mine_negatives(pairs, tmp_path / "b.jsonl", source, settings)
    mine_negatives(pairs, tmp_path / "c.jsonl", source, replace(settings, seed=1))
    mine_negatives(pairs, tmp_path / "top.jsonl", source, replace(settings, negatives=20))
    a, b, c, top = (read(tmp_path / f"{name}.jsonl") for name in ("a", "b", "c", "top"))
    assert a == b
    assert a != c
    for one, everything in zip(a, top, strict=True):
        assert len(set(one.negatives)) == 4
        ranks = [everything.negatives.index(text) for text in one.negatives]
        assert ranks == sorted(ranks), "best first"


def test_a_corpus_gives_all_negatives(
    pairs: Path, encoder: EpicEncoder, source: EncoderSource, tmp_path: Path
) -> None:
    rows = animal_rows(40)
    texts = [f"A passage number {n} about {ANIMALS[n % 15]}s." for n in range(30)]
    texts += [row["pos"][0] for row in rows[:5]]  # the corpus has some of the positives
    corpus = tmp_path / "corpus.jsonl"
    lines = [{"_id": str(n), "title": "", "text": text} for n, text in enumerate(texts)]
    write(corpus, [*lines, {"_id": "x", "title": "Moles", "text": "Dig."}])
    settings = MiningSettings(negatives=6, relative_margin=0.99)
    report = mine_negatives(pairs, tmp_path / "out.jsonl", source, settings, corpus=corpus)
    mined = [list(row.negatives) for row in read(tmp_path / "out.jsonl")]
    candidates = [*texts, "Moles\nDig."]
    assert mined == naive(read(pairs), cosines(encoder), settings, candidates)
    assert report.candidates == 36
    own = {text for row in read(pairs) for text in (*row.positives, *row.negatives)}
    assert report.outside == len(own - set(texts)) > 40
    assert report.mined > 30


def test_scores_serve_for_distillation(pairs: Path, source: EncoderSource, tmp_path: Path) -> None:
    settings = MiningSettings(negatives=3, scores=True, add=True)
    mine_negatives(pairs, tmp_path / "out.jsonl.gz", source, settings)
    score = cosines(source.encoder)
    for before, after in zip(read(pairs), read(tmp_path / "out.jsonl.gz"), strict=True):
        assert after.negatives[: len(before.negatives)] == before.negatives
        texts = [*after.positives, *after.negatives]
        given = [*after.positive_scores, *after.negative_scores]
        np.testing.assert_allclose(given, score(after.query, texts), atol=2e-6)
        new = after.negative_scores[len(before.negatives) :]
        assert all(one <= 0.95 * after.positive_scores[0] + 1e-6 for one in new)


def test_two_sources_add_up(pairs: Path, source: EncoderSource, tmp_path: Path) -> None:
    add = replace(OPEN, add=True)
    mine_negatives(pairs, tmp_path / "one.jsonl", Bm25Source(), add)
    mine_negatives(tmp_path / "one.jsonl", tmp_path / "two.jsonl", source, add)
    for before, one, two in zip(
        read(pairs), read(tmp_path / "one.jsonl"), read(tmp_path / "two.jsonl"), strict=True
    ):
        assert one.negatives[: len(before.negatives)] == before.negatives
        assert two.negatives[: len(one.negatives)] == one.negatives
        assert len(two.negatives) == len(one.negatives) + 4
        assert len(set(two.negatives)) == len(two.negatives), "none twice"


def test_rows_keep_everything_else(tmp_path: Path, source: EncoderSource) -> None:
    rows = [row | {"prompt": "Find it", "type": "retrieval"} for row in animal_rows(5)]
    rows[1] |= {"pos": ["é 漢字 🎉", "two"], "neg": ["n"], "pos_scores": [1, 2], "neg_scores": [3]}
    pairs = write(tmp_path / "p.jsonl", rows)
    mine_negatives(pairs, tmp_path / "out.jsonl", source, OPEN)
    for before, after in zip(read(pairs), read(tmp_path / "out.jsonl"), strict=True):
        # Scores of another teacher would not fit the new negatives.
        cleared = replace(before, positive_scores=(), negative_scores=())
        assert replace(after, negatives=before.negatives) == cleared


def test_each_row_has_its_own_instruction(tmp_path: Path, encoder: EpicEncoder) -> None:
    rows = animal_rows(20)
    prompts = [f"Instruction number {n % 2}" for n in range(len(rows))]
    pairs = write(
        tmp_path / "p.jsonl",
        (row | {"prompt": prompt} for row, prompt in zip(rows, prompts, strict=True)),
    )
    mine_negatives(pairs, tmp_path / "out.jsonl", EncoderSource(encoder), OPEN)
    given = read(pairs)
    for n in (0, 1):
        expected = naive(given, cosines(encoder, Task("t", f"Instruction number {n}")), OPEN)
        mined = [list(row.negatives) for row in read(tmp_path / "out.jsonl")]
        assert mined[n::2] == expected[n::2]
    del rows[3]["pos"]
    missing = write(tmp_path / "m.jsonl", [rows[0] | {"prompt": "x"}, rows[1]])
    with pytest.raises(InputError, match=r"m\.jsonl, row 2: the row has no instruction"):
        mine_negatives(missing, tmp_path / "o.jsonl", EncoderSource(encoder), OPEN)


class Stopped(BaseException):
    """Stands for a crash: nobody catches it."""


@pytest.mark.parametrize(
    ("side", "blocks"), [("encode_passages", 3), ("encode_queries", 5)], ids=["passages", "queries"]
)
def test_finished_work_is_not_done_again(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str, blocks: int
) -> None:
    monkeypatch.setattr(mining, "_ROWS_AT_ONCE", 10)
    monkeypatch.setattr(mining_encoder, "_TEXTS_AT_ONCE", 20)
    encoder = tiny_encoder("qwen3")
    source, out = EncoderSource(encoder, TASK, "none"), tmp_path / "out.jsonl"
    mine_negatives(pairs, tmp_path / "whole.jsonl", source, OPEN)
    encode: Callable[..., np.ndarray] = getattr(encoder, side)
    calls: list[int] = []
    stop_at = 2

    def counting(texts: list[str], *options: object, **named: object) -> np.ndarray:
        if len(calls) == stop_at:
            raise Stopped
        calls.append(len(texts))
        return encode(texts, *options, **named)

    monkeypatch.setattr(encoder, side, counting)
    with pytest.raises(Stopped):
        mine_negatives(pairs, out, source, OPEN)
    assert not out.exists()
    calls.clear()
    stop_at = -1
    mine_negatives(pairs, out, source, OPEN)
    assert len(calls) == blocks - 2
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not (tmp_path / "out.jsonl.partial").exists()


KILLED = """
import sys, time
from pathlib import Path
from epic_training import mining, mining_blocks
from epic_training.mining_bm25 import Bm25Source

write = mining_blocks.Workspace.write
mining._ROWS_AT_ONCE = 10

def slow(self, number, lines, counts):
    if number == 3:
        print("three blocks", flush=True)
        time.sleep(600)
    write(self, number, lines, counts)

mining_blocks.Workspace.write = slow
mining.mine_negatives(sys.argv[1], sys.argv[2], Bm25Source())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process the POSIX way")
def test_a_killed_process_is_continued(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mining, "_ROWS_AT_ONCE", 10)
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-c", KILLED, str(pairs), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "three blocks\n"
        with pytest.raises(PassageIndexError, match=rf"another process \(process {process.pid}"):
            mine_negatives(pairs, out, Bm25Source())
        process.send_signal(signal.SIGKILL)
    written: list[int] = []
    write_block = Workspace.write

    def watched(
        self: Workspace, number: int, lines: Iterable[str], counts: Mapping[str, int]
    ) -> None:
        written.append(number)
        write_block(self, number, lines, counts)

    monkeypatch.setattr(Workspace, "write", watched)
    report = mine_negatives(pairs, out, Bm25Source())
    assert written == [3, 4]
    monkeypatch.undo()
    assert report == mine_negatives(pairs, tmp_path / "whole.jsonl", Bm25Source())
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_other_settings_do_not_continue(
    pairs: Path, source: EncoderSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"

    def stop(*_: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "write", stop)
        with pytest.raises(Stopped):
            mine_negatives(pairs, out, source, OPEN)
    with pytest.raises(InputError, match=r"begun with something else: margin was None, now 0\.2"):
        mine_negatives(pairs, out, source, replace(OPEN, margin=0.2))
    other = replace(source, task=Task("t", "Retrieve otherwise"))
    with pytest.raises(InputError, match="weights_and_prompt was"):
        mine_negatives(pairs, out, other, OPEN)
    with pytest.raises(InputError, match="source was 'encoder', now 'bm25'"):
        mine_negatives(pairs, out, Bm25Source(), OPEN)
    write(pairs, animal_rows(39))
    with pytest.raises(InputError, match="data was"):
        mine_negatives(pairs, out, source, OPEN)
    write(pairs, animal_rows(40))
    mine_negatives(pairs, out, source, OPEN)
    with pytest.raises(InputError, match="exists, and nothing is replaced"):
        mine_negatives(pairs, out, source, OPEN)


def test_what_cannot_be_written(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.jsonl or \.jsonl\.gz"):
        mine_negatives(pairs, tmp_path / "out.csv", Bm25Source())
    with pytest.raises(InputError, match="there is no folder"):
        mine_negatives(pairs, tmp_path / "no" / "out.jsonl", Bm25Source())
    (tmp_path / "out.jsonl.partial").mkdir()
    (tmp_path / "out.jsonl.partial" / "mine.txt").touch()
    with pytest.raises(InputError, match="was not begun by this command"):
        mine_negatives(pairs, tmp_path / "out.jsonl", Bm25Source())


def test_data_that_cannot_be_used(tmp_path: Path, pairs: Path) -> None:
    empty = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(InputError):
        mine_negatives(empty, tmp_path / "out.jsonl", Bm25Source(), format="pairs")
    with pytest.raises(InputError, match="cannot be read"):
        mine_negatives(pairs, tmp_path / "o.jsonl", Bm25Source(), corpus=tmp_path / "no.jsonl")
    bad = write(tmp_path / "bad.jsonl", [{"query": "q", "positive": ""}])
    with pytest.raises(InputError, match=r"bad\.jsonl"):
        mine_negatives(bad, tmp_path / "out2.jsonl", Bm25Source(), format="pairs")


@pytest.fixture(scope="module")
def tldr(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 pairs of a real data set."""
    path = tmp_path_factory.mktemp("tldr") / "pairs.jsonl"
    with gzip.open(data_root / "train_clean" / "tldr" / "pairs.jsonl.gz", "rt") as lines:
        path.write_text("".join(islice(lines, 300)))
    return path


@pytest.mark.parametrize("name", ["encoder", "bm25"])
def test_on_real_data(tldr: Path, tmp_path: Path, name: str) -> None:
    task = Task("tldr", "Given a description of what to do, retrieve the shell command")
    source: NegativeSource = Bm25Source()
    if name == "encoder":
        source = EncoderSource(EpicEncoder.from_pretrained(device="cpu"), task)
    settings = MiningSettings(negatives=5, scores=True)
    report = mine_negatives(tldr, tmp_path / "out.jsonl.gz", source, settings)
    rows = read(tmp_path / "out.jsonl.gz")
    assert [row.query for row in rows] == [row.query for row in read(tldr)]
    for row in rows:
        answers = {p for other in rows if other.query == row.query for p in other.positives}
        assert not answers.intersection(row.negatives)
        assert row.query not in row.negatives
        lowest = min(row.positive_scores)
        assert all(score <= 0.95 * lowest + 1e-6 for score in row.negative_scores if lowest > 0)
        assert list(row.negative_scores) == sorted(row.negative_scores, reverse=True)
    assert report.mined > 600
    assert report.answers > 100, "positives are found, and dropped"


def test_an_error_before_any_work_leaves_nothing_behind(tmp_path: Path) -> None:
    """So that the setting that mends it is not refused as another run's."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"query": "q", "positive": "p"}\n{"query": "q"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="line 2"):
        mine_negatives(pairs, tmp_path / "out.jsonl", Bm25Source())
    assert not list(tmp_path.glob("out.jsonl.partial"))
