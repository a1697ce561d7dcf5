"""The HIVE engine: the whole-step example worked out by hand, the top-up table, the switches, and what always holds."""

from __future__ import annotations

import re
import string
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.errors import ConfigError, DegradedWarning, ShortfallError, SignalError, StateMismatchError
from edgewise.kinds import EASY, HARD, MIXED
from edgewise.method import Method
from edgewise.methods import make
from edgewise.methods.dynamic import top_up_target
from edgewise.methods.hive import Hive
from edgewise.methods.presets import Dapo, Greso, HiveEq, Uniform
from edgewise.types import PROMPT_ENTROPY, ROLLOUT_ENTROPY, Ints, MethodState, Setting
from tests.fakes import FakeStep, groups_of, passing, run_step

ROW = {letter: row for row, letter in enumerate(string.ascii_lowercase)}


def rows(letters: str) -> list[int]:
    return [ROW[letter] for letter in letters.replace(" ", "")]


def letters(chosen: Any) -> str:
    return " ".join(string.ascii_lowercase[row] for row in chosen)


def started(method: Method, pool_size: int = 26, batch_size: int = 4, group_size: int = 4) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)
        method.start(Setting(pool_size=pool_size, batch_size=batch_size, group_size=group_size))
    return method


def copied(state: MethodState) -> MethodState:
    return MethodState({k: v.copy() for k, v in state.prompts.items()}, {k: v.copy() for k, v in state.shared.items()})


# -- the whole step of the specification -------------------------------------------------------------------------------

HISTORY = {"b": [EASY], "k": [EASY], "c": [EASY] * 2, "e": [HARD], "g": [HARD] * 7, "n": [HARD] * 3}
UNIFORMS = {"b": 0.40, "c": 0.30, "e": 0.60, "g": 0.009, "k": 0.50, "n": 0.12}
V0 = dict(zip("abdfghijlmno", (3.0, 1.0, 2.5, 4.0, 2.0, 1.5, 5.0, 2.2, 3.5, 0.5, 1.8, 2.8), strict=True))
V1 = dict(zip("pqrstuvwxyz", (4.5, 2.1, 0.9, 1.1, 1.2, 1.3, 1.4, 1.6, 1.7, 1.9, 2.3), strict=True))
ENTROPY = {ROW[letter]: value for letter, value in {**V0, **V1}.items()}


def with_history(method: Hive) -> Hive:
    """The history alone: tallies of the step in which it was seen are not part of the example."""
    for letter, kinds in HISTORY.items():
        for kind in kinds:
            method._belief.observe(np.array([ROW[letter]]), np.array([kind], dtype=np.int8), np.array([np.nan]), np.array([0]))
    return method


def whole_step(version: int = 1) -> FakeStep:
    return FakeStep(
        range(26),
        signals={PROMPT_ENTROPY: lambda asked: [ENTROPY[row] for row in asked]},
        uniforms=[UNIFORMS.get(letter, 0.999) for letter in string.ascii_lowercase],
        policy_version=version,
    )


CORRECT = {ROW["a"]: 2, ROW["o"]: 1, ROW["d"]: 0, ROW["j"]: 4, ROW["g"]: 0, ROW["n"]: 0}


@pytest.mark.parametrize(("arm_at", "p"), [(0.5, 0.50), (0.0, 0.49)])
def test_whole_step_golden(arm_at: float, p: float) -> None:
    method = with_history(started(Hive(shuffle=False, min_round=1, arm_at=arm_at)))
    step = whole_step()
    trace = run_step(method, step, 4, lambda row: CORRECT.get(row, 2))

    assert [letters(r) for r in trace.rounds] == ["a o d j g n", "q y x w v"]
    assert letters(trace.kept[:4]) == "a o q y"
    assert letters(trace.kept[4:]) == "x w v"
    assert step.draws == [12, 3, 12]  # exactly what was missing of N1, so no prompt is consumed unseen
    assert [letters(asked) for _, asked in step.asked] == ["a b d f g h i j l m n o", "p q r s t u v w x y z"]

    belief = method._belief
    after = {letter: (int(belief.streak[ROW[letter]]), int(belief.kind[ROW[letter]])) for letter in "gndjbaq"}
    assert after == {
        "g": (8, HARD), "n": (4, HARD), "d": (1, HARD), "j": (1, EASY), "b": (1, EASY), "a": (0, MIXED), "q": (0, MIXED),
    }  # fmt: skip
    assert belief.visits[rows("bgaci")].tolist() == [1, 8, 1, 2, 0]  # accepted or offered is not visited
    assert belief.version[rows("bga")].tolist() == [0, 1, 1]

    assert dict(step.sums) == {
        "target": 6 + 6, "s1_accepted": 12 + 11, "s1_skipped_easy": 2, "s1_skipped_hard": 1,
        "v_scored": 12 + 11, "v_upper": 3 + 2, "v_kept": 6 + 5, "v_low": 3 + 4, "band_relaxed": 1,
        "dropped_easy": 1, "dropped_hard": 3, "dropped_other": 0, "extraction_only": 0,
    }  # fmt: skip
    assert step.levels["seen_share"] == 6 / 26
    assert step.levels["rho_easy"] == 1 / 11
    assert step.levels["rho_hard"] == 3 / 11
    assert step.levels["never_rolled_out"] == 26 - 15
    assert step.levels["p_easy"] == 0.5
    assert step.levels["v_median"] == 1.6  # of the last round: the sixth of .9 1.1 1.2 1.3 1.4 1.6 1.7 1.9 2.1 2.3 4.5
    later = whole_step(version=2)
    method.propose(4, later)
    assert (later.levels["p_easy"], later.levels["p_hard"]) == (p, p)


