"""GRPO's advantages for groups of any size, each computed on its whole group. TRL's own formulas, without its fixed group size.

TRL reshapes rewards to (groups, num_generations), so it can only do groups of one size of which every rollout is trained. What
is here gives the same numbers there, and extends them to groups that were continued, allotted more, or trained in part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgewise.errors import HostError

_EPSILON = 1e-4
"""TRL's, under every standard deviation."""


def group_advantages(rewards: Sequence[Tensor], weights: Tensor, *, scale: str, aggregation: str) -> list[Tensor]:
    """Advantages of every rollout of every group.

    rewards: one (n_i, functions) a group, NaN where a function gave none.  weights: (functions,) of the sum.
    scale: TRL's scale_rewards: "group", "batch" or "none".  aggregation: TRL's multi_objective_aggregation.
    Returns one (n_i,) a group; 0 for rollouts that no function scored. Standard deviations divide by n - 1, as TRL's do.
    Raises HostError for a word that TRL does not know either.
    """
    if scale not in ("group", "batch", "none"):
        raise HostError(f"scale_rewards must be 'group', 'batch' or 'none', got {scale!r}.")
    if not rewards:
        return []
    unscored = [group.isnan().all(dim=1) for group in rewards]
    if aggregation == "sum_then_normalize":
        totals = [_total(group, weights, none) for group, none in zip(rewards, unscored, strict=True)]
        centred = [total - total.nanmean() for total in totals]
        if scale == "group":
            centred = [part / (_std(total) + _EPSILON) for part, total in zip(centred, totals, strict=True)]
        elif scale == "batch":
            spread = _std(torch.cat(totals))
            centred = [part / (spread + _EPSILON) for part in centred]
    elif aggregation == "normalize_then_sum":
        scaled = [(group - group.nanmean(dim=0)) / (_std(group) + _EPSILON) for group in rewards]
        totals = [_total(group, weights, none) for group, none in zip(scaled, unscored, strict=True)]
        every = torch.cat(totals)
        centred = [(total - every.nanmean()) / (_std(every) + _EPSILON) for total in totals]
    else:
        raise HostError(f"multi_objective_aggregation {aggregation!r} is not known to edgewise.hosts.trl.")
    return [part.nan_to_num(nan=0.0) for part in centred]


def _total(rewards: Tensor, weights: Tensor, unscored: Tensor) -> Tensor:
    total = (rewards * weights.to(rewards)).nansum(dim=1)
    total[unscored] = torch.nan
    return total


def _std(values: Tensor) -> Tensor:
    """Along the first axis, over what is not NaN, with n - 1; 0 where there are fewer than two values."""
    known = ~values.isnan()
    count = known.sum(dim=0)
    squares = ((values - values.nanmean(dim=0)) ** 2).nansum(dim=0)
    return torch.sqrt(squares / (count - 1).clamp(min=1))
