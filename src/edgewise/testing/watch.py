"""A method under watch: it does what the method inside does, and writes down whatever the contract forbids."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np

from edgewise.method import Method, StepView
from edgewise.types import GROUP_ARRAYS, Array, Floats, Groups, Ints, MethodState, Requests, Setting, Signal, Ticket, Verdicts

Rule: TypeAlias = Literal["input", "belief", "visited", "plain"]
"""What was broken: something given was changed; propose or judge changed what is kept per prompt; observe wrote at other rows;
the state is not made of plain arrays of lasting shape."""

T = TypeVar("T")


class _View:
    """The step as the method sees it; remembers what it handed out, to see whether it stays so."""

    def __init__(self, step: StepView) -> None:
        self._step = step
        self.given: list[tuple[str, Array, Array]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def draw(self, n: int) -> Ints:
        return self._remember("the rows of step.draw", self._step.draw(n))

    def signal(self, name: Signal, rows: Ints) -> Floats:
        self._remember(f"the rows asked for in step.signal({name!r})", rows)
        return self._remember(f"the values of step.signal({name!r})", self._step.signal(name, rows))

    def _remember(self, what: str, array: Array) -> Array:
        self.given.append((what, array, np.array(array)))
        return array


class Watched(Method):
    """Wraps a method. `broken` has one line for each breach, by rule; `asked` has every request: its rows and rollouts;
    `learned` the tickets of every group that `observe` was given."""

    def __init__(self, inner: Method) -> None:
        self.inner = inner
        self.name = inner.name  # type: ignore[misc]
        self.needs, self.scope, self.max_staleness = inner.needs, inner.scope, inner.max_staleness
        self.arrival_order_matters = inner.arrival_order_matters
        self.broken: dict[Rule, list[str]] = {"input": [], "belief": [], "visited": [], "plain": []}
        self.asked: list[tuple[list[int], list[int]]] = []
        self.learned: list[Ticket] = []

    def start(self, setting: Setting) -> None:
        self.inner.start(setting)
        self._size = setting.pool_size
        self._forms: dict[str, tuple[Any, ...]] = {}
        self._check_plain()

    def propose(self, room: int, step: StepView) -> Requests:
        view = _View(step)
        requests = self._belief_stays("propose", lambda: self.inner.propose(room, view))
        for what, array, before in view.given:
            if not np.array_equal(array, before, equal_nan=True):
                self.broken["input"].append(f"propose changed {what} in place")
        self.asked.append((requests.rows.tolist(), requests.rollouts.tolist()))
        return requests

    def judge(self, groups: Groups, step: StepView) -> Verdicts:
        return self._groups_stay("judge", groups, lambda: self._belief_stays("judge", lambda: self.inner.judge(groups, step)))

    def observe(self, groups: Groups, step: StepView) -> None:
        before = _copies(self.inner.state().prompts)
        self.learned += groups.tickets
        if len(np.unique(groups.rows)) < len(groups) or not groups.valid.any(axis=1).all():
            self.broken["input"].append(
                f"observe was given a prompt twice, or a group without a reward: {groups.rows.tolist()}"
            )
        self._groups_stay("observe", groups, lambda: self.inner.observe(groups, step))
        elsewhere = np.ones(self._size, dtype=np.bool_)
        elsewhere[groups.rows] = False
        for name, rows in _changed(before, self.inner.state().prompts).items():
            wrong = rows[elsewhere[rows]]
            if len(wrong):
                self.broken["visited"].append(
                    f"observe was given rows {np.unique(groups.rows).tolist()} and wrote {name!r} at {wrong[:5].tolist()} too"
                )
        self._check_plain()

    def parameters(self) -> dict[str, bool | int | float | str | None]:
        return self.inner.parameters()

    def state(self) -> MethodState:
        return self.inner.state()

    def restore(self, state: MethodState) -> None:
        self.inner.restore(state)

    # -- what is watched -----------------------------------------------------------------------------------------------

    def _belief_stays(self, what: str, call: Callable[[], T]) -> T:
        before = _copies(self.inner.state().prompts)
        answer = call()
        for name, rows in _changed(before, self.inner.state().prompts).items():
            self.broken["belief"].append(f"{what} changed the per-prompt array {name!r} at rows {rows[:5].tolist()}")
        return answer

    def _groups_stay(self, what: str, groups: Groups, call: Callable[[], T]) -> T:
        before = {name: np.array(getattr(groups, name)) for name in GROUP_ARRAYS}
        answer = call()
        for name, array in before.items():
            if not np.array_equal(array, getattr(groups, name), equal_nan=True):
                self.broken["input"].append(f"{what} changed groups.{name} in place")
        return answer

    def _check_plain(self) -> None:
        held = self.inner.state()
        for name, array in (*held.prompts.items(), *held.shared.items()):
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
                kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
                self.broken["plain"].append(f"state() holds {kind} for {name!r}, not an array of bools, integers or floats")
        for name, array in held.prompts.items():
            form = (array.shape, array.dtype)
            if array.shape[:1] != (self._size,):
                self.broken["plain"].append(f"state().prompts[{name!r}] has shape {array.shape} for {self._size} prompts")
            if self._forms.setdefault(name, form) != form:
                self.broken["plain"].append(f"state().prompts[{name!r}] was {self._forms[name]} and became {form}")
        if self._forms.keys() != held.prompts.keys():
            self.broken["plain"].append(f"state().prompts held {sorted(self._forms)} and now {sorted(held.prompts)}")


def held_bytes(method: Method) -> int:
    """Bytes of everything that a method holds on to, inside `state()` or not: all that can be reached from it."""
    not_data = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)
    seen: set[int] = set()
    todo: list[Any] = [method]
    total = 0
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, not_data):
            continue
        seen.add(id(thing))
        total += sys.getsizeof(thing)
        todo += gc.get_referents(thing)
        if isinstance(thing, np.ndarray) and thing.base is not None:
            todo.append(thing.base)
    return total


def _copies(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.array(array) for name, array in arrays.items()}


def _changed(before: Mapping[str, Array], after: Mapping[str, Array]) -> dict[str, Ints]:
    """By name, the rows at which two sets of per-prompt arrays differ; all rows where the shape does."""
    found = {}
    for name, old in before.items():
        new = after.get(name)
        if new is None or new.shape != old.shape:
            found[name] = np.arange(len(old))
            continue
        same = (old == new) | ((old != old) & (new != new))
        rows = np.flatnonzero(~same.all(axis=tuple(range(1, same.ndim))))
        if len(rows):
            found[name] = rows
    return found
