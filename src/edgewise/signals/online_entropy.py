"""The exact entropy, and the surprisal of one entry, of softmax rows whose logits are never held at once.

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


def surprisal_of_tiles(tiles: Iterable[Tensor], targets: Tensor) -> Tensor:
    """-ln p of one entry of each row of softmax(concatenated tiles), in nats: ln sum exp(z) - z[target].

    Args:
        tiles: float32 logits, (rows, width) each, widths may differ; **overwritten**. -inf marks an impossible token.
        targets: (rows,) columns, counted over all tiles.

    Returns:
        (rows,) float32, >= 0. +inf for an impossible token or one past the last column; NaN for a row with a NaN or +inf
        logit, or with nothing but -inf.

    >>> logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [2.0, 2.0, -torch.inf, -torch.inf]])
    >>> [round(h, 6) for h in surprisal_of_tiles(logits.split(3, dim=1), torch.tensor([3, 0])).tolist()]
    [1.386294, 0.693147]
    """
    m = s = own = None
    offset = 0
    for z in tiles:
        top = z.amax(dim=1, keepdim=True)
        if m is None or s is None or own is None:
            m, s, own = torch.full_like(top, -torch.inf), torch.zeros_like(top), torch.full_like(top, -torch.inf)
        place = targets[:, None] - offset
        inside = (place >= 0) & (place < z.shape[1])
        own = torch.where(inside, z.gather(1, place.clamp(0, z.shape[1] - 1)), own)
        new = torch.maximum(m, top)
        shift = new.masked_fill(new == -torch.inf, 0.0)  # only -inf so far: any finite shift gives exp(-inf) = 0
        s = (m - shift).exp() * s + z.sub_(shift).exp_().sum(dim=1, keepdim=True)
        m = new
        offset += z.shape[1]
    if m is None or s is None or own is None:
        raise ValueError("surprisal_of_tiles(tiles=...) got no tile; at least one is needed.")
    return (s.log() + (m - own)).clamp_(min=0.0).squeeze(1)
