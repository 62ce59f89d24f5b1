import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from epic_retrieval.errors import InputError
from epic_training.pairs import Pair, is_development, open_pairs, read_pairs, tokenise_pairs
from tests.models import tiny_tokenizer
from tests.training.samples import write_lines, write_pairs

ROWS = [
    {"query": f"what is {n}?", "positive": f"Über {n}: a passage " * (n % 5 + 1)} for n in range(60)
]
GOOD = json.dumps(ROWS[0])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer().backend_tokenizer


@pytest.mark.parametrize("with_negatives", [True, False])
def test_what_is_tokenised_can_be_read_back(
    tmp_path: Path, tokenizer: Tokenizer, with_negatives: bool
) -> None:
    rows = [{**row, "negative": f"no, {row['query']}"} if with_negatives else row for row in ROWS]
    source = write_pairs(tmp_path / "toy", rows)
    tokenise_pairs(source, tmp_path / "out" / "toy", tokenizer, max_tokens=20, dev_percent=20)
    found = 0
    for split in ("train", "dev"):
        pairs = open_pairs(tmp_path / "out" / "toy", split)
        assert pairs.name == "toy"
        kept = [row for row in rows if is_development(row["query"], 20) == (split == "dev")]
        assert len(pairs) == len(kept) > 0
        found += len(pairs)
        for name in ("query", "positive", "negative"):
            column = getattr(pairs, name)
            assert isinstance(column.ids, np.memmap)
            assert (column.ids.dtype, column.ends.dtype) == (np.int32, np.int64)
            expected = [tokenizer.encode(row.get(name, "")).ids[:20] for row in kept]
            assert [column[i].tolist() for i in range(len(column))] == expected
    assert found == len(rows)


def test_finished_work_is_not_done_again(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source, out = write_pairs(tmp_path / "toy", ROWS), tmp_path / "out"

    def tokenise() -> None:
        tokenise_pairs(source, out, tokenizer, max_tokens=20, dev_percent=20)

    tokenise()
    whole = open_pairs(out, "train").query.ids.tolist()
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    tokenise()
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")} == written
    assert json.loads((out / "done.json").read_text()) == {
        split: len(open_pairs(out, split)) for split in ("train", "dev")
    }
    # Killed before the end: everything is written again.
    (out / "done.json").unlink()
    (out / "train" / "query.ids.npy").write_bytes(b"half a file")
    tokenise()
    assert open_pairs(out, "train").query.ids.tolist() == whole


def test_development_split_takes_its_share_of_queries() -> None:
    queries = [f"question number {n}" for n in range(20_000)]
    for percent in (1.0, 20.0):
        held_out = sum(is_development(query, percent) for query in queries) / len(queries)
        assert held_out == pytest.approx(percent / 100, rel=0.15)
    assert not any(is_development(query, 0) for query in queries)
    assert all(is_development(query, 100) for query in queries)


def test_a_query_is_on_one_side_whatever_its_order_case_and_passage(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    rows = [{"query": f"q{n}", "positive": f"first {n}"} for n in range(200)]
    rows += [{"query": f"  Q{n} ", "positive": f"second {n}"} for n in range(200)]
    sides: list[dict[str, set[str]]] = []
    for name in ("sorted", "shuffled"):
        source = write_pairs(tmp_path / name, rows)
        tokenise_pairs(source, tmp_path / f"{name}-out", tokenizer, max_tokens=20, dev_percent=30)
        side = {}
        for split in ("train", "dev"):
            column = open_pairs(tmp_path / f"{name}-out", split).query
            texts = (tokenizer.decode(column[i].tolist()) for i in range(len(column)))
            side[split] = {text.strip().lower() for text in texts}
        assert not side["train"] & side["dev"]
        assert side["train"] | side["dev"] == {f"q{n}" for n in range(200)}
        sides.append(side)
        rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    assert sides[0] == sides[1]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"query": "cut off', "JSONDecodeError"),
        ("", "JSONDecodeError"),
        ('{"query": "a"}', "'positive'"),
        ('{"positive": "a"}', "'query'"),
        ('{"query": "a", "positive": null}', "NoneType"),
        ('{"query": null, "positive": "a"}', "NoneType"),
        ('{"query": 7, "positive": "a"}', "int"),
        ('{"query": "a", "positive": ["a"]}', "list"),
        ('{"query": "a", "positive": "b", "negative": 3}', "int"),
        ('{"query": "a", "positive": " \\n"}', "empty query or positive"),
        ('{"query": "", "positive": "a"}', "empty query or positive"),
        ('{"query": "a \\ud83d", "positive": "b"}', "surrogates"),
        ('["a", "b"]', "list"),
        ('"a"', "expected a JSON object"),
        ("null", "NoneType"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, line: str, fault: str) -> None:
    folder = write_lines(tmp_path / "bad", [GOOD, GOOD, line, GOOD])
    with pytest.raises(InputError) as raised:
        list(read_pairs(folder / "pairs.jsonl.gz"))
    assert f"{folder / 'pairs.jsonl.gz'}, line 3: " in str(raised.value)
    assert fault in str(raised.value)


@pytest.mark.parametrize("negative", ["", None])
def test_a_pair_without_negative(tmp_path: Path, negative: str | None) -> None:
    row = {"query": "a", "positive": "b", "negative": negative}
    folder = write_pairs(tmp_path / "toy", [row])
    assert list(read_pairs(folder / "pairs.jsonl.gz")) == [Pair("a", "b")]


def test_a_part_of_the_training_pairs(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_pairs(tmp_path / "toy", ROWS)
    for name, most in (("all", None), ("some", 10), ("enough", 60)):
        tokenise_pairs(source, tmp_path / name, tokenizer, max_tokens=20, dev_percent=20, most=most)
    whole, some = (open_pairs(tmp_path / name, "train") for name in ("all", "some"))
    assert 8 <= len(some) <= 10
    queries = {tuple(whole.query[i]) for i in range(len(whole))}
    assert {tuple(some.query[i]) for i in range(len(some))} < queries
    assert len(open_pairs(tmp_path / "enough", "train")) == len(whole)
    assert len(open_pairs(tmp_path / "some", "dev")) == len(open_pairs(tmp_path / "all", "dev"))
