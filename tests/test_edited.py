"""A data set that is edited between two runs: by id, what was learned and whose turn it is follow the prompts."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgewise
from edgewise import edited, state
from edgewise.edited import compare
from edgewise.errors import DegradedWarning, OutcomeError, StateError, StateMismatchError
from edgewise.methods import make
from edgewise.pool import PromptPool
from edgewise.testing.drive import Size, selector_of, steps
from edgewise.testing.world import World
from edgewise.types import Outcome
from tests import ledger
from tests.edits import BASE, FIRST, Counting, Halves, Prompt, by_name, edit, pool_of, restored, told, world_of

# -- which prompts are the same ----------------------------------------------------------------------------------------


def test_prompts_are_known_by_id_and_content() -> None:
    then = [Prompt("a", 0), Prompt("b", 1), Prompt("c", 2), Prompt("d", 3)]
    now = [Prompt("d", 3), Prompt("x", 9), Prompt("b", 7), Prompt("a", 0)]
    found = compare(*pool_of(then).keys, pool_of(now))
    assert found.rows.tolist() == [3, -1, -1, 0]
    assert found.places.tolist() == [3, -1, 1, 0]
    assert (found.added, found.removed, found.changed, found.moved, found.kept) == (1, 1, 1, 2, 2)
    assert (found.added_ids, found.changed_ids) == (("x",), ("b",))
    assert found.text(120) == (
        "the data set changed since step 120: 1 prompt added, 1 removed (parked), 1 changed (their beliefs start anew), 2 moved"
    )


def test_what_one_side_does_not_know_counts_as_the_same() -> None:
    known, bare = pool_of([Prompt("a", 0), Prompt("b", 1)]), PromptPool.from_ids(["b", "a"])
    for then, now in ((known, bare), (bare, known)):
        found = compare(*then.keys, now)
        assert found.rows.tolist() == [1, 0]
        assert (found.changed, found.moved) == (0, 2)
    assert not compare(*known.keys, PromptPool.from_ids(["a", "b"]))


def test_a_prompt_that_is_put_in_between_moves_none() -> None:
    found = compare(*PromptPool.from_ids(list("abcdef")).keys, PromptPool.from_ids(list("xabcdf")))
    assert (found.added, found.removed, found.moved) == (1, 1, 0)


@pytest.mark.parametrize(
    ("ids", "contents"),
    [
        (np.zeros(2, np.int64), np.zeros(2, np.uint64)),
        (np.zeros(2, np.uint64), np.zeros(2, np.uint64)),
        (np.arange(2, dtype=np.uint64), np.zeros(3, np.uint64)),
        (np.zeros((2, 2), np.uint64), np.zeros((2, 2), np.uint64)),
    ],
)
def test_keys_that_no_pool_has_are_refused(ids: Any, contents: Any) -> None:
    with pytest.raises(ValueError, match=r"keys must be|saved twice"):
        compare(ids, contents, PromptPool.from_ids(["a", "b"]))


# -- a plain model -------------------------------------------------------------------------------------------------------


@settings(max_examples=ledger.cases(25, chaos=600), deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rounds=st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 12), st.integers(0, 12), st.integers(0, 8), st.integers(0, 6)),
        min_size=1, max_size=5,
    ),
)  # fmt: skip
def test_beliefs_follow_prompts_through_any_edits(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rounds: list[tuple[int, int, int, int, int]]
) -> None:
    """Against a dict by id: visits follow, removed prompts come back with what they had, changed ones start anew."""
    rng, path = np.random.default_rng(seed), tmp_path_factory.mktemp("edits") / "state"
    prompts = [Prompt(f"p-{i}", i) for i in range(30)]
    world = world_of(BASE, prompts)
    selector = selector_of(Counting(), world, Size(batch_size=4, group_size=2))
    known: dict[str, tuple[int, int, float]] = {}  # id -> content, visits, passes; of prompts that are gone too
    for number, (n, remove, add, change, back) in enumerate(rounds):
        told(selector, world, n)
        for p, visits, passes in zip(prompts, selector.method.visits, selector.method.passes, strict=True):
            known[p.name] = (p.content, int(visits), float(passes))
        selector.save(path)
        gone = [Prompt(name, content) for name, (content, _, _) in known.items() if name not in {p.name for p in prompts}]
        kept = edit(prompts, rng, remove=remove, add=add, change=change, contents=200, number=number)
        returning = [gone[i] for i in rng.permutation(len(gone))[:back]]
        if returning and rng.random() < 0.3:  # one of them with another content
            returning[0] = Prompt(returning[0].name, (returning[0].content + 1) % 200)
        prompts = kept + returning
        world = world_of(BASE, prompts)
        selector = edgewise.Selector(Counting(), world.pool, batch_size=4, group_size=2, on_problem="strict", resume="adapt")
        restored(selector, path)
        for row, p in enumerate(prompts):
            content, visits, passes = known.get(p.name, (p.content, 0, 0.5))
            if content != p.content:
                visits, passes = 0, 0.5
                del known[p.name]  # the former content is forgotten
            assert (selector.method.visits[row], selector.method.passes[row]) == (visits, passes), p
    told(selector, world, 3)
    ledger.note(50, tried=1, held=1)


@pytest.mark.parametrize("within", [0, 13, 29, 30, 37])
def test_a_pass_through_the_selector_offers_everybody_once(within: int, tmp_path: Path) -> None:
    """One prompt a step, 30 to begin with. Then 5 go and 6 come, then 3 of the 5 come back, all in one pass."""
    prompts = [Prompt(f"p-{i}", i) for i in range(30)]
    world, size = world_of(BASE, prompts), Size(batch_size=1, group_size=2)
    selector = selector_of(Counting(), world, size)
    asked = told(selector, world, within)[within // 30 * 30 :]
    selector.save(tmp_path / "a")
    second = prompts[5:][::-1] + [Prompt(f"n-{i}", 40 + i) for i in range(6)]
    world = world_of(BASE, second)
    selector = selector_of(Counting(), world, size)
    restored(selector, tmp_path / "a")
    asked += told(selector, world, 1)
    if selector._stream.epoch > within // 30:  # a removed prompt was the last of its pass
        pytest.fail("6 added prompts are still to come in this pass")
    selector.save(tmp_path / "b")
    third = second + prompts[:3]
    world = world_of(BASE, third)
    selector = selector_of(Counting(), world, size)
    said = restored(selector, tmp_path / "b")
    assert "3 prompts added (3 of them come back with what was learned)" in said[0]
    while selector._stream.epoch == within // 30:  # `epoch` is that of the next prompt
        asked += told(selector, world, 1)
    assert len(set(asked)) == len(asked)
    assert {p.name for p in third} <= set(asked) <= {p.name for p in prompts + third}
    ledger.note(50, tried=len(third), held=len(third))


def test_parked_prompts_are_bounded_and_the_newest_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edited, "MOST_PARKED", 12)
    path, prompts = tmp_path / "state", [Prompt(f"p-{i}", i) for i in range(12)]
    world = world_of(BASE, prompts)
    selector = selector_of(Counting(), world, Size(batch_size=4, group_size=2))
    for number in range(6):
        told(selector, world, 3)
        selector.save(path)
        prompts = prompts[4:] + [Prompt(f"n-{number}-{i}", i) for i in range(4)]
        world = world_of(BASE, prompts)
        selector = selector_of(Counting(), world, Size(batch_size=4, group_size=2))
        restored(selector, path)
        assert len(selector._parked["ids"]) == min(12, 4 * (number + 1))
    everybody = [f"p-{i}" for i in range(12)] + [f"n-{n}-{i}" for n in range(6) for i in range(4)]
    gone = everybody[: 4 * 6]  # in the order in which they left
    parked = selector._parked["ids"].tolist()
    assert parked == PromptPool.from_ids(gone[-12:]).keys[0].tolist()
    assert selector._parked["method/prompts/visits"].tolist() == [3] * 12  # 3 steps between two edits, 4 of 12 prompts a step


# -- in flight, waiting, retired -----------------------------------------------------------------------------------------


def test_tickets_in_flight_and_expired_go_on_under_another_row(tmp_path: Path) -> None:
    world = world_of(BASE, FIRST)
    before = selector_of(Counting(), world, Size(batch_size=4, group_size=2))
    tickets = before.take(12, policy_version=1)
    before.expire(tickets[8:])
    before.save(tmp_path / "state")
    gone, changed, late = tickets[0].prompt_id, tickets[1].prompt_id, tickets[8]
    now = [Prompt(p.name, p.content + 100 if p.name == changed else p.content) for p in FIRST[::-1] if p.name != gone]
    world = world_of(BASE, now)
    after = selector_of(Counting(), world, Size(batch_size=4, group_size=2))
    said = restored(after, tmp_path / "state")
    assert "1 removed (parked), 1 changed (their beliefs start anew)" in said[0]
    assert said[0].rstrip(".").endswith("given up: 2 tickets in flight")
    again = after.take(6, policy_version=2)
    assert [(t.seq, t.prompt_id) for t in again] == [(t.seq, t.prompt_id) for t in tickets[2:8]]
    assert [after.pool.ids[t.row] for t in again] == [t.prompt_id for t in again]
    after.report(world.rollout(again))
    row = after.pool.row_of(late.prompt_id)
    judged = after.report(world.rollout([after._expired[late.seq]]))
    assert judged.verdicts.reasons == ("late",)
    after.commit()
    assert after.method.visits[row] == 1
    assert after.method.visits.sum() == 7
    ledger.note(50, tried=12, held=12)


def test_outcomes_come_back_with_the_row_that_their_prompt_had_when_it_was_issued(tmp_path: Path) -> None:
    """Rollouts outlive the process of the selector: their tickets are those of before the edit."""
    world = world_of(BASE, FIRST)
    before = selector_of(Counting(), world, Size(batch_size=4, group_size=2))
    tickets = before.take(8, policy_version=1)
    before.expire(tickets[4:])
    outcomes = world.rollout(tickets)
    before.save(tmp_path / "state")
    for count in (1, 2):  # edited once, and once more
        world = world_of(BASE, FIRST[::-1] if count == 1 else FIRST[3:] + FIRST[:3])
        after = selector_of(Counting(), world, Size(batch_size=4, group_size=2))
        restored(after, tmp_path / "state")
        assert [after.pool.row_of(t.prompt_id) for t in tickets] != [t.row for t in tickets]
        after.save(tmp_path / "state")
        judged = after.report(outcomes)
        assert judged.verdicts.reasons.count("late") == 4
        assert [after.pool.ids[row] for row in judged.groups.rows] == [t.prompt_id for t in judged.groups.tickets]
        after.commit()
        assert sorted(np.flatnonzero(after.method.visits)) == sorted(after.pool.row_of(t.prompt_id) for t in tickets)
        other = [Outcome(ticket=replace(t, prompt_id="p0" if t.prompt_id != "p0" else "p1"), rewards=[1, 0]) for t in tickets]
        with pytest.raises(OutcomeError, match="already reported"):
            after.report(outcomes)
        after.restore(tmp_path / "state")
        with pytest.raises(OutcomeError, match="with another prompt_id. The outcome is refused whole"):
            after.report(other)
    ledger.note(50, tried=16, held=16)


def test_groups_that_wait_go_on_under_another_row_and_another_group_size_gives_them_up(tmp_path: Path) -> None:
    world, size = world_of(BASE, FIRST), Size(batch_size=4, group_size=8)
    before = selector_of(Halves(), world, size)
    steps(before, world, 1)
    first, second, *others = before.waiting
    assert len(others) == 2
    before.save(tmp_path / "state")
    out = before._waiting[first].first.prompt_id
    now = [p for p in FIRST[::-1] if p.name != out]
    moved = world_of(BASE, now)
    after = selector_of(Halves(), moved, size)
    said = restored(after, tmp_path / "state")
    assert said[0].endswith("1 removed (parked), 58 moved; given up: 1 group that waited.")
    assert list(after.waiting) == [second, *others]
    begun = after._waiting[second]
    assert after.pool.ids[begun.first.row] == before._waiting[second].first.prompt_id
    assert begun.group.rows.tolist() == [begun.first.row]
    visits = by_name(after.pool, after.method.state())
    steps(after, moved, 1)
    assert not {second, *others} & set(after.waiting)  # their other halves came, and they were learned from as a whole
    assert sum(held != visits[name] for name, held in by_name(after.pool, after.method.state()).items()) == 3

    other = edgewise.Selector(Halves(), moved.pool, batch_size=4, group_size=16, resume="adapt")
    said = restored(other, tmp_path / "state")
    assert said[0].endswith("given up: 4 groups that waited.")
    assert "group_size was 8 and is 16 now: tickets in flight keep their own number of rollouts" in said[1]
    assert other.waiting == {}
    steps(other, moved, 3)

    streaming = selector_of(Halves(), world, size)
    streaming.report(world.rollout(streaming.take(4, policy_version=0)))
    rest = streaming.take(6, policy_version=1)  # four other halves and two new prompts, all in flight
    streaming.save(tmp_path / "open")
    again = selector_of(Halves(), moved, size)
    restored(again, tmp_path / "open")
    assert [t.seq for t in again.in_flight] == [t.seq for t in rest if t.prompt_id != out]
    other = edgewise.Selector(Halves(), moved.pool, batch_size=4, group_size=16, resume="adapt")
    restored(other, tmp_path / "open")
    assert [(t.seq, t.rollouts) for t in other.in_flight] == [(t.seq, 4) for t in rest if t.continues is None]
    ledger.note(50, tried=4, held=4)
    ledger.note(10, tried=4, held=4)


def test_retired_prompts_stay_retired_under_another_row(tmp_path: Path) -> None:
    world = world_of(BASE, FIRST)
    before = selector_of(make("dapo"), world, Size(batch_size=4))
    with before.step(policy_version=0) as step:
        for tickets in step.requests(world.signals):  # of not one rollout of these there is a reward
            step.report([edgewise.Outcome(ticket=t, rewards=[None] * t.rollouts) for t in tickets[:3]])
            step.report(world.rollout(tickets[3:]))
            break
    before.save(tmp_path / "state")
    names = [before.pool.ids[row] for row in before._retired.rows]
    assert len(names) >= 3
    now = [p for p in FIRST[::-1] if p.name != names[0]] + [Prompt(f"n-{i}", i) for i in range(30)]
    after = selector_of(make("dapo"), world_of(BASE, now), Size(batch_size=4))
    restored(after, tmp_path / "state")
    assert {after.pool.ids[row] for row in after._retired.rows} == set(names[1:])
    assert after._blocked[after._retired.rows].all()
    assert int(after._blocked.sum()) == len(names) - 1


# -- refusals and settings -----------------------------------------------------------------------------------------------


def test_a_data_set_that_has_hardly_a_prompt_in_common_is_refused(tmp_path: Path) -> None:
    world = world_of(BASE, FIRST)
    before = selector_of(Counting(), world, Size(batch_size=4, group_size=2))
    told(before, world, 5)
    before.save(tmp_path / "state")
    now = [*FIRST[:20], *(Prompt(f"x-{i}", i) for i in range(100)), *(Prompt(p.name, p.content + 60) for p in FIRST[20:35])]
    after = selector_of(Counting(), world_of(BASE, now), Size(batch_size=4, group_size=2))
    message = (
        "knows 60 prompts, and of these only 20 are in this data set with the same content: 25 are gone, 15 have another "
        "content, 100 are new (e.g. 'x-0', 'x-1', 'x-2'). Nothing was loaded."
    )
    with pytest.raises(StateMismatchError, match=re.escape(message)):
        after.restore(tmp_path / "state")
    assert after.step_number == 0
    assert after.method.visits.sum() == 0
    insist = edgewise.Selector(Counting(), world_of(BASE, now).pool, batch_size=4, group_size=2, resume="adapt")
    assert len(restored(insist, tmp_path / "state")) == 1
    assert insist.method.visits[:20].tolist() == before.method.visits[:20].tolist()
    half = selector_of(Counting(), world_of(BASE, FIRST[:30]), Size(batch_size=4, group_size=2))
    restored(half, tmp_path / "state")  # exactly half is enough
    ledger.note(50, tried=3, held=3)


def test_a_refused_state_leaves_a_running_selector_as_it_was(tmp_path: Path) -> None:
    """The method is started anew to see what a fresh one holds; whatever comes of it, it is then what it was."""
    world = world_of(BASE, FIRST)
    other = selector_of(make("gps"), world_of(BASE, FIRST[:20]), Size(batch_size=4))
    steps(other, world_of(BASE, FIRST[:20]), 3)
    other.save(tmp_path / "state")
    header, arrays = state.load(tmp_path / "state")
    bare = {k: v for k, v in header.items() if k not in ("format", "digest")}
    state.save(tmp_path / "broken", bare, {**arrays, "table/retired": np.array([[5, 10**9]])})
    runs = [selector_of(make("gps"), world, Size(batch_size=4)) for _ in range(2)]
    for selector in runs:
        steps(selector, world, 4)
    with pytest.raises(StateError):
        runs[0].restore(tmp_path / "broken")
    assert steps(runs[0], world, 4) == steps(runs[1], world, 4)


def test_adapt_never_takes_another_method(tmp_path: Path) -> None:
    world = world_of(BASE, FIRST)
    selector_of(make("dapo"), world, Size(batch_size=4)).save(tmp_path / "state")
    after = edgewise.Selector("uniform", world.pool, batch_size=4, group_size=4, resume="adapt")
    with pytest.raises(StateMismatchError, match="is of the method 'dapo', and this run uses 'uniform': what one method keeps"):
        after.restore(tmp_path / "state")
    plain = edgewise.Selector("uniform", world.pool, batch_size=4, group_size=4)
    with pytest.raises(StateMismatchError, match="method: saved 'dapo', this run 'uniform'"):
        plain.restore(tmp_path / "state")
    ledger.note(10, tried=2, held=2)


@pytest.mark.parametrize("batch", [1, 4, 9])
def test_another_batch_size_alone_is_taken_and_said(batch: int, tmp_path: Path) -> None:
    """The stream goes on to the same prompts, in batches of another size."""
    world = world_of(BASE, FIRST)
    before = selector_of(Counting(), world, Size(batch_size=4, group_size=2))
    told(before, world, 3)
    before.save(tmp_path / "state")
    after = selector_of(Counting(), world, Size(batch_size=batch, group_size=2))
    said = "".join(restored(after, tmp_path / "state"))
    assert (f"batch_size was 4 and is {batch} now: the next batches will differ" in said) == (batch != 4)
    assert told(after, world, 36 // batch) == told(before, world, 9)
    ledger.note(51, tried=1, held=1)


def test_ids_that_are_drawn_anew_in_each_run_are_found_out(tmp_path: Path) -> None:
    """A uid of a trainer's step names no prompt: nothing is known again by it, which is an error and not a fresh start."""
    rng = np.random.default_rng(ledger.seed())

    def drawn() -> PromptPool:
        return PromptPool.from_dataset([{"uid": rng.bytes(16).hex(), "prompt": f"text {i}"} for i in range(60)])

    before = edgewise.Selector(Counting(), drawn(), batch_size=4, group_size=2, on_problem="strict")
    told(before, world_of(BASE, FIRST), 3)
    before.save(tmp_path / "state")
    after = edgewise.Selector(Counting(), drawn(), batch_size=4, group_size=2, on_problem="strict")
    with pytest.raises(StateMismatchError, match="only 0 are in this data set .* Check .* that ids come from the same column"):
        after.restore(tmp_path / "state")
    text = PromptPool.from_dataset([{"prompt": f"text {i}"} for i in range(60)])  # without that column: by content
    by_content = [edgewise.Selector(Counting(), text, batch_size=4, group_size=2, on_problem="strict") for _ in range(2)]
    told(by_content[0], world_of(BASE, FIRST), 3)
    by_content[0].save(tmp_path / "state")
    assert restored(by_content[1], tmp_path / "state") == []
    ledger.note(49, tried=2, held=2)


