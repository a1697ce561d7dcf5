"""Sums that a small pretrained model sometimes gets right: a task for `edgewise train --policy smollm2`.

    edgewise train --policy smollm2 --task edgewise.lab.sums:small_sums

Most generators of the task library at their default settings are out of reach of a model with 135 M parameters: every group
fails, and there is nothing to choose. Of ten prompts with eight answers each from SmolLM2-135M-Instruct, mixed were: small_sums
5, gcd 4, isomorphic_strings 3, ransom_note and coin_flip 2, chain_sum and letter_counting 1; none of calendar_arithmetic,
basic_arithmetic, gsm_symbolic, lcm, number_format, simple_equations, syllogism, time_intervals.
"""

from __future__ import annotations

from typing import Any


def small_sums(size: int, seed: int) -> Any:
    """Sums and differences of two or three one-digit numbers, about 8,000 in all, with the library's own scorer."""
    import reasoning_gym

    return reasoning_gym.create_dataset("chain_sum", size=size, seed=seed, min_terms=2, max_terms=3, min_digits=1, max_digits=1)