# -- top-up ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "mixed", "share", "most", "least", "target"),
    [
        (256, 200, 0.15, 384, 64, 83),
        (256, 0, 1.0, 384, 64, 384),
        (256, 250, 0.15, 384, 64, 64),
        (256, 100, 0.5, 384, 64, 384),
        (128, 90, 0.5, 192, 64, 95),
        (32, 20, 0.5, 48, 8, 30),
        (32, 31, 0.25, 48, 8, 8),
        (256, 200, 185 / 386, 384, 64, 135),
    ],
)
def test_top_up_golden(batch: int, mixed: int, share: float, most: int, least: int, target: int) -> None:
    assert top_up_target(batch - mixed, share, most=most, least=least) == target


@pytest.mark.parametrize(("batch", "least"), [(256, 64), (128, 64), (127, 32), (32, 8), (4, 1), (2, 1), (1, 1)])
def test_the_smallest_top_up_scales_with_the_batch(batch: int, least: int) -> None:
    """64 at C = 384 and 192 as in the paper, 8 at C = 48; never above C."""
    assert started(Greso(), pool_size=1000, batch_size=batch)._least == least


def second_target(method: Hive, dropped: int, rolled: int = 384) -> int:
    """The target of round 1 after a first round with that many zero-variance groups."""
    method = started(method, pool_size=5000, batch_size=256)
    step = FakeStep(range(5000), uniforms=[0.5] * 5000)
    method.propose(256, step)
    method.observe(passing(range(rolled), [0] * dropped + [2] * (rolled - dropped)), step)
    step.round = 1
    before = step.sums["target"]
    method.propose(256 - (rolled - dropped), step)
    return int(step.sums["target"] - before)


def test_top_up_by_the_smoothed_share_of_the_step() -> None:
    assert second_target(Greso(topup="smoothed"), 184) == 135


def test_top_up_by_the_share_of_the_last_round() -> None:
    """56 missing at 184/384: 70 / (200/384) = 134.4."""
    assert second_target(Greso(), 184) == 135
    assert second_target(Greso(), 384) == 384
    assert second_target(Greso(), 191) == 157  # 63 missing: 78.75 / (193/384) = 30240 / 193 = 156.7


def test_last_round_forgets_the_rounds_before_it() -> None:
    for topup, target in (("last_round", 9), ("smoothed", 15)):
        method = started(Greso(topup=topup, min_round=1), pool_size=100, batch_size=10)
        step = FakeStep(range(100), uniforms=[0.5] * 200)
        method.propose(10, step)
        method.observe(passing(range(15), [0] * 11 + [2] * 4), step)
        step.round = 1
        method.propose(6, step)
        method.observe(passing(range(15, 17), [2, 2]), step)
        step.round = 2
        before = step.sums["target"]
        method.propose(7, step)  # 8.75 / 1 -> 9;  ρ̂ = 12/19: 8.75 / (7/19) = 23.75 -> C = 15
        assert step.sums["target"] - before == target


def test_a_last_round_without_one_usable_group_falls_back_to_the_step() -> None:
    method = started(Greso(min_round=1), pool_size=100, batch_size=10)
    step = FakeStep(range(100), uniforms=[0.5] * 200)
    method.propose(10, step)
    method.observe(groups_of([0], [[1.0, None, None, None]]), step)
    step.round = 1
    assert len(method.propose(4, step)) == 10  # ρ̂ = (0 + 1) / (0 + 2): 5 / 0.5


