"""A data set that is edited between two runs: by id, what was learned and whose turn it is follow the prompts."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgewise
from edgewise import edited, state
from edgewise.edited import compare
from edgewise.errors import DegradedWarning, StateError, StateMismatchError
from edgewise.methods import METHODS, make
from edgewise.pool import PromptPool
from edgewise.stream import PromptStream, Slots, derived_rng
from edgewise.testing.drive import Size, selector_of, steps, stream
from edgewise.testing.world import World
from edgewise.types import MethodState, Requests, Setting, Verdicts
from tests import ledger
from tests.edits import Prompt, edit, pool_of, world_of

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


# -- the stream ----------------------------------------------------------------------------------------------------------


def test_without_an_edit_the_stream_is_that_of_before() -> None:
    """The order as the first version computed it, position by position."""
    size, seed = 37, 5
    stream = PromptStream(size, seed)
    orders = [derived_rng(seed, epoch, purpose="stream").permutation(size) for epoch in range(4)]
    drawn = [int(stream.draw(1, np.zeros(size, dtype=np.bool_))[0]) for _ in range(4 * size)]
    assert drawn == np.concatenate(orders).tolist()
    assert stream.slots.arrays() == {}
    assert (stream.position, stream.epoch, stream.passes(0), stream.passes(200)) == (148, 4, 4.0, 200 / 37)


class Passes:
    """A stream of prompts by name, through edits, beside a plain model of who had their turn in which pass."""

    def __init__(self, names: list[str], seed: int) -> None:
        self.names, self.seed, self.stream = names, seed, PromptStream(len(names), seed)
        self.parked: dict[str, int] = {}
        self.turns: dict[int, list[str]] = {}
        self.there: dict[int, list[set[str]]] = {0: [set(names)]}

    def draw(self, n: int) -> list[str]:
        drawn = []
        for _ in range(n):
            row = int(self.stream.draw(1, np.zeros(len(self.names), dtype=np.bool_))[0])
            epoch = self.stream.slots.where(self.stream.position - 1, len(self.names))[0]
            self.there.setdefault(epoch, [set(self.names)])
            self.turns.setdefault(epoch, []).append(self.names[row])
            drawn.append(self.names[row])
        return drawn

    def edit(self, names: list[str], seed: int | None = None) -> None:
        before, position = self.stream, self.stream.position
        then = {name: row for row, name in enumerate(self.names)}
        at = np.array([then.get(name, -1) for name in names])
        offered = np.array([self.parked.get(name, -1) for name in names])
        offered[at >= 0] = -1
        now = self.seed if seed is None else seed
        after = before.slots.edited(at, offered, position=position, offers=position, seeds=(self.seed, now))
        if not after.same_pass:
            self.parked = dict.fromkeys(self.parked, -1)
        self.parked |= {name: int(after.turns[row]) for name, row in then.items() if name not in names}
        self.parked = {name: slot for name, slot in self.parked.items() if name not in names}
        passes = before.passes(0)
        self.names, self.seed, self.stream = list(names), now, PromptStream(len(names), now)
        arrays = {name: np.array(array) for name, array in after.slots.arrays().items()}
        self.stream.become(position, Slots.restored(arrays, len(names), position))
        assert self.stream.passes(0) == pytest.approx(passes)
        self.there.setdefault(self.stream.epoch, []).append(set(names))

    def require_sound(self) -> None:
        """Nobody twice in a pass, nobody who was there all through a finished pass without a turn."""
        for epoch, turns in self.turns.items():
            assert len(set(turns)) == len(turns), f"pass {epoch}: somebody twice"
            if epoch < self.stream.epoch:
                stayed = self.there[epoch][-1]  # whoever was there when it ended, since whenever
                assert stayed <= set(turns), f"pass {epoch}: {stayed - set(turns)} skipped"


names = st.sets(st.integers(0, 25), min_size=1, max_size=20)


@settings(max_examples=ledger.cases(120, chaos=3000), deadline=None)
@given(
    first=names, seed=st.integers(0, 3),
    rounds=st.lists(st.tuples(st.integers(0, 30), names, st.integers(0, 5), st.booleans()), max_size=6),
)  # fmt: skip
def test_in_every_pass_everybody_has_one_turn(
    first: set[int], seed: int, rounds: list[tuple[int, set[int], int, bool]]
) -> None:
    """Any edits at any time: added prompts are in the pass under way, removed ones are not, nobody twice, nobody skipped."""
    run = Passes([str(i) for i in sorted(first)], seed)
    for drawn, then, shuffle, reseed in rounds:
        run.draw(drawn)
        order = np.random.default_rng(shuffle).permutation(sorted(then))
        run.edit([str(i) for i in order], seed=shuffle if reseed else None)
        run.require_sound()
    run.draw(3 * len(run.names))
    run.require_sound()


@settings(max_examples=ledger.cases(60, chaos=1000), deadline=None)
@given(size=st.integers(1, 20), offers=st.lists(st.integers(0, 45), min_size=1, max_size=4), shuffles=st.randoms())
def test_another_order_of_the_data_set_changes_nothing(size: int, offers: list[int], shuffles: Any) -> None:
    """The sequence of prompts of this and all later passes, and the count of passes to the last bit."""
    moved, still = Passes([str(i) for i in range(size)], 3), Passes([str(i) for i in range(size)], 3)
    for n in offers:
        assert moved.draw(n) == still.draw(n)
        moved.edit(shuffles.sample(moved.names, size))
        assert moved.stream.passes(0) == still.stream.passes(0)
    assert moved.draw(3 * size) == still.draw(3 * size)


def test_the_slots_do_not_grow_with_the_number_of_edits() -> None:
    """In every pass a fifth of the prompts is replaced; of those that left, nothing stays behind when the pass is over."""
    run = Passes([f"0-{i}" for i in range(50)], 0)
    for number in range(1, 200):
        run.draw(30)
        run.edit(run.names[10:] + [f"{number}-{i}" for i in range(10)])
        assert run.stream.slots.size <= 50 + 2 * 10 * 2
        run.turns = {}


def test_slots_that_no_stream_writes_are_refused() -> None:
    run = Passes([str(i) for i in range(9)], 0)
    run.draw(4)
    run.edit([str(i) for i in range(3, 12)])
    sound = run.stream.slots.arrays()
    Slots.restored(sound, 9, 4)
    wrong: list[dict[str, Any]] = [
        {"stream_slots": np.zeros_like(sound["stream_slots"])},
        {"stream_slots": sound["stream_slots"].astype(np.int64)},
        {"stream_edit": sound["stream_edit"][:4]},
        {"stream_edit": np.array([0, 5, 9, -1, 4])},
        {"stream_edit": np.array([0, 0, 99, -1, 4])},
        {"stream_edit": np.array([-1, 0, 9, -1, 4])},
        {"stream_passed": np.array([np.nan])},
        {"stream_passed": np.array([-1.0])},
    ]
    for change in wrong:
        with pytest.raises(ValueError, match=r"slots|numbers|position|passes"):
            Slots.restored({**sound, **change}, 9, 4)
    with pytest.raises(KeyError):
        Slots.restored({"stream_slots": sound["stream_slots"]}, 9, 4)


# -- every method --------------------------------------------------------------------------------------------------------

BASE = World(200, seed=4)
FIRST = [Prompt(f"prompt-{i}", i) for i in range(60)]
TOO_LARGE = {"gps-ppm-20m": "gps-ppm with another size, which would take minutes"}
SMALLER: dict[str, dict[str, int]] = {"gps-ppm": {"gradient_steps": 1, "draws": 2}}
EVERY = [name for name in METHODS if name not in TOO_LARGE]
HOLD_ROWS = {"heard_rows", "memory_rows", "skipped", "bypassed", "open_rows", "belief_open_rows", "belief_rows"}
"""Shared arrays of methods that hold pool rows, all (n,)."""


def built(name: str, **parameters: Any) -> edgewise.Method:
    return make(name, **SMALLER.get(name, {}), **parameters)


def restored(selector: edgewise.Selector, path: Path) -> list[str]:
    """Restore, and hand back what was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        selector.restore(path)
    return [str(one.message) for one in said]


