"""Every method when the data set is edited between two runs, or goes on under other settings."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgewise
from edgewise.errors import DegradedWarning, StateMismatchError
from edgewise.methods import make
from edgewise.testing.drive import Size, selector_of, steps, stream
from edgewise.testing.world import World
from edgewise.types import MethodState, Setting
from tests import ledger
from tests.edits import BASE, EVERY, FIRST, SMALLER, Prompt, built, by_name, edit, missing, restored, world_of

HOLD_ROWS = {"heard_rows", "memory_rows", "skipped", "bypassed", "open_rows", "belief_open_rows", "belief_rows"}
"""Shared arrays of methods that hold pool rows, all (n,)."""


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


# -- other settings ----------------------------------------------------------------------------------------------------


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