# -- presets -----------------------------------------------------------------------------------------------------------


def test_presets_are_the_table_of_the_specification() -> None:
    switches = (
        "stage1", "p_floor", "target_easy", "target_hard", "reward_weight", "stage2", "keep_share", "trim_share", "oversample",
        "gate", "topup", "max_rounds", "on_short", "arm_at", "shuffle",
    )  # fmt: skip
    table: dict[str, tuple[Any, ...]] = {
        "hive": (True, 0.01, 1 / 12, 1 / 6, 1.0, "band", 0.5, 0.25, 1.5, "reward", "smoothed", 8, "train_short", 0.5, True),
        "hive-eq": (True, 0.0, 0.25, 0.25, 1.0, "median", 0.5, 0.25, 2.0, "off", "missing", 1, "train_short", 0.0, True),
        "greso": (True, 0.01, 1 / 12, 1 / 6, 1.0, "off", 0.5, 0.25, 1.5, "reward", "last_round", 8, "train_short", 0.5, False),
        "dapo": (False, 0.01, 1 / 12, 1 / 6, 1.0, "off", 0.5, 0.25, 1.0, "correct", "fixed", 10, "train_short", 0.5, False),
        "uniform": (False, 0.01, 1 / 12, 1 / 6, 1.0, "off", 0.5, 0.25, 1.0, "off", "missing", 1, "train_short", 0.5, False),
    }
    for name, values in table.items():
        parameters = make(name).parameters()
        assert tuple(parameters[switch] for switch in switches) == values, name
        assert make(name).name == name


def test_paper_values_that_every_preset_shares() -> None:
    shared = {
        "p_easy": 0.5,
        "p_hard": 0.5,
        "p_step": 0.01,
        "p_min": 0.05,
        "p_max": 0.95,
        "topup_factor": 1.25,
        "raw_batch": 32,
        "tolerance": 0.0,
    }
    for name in ("hive", "hive-eq", "greso", "dapo", "uniform"):
        parameters = make(name).parameters()
        assert {key: parameters[key] for key in shared} == shared


def test_needs_follow_the_switches() -> None:
    assert Hive().needs == {PROMPT_ENTROPY}
    assert Hive(reward_weight=0.9).needs == {PROMPT_ENTROPY, ROLLOUT_ENTROPY}
    assert Greso().needs == Dapo().needs == Uniform().needs == frozenset()
    assert Hive(stage1=False, reward_weight=0.9).needs == {PROMPT_ENTROPY}


def entropy_is_row(asked: Ints) -> Ints:
    return asked


def test_round_zero_sizes() -> None:
    """C = 1.5·B after stage 2, after stage 1, 2·B before the median, B, B."""
    sizes = {}
    for name in ("hive", "hive-eq", "greso", "dapo", "uniform"):
        method = started(make(name), pool_size=200, batch_size=10)
        step = FakeStep(range(200), signals={PROMPT_ENTROPY: entropy_is_row})
        sizes[name] = (len(method.propose(10, step)), len(step.offered))
    assert sizes == {"hive": (15, 30), "hive-eq": (10, 20), "greso": (15, 15), "dapo": (10, 10), "uniform": (10, 10)}


def test_hive_eq_trains_the_highest_half_and_asks_once() -> None:
    method = started(HiveEq(), batch_size=3)
    step = FakeStep(range(26), signals={PROMPT_ENTROPY: entropy_is_row})
    trace = run_step(method, step, 3, lambda row: 0 if row == 5 else 2)
    assert sorted(trace.rounds[0]) == [3, 4, 5]
    assert len(trace.rounds) == 1
    assert len(trace.kept) == 3  # no gate: the hard group is trained on
    short = FakeStep(range(26), signals={PROMPT_ENTROPY: entropy_is_row})
    short.round = 1
    assert len(method.propose(1, short)) == 0


def test_dapo_rolls_out_whole_batches_in_stream_order() -> None:
    trace = run_step(started(Dapo()), FakeStep(range(26)), 4, lambda row: 2 if row % 3 == 0 else 4)
    assert trace.rounds == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert trace.kept == [0, 3, 6, 9]


def test_uniform_requests_exactly_what_is_missing_once_and_keeps_everything() -> None:
    method = started(Uniform())
    trace = run_step(method, FakeStep(range(26)), 4, lambda row: 4)
    assert trace.rounds == [[0, 1, 2, 3]]
    assert trace.kept == [0, 1, 2, 3]
    more = started(Uniform(max_rounds=2))
    step = FakeStep(range(26))
    more.propose(4, step)
    step.round = 1
    assert more.propose(1, step).rows.tolist() == [4]