def by_name(pool: PromptPool, held: MethodState) -> dict[str, dict[str, bytes]]:
    """What is kept of each prompt, bit for bit."""
    return {
        prompt_id: {name: np.ascontiguousarray(array[row]).tobytes() for name, array in held.prompts.items()}
        for row, prompt_id in enumerate(pool.ids)
    }


def missing(held: MethodState) -> set[str]:
    """Arrays in which something is not a number."""
    arrays = {**held.prompts, **held.shared}
    return {name for name, array in arrays.items() if array.dtype.kind == "f" and np.isnan(array).any()}


@pytest.mark.parametrize("streaming", [False, True], ids=["steps", "streaming"])
@pytest.mark.parametrize("name", EVERY)
def test_every_method_follows_an_edited_data_set(name: str, streaming: bool, tmp_path: Path) -> None:
    drive: Any = stream if streaming else steps
    world = world_of(BASE, FIRST)
    before = selector_of(built(name), world, Size(batch_size=5))
    drive(before, world, 5)
    before.save(tmp_path / "state")
    rng = np.random.default_rng(ledger.seed())
    now = edit(FIRST, rng, remove=9, add=8, change=5, contents=200, number=1)
    edited_world = world_of(BASE, now)
    after = selector_of(built(name), edited_world, Size(batch_size=5))
    nothing_learned = by_name(after.pool, after.method.state())
    said = restored(after, tmp_path / "state")
    assert len(said) == 1
    assert "8 prompts added, 9 removed (parked), 5 changed (their beliefs start anew)" in said[0]

    then, kept = by_name(before.pool, before.method.state()), by_name(after.pool, after.method.state())
    same = set(FIRST) & set(now)
    assert len(same) == 46
    for prompt in now:
        wanted = then[prompt.name] if prompt in same else nothing_learned[prompt.name]
        assert kept[prompt.name] == wanted, prompt
    tickets = {t.seq: t for t in before.in_flight if Prompt(t.prompt_id, int(t.prompt_id.split("-")[-1])) in same}
    assert [(t.seq, t.prompt_id) for t in after.in_flight] == [(t.seq, t.prompt_id) for t in tickets.values()]
    assert all(after.pool.ids[t.row] == t.prompt_id for t in after.in_flight)
    drive(after, edited_world, 6)
    held = after.method.state()
    assert missing(held) <= missing(before.method.state()) | missing(built_state(name, len(now)))
    for array in (array for key, array in held.shared.items() if key in HOLD_ROWS and len(array)):
        assert 0 <= array.min() <= array.max() < len(now)
    after.save(tmp_path / "again")  # and what it then is can be saved and taken up as it is
    twin = selector_of(built(name), edited_world, Size(batch_size=5))
    assert restored(twin, tmp_path / "again") == []
    drive(after, edited_world, 2)
    drive(twin, edited_world, 2)
    ours, theirs = after.method.state(), twin.method.state()
    for part in ("prompts", "shared"):
        for key, array in getattr(ours, part).items():
            np.testing.assert_array_equal(array, getattr(theirs, part)[key], err_msg=key)
    ledger.note(50, tried=len(now), held=len(now))


