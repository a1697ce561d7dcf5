"""Made-up signals with a known relation to difficulty: what the laboratory and the conformance suite serve by name.

Every signal is drawn from the standardised difficulty z of a prompt (mean 0, deviation 1 over the pool) and noise of its own:

    x(ρ) = ρ·z + sqrt(1 - ρ²)·noise        so that x correlates with difficulty by ρ

They stand for no model and no text. They are fixed: they do not change with the policy.
"""

from __future__ import annotations

import numpy as np

from edgewise.types import (
    ANCHOR_RATES,
    CATEGORY,
    DIFFICULTY,
    EMBEDDING,
    HIDDEN_ANGLES,
    PROMPT_PERPLEXITY,
    Floats,
    Ints,
    Signal,
)

RELATION = 0.5
"""ρ of perplexity and of both hidden angles. [choice]"""
REFERENCE_NOISE = 0.5
"""Deviation, in logits, of what another model finds hard from what this policy finds hard. [choice]"""
EMBEDDING_SIZE = 16


def signals_of(
    difficulty: Floats, cluster: Ints, rng: np.random.Generator, *, embedding_share: float = 0.3
) -> dict[Signal, Floats]:
    """Signals of every prompt of a pool, drawn from `rng`.

    difficulty: (N,) logits: sigmoid(-difficulty) is about the pass rate at the start.  cluster: (N,) whole numbers >= 0, such
    as a skill.  embedding_share: share in [0, 1] of the difficulty's variance that a linear function of the embedding explains.

    Returns by name:
        `prompt_perplexity`: (N,) >= 1, higher for hard prompts (ρ of its logarithm: `RELATION`).
        `difficulty`: (N,) in [0, 100], the share of failures of another model of ability 0, in percent (the scale of AdaRFT).
        `category`: (N,) the cluster.
        `anchor_rates`: (N, 2) pass rates of models whose ability is one logit lower and one higher.
        `hidden_angles`: (N, 2) cosines in [-1, 1], lower for hard prompts (ρ: -`RELATION`).
        `embedding`: (N, 16) one direction that carries difficulty, a centre for each cluster and noise in the others.
    """
    n = len(difficulty)
    z = (difficulty - difficulty.mean()) / (difficulty.std() or 1.0)

    def related(rho: float) -> Floats:
        mixed: Floats = rho * z + np.sqrt(1.0 - rho**2) * rng.standard_normal(n)
        return mixed

    def pass_rate(ability: float) -> Floats:
        rate: Floats = 1.0 / (1.0 + np.exp(difficulty + REFERENCE_NOISE * rng.standard_normal(n) - ability))
        return rate

    perplexity = np.exp(np.maximum(1.2 + 0.3 * related(RELATION), 0.0))
    intra, inter = 0.5 - 0.12 * related(RELATION), 0.2 - 0.12 * related(RELATION)
    centres = rng.standard_normal((int(cluster.max(initial=0)) + 1, EMBEDDING_SIZE - 1))
    place = centres[cluster] + 0.3 * rng.standard_normal((n, EMBEDDING_SIZE - 1))
    return {
        PROMPT_PERPLEXITY: perplexity,
        DIFFICULTY: 100.0 * (1.0 - pass_rate(0.0)),
        CATEGORY: cluster.astype(np.float64),
        ANCHOR_RATES: np.stack([pass_rate(-1.0), pass_rate(1.0)], axis=1),
        HIDDEN_ANGLES: np.clip(np.stack([intra, inter], axis=1), -1.0, 1.0),
        EMBEDDING: np.column_stack([related(np.sqrt(embedding_share)), place]),
    }


def response_entropies(pass_rate: float, n: int, rng: np.random.Generator) -> Floats:
    """(n,) made-up mean token entropies of n responses, nats > 0: their mean is 0.1 + 1.6·p(1-p), highest at p = 1/2."""
    level = 0.1 + 1.6 * pass_rate * (1.0 - pass_rate)
    spread = rng.uniform(0.5, 1.5, n)
    entropies: Floats = level * spread * (n / spread.sum())
    return entropies
