"""What hosts report, value by value: every kind of nonsense is refused or missing by name, and nothing else suffers by it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgewise
from edgewise import kinds, outcomes
from edgewise.errors import DegradedWarning, OutcomeError
from edgewise.methods import METHODS, make
from edgewise.methods.vcrl import variance_score
from edgewise.testing.world import World
from edgewise.types import Outcome, Ticket
from tests import ledger
from tests.test_selector import Counting, G, answer, pool, selector

SMALLER: dict[str, dict[str, int]] = {"gps-ppm": {"gradient_steps": 1, "draws": 2}}
NAMES = [name for name in METHODS if name != "gps-ppm-20m"]
MISSING = {"entropy", "first", "usual", "belief_level", "belief_caps", "explorability", "level"}
"""Arrays of built-in methods in which NaN stands for "not measured yet"."""
NONSENSE: list[Any] = [
    None, math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 10**400, True, False, 0, 1, -3, 0.5, 2.5, "1.0", b"1", 1j,
    np.float32(0.25), np.float16(np.inf), np.float64(np.nan), np.int8(1), np.bool_(True), np.array(0.5), np.array([1.0]),
    np.str_("0"), Fraction(1, 3), object(), [], [1.0], {}, (),
]  # fmt: skip
CASES = settings(max_examples=ledger.cases(60, chaos=1_500), deadline=None, derandomize=True, database=None)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)
        yield


def built(name: str, world: World, **given: Any) -> edgewise.Selector:
    given = {"batch_size": 4, "group_size": G, "seed": 1, "total_steps": 40} | given
    return edgewise.Selector(make(name, **SMALLER.get(name, {})), world.pool, **given)


def is_sound(s: edgewise.Selector) -> bool:
    """C6: no infinity anywhere, NaN only where a method says "not measured"."""
    held = s.method.state()
    for key, array in (*held.prompts.items(), *held.shared.items()):
        array = np.asarray(array)
        if array.dtype.kind == "f" and (np.isinf(array).any() or (np.isnan(array).any() and key not in MISSING)):
            print(s.method.name, key, array)
            return False
    return all(math.isfinite(value) for value in s.metrics.values())


def beliefs(s: edgewise.Selector) -> bytes:
    return b"".join(np.asarray(array).tobytes() for _, array in sorted(s.method.state().prompts.items()))


def stacked(rewards: Any, rollouts: int = G, **given: Any) -> tuple[Any, list[str]]:
    """One group through `outcomes.stack`, and what it said."""
    said: list[str] = []
    ticket = Ticket(seq=0, row=0, prompt_id="p0", step=0, round=0, policy_version=0, rollouts=rollouts)
    groups = outcomes.stack([Outcome(ticket=ticket, rewards=rewards, **given)], lambda error: said.append(str(error)))
    return groups, said


# -- whose outcome is it: rows 27 and 28 -------------------------------------------------------------------------------


def stray(seq: int, prompt_id: str = "p1", **given: Any) -> Ticket:
    given = {"step": 0, "round": 0, "policy_version": 0, "rollouts": G, "row": 1} | given
    return Ticket(seq=seq, prompt_id=prompt_id, **given)


def test_an_unknown_ticket_is_counted_and_in_strict_mode_the_nearest_ones_are_named() -> None:
    s, strict = selector(), selector(on_problem="strict")
    tickets = [one.take(5) for one in (s, strict)][0]
    strangers = [stray(seq) for seq in (5, 6, 999, -1, 10**20)]
    held = 0
    for stranger in strangers:
        before = s._totals["dup_outcomes"]
        judged = s.report([answer(stranger), answer(tickets.pop())] if len(tickets) > 1 else [answer(stranger)])
        held += s._totals["dup_outcomes"] == before + 1 and stranger.seq not in {t.seq for t in judged.groups.tickets}
    mine = strict.in_flight
    with pytest.raises(
        OutcomeError, match=rf"no such ticket was issued. Nearest open tickets: 4 \('{mine[4].prompt_id}'\), 3 "
    ):
        strict.report([answer(stray(6))])
    with pytest.raises(OutcomeError, match=r"Open tickets of that prompt: 2\.$"):
        strict.report([answer(stray(77, mine[2].prompt_id))])
    with pytest.raises(OutcomeError, match="already reported or cancelled"):
        strict.report([answer(mine[0]), answer(mine[0])])
    assert strict.in_flight == mine  # refused whole: the first of the two did not count
    ledger.note(27, tried=len(strangers) + 3, held=held + 3)


@pytest.mark.parametrize("nonsense", [None, 5, "x", {}, answer, [1], Outcome(ticket=None, rewards=[1.0]), stray(0)])  # type: ignore[arg-type]
def test_what_is_no_outcome_is_left_out_and_the_others_count(nonsense: Any) -> None:
    s = selector()
    tickets = s.take(3)
    judged = s.report([nonsense, *(answer(t) for t in tickets)])
    assert len(judged.groups) == 3
    assert s.metrics["degraded_total"] == 1
    with pytest.raises(OutcomeError, match="takes a list of edgewise.Outcome"):
        selector(on_problem="strict").report([nonsense])
    bad = Outcome(ticket=stray([1]), rewards=[1.0])  # type: ignore[arg-type]
    assert len(s.report([bad]).groups) == 0
    ledger.note(27, tried=2, held=2)


MISMATCHES: dict[str, dict[str, Any]] = {
    "prompt": {"prompt_id": "else"},
    "row": {"row": 39},
    "rollouts": {"rollouts": 64},
    "step": {"step": 7},
    "round": {"round": 2},
    "policy version": {"policy_version": 9},
    "group": {"continues": 0},
}


@pytest.mark.parametrize("expired", [False, True])
@pytest.mark.parametrize("what", MISMATCHES)
def test_a_ticket_that_was_issued_otherwise_is_refused_whole_and_stays_as_it_is(what: str, expired: bool) -> None:
    from dataclasses import replace

    s, strict = selector(), selector(on_problem="strict")
    for one in (s, strict):
        tickets = one.take(3)
        if expired:
            one.expire(tickets[1:2])
    wrong = answer(replace(tickets[1], **MISMATCHES[what]))
    open_, gone = s.in_flight, dict(s._expired)
    assert len(s.report([wrong]).groups) == 0
    with pytest.raises(OutcomeError, match="refused whole"):
        strict.report([wrong])
    assert (s.in_flight, s._expired) == (open_, gone)
    assert len(s.report([answer(t) for t in tickets]).groups) == 3
    s.settle()
    ledger.note(28, tried=2, held=2 * (s.method.state().shared["total"][0] == 3))


# -- how much of it came: rows 29 to 32 --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 5, 8])
def test_every_partial_group_teaches_by_what_came_and_is_never_filled_from_a_neighbour(n: int) -> None:
    """AReaL#1419, prime-rl#2585: a short group shifted a fixed stride, and later groups mixed two prompts."""
    tried = held = 0
    for k in range(n + 1):
        for how in ("short", "none", "failed", "nan", "cancelled"):
            s = edgewise.Selector("mopps", pool(), batch_size=3, group_size=n, seed=3)
            tickets = s.take(3)
            came = [0.25] * k
            rewards = {"short": came, "none": came + [None] * (n - k), "nan": came + [math.nan] * (n - k)}.get(how, [0.25] * n)
            lost = {"failed": "failed", "cancelled": "cancelled"}.get(how)
            statuses = None if lost is None else ["ok"] * k + [lost] * (n - k)
            reported = [
                Outcome(ticket=tickets[0], rewards=[1.0] * n),
                Outcome(ticket=tickets[1], rewards=rewards, statuses=statuses),  # type: ignore[arg-type]
                Outcome(ticket=tickets[2], rewards=[0.0] * n),
            ]
            groups = s.report(reported).groups
            exact = groups.valid.sum(axis=1).tolist() == [n, k, n]
            apart = groups.rewards[0].tolist() == [1.0] * n and groups.rewards[2].tolist() == [0.0] * n
            tried += 1
            held += exact and apart and np.nansum(groups.rewards[1]) == 0.25 * k
    ledger.note(29, tried=tried, held=held)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SMALLER])
