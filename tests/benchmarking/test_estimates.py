import numpy as np
import pytest

from epic_retrieval.benchmarking.estimates import (
    FEWEST,
    changes,
    holm,
    median_of,
    paired_ratio,
    percentile,
    percentile_of,
    rank_sum_chance,
)
from epic_retrieval.errors import InputError


def test_percentiles_by_hand() -> None:
    values = [float(one) for one in range(1, 101)]
    assert percentile(values, 50) == 50.5
    assert percentile(values, 95) == pytest.approx(95.05)
    assert percentile(values, 99) == pytest.approx(99.01)
    assert percentile([3.0, 1.0, 2.0], 0) == 1.0


def test_an_interval_holds_its_median_and_is_the_same_each_time() -> None:
    values = np.random.default_rng(1).normal(10, 1, 100).tolist()
    found = median_of(values)
    assert found.low < found.median < found.high
    assert found.high - found.low < 1
    assert median_of(values) == found
    assert percentile_of(values, 95).median == percentile(values, 95)


def test_the_bootstrap_against_scipy() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(2).exponential(3, 60)
    other = bootstrap(
        (values,), np.median, method="percentile", n_resamples=4000, rng=np.random.default_rng(3)
    ).confidence_interval
    found = median_of(values.tolist())
    assert found.low == pytest.approx(other.low, rel=0.1)
    assert found.high == pytest.approx(other.high, rel=0.1)


def test_ratios_are_of_the_same_round() -> None:
    # A round that is slow for both changes nothing.
    found = paired_ratio([2.0, 20.0, 2.0, 200.0], [1.0, 10.0, 1.0])
    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.0)
    with pytest.raises(InputError, match="more than 0"):
        paired_ratio([1.0], [0.0])
    with pytest.raises(InputError, match="no values"):
        paired_ratio([], [1.0])


def test_rank_sums_against_scipy() -> None:
    from scipy.stats import mannwhitneyu

    generator = np.random.default_rng(0)
    for shift in (0.0, 0.3, 2.0):
        one = generator.normal(0, 1, 30).round(1)  # rounded, so that some are equal
        other = generator.normal(shift, 1, 20).round(1)
        expected = mannwhitneyu(one, other, method="asymptotic").pvalue
        assert rank_sum_chance(one, other) == pytest.approx(expected)
    assert rank_sum_chance([1.0, 1.0], [1.0, 1.0]) == 1.0


def test_false_alarms_are_rare() -> None:
    alarms = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        pairs = generator.lognormal(0, 0.2, (25, 2, 30))
        alarms += min(holm([rank_sum_chance(one, other) for one, other in pairs])) < 0.05
    assert alarms <= 5  # of 40 runs with 25 comparisons each, where 2 are expected


def test_holm_by_hand() -> None:
    # Sorted: .01 * 4, .02 * 3, .03 * 2, .04 * 1, none smaller than the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_changes_are_found_and_noise_is_not() -> None:
    generator = np.random.default_rng(0)

    def times(middle: float) -> list[float]:
        found: list[float] = generator.normal(middle, 0.05 * middle, 60).tolist()
        return found

    before = {f"same {number}": times(10) for number in range(20)} | {"slower": times(10)}
    after = {f"same {number}": times(10) for number in range(20)} | {"slower": times(11.5)}
    found = {one.name: one for one in changes(before, after)}
    assert [name for name, one in found.items() if one.is_real] == ["slower"]
    assert found["slower"].ratio.median == pytest.approx(1.15, abs=0.03)
    assert found["slower"].ratio.low > 1


def test_what_does_not_vary_and_what_has_too_few_values() -> None:
    many = [5.0] * FEWEST
    found = changes(
        {"equal": many, "double": many, "few": [5.0, 5.0], "gone": many},
        {"equal": many, "double": [10.0] * FEWEST, "few": [50.0, 50.0], "new": many},
    )
    assert [(one.name, one.ratio.median, one.chance) for one in found] == [
        ("equal", 1.0, 1.0),
        ("double", pytest.approx(2.0), pytest.approx(0, abs=1e-3)),
        ("few", pytest.approx(10.0), None),
    ]
    assert [one.is_real for one in found] == [False, True, False]
    with pytest.raises(InputError, match="above 0"):
        changes({"a": [0.0]}, {"a": [1.0]})
