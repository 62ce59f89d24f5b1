import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest

from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index import PassageIndex, verify_index
from epic_retrieval.index.manifest import FileInfo, Manifest, read_manifest
from tests.index.samples import build, encode

FILES = ["manifest.json", "passages.sqlite", "vectors.faiss"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verify") / "index"
    build(out)
    return out


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "index")
    return tmp_path / "index"


def test_as_built(folder: Path) -> None:
    report = verify_index(folder)
    assert report.ok
    assert report.problems == ()
    assert report.manifest == read_manifest(folder)


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits_are_found(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    places = range(0, len(whole), 5 if name == "manifest.json" else 997)
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        report = verify_index(folder)
        assert [problem.file for problem in report.problems] == [name], place
        if name != "manifest.json":
            with pytest.raises(PassageIndexError, match=f"{name} is damaged"):
                PassageIndex.open(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 20, -1])
def test_truncated(folder: Path, name: str, keep: int) -> None:
    path = folder / name
    os.truncate(path, keep if keep >= 0 else path.stat().st_size + keep)
    assert {problem.file for problem in verify_index(folder).problems} == {name}


@pytest.mark.parametrize("name", FILES)
def test_removed(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (problem,) = verify_index(folder).problems
    assert problem.file == name
    assert "is missing" in str(problem) or "has no manifest.json" in str(problem)


def test_all_faults_are_named_at_once(folder: Path) -> None:
    (folder / "vectors.faiss").unlink()
    os.truncate(folder / "passages.sqlite", 10)
    (folder / "notes.txt").touch()
    (folder / "passages.sqlite-journal").mkdir()
    found = {(problem.kind, problem.file) for problem in verify_index(folder).problems}
    assert found == {
        ("file", "vectors.faiss"),
        ("file", "passages.sqlite"),
        ("extra", "notes.txt"),
        ("extra", "passages.sqlite-journal"),
    }


def test_no_folder(tmp_path: Path) -> None:
    report = verify_index(tmp_path / "none")
    assert not report.ok
    assert "no such folder" in str(report.problems[0])


def resign(folder: Path) -> None:
    """A manifest that vouches for the files as they are: only the content can still be wrong."""
    old = read_manifest(folder)
    files = {name: FileInfo.of(folder / name) for name in old.files}
    fields = {**old.__dict__, "files": files}
    (folder / "manifest.json").write_text(Manifest(**fields).to_text())


def fewer_vectors(folder: Path) -> None:
    index = faiss.IndexFlatIP(16)
    index.add(encode(["a", "b"]))
    faiss.write_index(index, str(folder / "vectors.faiss"))


def other_metric(folder: Path) -> None:
    index = faiss.IndexFlatL2(16)
    index.add(encode([str(n) for n in range(40)]))
    faiss.write_index(index, str(folder / "vectors.faiss"))


def other_kind(folder: Path) -> None:
    index = faiss.IndexHNSWFlat(16, 4, faiss.METRIC_INNER_PRODUCT)
    index.add(encode([str(n) for n in range(40)]))
    faiss.write_index(index, str(folder / "vectors.faiss"))


def no_faiss(folder: Path) -> None:
    np.save(folder / "x.npy", encode(["a"]))
    (folder / "x.npy").replace(folder / "vectors.faiss")


def change(query: str) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        connection = sqlite3.connect(folder / "passages.sqlite")
        connection.executescript(query)
        connection.close()

    return run


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (fewer_vectors, "2 vectors of 16 dimensions, but the manifest says 40 of 16"),
        (other_metric, "not a Flat index of inner products"),
        (other_kind, "not a Flat index of inner products"),
        (no_faiss, "FAISS cannot read it"),
        (change("DELETE FROM passages WHERE row = 39"), "39 passages.* manifest says 40"),
        (change("DROP TABLE passages"), "missing or damaged"),
    ],
)
def test_content_that_does_not_fit(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    resign(folder)
    assert [p for p in verify_index(folder).problems if p.kind in {"vectors", "passages"}]
    with pytest.raises(PassageIndexError, match=message):
        PassageIndex.open(folder)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("UPDATE passages SET row = 77 WHERE row = 3", "rows are numbered 0 to 77"),
        (
            """CREATE TABLE p AS SELECT * FROM passages; DROP TABLE passages;
            ALTER TABLE p RENAME TO passages; UPDATE passages SET id = 'd1' WHERE row = 2""",
            "40 rows have only 39 different ids",
        ),
    ],
)
def test_inconsistent_store(folder: Path, query: str, message: str) -> None:
    change(query)(folder)
    resign(folder)
    (problem,) = verify_index(folder).problems
    assert (problem.kind, problem.file) == ("passages", "passages.sqlite")
    assert message in str(problem)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2; .* Upgrade"),
        ({"count": 3}, "its checksum does not fit"),
        ({"format": "other"}, "not the manifest of a passage index"),
    ],
)
def test_edited_manifest(folder: Path, changes: dict[str, object], message: str) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(PassageIndexError, match=message):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", -1),
        ("count", True),
        ("kind", "IVF"),
        ("metric", 3),
        ("encoder", {"name": "x"}),
        ("files", {"../../etc/passwd": {"bytes": 1, "sha256": ""}}),
        ("dimension", 3),
    ],
)
def test_manifest_with_nonsense(folder: Path, field: str, value: object) -> None:
    from epic_retrieval.index.manifest import _checksum

    content = json.loads((folder / "manifest.json").read_text())
    del content["checksum"]
    content[field] = value
    content["checksum"] = _checksum(content)
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(PassageIndexError, match=r"manifest.json: not as expected"):
        read_manifest(folder)
