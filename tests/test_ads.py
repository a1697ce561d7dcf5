"""ADS: clusters of embeddings, the sets that walk along difficulty, and the chances of clusters."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.beliefs import clusters as module
from edgewise.beliefs.clusters import clusters, easy_to_hard
from edgewise.errors import ConfigError, SignalError, StateMismatchError
from edgewise.methods.ads import Ads, moved_set
from edgewise.testing.drive import Size, selector_of, steps, stream
from edgewise.testing.world import World
from edgewise.types import DIFFICULTY, EMBEDDING, Setting
from tests.fakes import FakeStep, passing

AXES = np.eye(4)[np.arange(40) % 4] + 0.01 * np.random.default_rng(0).standard_normal((40, 4))
"""Four clear clusters of ten prompts; in each, difficulty rises with the row."""


def started(pool_size: int = 40, batch_size: int = 8, **parameters: Any) -> Ads:
    method = Ads(**{"clusters": 4, **parameters})
    method.start(Setting(pool_size=pool_size, batch_size=batch_size, group_size=4))
    return method


def step_of(number: int = 0, vectors: Any = AXES, difficulty: Any = None, **given: Any) -> FakeStep:
    hard = np.arange(len(vectors), dtype=np.float64) if difficulty is None else np.asarray(difficulty)
    signals = {EMBEDDING: lambda rows: np.asarray(vectors)[rows], DIFFICULTY: lambda rows: hard[rows]}
    return FakeStep(range(len(vectors)), signals=signals, number=number, policy_version=number, **given)


# -- clusters ----------------------------------------------------------------------------------------------------------


def test_clear_clusters_are_found_whatever_the_seed() -> None:
    for seed in range(20):
        found = clusters(AXES, 4, np.random.default_rng(seed))
        assert len(set(found.tolist())) == 4
        assert all(len(set(found[i::4].tolist())) == 1 for i in range(4)), seed


def test_length_does_not_matter_and_zeros_do_not_fail() -> None:
    scaled = AXES * np.random.default_rng(1).uniform(0.1, 10, size=(40, 1))
    assert clusters(scaled, 4, np.random.default_rng(3)).tolist() == clusters(AXES, 4, np.random.default_rng(3)).tolist()
    assert len(clusters(np.zeros((5, 3)), 4, np.random.default_rng(0))) == 5


def test_every_prompt_ends_nearest_the_mean_of_its_own_cluster() -> None:
    """Lloyd's fixed point, checked by plain distances."""
    units = np.random.default_rng(2).standard_normal((300, 5))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    found = clusters(units, 6, np.random.default_rng(0))
    means = np.array([units[found == c].mean(axis=0) for c in range(6)])
    distances = np.linalg.norm(units[:, None] - means, axis=2)
    assert (distances[np.arange(300), found] <= distances.min(axis=1) + 1e-12).all()


def test_large_pools_are_fitted_on_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIT_ROWS", 16)
    monkeypatch.setattr(module, "_BLOCK", 7)
    found = clusters(AXES, 4, np.random.default_rng(0))
    assert all(len(set(found[i::4].tolist())) == 1 for i in range(4))


def test_a_cluster_is_sorted_easy_to_hard_and_strays_are_apart() -> None:
    usable = np.array([True, True, True, False, True])
    parts = easy_to_hard(np.array([1, 0, 1, 0, 1]), np.array([5.0, 1.0, np.inf, 0.0, 2.0]), usable, 2)
    assert [part.tolist() for part in parts] == [[1], [4, 0, 2], [3]]


# -- sets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("places", "moves", "size", "after"),
    [
        ([0, 1, 2], [1, 1, 1], 6, [1, 2, 3]),  # all too easy: one place harder
        ([0, 1, 2], [-1, -1, -1], 6, [0, 1, 2]),  # all too hard, at the easy end: nowhere to go
        ([3, 4, 5], [-1, -1, -1], 6, [2, 3, 4]),
        ([3, 4, 5], [1, 1, 1], 6, [3, 4, 5]),  # the hard end
        ([0, 1, 2], [1, 0, 0], 6, [0, 1, 2]),  # 1 is taken, so is 2 beyond it: 0 is the nearest that is free
        ([0, 1, 3], [1, 0, 0], 6, [1, 2, 3]),  # 1 is taken; 0 and 2 are as near: the harder one
        ([2, 3], [1, -1], 6, [2, 3]),  # they change places
        ([0, 1], [1, 1], 2, [0, 1]),  # the whole cluster
    ],
)
def test_golden_moves_of_a_set(places: list[int], moves: list[int], size: int, after: list[int]) -> None:
    """Stayers hold; easier movers go first, from the easy end; harder ones from the hard end; else the nearest free place."""
    assert moved_set(np.array(places), np.array(moves), size).tolist() == after


@given(st.data())
def test_a_set_keeps_its_size_and_agrees_with_the_rule_one_place_at_a_time(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 12))
    places = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=size)))
    moves = data.draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=len(places), max_size=len(places)))
    got = moved_set(np.array(places), np.array(moves), size).tolist()
    taken = {p for p, m in zip(places, moves, strict=True) if m == 0}
    if len(places) == size:
        taken = set(places)
    else:
        movers = [(p, -1) for p, m in zip(places, moves, strict=True) if m < 0]
        movers += [(p, 1) for p, m in reversed(list(zip(places, moves, strict=True))) if m > 0]
        for place, move in movers:
            wanted = min(max(place + move, 0), size - 1)
            outward = [wanted] + [wanted + sign * move * r for r in range(1, size + 1) for sign in (1, -1)]
            taken.add(next(p for p in outward if 0 <= p < size and p not in taken))
    assert got == sorted(taken)
    assert len(got) == len(places)