def built_state(name: str, size: int) -> MethodState:
    method = built(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)
        method.start(Setting(pool_size=size, batch_size=5, group_size=4, total_steps=40))
    return method.state()


FOLLOWS_THE_STREAM = (
    "hive", "hive-eq", "greso", "dapo", "uniform", "mopps", "mopps-math", "mopps-mean", "adarft", "dps", "dps-math", "prepo",
    "odf", "lilo", "speed", "pilot-commit", "reinforce-ada", "hora", "lze", "depo", "pcl", "knapsack", "vip",
)  # fmt: skip
"""The others draw from the whole pool, row by row: in another order of rows they draw others, with the same chances."""


@pytest.mark.parametrize("name", FOLLOWS_THE_STREAM)
def test_a_data_set_in_another_order_gives_the_same_prompts(name: str, tmp_path: Path) -> None:
    """Methods that take the stream's prompts go on to the very prompts of the run that was not touched."""
    world = world_of(BASE, FIRST)
    before = selector_of(built(name), world, Size(batch_size=5))
    steps(before, world, 3)
    before.save(tmp_path / "state")
    moved = world_of(BASE, [FIRST[i] for i in np.random.default_rng(1).permutation(len(FIRST))])
    after = selector_of(built(name), moved, Size(batch_size=5))
    assert len(restored(after, tmp_path / "state")) == 1

    def asked(selector: edgewise.Selector, world: World) -> list[list[list[tuple[str, int]]]]:
        return [[[(selector.pool.ids[row], n) for row, n in one] for one in step] for step in steps(selector, world, 12)]

    assert asked(after, moved) == asked(before, world)
    ledger.note(50, tried=1, held=1)


