"""The exact entropy of softmax rows whose logits are never held at once.

One sweep over vocabulary tiles keeps three numbers a row, relative to the running maximum m of the logits z:
s = sum exp(z - m) and t = sum exp(z - m) (z - m). Then H = ln s - t / s, in nats. Summing (z - m) rather than z avoids the
cancellation that a large common offset would cause.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

FLOOR = -128.0
"""exp(-128) is exactly 0 in float32. Flooring z - m there keeps -inf logits from making 0 * -inf, and changes no sum."""


def entropy_of_tiles(tiles: Iterable[Tensor]) -> Tensor:
    """Entropy in nats of each row of softmax(concatenated tiles).

    Args:
        tiles: float32 logits, (rows, width) each, widths may differ; **overwritten**. -inf marks an impossible token.

    Returns:
        (rows,) float32, >= 0. NaN for a row with a NaN or +inf logit, or with nothing but -inf.

    >>> logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [2.0, 2.0, -torch.inf, -torch.inf]])
    >>> [round(h, 6) for h in entropy_of_tiles(logits.split(3, dim=1)).tolist()]
    [1.386294, 0.693147]
    """
    m = s = t = None
    for z in tiles:
        top = z.amax(dim=1, keepdim=True)
        if m is None or s is None or t is None:
            m = torch.full_like(top, -torch.inf)
            s, t = torch.zeros_like(top), torch.zeros_like(top)
        new = torch.maximum(m, top)
        shift = new.masked_fill(new == -torch.inf, 0.0)  # only -inf so far: any finite shift gives exp(-inf) = 0
        fall = (m - shift).clamp_(min=FLOOR)  # from the old maximum to the new one; the floor also stands for "none yet"
        decay = fall.exp()
        z.sub_(shift).clamp_(min=FLOOR)
        e = z.exp()
        t = decay * (t + fall * s) + z.mul_(e).sum(dim=1, keepdim=True)
        s = decay * s + e.sum(dim=1, keepdim=True)
        m = new
    if m is None or s is None or t is None:
        raise ValueError("entropy_of_tiles(tiles=...) got no tile; at least one is needed.")
    return (s.log() - t / s).clamp_(min=0.0).squeeze(1)
