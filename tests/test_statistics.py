"""Paired ratios checked against resamples counted by hand, and the table printer."""

import math

import numpy as np
import pytest

from edgewise.lab.statistics import Interval, paired_ratio
from edgewise.lab.table import format_table


def test_two_pairs_by_hand():
    """Ratios 1/2 and 2; the four resamples have geometric means 1/2, 1, 1, 2: at 95 % the range, at 40 % the middle."""
    found = paired_ratio([1, 4], [2, 2])
    assert (found.estimate, found.low, found.high, found.n) == pytest.approx((1.0, 0.5, 2.0, 2))
    middle = paired_ratio([1, 4], [2, 2], level=0.4)
    assert (middle.low, middle.high) == pytest.approx((1.0, 1.0))


def test_three_pairs_give_the_range_at_95_percent_and_less_at_90():
    """27 resamples: the smallest mean alone has weight 1/27 = 3.7 %, more than 2.5 % and less than 5 %."""
    wide = paired_ratio([1, 2, 4], [1, 1, 1])
    assert (wide.estimate, wide.low, wide.high) == pytest.approx((2.0, 1.0, 4.0))
    narrow = paired_ratio([1, 2, 4], [1, 1, 1], level=0.9)
    assert (narrow.low, narrow.high) == pytest.approx((2 ** (1 / 3), 2 ** (5 / 3)))


def test_equal_ratios_have_no_width_whatever_the_scale():
    """What differs between seeds but not within a pair does not widen the interval: that is what pairing is for."""
    found = paired_ratio([1, 10, 100, 1000], [2, 20, 200, 2000])
    assert (found.estimate, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_one_pair_has_an_estimate_and_no_interval():
    found = paired_ratio([3], [2])
    assert found.estimate == pytest.approx(1.5)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert str(found) == "1.50"


def test_swapping_the_sides_inverts_the_ratio():
    straight, swapped = paired_ratio([1, 2, 5, 7], [3, 1, 2, 2]), paired_ratio([3, 1, 2, 2], [1, 2, 5, 7])
    assert swapped.estimate == pytest.approx(1 / straight.estimate)
    assert (swapped.low, swapped.high) == pytest.approx((1 / straight.high, 1 / straight.low))


def test_many_pairs_are_resampled_from_the_seed():
    ratios = np.exp(np.random.default_rng(5).normal(0.3, 0.2, 40))
    found = paired_ratio(ratios, np.ones(40), seed=1)
    assert found == paired_ratio(ratios, np.ones(40), seed=1)
    spread = 1.96 * np.log(ratios).std() / np.sqrt(40)
    assert np.log(found.high / found.low) == pytest.approx(2 * spread, rel=0.1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """200 draws of 12 pairs, where a bootstrap covers a little less than 95 %: below 80 % once in 1e6 if it covers 91 %."""
    rng = np.random.default_rng(0)
    draws = np.exp(rng.normal(0.5, 0.4, (200, 12)))
    found = [paired_ratio(draw, np.ones(12)) for draw in draws]
    assert np.mean([one.low <= np.exp(0.5) <= one.high for one in found]) > 0.8


@pytest.mark.parametrize(
    ("over", "under", "message"),
    [
        ([], [], "two lists of one length >= 1, got shapes (0,) and (0,)"),
        ([1, 2], [1], "got shapes (2,) and (1,)"),
        ([1, 0], [1, 1], "takes positive finite numbers"),
        ([1, math.nan], [1, 1], "takes positive finite numbers"),
        ([1, 2], [1, math.inf], "takes positive finite numbers"),
    ],
)
def test_what_has_no_ratio_is_refused(over, under, message):
    with pytest.raises(ValueError) as caught:
        paired_ratio(over, under)
    assert message in str(caught.value)


def test_a_level_outside_zero_and_one_is_refused():
    with pytest.raises(ValueError, match=r"paired_ratio\(level=\.\.\.\) must be in \(0, 1\), got 95"):
        paired_ratio([1], [1], level=95)


def test_an_interval_prints_with_two_digits():
    assert str(Interval(0.4567, 0.4, 0.512, 3)) == "0.46 [0.40, 0.51]"


def test_a_table_aligns_columns_under_titles_of_several_lines():
    text = format_table(["method", "pass\nrate"], [["hive", ".5"], ["a longer one", "1.25"]], "<>")
    assert text.split("\n") == ["              pass", "method        rate", "hive            .5", "a longer one  1.25"]


def test_a_table_without_rows_is_its_header():
    assert format_table(["a", "b"], []) == "a  b"


def test_a_row_of_another_width_is_an_error():
    with pytest.raises(ValueError):
        format_table(["a", "b"], [["only one"]])