# -- a plain model -------------------------------------------------------------------------------------------------------


class Counting(edgewise.Method):
    """Takes the stream as it is, and counts visits and passes of each prompt."""

    name = "counting"

    def __init__(self, *, bonus: int = 0) -> None:
        self.bonus = bonus

    def start(self, setting: Setting) -> None:
        self.group_size = setting.group_size
        self.visits = np.zeros(setting.pool_size, dtype=np.int64)
        self.passes = np.full(setting.pool_size, 0.5)

    def propose(self, room: int, step: Any) -> Requests:
        return Requests.of(step.draw(room), self.group_size)

    def observe(self, groups: Any, step: Any) -> None:
        self.visits[groups.rows] += 1
        self.passes[groups.rows] += np.nansum(groups.rewards, axis=1)

    def parameters(self) -> dict[str, Any]:
        return {"bonus": self.bonus}

    def state(self) -> MethodState:
        return MethodState(prompts={"visits": self.visits, "passes": self.passes})

    def restore(self, held: MethodState) -> None:
        self.visits, self.passes = held.prompts["visits"].copy(), held.prompts["passes"].copy()


def told(selector: edgewise.Selector, world: World, n: int) -> list[str]:
    """`n` steps; the names of the prompts, in the order in which they were asked for."""
    return [selector.pool.ids[row] for step in steps(selector, world, n) for rounds in step for row, _ in rounds]


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


class Halves(Counting):
    """Asks for half of a group, and for the other half in the next step."""

    def propose(self, room: int, step: Any) -> Requests:
        first = step.streaming or step.round == 0
        return Requests.of(step.draw(room if first else 0), self.group_size // 2)

    def judge(self, groups: Any, step: Any) -> Verdicts:
        left = np.maximum(self.group_size - groups.asked, 0)
        return Verdicts(left == 0, tuple("waits" if n else "" for n in left), hold=left)


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


@pytest.mark.parametrize("name", EVERY)
def test_adapt_takes_another_seed_group_size_and_batch(name: str, tmp_path: Path) -> None:
    world = world_of(BASE, FIRST)
    before = selector_of(built(name), world, Size(batch_size=5))
    steps(before, world, 4)
    before.save(tmp_path / "state")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)
        settings: dict[str, Any] = {"batch_size": 6, "group_size": 8, "seed": 9, "total_steps": 40, "on_problem": "strict"}
        plain = edgewise.Selector(built(name), world.pool, **settings)
        after = edgewise.Selector(built(name), world.pool, resume="adapt", **settings)
    with pytest.raises(StateMismatchError, match=r"group_size: saved 4, this run 8\n  seed: saved 0, this run 9"):
        plain.restore(tmp_path / "state")
    said = restored(after, tmp_path / "state")
    assert any("batch_size was 5 and is 6 now" in line for line in said)
    assert any("seed was 0 and is 9 now: the pass under way keeps its order" in line for line in said)
    assert by_name(after.pool, after.method.state()) == by_name(before.pool, before.method.state())
    steps(after, world, 4)
    assert missing(after.method.state()) <= missing(before.method.state()) | missing(built_state(name, 60))
    ledger.note(10, tried=1, held=1)
    ledger.note(51, tried=1, held=1)


