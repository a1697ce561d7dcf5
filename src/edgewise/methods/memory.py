"""A bounded memory of prompts to roll out again, by priority. Shared by VCRL and Prompt Replay.

It holds prompts, never responses: what is replayed is rolled out anew by the current policy. A few plain arrays, saved whole.
"""

from __future__ import annotations

import numpy as np

from edgewise.choosers.rank import TopK
from edgewise.errors import StateMismatchError
from edgewise.method import StepView, renumbered
from edgewise.types import Array, Bools, Floats, Ints

_COLUMNS = {"rows": np.int64, "priority": np.float64, "reused": np.int64, "last": np.int64, "asked": np.bool_}


class PromptMemory:
    """At most `capacity` prompts with what is needed to choose among them: columns of equal length, by rising row."""

    rows: Ints
    """(m,) distinct pool rows."""
    priority: Floats
    """(m,) finite; higher is replayed first."""
    reused: Ints
    """(m,) times replayed so far."""
    last: Ints
    """(m,) step of the last rollouts."""
    asked: Bools
    """(m,) True while a replay is in flight."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._become({name: np.empty(0, dtype=kind) for name, kind in _COLUMNS.items()})

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, rows: Ints) -> Ints:
        """(n,) positions of `rows` in the memory, -1 for those it does not hold."""
        if len(self) == 0:
            return np.full(len(rows), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.rows, rows), len(self) - 1)
        return np.where(self.rows[at] == rows, at, -1)

    def put(self, rows: Ints, priority: Floats, reused: Ints, last: int, rng: np.random.Generator) -> None:
        """Insert these prompts or overwrite them; beyond the capacity those of lowest priority are forgotten, ties by chance.

        rows: (n,) distinct.  priority: (n,) finite.  reused: (n,).  last: step of their rollouts.
        """
        none = np.zeros(len(rows))
        fresh = {"rows": rows, "priority": priority, "reused": reused, "last": none + last, "asked": none}
        others = ~np.isin(self.rows, rows)
        merged: dict[str, Array] = {
            name: np.concatenate([getattr(self, name)[others], fresh[name]]).astype(kind) for name, kind in _COLUMNS.items()
        }
        if len(merged["rows"]) > self.capacity:
            best = TopK()(merged["priority"], self.capacity, rng)
            merged = {name: column[best] for name, column in merged.items()}
        order = np.argsort(merged["rows"])
        self._become({name: column[order] for name, column in merged.items()})

    def remove(self, rows: Ints) -> None:
        """Forget these prompts, held or not."""
        others = ~np.isin(self.rows, rows)
        self._become({name: getattr(self, name)[others] for name in _COLUMNS})

    def best(self, most: int, ready: Bools, rng: np.random.Generator) -> Ints:
        """(n,) at most `most` rows of highest priority among those `ready` (m,), best first, ties by chance."""
        held = np.flatnonzero(ready)
        return self.rows[held[TopK()(self.priority[held], most, rng)]]

    def ask(self, rows: Ints) -> None:
        """Note that a replay of these prompts, all held, is in flight."""
        asked = self.asked.copy()
        asked[self.find(rows)] = True
        self.asked = asked

    def remove_unanswered(self) -> None:
        """Forget prompts whose replay came to nothing: one that always fails would be asked for in every step."""
        self.remove(self.rows[self.asked])

    def state(self) -> dict[str, Array]:
        """Arrays to save."""
        return {f"memory_{name}": getattr(self, name) for name in _COLUMNS}

    def restore(self, arrays: dict[str, Array]) -> None:
        """The inverse. Raises StateMismatchError."""
        missing = [f"memory_{name}" for name in _COLUMNS if f"memory_{name}" not in arrays]
        if missing:
            raise StateMismatchError(
                f"PromptMemory.restore: the state lacks {', '.join(missing)}. Use a state that the same method wrote."
            )
        self._become({name: np.array(arrays[f"memory_{name}"], dtype=kind) for name, kind in _COLUMNS.items()})

    def adapted(self, arrays: dict[str, Array], rows: Ints) -> dict[str, Array]:
        """The arrays after an edit of the data set, without prompts that are gone or changed. rows: as in `Method.adapt`."""
        now = renumbered(arrays["memory_rows"], rows)
        kept = np.flatnonzero(now >= 0)
        order = kept[np.argsort(now[kept])]
        return {f"memory_{name}": arrays[f"memory_{name}"][order] for name in _COLUMNS} | {"memory_rows": now[order]}

    def _become(self, columns: dict[str, Array]) -> None:
        for name, column in columns.items():
            setattr(self, name, column)


def draw_beside(step: StepView, most: int, taken: Ints) -> Ints:
    """The next at most `most` rows of the stream that are not among `taken`, which were picked past the stream."""
    found = np.empty(0, dtype=np.int64)
    while len(found) < most:
        rows = step.draw(most - len(found))
        if len(rows) == 0:
            break
        found = np.concatenate([found, rows[~np.isin(rows, taken)]])
    return found