def test_greso_is_hive_without_stage_two() -> None:
    """Same prompts, same metrics, step after step, with C counted after stage 1."""

    def life(method: Hive) -> list[Any]:
        started(method, pool_size=60, batch_size=6)
        out = []
        for number in range(12):
            order = np.random.default_rng(number).permutation(60).tolist()
            step = FakeStep(order, number=number, policy_version=number)
            trace = run_step(method, step, 6, lambda row: (4, 0, 2)[row % 3])
            out.append((trace.rounds, trace.kept, dict(step.sums), step.levels))
        return out

    assert life(Greso()) == life(Hive(stage2="off", topup="last_round", shuffle=False))
    assert life(Greso(topup="smoothed")) == life(Hive(stage2="off", shuffle=False))


# -- stage 1 -----------------------------------------------------------------------------------------------------------


def test_a_dry_stream_takes_back_the_likeliest_of_the_skipped() -> None:
    """b and k have P = .5, c .25, n .125, g .01: three are missing, so after no survivor the N1 likeliest in stream order."""
    method = with_history(started(Greso(), batch_size=2))
    step = FakeStep(rows("gncbk"), uniforms=[0.9] * 5)
    assert letters(method.propose(2, step).rows) == "b k c"
    assert step.sums["relaxed"] == 3
    step.round = 1
    assert letters(method.propose(2, step).rows) == "n g"  # what is left of the step's skipped, from round 0
    assert step.sums["relaxed"] == 5
    step.round = 2
    assert len(method.propose(2, step)) == 0


def test_enough_survivors_of_a_dry_stream_are_not_relaxed() -> None:
    method = with_history(started(Greso(), batch_size=2))
    step = FakeStep(rows("bxyk"), uniforms=[0.9] * 4)
    assert letters(method.propose(2, step).rows) == "x y"
    assert "relaxed" not in step.sums


def test_a_round_looks_at_64_prompts_per_group_it_wants() -> None:
    """So a step costs what the batch costs, also when nearly the whole pool is skipped."""
    method = started(Greso(), pool_size=10_000, batch_size=2)
    everything = np.arange(10_000)
    method._belief.observe(
        everything, np.full(10_000, EASY, dtype=np.int8), np.full(10_000, np.nan), np.zeros(10_000, dtype=np.int64)
    )
    step = FakeStep(range(10_000), uniforms=[0.9] * 10_000)
    requests = method.propose(2, step)
    assert len(step.offered) == 64 * 3
    assert requests.rows.tolist() == [0, 1, 2]


def test_no_history_means_no_skipping() -> None:
    step = FakeStep(range(26), uniforms=[0.999999] * 26)
    assert started(Greso()).propose(4, step).rows.tolist() == [0, 1, 2, 3, 4, 5]


def test_response_entropy_enters_below_weight_one_and_gaps_are_counted() -> None:
    """H = .4, .6, 1.0 on rows 0, 1, 2 (mixed, so s_rew = 1); row 3 seen without H. λ = 0: P = ε, 1/3, 1, 1."""
    method = started(Greso(reward_weight=0.0), batch_size=1)
    for row, entropy in ((0, 0.4), (1, 0.6), (2, 1.0), (3, np.nan)):
        method._belief.observe(np.array([row]), np.array([MIXED], dtype=np.int8), np.array([entropy]), np.array([0]))
    step = FakeStep([0, 1, 2, 3], uniforms=[0.02, 0.34, 0.9, 0.9])
    assert method.propose(1, step).rows.tolist() == [2, 3]
    assert step.sums["entropy_missing"] == 1
    assert step.sums["s1_skipped_open"] == 2


# -- stage 2 -----------------------------------------------------------------------------------------------------------


def test_a_prompt_without_an_entropy_is_never_ranked_and_kept_as_often_as_the_others() -> None:
    """C = 6, N1 = 12: 3 and 7 have none. Of the other ten the highest two are trimmed.

    Each of 3 and 7 is kept with chance 1/2: out of 400 about 200, s.d. 10; outside of 150 to 250 once in 10^6.
    """

    def gappy(asked: Ints) -> Any:
        return np.where(asked == 3, np.nan, np.where(asked == 7, np.inf, asked))

    kept = 0
    band = {0: [9, 8, 6, 5, 4], 1: [9, 8, 6, 5, 4], 2: [9, 8, 6, 5]}  # half of the ten ranked, or what is left of C
    for number in range(200):
        method = started(Hive(shuffle=False), batch_size=4)
        step = FakeStep(range(26), signals={PROMPT_ENTROPY: gappy}, number=number)
        chosen = method.propose(4, step).rows.tolist()
        free = [row for row in (3, 7) if row in chosen]
        assert chosen == band[len(free)] + free
        kept += len(free)
        assert step.sums["v_missing"] == 2
        assert step.sums["v_scored"] == 10
        (problem,) = step.problems
        assert isinstance(problem, SignalError)
        assert str(problem) == (
            "signal('prompt_entropy') of prompt row 3 must be finite, got nan (2 of 12 prompts). Each is kept with the chance "
            "of stage 2, unranked; a prompt needs at least two tokens."
        )
    assert 150 < kept < 250