def test_a_group_without_a_reward_is_no_pass_rate(name: str) -> None:
    """Row 30, for every method: beliefs stay as they are, bit for bit, however the group came back empty."""
    ways: list[dict[str, Any]] = [
        {"rewards": []},
        {"rewards": [None] * 64},
        {"rewards": [0.0] * 64, "statuses": ["failed"] * 64},
        {"rewards": [1.0] * 64, "statuses": ["cancelled"] * 64},
        {"rewards": [math.nan] * 64},
        {"rewards": "failed"},
    ]
    world = World(80)
    s = built(name, world)
    with s.step(policy_version=0) as step:
        for tickets in step.requests(world.signals):
            step.report(world.rollout(tickets))
    going_on = {t.seq for t in s.take(80, signals=world.signals) if t.continues is not None}
    s.report([Outcome(ticket=t, rewards=[1.0] * t.rollouts) for t in s.in_flight if t.seq in going_on])  # none waits now
    s.expire(s.in_flight)
    tried = held = 0
    for version, way in enumerate(ways):
        tickets = s.take(2, signals=world.signals, policy_version=version)
        before = beliefs(s)
        cut = [{k: v[: t.rollouts] if isinstance(v, list) else v for k, v in way.items()} for t in tickets]
        judged = s.report([Outcome(ticket=t, **given) for t, given in zip(tickets, cut, strict=True)])
        s.settle()
        tried += 1
        held += beliefs(s) == before and not judged.verdicts.keep.any() and is_sound(s)
    ledger.note(30, tried=tried, held=held)


