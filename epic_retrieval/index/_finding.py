"""Finds the best rows of an open index: what its structure proposes, or all that there are.

Knows nothing of passages.
"""

import math
import operator
from collections.abc import Mapping

import numpy as np

from epic_retrieval.errors import InputError
from epic_retrieval.index._open import Allowed, View
from epic_retrieval.index._vectors import Vectors
from epic_retrieval.index.ann import CANDIDATES, EF_SEARCH, NPROBE, Ann
from epic_retrieval.index.exact import Found, merged, nearest, rescore
from epic_retrieval.index.manifest import SearchInfo
from epic_retrieval.index.rows import Rows

# Of so few rows, if many more are left out, or of this share, the best are found exactly: that
# takes a few milliseconds, about as long as a structure that must look as far as it then must.
_FEW_ROWS = 20_000
_FEW_SHARE = 0.02
_MOST = 0.5
# Where a filter lets a share of the rows through, the effort is divided by this power of the share:
# measured so that recall stays about as it was tuned, also where those rows are not near the query.
_POWERS = {NPROBE: 1.5, EF_SEARCH: 2.0}
# To look at a node of a graph takes as long as to compare so many rows in their order.
_NODE_COST = 10
# If so much of what may be found is to be proposed, a structure has no use.
_LARGE_SHARE = 0.25


def checked_parameters(view: View, given: Mapping[str, int] | None) -> dict[str, int]:
    """Search parameters as a caller gave them.

    Raises:
        InputError: A name is not known for the structure of this index, or a value is no whole
            number of at least 1.
    """
    if not given:
        return {}
    ann = view.ann
    known = [] if ann is None else [name for name in (ann.effort, CANDIDATES) if name is not None]
    for name in given:
        if name not in known:
            has = f"there are {', '.join(known)}" if known else "there are none"
            raise InputError(
                f'parameters has "{name}", which a search of the kind "{view.manifest.kind}" does '
                f"not know; {has}."
            )
    return {name: checked_count(name, value) for name, value in given.items()}


def checked_count(name: str, value: object) -> int:
    """A whole number, at least 1.

    Raises:
        InputError: It is something else.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # which is what is found out
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise InputError(f"{name} is {value!r}: expected a whole number, at least 1.")
    return number


def best_rows(
    view: View, queries: Vectors, k: int, allowed: Allowed | None, given: Mapping[str, int]
) -> Found:
    """For each query the k best rows of those that may be found.

    Args:
        view: The open index.
        queries: (n, dimension) float32, rows of length 1.
        k: At least 1, at most as many rows as may be found.
        allowed: From `view.allowed`.
        given: From `checked_parameters`.
    """
    ann, info, shards = view.ann, view.manifest.search, view.shards
    mask = None if allowed is None else allowed.mask
    plan = None if ann is None or info is None else _plan(ann, info, k, allowed, given)
    if ann is None or plan is None:
        return nearest(shards, queries, k, mask)
    found = rescore(shards, queries, _proposed(ann, queries, plan, allowed), k)
    if ann.rows < len(shards):
        later = nearest(shards, queries, k, mask, start=ann.rows)
        found = merged([found, later], k)
    if int(found.rows[:, -1].min()) < 0:
        short = np.flatnonzero(found.rows[:, -1] < 0)
        found.cosines[short], found.rows[short] = nearest(shards, queries[short], k, mask)
    return found


def _plan(
    ann: Ann, info: SearchInfo, k: int, allowed: Allowed | None, given: Mapping[str, int]
) -> dict[str, int] | None:
    """The parameters for the structure; None where it is better to do without it."""
    share = 1.0
    if allowed is not None:
        share = allowed.proposable / ann.rows
        if allowed.filtered and not ann.supports_filter:
            return None
        if share <= _FEW_SHARE or (share <= _MOST and allowed.count <= _FEW_ROWS):
            return None
    # Tuned for the k of the measured recall; for more hits it must look further.
    more = max(1.0, k / info.recall_k)
    tuned = math.ceil(info.parameters.get(CANDIDATES, 1) * more)
    plan = {CANDIDATES: max(k, given.get(CANDIDATES, tuned))}
    if plan[CANDIDATES] > _LARGE_SHARE * share * ann.rows:
        return None
    if ann.effort is None:
        return plan
    wide = info.parameters.get(ann.effort, 1) * math.sqrt(more) / share ** _POWERS[ann.effort]
    if ann.effort == EF_SEARCH and share < 1 and wide * _NODE_COST > share * ann.rows:
        return None
    return {**plan, ann.effort: given.get(ann.effort, min(math.ceil(wide), ann.most_effort))}


def _proposed(ann: Ann, queries: Vectors, plan: Mapping[str, int], allowed: Allowed | None) -> Rows:
    """Rows that the structure proposes, (n, candidates or more); -1 for none."""
    count = plan[CANDIDATES]
    if allowed is None:
        return ann.propose(queries, count, plan)
    mask = allowed.mask[: ann.rows]
    if ann.supports_filter:
        return ann.propose(queries, count, plan, mask)
    # Rows that were deleted come along, and leave here.
    gone = ann.rows - allowed.proposable
    more = math.ceil(count * (ann.rows / allowed.proposable) ** 2)
    proposed = ann.propose(queries, min(count + gone, more), plan)
    proposed[(proposed >= 0) & ~mask[proposed]] = -1
    return proposed