def test_a_prompt_without_an_entropy_raises_in_strict_mode() -> None:
    step = FakeStep(range(26), signals={PROMPT_ENTROPY: lambda asked: np.full(len(asked), np.nan)}, strict=True)
    with pytest.raises(SignalError, match="of prompt row 0 must be finite"):
        started(Hive()).propose(4, step)


def test_a_host_that_serves_no_entropy_at_all_still_fills_the_round() -> None:
    step = FakeStep(range(26), signals={PROMPT_ENTROPY: lambda asked: np.full(len(asked), np.nan)})
    assert started(Hive(shuffle=False)).propose(4, step).rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert all("v_q" not in name and "v_median" not in name for name in step.levels)


def test_requests_are_shuffled_so_that_the_surplus_is_not_the_lowest_entropy() -> None:
    """Over 200 steps the first request is the band's highest entropy about 200/6 = 33 times; 90 is 10 sigma away."""
    first = 0
    for number in range(200):
        step = FakeStep(range(26), signals={PROMPT_ENTROPY: entropy_is_row}, number=number)
        chosen = started(Hive()).propose(4, step).rows.tolist()
        assert sorted(chosen) == [3, 4, 5, 6, 7, 8]
        first += chosen[0] == 8
    assert 0 < first < 90


def test_requests_are_rounded_up_with_the_next_ranked() -> None:
    step = FakeStep(range(26), signals={PROMPT_ENTROPY: entropy_is_row})
    chosen = started(Hive(shuffle=False, round_to=8)).propose(4, step).rows.tolist()
    assert chosen == [8, 7, 6, 5, 4, 3, 2, 1]
    assert started(Greso(round_to=4)).propose(4, FakeStep(range(26))).rows.tolist() == list(range(8))


def test_raw_batches_cut_the_band_in_each_batch() -> None:
    """C = 4 from batches of 4, each keeping 2 below a trim of 1; V falls with the row."""
    method = started(Hive(gate_pool="raw_batch", raw_batch=4, oversample=1.0, shuffle=False))
    step = FakeStep(range(26), signals={PROMPT_ENTROPY: lambda asked: 100 - asked})
    assert method.propose(4, step).rows.tolist() == [1, 2, 5, 6]
    assert step.draws == [4, 4]
    assert len(step.asked) == 1  # still one batch of signals
    assert (step.sums["v_upper"], step.sums["v_kept"], step.sums["v_low"]) == (2, 4, 2)


def test_raw_batches_that_starve_fall_back_to_one_pool() -> None:
    """Raw batches of one keep floor(1/2) = 0 for ever; the pool rule keeps the batch going."""
    method = started(Hive(gate_pool="raw_batch", raw_batch=1, shuffle=False))
    step = FakeStep(range(26), signals={PROMPT_ENTROPY: entropy_is_row})
    assert len(method.propose(4, step)) == 6


def test_bypassing_prompts_are_requested_unranked_and_their_outcome_is_logged() -> None:
    method = started(Hive(bypass=1.0, shuffle=False))
    step = FakeStep(range(26), signals={})
    assert method.propose(4, step).rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert step.sums["bypassed"] == 12
    assert step.asked == []
    method.observe(passing([0, 1, 2], [4, 0, 2]), step)
    assert (step.sums["bypassed_easy"], step.sums["bypassed_hard"], step.sums["bypassed_open"]) == (1, 1, 1)
    half = FakeStep(range(26), signals={PROMPT_ENTROPY: entropy_is_row})
    assert len(started(Hive(bypass=0.3)).propose(4, half)) == 6


def test_entropy_levels_are_reported_by_what_the_prompt_was_last_time() -> None:
    method = with_history(started(Hive()))
    step = whole_step()
    method.propose(4, step)
    # open: a d f h i j l m o = 3 2.5 4 1.5 5 2.2 3.5 .5 2.8 -> 2.8; easy: b = 1; hard: g n = 2 1.8
    assert step.levels["v_median_open"] == 2.8
    assert step.levels["v_median_easy"] == 1.0
    assert step.levels["v_median_hard"] == pytest.approx(1.9)