@pytest.mark.parametrize("name", NAMES)
def test_a_group_of_one_is_no_signal(name: str) -> None:
    """One rollout of a group came back, or one was asked for at all; the second many methods refuse before the first step."""
    world = World(40)
    tried = held = 0
    for reward in (0.0, 1.0, 0.5, -7.0):
        s = built(name, world)
        with s.step(policy_version=0) as step:
            for tickets in step.requests(world.signals):
                judged = step.report([Outcome(ticket=t, rewards=[reward]) for t in tickets])
                assert not judged.verdicts.keep[judged.groups.valid.sum(axis=1) < 2].any()
        tried += 1
        held += is_sound(s)
    try:
        s = built(name, world, group_size=1)
    except edgewise.errors.ConfigError:
        pass
    else:
        for version in range(3):
            tickets = s.take(3, signals=world.signals, policy_version=version)
            s.report([Outcome(ticket=t, rewards=[float(t.row % 2)] * t.rollouts) for t in tickets])
        s.settle()
        tried += 1
        held += is_sound(s)
    ledger.note(31, tried=tried, held=held)


def test_a_group_of_4096_costs_what_its_rollouts_cost_and_counts_exactly() -> None:
    """Time of one report, best of five: 64 times the rollouts may cost at most 64 times as much, and twice that for chance."""
    spent = {}
    for size in (64, 4096):
        best = math.inf
        for _ in range(5):
            s = edgewise.Selector("mopps", pool(), batch_size=8, group_size=size, seed=3)
            tickets = s.take(8)
            reported = [Outcome(ticket=t, rewards=[1.0] * (size - 1) + [0.0], response_tokens=2**40) for t in tickets]
            started = time.perf_counter()
            groups = s.report(reported).groups
            s.settle()
            best = min(best, time.perf_counter() - started)
        assert groups.rewards.sum(axis=1).tolist() == [size - 1] * 8
        assert groups.response_tokens.dtype == np.int64
        assert s._totals["tokens_total"] == 8 * 2**40
        assert is_sound(s)
        spent[size] = best
    assert spent[4096] < 128 * spent[64], spent
    ledger.note(32, tried=10, held=10, ms_of_8_groups_of_4096=1e3 * spent[4096])


def test_groups_of_changing_size_keep_their_own_size() -> None:
    class Varying(Counting):
        def propose(self, room: int, step: Any) -> Any:
            rows = step.draw(room)
            return edgewise.Requests(rows, 1 + rows % 9)

    s = selector(Varying(), batch_size=8, on_problem="strict")
    tickets = s.take(8)
    groups = s.report([Outcome(ticket=t, rewards=[1.0] * t.rollouts) for t in tickets]).groups
    assert groups.asked.tolist() == [t.rollouts for t in tickets]
    assert groups.valid.sum(axis=1).tolist() == [t.rollouts for t in tickets]
    assert s._totals["rollouts_total"] == sum(t.rollouts for t in tickets)
    ledger.note(32, tried=8, held=8)


# -- what is in it: rows 33 to 38, and 40 ------------------------------------------------------------------------------


def usable(entry: Any) -> bool:
    """Whether an entry is a number of sensible size, by a rule of its own."""
    if isinstance(entry, np.ndarray):
        return entry.ndim == 0 and usable(entry.item())
    try:
        return isinstance(entry, (bool, int, float, np.number, np.bool_, Fraction)) and abs(float(entry)) < 1e101  # type: ignore[arg-type]
    except (OverflowError, TypeError):
        return False


