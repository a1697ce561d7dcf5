"""The counts of a step that every method shares: rollouts as they come in, groups as they are decided, predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgewise import kinds
from edgewise.metrics import StepMetrics, rank_correlation
from edgewise.prediction import passed
from edgewise.types import Floats, Groups, Ints, Verdicts

if TYPE_CHECKING:
    from edgewise.selector import Selector

_PARTS, _MOST = 256, 4096
_LEAST = 16
"""Groups without which no rank correlation of a step's predictions is worth printing."""


class Accounts:
    """Metrics of one step, or of one period when streaming."""

    def __init__(self) -> None:
        self.metrics = StepMetrics()
        self._entropies: dict[int, float] = {}
        self._predicted: list[Floats] = []

    def new_period(self) -> None:
        """Start counting anew; entropies of prompts in flight are kept."""
        self.metrics = StepMetrics()
        self._predicted = []

    def scored(self, rows: Ints, entropies: Floats) -> None:
        """Remember prompt entropies until their groups come in."""
        self._entropies.update(zip(rows.tolist(), entropies.tolist(), strict=True))

    def forget_scores(self, but: Iterable[int]) -> None:
        """Drop the prompt entropies of all rows but these."""
        kept = set(but)
        self._entropies = {row: value for row, value in self._entropies.items() if row in kept}

    def rollouts(self, selector: Selector, reported: Groups) -> None:
        """Count what was generated: every report once, continuations by themselves."""
        responses, tokens = float(reported.asked.sum()), float(reported.response_tokens.sum())
        self.metrics.add(
            responses=responses,
            response_tokens=tokens,
            missing_rollouts=responses - float(reported.valid.sum()),
            truncated=float(reported.truncated.sum()),
        )
        selector._totals["rollouts_total"] += responses
        selector._totals["tokens_total"] += tokens

    def groups(self, selector: Selector, groups: Groups, verdicts: Verdicts, closed_by: Sequence[int] | None) -> Floats:
        """Count decided groups before any gate, dropped ones included; and why those were dropped.

        closed_by: the ticket by whose report each group was decided; None for late groups, which say nothing of the present
        predictions.
        Returns (n, 3) entropy of the prompt, 1 if the group is mixed else 0, and its pass rate; NaN where unknown.
        """
        kind = kinds.group_kinds(groups.rewards, groups.valid, groups.correct, correct_at=selector.correct_at)
        complete = groups.valid.sum(axis=1) >= 2
        self.metrics.add(
            rolled_out=len(groups),
            incomplete=float((~complete).sum()),
            mixed=float(((kind == kinds.MIXED) & complete).sum()),
            all_pass=float(((kind == kinds.EASY) & complete).sum()),
            all_fail=float(((kind == kinds.HARD) & complete).sum()),
        )
        for reason in set(verdicts.reasons) - {""}:
            self.metrics.add(**{f"dropped_{reason}": verdicts.reasons.count(reason)})
        if verdicts.retire is not None:
            self.metrics.add(retired=float(verdicts.retire.sum()))
        rate = np.full(len(groups), np.nan)
        np.divide(passed(groups, selector.correct_at).sum(axis=1), groups.valid.sum(axis=1), where=complete, out=rate)
        entropy = np.array([self._entropies.get(row, np.nan) for row in groups.rows.tolist()])
        if closed_by is not None:
            predicted = [np.nan if t.predicted_pass_rate is None else t.predicted_pass_rate for t in groups.tickets]
            order = np.array(closed_by, dtype=np.float64)
            pairs = np.stack([np.array(predicted, dtype=np.float64), rate, order], axis=1)
            self._predicted.append(pairs[np.isfinite(pairs).all(axis=1)])
        if len(self._predicted) > _PARTS:  # a stream that never commits
            self._predicted = [self._newest()]
        return np.stack([entropy, (kind == kinds.MIXED).astype(np.float64), rate], axis=1)

    def _newest(self) -> Floats:
        """(m, 3) predicted, observed and ticket of the newest groups, by ticket: the order of arrival does not matter."""
        pairs = np.concatenate(self._predicted) if self._predicted else np.empty((0, 3))
        return pairs[np.argsort(pairs[:, 2], kind="stable")][-_MOST:]

    def predictions(self) -> dict[str, float]:
        """How the predictions that went into the tickets fared, over the groups so far; empty where there were none.

        `predicted_brier`: mean squared error against the group's pass rate.  `predicted_gap`: mean predicted less observed.
        `predicted_corr`: Spearman's rank correlation. Over chosen prompts only, hence a restricted range.
        """
        pairs = self._newest()
        if len(pairs) == 0:
            return {}
        error = pairs[:, 0] - pairs[:, 1]
        found = {"predicted_brier": float((error**2).mean()), "predicted_gap": float(error.mean())}
        if len(pairs) >= _LEAST:
            found["predicted_corr"] = rank_correlation(pairs[:, 0], pairs[:, 1])
        return found