def test_streaming_asks_for_exactly_n_without_a_top_up() -> None:
    method = started(Hive())
    step = FakeStep(range(26), signals={PROMPT_ENTROPY: entropy_is_row}, streaming=True)
    assert len(method.propose(4, step)) == 4
    assert len(step.offered) == 8
    assert len(started(HiveEq()).propose(3, FakeStep(range(26), signals={PROMPT_ENTROPY: entropy_is_row}, streaming=True))) == 3
    assert len(started(Dapo(on_short="error")).propose(3, FakeStep([], streaming=True))) == 0


def test_streaming_never_asks_for_more_than_n() -> None:
    for method in (Greso(round_to=8), Hive(round_to=8), Hive(gate_pool="raw_batch", raw_batch=13)):
        step = FakeStep(range(26), signals={PROMPT_ENTROPY: entropy_is_row}, streaming=True)
        assert len(started(method).propose(3, step)) == 3


def test_streaming_still_reports_what_became_of_a_bypassing_prompt_after_later_takes() -> None:
    method = started(Hive(bypass=1.0, shuffle=False))
    for number, stream in enumerate((range(10), range(10, 20))):
        step = FakeStep(stream, streaming=True, number=number)
        method.propose(2, step)
    for expected in (1, 1):  # reported once, whatever comes later
        method.observe(passing([1], [4]), step)
        assert step.sums["bypassed_easy"] == expected


# -- the gate, and rounds that end -------------------------------------------------------------------------------------


def test_incomplete_groups_are_dropped_and_teach_nothing() -> None:
    method = started(Greso())
    step = FakeStep(range(26))
    groups = groups_of([0, 1, 2], [[1.0, None, None, None], [1.0, 0.0, None, None], [1.0, 1.0, None, None]])
    verdicts = method.judge(groups, step)
    assert verdicts.reasons == ("incomplete", "", "zero_variance")
    method.observe(groups, step)
    assert method._belief.visits[:3].tolist() == [0, 1, 1]
    assert method._belief.streak[:3].tolist() == [0, 0, 1]
    assert method.state().shared["rounds"].tolist() == [2, 1, 2, 1]


def test_a_group_that_varies_without_a_correct_answer_is_trained_counted_and_hard() -> None:
    method = started(Greso())
    step = FakeStep(range(26))
    groups = groups_of([0], [[0, 0.1, 0.1, 0]], correct=[[0, 0, 0, 0]])
    assert method.judge(groups, step).keep.tolist() == [True]
    assert step.sums["extraction_only"] == 1
    method.observe(groups, step)
    assert (int(method._belief.kind[0]), int(method._belief.streak[0])) == (HARD, 1)


def test_without_a_gate_a_failed_group_is_no_extraction_group() -> None:
    """Rewards 0 throughout are plainly failed; only 0 against 0.1 without a correct answer fakes a signal."""
    step = FakeStep([])
    assert started(Uniform()).judge(groups_of([0, 1], [[0, 0], [0, 0.1]], correct=[[0, 0], [0, 0]]), step).keep.all()
    assert step.sums["extraction_only"] == 1


def test_the_correct_gate_uses_the_reward_where_the_verdict_is_unknown() -> None:
    groups = groups_of([0, 1], [[0, 1, 0, 1], [1, 1, 1, 1]], correct=[[0, 0, 0, np.nan], [np.nan] * 4])
    assert started(Dapo()).judge(groups, FakeStep([])).keep.tolist() == [True, False]


def test_the_gate_can_be_a_plain_yes_or_no() -> None:
    assert Hive(gate=False).parameters()["gate"] == "off"
    assert Hive(gate=True).parameters()["gate"] == "reward"


@pytest.mark.parametrize("name", ["hive", "greso", "dapo", "uniform", "hive-eq"])
@pytest.mark.parametrize("passes", [0, 4])
def test_an_all_solved_or_all_failed_pool_ends(name: str, passes: int) -> None:
    method = started(make(name), pool_size=30)
    relaxed = 0.0
    for number in range(40):
        step = FakeStep(
            np.random.default_rng(number).permutation(30),
            signals={PROMPT_ENTROPY: entropy_is_row},
            number=number,
            policy_version=number,
        )
        trace = run_step(method, step, 4, lambda row: passes)
        assert 1 <= len(trace.rounds) <= 10
        if name == "hive-eq":  # five survivors of a dry pool, three of them from the median up: the paper has no remedy
            assert 2 <= len(trace.kept) <= 4
        else:
            assert len(trace.kept) == (4 if name == "uniform" else 0)
        relaxed += step.sums.get("relaxed", 0)
    assert relaxed > 0 or name in ("dapo", "uniform")


