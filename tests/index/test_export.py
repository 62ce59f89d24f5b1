"""What leaves an index: Parquet, Arrow and Qdrant hold its living passages, to the last bit."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from epic_retrieval.errors import InputError, MissingExtraError, PassageIndexError
from epic_retrieval.index import Passage, export
from epic_retrieval.index._batches import EncodingSettings
from epic_retrieval.index._mapped import write_array
from epic_retrieval.index._source import open_source
from epic_retrieval.index.encode import encode_shards
from epic_retrieval.index.export import export_parquet, to_arrow
from epic_retrieval.index.generations import publish
from epic_retrieval.index.manifest import DeletedInfo, FileInfo, Manifest, read_manifest
from epic_retrieval.index.merge import merge
from epic_retrieval.index.qdrant import export_qdrant, point_id
from tests.index.samples import DIMENSION, ENCODER, encode, names, passages


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def write_shards(
    folder: Path, given: Sequence[Passage], dtype: str = "float32", shard_size: int = 10
) -> Path:
    settings = EncodingSettings(ENCODER, dtype, DIMENSION, shard_size)
    encode_shards(given, encode, folder, settings=settings)
    return folder


def write_index(
    folder: Path, given: Sequence[Passage], deleted: Sequence[int] = (), dtype: str = "float32"
) -> Path:
    shards = write_shards(folder.with_name(f"{folder.name}-shards"), given, dtype)
    delete(folder, merge([shards], folder), deleted)
    return folder


def delete(folder: Path, manifest: Manifest, rows: Sequence[int]) -> None:
    if not rows:
        return
    (folder / "deleted").mkdir(exist_ok=True)
    path = folder / "deleted" / "d-00000001.npy"
    write_array(path, np.array(sorted(rows), dtype=np.int64))
    gone = DeletedInfo(path.stem, len(rows), FileInfo.of(path))
    publish(folder, replace(manifest, deleted=gone, count=manifest.rows - len(rows)))


DELETED = [0, 3, 9, *range(10, 20), 24]
ALL = passages(25)
LIVE = [passage for row, passage in enumerate(ALL) if row not in DELETED]


def vectors_of(given: Sequence[Passage]) -> NDArray[np.float32]:
    return encode([passage.content for passage in given])


def check_table(table: pa.Table, expected: Sequence[Passage], dtype: str = "float32") -> None:
    table.validate(full=True)
    assert table.column_names == ["id", "title", "text", "metadata", "vector"]
    found = [
        Passage(row["id"], row["text"], row["title"], json.loads(row["metadata"]))
        for row in table.drop(["vector"]).to_pylist()
    ]
    assert found == list(expected)
    column = table.column("vector").combine_chunks()
    assert column.type == pa.list_(pa.float16() if dtype == "float16" else pa.float32(), DIMENSION)
    vectors = column.flatten().to_numpy().reshape(-1, DIMENSION)
    assert vectors.dtype == dtype
    assert (vectors == vectors_of(expected).astype(dtype)).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parquet_holds_what_is_alive(tmp_path: Path, dtype: str) -> None:
    index = write_index(tmp_path / "index", ALL, DELETED, dtype)
    told: list[tuple[int, int]] = []
    out = tmp_path / "new" / "all.parquet"
    out.parent.mkdir()
    count = export_parquet(index, out, progress=lambda done, total: told.append((done, total)))
    assert count == len(LIVE)
    assert told == [(len(LIVE), len(LIVE))]
    assert names(out.parent) == {"all.parquet"}
    check_table(pq.read_table(out), LIVE, dtype)


def test_parquet_says_whose_vectors_it_holds(tmp_path: Path) -> None:
    export_parquet(write_index(tmp_path / "index", ALL), tmp_path / "a.parquet")
    about = pq.read_schema(tmp_path / "a.parquet").metadata
    assert about[b"epic_retrieval.dimension"] == b"16"
    assert about[b"epic_retrieval.metric"] == b"cosine"
    assert about[b"epic_retrieval.dtype"] == b"float32"
    encoder = json.loads(about[b"epic_retrieval.encoder"])
    assert encoder == {"name": "letters", "fingerprint": ENCODER.fingerprint, "task": None}


def test_a_folder_of_shards_is_exported_in_order(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", ALL)
    # Shards of a former corpus stay in the folder.
    write_shards(shards, passages(12))
    write_shards(shards, ALL)
    export_parquet(shards, tmp_path / "a.parquet")
    check_table(pq.read_table(tmp_path / "a.parquet"), ALL)


def test_encoding_must_have_come_to_its_end(tmp_path: Path) -> None:
    def failing(texts: list[str]) -> NDArray[np.float32]:
        if any("passage 23." in text for text in texts):
            raise RuntimeError("out of memory")
        return encode(texts)

    settings = EncodingSettings(ENCODER, "float32", DIMENSION, 10)
    with pytest.raises(RuntimeError):
        encode_shards(ALL, failing, tmp_path, settings=settings)
    with pytest.raises(
        InputError, match=r"not come to its end; 2 shards are finished.*goes on from there"
    ):
        to_arrow(tmp_path)
    with pytest.raises(InputError, match="neither an index nor a folder of encoded shards"):
        to_arrow(tmp_path / "shards")


def test_a_shard_that_is_gone_is_missed(tmp_path: Path) -> None:
    write_shards(tmp_path, ALL)
    next((tmp_path / "finished").glob("s-*.json")).unlink()
    with pytest.raises(PassageIndexError, match="a shard that it names is gone"):
        to_arrow(tmp_path)


def test_groups_of_rows_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_GROUP_BYTES", 7 * 4 * DIMENSION)
    export_parquet(write_index(tmp_path / "index", ALL), tmp_path / "a.parquet")
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert groups == [7, 7, 7, 4]
    check_table(pq.read_table(tmp_path / "a.parquet"), ALL)


@pytest.mark.parametrize("rows", [1, 4, 5, 25, 100])
def test_many_files_hold_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(export, "_GROUP_ROWS", 6)
    index = write_index(tmp_path / "index", ALL)
    assert export_parquet(index, tmp_path / "parts", rows_per_file=rows) == len(ALL)
    files = sorted((tmp_path / "parts").iterdir())
    sizes = [pq.read_metadata(file).num_rows for file in files]
    assert sizes == [min(rows, len(ALL) - start) for start in range(0, len(ALL), rows)]
    check_table(pa.concat_tables([pq.read_table(file) for file in files]), ALL)


def test_an_empty_index_gives_an_empty_table(tmp_path: Path) -> None:
    index = write_index(tmp_path / "index", ALL, range(25))
    assert export_parquet(index, tmp_path / "a.parquet") == 0
    check_table(pq.read_table(tmp_path / "a.parquet"), [])
    check_table(to_arrow(index).read_all(), [])


def test_a_failing_export_leaves_nothing(tmp_path: Path) -> None:
    index = write_index(tmp_path / "index", ALL)
    out = tmp_path / "out"
    out.mkdir()

    def fail(_done: int, _total: int) -> None:
        raise OSError(28, "No space left on device")

    for name, rows_per_file in (("a.parquet", None), ("a", 10)):
        with pytest.raises(PassageIndexError, match=r"No space left on device.*Nothing of it"):
            export_parquet(index, out / name, rows_per_file=rows_per_file, progress=fail)
        assert names(out) == set()


def test_nothing_is_replaced(tmp_path: Path) -> None:
    index = write_index(tmp_path / "index", ALL)
    (tmp_path / "a.parquet").write_text("mine")
    with pytest.raises(InputError, match=r"a\.parquet exists: choose another path"):
        export_parquet(index, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").read_text() == "mine"


def test_damage_is_not_handed_on(tmp_path: Path) -> None:
    index = write_index(tmp_path / "index", ALL)
    shard = read_manifest(index).shards[1]
    path = index / "shards" / shard.name / "vectors.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()  # the shards it was made of have the same file
    path.write_bytes(content)
    with pytest.raises(PassageIndexError, match=r"vectors\.npy: is damaged"):
        export_parquet(index, tmp_path / "a.parquet")
    with pytest.raises(PassageIndexError, match=r"vectors\.npy: is damaged"):
        to_arrow(index).read_all()
    export_parquet(index, tmp_path / "a.parquet", check=False)


@pytest.mark.parametrize("rows", [1, 4, 11, 100])
def test_arrow_streams_the_same(tmp_path: Path, rows: int) -> None:
    index = write_index(tmp_path / "index", ALL, DELETED)
    batches = list(to_arrow(index, rows_at_once=rows))
    assert [batch.num_rows for batch in batches[:-1]] == [rows] * (len(batches) - 1)
    check_table(pa.Table.from_batches(batches), LIVE)


def test_arrow_holds_one_state_of_the_index(tmp_path: Path) -> None:
    index = write_index(tmp_path / "index", ALL)
    reader = to_arrow(index, rows_at_once=5)
    first = reader.read_next_batch()
    delete(index, read_manifest(index), DELETED)
    check_table(pa.Table.from_batches([first, *reader]), ALL)
    check_table(to_arrow(index).read_all(), LIVE)


def test_rows_that_count_are_given_in_order(tmp_path: Path) -> None:
    index = write_index(tmp_path / "index", ALL, DELETED)
    expected = [row for row in range(25) if row not in DELETED]
    with open_source(index) as source:
        for at_once in (1, 2, 3, 7, 11, 30):
            parts = [rows.tolist() for rows in source.live(at_once)]
            assert list(chain(*parts)) == expected
            assert {len(part) for part in parts[:-1]} <= {at_once}


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = write_index(tmp_path / "index", ALL)
    for module in ("pyarrow", "qdrant_client"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[parquet\]"'):
        export_parquet(index, tmp_path / "a.parquet")
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[qdrant\]"'):
        export_qdrant(index, "corpus", location=tmp_path / "qdrant")
    # What no library would mend is said first.
    for folder, path, message in (
        (index, tmp_path / "a.csv", r"ends in \.parquet"),
        (index, tmp_path / "absent" / "a.parquet", "absent: no such folder; make it first"),
        (tmp_path / "absent", tmp_path / "a.parquet", "neither an index nor"),
    ):
        with pytest.raises(InputError, match=message):
            export_parquet(folder, path)
    with pytest.raises(InputError, match="neither an index nor"):
        to_arrow(tmp_path / "absent")
    assert names(tmp_path) == {"index", "index-shards"}


qdrant_client = pytest.importorskip("qdrant_client", reason="needs the extra qdrant")


def points_of(location: Path) -> dict[str, tuple[dict[str, object], list[float]]]:
    client = qdrant_client.QdrantClient(path=str(location))
    try:
        found, _ = client.scroll("corpus", limit=1000, with_vectors=True)
    finally:
        client.close()
    return {point.id: (point.payload, point.vector) for point in found}


def test_qdrant_gets_what_is_alive(tmp_path: Path) -> None:
    index = write_index(tmp_path / "index", ALL, DELETED)
    told: list[tuple[int, int]] = []
    count = export_qdrant(
        index,
        "corpus",
        location=tmp_path / "qdrant",
        batch_size=4,
        progress=lambda done, total: told.append((done, total)),
    )
    assert count == len(LIVE)
    assert told == [(done, 11) for done in (4, 8, 11)]
    points = points_of(tmp_path / "qdrant")
    assert set(points) == {point_id(passage.id) for passage in LIVE}
    for passage, vector in zip(LIVE, vectors_of(LIVE), strict=True):
        payload, found = points[point_id(passage.id)]
        own = {"id": passage.id, "title": passage.title, "text": passage.text}
        assert payload == own | dict(passage.metadata)
        np.testing.assert_allclose(found, vector, atol=1e-6)


def test_a_transfer_can_be_run_again(tmp_path: Path) -> None:
    index = write_index(tmp_path / "index", ALL)
    changed = [replace(passage, text=f"New {passage.id}") for passage in ALL[:5]]
    other = write_index(tmp_path / "other", changed)

    def stop(done: int, _total: int) -> None:
        if done > 8:
            raise KeyboardInterrupt

    location = tmp_path / "qdrant"
    with pytest.raises(KeyboardInterrupt):
        export_qdrant(index, "corpus", location=location, batch_size=4, progress=stop)
    assert len(points_of(location)) == 12
    export_qdrant(index, "corpus", location=location, batch_size=7)
    assert len(points_of(location)) == 25
    export_qdrant(other, "corpus", location=location)
    points = points_of(location)
    assert len(points) == 25
    assert points[point_id("d2")][0]["text"] == "New d2"


def test_qdrants_folder_is_made_but_not_its_parents(tmp_path: Path) -> None:
    index = write_index(tmp_path / "index", ALL)
    with pytest.raises(InputError, match="absent: no such folder"):
        export_qdrant(index, "corpus", location=tmp_path / "absent" / "qdrant")
    assert names(tmp_path) == {"index", "index-shards"}


def test_ids_of_points_never_change() -> None:
    assert point_id("d1") == "8a105c9e-2b70-5fc8-9a1c-e0f84121517b"


def test_an_unfitting_collection_is_refused(tmp_path: Path) -> None:
    index = write_index(tmp_path / "index", ALL)
    models = qdrant_client.models
    location = tmp_path / "qdrant"
    client = qdrant_client.QdrantClient(path=str(location))
    cosine, dot = models.Distance.COSINE, models.Distance.DOT
    client.create_collection("wide", models.VectorParams(size=17, distance=cosine))
    client.create_collection("dot", models.VectorParams(size=DIMENSION, distance=dot))
    client.create_collection("named", {"a": models.VectorParams(size=DIMENSION, distance=cosine)})
    client.create_collection("fits", models.VectorParams(size=DIMENSION, distance=cosine))
    client.close()
    with pytest.raises(InputError, match=r'"wide" exists with vectors of 17 dim.*expected 16'):
        export_qdrant(index, "wide", location=location)
    with pytest.raises(InputError, match=r'"dot" exists .* Dot distance: expected 16 and Cosine'):
        export_qdrant(index, "dot", location=location)
    with pytest.raises(InputError, match='"named" exists with named vectors'):
        export_qdrant(index, "named", location=location)
    assert export_qdrant(index, "fits", location=location) == 25


def test_vectors_of_two_encoders_never_meet(tmp_path: Path) -> None:
    export_qdrant(write_index(tmp_path / "index", ALL), "corpus", location=tmp_path / "qdrant")
    other = replace(ENCODER, name="digits", fingerprint="0" * 8)
    settings = EncodingSettings(other, "float32", DIMENSION, 10)
    encode_shards(ALL, encode, tmp_path / "other", settings=settings)
    with pytest.raises(InputError, match=r'holds vectors of the encoder "letters".*"digits"'):
        export_qdrant(tmp_path / "other", "corpus", location=tmp_path / "qdrant")


def test_metadata_never_replaces_the_passage(tmp_path: Path) -> None:
    given = [Passage("a", "one"), Passage("b", "two", "", {"text": "other", "n": [1, None]})]
    index = write_index(tmp_path / "index", given)
    with pytest.raises(InputError, match=r'passage "b" has the key "text".*metadata_key'):
        export_qdrant(index, "corpus", location=tmp_path / "qdrant")
    with pytest.raises(InputError, match="metadata_key is 'text'"):
        export_qdrant(index, "corpus", location=tmp_path / "qdrant", metadata_key="text")
    export_qdrant(index, "corpus", location=tmp_path / "qdrant", metadata_key="metadata")
    payload = points_of(tmp_path / "qdrant")[point_id("b")][0]
    nested = {"text": "other", "n": [1, None]}
    assert payload == {"id": "b", "title": "", "text": "two", "metadata": nested}


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    index = write_index(tmp_path / "index", ALL)
    with pytest.raises(PassageIndexError, match=r"Qdrant at http://127\.0\.0\.1:9: .*run the same"):
        export_qdrant(index, "corpus", location="http://127.0.0.1:9")
    with pytest.raises(InputError, match=r'grpc://x: expected "http://...", '):
        export_qdrant(index, "corpus", location="grpc://x")