def test_another_seed_leaves_the_pass_under_way_in_its_order(tmp_path: Path) -> None:
    world = world_of(BASE, FIRST)
    before = selector_of(Counting(), world, Size(batch_size=4, group_size=2))
    asked = told(before, world, 5)
    before.save(tmp_path / "state")
    after = edgewise.Selector(Counting(), world.pool, batch_size=4, group_size=2, seed=8, resume="adapt")
    restored(after, tmp_path / "state")
    rest = told(before, world, 25)
    other = told(after, world, 25)
    assert other[:40] == rest[:40]  # 60 prompts, of which 20 were asked for
    assert sorted(asked + other[:40]) == sorted(world.pool.ids)
    assert other[40:] != rest[40:]
    assert sorted(other[40:]) == sorted(world.pool.ids[:0] + tuple(rest[40:]))


# -- in a run directory --------------------------------------------------------------------------------------------------


def test_edits_through_a_run_directory(tmp_path: Path) -> None:
    """Snapshot, journal, an edit, journal, another edit; then back to every stage, with each of the data sets."""
    prompts, path = FIRST, tmp_path / "run"
    rng = np.random.default_rng(ledger.seed())

    def opened(prompts: list[Prompt], **more: Any) -> tuple[edgewise.Selector, World]:
        world = world_of(BASE, prompts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegradedWarning)
            selector = edgewise.Selector(
                Counting(), world.pool, batch_size=4, group_size=2, directory=path, generations=20, **more
            )
            return selector, world

    visits: dict[str, int] = {}
    stages: list[tuple[list[Prompt], dict[str, int]]] = []
    for number in range(4):
        selector, world = opened(prompts)
        for row, p in enumerate(prompts):
            assert selector.method.visits[row] == visits.get(p.name, 0), p
        told(selector, world, 3)
        visits |= dict(zip((p.name for p in prompts), selector.method.visits.tolist(), strict=True))
        stages.append((prompts, dict(visits)))
        selector.close()
        again, _ = opened(prompts)  # nothing edited: as it was, journal and all
        assert again.step_number == 3 * (number + 1)
        assert again.method.visits.tolist() == selector.method.visits.tolist()
        ours, theirs = again._stream.slots.arrays(), selector._stream.slots.arrays()
        assert {name: array.tolist() for name, array in ours.items()} == {name: a.tolist() for name, a in theirs.items()}
        assert {name: a.tolist() for name, a in again._parked.items()} == {n: a.tolist() for n, a in selector._parked.items()}
        again.close()
        prompts = edit(prompts, rng, remove=4, add=5, change=0, contents=200, number=number)
    for stage, (_, then) in enumerate(stages):
        for prompts, _ in stages:
            selector, world = opened(prompts, resume=3 * (stage + 1))
            assert selector.step_number == 3 * (stage + 1)
            for row, p in enumerate(prompts):
                assert selector.method.visits[row] == then.get(p.name, 0), (stage, p)
            selector.close()
    ledger.note(50, tried=20, held=20)