# -- the schedule ------------------------------------------------------------------------------------------------------


def test_a_batch_is_the_easiest_prompts_of_the_active_clusters() -> None:
    """B = 8 over 4 clusters: sets of 2. Clusters are rows 0, 4, 8 … ; the easiest two of cluster c are rows c and c + 4."""
    step = step_of()
    assert sorted(started().propose(8, step).rows.tolist()) == list(range(8))
    two = started(active=2).propose(8, step_of())
    assert Counter((two.rows % 4).tolist()) in [Counter({a: 4, b: 4}) for a in range(4) for b in range(a)]
    assert two.rows.max() < 16
    assert [name for name, _ in step.asked] == [EMBEDDING, DIFFICULTY]


def test_golden_chances_and_sets_after_a_batch() -> None:
    """Cluster of row 0: both pass (harder, r = 1); row 1: half (stay, r = 1/2); row 2: one fails, one half; row 3: unseen."""
    method = started()
    method.propose(8, step_of())
    method.observe(passing([0, 4, 1, 5, 2, 6], [4, 4, 2, 2, 0, 2]), step_of())
    step = step_of(1)
    method.propose(8, step)
    shared = method.state().shared
    at = {row: int(method._cluster[row]) for row in range(4)}
    r = np.array([1.0, 0.5, 0.25, 0.5])
    expected = 0.7 * 0.25 + 0.3 * r / r.sum()
    assert [shared["chances"][at[row]] for row in range(4)] == pytest.approx(expected.tolist())
    assert [shared["rates"][at[row]] for row in range(4)] == pytest.approx(r.tolist())
    assert [shared["sets"][at[row]].tolist() for row in range(4)] == [[1, 2], [0, 1], [0, 1], [0, 1]]
    assert (step.levels["too_easy"], step.levels["too_hard"], step.levels["in_band"]) == (2, 1, 3)


def test_the_schedule_starts_anew_after_a_pass_over_the_pool() -> None:
    """40 prompts in batches of 8: the fifth batch ends a pass."""

    def sets_after(batches: int, **parameters: Any) -> list[int]:
        method = started(**parameters)
        for number in range(batches + 1):
            rows = method.propose(8, step_of(number)).rows
            if number < batches:
                method.observe(passing(rows.tolist(), [4] * len(rows)), step_of(number))
        return [int(places[0]) for places in method.state().shared["sets"]]

    assert sets_after(4) == [4] * 4
    assert sets_after(5) == [0] * 4
    assert sets_after(5, restart_after=0) == [5] * 4


def test_where_nothing_passes_clusters_are_alike() -> None:
    method = started()
    method.propose(8, step_of())
    method.observe(passing(list(range(8)), [0] * 8), step_of())
    method.propose(8, step_of(1))
    assert method.state().shared["chances"].tolist() == pytest.approx([0.25] * 4)


def test_a_batch_is_filled_from_outside_the_sets_where_these_are_in_flight() -> None:
    step = step_of(shut=range(8))
    rows = started().propose(8, step).rows.tolist()
    assert len(set(rows)) == 8
    assert min(rows) >= 8
    assert step.sums["outside_sets"] == 8


def test_bad_vectors_and_difficulties_are_reported_and_set_apart() -> None:
    vectors, hard = AXES.copy(), np.arange(40, dtype=np.float64)
    vectors[3, 0], hard[0] = np.nan, np.nan
    step = step_of(vectors=vectors, difficulty=hard)
    method = started()
    method.propose(8, step)
    assert ["embedding" in str(p) for p in step.problems] == [True, False]
    assert sorted(method.state().shared["sizes"].tolist()) == [1, 9, 10, 10, 10]
    assert method._place[0] == 9  # without a difficulty: the hardest of its ten
    with pytest.raises(SignalError):
        started().propose(8, step_of(vectors=vectors, strict=True))


def test_fewer_different_vectors_than_clusters_still_make_batches() -> None:
    method = started(pool_size=10, clusters=64)
    assert len(method.propose(8, step_of(vectors=np.ones((10, 3))))) == 8


def test_other_vectors_after_a_resume_start_the_schedule_anew_and_say_so() -> None:
    method = started()
    method.propose(8, step_of())
    other = started()
    other.restore(method.state())
    step = step_of(vectors=np.eye(2)[(np.arange(40) > 10).astype(int)])
    assert len(other.propose(8, step)) == 8
    assert "The schedule starts anew" in str(step.problems[0])


def test_a_state_with_arrays_of_unlike_lengths_is_refused() -> None:
    method = started()
    method.propose(8, step_of())
    state = method.state()
    state.shared["rates"] = state.shared["rates"][:2]
    with pytest.raises(StateMismatchError, match="differ in length"):
        started().restore(state)


@pytest.mark.parametrize("run", [steps, stream])
def test_a_selector_runs_it_over_missing_rewards_and_goes_on_alike_after_a_restore(run: Any, tmp_path: Any) -> None:
    world = World(60, missing=0.2)
    size = Size(batch_size=6, group_size=2)
    one, other = (selector_of(Ads(clusters=5), world, size) for _ in range(2))
    run(one, world, 8)
    one.save(tmp_path / "state")
    other.restore(tmp_path / "state")
    assert run(one, world, 8) == run(other, world, 8)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"clusters": 0}, r"Ads\(clusters=...\) must be a whole number of at least 1"),
        ({"band": 0.6}, r"Ads\(band=...\) must be a number of at least 0 and at most 0.5"),
        ({"smoothing": 2}, r"Ads\(smoothing=...\) must be a number of at least 0 and at most 1"),
        ({"restart_after": -1}, r"Ads\(restart_after=...\) must be a whole number of at least 0"),
    ],
)
def test_what_cannot_work_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Ads(**parameters)