OTHER: list[tuple[str, dict[str, Any]]] = [
    ("mopps", {"decay": 0.9}), ("vip", {"memory": 7}), ("bots", {"decay": 0.5}), ("bots", {"decay": 0.01}),
    ("dump", {"window": 9}), ("depo", {"window": 5}), ("adarft", {"rest": 3}), ("ads", {"clusters": 3}),
    ("gps", {"combine": "none"}), ("gps-ppm", {"draws": 3}), ("hive", {"stage2": "off"}), ("vcrl", {"memory_size": 5}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "other"), OTHER, ids=[f"{name}-{next(iter(other))}" for name, other in OTHER])
def test_adapt_takes_other_hyper_parameters(name: str, other: dict[str, Any], tmp_path: Path) -> None:
    """Per-prompt state stays where it fits; what a method cannot go on from starts anew, and is said."""
    world = world_of(BASE, FIRST)
    few = SMALLER.get(name, {})
    before = selector_of(make(name, **few), world, Size(batch_size=5))
    steps(before, world, 6)
    before.save(tmp_path / "state")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)
        method = make(name, **{**few, **other})
        after = edgewise.Selector(
            method, world.pool, batch_size=5, group_size=4, total_steps=40, on_problem="strict", resume="adapt"
        )
    said = restored(after, tmp_path / "state")
    key, value = next(iter(other.items()))
    assert f"hyper-parameters of {name}: {key} was {before.method.parameters()[key]!r} and is {value!r} now" in "\n".join(said)
    then, now = before.method.state().prompts, after.method.state().prompts
    for array in then.keys() & now.keys():
        if then[array].shape == now[array].shape:
            np.testing.assert_array_equal(then[array], now[array])
    steps(after, world, 6)
    ledger.note(10, tried=1, held=1)


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


def test_fewer_prompts_than_the_batch_after_an_edit_are_a_smaller_batch(tmp_path: Path) -> None:
    """Every method: 12 prompts are left for a batch of 14. Said once, every batch has distinct prompts, nothing fails."""
    held = 0
    prompts = FIRST[:22]
    world, few = world_of(BASE, prompts), world_of(BASE, prompts[:12])
    for name in EVERY:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegradedWarning)
            before = selector_of(built(name), world, Size(batch_size=14))
            steps(before, world, 2)
            before.save(tmp_path / "state")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            after = edgewise.Selector(built(name), few.pool, batch_size=14, group_size=4, total_steps=40)
        assert any("the pool holds 12 prompts for batch_size 14: every batch will be short" in str(w.message) for w in said)
        restored(after, tmp_path / "state")
        for step in steps(after, few, 3):
            for rounds in step:
                rows = [row for row, _ in rounds]
                assert len(set(rows)) == len(rows) <= 12, name
        assert after.metrics.get("degraded_total", 0.0) == 0.0, (name, after.metrics)
        held += 1
    ledger.note(43, tried=len(EVERY), held=held)
    with pytest.raises(edgewise.EdgewiseError, match="the pool must hold at least one batch"):
        selector_of(built("dapo"), few, Size(batch_size=14))


