import logging
from pathlib import Path

import pytest

from epic_retrieval.errors import InputError
from epic_retrieval.index.corpus import read_corpus
from epic_training.data.formats import guess_format, read_rows, source_files
from epic_training.data.rows import TrainingRow
from tests.training.data.samples import MIXED, Row, write_jsonl, write_text

CORPUS: list[Row] = [
    {"_id": "d1", "title": "One", "text": "first"},
    {"_id": "d2", "title": "", "text": MIXED},
    {"_id": 3, "text": "third"},
    {"_id": "d4", "title": "Only a title", "text": ""},
    {"_id": "blank", "title": "", "text": ""},
    {"_id": "d5", "title": "Five", "text": "x" * 100_000, "metadata": {"url": "..."}},
]
QUERIES = [
    {"_id": "q1", "text": "one?"},
    {"_id": "q2", "text": "two?"},
    {"_id": "q3", "text": "three?"},
    {"_id": "unasked", "text": ""},
]
HEADER = "query-id\tcorpus-id\tscore\n"
QRELS = "q2\td1\t2\nq1\td2\t1\nq2\t3\t0\nq3\td1\t0\nq2\td5\t1\nq1\td4\t1\nq1\td2\t1\n"
EXPECTED = [
    TrainingRow("two?", ("One\nfirst", "Five\n" + "x" * 100_000), ("third",)),
    TrainingRow("one?", (MIXED, "Only a title")),
]


def write_beir(
    folder: Path,
    qrels: str = HEADER + QRELS,
    *,
    where: str = "qrels/train.tsv",
    queries: str = "queries.jsonl",
    gz: str = "",
) -> Path:
    write_jsonl(folder / f"corpus.jsonl{gz}", CORPUS)
    write_jsonl(folder / f"{queries}{gz}", QUERIES)
    write_text(folder / f"{where}{gz}", qrels)
    return folder


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("header", ["", HEADER])
@pytest.mark.parametrize(
    ("where", "queries"),
    [
        ("qrels/train.tsv", "queries.jsonl"),
        ("qrels.tsv", "queries.jsonl"),
        ("train_qrels.tsv", "train_queries.jsonl"),
        ("train_qrels.tsv", "queries.jsonl"),
    ],
)
def test_a_row_per_query_with_its_judged_passages(
    tmp_path: Path, where: str, queries: str, header: str, gz: str
) -> None:
    folder = write_beir(tmp_path, header + QRELS, where=where, queries=queries, gz=gz)
    assert guess_format(folder) == "beir"
    assert list(read_rows(folder, "beir")) == EXPECTED


def test_queries_without_a_positive_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        list(read_rows(write_beir(tmp_path), "beir"))
    assert "left out 1 queries without a positive" in caplog.text


def test_line_ends_and_empty_lines(tmp_path: Path) -> None:
    folder = write_beir(tmp_path, "\ufeff" + (HEADER + QRELS + "\n").replace("\n", "\r\n"))
    assert list(read_rows(folder, "beir")) == EXPECTED


def test_texts_are_joined_as_an_index_joins_them(tmp_path: Path) -> None:
    folder = write_beir(tmp_path)
    contents = {
        one.id: one.content for one in read_corpus(folder, skip_empty=True, max_chars=10**6)
    }
    rows = list(read_rows(folder, "beir"))
    assert rows[0].positives == (contents["d1"], contents["d5"])
    assert rows[1].positives == (contents["d2"], contents["d4"])


def test_the_training_split_is_taken_before_the_test_split(tmp_path: Path) -> None:
    write_beir(tmp_path, "q3\td1\t1\n", where="qrels.tsv")
    folder = write_beir(
        tmp_path, "q1\td1\t1\n", where="train_qrels.tsv", queries="train_queries.jsonl"
    )
    assert [row.query for row in read_rows(folder, "beir")] == ["one?"]
    assert [path.name for path in source_files(folder, "beir")] == [
        "corpus.jsonl",
        "train_queries.jsonl",
        "train_qrels.tsv",
    ]


@pytest.mark.parametrize(
    ("qrels", "fault"),
    [
        ("q1\td1\t1\nq1\tno\t1\n", "train.tsv, line 2: {corpus} has no id 'no'"),
        (HEADER + "\nno\td1\t1\n", "train.tsv, line 3: {queries} has no id 'no'"),
        ("q1\td1\t1\nq1\td1\n", "train.tsv, line 2: 'q1\\td1'; expected query id"),
        ("q1\td1\t1\nq1\td2\tx\n", "train.tsv, line 2: 'q1\\td2\\tx'; expected query id"),
        ("q1\td1\t1\nq1\td2\tnan\n", "train.tsv, line 2: "),
        ("q1 0 d1 1\n", "train.tsv, line 1: 'q1 0 d1 1'; expected query id"),
        (HEADER + HEADER, "train.tsv, line 2: "),
        ("q1\td1\t1\nq1\td1\t0\n", "train.tsv, line 2: contradicts an earlier judgement"),
        ("q1\tblank\t1\n", 'corpus.jsonl, line 5: Passage "blank" has neither'),
        ("unasked\td1\t1\n", "queries.jsonl, line 4: \"text\" of 'unasked' is ''"),
    ],
)
def test_a_bad_judgement_is_named(tmp_path: Path, qrels: str, fault: str) -> None:
    folder = write_beir(tmp_path, qrels)
    with pytest.raises(InputError) as raised:
        list(read_rows(folder, "beir"))
    paths = {name: folder / f"{name}.jsonl" for name in ("corpus", "queries")}
    assert fault.format(**paths) in str(raised.value)


def test_a_bad_corpus_is_named(tmp_path: Path) -> None:
    folder = write_beir(tmp_path)
    write_jsonl(folder / "corpus.jsonl", [*CORPUS, CORPUS[0]])
    with pytest.raises(InputError, match=r"corpus\.jsonl, line 7: the id 'd1' stood in an earlier"):
        list(read_rows(folder, "beir"))
    write_jsonl(folder / "corpus.jsonl", [{"title": "no id", "text": "t"}])
    with pytest.raises(InputError, match=r'corpus\.jsonl, line 1: "_id" is None'):
        list(read_rows(folder, "beir"))
    write_text(folder / "corpus.jsonl", '{"_id": "d1", "text": "half \\ud83d"}\n')
    with pytest.raises(InputError, match=r"corpus\.jsonl, line 1: text holds half a surrogate"):
        list(read_rows(folder, "beir"))
    write_jsonl(folder / "corpus.jsonl.gz", CORPUS)
    with pytest.raises(InputError, match=r"both corpus\.jsonl and corpus\.jsonl\.gz"):
        list(read_rows(folder, "beir"))


def test_a_folder_with_a_test_split_alone_is_no_training_data(tmp_path: Path) -> None:
    folder = write_beir(tmp_path, where="qrels/test.tsv")
    with pytest.raises(InputError, match=r"no BEIR training data; expected corpus\.jsonl and one"):
        list(read_rows(folder, "beir"))
