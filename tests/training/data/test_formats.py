import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epic_retrieval.errors import InputError
from epic_training.data.formats import FORMATS, guess_format, read_rows, source_files
from epic_training.data.rows import TrainingRow
from tests.training.data.samples import MIXED, flag_rows, lines_of, write_jsonl, write_text

LONG = "word " * 20_000
PAIRS: list[dict[str, Any]] = [
    {"query": "a", "positive": "b"},
    {"query": MIXED, "positive": [MIXED, "d"], "negative": ["e", "f"], "id": 3},
    {"query": "g", "positive": LONG, "negative": "h"},
    {"query": "i", "positive": "j", "negative": None},
    {"query": "k", "positive": "l", "negative": ""},
]
PAIR_ROWS = [
    TrainingRow("a", ("b",)),
    TrainingRow(MIXED, (MIXED, "d"), ("e", "f")),
    TrainingRow("g", (LONG,), ("h",)),
    TrainingRow("i", ("j",)),
    TrainingRow("k", ("l",)),
]
TRIPLETS = [TrainingRow("a", ("b",), ("c",)), TrainingRow("d", ('e, "f"\n',), ("g", "h"))]
TRIPLET_COLUMNS: dict[str, list[Any]] = {
    "anchor": ["a", "d"],
    "positive": ["b", 'e, "f"\n'],
    "negative_2": ["c", "h"],
    "negative_1": [None, "g"],
    "source": [1, 2],
}


def read(path: Path, format: str) -> list[TrainingRow]:  # noqa: A002
    return list(read_rows(path, format))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "set/pairs.jsonl", "set/pairs.jsonl.gz"])
def test_pairs_from_file_or_folder(tmp_path: Path, name: str) -> None:
    path = write_jsonl(tmp_path / name, PAIRS)
    for given in {path, path.parent if "/" in name else path}:
        assert guess_format(given) == "pairs"
        assert read(given, "pairs") == PAIR_ROWS
        assert source_files(given, "pairs") == (path,)


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_line_ends_byte_order_mark_and_empty_lines(tmp_path: Path, gz: str) -> None:
    content = "\ufeff" + "\r\n".join(["", *lines_of(PAIRS), "", "  ", ""])
    path = write_text(tmp_path / f"a.jsonl{gz}", content)
    assert guess_format(path) == "pairs"
    assert read(path, "pairs") == PAIR_ROWS


def test_the_last_line_needs_no_end(tmp_path: Path) -> None:
    assert read(write_text(tmp_path / "a.jsonl", "\n".join(lines_of(PAIRS))), "pairs") == PAIR_ROWS


def test_flagembedding(tmp_path: Path) -> None:
    rows = [
        *flag_rows(2, positives=2, negatives=3, prompt="find it", type="normal", category="x"),
        {"query": "q", "pos": ["p"], "neg": [], "pos_scores": None, "prompt": "", "type": None},
        {"query": "q", "pos": ["p"]},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert guess_format(path) == "flagembedding"
    assert read(path, "flagembedding") == [
        *(
            TrainingRow(
                f"question {n}?",
                (f"passage {n}-0", f"passage {n}-1"),
                (f"other {n}-0", f"other {n}-1", f"other {n}-2"),
                (n, n + 1 / 8),
                (-n, -n - 1 / 8, -n - 2 / 8),
                "find it",
                "normal",
            )
            for n in range(2)
        ),
        TrainingRow("q", ("p",)),
        TrainingRow("q", ("p",)),
    ]


def saved(folder: Path) -> Path:
    datasets.Dataset.from_dict(TRIPLET_COLUMNS).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def saved_with_splits(folder: Path) -> Path:
    whole = datasets.Dataset.from_dict(TRIPLET_COLUMNS)
    splits = datasets.DatasetDict({"test": whole.select([0]), "train": whole})
    splits.save_to_disk(str(folder / "saved"))
    return folder / "saved"


def as_jsonl(folder: Path) -> Path:
    columns = TRIPLET_COLUMNS.items()
    rows = [{name: values[n] for name, values in columns} for n in range(2)]
    return write_jsonl(folder / "a.jsonl", rows)


def as_csv(folder: Path) -> Path:
    text = 'question,negative,answer,negative_1,id\r\na,,b,c,1\r\n\r\nd,g,"e, ""f""\n",h,2\r\n'
    return write_text(folder / "a.csv", "\ufeff" + text)


def as_tsv(folder: Path) -> Path:
    text = 'sentence1\tsentence2\tnegative\tnegative_1\na\tb\tc\t\nd\t"e, ""f""\n"\tg\th\n'
    return write_text(folder / "a.tsv.gz", text)


@pytest.mark.parametrize("write", [saved, saved_with_splits, as_jsonl, as_csv, as_tsv])
def test_triplets(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    assert guess_format(path) == "triplets"
    assert read(path, "triplets") == TRIPLETS


def test_a_cell_of_a_table_may_be_long(tmp_path: Path) -> None:
    text = "x" * 300_000
    path = write_text(tmp_path / "a.csv", f"query,positive\nq,{text}\n")
    assert read(path, "triplets") == [TrainingRow("q", (text,))]


def test_numbered_negatives_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    row = {"query": "q", "positive": "p"} | {f"negative_{n}": f"n{n}" for n in (10, 9, 1)}
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    assert guess_format(path) == "triplets"
    assert read(path, "triplets")[0].negatives == ("n1", "n9", "n10")


@pytest.mark.parametrize("kind", ["pairs", "flagembedding", "triplets"])
def test_parquet_holds_any_of_the_row_kinds(tmp_path: Path, kind: str) -> None:
    table = {
        "pairs": pa.Table.from_pylist(
            [
                {"query": row.query, "positive": row.positives, "negative": row.negatives, "x": 0}
                for row in PAIR_ROWS
            ]
        ),
        "flagembedding": pa.Table.from_pylist(flag_rows(700, prompt="find")),
        "triplets": pa.table(TRIPLET_COLUMNS),
    }[kind]
    pq.write_table(table, tmp_path / "one.parquet", row_group_size=300)
    expected = {
        "pairs": PAIR_ROWS,
        "flagembedding": read(
            write_jsonl(tmp_path / "same.jsonl", flag_rows(700, prompt="find")), "flagembedding"
        ),
        "triplets": TRIPLETS,
    }[kind]
    assert guess_format(tmp_path / "one.parquet") == "parquet"
    assert read(tmp_path / "one.parquet", "parquet") == expected


def test_a_folder_of_parquet_files_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for number, name in enumerate(["data/b.parquet", "data/a.parquet", "c.parquet"]):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"query": [f"q{number}"], "positive": ["p"]}), path)
    assert guess_format(tmp_path / "set") == "parquet"
    assert [row.query for row in read(tmp_path / "set", "parquet")] == ["q2", "q1", "q0"]


