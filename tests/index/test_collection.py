"""A folder behind one object: what it does against a plain dict, beside others who write."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index import Collection, IndexWriter, Passage
from tests.index.living import check
from tests.index.samples import ENCODER, ROOT, build, encode, passages

QUERY = encode(["Text of passage 3."])


def by_id(found: list[Passage]) -> dict[str, Passage]:
    return {passage.id: passage for passage in found}


def test_a_folder_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    folder = tmp_path / "parent" / "new"
    with Collection(folder, ENCODER) as found:
        assert (len(found), found.manifest, found.snapshot()) == (0, None, None)
        assert found.search(QUERY, 3, where={"n": 1}) == [[]]
        assert found.search(QUERY[:0], 3) == []
        assert (found.get(["d1"]), list(found.passages)) == ({}, [])
        assert (found.delete(["d1"]), found.clear()) == (0, 0)
        assert found.add([], encode) == 0
        assert found.update(iter([]), encode) == (0, 0)
        found.compact()
        with pytest.raises(InputError, match="k is 0"):
            found.search(QUERY, 0)
        with pytest.raises(InputError, match="no such operator"):
            found.search(QUERY, 1, where={"n": {"$near": 1}})
        with pytest.raises(InputError, match=r"use clear\(\) to delete all"):
            found.delete_where({})
        with pytest.raises(PassageIndexError, match="no such folder"), found.writing():
            pass
        assert not folder.parent.exists()


def test_every_change_is_seen_at_once(tmp_path: Path) -> None:
    expected = by_id(passages(5))
    found = Collection(tmp_path / "i", ENCODER)
    assert found.add(iter(expected.values()), encode) == 5
    hit = found.search(QUERY, 1, where={"n": 4})[0][0]
    assert (hit.passage, hit.rank) == (expected["d4"], 1)

    new = [Passage("d1", "Another text."), expected["d2"], Passage("e", "New.")]
    assert found.update(new, encode) == (1, 1)
    expected |= by_id(new)
    assert found.get([*expected, "absent"]) == expected
    assert sorted(passage.id for passage in found.passages) == sorted(expected)

    with pytest.raises(InputError, match='"e" is in the index already'):
        found.add([Passage("e", "Again.")], encode)
    assert found.delete(["e", "absent"]) == 1
    assert found.delete_where({"n": {"$gte": 3}}) == 2
    kept = {key: expected[key] for key in ("d0", "d1", "d2")}
    assert len(found) == 3
    found.compact()
    check(found.folder, kept)


def test_all_may_go_and_others_come(tmp_path: Path) -> None:
    found = Collection(tmp_path / "i", ENCODER)
    shown = f"Collection({str(tmp_path / 'i')!r}, "
    assert repr(found) == f"{shown}no index yet)"
    for _ in range(2):
        found.update(passages(3), encode)
        assert repr(found) == f"{shown}3 passages, Flat)"
        assert found.clear() == 3
        assert (len(found), found.search(QUERY, 3), list(found.passages)) == (0, [[]], [])
    found.compact()
    assert found.manifest is not None
    assert found.manifest.shards == ()
    found.add([Passage("a", "A text.")], encode)
    check(found.folder, {"a": Passage("a", "A text.")})


def test_a_failed_first_add_leaves_nothing(tmp_path: Path) -> None:
    found = Collection(tmp_path / "i", ENCODER)
    with pytest.raises(InputError, match="encode returned"):
        found.add(passages(2), lambda texts: encode(texts)[:1])
    with pytest.raises(InputError, match="twice"):
        found.add(passages(1) * 2, encode)
    assert (len(found), found.manifest) == (0, None)
    assert found.add(passages(2), encode) == 2


def test_a_snapshot_stays_as_it_is(tmp_path: Path) -> None:
    build(tmp_path / "i", 5)
    found = Collection(tmp_path / "i", ENCODER)
    before = found.snapshot()
    assert before is not None
    assert before is found.snapshot()
    rest = found.passages
    first = next(rest)
    found.clear()
    found.compact()
    assert (len(before), len(found)) == (5, 0)
    assert [first, *rest] == list(before.passages) == passages(5)
    np.testing.assert_array_equal(before.vectors(["d3"]), encode([passages(5)[3].content]))
    found.close()
    assert len(before.search(QUERY, 9)[0]) == 5


def test_closed(tmp_path: Path) -> None:
    found = Collection(tmp_path / "i", ENCODER)
    found.close()
    found.close()
    with pytest.raises(PassageIndexError, match="collection is closed"):
        found.search(QUERY, 1)
    with pytest.raises(PassageIndexError, match="collection is closed"):
        found.add(passages(1), encode)


def test_what_others_write_is_seen(tmp_path: Path) -> None:
    ours = Collection(tmp_path / "i", ENCODER)
    theirs = Collection(tmp_path / "i", ENCODER)
    ours.add(passages(2), encode)
    assert len(theirs) == 2
    code = (
        "import sys; from epic_retrieval.index import *; from tests.index.samples import *\n"
        "Collection(sys.argv[1], ENCODER).update(passages(4), encode)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "i")], check=True, cwd=ROOT)
    assert len(ours) == len(theirs) == 4
    build(tmp_path / "i", 7, overwrite=True)
    assert len(ours.search(QUERY, 9)[0]) == len(theirs.search(QUERY, 9)[0]) == 7


def test_another_writer_is_waited_for(tmp_path: Path) -> None:
    build(tmp_path / "i", 3)
    found = Collection(tmp_path / "i", ENCODER)
    with ThreadPoolExecutor(1) as pool, IndexWriter(tmp_path / "i"):
        adding = pool.submit(found.add, [Passage("x", "A text.")], encode)
        with pytest.raises(TimeoutError):
            adding.result(0.2)
        hasty = Collection(tmp_path / "i", ENCODER, patience=0.1)
        with pytest.raises(PassageIndexError, match="being changed by this very process"):
            hasty.delete(["d1"])
        assert len(found) == 3
    assert adding.result() == 1
    assert len(found) == 4


def test_threads_of_two_collections_make_one_folder(tmp_path: Path) -> None:
    both = [Collection(tmp_path / "i", ENCODER) for _ in range(2)]
    everything = passages(12)
    searches = []
    done = threading.Event()

    def search() -> None:
        while not done.is_set():
            searches.append(len(both[0].search(QUERY, 20)[0]))

    reader = threading.Thread(target=search)
    reader.start()
    with ThreadPoolExecutor(6) as pool:
        added = list(pool.map(lambda n: both[n % 2].add([everything[n]], encode), range(12)))
    done.set()
    reader.join()
    assert added == [1] * 12
    assert searches == sorted(searches)
    check(tmp_path / "i", by_id(everything))


@pytest.mark.parametrize("changes", [{"fingerprint": "g"}, {"dimension": 8}])
def test_another_encoder(tmp_path: Path, changes: dict[str, Any]) -> None:
    build(tmp_path / "i", 3)
    other = replace(ENCODER, **changes)
    with pytest.raises(PassageIndexError, match="cannot be compared"):
        Collection(tmp_path / "i", other)
    # Only who encodes the passages knows about a task's prompt.
    symmetric = Collection(tmp_path / "i", replace(ENCODER, task="duplicates"))
    with pytest.raises(PassageIndexError, match="task none, now duplicates"):
        symmetric.add([Passage("x", "A text.")], encode)


def test_rebuilt_with_another_encoder_meanwhile(tmp_path: Path) -> None:
    first = Collection(tmp_path / "i", replace(ENCODER, fingerprint="g"))
    build(tmp_path / "i", 3)
    with pytest.raises(PassageIndexError, match="fingerprint ffffffff, now g"):
        first.search(QUERY, 1)
    with pytest.raises(PassageIndexError, match="fingerprint ffffffff, now g"):
        first.add([Passage("x", "A text.")], encode)


def test_without_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give the collection an encoder"):
        Collection(tmp_path / "i").add(passages(1), encode)
    build(tmp_path / "i", 3)
    found = Collection(tmp_path / "i")
    assert found.manifest is not None
    assert found.manifest.encoder == ENCODER
    assert found.add([Passage("x", "A text.")], encode) == 1


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InputError, match="no index: give the folder of one"):
            Collection(path, ENCODER)
