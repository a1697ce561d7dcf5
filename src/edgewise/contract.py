"""What a method's answers must be before a selector acts on them; a `MethodError` says what they are instead."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from edgewise.errors import MethodError
from edgewise.types import MOST_ROLLOUTS, Groups, Ints, Requests, Verdicts


def check_requests(
    name: str, requests: Requests, *, pool_size: int, most: int | None, in_flight: Iterable[int], issued: Iterable[Ints]
) -> None:
    """Refuse what would break the contract: rows out of range, doubled, in flight, or issued in this step before.

    most: requests allowed, None for any number.  in_flight: rows.  issued: rows of this step's earlier rounds.
    """
    rows, rollouts, predicted = requests.rows, requests.rollouts, requests.predicted_pass_rate
    if rows.ndim != 1 or rollouts.shape != rows.shape or rows.dtype.kind != "i" or rollouts.dtype.kind != "i":
        raise MethodError(f"{name}.propose must give integer rows (n,) and rollouts (n,), got {rows.shape}, {rollouts.shape}.")
    if predicted is not None and (predicted.shape != rows.shape or predicted.dtype.kind != "f"):
        raise MethodError(f"{name}.propose must predict one float a row, shape {rows.shape}, got {predicted.shape}.")
    if most is not None and len(rows) > most:
        raise MethodError(f"{name}.propose must ask for at most {most} prompts when streaming, got {len(rows)}.")
    if len(rows) == 0:
        return
    if rows.min() < 0 or rows.max() >= pool_size:
        raise MethodError(f"{name}.propose must give rows in [0, {pool_size}), got {int(rows.min())} … {int(rows.max())}.")
    if len(np.unique(rows)) != len(rows):
        raise MethodError(f"{name}.propose must give distinct rows, got {len(rows) - len(np.unique(rows))} repeats.")
    if rollouts.min() < 1 or rollouts.max() > MOST_ROLLOUTS:
        raise MethodError(
            f"{name}.propose must ask for at least one rollout a prompt and at most {MOST_ROLLOUTS:,}, got "
            f"{int(rollouts.min())} … {int(rollouts.max())}."
        )
    busy = np.fromiter(in_flight, dtype=np.int64)
    for taken, where in (
        (busy, "is already in flight"),
        *((before, "this step rolled out before") for before in issued),
    ):
        if len(np.intersect1d(rows, taken)):
            raise MethodError(f"{name}.propose asked for a prompt that {where}.")


def check_verdicts(name: str, verdicts: Verdicts, groups: Groups) -> None:
    """Refuse verdicts of another shape or type, negative or infinite numbers, and a group both continued and held."""
    n, shape = len(groups), groups.rewards.shape
    if verdicts.keep.shape != (n,) or verdicts.keep.dtype != np.bool_ or len(verdicts.reasons) != n:
        raise MethodError(f"{name}.judge must answer for {n} groups with booleans and reasons, got {verdicts.keep.shape}.")
    if not all(isinstance(reason, str) for reason in verdicts.reasons):
        raise MethodError(f"{name}.judge must give its reasons in words, got {verdicts.reasons!r}.")
    for what, array, wanted, kind in (
        ("more", verdicts.more, (n,), "i"),
        ("hold", verdicts.hold, (n,), "i"),
        ("retire", verdicts.retire, (n,), "b"),
        ("trained", verdicts.trained, shape, "b"),
        ("weights", verdicts.weights, shape, "f"),
    ):
        if array is None:
            continue
        if array.shape != wanted or array.dtype.kind != kind:
            raise MethodError(
                f"{name}.judge: `{what}` must be {wanted} of kind {kind!r}, got {array.shape} of {array.dtype.kind!r}."
            )
        if kind in "if" and array.size and not (np.isfinite(array).all() and array.min() >= 0):
            raise MethodError(f"{name}.judge: `{what}` must be finite and at least 0, got {array.min()} … {array.max()}.")
        if kind == "i" and array.size and array.max() > MOST_ROLLOUTS:
            raise MethodError(f"{name}.judge: `{what}` must be at most {MOST_ROLLOUTS:,} rollouts, got {int(array.max())}.")
    largest = int((groups.asked + verdicts.pending).max(initial=0))
    if largest > MOST_ROLLOUTS:
        raise MethodError(f"{name}.judge must not let a group grow beyond {MOST_ROLLOUTS:,} rollouts, got {largest:,}.")
    if verdicts.more is not None and verdicts.hold is not None and ((verdicts.more > 0) & (verdicts.hold > 0)).any():
        raise MethodError(f"{name}.judge must not both continue (`more`) and `hold` one group.")
