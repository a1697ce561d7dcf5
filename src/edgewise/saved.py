"""What a selector saves and how it becomes that again: between `Selector`, which lives, and `state`, which writes files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from edgewise import state
from edgewise._version import __version__
from edgewise.errors import ConfigError, EdgewiseError, StateError, StateMismatchError, StateVersionError
from edgewise.metrics import EntropyPremise
from edgewise.types import Array, MethodState, Ticket
from edgewise.waiting import Retired, Waiting

if TYPE_CHECKING:
    from edgewise.selector import Selector


def require_savable(selector: Selector) -> None:
    """Find out before the first step, not at the first commit, that the method could not be saved. Raises ConfigError."""
    name, size = selector.method.name, len(selector.pool)
    for key, value in selector.method.parameters().items():
        plain = value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))
        if not plain:
            raise ConfigError(
                f"{name}.parameters() must be finite numbers, text, True, False or None, got {key}={value!r}; they are "
                "compared with those of a saved state."
            )
    held = selector.method.state()
    for key, array in (*held.prompts.items(), *held.shared.items()):
        if np.asarray(array).dtype.kind not in "biuf":
            raise ConfigError(
                f"{name}.state() must hold bool, integer and float arrays, got {np.asarray(array).dtype} for {key!r}."
            )
    for key, array in held.prompts.items():
        if array.shape[:1] != (size,):
            raise ConfigError(
                f"{name}.state().prompts must have one entry a prompt, shape ({size}, ...), got {array.shape} for {key!r}. "
                "Put what is not per prompt into `shared`."
            )


def content(selector: Selector) -> tuple[dict[str, Any], dict[str, Array]]:
    """Header and arrays of a saved state. Raises ConfigError inside a step."""
    if selector._current is not None:
        raise ConfigError("Selector.save(): a step is open; save between steps (a step commits when its block ends).")
    held = selector.method.state()
    arrays: dict[str, Array] = {f"method/prompts/{k}": v for k, v in held.prompts.items()}
    arrays |= {f"method/shared/{k}": np.asarray(v) for k, v in held.shared.items()}
    ours = selector._premise.arrays() | selector._waiting.arrays() | selector._retired.arrays()
    arrays |= {f"selector/{k}": v for k, v in ours.items()}
    header = {
        "edgewise": __version__,
        "numpy": np.__version__,
        "run_id": selector.run_id,
        "identity": _identity(selector),
        "batch_size": selector.batch_size,
        "step": selector._number,
        "position": selector._stream.position,
        "next_seq": selector._next_seq,
        "policy_version": selector._streaming.view.policy_version,
        "totals": selector._totals,
        "metrics": {name: float(value) for name, value in selector.metrics.items() if math.isfinite(value)},
        "in_flight": [asdict(t) for t in selector.in_flight],
        "waiting": selector._waiting.header(),
    }
    return header, arrays


def restore(selector: Selector, path: str | os.PathLike[str]) -> None:
    """See `Selector.restore`. Everything is read and checked before anything is changed."""
    if selector._current is not None:
        raise ConfigError("Selector.restore(): a step is open; restore between steps.")
    header, arrays = state.load(path)
    state.require_same(header.get("identity", {}), _identity(selector), f"The saved state {path}")
    pool, premise = selector.pool, EntropyPremise()
    try:
        tickets = [Ticket(**t) for t in header["in_flight"]]
        ours = _below("selector/", arrays)
        waiting, retired = Waiting.restored(header.get("waiting", []), ours), Retired.restored(ours)
        known = [*tickets, *(waiting[seq].first for seq in waiting.seqs)]
        strangers = [t.prompt_id for t in known if not 0 <= t.row < len(pool) or pool.ids[t.row] != t.prompt_id]
        number, position, next_seq = (int(header[name]) for name in ("step", "position", "next_seq"))
        version = int(header.get("policy_version", max((t.policy_version for t in tickets), default=0)))
        run_id = str(header["run_id"])
        totals, metrics = ({str(name): float(value) for name, value in header[of].items()} for of in ("totals", "metrics"))
        if not totals.keys() <= selector._totals.keys():
            raise ValueError(f"there are no totals of {sorted(totals.keys() - selector._totals.keys())}")
        if not strangers:
            _require_sound(tickets, waiting, retired, len(pool), number, position, next_seq)
        numpy_then, batch_size = str(header["numpy"]), int(header["batch_size"])
        premise.restore(ours)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise StateError(f"{path} lacks something that a selector keeps: {error!r}. Use an older state.") from error
    if strangers:
        raise StateError(f"{path} has a ticket for {strangers[0]!r}, which is not the prompt of its row. Use an older state.")
    if numpy_then.split(".")[0] != np.__version__.split(".")[0]:
        selector._warn(f"The state was saved under numpy {numpy_then}, this is {np.__version__}: draws may differ.")
    if batch_size != selector.batch_size:
        selector._warn(f"batch_size was {batch_size} and is {selector.batch_size} now: the next batches will differ.")
    _restore_method(selector, path, arrays)
    selector.run_id = run_id
    selector._become(number, position, next_seq, version, tickets, totals, metrics, premise, waiting, retired)


def _require_sound(
    in_flight: list[Ticket], waiting: Waiting, retired: Retired, pool_size: int, number: int, position: int, next_seq: int
) -> None:
    """Raise ValueError for what no selector writes: it would fail, or go wrong in silence, in the middle of a later step."""
    if min(number, position, next_seq) < 0:
        raise ValueError(f"step {number}, position {position}, next_seq {next_seq} must not be negative")
    begun = [waiting[seq] for seq in waiting.seqs]
    for ticket in [*in_flight, *(group.first for group in begun)]:
        counts = (ticket.seq, ticket.row, ticket.step, ticket.round, ticket.policy_version, ticket.rollouts)
        if any(type(count) is not int for count in counts) or not 0 <= ticket.seq < next_seq or ticket.rollouts < 1:
            raise ValueError(f"there is no such ticket: {ticket}")
        if ticket.predicted_pass_rate is not None and not math.isfinite(ticket.predicted_pass_rate):
            raise ValueError(f"there is no such prediction: {ticket}")
    if len({ticket.seq for ticket in in_flight}) != len(in_flight):
        raise ValueError("a ticket is in flight twice")
    going_on = {ticket.seq: ticket for ticket in in_flight if ticket.continues is not None}
    asked = {group.asked: (group.first.row, group.wanted, group.first.seq) for group in begun if group.asked is not None}
    if asked != {seq: (ticket.row, ticket.rollouts, ticket.continues) for seq, ticket in going_on.items()}:
        raise ValueError("groups that wait and the tickets that continue them do not agree")
    rows = [ticket.row for ticket in in_flight if ticket.continues is None] + waiting.rows.tolist()
    if len(set(rows)) != len(rows):
        raise ValueError("a prompt is in flight or waits twice")
    if not all(0 <= row < pool_size for row in retired.rows.tolist()):
        raise ValueError(f"a retired row is none of the {pool_size}")
    if retired.latest > max(position, next_seq) // pool_size + 1:
        raise ValueError("a prompt is retired for longer than a pass")


def continue_from(selector: Selector, snapshots: state.Snapshots, resume: str) -> None:
    """Become the newest readable state of the directory, if there is one; with resume="fresh" set all of them aside.

    Raises StateMismatchError and StateVersionError at once: such a file is sound, and not ours to pass over.
    """
    found = snapshots.found()
    if resume == "fresh":
        snapshots.set_aside(found)
        return
    broken: list[str] = []
    for file in found:
        try:
            restore(selector, file)
        except (StateMismatchError, StateVersionError):
            raise
        except StateError as error:
            broken.append(str(error))
            continue
        for message in broken:
            selector._warn(f"{message} Continuing from {file.name} instead: the steps after {selector.step_number} are lost.")
        return
    if broken:
        listed = "\n  ".join(broken)
        raise StateError(f"No readable state among the saved ones:\n  {listed}\nresume='fresh' starts anew.")


def _identity(selector: Selector) -> dict[str, Any]:
    """What must be equal between a saved state and this run."""
    return {
        "method": selector.method.name,
        "parameters": selector.method.parameters(),
        "pool_digest": selector.pool.digest,
        "pool_size": len(selector.pool),
        "group_size": selector.group_size,
        "seed": selector.seed,
    }


def _restore_method(selector: Selector, path: str | os.PathLike[str], arrays: Mapping[str, Array]) -> None:
    """Give the method its saved state; if it refuses, or fails halfway, the state it had."""
    method, size = selector.method, len(selector.pool)
    prompts, shared = _below("method/prompts/", arrays), _below("method/shared/", arrays)
    for name, array in prompts.items():
        if array.shape[:1] != (size,):
            raise StateError(f"{path} must keep {size} entries of {name!r}, has {array.shape}. Use a state of this pool.")
    held = method.state()
    before = MethodState(
        prompts={name: np.array(array) for name, array in held.prompts.items()},
        shared={name: np.array(array) for name, array in held.shared.items()},
    )
    try:
        method.restore(MethodState(prompts=prompts, shared=shared))
    except Exception as error:
        method.restore(before)
        if isinstance(error, EdgewiseError):
            raise
        raise StateError(f"{path} lacks something this method keeps: {error!r}. Use a state that it wrote.") from error


def _below(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays whose name begins with `prefix`, named without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