@pytest.mark.parametrize(
    ("format", "line", "fault"),
    [
        ("pairs", '{"query": "cut off', "not valid JSON"),
        ("pairs", '["a", "b"]', "a JSON list; expected one object a line"),
        ("pairs", '{"query": "a"}', 'no "positive"; the row has query'),
        ("pairs", '{"positive": "a"}', 'no "query"'),
        ("pairs", '{"query": "a", "positive": null}', "positive 1 is None"),
        ("pairs", '{"query": "a", "positive": " "}', "positive 1 is ' '"),
        ("pairs", '{"query": "a", "positive": ""}', "positive 1 is ''"),
        ("pairs", '{"query": "a", "positive": []}', "no positive"),
        ("pairs", '{"query": "a", "positive": {"x": 1}}', "positive 1 is {'x': 1} (dict)"),
        ("pairs", '{"query": ["a"], "positive": "b"}', "query is ['a'] (list)"),
        ("pairs", '{"query": "a", "positive": "b", "negative": "  "}', "negative 1 is '  '"),
        ("pairs", '{"query": "a", "positive": "b", "negative": [""]}', "negative 1 is ''"),
        ("pairs", '{"query": "a \\ud83d", "positive": "b"}', "half a surrogate"),
        ("pairs", '{"query": "a", "positive": "b", "neg": ["c"]}', '"neg" would not be read'),
        ("pairs", '{"query": "a", "positive": "b", "negative_1": "c"}', '"negative_1" would not'),
        ("flagembedding", '{"query": "a", "pos": "b"}', "positives is 'b' (str); expected a list"),
        ("flagembedding", '{"query": "a", "positive": "b"}', 'no "pos"'),
        (
            "flagembedding",
            '{"query": "a", "pos": ["b"], "neg": ["c", "d"], "pos_scores": [1], "neg_scores": [1]}',
            "negative_scores holds 1 numbers for 2 texts",
        ),
        ("flagembedding", '{"query": "a", "pos": ["b"], "pos_scores": [NaN]}', "number 1 is nan"),
        ("triplets", '{"query": "a", "question": "b", "positive": "c"}', "both 'query' and"),
        ("triplets", '{"query": "a", "passage": "b"}', "no column for the positive"),
        ("triplets", '{"query": "a", "pos": "b"}', '"pos" would not be read'),
        ("triplets", '{"question": "a", "answer": "b", "label": 0}', "'label' may say"),
    ],
)
def test_a_malformed_row_is_named_with_file_line_and_reason(
    tmp_path: Path,
    format: str,  # noqa: A002
    line: str,
    fault: str,
) -> None:
    good = json.dumps({"query": "a", "pos": ["b"]} if format == "flagembedding" else PAIRS[0])
    path = write_text(tmp_path / "bad.jsonl", f"{good}\n\n{line}\n{good}\n")
    rows = read_rows(path, format)
    next(rows)
    with pytest.raises(InputError) as raised:
        list(rows)
    assert str(raised.value).startswith(f"{path}, line 3: ")
    assert fault in str(raised.value)


