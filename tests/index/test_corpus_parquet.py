import datetime as dt
from pathlib import Path

import pytest

from epic_retrieval.errors import InputError
from epic_retrieval.index import Passage, read_corpus

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
