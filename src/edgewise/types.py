"""What travels between host, selector and method: plain frozen records over numpy arrays.

Axes: `n` prompts of one request or report, `G` rollouts of one group (the widest of the report; shorter groups are padded).
A `row` is a prompt's position in the `PromptPool`; a `prompt_id` is its stable name. Methods see rows, people see ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Array: TypeAlias = npt.NDArray[Any]

Signal: TypeAlias = str
"""Name of something the host computes on request. Open: a host and a method may agree on a name of their own."""

PROMPT_ENTROPY: Signal = "prompt_entropy"
"""(n,) nats: mean full-vocabulary token entropy over the prompt, current policy (HIVE, stage 2)."""
ROLLOUT_ENTROPY: Signal = "rollout_entropy"
"""Arrives with the outcome: mean full-vocabulary token entropy over the responses of the group, nats (HIVE, λ < 1)."""
PROMPT_PERPLEXITY: Signal = "prompt_perplexity"
"""(n,) >= 1: exp of the mean negative log-likelihood of the prompt's tokens, current policy (PREPO)."""
EMBEDDING: Signal = "embedding"
"""(n, d): a fixed vector of the prompt's text; it does not change with the policy (GPS, PCL, VIP, DEPO)."""
DIFFICULTY: Signal = "difficulty"
"""(n,): a fixed offline difficulty, higher is harder, on the method's own scale (AdaRFT, ADS)."""
CATEGORY: Signal = "category"
"""(n,) whole numbers >= 0: a fixed group of prompts, such as a topic or a source (SEC, DUMP)."""
ANCHOR_RATES: Signal = "anchor_rates"
"""(n, 2) in [0, 1]: fixed pass rates of a weaker and a stronger reference model (BOTS)."""
HIDDEN_ANGLES: Signal = "hidden_angles"
"""(n, 2): intra- and inter-segment cosine of the last layer's hidden states over the prompt (GAIN-RL)."""
PASS_RATE: Signal = "pass_rate"
"""(n,) in [0, 1]: the exact pass probability. Only a laboratory can serve it; it makes the oracle."""

ROLLOUT_SIGNALS: frozenset[Signal] = frozenset({ROLLOUT_ENTROPY})
"""Signals that arrive with outcomes; every other name is asked for through `StepView.signal`."""
MATRIX_SIGNALS: frozenset[Signal] = frozenset({EMBEDDING, ANCHOR_RATES, HIDDEN_ANGLES})
"""Signals with one vector a prompt, (n, d); all others are one number a prompt, (n,)."""

MOST_ROLLOUTS = 2**16
"""Of one request or continuation: more is a method's mistake, found before anything is allocated or generated."""

Status: TypeAlias = Literal["ok", "truncated", "failed", "cancelled"]
"""`truncated` rollouts carry a reward like `ok` ones; `failed` and `cancelled` ones carry none (missing is not zero)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a method is told once, before its first step.

    pool_size: number of prompts N >= 1.  batch_size: groups in one training batch B >= 1.
    group_size: rollouts of one group G >= 1.  total_steps: selector steps the run will make, None where the host cannot say.
    """

    pool_size: int
    batch_size: int
    group_size: int
    total_steps: int | None = None