def test_a_label_does_no_harm_beside_a_column_called_positive(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"anchor": "a", "positive": "b", "label": 1}])
    assert read(path, "triplets") == [TrainingRow("a", ("b",))]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("query,positive\nq,p\nq\n", "line 3: 1 fields, but the header has 2"),
        ('query,positive\nq,p\nq,"open\n', "line 3: unexpected end of data"),
        ("query,positive,query\nq,p,r\n", "line 1: the header names 'query' twice"),
        ("query,passage\nq,p\n", "line 2: no column for the positive"),
        ("query,positive\nq,p\nq,\n", "line 3: positive 1 is ''"),
    ],
)
def test_a_malformed_table_is_named(tmp_path: Path, content: str, fault: str) -> None:
    path = write_text(tmp_path / "bad.csv", content)
    with pytest.raises(InputError) as raised:
        read(path, "triplets")
    assert f"{path}, {fault}" in str(raised.value)


def test_a_malformed_parquet_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"query": ["q"] * 600, "positive": ["p"] * 599 + [" "]}), path)
    with pytest.raises(InputError, match=r"a\.parquet, row 600: positive 1 is ' '"):
        read(path, "parquet")
    pq.write_table(pa.table({"question": ["q"], "passage": ["p"]}), path)
    with pytest.raises(InputError, match=r"no column for the positive; .* question, passage"):
        read(path, "parquet")
    path.write_bytes(b"PAR1 no more than this")
    with pytest.raises(InputError, match=r"a\.parquet, after row 0: not a readable Parquet file"):
        read(path, "parquet")


def test_a_saved_dataset_must_have_known_columns_and_a_train_split(tmp_path: Path) -> None:
    whole = datasets.Dataset.from_dict({"question": ["q"], "passage": ["p"]})
    whole.save_to_disk(str(tmp_path / "columns"))
    with pytest.raises(InputError, match=r"columns: no column for the positive; .* passage"):
        read(tmp_path / "columns", "triplets")
    datasets.DatasetDict({"dev": whole, "test": whole}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(InputError, match='holds the splits dev, test; expected "train"'):
        read(tmp_path / "splits", "triplets")
    next((tmp_path / "columns").glob("*.arrow")).write_bytes(b"no data")
    with pytest.raises(InputError, match="load_from_disk cannot read it"):
        read(tmp_path / "columns", "triplets")


def test_damaged_text_files_are_named(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.jsonl", b'{"query": "\xff", "positive": "p"}\n')
    with pytest.raises(
        InputError, match=r"a\.jsonl, line 1: byte 0xFF at position 11 is not UTF-8"
    ):
        read(path, "pairs")
    whole = write_jsonl(tmp_path / "b.jsonl.gz", PAIRS).read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(InputError, match=r"b\.jsonl\.gz: the gzip data is damaged or cut short"):
        read(tmp_path / "b.jsonl.gz", "pairs")


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_not_there_is_said(tmp_path: Path, format: str) -> None:  # noqa: A002
    for path in (tmp_path / "none", tmp_path / "none.jsonl"):
        with pytest.raises(InputError, match="there is no such file or folder"):
            read(path, format)
    with pytest.raises(InputError, match="there is no such file or folder"):
        guess_format(tmp_path / "none")


@pytest.mark.parametrize("hub_id", ["owner/name", "owner/name:config"])
def test_a_hub_id_is_an_error_offline(hub_id: str) -> None:
    assert source_files(Path(hub_id), "triplets") == ()
    with pytest.raises(InputError, match=rf"{hub_id}: .* as the id of a data set on the hub"):
        read(Path(hub_id), "triplets")
    with pytest.raises(InputError, match="name the format: triplets"):
        guess_format(Path(hub_id))


def test_a_path_that_does_not_fit_its_format_is_named(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", PAIRS)
    (tmp_path / "empty").mkdir()
    write_jsonl(tmp_path / "both" / "pairs.jsonl", PAIRS)
    write_jsonl(tmp_path / "both" / "pairs.jsonl.gz", PAIRS)
    for path, format, fault in (  # noqa: A001
        (file, "parquet", "is read from files that end in .parquet"),
        (file, "beir", "no BEIR training data"),
        (file, "webdataset", "unknown format 'webdataset'; expected one of pairs,"),
        (tmp_path / "empty", "pairs", "holds neither"),
        (tmp_path / "both", "pairs", "holds both"),
        (tmp_path / "empty", "flagembedding", "each file is a data set of its own"),
        (tmp_path / "empty", "triplets", "not a folder that datasets' save_to_disk wrote"),
        (tmp_path / "empty", "parquet", "holds no .parquet file"),
        (write_text(tmp_path / "a.csv", ""), "pairs", "end in .jsonl"),
    ):
        with pytest.raises(InputError, match=fault.replace(".", r"\.")):
            read(path, format)
    for path, fault in (
        (tmp_path / "empty", "cannot tell its format"),
        (write_text(tmp_path / "a.txt", "x"), "cannot tell its format"),
        (write_text(tmp_path / "none.jsonl", "\n"), "no rows"),
    ):
        with pytest.raises(InputError, match=fault):
            guess_format(path)