def test_any_nonsense_anywhere_is_a_missing_rollout_and_the_group_goes_on() -> None:
    count = {33: 0, 34: 0, 35: 0, 38: 0}
    kept = 0

    @CASES
    @given(st.lists(st.sampled_from(NONSENSE), max_size=6))
    def values(rewards: list[Any]) -> None:
        nonlocal kept
        groups, said = stacked(rewards, rollouts=6)
        good = [usable(entry) for entry in rewards] + [False] * (6 - len(rewards))
        assert groups.valid[0].tolist() == good
        assert np.isnan(groups.rewards[0][~groups.valid[0]]).all()
        for i, entry in enumerate(rewards):
            if good[i]:
                assert groups.rewards[0, i] == float(entry)
            elif not (entry is None or (isinstance(entry, (float, np.floating)) and math.isnan(entry))):
                assert any(f"entry {i} must be" in message for message in said), (entry, said)
            missing = entry is None or (isinstance(entry, (float, np.floating)) and math.isnan(entry))
            row = 35 if entry is None else 33 if missing else 34 if isinstance(entry, (float, np.floating)) else 38
            count[row] += 1
        kept += 1

    values()
    assert kept >= ledger.cases(50, chaos=1_000)
    for row, tried in count.items():
        ledger.note(row, tried=tried, held=tried)


def test_states_stay_finite_whatever_is_reported() -> None:
    """Rows 33 to 36: every method, in turn; NaN, infinities, 1e308 and negative rewards anywhere."""
    wild = st.sampled_from([0.0, 1.0, 0.5, -1e308, 1e308, 5e-324, -2.0, 7.5, None, math.nan, math.inf, -math.inf, "x"])
    tried = held = 0

    @CASES
    @given(st.sampled_from(NAMES), st.data())
    def runs(name: str, data: st.DataObject) -> None:
        nonlocal tried, held
        if name in SMALLER and tried % 7:
            name = "gps"
        world = World(24)
        s = built(name, world)
        for version in range(3):
            tickets = s.take(4, signals=world.signals, policy_version=version)
            reported = []
            for ticket in tickets:
                rewards = data.draw(st.lists(wild, min_size=0, max_size=min(6, ticket.rollouts)))
                entropy = data.draw(st.sampled_from([None, math.nan, 0.0, math.inf, 1.5, "x", rewards]))
                correct = data.draw(st.sampled_from([None, rewards, [True] * len(rewards), [None] * len(rewards)]))
                reported.append(Outcome(ticket=ticket, rewards=rewards, correct=correct, rollout_entropy=entropy))
            s.report(reported)
            if data.draw(st.booleans()):
                s.settle()
        s.settle()
        tried += 1
        held += is_sound(s)

    with np.errstate(all="ignore"):
        runs()
    for row in (33, 34, 36):
        ledger.note(row, tried=tried, held=held)


@pytest.mark.parametrize("value", [0.1, -0.3, 1.0, 0.0, 7.25, 1e-12, 1e12, -1e6, 1 / 3])
def test_equal_rewards_of_any_size_have_no_variance(value: float) -> None:
    """Rows 36, 37: judged on the rewards themselves, by their extremes: the deviation of three times 0.1 is not 0."""
    tried = held = 0
    for size in (2, 3, 7, 64):
        groups, _ = stacked([value] * size, rollouts=size)
        s = edgewise.Selector("dapo", pool(), batch_size=2, group_size=size)
        judged = s.report([Outcome(ticket=t, rewards=[value] * size) for t in s.take(2)])
        tried += 1
        held += bool(kinds.zero_variance(groups.rewards, groups.valid).all()) and set(judged.verdicts.reasons) == {
            "zero_variance"
        }
    for row in (36, 37):
        ledger.note(row, tried=tried, held=held)


