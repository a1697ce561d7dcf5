"""The kernel: exact entropies from vocabulary tiles, against hand-computed values, float64 and an independent identity."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from edgewise.signals.forward import head_entropies
from edgewise.signals.head import LogitTransform, OutputHead
from edgewise.signals.online_entropy import entropy_of_tiles


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def online(logits: Tensor, tile: int) -> Tensor:
    return entropy_of_tiles(z.clone() for z in logits.split(tile, dim=1))


def exact(logits: Tensor) -> Tensor:
    log_p = logits.double().log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1)


def hidden_and_head(
    rows: int = 37, size: int = 1003, width: int = 24, *, bias: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    h, w = torch.randn(rows, width), torch.randn(size, width)
    return h, w, torch.randn(size) if bias else None


@pytest.mark.parametrize("tile", [1, 2, 3, 4])
def test_equal_logits_have_the_entropy_of_the_uniform_distribution(tile: int) -> None:
    assert online(torch.zeros(1, 4), tile).item() == pytest.approx(1.386294, abs=1e-6)


@pytest.mark.parametrize("tile", [1, 2, 3])
def test_one_half_and_two_quarters(tile: int) -> None:
    assert online(torch.tensor([[0.5, 0.25, 0.25]]).log(), tile).item() == pytest.approx(1.039721, abs=1e-6)


@pytest.mark.parametrize("offset", [1000.0, -1000.0])
def test_a_common_offset_changes_nothing(offset: float) -> None:
    logits = torch.randn(16, 500) * 3
    assert torch.allclose(online(logits + offset, 64), online(logits, 64), atol=1e-4)


def test_an_offset_between_tiles_is_not_lost_in_rounding() -> None:
    logits = torch.randn(8, 64)
    logits[:, 32:] += 40.0  # the running maximum moves far between the tiles
    for tile in (7, 32, 64):
        assert torch.allclose(online(logits, tile).double(), exact(logits), atol=1e-5)


@pytest.mark.parametrize("at", [0, 511, 999])
def test_one_dominant_logit_has_no_entropy(at: int) -> None:
    logits = torch.randn(2, 1000)
    logits[:, at] = 1e4
    assert online(logits, 128).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("masked", [slice(0, 8), slice(8, 16), slice(16, 20), slice(0, 16), slice(3, 17)])
def test_tiles_of_minus_infinity_count_for_nothing(masked: slice) -> None:
    logits = torch.randn(5, 20)
    logits[:, masked] = -torch.inf
    h = online(logits, 8)
    assert torch.isfinite(h).all()
    assert torch.allclose(h.double(), exact(logits), atol=1e-6)


def test_nothing_but_minus_infinity_and_nan_are_nan_and_leave_other_rows_alone() -> None:
    logits = torch.zeros(3, 6)
    logits[0] = -torch.inf
    logits[1, 4] = torch.nan
    h = online(logits, 4)
    assert h.isnan().tolist() == [True, True, False]
    assert h[2].item() == pytest.approx(math.log(6), abs=1e-6)


def test_no_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="got no tile"):
        entropy_of_tiles([])


@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])
@pytest.mark.parametrize("bias", [False, True])
def test_tile_and_chunk_sizes_change_nothing_and_float64_agrees(scale: float, bias: bool) -> None:
    h, w, b = hidden_and_head(bias=bias)
    h *= scale
    expected = exact(h.double() @ w.double().T + (0.0 if b is None else b.double()))
    for rows, tile in ((1, 1003), (5, 17), (37, 1000), (64, 1024), (8, 1)):
        got = head_entropies(h, OutputHead.of_weight(w, b), temperature=1.0, rows=rows, tile=tile)
        assert got.dtype == torch.float32
        assert (got.double() - expected).abs().max() <= 1e-5 * max(1.0, scale)


@pytest.mark.parametrize("transform", [
    LogitTransform(multiply=0.0625), LogitTransform(divide=8.0), LogitTransform(soft_cap=5.0),
    LogitTransform(multiply=0.5, divide=2.0, soft_cap=3.0), LogitTransform(vocabulary=700),
])  # fmt: skip
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_transforms_and_temperature_follow_their_formula(transform: LogitTransform, temperature: float) -> None:
    h, w, b = hidden_and_head(bias=True)
    z = (h.double() @ w.double().T + b.double())[:, : transform.vocabulary] * transform.multiply / transform.divide  # type: ignore[union-attr]
    if transform.soft_cap:
        z = transform.soft_cap * torch.tanh(z / transform.soft_cap)
    got = head_entropies(h, OutputHead.of_weight(w, b, transform), temperature=temperature, rows=10, tile=99)
    assert (got.double() - exact(z / temperature)).abs().max() <= 2e-5


@pytest.mark.parametrize("labels", ["first", "random"])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_nll_identity_gives_the_same_entropy_for_any_label(labels: str, temperature: float) -> None:
    """H = NLL_y - <h, d NLL_y / dh>: an oracle that shares no arithmetic with the kernel (performance.md 2.2)."""
    h, w, _ = hidden_and_head()
    g = h.double().requires_grad_()
    y = torch.zeros(len(h), dtype=torch.long) if labels == "first" else torch.randint(len(w), (len(h),))
    nll = torch.nn.functional.cross_entropy(g @ w.double().T / temperature, y, reduction="none")
    (gradient,) = torch.autograd.grad(nll.sum(), g)
    identity = nll.detach() - (h.double() * gradient).sum(-1)
    got = head_entropies(h, OutputHead.of_weight(w), temperature=temperature, rows=16, tile=100)
    assert (got.double() - identity).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_operands_are_accumulated_in_float32(dtype: torch.dtype) -> None:
    h, w, _ = hidden_and_head(rows=64, size=4001, width=64)
    h, w = (h * 0.6).to(dtype), w.to(dtype)
    got = head_entropies(h, OutputHead.of_weight(w), temperature=1.0, rows=32, tile=512)
    assert (got.double() - exact(h.double() @ w.double().T)).abs().max() <= 2e-5


class Largest(TorchDispatchMode):
    """Records the largest tensor made, and every matrix product's output shape."""

    def __init__(self) -> None:
        super().__init__()
        self.numel, self.products = 0, []  # type: int, list[tuple[int, ...]]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out._base is None and "view" not in str(func) and not func.is_view:
            self.numel = max(self.numel, out.numel())
            if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                self.products.append(tuple(out.shape))
        return out