def test_rounds_are_bounded_and_short_is_a_choice() -> None:
    def rounds(**parameters: Any) -> int:
        step = FakeStep(range(1000), uniforms=[0.5] * 1000)
        return len(run_step(started(Greso(min_round=1, **parameters), pool_size=1000), step, 4, lambda row: 4).rounds)

    assert rounds() == 8
    assert rounds(max_rounds=3) == 3
    assert rounds(max_rounds=3, on_short="loop") > 100  # until all 1000 were offered
    with pytest.raises(
        ShortfallError, match=r"Greso\(on_short='error'\): 4 groups are missing and 3 rounds are used up; 18 groups"
    ):
        rounds(max_rounds=3, on_short="error")


def test_short_is_an_error_also_when_the_pool_is_used_up() -> None:
    with pytest.raises(ShortfallError, match="no prompt is left to ask for"):
        run_step(started(Dapo(on_short="error"), pool_size=8), FakeStep(range(8)), 4, lambda row: 4)


# -- state -------------------------------------------------------------------------------------------------------------


def life(build: Callable[[], Hive], between: Callable[[Method], Method], number_of_steps: int = 10) -> list[Any]:
    method: Method = started(build(), pool_size=40, batch_size=5)
    out: list[Any] = []
    held = [method]

    def swapping(_: Method) -> Method:
        held[0] = between(held[0])
        return held[0]

    for number in range(number_of_steps):
        order = np.random.default_rng(number).permutation(40).tolist()
        step = FakeStep(
            order, signals={PROMPT_ENTROPY: lambda asked: (asked * 7) % 11}, number=number, policy_version=number // 2
        )
        trace = run_step(held[0], step, 5, lambda row, number=number: (4, 0, 2, 1, 4)[(row * 3 + number) % 5], between=swapping)
        out.append((trace.rounds, trace.kept, dict(step.sums), dict(step.levels)))
    return out


@pytest.mark.parametrize(
    "build", [Hive, Greso, Dapo, Uniform, HiveEq, lambda: Hive(bypass=0.3, gate_pool="raw_batch", raw_batch=8)]
)
def test_saving_and_restoring_between_any_two_rounds_changes_nothing(build: Callable[[], Hive]) -> None:
    def reborn(old: Method) -> Method:
        new = started(build(), pool_size=40, batch_size=5)
        new.restore(copied(old.state()))
        return new

    assert life(build, lambda method: method) == life(build, reborn)


def test_restore_adopts_its_own_live_arrays() -> None:
    """The selector rolls back by handing them in again."""
    method = with_history(started(Hive()))
    before = copied(method.state())
    method.restore(method.state())
    np.testing.assert_equal(method.state().prompts, before.prompts)
    np.testing.assert_equal(method.state().shared, before.shared)


def test_a_state_that_lacks_something_is_refused_and_nothing_changes() -> None:
    method = with_history(started(Hive()))
    before = copied(method.state())
    whole = copied(started(Hive()).state())
    for name in whole.shared:
        partial = MethodState(whole.prompts, {k: v for k, v in whole.shared.items() if k != name})
        with pytest.raises(StateMismatchError, match=f"Hive.restore: the state lacks the array '{name}'"):
            method.restore(partial)
        np.testing.assert_equal(method.state().prompts, before.prompts)


