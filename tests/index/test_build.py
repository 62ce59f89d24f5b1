import datetime as dt
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index import (
    EncoderInfo,
    Passage,
    PassageIndex,
    build_index,
    read_manifest,
    verify_index,
)
from tests.index.samples import DIMENSION, ENCODER, ROOT, build, encode, names, passages

FILES = {"manifest.json", "passages.sqlite", "vectors.faiss"}


def test_build(tmp_path: Path) -> None:
    done: list[int] = []
    out = tmp_path / "deep" / "index"
    manifest = build_index(
        iter(passages(20)),
        encode,
        str(out),
        encoder=ENCODER,
        chunk_size=8,
        progress=done.append,
        corpus="twenty",
    )
    assert done == [8, 16, 20]
    assert names(out) == FILES
    assert names(out.parent) == {"index"}
    assert read_manifest(out) == manifest
    assert (manifest.count, manifest.dimension, manifest.corpus) == (20, DIMENSION, "twenty")
    assert (manifest.metric, manifest.kind, manifest.encoder) == ("cosine", "Flat", ENCODER)
    age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(manifest.created)
    assert dt.timedelta(0) <= age < dt.timedelta(minutes=1)
    assert verify_index(out).ok


def test_encode_gets_content_in_chunks(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def watching(texts: list[str]) -> np.ndarray:
        seen.append(texts)
        return encode(texts)

    build_index(passages(5), watching, tmp_path / "index", encoder=ENCODER, chunk_size=2)
    assert [len(texts) for texts in seen] == [2, 2, 1]
    assert [text for texts in seen for text in texts] == [
        passage.content for passage in passages(5)
    ]


def test_chunks_do_not_change_vectors_or_passages(tmp_path: Path) -> None:
    files = [
        build_index(passages(30), encode, tmp_path / str(size), encoder=ENCODER, chunk_size=size)
        for size in (1, 30)
    ]
    assert files[0].files["vectors.faiss"] == files[1].files["vectors.faiss"]


def listing(texts: list[str]) -> np.ndarray:
    return encode(texts).tolist()  # type: ignore[no-any-return]


def with_row(row: int, value: float) -> Callable[[list[str]], np.ndarray]:
    def bad(texts: list[str]) -> np.ndarray:
        vectors = encode(texts)
        vectors[row] = value
        return vectors

    return bad


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (listing, "encode returned a builtins.list: expected a numpy array"),
        (lambda texts: encode(texts)[0], r"shape \(16,\)"),
        (lambda texts: encode(texts)[:, :3], "vectors of 3 dimensions: expected 16"),
        (lambda texts: encode(texts).astype("f8"), "array of float64: expected float32"),
        (lambda texts: encode(texts)[1:], "3 vectors for 4 texts"),
        (with_row(2, np.nan), "NaN or infinity in row 2"),
        (with_row(2, np.inf), "NaN or infinity in row 2"),
        (with_row(1, 0.0), "length 0 in row 1"),
        (lambda texts: encode(texts) * np.float32(1.01), "length 1.01 in row"),
    ],
)
def test_bad_vectors_leave_nothing(
    tmp_path: Path, bad: Callable[[list[str]], np.ndarray], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_index(passages(4), bad, tmp_path / "index", encoder=ENCODER)
    assert names(tmp_path) == set()


def failing() -> Iterator[Passage]:
    yield from passages(3)
    raise InputError("line 4 is bad")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "There are no passages"),
        ([*passages(9), Passage("d4", "x")], 'id "d4" stands twice, at passages 5 and 10'),
        (["text"], "passages holds a str"),
        (failing(), "line 4 is bad"),
    ],
)
def test_bad_passages_leave_nothing(tmp_path: Path, given: list[Passage], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_index(given, encode, tmp_path / "index", encoder=ENCODER, chunk_size=2)
    assert names(tmp_path) == set()


def test_failing_encoder_keeps_the_old_index(tmp_path: Path) -> None:
    build(tmp_path / "index", 5)
    old = read_manifest(tmp_path / "index")

    def fail(texts: list[str]) -> np.ndarray:
        assert read_manifest(tmp_path / "index") == old
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        build_index(passages(9), fail, tmp_path / "index", encoder=ENCODER, overwrite=True)
    assert read_manifest(tmp_path / "index") == old
    assert names(tmp_path) == {"index"}


def test_overwrite(tmp_path: Path) -> None:
    out = tmp_path / "index"
    out.mkdir()
    build(out, 5)
    with pytest.raises(InputError, match=r"already holds an index: .* overwrite=True"):
        build(out, 6)
    build(out, 6, overwrite=True)
    assert read_manifest(out).count == 6
    assert names(tmp_path) == {"index"}
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r'holds "notes.txt", which is no part of the index'):
        build(out, 7, overwrite=True)
    assert read_manifest(out).count == 6


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_is_no_index_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"manifest_version": 3}')
    with pytest.raises(InputError, match="exists and is not an index"):
        build(folder, overwrite=overwrite)
    with pytest.raises(InputError, match="is a file: an index is a folder"):
        build(folder / "manifest.json", overwrite=overwrite)
    with pytest.raises(InputError, match="cannot be written here"):
        build(folder / "manifest.json" / "below", overwrite=overwrite)
    with pytest.raises(InputError, match="root of a file system"):
        build(Path("/"), overwrite=overwrite)
    assert names(folder) == {"manifest.json"}


