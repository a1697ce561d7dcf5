"""What a selector saves and how it becomes that again: between `Selector`, which lives, and `state` and `directory`."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgewise import edited, state
from edgewise._version import __version__
from edgewise.directory import UNKNOWN, History, RunDirectory, differing
from edgewise.errors import ConfigError, DegradedWarning, EdgewiseError, StateError, StateMismatchError
from edgewise.method import Method
from edgewise.metrics import EntropyPremise
from edgewise.stream import Slots
from edgewise.tickets import unpacked
from edgewise.types import Array, MethodState, Ticket
from edgewise.waiting import Retired, Waiting

if TYPE_CHECKING:
    from edgewise.selector import Selector

_PROMPTS, _SHARED = "method/prompts/", "method/shared/"
_GROWTH = 1 << 30
"""Bytes by which a state may grow over a run."""


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
        if not state.is_savable(np.asarray(array).dtype):
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
    """Header and arrays of a saved state. The method's arrays are its live ones. Raises ConfigError inside a step."""
    if selector._current is not None:
        raise ConfigError("Selector.save(): a step is open; save between steps (a step commits when its block ends).")
    held = selector.method.state()
    arrays: dict[str, Array] = {f"{_PROMPTS}{k}": np.asarray(v) for k, v in held.prompts.items()}
    arrays |= {f"{_SHARED}{k}": np.asarray(v) for k, v in held.shared.items()}
    arrays |= {f"selector/{k}": v for k, v in selector._premise.arrays().items()}
    arrays |= selector._waiting.arrays() | selector._retired.arrays()
    arrays |= selector._packed_tickets()
    arrays |= {f"selector/{k}": v for k, v in selector._stream.slots.arrays().items()}
    arrays |= {f"parked/{k}": v for k, v in selector._parked.items()}
    arrays["pool/ids"], arrays["pool/contents"] = selector.pool.keys
    name, seqs = selector._last_take or (None, [])
    arrays["selector/last_take"] = np.array(seqs, dtype=np.int64)
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
        "last_take": name,
        "totals": dict(selector._totals),
        "metrics": {name: float(value) for name, value in selector.metrics.items() if math.isfinite(value)},
    }
    return header, arrays


