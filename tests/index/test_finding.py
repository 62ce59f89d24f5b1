"""How far structures look, and when they are done without."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from epic_retrieval.index import PassageIndex
from epic_retrieval.index import _finding as finding
from epic_retrieval.index._fields import Mask
from epic_retrieval.index._open import Allowed
from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index.ann import Ann
from epic_retrieval.index.manifest import FileInfo, SearchInfo
from epic_retrieval.index.rows import Rows
from tests.index.folders import made_once, unsynced
from tests.index.samples import encode

_unsynced = pytest.fixture(autouse=True, scope="module")(unsynced)
living = pytest.fixture(scope="module")(made_once)


def planned(
    rows: int,
    allowed: Allowed | None,
    kind: str = "nprobe",
    k: int = 10,
    given: dict[str, int] | None = None,
) -> dict[str, int] | None:
    """The plan for a structure of a million rows that was tuned to 16 and 20 candidates."""
    effort = kind if kind != "PQ" else None
    stored = {"candidates": 20, **({effort: 16} if effort else {})}
    ann = SimpleNamespace(
        rows=rows, effort=effort, most_effort=4096, supports_filter=effort is not None
    )
    file = FileInfo(1, "0" * 64)
    info = SearchInfo("x-01234567", "any", rows, file, stored, None, 10, None)
    return finding._plan(ann, info, k, allowed, given or {})  # type: ignore[arg-type]


def letting(count: int, rows: int, *, filtered: bool = True) -> Allowed:
    return Allowed(np.arange(rows) < count, count, count, filtered)


def test_structures_look_further_where_less_may_be_found() -> None:
    n = 10**6
    assert planned(n, None) == {"candidates": 20, "nprobe": 16}
    half, tenth = letting(n // 2, n), letting(n // 10, n)
    assert planned(n, half) == {"candidates": 20, "nprobe": 46}
    assert planned(n, tenth) == {"candidates": 20, "nprobe": 506}
    assert planned(n, half, "efSearch") == {"candidates": 20, "efSearch": 64}
    assert planned(n, tenth, "efSearch") == {"candidates": 20, "efSearch": 1600}
    assert planned(n, letting(30_000, n)) == {"candidates": 20, "nprobe": 3080}
    assert planned(n, letting(21_000, n)) == {"candidates": 20, "nprobe": 4096}
    # What a caller says is what is done.
    assert planned(n, tenth, given={"nprobe": 3}) == {"candidates": 20, "nprobe": 3}
    assert planned(n, None, given={"candidates": 99}) == {"candidates": 99, "nprobe": 16}


def test_structures_look_further_for_more_hits() -> None:
    n = 10**6
    assert planned(n, None, k=5) == {"candidates": 20, "nprobe": 16}
    assert planned(n, None, k=90) == {"candidates": 180, "nprobe": 48}
    assert planned(n, None, k=90, given={"candidates": 3, "nprobe": 2}) == {
        "candidates": 90,
        "nprobe": 2,
    }


def test_where_search_is_exact() -> None:
    n = 10**6
    assert planned(n, letting(20_000, n)) is None
    assert planned(n, letting(0, n)) is None
    assert planned(10 * n, letting(200_000, 10 * n)) is None
    assert planned(10 * n, letting(201_000, 10 * n)) is not None
    assert planned(40_000, letting(20_000, 40_000)) is None
    assert planned(39_000, letting(20_000, 39_000)) is not None
    # A graph of which much is left out takes longer than looking at the rest.
    assert planned(n, letting(50_000, n), "efSearch") is None
    assert planned(n, letting(60_000, n), "efSearch") is not None
    # A filter that the structure cannot apply; rows that were deleted can leave afterwards.
    assert planned(n, letting(n // 2, n), "PQ") is None
    assert planned(n, letting(n // 2, n, filtered=False), "PQ") == {"candidates": 20}
    # Much of all is wanted.
    assert planned(1000, None, k=125) == {"candidates": 250, "nprobe": 57}
    assert planned(1000, None, k=126) is None


def test_deleted_rows_do_not_take_the_place_of_others(
    living: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_FEW_ROWS", "_FEW_SHARE"):
        monkeypatch.setattr(finding, name, 0)
    monkeypatch.setattr(finding, "_LARGE_SHARE", 1.0)
    folder = living("PQ8x4fs")
    asked: list[tuple[int, bool]] = []

    def propose(
        ann: Ann, queries: Vectors, count: int, plan: dict[str, int], allowed: Mask | None = None
    ) -> Rows:
        asked.append((count, allowed is not None))
        return original(ann, queries, count, plan, allowed)

    original = Ann.propose
    monkeypatch.setattr(Ann, "propose", propose)
    queries = encode(["one", "two", "three"])
    with PassageIndex.open(folder) as index:
        view = index._opened()
        assert view.ann is not None
        alive = view.allowed(None)
        assert alive is not None
        gone = view.ann.rows - alive.proposable
        index.search(queries, 10, parameters={"candidates": 40})
        index.search(queries, 10, parameters={"candidates": 400})
        # A condition that all passages fulfil leaves nothing out.
        index.search(queries, 10, where={"n": {"$gte": 0}}, parameters={"candidates": 40})
        index.search(queries, 10, where={"n": {"$gte": 1}}, parameters={"candidates": 40})
    more = int(np.ceil(40 * (700 / alive.proposable) ** 2))
    assert asked == [(more, False), (400 + gone, False), (more, False)]
