"""A living index against a plain dict, and its readers against what they opened."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from epic_retrieval.index import Passage, PassageIndex, build_index
from epic_retrieval.index.writer import IndexWriter, Updated
from tests.index.living import check, check_open
from tests.index.samples import DIMENSION, ENCODER, encode, names

SHARD = 16
IDS = st.integers(0, 59).map("p{}".format)
CHANGES = st.dictionaries(IDS, st.integers(0, 2), min_size=1, max_size=25)


def passage(key: str, version: int) -> Passage:
    return Passage(key, f"{key} as of {version}", metadata={"version": version})


class Living(RuleBasedStateMachine):
    """An index beside the dict of what it should hold; readers beside what they should see."""

    def __init__(self) -> None:
        super().__init__()
        self.tmp = Path(tempfile.mkdtemp())
        self.folder = self.tmp / "index"
        self.expected = {p.id: p for p in (passage(f"p{n}", 0) for n in range(30))}
        build_index(self.expected.values(), encode, self.folder, encoder=ENCODER, shard_size=SHARD)
        self.writer = IndexWriter(self.folder, shard_size=SHARD, exact_rows=10)
        self.writer.__enter__()
        self.readers: list[tuple[PassageIndex, dict[str, Passage]]] = []
        self.changed = True

    @rule(versions=CHANGES)
    def add(self, versions: dict[str, int]) -> None:
        fresh = {key: passage(key, n) for key, n in versions.items() if key not in self.expected}
        assert self.writer.add(iter(fresh.values()), encode, encoder=ENCODER, chunk_size=7) == len(
            fresh
        )
        self.expected |= fresh
        self.changed = True

    @rule(versions=CHANGES)
    def update(self, versions: dict[str, int]) -> None:
        fresh = {key: passage(key, n) for key, n in versions.items()}
        replaced = [key for key, new in fresh.items() if self.expected.get(key, new) != new]
        added = fresh.keys() - self.expected.keys()
        seen: list[str] = []

        def noted(texts: list[str]) -> np.ndarray:
            seen.extend(texts)
            return encode(texts)

        done = self.writer.update(fresh.values(), noted)
        assert done == Updated(len(added), len(replaced))
        # What is there as it is is not encoded.
        wanted = {fresh[key].content for key in {*added, *replaced}}
        assert set(seen) <= wanted
        assert len(seen) == len(set(seen))
        self.expected |= fresh
        self.changed = True

    @rule(ids=st.sets(IDS, max_size=20))
    def delete(self, ids: set[str]) -> None:
        there = ids & self.expected.keys()
        assert self.writer.delete([*ids, "absent"]) == len(there)
        for key in there:
            del self.expected[key]
        self.changed = True

    @rule(version=st.integers(0, 2))
    def delete_where(self, version: int) -> None:
        there = [p.id for p in self.expected.values() if p.metadata["version"] == version]
        assert self.writer.delete_where({"version": version}) == len(there)
        for key in there:
            del self.expected[key]
        self.changed = True

    @rule()
    def compact(self) -> None:
        manifest = self.writer.compact()
        assert (manifest.rows, manifest.deleted) == (len(self.expected), None)
        assert manifest.search is None or manifest.search.rows == manifest.rows
        assert self.writer.compact() == manifest
        self.changed = True

    @rule(lists=st.integers(0, 2))
    def rebuild(self, lists: int) -> None:
        rows = self.writer.manifest.rows
        lists = min(lists, rows // 39)
        manifest = self.writer.rebuild(f"IVF{lists},Flat" if lists else "flat")
        assert (manifest.search is None) == (not lists)
        assert manifest.rows == rows
        self.changed = True

    @precondition(lambda self: self.writer.manifest.dimension > 8)
    @rule()
    def cut(self) -> None:
        manifest = self.writer.rebuild("flat", dimension=8)
        assert (manifest.dimension, manifest.truncated_from) == (8, DIMENSION)
        self.changed = True

    @rule()
    def reopen(self) -> None:
        before = self.writer.manifest
        self.writer.close()
        self.writer = IndexWriter(self.folder, shard_size=SHARD, exact_rows=10)
        self.writer.__enter__()
        assert self.writer.manifest == before

    @precondition(lambda self: len(self.readers) < 2)
    @rule()
    def open_reader(self) -> None:
        self.readers.append((PassageIndex.open(self.folder), dict(self.expected)))

    @precondition(lambda self: self.readers)
    @rule()
    def close_reader(self) -> None:
        self.readers.pop()[0].close()

    @invariant()
    def holds(self) -> None:
        if self.changed:
            check(self.folder, self.expected)
            assert len(self.writer) == len(self.expected)
        for index, seen in self.readers:
            check_open(index, seen)
        self.changed = False

    def teardown(self) -> None:
        for index, _ in self.readers:
            index.close()
        self.writer.compact()
        # All that earlier generations had is gone.
        manifest = self.writer.manifest
        assert names(self.folder / "shards") == {shard.name for shard in manifest.shards}
        self.writer.close()
        assert names(self.folder) <= {"manifest.json", "generations", "shards", "search", "deleted"}
        shutil.rmtree(self.tmp)


TestLiving = Living.TestCase
TestLiving.settings = settings(
    max_examples=6,
    stateful_step_count=10,
    deadline=None,
    derandomize=True,
    # Shrinking would take minutes.
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    # The disk's own time.
    monkeypatch.setattr(os, "fsync", lambda _: None)
