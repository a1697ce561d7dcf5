"""The entropy band and the median gate: the golden tables of the specification."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.choosers.band import Ranked, band_by_share, candidates_for, entropy_band, median_gate, share_of


def falling(count: int) -> np.ndarray:
    """V = count+2 … 3."""
    return np.arange(count + 2, 2, -1, dtype=np.float64)


@pytest.mark.parametrize(
    ("count", "target", "missing", "upper", "kept", "low"),
    [
        (8, 4, 4, [10, 9], [8, 7, 6, 5], [4, 3]),
        (10, 5, 5, [12, 11], [10, 9, 8, 7, 6], [5, 4, 3]),
        (12, 6, 6, [14, 13, 12], [11, 10, 9, 8, 7, 6], [5, 4, 3]),
        (7, 4, 4, [9], [8, 7, 6, 5], [4, 3]),  # the pool ran dry below N1 = 8
        (3, 2, 2, [], [5, 4], [3]),
        (1, 1, 1, [], [3], []),
        (11, 6, 2, [13, 12], [11, 10, 9, 8, 7], [6, 5, 4, 3]),
    ],
)
def test_band_golden(count: int, target: int, missing: int, upper: list[int], kept: list[int], low: list[int]) -> None:
    entropies = falling(count)
    band = entropy_band(entropies, target, missing)
    assert entropies[band.upper].tolist() == upper
    assert entropies[band.kept].tolist() == kept
    assert entropies[band.low].tolist() == low


@pytest.mark.parametrize(
    ("entropies", "kept"),
    [
        ([5, 4, 3, 2], [0, 1]),
        ([5, 4, 3], [0, 1]),
        ([2, 2, 2, 1], [0, 1, 2]),
        ([1, 1, 1, 1], [0, 1, 2, 3]),
        ([3, 9], [1]),
        ([], []),
    ],
)
def test_median_gate_golden(entropies: list[float], kept: list[int]) -> None:
    """γ = 3.5, 4, 2, 1: an odd count keeps (N+1)/2, ties keep more."""
    assert median_gate(np.array(entropies, dtype=np.float64), 99).kept.tolist() == kept


def test_median_gate_is_cut_to_the_highest() -> None:
    choice = median_gate(np.array([1.0, 5.0, 4.0, 3.0]), 1)
    assert (choice.kept.tolist(), choice.low.tolist()) == ([1], [2, 3, 0])


def test_without_a_trim_the_band_is_the_upper_half() -> None:
    entropies = np.array([1.0, 5.0, 4.0, 3.0])
    assert entropy_band(entropies, 2, 2, trim_share=0.0).kept.tolist() == median_gate(entropies, 2).kept.tolist()


def test_ties_go_to_the_earlier_candidate() -> None:
    assert entropy_band(np.ones(8), 4, 4).kept.tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize(("survivors", "kept"), [(32, 16), (29, 14), (2, 1), (1, 0), (0, 0)])
def test_a_raw_batch_keeps_its_share_rounded_down(survivors: int, kept: int) -> None:
    band = band_by_share(falling(survivors))
    assert len(band.kept) == kept
    assert len(band.upper) == survivors // 4


@pytest.mark.parametrize(("share", "count", "whole"), [(0.29, 100, 29), (0.7, 10, 7), (0.25, 11, 2), (0.5, 7, 3)])
def test_shares_are_meant_as_decimals(share: float, count: int, whole: int) -> None:
    assert share_of(share, count) == whole


@pytest.mark.parametrize(
    ("target", "share", "wanted"), [(384, 0.5, 768), (6, 0.3, 20), (7, 0.7, 10), (5, 1.0, 5), (1, 0.75, 2)]
)
def test_candidates_for(target: int, share: float, wanted: int) -> None:
    assert candidates_for(target, share) == wanted


def test_extension_takes_the_next_ranked_below_the_band_and_then_above_it() -> None:
    band = entropy_band(falling(8), 4, 4)
    assert falling(8)[band.extended(3).kept].tolist() == [8, 7, 6, 5, 4, 3, 9]
    assert band.extended(3).upper.tolist() == [0]
    assert len(band.extended(99).kept) == 8
    assert band.extended(0).kept.tolist() == band.kept.tolist()


def test_joined_choices_are_ranked_again() -> None:
    entropies = np.array([1.0, 2.0, 3.0, 4.0])
    none = np.empty(0, dtype=np.int64)
    parts = [Ranked(none, np.array([0]), np.array([1])), Ranked(none, np.array([3]), np.array([2]))]
    whole = Ranked.joined(parts, entropies)
    assert (whole.kept.tolist(), whole.low.tolist(), whole.upper.tolist()) == ([3, 0], [2, 1], [])
    assert Ranked.joined([], entropies).kept.tolist() == []


@given(
    st.lists(st.floats(0.0, 12.0), max_size=60),
    st.integers(0, 40),
    st.integers(0, 40),
    st.sampled_from([(0.5, 0.25), (0.5, 0.0), (0.3, 0.7), (1.0, 0.0)]),
    st.integers(0, 9),
)
def test_every_candidate_ends_in_exactly_one_part(
    values: list[float], target: int, missing: int, shares: tuple[float, float], extra: int
) -> None:
    """And the parts are ordered: nothing in the band beats the trim, nothing below beats the band."""
    entropies = np.array(values, dtype=np.float64)
    band = entropy_band(entropies, target, missing, keep_share=shares[0], trim_share=shares[1])
    assert sorted([*band.upper, *band.kept, *band.low]) == list(range(len(values)))
    ranked = entropies[np.concatenate([band.upper, band.kept, band.low])]
    assert np.all(np.diff(ranked) <= 0)
    assert len(band.kept) <= target
    assert len(band.kept) >= min(len(values), target, missing)
    longer = band.extended(extra)
    assert sorted([*longer.upper, *longer.kept, *longer.low]) == list(range(len(values)))
    assert len(longer.kept) == min(len(values), len(band.kept) + extra)
