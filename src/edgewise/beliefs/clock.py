"""Time as beliefs count it: by how much do they age between two looks at a prompt?

The papers update once a training step. A step of the selector is one; a stream has no steps, and its policy version, which
grows with each optimizer step, stands in.
"""

from __future__ import annotations

from edgewise.method import StepView


def time_of(step: StepView, last: int) -> int:
    """Now: the step's number, or the policy version when streaming; never before `last`, the latest time learned at.

    A restored stream is told the policy version only at its next `take`; until then it is still `last`.
    """
    return max(last, step.policy_version if step.streaming else step.number)