# -- what methods share ----------------------------------------------------------------------------------------------------


def taken_over(name: str, prompts: list[Prompt], now: list[Prompt], tmp_path: Path, n: int = 8, **parameters: Any) -> Any:
    """(method before, method after, world after): `n` steps of a method, then the edit."""
    world, after = world_of(BASE, prompts), world_of(BASE, now)
    one = selector_of(built(name, **parameters), world, Size(batch_size=5))
    steps(one, world, n)
    one.save(tmp_path / "state")
    other = selector_of(built(name, **parameters), after, Size(batch_size=5))
    restored(other, tmp_path / "state")
    return one, other, after


def test_categories_that_are_left_keep_what_was_learned_of_them(tmp_path: Path) -> None:
    """Of four categories (the content modulo 4) one leaves the data set; a year later, it is there again."""
    for name, array in (("sec", "arm_q"), ("dump", "arm_counts")):
        left = [p for p in FIRST[::-1] if p.content % 4 != 1]
        before, after, world = taken_over(name, FIRST, left, tmp_path)
        learned = dict(zip(before.method.state().shared["labels"].tolist(), before.method.state().shared[array], strict=True))
        heard = before.method.state().shared["heard"]
        assert len(learned) == 4
        steps(after, world, 1)  # what was heard before is credited first: of the category that is gone, nothing
        now = after.method.state().shared
        assert now["labels"].tolist() == [0, 2, 3]
        if name == "dump":  # counts of rollouts: those of before and those heard since
            assert all(count >= learned[label] for label, count in zip([0, 2, 3], now[array], strict=True))
            assert now[array].sum() <= sum(learned[label] for label in (0, 2, 3)) + len(heard)
        after.save(tmp_path / "left")
        again = selector_of(built(name), world_of(BASE, FIRST), Size(batch_size=5))
        restored(again, tmp_path / "left")
        steps(again, world_of(BASE, FIRST), 3)
        assert again.method.state().shared["labels"].tolist() == [0, 1, 2, 3]


def test_sec_keeps_its_values_by_label() -> None:
    one, other = make("sec"), make("sec")
    for method, size in ((one, 8), (other, 9)):
        method.start(Setting(pool_size=size, batch_size=2, group_size=2))
    one._labels, one._cursors = np.array([0, 3, 7]), np.array([5, 1, 2])
    one.begin(3)
    one._q = np.array([0.1, 0.2, 0.3])
    one._heard_rows, one._heard = np.array([0, 5, 5, 7]), np.array([0.5, 1.0, 1.5, 2.0])
    rows = np.array([7, -1, 5, 1, 2, 3, 4, 6, -1])
    other.restore(other.adapt(one.state(), rows))
    assert other._heard_rows.tolist() == [2, 2, 0]
    assert other._heard.tolist() == [1.0, 1.5, 2.0]
    other._carry_over(np.array([3, 5, 7]))
    assert other._q.tolist() == [0.2, 0.0, 0.3]
    assert other._cursors.tolist() == [0, 0, 0]


def test_gain_rl_keeps_its_order_and_ranks_anew_where_prompts_came(tmp_path: Path) -> None:
    keep = [p for p in FIRST[::-1] if p.content % 3]
    before, after, _ = taken_over("gain-rl", FIRST, keep, tmp_path, loop=5)
    then, now = before.method.state().shared, after.method.state().shared
    by_rank = [FIRST[i].name for i in np.argsort(then["rank"])]
    assert [keep[i].name for i in np.argsort(now["rank"])] == [name for name in by_rank if name in {p.name for p in keep}]
    assert sorted(now["rank"].tolist()) == list(range(40))
    ahead = sum(then["rank"][i] < then["centre"][0] for i in range(60) if FIRST[i] in keep)
    assert now["centre"][0] == pytest.approx(min(ahead, 39))
    more = [*FIRST, *(Prompt(f"n-{i}", 100 + i) for i in range(30))]
    _, after, world = taken_over("gain-rl", FIRST, more, tmp_path, loop=5)
    assert len(after.method.state().shared["rank"]) == 0
    steps(after, world, 1)
    assert sorted(after.method.state().shared["rank"].tolist()) == list(range(90))