@dataclass(frozen=True, slots=True)
class Requests:
    """What a method wants rolled out next, in the order in which kept groups are to be trained.

    rows: (n,) distinct pool rows.  rollouts: (n,) rollouts per prompt, >= 1.
    predicted_pass_rate: (n,) in [0, 1] or NaN where the method makes no prediction; None when it never does.
    """

    rows: Ints
    rollouts: Ints
    predicted_pass_rate: Floats | None = None

    @classmethod
    def of(cls, rows: npt.ArrayLike, rollouts: int) -> Requests:
        """Ask for the same number of `rollouts` of each of `rows`."""
        array = np.asarray(rows, dtype=np.int64)
        return cls(array, np.full(array.shape, rollouts, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """One issued request. `seq` is unique in a run and strictly increasing; an outcome counts once per ticket.

    continues: `seq` of the ticket that began the group, where this one asks for more rollouts of the same group.
    """

    seq: int
    row: int
    prompt_id: str
    step: int
    round: int
    policy_version: int
    rollouts: int
    predicted_pass_rate: float | None = None
    continues: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a host reports for one ticket. Lists have one entry a rollout; ragged and failed rollouts are allowed.

    rewards: the trainer's (shaped) reward; None or NaN where the rollout has none (missing, never zero).
    correct: the verifier's verdict (True/False/None), when it is known apart from the reward.
    statuses: see `Status`; default all "ok".
    rollout_entropy: mean token entropy of each response in nats, when the method needs it; a single number stands for the
    mean over the group.
    response_tokens: generated tokens of the whole group, for accounting.
    """

    ticket: Ticket
    rewards: Sequence[Any]
    correct: Sequence[Any] | None = None
    statuses: Sequence[Status] | None = None
    rollout_entropy: float | Sequence[Any] | None = None
    response_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Finished groups, checked and stacked. The arrays are read-only views: what a method is given it cannot change.

    A group that was continued (`Verdicts.more`, `hold`) comes as a whole: its rollouts in the order in which they were asked
    for. G is the widest group; narrower ones are padded on the right.

    tickets: n tickets, the first of each group.  rows: (n,) pool rows.
    asked: (n,) rollouts asked for, over all tickets of the group; columns from there on are padding.
    rewards: (n, G), NaN where a rollout is missing.  correct: (n, G) 1/0, NaN where unknown; all NaN if never supplied.
    valid: (n, G) True where a rollout carries a finite reward.  truncated: (n,) truncated rollouts.
    entropies: (n, G) mean token entropy of each response in nats, NaN where unknown.
    rollout_entropy: (n,) the same of the group, nats or NaN.  response_tokens: (n,).
    policy_versions: (n, G) version of the weights that generated each rollout.
    trained: (n, G) rollouts that are trained on.  weights: (n, G) factors >= 0 on their loss. Both say something only after
    `judge`: in a training batch.
    """

    tickets: tuple[Ticket, ...]
    rows: Ints
    asked: Ints
    rewards: Floats
    correct: Floats
    valid: Bools
    truncated: Ints
    entropies: Floats
    rollout_entropy: Floats
    response_tokens: Ints
    policy_versions: Ints
    trained: Bools
    weights: Floats

    def __post_init__(self) -> None:
        for name in GROUP_ARRAYS:
            view = getattr(self, name).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, keep: npt.NDArray[Any]) -> Groups:
        """The groups at `keep` (a mask or indices), in that order."""
        index = np.flatnonzero(keep) if keep.dtype == bool else keep
        return replace(
            self, tickets=tuple(self.tickets[i] for i in index), **{name: getattr(self, name)[index] for name in GROUP_ARRAYS}
        )


GROUP_ARRAYS: dict[str, Any] = {
    "rows": None, "asked": None, "rewards": np.nan, "correct": np.nan, "valid": False, "truncated": None, "entropies": np.nan,
    "rollout_entropy": None, "response_tokens": None, "policy_versions": -1, "trained": False, "weights": 0.0,
}  # fmt: skip
"""The arrays of `Groups`, with what pads a narrower group; None for those with one entry a group."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a method says of finished groups.

    keep: (n,) True = may be trained on.  reasons: n words, "" for kept groups; drops are counted per reason.
    more: (n,) rollouts >= 0 to add to the group in the next round of this step; the group is judged again, as a whole.
    hold: (n,) the same in a later step; the first round of the next step takes up held groups before it asks for new prompts.
    retire: (n,) True = do not offer this prompt again in this pass over the pool.
    trained: (n, G) which rollouts of a kept group are trained on; None = every one asked for. The advantage is computed on
    the whole group all the same.  weights: (n, G) finite factors >= 0 on the loss of each rollout; None = 1.

    A group with `more` or `hold` is neither kept nor dropped yet; its `keep` is not looked at. None stands for "none".
    """

    keep: Bools
    reasons: tuple[str, ...]
    more: Ints | None = None
    hold: Ints | None = None
    retire: Bools | None = None
    trained: Bools | None = None
    weights: Floats | None = None

    @classmethod
    def of(cls, keep: Bools, reason: str) -> Verdicts:
        """Keep where `keep` is true, drop the rest for one `reason`."""
        return cls(keep, tuple("" if k else reason for k in keep))

    @property
    def pending(self) -> Ints:
        """(n,) rollouts that each group is to get before it is judged again; 0 where the verdict is final."""
        pending = np.zeros(len(self.keep), dtype=np.int64)
        for wanted in (self.more, self.hold):
            pending += 0 if wanted is None else wanted
        return pending

    def select(self, index: Ints) -> Verdicts:
        """The verdicts at `index`, in that order."""

        def at(array: Array | None) -> Any:
            return None if array is None else array[index]

        return Verdicts(
            self.keep[index], tuple(self.reasons[i] for i in index), more=at(self.more), hold=at(self.hold),
            retire=at(self.retire), trained=at(self.trained), weights=at(self.weights),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class MethodState:
    """Everything a method must not lose, as named plain arrays (bool, integer or float; never object).

    prompts: arrays whose first axis is the pool (N, ...).  shared: everything else, small.
    `Method.state` may hand out its live arrays: the selector copies what it keeps.
    """

    prompts: dict[str, Array] = field(default_factory=dict)
    shared: dict[str, Array] = field(default_factory=dict)
