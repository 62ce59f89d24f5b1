"""500 damages to small indexes: all are found by `verify`, and none changes an answer unnoticed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from epic_retrieval.errors import PassageIndexError
from epic_retrieval.index import Hit, Passage, PassageIndex, checksums, read_manifest, verify_index
from tests.index.folders import append, build_kind, delete, unsynced
from tests.index.samples import encode, passages

_unsynced = pytest.fixture(autouse=True, scope="module")(unsynced)

KINDS = ("flat", "HNSW4", "IVF4,SQ8", "IVF4,PQ8x4fs")
ROUNDS = 125
Random = np.random.Generator


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards and a later one, a structure over the first two, some rows deleted."""
    kind: str = request.param
    out = tmp_path_factory.mktemp("damage") / kind
    build_kind(out, passages(640), kind)
    append(out, [Passage(f"x{n}", f"Later text {n}.", metadata={"n": n}) for n in range(30)])
    delete(out, range(0, 670, 13))
    return out


def answers(folder: Path) -> list[list[list[Hit]]]:
    queries = encode([f"query {n}" for n in range(4)])
    with PassageIndex.open(folder, check=True) as index:
        return [
            index.search(queries, 700),
            index.search(queries, 5),
            index.search(queries, 20, where={"n": {"$lt": 50}}),
            [[Hit(passage, 1.0, 1) for passage in index.get(["d1", "d639", "x3"]).values()]],
        ]


def flipped(content: bytes, random: Random) -> bytes:
    damaged = bytearray(content)
    damaged[random.integers(len(content))] ^= 1 << int(random.integers(8))
    return bytes(damaged)


def cut(content: bytes, random: Random) -> bytes:
    # Half of them lose a few bytes only.
    longest = len(content) if random.random() < 0.5 else min(len(content), 9)
    return content[: len(content) - int(random.integers(1, longest + 1))]


def swapped(content: bytes, random: Random) -> bytes:
    damaged = bytearray(content)
    while bytes(damaged) == content:
        one, other = random.integers(len(content), size=2)
        damaged[one], damaged[other] = damaged[other], damaged[one]
    return bytes(damaged)


DAMAGES: tuple[Callable[[bytes, Random], bytes], ...] = (flipped, cut, swapped)


def overwrite(path: Path, content: bytes) -> None:
    """As a failing disk does it: in place, with the times as they were."""
    times = path.stat()
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_every_damage_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is whole is remembered at once; files are older than the clock's tick by then.
    monkeypatch.setattr(checksums, "_SETTLED", 0)
    expected = answers(folder)
    names = ["manifest.json", *read_manifest(folder).files]
    random = np.random.default_rng(list(folder.name.encode()))
    for round_ in range(ROUNDS):
        name = names[round_ % len(names)]
        damage = DAMAGES[int(random.integers(len(DAMAGES)))]
        path = folder / name
        whole = path.read_bytes()
        overwrite(path, damage(whole, random))
        where = f"round {round_}: {damage.__name__} {name}"
        report = verify_index(folder)
        assert name in {problem.file for problem in report.problems}, where
        assert {problem.file for problem in report.problems} == {name}, where
        try:
            found = answers(folder)
        except PassageIndexError:
            pass
        else:
            assert name == "manifest.json", where
            assert found == expected, where
        overwrite(path, whole)
    assert verify_index(folder).ok
    assert answers(folder) == expected


def test_exchanged_files_are_found(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "index")
    names = list(read_manifest(copy).files)
    of_same_kind = [
        (one, other)
        for one in names
        for other in names
        if one < other and Path(one).name == Path(other).name
    ]
    assert len(of_same_kind) >= 9
    for one, other in of_same_kind:
        shutil.move(copy / one, tmp_path / "aside")
        shutil.move(copy / other, copy / one)
        shutil.move(tmp_path / "aside", copy / other)
        assert {problem.file for problem in verify_index(copy).problems} == {one, other}
        with pytest.raises(PassageIndexError):
            PassageIndex.open(copy)
        shutil.move(copy / one, tmp_path / "aside")
        shutil.move(copy / other, copy / one)
        shutil.move(tmp_path / "aside", copy / other)
    assert verify_index(copy).ok