# -- states that no selector writes ----------------------------------------------------------------------------------------


def test_a_state_that_is_wrong_anywhere_is_refused_whole_or_taken_up_whole(tmp_path: Path) -> None:
    """An edited and re-edited state with parked prompts, tickets in flight, groups that wait; one thing in it is wrong."""
    world, size = world_of(BASE, FIRST), Size(batch_size=4, group_size=8)
    one = selector_of(Halves(), world, size)
    one.report(world.rollout(one.take(6, policy_version=0)))
    one.take(9, policy_version=1)
    one.save(tmp_path / "state")
    second = FIRST[3:] + [Prompt(f"n-{i}", 100 + i) for i in range(5)]
    one = selector_of(Halves(), world_of(BASE, second), size)
    restored(one, tmp_path / "state")
    one.take(4, policy_version=2)
    one.save(tmp_path / "state")
    header, arrays = state.load(tmp_path / "state")
    header = {k: v for k, v in header.items() if k not in ("format", "sha256")}
    assert {"parked/ids", "parked/slots", "selector/stream_slots", "pool/ids"} <= arrays.keys()
    last = world_of(BASE, [*FIRST[:1], *second[4:]][::-1])
    rng = np.random.default_rng(ledger.seed())

    def harmed(array: Any, how: int) -> Any:
        if how == 0:
            return None
        if how == 1:
            return array[:-1] if array.ndim and len(array) else np.zeros((3, 3))
        if how == 2:
            return array.astype(np.float32)
        if how == 3:
            return np.concatenate([array, array]) if array.ndim else array.reshape(1)
        wild = np.array(array)
        if wild.size and wild.dtype.kind in "iu":
            most = np.iinfo(wild.dtype)
            values = [0, 1, 7, min(10**6, most.max), most.max, most.min]
            wild.reshape(-1)[rng.integers(wild.size)] = values[rng.integers(len(values))]
        return wild

    tried = held = 0
    for name in sorted(arrays):
        for how in range(4 + ledger.cases(3, chaos=60)):
            wrong = harmed(arrays[name], how)
            changed = {k: v for k, v in arrays.items() if k != name} | ({} if wrong is None else {name: wrong})
            state.save(tmp_path / "wrong", header, changed)
            selector = selector_of(Halves(), last, size)
            tried += 1
            try:
                restored(selector, tmp_path / "wrong")
            except StateError:
                assert (selector.step_number, len(selector.in_flight), selector.method.visits.sum()) == (0, 0, 0)
            else:
                rows = [t.row for t in selector.in_flight] + selector._retired.rows.tolist()
                assert all(0 <= row < len(last.pool) for row in rows)
                drawn = selector._stream.draw(5, np.zeros(len(last.pool), dtype=np.bool_))
                assert len(set(drawn.tolist())) == 5
            held += 1
    ledger.note(50, tried=tried, held=held)
