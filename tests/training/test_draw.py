"""Draws of demonstrations: nobody sees the answer, and every number of them comes up."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from epic_training.draw import draw_demonstrations


def distinct(n: int) -> NDArray[np.int64]:
    return np.arange(2 * n).reshape(n, 2)


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 24),
    texts=st.integers(1, 40),
    groups=st.integers(1, 30),
    most=st.integers(0, 8),
    seed=st.integers(0, 10_000),
)
def test_no_query_sees_a_text_of_its_own_pair(
    n: int, texts: int, groups: int, most: int, seed: int
) -> None:
    """With few different texts, so that queries and positives repeat, across the columns too."""
    keys = np.random.default_rng(seed).integers(0, texts, size=(n, 2))
    draws = draw_demonstrations(keys, groups, most, np.random.default_rng(seed))
    assert sorted(i for draw in draws for i in draw.members) == list(range(n))
    assert len(draws) == min(groups, n)
    for draw in draws:
        assert len(draw.shown) <= most
        pairs = [tuple(keys[i]) for i in draw.shown]
        assert len(set(pairs)) == len(pairs)
        for member in draw.members:
            for pair in pairs:
                assert not {int(keys[member][0]), int(keys[member][1])} & set(map(int, pair))


@pytest.mark.parametrize("groups", [2, 3, 7])
def test_every_other_pair_is_shown_sooner_or_later(groups: int) -> None:
    shown_with = set()
    for seed in range(150):
        for draw in draw_demonstrations(distinct(7), groups, 5, np.random.default_rng(seed)):
            shown_with |= {(int(i), int(j)) for i in draw.members for j in draw.shown}
    assert shown_with == {(i, j) for i in range(7) for j in range(7) if i != j}


def test_the_number_of_demonstrations_is_uniform_from_none_to_all() -> None:
    rng = np.random.default_rng(0)
    draws = [d for _ in range(750) for d in draw_demonstrations(distinct(16), 4, 5, rng)]
    found = Counter(len(draw.shown) for draw in draws)
    assert set(found) == set(range(6))
    assert all(abs(count - 500) < 100 for count in found.values())  # five standard deviations


def test_text_comes_as_often_as_it_should_and_changes_no_other_draw() -> None:
    shares: dict[float, list[bool]] = {}
    shown = []
    for share in (0.0, 0.3, 1.0):
        rng = np.random.default_rng(1)
        draws = [d for _ in range(500) for d in draw_demonstrations(distinct(8), 2, 3, rng, share)]
        shares[share] = [draw.textual for draw in draws]
        shown.append([draw.shown.tolist() for draw in draws])
    assert not any(shares[0.0])
    assert all(shares[1.0])
    assert 0.25 < np.mean(shares[0.3]) < 0.35
    assert shown[0] == shown[1] == shown[2]


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 24),
    groups=st.integers(1, 9),
    most=st.integers(0, 5),
    seed=st.integers(0, 10_000),
)
def test_groups_and_what_they_see_are_of_one_kind(
    n: int, groups: int, most: int, seed: int
) -> None:
    kinds = [int(i) for i in np.random.default_rng(seed).integers(0, 2, size=n)]
    rng = np.random.default_rng(seed)
    draws = draw_demonstrations(distinct(n), groups, most, rng, kinds=kinds)
    assert sorted(i for draw in draws for i in draw.members) == list(range(n))
    for draw in draws:
        [kind] = {kinds[i] for i in draw.members}
        assert {kinds[i] for i in draw.shown} <= {kind}
        others = kinds.count(kind) - len(draw.members)
        assert min(1, most, others) <= len(draw.shown) <= most
