"""One number per candidate, higher is better: pure functions that read like the papers' equations."""

from __future__ import annotations

from edgewise.types import Floats


def prob_mixed(pass_rates: Floats, group_size: int) -> Floats:
    """Probability that a group holds a pass and a fail: 1 - p^G - (1-p)^G.

    pass_rates: (n,) in [0, 1].  group_size: rollouts per prompt, G >= 1.
    Returns (n,) in [0, 1): 0 at pass rates 0 and 1, largest at 0.5.

    >>> import numpy as np
    >>> prob_mixed(np.array([0.0, 0.25, 0.5]), 2).tolist()
    [0.0, 0.375, 0.5]
    """
    all_pass = pass_rates**group_size
    all_fail = (1.0 - pass_rates) ** group_size
    return 1.0 - all_pass - all_fail
