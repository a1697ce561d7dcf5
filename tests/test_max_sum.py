"""Greedy max-sum diversification: the golden table, the naive rule, brute force, and pruning that changes nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.choosers.max_sum import Rule, anchored, dispersion, max_sum

X = np.array([(1, 0), (1, 0), (0, 1), (-1, 0), (0.8, 0.6)], dtype=np.float64)
G = np.array([0.5, 0.45, 0.3, 0.2, 0.5])
U = G * (1 - G)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def unit(n: int, d: int, seed: int = 0) -> np.ndarray:
    vectors = rng(seed).standard_normal((n, d))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def distances(x: np.ndarray) -> np.ndarray:
    return 1.0 - x @ x.T


def value(quality: np.ndarray, x: np.ndarray, picks: tuple[int, ...], weight: float) -> float:
    """F(S) by its definition, pair by pair."""
    d = distances(x)
    pairs = sum(d[i, j] for i, j in itertools.combinations(picks, 2))
    return float(sum(quality[i] for i in picks) + weight / (len(picks) - 1) * pairs)


def naive(quality: np.ndarray, x: np.ndarray, most: int, weight: float, rule: Rule, chosen: np.ndarray) -> list[int]:
    """The rule, by direct summation over the chosen; no two gains may tie."""
    c = 0.5 if rule == "potential" else 1.0
    scale = weight / (most + len(chosen) - 1)
    inside, picks = [*chosen], []
    for _ in range(most):
        gains = {i: c * quality[i] + scale * sum(1 - x[i] @ y for y in inside) for i in range(len(x)) if i not in picks}
        best = max(gains, key=gains.__getitem__)
        picks.append(best)
        inside.append(x[best])
    return picks


@pytest.mark.parametrize(
    ("weight", "count", "rule", "picks"),
    [
        (0.04, 2, "marginal", [0, 4]),
        (0.04, 2, "potential", [0, 3]),
        (0.08, 3, "marginal", [0, 4, 3]),
        (0.08, 3, "potential", [0, 3, 4]),
    ],
)
def test_golden_picks(weight: float, count: int, rule: Rule, picks: list[int]) -> None:
    """Prompts 0 and 4 tie at the first pick (u = 1/4): the golden table takes the lower one, we draw. Seeds that drew 0."""
    found = [max_sum(U, X, count, rng(seed), weight=weight, rule=rule).tolist() for seed in range(20)]
    assert picks in found
    assert {first for first, *_ in found} == {0, 4}


def test_golden_values() -> None:
    """The two pairs that the rules pick at λ_d = .04: F = .5 + .04·.2 = .508 and .25 + .16 + .04·2 = .490."""
    assert dispersion(U, X, np.array([0, 4]), 0.04) == pytest.approx(0.508)
    assert dispersion(U, X, np.array([0, 3]), 0.04) == pytest.approx(0.490)
    assert value(U, X, (0, 4), 0.04) == pytest.approx(0.508)


def test_without_diversity_it_is_the_best_by_score() -> None:
    for seed in range(5):
        assert sorted(max_sum(U, X, 3, rng(seed), weight=0.0).tolist()) == [0, 1, 4]


def test_golden_anchor() -> None:
    quality = anchored(U, X, np.array([[0.0, 1.0]]), 0.1)
    np.testing.assert_allclose(quality, [0.35, 0.3475, 0.21, 0.26, 0.29], atol=1e-12)
    assert max_sum(quality, X, 3, rng(), weight=0.0).tolist() == [0, 1, 4]


def test_the_anchor_is_the_mean_distance() -> None:
    x, anchor = unit(30, 5, 1), unit(7, 5, 2)
    expected = [u + 0.3 * np.mean([1 - row @ a for a in anchor]) for u, row in zip(np.ones(30), x, strict=True)]
    np.testing.assert_allclose(anchored(np.ones(30), x, anchor, 0.3), expected, atol=1e-12)
    assert anchored(U, X, X[:0], 0.3) is U


@pytest.mark.parametrize("rule", ["marginal", "potential"])
@pytest.mark.parametrize("weight", [0.05, 1.0])
def test_every_pick_is_the_naive_one(rule: Rule, weight: float) -> None:
    for seed in range(6):
        x, quality, chosen = unit(40, 4, seed), rng(seed + 99).random(40), unit(3, 4, seed + 50)[: seed % 4]
        found = max_sum(quality, x, 12, rng(seed), weight=weight, rule=rule, chosen=chosen, block=7)
        assert found.tolist() == naive(quality, x, 12, weight, rule, chosen)


@given(
    n=st.integers(1, 60), most=st.integers(0, 70), weight=st.sampled_from([0.01, 0.1, 1.0]), seed=st.integers(0, 2**16),
    copies=st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_pruning_changes_nothing(n: int, most: int, weight: float, seed: int, copies: bool) -> None:
    x = unit(n, 3, seed).astype(np.float32)
    quality = np.round(rng(seed).random(n), 1)  # many ties
    if copies:
        x = x[rng(seed).integers(0, max(1, n // 4), size=n)]
    found = [
        max_sum(quality, x, most, rng(seed), weight=weight, prune=prune, block=block).tolist()
        for prune, block in ((True, 4), (False, 4), (True, 512))
    ]
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == len(found[0]) == min(n, most)


def test_pruning_scans_few_rows() -> None:
    """Rows are converted block by block as far as a scan comes: counted by a matrix that notes what is read of it."""

    class Noting(np.ndarray):
        read = 0

        def __getitem__(self, key):
            if isinstance(key, np.ndarray):
                Noting.read += len(key)
            return super().__getitem__(key)

    x = unit(20_000, 32, 3).view(Noting)
    quality = rng(4).random(20_000) * 0.25
    Noting.read = 0
    max_sum(quality, x, 32, rng(5), weight=0.05)
    assert 32 <= Noting.read < 10_000


def test_greedy_against_brute_force() -> None:
    """All subsets of 5 of 12. F of the greedy set is at least half of the best; both rules come within 10 % here."""
    for seed in range(8):
        x, quality = unit(12, 3, seed), rng(seed + 7).random(12) * 0.25
        best = max(value(quality, x, s, 0.1) for s in itertools.combinations(range(12), 5))
        for rule in ("marginal", "potential"):
            picks = max_sum(quality, x, 5, rng(), weight=0.1, rule=rule)
            assert dispersion(quality, x, picks, 0.1) == pytest.approx(value(quality, x, tuple(picks.tolist()), 0.1))
            assert 0.9 * best <= value(quality, x, tuple(picks.tolist()), 0.1) <= best + 1e-12


def test_one_minus_cosine_is_no_metric() -> None:
    """Why the factor-2 guarantee of the potential rule is not claimed: d(0°, 120°) > d(0°, 60°) + d(60°, 120°)."""
    angles = np.deg2rad([0, 60, 120])
    d = distances(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert d[0, 2] == pytest.approx(1.5)
    assert d[0, 1] + d[1, 2] == pytest.approx(1.0)


def test_ties_are_drawn_and_what_is_not_finite_comes_last() -> None:
    quality = np.array([np.nan, 0.2, 0.2, -np.inf, 0.2, np.inf])
    x = unit(6, 3)
    found = [max_sum(quality, x, 6, rng(seed), weight=0.1).tolist() for seed in range(30)]
    assert all(set(picks[3:]) == {0, 3, 5} for picks in found)
    assert {picks[0] for picks in found} == {1, 2, 4}
    same = np.repeat(unit(1, 3), 10, axis=0)
    firsts = [int(max_sum(np.full(10, 0.25), same, 1, rng(seed), weight=0.1)[0]) for seed in range(200)]
    assert len(set(firsts)) == 10  # each missed with odds .9^200 = 7e-10


def test_zero_vectors_are_at_distance_one_from_everything() -> None:
    x = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    assert dispersion(np.zeros(3), x, np.array([0, 1]), 1.0) == pytest.approx(1.0)
    assert max_sum(np.array([0.3, 0.2, 0.25]), x, 2, rng(), weight=0.5).tolist() == [0, 1]
    assert anchored(np.zeros(3), x, x[:1], 1.0).tolist() == [0.0, 1.0, 0.0]


def test_inputs_stay_as_they_were() -> None:
    quality, x, chosen = U.copy(), X.copy(), X[:2].copy()
    for array in (quality, x, chosen):
        array.flags.writeable = False
    max_sum(quality, x, 4, rng(), weight=0.1, chosen=chosen)
    assert max_sum(quality, x, 0, rng(), weight=0.1).tolist() == []
    assert max_sum(quality[:0], x[:0], 3, rng(), weight=0.1).tolist() == []