def most_bytes(selector: Selector) -> int:
    """More bytes than a state of this selector may have, right after `start`: what is larger is not read, nor written.

    The method may come to keep much more than it begins with: the size of a network or a matrix can follow a signal.
    """
    held, n = selector.method.state(), len(selector.pool)
    own = sum(np.asarray(array).nbytes for array in (*held.prompts.values(), *held.shared.values()))
    parked = edited.MOST_PARKED * (own // n + 64)
    return _GROWTH + 4 * (own + n * (256 + 64 * selector.group_size)) + parked


def restore(selector: Selector, path: str | os.PathLike[str], *, adapt: bool = False) -> None:
    """See `Selector.restore`. Everything is read and checked before anything is changed."""
    if selector._current is not None:
        raise ConfigError("Selector.restore(): a step is open; restore between steps.")
    take_up(selector, *state.load(path, selector._most_bytes), str(path), adapt=adapt)


def take_up(selector: Selector, header: dict[str, Any], arrays: dict[str, Array], where: str, *, adapt: bool = False) -> bool:
    """Become the selector that this content was saved of. Everything is checked before anything is changed.

    A state of another edit of the data set is brought to this one first, with `adapt` also one of other settings. Returns
    whether it was taken up just as it is.
    """
    refit = _refit(selector, header, arrays, where, adapt)
    if refit is not None:
        header, arrays = refit.header, refit.arrays
    identity = header.get("identity", {})
    state.require_same(identity if isinstance(identity, dict) else {}, _identity(selector), f"The saved state {where}")
    try:
        kept = Kept.of(header, arrays, selector.pool.ids)
        if not kept.totals.keys() <= selector._totals.keys():
            raise ValueError(f"there are no totals of {sorted(kept.totals.keys() - selector._totals.keys())}")
        numpy_then, batch_size = str(header["numpy"]), _whole(header["batch_size"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise StateError(f"{where} lacks something that a selector keeps: {error!r}. Use an older state.") from error
    if numpy_then.split(".")[0] != np.__version__.split(".")[0]:
        selector._warn(f"The state was saved under numpy {numpy_then}, this is {np.__version__}: draws may differ.")
    if batch_size != selector.batch_size:
        selector._warn(f"batch_size was {batch_size} and is {selector.batch_size} now: the next batches will differ.")
    _restore_method(selector, where, arrays, None if refit is None else refit.fresh)
    selector._become(kept)
    for note in () if refit is None else refit.notes:
        selector._warn(f"{where}: {note}.")
    return refit is None


def _refit(
    selector: Selector, header: dict[str, Any], arrays: dict[str, Array], where: str, adapt: bool
) -> edited.Refit | None:
    """The state for this data set, with `adapt` for these settings too; None where it is so already or cannot be made so.

    Raises StateMismatchError for another method, and unless `adapt` where less than half of its prompts are still there.
    """
    method, now, was = selector.method, _identity(selector), header.get("identity")
    if not isinstance(was, dict):
        return None
    others = {name for name in now if was.get(name) != now[name]}
    if adapt and "method" in others:
        raise StateMismatchError(
            f"{where} is of the method {was.get('method')!r}, and this run uses {now['method']!r}: what one method keeps says "
            "nothing to another. Nothing was loaded. resume='fresh' starts from priors."
        )
    pool = {"pool_digest", "pool_size"}
    known = "pool/ids" in arrays or not others & pool
    if not others or not known or others - (pool | {"group_size", "seed", "parameters"} if adapt else pool):
        return None
    before = _copies(method)
    try:
        keys = (arrays["pool/ids"], arrays["pool/contents"]) if "pool/ids" in arrays else selector.pool.keys
        edit = edited.compare(*keys, selector.pool)
        if not adapt:
            edit.require_half(where)
        with warnings.catch_warnings():  # what `start` warns of was said when this selector was made
            warnings.simplefilter("ignore", DegradedWarning)
            method.start(selector._setting)
        return edited.refit(header, arrays, edit, selector.pool, method, now)
    except EdgewiseError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise StateError(f"{where} lacks something that a selector keeps: {error!r}. Use an older state.") from error
    finally:
        method.restore(before)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Everything a selector keeps beside what its method does, as `Selector._become` takes it."""

    run_id: str
    number: int
    position: int
    next_seq: int
    version: int
    in_flight: list[Ticket]
    expired: list[Ticket]
    last_take: tuple[str, list[int]] | None
    waiting: Waiting
    retired: Retired
    slots: Slots
    parked: dict[str, Array]
    totals: dict[str, float]
    metrics: dict[str, float]
    premise: EntropyPremise

    @classmethod
    def of(cls, header: Mapping[str, Any], arrays: Mapping[str, Array], ids: Sequence[str]) -> Kept:
        """Read it out of a saved state of a pool of these `ids`.

        Raises KeyError, TypeError, ValueError, IndexError, AttributeError or OverflowError for what no selector writes.
        """
        premise, name, seqs = EntropyPremise(), header["last_take"], arrays["selector/last_take"]
        premise.restore(_below("selector/", arrays))
        if not (name is None or isinstance(name, str)) or seqs.dtype != np.int64 or seqs.ndim != 1:
            raise ValueError("the last call of `take` is none")
        totals, metrics = ({str(name): _finite(value) for name, value in header[of].items()} for of in ("totals", "metrics"))
        kept = cls(
            run_id=str(header["run_id"]),
            number=_whole(header["step"]),
            position=_whole(header["position"]),
            next_seq=_whole(header["next_seq"]),
            version=_whole(header["policy_version"]),
            in_flight=unpacked(arrays["table/in_flight"], ids),
            expired=unpacked(arrays["table/expired"], ids),
            last_take=None if name is None else (name, seqs.tolist()),
            waiting=Waiting.restored(arrays, ids),
            retired=Retired.restored(arrays),
            slots=Slots.restored(_below("selector/", arrays), len(ids), _whole(header["position"])),
            parked=edited.sound_parked(_below("parked/", arrays)),
            totals=totals,
            metrics=metrics,
            premise=premise,
        )
        _require_sound(kept, len(ids))
        return kept


def _whole(value: Any) -> int:
    if type(value) is not int or not -(2**62) < value < 2**62:
        raise ValueError(f"{str(value)[:40]} is no whole number")
    return value


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]} is no finite number")
    return float(value)


def _require_sound(kept: Kept, pool_size: int) -> None:
    """Raise ValueError for what no selector writes: it would fail, or go wrong in silence, in the middle of a later step."""
    in_flight, waiting, retired = kept.in_flight, kept.waiting, kept.retired
    if min(kept.number, kept.position, kept.next_seq) < 0:
        raise ValueError(f"step {kept.number}, position {kept.position}, next_seq {kept.next_seq} must not be negative")
    begun = [waiting[seq] for seq in waiting.seqs]
    for ticket in [*in_flight, *kept.expired, *(group.first for group in begun)]:
        if ticket.seq >= kept.next_seq:
            raise ValueError(f"there is no such ticket: {ticket}")
    if {ticket.seq for ticket in in_flight} & {ticket.seq for ticket in kept.expired}:
        raise ValueError("a ticket is in flight and has expired")
    going_on = {ticket.seq: ticket for ticket in in_flight if ticket.continues is not None}
    asked = {group.asked: (group.first.row, group.wanted, group.first.seq) for group in begun if group.asked is not None}
    if asked != {seq: (ticket.row, ticket.rollouts, ticket.continues) for seq, ticket in going_on.items()}:
        raise ValueError("groups that wait and the tickets that continue them do not agree")
    rows = [ticket.row for ticket in in_flight if ticket.continues is None] + waiting.rows.tolist()
    if len(set(rows)) != len(rows):
        raise ValueError("a prompt is in flight or waits twice")
    if not all(0 <= row < pool_size for row in retired.rows.tolist()):
        raise ValueError(f"a retired row is none of the {pool_size}")
    if retired.latest > int(kept.slots.passes(max(kept.position, kept.next_seq), pool_size)) + 1:
        raise ValueError("a prompt is retired for longer than a pass")


def continue_from(selector: Selector, directory: RunDirectory, resume: str | int) -> None:
    """Become what `directory` holds: its newest state ("auto", "adapt"), that committed at a step (int), or nothing ("fresh").

    Raises StateError and its children: a sound state of another run or a newer format is not passed over for an older one.
    ConfigError if the disk refuses.
    """
    try:
        _continue_from(selector, directory, resume)
    except OSError as error:
        raise ConfigError(
            f"Selector(directory={str(selector.directory)!r}) cannot be used: {error}. What was there stays; try again "
            "when the disk works, or name another folder."
        ) from error


def _continue_from(selector: Selector, directory: RunDirectory, resume: str | int) -> None:
    if resume == "fresh":
        directory.set_aside()
        directory.continue_from(directory.history(), None, exactly=False)
        return
    history = directory.history()
    recovered = history.newest() if isinstance(resume, str) else history.at_step(resume)
    if (hidden := history.may_hide(recovered)) is not None and isinstance(resume, str):
        raise StateError(
            f"{hidden.path} cannot be read, and may hold the newest state:\n  {history.broken[0]}\nTry again when the disk "
            "works; to go on without it, move it away."
        )
    if recovered is None:
        _refuse_to_begin_anew(directory, history, resume)
        directory.continue_from(history, None, exactly=False)
        return
    where = f"{directory.path} at step {recovered.node.step}"
    same = take_up(selector, recovered.header, recovered.arrays, where, adapt=resume == "adapt")
    live = {name: array for name, array in content(selector)[1].items() if name.startswith(_PROMPTS)}
    kept = {name: array for name, array in recovered.arrays.items() if name.startswith(_PROMPTS)}
    # a method that restores other values than it saved: changes could not be told from these
    directory.continue_from(history, recovered, exactly=recovered.exact and same and not differing(live, kept))
    newest = history.nodes()[0]
    for message in history.broken:
        selector._warn(message)
    latest = max(node.step for node in history.nodes() if node.step != UNKNOWN)
    instead = f" instead of {latest}" if latest > recovered.node.step else ""
    if isinstance(resume, str) and newest.id != recovered.node.id:
        selector._warn(
            f"{directory.path}: continuing from step {recovered.node.step}{instead}: what was committed later cannot be read."
        )


def _refuse_to_begin_anew(directory: RunDirectory, history: History, resume: str | int) -> None:
    """Raise StateError unless an empty directory is what was asked for: a lost state must not look like a first start."""
    listed = "".join(f"\n  {message}" for message in history.broken)
    if isinstance(resume, int) and (resume or history.nodes()):
        steps = history.steps()
        there = f"it reaches back to step {steps[0]}, and on to {steps[-1]}" if steps else "it has no state at all"
        raise StateError(
            f"{directory.path} has no state of step {resume}: {there}.{listed}\nResume from another checkpoint, keep more of "
            "the past (generations=...), or pass resume='fresh' to start from priors."
        )
    if any(directory.promised) and not (history.nodes() or history.journals or history.broken):
        raise StateError(
            f"{directory.path} has no state any longer, though the writer before made commit {directory.promised[1]:,} there. "
            "Bring its files back, or pass resume='fresh' to start from priors."
        )
    if history.nodes() or history.journals or history.broken:
        raise StateError(f"No readable state among those in {directory.path}:{listed}\nresume='fresh' starts anew.")


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


def _copies(method: Method) -> MethodState:
    held = method.state()
    return MethodState(
        prompts={name: np.array(array) for name, array in held.prompts.items()},
        shared={name: np.array(array) for name, array in held.shared.items()},
    )


def _restore_method(
    selector: Selector, path: str, arrays: Mapping[str, Array], fresh: Mapping[str, Array] | None = None
) -> None:
    """Give the method its saved state; if it refuses, or fails halfway, the state it had.

    fresh: what prompts share in a method just started, for one that refuses a state of other hyper-parameters.
    """
    method, size = selector.method, len(selector.pool)
    prompts, shared = _below(_PROMPTS, arrays), _below(_SHARED, arrays)
    for name, array in prompts.items():
        if array.shape[:1] != (size,):
            raise StateError(f"{path} must keep {size} entries of {name!r}, has {array.shape}. Use a state of this pool.")
    before = _copies(method)
    try:
        method.restore(MethodState(prompts=prompts, shared=shared))
        _require_alike(before, method.state())
    except Exception as error:
        method.restore(before)
        if fresh is not None:
            _restore_method(selector, path, edited.with_shared(arrays, fresh))
            selector._warn(f"{path}: {method.name} cannot go on from what its prompts shared ({error}); that starts anew.")
            return
        if isinstance(error, EdgewiseError):
            raise
        raise StateError(f"{path} lacks something this method keeps: {error!r}. Use a state that it wrote.") from error


def _require_alike(before: MethodState, after: MethodState) -> None:
    """Raise ValueError where an array is of another kind than this method's: it would fail in the middle of a later step."""
    for old, new in ((before.prompts, after.prompts), (before.shared, after.shared)):
        for name in old.keys() & new.keys():
            was, now = np.asarray(old[name]), np.asarray(new[name])
            if (was.dtype, was.ndim) != (now.dtype, now.ndim):
                raise ValueError(f"{name!r} has {now.ndim} axes of {now.dtype}, this method keeps {was.ndim} of {was.dtype}")


def _below(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays whose name begins with `prefix`, named without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
