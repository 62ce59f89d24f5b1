import datetime as dt
import json
from dataclasses import replace
from pathlib import Path

import pytest

from epic_retrieval.errors import InputError
from epic_retrieval.index import Passage, build_index, export_parquet, read_corpus
from epic_retrieval.index.store import metadata_text
from tests.index.samples import ENCODER, encode

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_columns(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.parquet",
        _id=[1, 2],
        text=["x", "y"],
        title=["T", None],
        day=[dt.date(2026, 1, 2), None],
        weight=[0.5, float("nan")],
        tags=[["a"], []],
        metadata=[{"lang": "en"}, {"lang": "de"}],
    )
    assert list(read_corpus(path)) == [
        Passage("1", "x", "T", {"day": "2026-01-02", "weight": 0.5, "tags": ["a"], "lang": "en"}),
        Passage("2", "y", "", {"day": None, "weight": None, "tags": [], "lang": "de"}),
    ]


def test_without_ids_rows_are_numbered(tmp_path: Path) -> None:
    path = write(tmp_path / "c.parquet", text=[str(n) for n in range(2500)])
    found = list(read_corpus(path))
    assert (found[0].id, found[-1].id, found[-1].text) == ("1", "2500", "2499")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a", "b"], "body": ["x", "y"]}, 'row 1: no "text"; there is "id", "body"'),
        ({"id": ["a", "a"], "text": ["x", "y"]}, "at row 1 and at row 2"),
        ({"id": ["a", None], "text": ["x", "y"]}, 'row 2: "id" is None'),
        ({"id": ["a", "b"], "text": ["x", None]}, 'row 2: "text" is None'),
        ({"id": ["a"], "text": ["x"], "raw": [b"x"]}, r"row 1: metadata\['raw'\] is of type bytes"),
        ({"id": pa.array([], pa.string()), "text": pa.array([], pa.string())}, "no passages"),
    ],
)
def test_bad_tables(tmp_path: Path, columns: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(read_corpus(write(tmp_path / "c.parquet", **columns)))


def test_damaged_file(tmp_path: Path) -> None:
    path = write(tmp_path / "c.parquet", id=["a"], text=["x"])
    for raw in (b"", b"no parquet at all", path.read_bytes()[:-10]):
        path.write_bytes(raw)
        with pytest.raises(InputError, match="not a readable Parquet file"):
            list(read_corpus(path))


ODD = [
    Passage("a", "x", "T", {"metadata": {"id": 1}, "id": "other", "text": 1.0, "vector": [0.5]}),
    Passage("7", "", "Only a title", {"n": 2**70, "none": None, "deep": {"list": [1, "ü", []]}}),
    Passage("c", "plain"),
]


def test_an_export_of_ours_gives_the_same_passages(tmp_path: Path) -> None:
    build_index(ODD, encode, tmp_path / "index", encoder=ENCODER)
    export_parquet(tmp_path / "index", tmp_path / "out.parquet")
    found = list(read_corpus(tmp_path / "out.parquet"))
    assert found == ODD
    assert repr(found) == repr([*map(sorted_metadata, ODD)])


def sorted_metadata(passage: Passage) -> Passage:
    """As it is stored; and 1.0 is still no whole number."""
    return replace(passage, metadata=json.loads(metadata_text(passage)))


def test_an_export_to_which_columns_were_added(tmp_path: Path) -> None:
    build_index(ODD[2:], encode, tmp_path / "index", encoder=ENCODER)
    export_parquet(tmp_path / "index", tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    table = table.append_column("year", pa.array([2001]))
    pq.write_table(table, tmp_path / "more.parquet")
    assert list(read_corpus(tmp_path / "more.parquet")) == [
        Passage("c", "plain", "", {"year": 2001})
    ]
    table = table.set_column(3, "metadata", pa.array(["{"]))
    pq.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(InputError, match=r"row 1: the metadata of this export .*Export the index"):
        list(read_corpus(tmp_path / "bad.parquet"))


def test_vectors_of_others_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(
        tmp_path / "c.parquet",
        id=["a", "b"],
        text=["x", "y"],
        vector=[[0.5, 1.0], [0.25, 0.0]],
        embedding=["word2vec", "none"],
        scores=[[0.5], [0.25]],
    )
    first, _ = read_corpus(path)
    assert first.metadata == {"embedding": "word2vec", "scores": [0.5]}
    assert caplog.text.count('left out the vectors in "vector"') == 1
    assert "embedding" not in caplog.text
