import copy
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epic_retrieval.errors import InputError
from epic_training.data import row_file, store
from epic_training.data.formats import read_rows
from epic_training.data.row_file import write_row_file
from epic_training.data.rows import TrainingRow
from epic_training.data.store import RowStore, open_rows
from tests.training.data.samples import MIXED, ROOT, flag_rows, pair_rows, write_jsonl, write_text

TEXTS = st.text(min_size=1, max_size=20).filter(lambda text: not text.isspace())


@st.composite
def training_rows(draw: st.DrawFn) -> TrainingRow:
    positives = draw(st.lists(TEXTS, min_size=1, max_size=3))
    negatives = draw(st.lists(TEXTS, max_size=4))
    number = st.floats(allow_nan=False, allow_infinity=False)
    scored = draw(st.booleans())
    return TrainingRow(
        draw(TEXTS),
        tuple(positives),
        tuple(negatives),
        tuple(draw(number) for _ in positives if scored),
        tuple(draw(number) for _ in negatives if scored),
        draw(st.none() | TEXTS),
        draw(st.none() | TEXTS),
    )


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(training_rows(), min_size=1, max_size=12), batch=st.integers(1, 5))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[TrainingRow], batch: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "toy.arrow"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_file, "_BATCH_ROWS", batch)
        assert write_row_file(path, rows) == len(rows)
    found = RowStore(path)
    assert [found[n] for n in range(len(found))] == rows
    assert [found.query(n) for n in range(len(found))] == [row.query for row in rows]
    assert found.negative_counts().tolist() == [len(row.negatives) for row in rows]
    for number, row in enumerate(rows):
        assert found.counts(number) == (len(row.positives), len(row.negatives))
        chosen = list(range(len(row.negatives)))[::-2]
        one = found.select(number, len(row.positives) - 1, chosen)
        assert (one.query, one.positives) == (row.query, row.positives[-1:])
        assert one.negatives == row.negatives[::-2]
        assert one.positive_scores == row.positive_scores[-1:]
        assert one.negative_scores == row.negative_scores[::-2]


def test_batches_end_by_size_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_file, "_BATCH_CHARACTERS", 100)
    rows = [TrainingRow("q" * length, ("p",)) for length in (98, 1, 200, 99, 1)]
    write_row_file(tmp_path / "a.arrow", rows)
    assert row_file.RowFile.open(tmp_path / "a.arrow").ends == (2, 3, 4, 5)
    found = RowStore(tmp_path / "a.arrow")
    assert [found[n] for n in range(5)] == rows


def test_the_second_opening_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_jsonl(
        tmp_path / "fever dev.jsonl.gz", [*pair_rows(10), *pair_rows(1, name=MIXED)]
    )
    first = open_rows(source, "pairs", tmp_path / "cache")
    assert first.path.name.startswith("fever-dev-")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.path.name]
    assert [first[n] for n in range(len(first))] == list(read_rows(source, "pairs"))

    def refuse(path: Path, format: str) -> Iterator[TrainingRow]:  # noqa: A002
        raise AssertionError("read again")

    monkeypatch.setattr(store, "read_rows", refuse)
    assert open_rows(source, "pairs", tmp_path / "cache").path == first.path
    monkeypatch.chdir(tmp_path)
    assert open_rows(Path(source.name), "pairs", tmp_path / "cache").path == first.path


def test_a_changed_source_or_format_is_another_file(tmp_path: Path) -> None:
    source, cache = write_jsonl(tmp_path / "a.jsonl", pair_rows(3)), tmp_path / "cache"
    old = open_rows(source, "pairs", cache)
    write_jsonl(source, pair_rows(4))
    new = open_rows(source, "pairs", cache)
    assert (len(old), len(new)) == (3, 4)
    os.utime(source, ns=(0, 0))
    touched = open_rows(source, "pairs", cache)
    assert len({old.path, new.path, touched.path, open_rows(source, "triplets", cache).path}) == 4