def test_no_more_than_rows_times_tile_logits_exist_at_any_length() -> None:
    sizes = []
    for rows in (100, 1000):
        h, w, _ = hidden_and_head(rows=rows, size=5000, width=8)
        with Largest() as seen:
            head_entropies(h, OutputHead.of_weight(w), temperature=1.0, rows=64, tile=128)
        assert max(a * b for a, b in seen.products) <= 64 * 128
        assert sum(a * b for a, b in seen.products) == rows * 5000  # and each logit is computed once
        sizes.append(seen.numel)
    assert sizes == [64 * 128] * 2


def test_a_head_that_is_no_plain_layer_is_called_on_few_rows_and_gives_the_same() -> None:
    h, w, _ = hidden_and_head(rows=100, size=5000, width=8)

    class Opaque(torch.nn.Module):
        rows: list[int] = []  # noqa: RUF012

        def forward(self, x: Tensor) -> Tensor:
            self.rows.append(len(x))
            return x @ w.T

    head = OutputHead.of_module(Opaque(), LogitTransform(), 5000)
    got = head_entropies(h, head, temperature=0.7, rows=64, tile=128)
    assert torch.allclose(got, head_entropies(h, OutputHead.of_weight(w), temperature=0.7, rows=64, tile=128), atol=1e-5)
    assert max(Opaque.rows) == 16
    assert sum(Opaque.rows) == 100