def test_graded_rewards_pass_by_the_verifier_or_by_the_bar() -> None:
    """Row 36: (rewards, correct, correct_at) -> passes, and whether there is variance."""
    table: list[tuple[list[float], list[Any] | None, float, int, bool]] = [
        ([0.2, 0.6, 0.9, 0.4], None, 0.5, 2, True),
        ([0.2, 0.6, 0.9, 0.4], None, 0.9, 1, True),
        ([-1.0, 1.0, -1.0, 1.0], None, 0.5, 2, True),
        ([-1.0, -0.5, -1.0, -2.0], None, 0.5, 0, True),
        ([3.0, 2.0, 5.0, 4.0], None, 0.5, 4, True),
        ([-3.0, -2.0, -3.0, -2.0], None, -2.0, 2, True),
        ([0.1, 0.1, 0.1, 0.1], [True, True, False, False], 0.5, 2, False),
        ([1.0, 0.0, 1.0, 0.0], [False, False, False, False], 0.5, 0, True),
        ([1.0, 0.0, 1.0, 0.0], [True, None, True, True], 0.5, 2, True),  # judged in part: by reward
    ]
    held = 0
    for rewards, correct, bar, passes, varies in table:
        groups, said = stacked(rewards, correct=correct)
        by_reward = kinds.zero_variance(groups.rewards, groups.valid)[0]
        held += not said and int(edgewise.prediction.passed(groups, bar).sum()) == passes and bool(by_reward) is not varies
    ledger.note(36, tried=len(table), held=held)


def test_no_variance_is_negative() -> None:
    """Row 37: of any float at all, and of pass counts."""
    tried = 0

    @CASES
    @given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=9), st.floats(0.0, 1e-6))
    def any_floats(values: list[float], noise: float) -> None:
        nonlocal tried
        array = np.array([values])
        valid = np.isfinite(array)
        with np.errstate(over="ignore"):
            constant = bool(kinds.zero_variance(array, valid)[0])
        assert constant == (len(set(values)) == 1)
        trials = np.array([len(values)])
        passes = np.array([float(sum(value > 0 for value in values))])
        assert variance_score(passes, trials)[0] >= 0.0
        tried += 1

    any_floats()
    ledger.note(37, tried=tried, held=tried)


def test_rewards_of_every_type_are_taken_or_named_by_their_index() -> None:
    """Row 38."""
    torch = pytest.importorskip("torch")
    taken: list[Any] = [
        [True, False, 1, 0],
        np.array([1, 0, 1, 0], dtype=np.uint8),
        np.array([1.0, 0.0, 1.0, 0.0], dtype=np.float16),
        np.array([True, False, True, False]),
        np.ma.array([1.0, 0.0, 1.0, 0.0]),
        torch.tensor([1, 0, 1, 0]),
        torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(1.0), np.float64(0.0), np.array(1), torch.tensor(False)],
        (Fraction(1), Fraction(0), 1, 0),
    ]
    held = 0
    for rewards in taken:
        groups, said = stacked(rewards)
        held += not said and groups.rewards.tolist() == [[1.0, 0.0, 1.0, 0.0]]
    refused: list[tuple[Any, str]] = [
        ([1.0, "0.5", 0.0, 0.0], r"entry 1 must be a number or None, got '0.5' (str)"),
        ([1.0, 0.0, b"1", 0.0], r"entry 2 must be a number or None"),
        ([1.0, 0.0, 0.0, [1.0]], r"entry 3 must be a number or None, got [1.0] (list)"),
        ([torch.ones(2), 0.0, 0.0, 0.0], r"entry 0 must be a number or None"),
        (np.ones((2, 2)), r"entry 0 must be a number or None"),
        ("1010", "must be a list with one entry a rollout, got str"),
        (1.0, "must be a list with one entry a rollout, got float"),
        (torch.tensor(1.0), "must be a list with one entry a rollout, got float"),
        (iter([1.0]), "must be a list with one entry a rollout, got list_iterator"),
        ({0: 1.0}, ""),
    ]
    for rewards, message in refused[:-1]:
        groups, said = stacked(rewards)
        held += any(message in line for line in said) and not np.isinf(groups.rewards).any()
    ledger.note(38, tried=len(taken) + len(refused) - 1, held=held)


@pytest.mark.parametrize("entropy", [None, math.nan, math.inf, -math.inf, "x", [], [None] * 4, [math.nan] * 4, object()])
def test_an_entropy_that_is_none_is_missing(entropy: Any) -> None:
    groups, _ = stacked([1.0, 0.0, 1.0, 0.0], rollout_entropy=entropy)
    assert np.isnan(groups.rollout_entropy).all()
    assert np.isnan(groups.entropies).all()
    assert groups.valid.all()
    zero, _ = stacked([1.0, 0.0, 1.0, 0.0], rollout_entropy=[0.0, None, 0.5, 0.25])
    assert zero.rollout_entropy[0] == 0.25
    ledger.note(40, tried=1, held=1)