def test_propose_and_judge_leave_what_is_kept_per_prompt_alone() -> None:
    method = with_history(started(Hive()))
    before = copied(method.state())
    step = whole_step()
    requests = method.propose(4, step)
    method.judge(passing(requests.rows.tolist(), [2] * len(requests)), step)
    np.testing.assert_equal(method.state().prompts, before.prompts)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**20),
    st.integers(4, 40),
    st.sampled_from(["hive", "hive-eq", "greso", "dapo", "uniform"]),
    st.lists(st.integers(0, 4), min_size=40, max_size=40),
    st.integers(1, 4),
)
def test_every_group_is_observed_once_and_no_prompt_comes_twice_in_a_step(
    seed: int, size: int, name: str, passes: list[int], batch: int
) -> None:
    """`run_step` itself refuses a second request; here the visits are checked against it, over three steps."""
    method = started(make(name), pool_size=size, batch_size=batch)
    observed: list[int] = []
    for number in range(3):
        order = np.random.default_rng([seed, number]).permutation(size)
        step = FakeStep(
            order.tolist(), signals={PROMPT_ENTROPY: lambda asked: asked % 5}, seed=seed, number=number, policy_version=number
        )
        trace = run_step(method, step, batch, lambda row: passes[row])
        assert len(trace.rounds) <= 10
        assert set(trace.observed) <= set(step.offered)
        observed += trace.observed
    np.testing.assert_array_equal(method.state().prompts["visits"], np.bincount(observed, minlength=size))


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "setting", "message"),
    [
        (
            Hive(),
            (3, 4, 8),
            "Hive: the pool must hold at least one batch, got 3 prompts for batch_size 4. Add prompts or lower batch_size.",
        ),
        (Greso(), (9, 4, 1), "Greso: group_size must be at least 2, got 1. A group of one has no variance; 8 is common."),
        (
            Hive(min_round=64),
            (100, 32, 8),
            "Hive(min_round=...) must be at most C = oversample · batch_size = 48, got 64. "
            "Leave it None to scale it with the batch.",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(method: Method, setting: tuple[int, int, int], message: str) -> None:
    size, batch, group = setting
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        method.start(Setting(pool_size=size, batch_size=batch, group_size=group))


def test_a_pool_too_small_for_stage_two_is_a_warning() -> None:
    with pytest.warns(
        DegradedWarning,
        match="Hive: the pool holds 11 prompts and round 0 wants 12 candidates for batch_size 4; stage 2 will be relaxed",
    ):
        Hive().start(Setting(pool_size=11, batch_size=4, group_size=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Hive().start(Setting(pool_size=12, batch_size=4, group_size=4))
        Greso().start(Setting(pool_size=4, batch_size=4, group_size=4))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"reward_weight": 1.5}, "Hive(reward_weight=...) must be a number of at least 0 and at most 1, got 1.5."),
        ({"reward_weight": "1"}, "Hive(reward_weight=...) must be a number of at least 0 and at most 1, got '1'."),
        ({"p_floor": float("nan")}, "Hive(p_floor=...) must be a number of at least 0 and at most 1, got nan."),
        (
            {"p_min": 0.96},
            "Hive(p_min=...) must be a number of at least 0 and at most 0.95, "
            "got 0.96. It must not exceed p_max.",
        ),
        (
            {"p_easy": 0.99},
            "Hive(p_easy=...) must be a number of at least 0.05 and at most 0.95, "
            "got 0.99. It lies between p_min and p_max.",
        ),
        (
            {"p_hard": 0.01},
            "Hive(p_hard=...) must be a number of at least 0.05 and at most 0.95, "
            "got 0.01. It lies between p_min and p_max.",
        ),
        (
            {"keep_share": 0.0},
            "Hive(keep_share=...) must be a number above 0 and at most 1, "
            "got 0.0. Use stage2='off' to keep everything.",
        ),
        (
            {"keep_share": 0.8},
            "Hive(keep_share=..., trim_share=...) must sum to at most 1, "
            "got 0.8 + 0.25. Lower one of them: the band lies below what is trimmed.",
        ),
        ({"stage2": "bnad"}, "Hive(stage2=...) must be one of 'band', 'median', 'off', got 'bnad'. Did you mean 'band'?"),
        ({"stage2": None}, "Hive(stage2=...) must be one of 'band', 'median', 'off', got None."),
        ({"stage1": 1}, "Hive(stage1=...) must be True or False, got 1."),
        (
            {"gate_pool": "raw_batch", "stage2": "off"},
            "Hive(gate_pool='raw_batch') needs stage2='band', "
            "got 'off'. Use gate_pool='candidates'.",
        ),
        (
            {"max_rounds": 0},
            "Hive(max_rounds=...) must be a whole number of at least 1, "
            "got 0. Use on_short='loop' for no limit.",
        ),
        ({"min_round": 0}, "Hive(min_round=...) must be a whole number of at least 1, got 0. None scales it with the batch."),
        (
            {"oversample": 0.5},
            "Hive(oversample=...) must be a number of at least 1, "
            "got 0.5. Round 0 must ask for at least one group per group trained.",
        ),
        ({"topup_factor": 0}, "Hive(topup_factor=...) must be a number above 0, got 0."),
        ({"tolerance": -1}, "Hive(tolerance=...) must be a number of at least 0, got -1."),
        (
            {"gate": "rewards"},
            "Hive(gate=...) must be one of 'reward', 'correct', 'off', "
            "got 'rewards'. Did you mean 'reward'?",
        ),
        ({"round_to": True}, "Hive(round_to=...) must be a whole number of at least 1, got True."),
    ],
)  # fmt: skip
def test_hyper_parameters_out_of_range_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        Hive(**parameters)
