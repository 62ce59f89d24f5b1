"""What an index that was changed must be: compared with a plain dict of what it should hold."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from epic_retrieval.index import Passage, PassageIndex, verify_index
from epic_retrieval.index._open import open_view
from epic_retrieval.index._shard_folder import truncated
from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index.exact import nearest
from epic_retrieval.index.generations import reading
from epic_retrieval.index.pending import PENDING
from tests.index.samples import encode

QUERIES = encode(["one query", "another query", "a third one"])


def check(folder: Path, expected: Mapping[str, Passage]) -> None:
    """The index holds these passages, each with its own vector, and nothing is wrong with it."""
    with PassageIndex.open(folder) as index:
        check_open(index, expected)
    check_structure(folder)
    problems = verify_index(folder, encode, sample=60).problems
    # Work that was stopped may lie about.
    found = [str(problem) for problem in problems if problem.file.split("/")[0] != PENDING]
    assert not found, found


def check_open(index: PassageIndex, expected: Mapping[str, Passage]) -> None:
    """An open index answers as a search through the dict would."""
    assert len(index) == len(expected)
    assert index.get([*expected, "absent"]) == expected
    assert sorted(passage.id for passage in index.passages) == sorted(expected)
    if not expected:
        assert index.search(QUERIES, 3) == [[], [], []]
        return
    width = index.manifest.dimension
    ids = list(expected)
    vectors = _encoded([expected[key].content for key in ids], width)
    np.testing.assert_allclose(index.vectors(ids), vectors, atol=1e-3)
    queries = truncated(QUERIES, width)
    scores = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    k = min(4, len(ids))
    # A condition that always holds is searched exactly, whatever the structure.
    for hits, row in zip(index.search(queries, k, where={"never": None}), scores, strict=True):
        assert [hit.passage for hit in hits] == [expected[hit.passage.id] for hit in hits]
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(row)[::-1][:k], atol=1e-3)
        found = [row[ids.index(hit.passage.id)] for hit in hits]
        np.testing.assert_allclose(found, [hit.score for hit in hits], atol=1e-3)


def _encoded(texts: list[str], width: int) -> Vectors:
    return truncated(encode(texts), width)


def check_structure(folder: Path) -> None:
    """The search structure, asked to look everywhere, finds what exact search of its rows finds."""
    with reading(folder) as held:
        view = open_view(folder, held.manifest, check=True)
        if view.ann is not None:
            alive = np.ones(view.ann.rows, dtype=np.bool_)
            alive[view.deleted[view.deleted < view.ann.rows]] = False
            counted = np.zeros(len(view.shards), dtype=np.bool_)
            counted[: view.ann.rows] = alive
            everywhere = {"nprobe": 10**6, "efSearch": 10**6}
            queries = truncated(QUERIES, view.manifest.dimension)
            truth = nearest(view.shards, queries, 3, counted)
            proposed = view.ann.propose(queries, 3, everywhere, alive)
            np.testing.assert_array_equal(proposed, truth.rows)
        view.shards.close()
