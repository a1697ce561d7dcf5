"""HIVE, GRESO, DAPO dynamic sampling and uniform: one engine with switches.

HIVE: "Train at the Moving Edge: Efficient RL for LRMs via Rollout Selection", arXiv 2603.25184 v2 [HIVE].
GRESO: arXiv 2506.02177 and its code. DAPO: arXiv 2503.14476 and verl's recipe.

    stream ──► stage 1: streaks ──► stage 2: prompt entropy ──► rollouts ──► gate ──► training batch
               accept w.p. P        band of the candidates                  zero variance out; deficit topped up

    P     = λ·s_rew + (1-λ)·s_ent        s_rew = max(p_kind ** streak, ε_p)        s_ent = (H - H_min) / (H_max - H_min)
    p     <- clip(p + Δp·sign(α - ρ̂), p_min, p_max)                     once a policy version, for easy and for hard
    band  = order by falling V, without the k_off highest, of these k_keep      V = mean token entropy of the prompt

`methods/presets.py` turns the engine into the other methods. "B.3" below is the paper's appendix with what really ran.

Differs from the paper in: the band of B.3 is the default and the median of the main text a preset (`hive-eq`); the band is
cut over all candidates of a round and not over every 32 raw prompts (`gate_pool`), which starves when few pass stage 1; a
group's kind goes by `correct`, else by the reward against `correct_at`, because with 0/1 rewards the paper's "hard = all 0.1"
never occurs; the controller rests until half of the offered prompts were seen before (`arm_at`), so it does not drift through
the first pass, and does not move when a share equals its target; ρ̂ of the top-up is smoothed over the step, so it never
reaches 1; rounds are bounded; requests are shuffled, so that cutting the surplus does not favour high entropy; a dry stream
relaxes stage 1 instead of failing.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from edgewise.beliefs.controller import ShareController
from edgewise.beliefs.streak import StreakBelief
from edgewise.choosers.band import Ranked, band_by_share, candidates_for, entropy_band, median_gate, share_of
from edgewise.errors import ConfigError, DegradedWarning, SignalError
from edgewise.kinds import EASY, HARD, MIXED
from edgewise.method import StepView, renumbered
from edgewise.methods import checks
from edgewise.methods.dynamic import DynamicSampling, shared_array
from edgewise.methods.entry import Entry
from edgewise.types import PROMPT_ENTROPY, ROLLOUT_ENTROPY, Bools, Floats, Groups, Ints, MethodState, Requests, Setting

_LOOKS = 64
"""Prompts a round may look at per group it wants, so that a step costs what the batch costs when nearly all are skipped."""
_REMEMBERED = 4096
"""Bypassing prompts in flight whose outcome is still reported when streaming."""
_KIND_WORDS = ((MIXED, "open"), (EASY, "easy"), (HARD, "hard"))
_NO_ROWS = np.empty(0, dtype=np.int64)


@dataclass(kw_only=True, eq=False)
class Hive(DynamicSampling):
    """The engine. Every switch is a keyword; the defaults are the deployed HIVE of the paper's appendix."""

    name: ClassVar[str] = "hive"

    stage1: bool = True
    """Accept prompts by their streak, before any model call."""
    p_easy: float = 0.5
    """p_easy(0): first base of the acceptance of solved prompts. [HIVE B.3, GRESO code]"""
    p_hard: float = 0.5
    """p_hard(0): the same for unsolved ones. [HIVE B.3, GRESO code]"""
    p_step: float = 0.01
    """Δp of the controller. [HIVE B.3, GRESO code]"""
    p_min: float = 0.05
    """Lowest base. [HIVE B.3, GRESO code]"""
    p_max: float = 0.95
    """Highest base. [HIVE B.3, GRESO code]"""
    p_floor: float = 0.01
    """ε_p: least chance of a visit, so that no prompt is lost. [HIVE B.3, GRESO code; the main text has none]"""
    target_easy: float = 0.25 / 3
    """α_easy: share of easy groups that the controller aims at. [HIVE B.3, GRESO code; the main text has one α = 0.25]"""
    target_hard: float = 0.25 * 2 / 3
    """α_hard: the same for hard groups. [HIVE B.3, GRESO code]"""
    arm_at: float = 0.5
    """The controller rests until this share of the offered prompts was seen before. [choice; GRESO code: epoch > 0]"""
    reward_weight: float = 1.0
    """λ: weight of the streak against the response entropy. At 1 response entropy has no weight, as in every published number.
    [HIVE B.3]"""
    entropy_tail: float = 0.0
    """H_min and H_max are the extremes (0), or these quantiles from either end (0.05). [choice; min-max is the paper's]"""

    stage2: Literal["band", "median", "off"] = "band"
    """Keep a band of the prompt entropy [HIVE B.3], or all from the median up [HIVE §3]."""
    keep_share: float = 0.5
    """k_keep: share of the candidates that the band keeps. [HIVE B.3]"""
    trim_share: float = 0.25
    """k_off: share trimmed off the top: "degenerate" prompts. [HIVE B.3]"""
    gate_pool: Literal["candidates", "raw_batch"] = "candidates"
    """Cut the band over all candidates of a round [choice], or over every `raw_batch` prompts of the stream [HIVE B.3]."""
    raw_batch: int = 32
    """Prompts per raw batch. [HIVE B.3]"""
    bypass: float = 0.0
    """Share of the candidates that skips stage 2, so that its claim can be checked. [choice]"""
    round_to: int = 1
    """Requests are rounded up to a multiple of this, for world sizes that need it. [choice; the paper rounds down to G]"""
    shuffle: bool = True
    """Request in shuffled order instead of the chooser's. [choice]"""

    _batch_size: int = field(default=0, init=False, repr=False)
    _belief: StreakBelief = field(init=False, repr=False)
    _controller: ShareController = field(init=False, repr=False)
    _skipped: Ints = field(init=False, repr=False)
    _bypassed: Ints = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("stage1", "shuffle"):
            checks.switch(self, name)
        for name in ("p_step", "p_floor", "target_easy", "target_hard", "arm_at", "trim_share", "bypass"):
            checks.number(self, name, low=0.0, high=1.0)
        checks.number(self, "p_max", low=0.0, high=1.0, above=True)
        checks.number(self, "p_min", low=0.0, high=self.p_max, advice="It must not exceed p_max.")
        checks.number(self, "p_easy", low=self.p_min, high=self.p_max, advice="It lies between p_min and p_max.")
        checks.number(self, "p_hard", low=self.p_min, high=self.p_max, advice="It lies between p_min and p_max.")
        checks.number(self, "reward_weight", low=0.0, high=1.0)
        checks.number(self, "entropy_tail", low=0.0, high=0.49)
        checks.one_of(self, "stage2", ("band", "median", "off"))
        checks.number(self, "keep_share", low=0.0, high=1.0, above=True, advice="Use stage2='off' to keep everything.")
        if self.keep_share + self.trim_share > 1.0 + 1e-9:
            raise ConfigError(
                f"{type(self).__name__}(keep_share=..., trim_share=...) must sum to at most 1, got {self.keep_share} "
                f"+ {self.trim_share}. Lower one of them: the band lies below what is trimmed."
            )
        checks.one_of(self, "gate_pool", ("candidates", "raw_batch"))
        if self.gate_pool == "raw_batch" and self.stage2 != "band":
            raise ConfigError(
                f"{type(self).__name__}(gate_pool='raw_batch') needs stage2='band', got {self.stage2!r}. "
                "Use gate_pool='candidates'."
            )
        checks.whole(self, "raw_batch", low=1)
        checks.whole(self, "round_to", low=1)
        needs = {PROMPT_ENTROPY} if self.stage2 != "off" else set()
        if self.stage1 and self.reward_weight < 1.0:
            needs.add(ROLLOUT_ENTROPY)
        self.needs = frozenset(needs)

    def start(self, setting: Setting) -> None:
        super().start(setting)
        self._batch_size = setting.batch_size
        self._belief = StreakBelief(setting.pool_size, entropy_tail=self.entropy_tail)
        self._controller = ShareController(self.p_easy, self.p_hard)
        self._skipped = self._bypassed = _NO_ROWS
        wanted = self._wanted(self._most, first=True)
        if self.stage2 != "off" and setting.pool_size < wanted:
            warnings.warn(
                f"{type(self).__name__}: the pool holds {setting.pool_size} prompts and round 0 wants {wanted} candidates for "
                f"batch_size {setting.batch_size}; stage 2 will be relaxed. Add prompts, lower batch_size, or use 'greso'.",
                DegradedWarning,
                stacklevel=2,
            )

    # -- before rollouts -----------------------------------------------------------------------------------------------

    def propose(self, room: int, step: StepView) -> Requests:
        if step.round == 0:
            self._skipped = _NO_ROWS
            self._bypassed = self._bypassed[-_REMEMBERED:] if step.streaming else _NO_ROWS
        self._controller.fold(
            step.policy_version,
            target_easy=self.target_easy, target_hard=self.target_hard, arm_at=self.arm_at,
            by=self.p_step, low=self.p_min, high=self.p_max,
        )  # fmt: skip
        target = self.target(room, step)
        if target == 0:
            return Requests.of([], self.group_size)
        first = step.round == 0 and not step.streaming
        blocks, dry = self._screen(target, self._wanted(target, first=first), room, step)
        most = min(target, room) if self.stage2 == "median" and first else target
        rows = self._verify(blocks, dry, target=most, room=room, step=step)
        if len(rows) == 0:
            return self.nothing_left(room, step)
        if self.shuffle:
            rows = rows[step.rng("order").permutation(len(rows))]
        if step.streaming:  # `take(n)` promises at most n: whole raw batches and rounding up yield to it
            rows = rows[:room]
        return Requests.of(rows, self.group_size)

    def _wanted(self, target: int, *, first: bool) -> int:
        """Candidates after stage 1 for `target` groups: N1 of the band; for the median twice the target, C in round 0."""
        if self.stage2 == "band":
            return candidates_for(target, self.keep_share)
        if self.stage2 == "median":
            return target if first else 2 * target
        return target + -target % self.round_to

    def _screen(self, target: int, wanted: int, room: int, step: StepView) -> tuple[list[Ints], bool]:
        """Stage 1 along the stream. Returns the blocks in which the band is to be cut, and whether the stream ran dry before.

        A dry stream with fewer survivors than groups missing takes back the least unlikely of the step's skipped prompts.
        """
        raw = self.gate_pool == "raw_batch"
        enough = target if raw else wanted
        rng = step.rng("accept")
        blocks: list[Ints] = []
        found, looks = 0, _LOOKS * target
        while found < enough and looks > 0:
            asked = self.raw_batch if raw else min(enough - found, looks)
            offered = step.draw(asked)
            blocks.append(self._accepted(offered, rng, step))
            found += share_of(self.keep_share, len(blocks[-1])) if raw else len(blocks[-1])
            looks -= len(offered)
            if len(offered) < asked:
                break
        self._gauge_controller(step)
        if found >= enough:
            return (blocks if raw else [np.concatenate(blocks)]), False
        survivors = np.concatenate(blocks) if blocks else _NO_ROWS
        if len(survivors) < room:
            survivors = np.concatenate([survivors, self._taken_back(wanted - len(survivors), step)])
        return [survivors], True

    def _accepted(self, rows: Ints, rng: np.random.Generator, step: StepView) -> Ints:
        """Those of the offered rows that pass stage 1; the others are remembered for this step."""
        seen = self._belief.seen(rows)
        self._controller.offer(seen)
        if not self.stage1:
            return rows
        accepted = rng.random(len(rows)) < self._acceptance(rows)
        skipped = rows[~accepted]
        self._skipped = np.concatenate([self._skipped, skipped])
        kinds = self._belief.kind[skipped]
        easy, hard = int((kinds == EASY).sum()), int((kinds == HARD).sum())
        step.log(s1_accepted=int(accepted.sum()), s1_skipped_easy=easy, s1_skipped_hard=hard)
        if self.reward_weight < 1.0:
            unmeasured = seen & np.isnan(self._belief.entropy[rows])
            step.log(s1_skipped_open=len(skipped) - easy - hard, entropy_missing=int(unmeasured.sum()))
        return rows[accepted]

    def _acceptance(self, rows: Ints) -> Floats:
        controller = self._controller
        return self._belief.acceptance(
            rows, p_easy=controller.p_easy, p_hard=controller.p_hard, floor=self.p_floor, reward_weight=self.reward_weight
        )

    def _taken_back(self, most: int, step: StepView) -> Ints:
        """At most `most` rows that stage 1 skipped in this step, by (-P, stream order)."""
        order = np.argsort(-self._acceptance(self._skipped), kind="stable")[:most]
        rows = self._skipped[order]
        self._skipped = np.delete(self._skipped, order)
        if self.stage1:
            step.log(relaxed=len(rows))
        return rows

    def _verify(self, blocks: list[Ints], dry: bool, *, target: int, room: int, step: StepView) -> Ints:
        """Stage 2: the rows to request, by falling entropy; rows without a usable entropy follow, unranked."""
        rows = np.concatenate(blocks)
        if self.stage2 == "off" or len(rows) == 0:
            return rows
        entropies, ranked, bypassing = self._entropies(rows, step)
        # each that cannot be ranked is kept with the chance that the ranked have: it is neither preferred nor starved
        unmeasured = np.flatnonzero(~ranked & ~bypassing)
        if len(unmeasured) and ranked.any():
            share = self.keep_share if self.stage2 == "band" else 0.5
            unmeasured = unmeasured[step.rng("unmeasured").random(len(unmeasured)) < share]
        free = rows[np.sort(np.concatenate([np.flatnonzero(bypassing), unmeasured]))][:target]
        target, missing = target - len(free), max(0, room - len(free))
        at = np.flatnonzero(ranked)
        if self.gate_pool == "raw_batch" and not dry:
            choice = self._band_of_blocks(blocks, entropies, ranked)
        elif self.stage2 == "median":
            choice = median_gate(entropies[at], target).over(at)
        else:
            choice = entropy_band(entropies[at], target, missing, keep_share=self.keep_share, trim_share=self.trim_share).over(
                at
            )
            step.log(band_relaxed=int(len(at) < candidates_for(target, self.keep_share)))
        choice = choice.extended(-(len(choice.kept) + len(free)) % self.round_to)
        step.log(v_scored=len(at), v_upper=len(choice.upper), v_kept=len(choice.kept), v_low=len(choice.low))
        return np.concatenate([rows[choice.kept], free])

    def _entropies(self, rows: Ints, step: StepView) -> tuple[Floats, Bools, Bools]:
        """(n,) prompt entropies, (n,) which of them rank, and (n,) which prompts bypass stage 2; a host may give none."""
        bypassing = np.zeros(len(rows), dtype=np.bool_)
        if self.bypass > 0.0:
            bypassing = step.rng("bypass").random(len(rows)) < self.bypass
            self._bypassed = np.concatenate([self._bypassed, rows[bypassing]])
            step.log(bypassed=int(bypassing.sum()))
        entropies = np.full(len(rows), np.nan)
        if not bypassing.all():
            entropies[~bypassing] = step.signal(PROMPT_ENTROPY, rows[~bypassing])
        missing = ~bypassing & ~np.isfinite(entropies)
        if missing.any():
            first = int(np.flatnonzero(missing)[0])
            step.log(v_missing=int(missing.sum()))
            step.problem(
                SignalError(
                    f"signal({PROMPT_ENTROPY!r}) of prompt row {int(rows[first])} must be finite, got {entropies[first]} "
                    f"({int(missing.sum())} of {len(rows)} prompts). Each is kept with the chance of stage 2, unranked; a "
                    "prompt needs at least two tokens."
                )
            )
        ranked: Bools = np.isfinite(entropies)
        if ranked.any():
            low, median, high = np.quantile(entropies[ranked], (0.05, 0.5, 0.95))
            step.gauge(v_q05=float(low), v_median=float(median), v_q95=float(high))
            kinds = self._belief.kind[rows]
            for kind, word in _KIND_WORDS:
                of_kind = entropies[ranked & (kinds == kind)]
                if len(of_kind):
                    step.gauge(**{f"v_median_{word}": float(np.median(of_kind))})
        return entropies, ranked, bypassing

    def _band_of_blocks(self, blocks: list[Ints], entropies: Floats, ranked: Bools) -> Ranked:
        """The band of every raw batch by itself, joined."""
        ends = np.cumsum([len(block) for block in blocks])
        parts = []
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            at = start + np.flatnonzero(ranked[start:end])
            parts.append(band_by_share(entropies[at], keep_share=self.keep_share, trim_share=self.trim_share).over(at))
        return Ranked.joined(parts, entropies)

    def _gauge_controller(self, step: StepView) -> None:
        if self._controller.seen_share is not None:
            step.gauge(seen_share=self._controller.seen_share)
        if self.stage1:
            step.gauge(p_easy=self._controller.p_easy, p_hard=self._controller.p_hard)

    # -- after rollouts ------------------------------------------------------------------------------------------------

    def observe(self, groups: Groups, step: StepView) -> None:
        super().observe(groups, step)
        complete = groups.select(groups.valid.sum(axis=1) >= 2)
        kinds = self.kinds(complete)
        versions = np.array([ticket.policy_version for ticket in complete.tickets], dtype=np.int64)
        self._belief.observe(complete.rows, kinds, complete.rollout_entropy, versions)
        self._controller.learn(kinds)
        step.gauge(never_rolled_out=self._belief.never_visited)
        if self._controller.shares is not None:
            rho_easy, rho_hard = self._controller.shares
            step.gauge(rho_easy=rho_easy, rho_hard=rho_hard)
        if len(self._bypassed):
            unverified = kinds[np.isin(complete.rows, self._bypassed)]
            self._bypassed = self._bypassed[~np.isin(self._bypassed, complete.rows)]
            step.log(**{f"bypassed_{word}": int((unverified == kind).sum()) for kind, word in _KIND_WORDS})

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self) -> MethodState:
        controller = {f"controller_{name}": array for name, array in self._controller.state().items()}
        shared = {**super().state().shared, **controller, "skipped": self._skipped, "bypassed": self._bypassed}
        return MethodState(prompts=self._belief.state(), shared=shared)

    def restore(self, state: MethodState) -> None:
        owner = type(self).__name__
        skipped, bypassed, _ = (shared_array(state, name, owner) for name in ("skipped", "bypassed", "rounds"))
        controller = {name: shared_array(state, f"controller_{name}", owner) for name in ("p", "tally")}
        self._belief.restore(state.prompts)
        super().restore(state)
        self._controller.restore(controller)
        self._skipped, self._bypassed = skipped.astype(np.int64), bypassed.astype(np.int64)

    def adapt(self, state: MethodState, rows: Ints) -> MethodState:
        held = super().adapt(state, rows)
        now = {name: renumbered(state.shared[name], rows) for name in ("skipped", "bypassed")}
        return MethodState(held.prompts, {**held.shared, **{name: at[at >= 0] for name, at in now.items()}})


ENTRIES = {
    "hive": Entry(
        factory=Hive,
        summary="Skips prompts that keep passing or failing whole, keeps the upper-middle prompt entropies, gates, tops up.",
        signal="group outcomes; entropy of the prompt under the current policy",
        keeps="19 bytes: visits, run length and kind, last response entropy, policy version",
        extra_rollouts="1.5 groups asked for per group trained, and small top-ups",
        cost="one forward over about 3 prompts per group trained, no generation",
        when="batches must be full of mixed groups, and prompt entropy tells something on your data (entropy_mixed_corr)",
        paper="HIVE, arXiv 2603.25184 v2, as deployed (appendix B.3)",
    ),
}