def test_a_memory_of_prompts_follows_them(tmp_path: Path) -> None:
    now = [p for p in FIRST[::-1] if p.content % 5] + [Prompt(f"n-{i}", 100 + i) for i in range(4)]
    for name in ("prompt-replay", "vcrl"):
        before, after, _ = taken_over(name, FIRST, now, tmp_path)
        columns = [key for key in before.method.state().shared if key.startswith("memory_") and key != "memory_rows"]

        def held(selector: edgewise.Selector, columns: list[str] = columns) -> dict[str, list[float]]:
            shared = selector.method.state().shared
            rows = shared["memory_rows"].tolist()
            assert rows == sorted(rows)
            return {selector.pool.ids[row]: [float(shared[key][i]) for key in columns] for i, row in enumerate(rows)}

        then = held(before)
        assert len(then) >= 5
        assert held(after) == {name: values for name, values in then.items() if name in {p.name for p in now}}


def test_a_gaussian_process_forgets_what_prompts_that_left_had_taught(tmp_path: Path) -> None:
    """With all prompts still there the predictions are the same, to the bit."""
    before, after, world = taken_over("vip", FIRST, FIRST[::-1], tmp_path)
    rows = np.arange(60)

    def latent(selector: edgewise.Selector, world: World) -> Any:
        view = selector._streaming.view
        view.aim(99, 99, world.signals)
        return selector.method._parts.belief._posterior(rows, view)[0]

    np.testing.assert_array_equal(latent(after, world)[::-1], latent(before, world_of(BASE, FIRST)))
    few = FIRST[20:]
    before, after, world = taken_over("vip", FIRST, few, tmp_path, memory=17)
    then, now = (s.method._parts.belief._shared() for s in (before, after))
    kept = (then["numbers"] > 0) & (then["rows"] >= 20)
    assert now["rows"][kept].tolist() == (then["rows"][kept] - 20).tolist()
    assert now["weights"][kept].tolist() == then["weights"][kept].tolist()
    assert not now["numbers"][~kept].any()
    assert not now["weights"][~kept].any()


def test_ads_begins_its_schedule_again(tmp_path: Path) -> None:
    before, after, world = taken_over("ads", FIRST, FIRST[5:], tmp_path, clusters=4)
    assert len(before.method.state().shared["sizes"]) == 4
    assert len(after.method.state().shared["sizes"]) == 0
    steps(after, world, 2)  # strict: nothing is wrong with embeddings of an edited data set
    assert after.method.state().shared["sizes"].sum() == 55


def test_embeddings_of_an_edited_data_set_are_known_again_afterwards(tmp_path: Path) -> None:
    """gps: the scale stays that of the first pool; a later resume compares with the vectors of the edited one."""
    now = FIRST[25:] + [Prompt(f"n-{i}", 100 + i) for i in range(40)]
    before, after, world = taken_over("gps", FIRST, now, tmp_path)
    np.testing.assert_array_equal(before.method.state().shared["belief_scale"], after.method.state().shared["belief_scale"])
    steps(after, world, 2)
    after.save(tmp_path / "later")
    again = selector_of(built("gps"), world, Size(batch_size=5))
    restored(again, tmp_path / "later")
    assert steps(again, world, 2) == steps(after, world, 2)
    strange = world_of(World(200, seed=77), now)
    strange.pool = world.pool
    wrong = selector_of(built("gps"), strange, Size(batch_size=5))
    restored(wrong, tmp_path / "later")
    with pytest.raises(edgewise.EdgewiseError, match="these are not the embeddings of the saved state"):
        steps(wrong, strange, 1)


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