def test_a_source_without_rows_or_with_a_bad_one_leaves_no_file(tmp_path: Path) -> None:
    empty = write_text(tmp_path / "a.jsonl", "\n")
    with pytest.raises(InputError, match=r"a\.jsonl: has no rows"):
        open_rows(empty, "pairs", tmp_path / "cache")
    bad = write_jsonl(tmp_path / "b.jsonl", [*pair_rows(5000), {"query": "a"}])
    with pytest.raises(InputError, match=r"b\.jsonl, line 5001: no \"positive\""):
        open_rows(bad, "pairs", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_source_that_changes_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", pair_rows(3))

    def change(path: Path, format: str) -> Iterator[TrainingRow]:  # noqa: A002
        yield from read_rows(path, format)
        write_jsonl(source, pair_rows(4))

    monkeypatch.setattr(store, "read_rows", change)
    with pytest.raises(InputError, match="was changed while it was read"):
        open_rows(source, "pairs", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


SLOW = """
import sys, time
from pathlib import Path
from epic_training.data import store
read = store.read_rows
def slow(path, format):
    for number, row in enumerate(read(path, format)):
        yield row
        if number == 9000:
            print("half", flush=True)
            time.sleep(60)
store.read_rows = slow
store.open_rows(Path(sys.argv[1]), "pairs", Path(sys.argv[2]))
"""


def test_a_killed_first_pass_leaves_no_whole_file(tmp_path: Path) -> None:
    source, cache = write_jsonl(tmp_path / "a.jsonl", pair_rows(10_000)), tmp_path / "cache"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "training")])
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, source, cache],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    (part,) = cache.iterdir()
    assert part.suffix == ".part"
    assert part.stat().st_size > 0
    found = open_rows(source, "pairs", cache)
    assert len(found) == 10_000
    assert found[9_999].query == " question 9999?"
    assert part.exists()  # it may be another process's
    long_ago = time.time() - 48 * 3600
    os.utime(part, (long_ago, long_ago))
    open_rows(write_jsonl(tmp_path / "b.jsonl", pair_rows(2)), "pairs", cache)
    assert not part.exists()


def test_an_interrupted_pass_removes_its_part(tmp_path: Path) -> None:
    def rows() -> Iterator[TrainingRow]:
        yield TrainingRow("q", ("p",))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_row_file(tmp_path / "a.arrow", rows())
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_or_missing_file_is_named(tmp_path: Path) -> None:
    found = open_rows(write_jsonl(tmp_path / "a.jsonl", pair_rows(9)), "pairs", tmp_path)
    whole = found.path.read_bytes()
    found.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"not a readable file of training rows .* delete it"):
        len(found)
    found.path.unlink()
    with pytest.raises(InputError, match="not a readable file of training rows"):
        found[0]


@pytest.mark.parametrize("number", [-1, 3, 10**9])
def test_a_row_that_is_not_there_is_an_error(tmp_path: Path, number: int) -> None:
    found = open_rows(write_jsonl(tmp_path / "a.jsonl", pair_rows(3)), "pairs", tmp_path)
    with pytest.raises(IndexError, match=f"row {number} of 3"):
        found[number]
    with pytest.raises(IndexError):
        found.select(0, 1, [])
    with pytest.raises(IndexError):
        found.select(0, 0, [0])


def test_what_all_rows_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_file, "_BATCH_ROWS", 4)
    rows = [dict(row) for row in flag_rows(10, prompt="find", type="normal")]
    same = open_rows(write_jsonl(tmp_path / "a.jsonl", rows), "flagembedding", tmp_path)
    assert (same.constant("instruction"), same.constant("kind")) == ("find", "normal")
    plain = open_rows(write_jsonl(tmp_path / "b.jsonl", pair_rows(5)), "pairs", tmp_path)
    assert plain.constant("instruction") is None
    rows[6]["prompt"] = "look"
    del rows[9]["type"]
    other = open_rows(write_jsonl(tmp_path / "c.jsonl", rows), "flagembedding", tmp_path)
    with pytest.raises(InputError, match="row 7 has the instruction 'look', but row 1 has 'find'"):
        other.constant("instruction")
    with pytest.raises(InputError, match="row 10 has the kind None, but row 1 has 'normal'"):
        other.constant("kind")


def test_a_store_travels_as_its_path(tmp_path: Path) -> None:
    found = open_rows(write_jsonl(tmp_path / "a.jsonl", pair_rows(3000)), "pairs", tmp_path)
    assert len(found) == 3000
    sent = copy.deepcopy(found)  # what a DataLoader sends where it cannot fork
    assert found._file is not None
    assert sent._file is None
    assert sent[2999] == found[2999]


def test_random_access_is_quick(tmp_path: Path) -> None:
    found = open_rows(
        write_jsonl(tmp_path / "a.jsonl", pair_rows(20_000, negatives=True)), "pairs", tmp_path
    )
    numbers = random.Random(0).choices(range(len(found)), k=2000)  # noqa: S311
    times = []
    for number in numbers:
        start = time.perf_counter()
        found[number]
        times.append(time.perf_counter() - start)
    # Some 12 microseconds; the bound leaves room for a busy machine.
    assert np.median(times) < 100e-6