def test_folder_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "index"

    def meanwhile(texts: list[str]) -> np.ndarray:
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
        return encode(texts)

    with pytest.raises(InputError, match="exists and is not an index"):
        build_index(passages(3), meanwhile, out, encoder=ENCODER, overwrite=True)
    assert (out / "thesis.txt").read_text() == "mine"
    assert names(tmp_path) == {"index"}


def test_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    build(tmp_path / "v1", 3)
    (tmp_path / "current").symlink_to("v1")
    build(tmp_path / "current", 4, overwrite=True)
    assert (tmp_path / "current").is_symlink()
    assert read_manifest(tmp_path / "v1").count == 4


FULL_DISK = """
import resource, sys
import numpy as np
from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index import EncoderInfo, build_index
from tests.index.samples import encode, passages

def wide(texts):
    return np.tile(encode(texts), 4) / np.float32(2)

out, limit = sys.argv[1:]
if limit != "none":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    build_index(passages(2000), wide, out, encoder=EncoderInfo("wide", "w", 64))
except PassageIndexError as error:
    sys.exit(str(error))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file sizes are limited by setrlimit")
def test_full_disk(tmp_path: Path) -> None:
    def run(limit: str) -> str:
        command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "index"), limit]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stderr

    assert run("none") == ""
    files = read_manifest(tmp_path / "index").files
    vectors, store = files["vectors.faiss"].bytes, files["passages.sqlite"].bytes
    assert store < vectors // 2
    shutil.rmtree(tmp_path / "index")
    # While passages are written; while vectors are; and at the very last bytes of the vectors.
    for limit in (store // 2, vectors // 2, vectors - 10):
        said = run(str(limit))
        assert "writing the index failed" in said
        assert "check the free space" in said
        assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "EncoderInfo.name is ''"),
        ({"fingerprint": None}, "EncoderInfo.fingerprint is None"),
        ({"dimension": 0}, "EncoderInfo.dimension is 0"),
        ({"dimension": "16"}, "EncoderInfo.dimension is '16'"),
        ({"task": 3}, "EncoderInfo.task is 3"),
    ],
)
def test_bad_encoder_info(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EncoderInfo(**{"name": "a", "fingerprint": "b", "dimension": 16, **fields})


def test_bad_chunk_size(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="chunk_size is 0"):
        build_index(passages(1), encode, tmp_path / "index", encoder=ENCODER, chunk_size=0)


def test_texts_and_metadata_survive(tmp_path: Path) -> None:
    given = [
        Passage(
            "ü/1", " \r\n‘𝔘nicode’\u2028 ", "\t", {"a": [1, 2.5, None, {"b": True}], "ü": 2**70}
        )
    ]
    build_index(given, encode, tmp_path / "index", encoder=ENCODER)
    with PassageIndex.open(tmp_path / "index") as index:
        assert list(index.passages) == given
        assert index.passages.find(["none", "ü/1", "ü/1"]) == {"ü/1": given[0]}
        with pytest.raises(PassageIndexError, match="no row 1; there are 1"):
            index.passages.fetch([0, 1])
