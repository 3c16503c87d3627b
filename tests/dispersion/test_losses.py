"""The losses against golden numbers, plain formulas, finite differences, and every hazard we know of."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from condense.dispersion import losses
from condense.dispersion.losses import LOSSES, angular, decorrelation, l2_repel, mean_cosine, orthogonal

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "dispersion.json").read_text())
CLAMPED = ("angular", "orthogonal")
SCALE_FREE = ("angular", "orthogonal", "decorrelation", "mean_cosine")
every_loss = pytest.mark.parametrize("name", list(LOSSES))
scale_free = pytest.mark.parametrize("name", SCALE_FREE)


def cloud(seed: int, n: int, d: int, cone: float = 0.0) -> np.ndarray:
    """The recipe of golden/geometry.json, the parts used here."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    if cone:
        x += cone * rng.standard_normal(d)
    return x.astype(np.float32)


def batch(seed: int = 0, b: int = 2, n: int = 9, d: int = 12, cone: float = 0.7) -> Tensor:
    """Float64 sequences, each its own cloud."""
    return torch.stack([torch.tensor(cloud(seed * 100 + i, n, d, cone)) for i in range(b)]).double()


def value_and_gradient(
    loss: Callable[..., Tensor], states: Tensor, mask: Tensor | None = None, **constants: float
) -> tuple[Tensor, Tensor]:
    """Run forward and backward on a fresh leaf."""
    leaf = states.clone().requires_grad_()
    value = loss(leaf, mask, **constants)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


# ---- independent implementations ---------------------------------------------------------------------------


def by_hand(name: str, x: np.ndarray, **constants: float) -> float:
    """One sequence, one pair at a time."""
    k = {**GOLDEN["constants"], **constants}
    n, d = x.shape
    terms = []
    for i in range(n):
        for j in range(n):
            if i == j:
                continue
            cosine = float(x[i] @ x[j] / math.sqrt(x[i] @ x[i]) / math.sqrt(x[j] @ x[j]))
            angle = math.acos(min(max(cosine, k["clamp"] - 1), 1 - k["clamp"])) / math.pi
            terms.append(
                {
                    "angular": math.exp(-angle / k["tau"]),
                    "orthogonal": max(0.0, k["margin"] - angle) ** 2,
                    "decorrelation": float(np.corrcoef(x[i], x[j])[0, 1]) ** 2,
                    "l2_repel": math.exp(-float(((x[i] - x[j]) ** 2).sum()) / (d * k["tau"])),
                    "mean_cosine": cosine,
                }[name]
            )
    mean = sum(terms) / len(terms)
    if name == "angular":
        return math.log(mean)
    if name == "l2_repel":
        return math.log(mean) + k["norm_weight"] * float((x**2).mean())
    return mean


def plain(name: str, x: Tensor, straight_through: bool = True) -> Tensor:
    """One sequence (n, d) with autograd doing all the work; its clamp may also be the naive, dead one."""
    n, d = x.shape
    different = ~torch.eye(n, dtype=torch.bool)
    if name == "decorrelation":
        x = x - x.mean(1, keepdim=True)
    unit = x / x.square().sum(1, keepdim=True).sqrt()
    cosines = unit @ unit.T
    if name == "mean_cosine":
        return cosines[different].mean()
    if name == "decorrelation":
        return cosines[different].square().mean()
    if name == "l2_repel":
        squares = (x[:, None] - x[None]).square().sum(-1)[different] / d
        return (-squares).exp().mean().log() + 0.1 * x.square().mean()
    bounded = cosines.clamp(-0.9, 0.9)
    if straight_through:
        at = bounded.detach()
        slope = -1 / (math.pi * (1 - at**2).sqrt())
        distance = at.acos() / math.pi + slope * (cosines - cosines.detach())  # the second term is worth 0
    else:
        distance = bounded.acos() / math.pi
    distance = distance[different]
    if name == "angular":
        return (-distance).exp().mean().log()
    return (0.5 - distance).clamp(min=0).square().mean()


# ---- values and gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['kind']}-{c['cloud']['seed']}")
def test_golden(case: dict[str, Any]) -> None:
    """Values to 1e-12 in float64, gradient entries to 1e-5 (they were written down from float32 leaves)."""
    states = torch.tensor(cloud(**case["cloud"]))[None]
    wanted = torch.tensor(case.get("gradient") or case["gradient_at_(0,0)_(1,2)_(5,7)"], dtype=torch.float64)
    value, gradient = value_and_gradient(LOSSES[case["kind"]], states.double())
    assert value.item() == pytest.approx(case["value"], rel=1e-12)
    torch.testing.assert_close(gradient[0, [0, 1, 5], [0, 2, 7]], wanted, rtol=1e-5, atol=0)
    if "gradient_norm" in case:
        assert gradient.norm().item() == pytest.approx(case["gradient_norm"], rel=1e-5)

    value32, gradient32 = value_and_gradient(LOSSES[case["kind"]], states)
    assert value32.item() == pytest.approx(case["value"], rel=3e-6)
    torch.testing.assert_close(gradient32.double(), gradient, rtol=0, atol=1e-5 * gradient.abs().max().item())


@pytest.mark.parametrize("name", CLAMPED)
def test_gradient_lives_where_every_pair_is_clamped(name: str) -> None:
    """Golden seed 24: a naive clamp is dead there, ours equals the straight-through formula."""
    x = torch.tensor(cloud(24, 48, 64, 4.0)).double()
    cosines = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(x, dim=1).T
    assert cosines.min() > 0.9
    naive = value_and_gradient(lambda s, _: plain(name, s[0], straight_through=False), x[None])
    wanted = value_and_gradient(lambda s, _: plain(name, s[0]), x[None])
    value, gradient = value_and_gradient(LOSSES[name], x[None])
    assert naive[1].count_nonzero() == 0
    assert gradient.norm() > 1e-3
    torch.testing.assert_close((value, gradient), wanted, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(value, naive[0])


@every_loss
@pytest.mark.parametrize("cone", [0.0, 0.7, 3.0])
def test_equals_the_double_loop(name: str, cone: float) -> None:
    """Value on random clouds, some of their pairs clamped."""
    for seed in range(3):
        x = cloud(seed, 8, 5, cone).astype(np.float64)
        assert LOSSES[name](torch.tensor(x)[None]).item() == pytest.approx(by_hand(name, x), rel=1e-11)


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("angular", {"tau": 0.2, "clamp": 0.3}),
        ("orthogonal", {"margin": 0.4, "clamp": 0.3}),
        ("l2_repel", {"tau": 0.3, "norm_weight": 0.7}),
    ],
)
def test_constants_reach_the_formula(name: str, constants: dict[str, float]) -> None:
    """Away from the defaults, value by the double loop and gradient by finite differences."""
    x = cloud(5, 8, 5, 0.7).astype(np.float64)
    loss = LOSSES[name]
    assert loss(torch.tensor(x)[None], **constants).item() == pytest.approx(by_hand(name, x, **constants))
    inside = {**constants, "clamp": 1e-3} if "clamp" in constants else constants
    torch.autograd.gradcheck(lambda s: loss(s, **inside), batch(6, n=5, d=6, cone=0.3).requires_grad_())


@every_loss
@pytest.mark.parametrize("cone", [0.0, 0.7, 2.0, 4.0])
def test_gradient_equals_plain_autograd(name: str, cone: float) -> None:
    """The analytic gradient against autograd through the plain formula, clamped pairs included."""
    states = batch(3, b=1, n=20, d=16, cone=cone)
    wanted = value_and_gradient(lambda s, _: plain(name, s[0]), states)
    torch.testing.assert_close(value_and_gradient(LOSSES[name], states), wanted, rtol=1e-10, atol=1e-15)


@every_loss
def test_gradcheck(name: str) -> None:
    """Finite differences, with a mask, two sequences and no pair clamped."""
    states = batch(1, n=6, d=8, cone=0.3)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    unit = torch.nn.functional.normalize(states, dim=-1)
    assert (unit @ unit.mT - torch.eye(6)).abs().max() < 0.85
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, mask), states.requires_grad_())


@every_loss
def test_second_derivatives_are_refused(name: str) -> None:
    """The gradient is a constant to autograd; differentiating it must fail, not give 0."""
    states = batch().requires_grad_()
    (gradient,) = torch.autograd.grad(LOSSES[name](states).square(), states, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


def test_scaling_the_loss_scales_the_gradient() -> None:
    """A coefficient and a sum with other terms pass through, and the graph can be walked twice."""
    leaf = batch().requires_grad_()
    loss = 0.1 * angular(leaf * 2) + leaf.sum()
    loss.backward(retain_graph=True)
    assert leaf.grad is not None
    once = leaf.grad.clone()
    loss.backward()
    torch.testing.assert_close(leaf.grad, 2 * once)
    torch.testing.assert_close(once - 1, 0.1 * value_and_gradient(angular, leaf.detach())[1])


# ---- masks and batches -------------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("filler", [0.0, 7.0, 1e30, math.nan, math.inf])
@pytest.mark.parametrize("kind", [torch.bool, torch.long])
def test_masking_equals_removing(name: str, filler: float, kind: torch.dtype) -> None:
    """Whatever the masked rows hold."""
    states = batch(2, b=1)
    mask = torch.tensor([[0, 1, 1, 0, 1, 1, 1, 0, 0]]).bool()
    value, gradient = value_and_gradient(LOSSES[name], states[:, mask[0]])
    filled = torch.where(mask[..., None], states, filler)
    masked_value, masked_gradient = value_and_gradient(LOSSES[name], filled, mask.to(kind))
    torch.testing.assert_close(masked_value, value)
    torch.testing.assert_close(masked_gradient[:, mask[0]], gradient)
    assert masked_gradient[:, ~mask[0]].count_nonzero() == 0


@every_loss
def test_batch_is_the_mean_over_sequences_with_two_tokens(name: str) -> None:
    """A short sequence weighs as much as a long one; those with one token or none weigh nothing."""
    loss, states = LOSSES[name], batch(4, b=4)
    lengths = torch.tensor([9, 3, 1, 0])
    mask = torch.arange(9) < lengths[:, None]
    value, gradient = value_and_gradient(loss, states, mask)
    alone = [value_and_gradient(loss, states[i : i + 1, :length]) for i, length in enumerate((9, 3))]
    torch.testing.assert_close(value, (alone[0][0] + alone[1][0]) / 2)
    torch.testing.assert_close(gradient[:1], alone[0][1] / 2)
    torch.testing.assert_close(gradient[1:2, :3], alone[1][1] / 2)
    assert gradient[2:].count_nonzero() == 0


@every_loss
def test_fewer_than_two_tokens_is_a_connected_zero(name: str) -> None:
    """One token, no token, only padding, an empty batch: 0, and backward runs."""
    junk = torch.full((2, 5, 4), math.nan)
    none = torch.zeros(2, 5, dtype=torch.bool)
    for states, mask in [
        (torch.randn(2, 1, 4), None),
        (torch.randn(2, 0, 4), None),
        (torch.randn(0, 5, 4), None),
        (junk, none),
        (torch.where(torch.arange(5)[:, None] == 2, 1.5, junk), none | (torch.arange(5) == 2)),
        (torch.zeros(2, 5, 4), None),
    ]:
        value, gradient = value_and_gradient(LOSSES[name], states, mask)
        assert value == 0 and value.shape == ()
        assert gradient.shape == states.shape and gradient.count_nonzero() == 0


@every_loss
def test_negligible_rows_are_removed(name: str) -> None:
    """A zero row, and one shorter than 1e-6 of the rms norm; one a little longer stays."""
    states = batch(7, b=1)
    rms = states.square().sum(-1).mean().sqrt()
    zero, short, enough = states.clone(), states.clone(), states.clone()
    zero[0, 4] = 0
    short[0, 4] *= 0.9e-6 * rms / short[0, 4].norm()
    enough[0, 4] *= 1.2e-6 * rms / enough[0, 4].norm()
    removed = LOSSES[name](torch.cat([states[:, :4], states[:, 5:]], 1))
    torch.testing.assert_close(LOSSES[name](zero), removed, rtol=1e-12, atol=0)
    torch.testing.assert_close(LOSSES[name](short), removed, rtol=1e-12, atol=0)
    assert abs(LOSSES[name](enough) - removed) > 1e-6
    for removed_too in (zero, short):
        assert value_and_gradient(LOSSES[name], removed_too)[1][0, 4].count_nonzero() == 0


def test_constant_rows_are_removed_in_decorrelation_only() -> None:
    """They have a direction but no correlation; a sequence left with one row by this counts no more."""
    states = batch(8, b=2).float()
    states[0, 4] = 3.3
    removed = torch.cat([states[:1, :4], states[:1, 5:]], 1)
    torch.testing.assert_close(decorrelation(states[:1]), decorrelation(removed))
    assert abs(mean_cosine(states[:1]) - mean_cosine(removed)) > 1e-4
    states[0, 1:] = -1e4 / 3
    value, gradient = value_and_gradient(decorrelation, states)
    torch.testing.assert_close(value, decorrelation(states[1:]))
    assert gradient[0].count_nonzero() == 0


# ---- hazards -----------------------------------------------------------------------------------------------


def hazards() -> dict[str, Tensor]:
    """Finite states on which a careless formula gives NaN, infinity or a silent constant."""
    x = batch(9).float()
    one_huge, one_tiny, pair, opposite, constant = (x.clone() for _ in range(5))
    one_huge[:, 2] *= 1e20
    one_tiny[:, 2] *= 1e-20
    pair[:, 3] = pair[:, 2]
    opposite[:, 3] = -opposite[:, 2]
    constant[:, 3] = 0.1
    return {
        "rows x 1e20": x * 1e20,
        "rows x 1e37": x * 1e37,
        "up to the largest float": x / x.abs().max() * torch.finfo(torch.float32).max,
        "rows x 1e-20": x * 1e-20,
        "subnormal rows": x * 1e-40,
        "one row x 1e20": one_huge,
        "one row x 1e-20": one_tiny,
        "two equal rows": pair,
        "all rows equal": x[:, :1].expand(-1, 9, -1).contiguous(),
        "opposite rows": opposite,
        "a line": x[:, :1] * torch.linspace(-2, 2, 9)[None, :, None],
        "constant row": constant,
        "all constant": torch.ones_like(x),
        "zero": torch.zeros_like(x),
        "one feature": x[..., :1],
        "half": (x * 300).half(),
        "half, subnormal": (x * 1e-6).half(),
        "bfloat16": x.bfloat16(),
        "bfloat16 x 1e20": (x * 1e20).bfloat16(),
    }


@every_loss
@pytest.mark.parametrize("hazard", list(hazards()))
def test_hazards_stay_finite(name: str, hazard: str) -> None:
    """Value and gradient, with and without a mask that leaves one token in one of the sequences."""
    states = hazards()[hazard]
    lonely = torch.ones(2, 9, dtype=torch.bool)
    lonely[1, 1:] = False
    for mask in (None, lonely):
        value, gradient = value_and_gradient(LOSSES[name], states, mask)
        assert value.dtype == torch.float32 and value.isfinite()
        assert gradient.dtype == states.dtype and gradient.isfinite().all()


@scale_free
@pytest.mark.parametrize("factor", [1e20, 1e37, 1e-20])
def test_extreme_sizes_change_nothing(name: str, factor: float) -> None:
    """Not merely finite: the same value, and a gradient over the factor."""
    states = batch(9).float()
    value, gradient = value_and_gradient(LOSSES[name], states)
    far_value, far_gradient = value_and_gradient(LOSSES[name], states * factor)
    torch.testing.assert_close(far_value, value)
    torch.testing.assert_close(far_gradient.double() * factor, gradient.double(), rtol=1e-4, atol=1e-8)


@scale_free
def test_largest_floats_change_nothing(name: str) -> None:
    """Norms beyond the range of float32, entries within."""
    states = batch(9).float()
    states /= states.abs().max()
    torch.testing.assert_close(
        LOSSES[name](states * torch.finfo(torch.float32).max), LOSSES[name](states), rtol=1e-5, atol=1e-7
    )


def test_l2_repel_is_scaled_down_where_squares_overflow() -> None:
    """From there on the value stands still and the gradient falls with the size, as documented."""
    states = batch(9, b=1).float()
    value, gradient = value_and_gradient(l2_repel, states * 1e18)
    far_value, far_gradient = value_and_gradient(l2_repel, states * 1e20)
    torch.testing.assert_close(far_value, value)
    torch.testing.assert_close(far_gradient * 100, gradient)


def test_l2_repel_never_takes_rounding_for_a_negative_distance() -> None:
    """Equal rows at a large norm: without the price the loss cannot be positive."""
    for seed in range(8):
        states = batch(seed, b=1).float() * 1e6
        states[:, 3] = states[:, 2]
        assert l2_repel(states, norm_weight=0.0) <= 0


def test_closed_forms() -> None:
    """All directions equal, all orthogonal, half against half."""
    equal = torch.randn(1, 1, 8).expand(1, 4, 8) * torch.tensor([1.0, 2.0, 3.0, 4.0])[None, :, None]
    edge = math.acos(0.9) / math.pi
    assert angular(equal).item() == pytest.approx(-edge, rel=1e-6)
    assert orthogonal(equal).item() == pytest.approx((0.5 - edge) ** 2, rel=1e-6)
    assert decorrelation(equal).item() == pytest.approx(1, rel=1e-6)
    assert mean_cosine(equal).item() == pytest.approx(1, rel=1e-6)
    assert l2_repel(torch.full((1, 4, 8), 3.0)).item() == pytest.approx(0.9, rel=1e-6)
    basis = 5 * torch.eye(6)[None]
    assert angular(basis).item() == pytest.approx(-0.5, rel=1e-6)
    assert orthogonal(basis).item() == pytest.approx(0, abs=1e-12)
    assert mean_cosine(basis).item() == pytest.approx(0, abs=1e-6)
    assert decorrelation(basis).item() == pytest.approx((1 / 5) ** 2, rel=1e-5)
    assert l2_repel(basis).item() == pytest.approx(-50 / 6 + 0.1 * 25 / 6, rel=1e-6)
    opposite = torch.tensor([[[2.0, 1.0], [-2.0, -1.0]]])
    assert angular(opposite).item() == pytest.approx(edge - 1, rel=1e-6)
    assert mean_cosine(opposite).item() == pytest.approx(-1, rel=1e-6)


@every_loss
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_non_finite_states_show(name: str, poison: float) -> None:
    """Refusing them is the Disperser's work, hiding them nobody's."""
    states = batch(b=2).float()
    states[1, 3, 2] = poison
    value, _ = value_and_gradient(LOSSES[name], states)
    assert value.isnan()


def test_l2_repel_still_repels_at_residual_norms() -> None:
    """At norms of real residual streams exp(-distance) underflows; the gradient over directions must not."""
    states = batch(10, n=16, d=64, cone=1.0).float() * 100
    unpriced = value_and_gradient(l2_repel, states, norm_weight=0.0)[1]
    assert torch.exp(-torch.cdist(states, states).square() / 64).sum() == 2 * 16
    assert unpriced.norm() > 0.1


@pytest.mark.parametrize(
    "call",
    [
        lambda: angular(torch.randn(3, 4)),
        lambda: angular(torch.ones(1, 3, 4, dtype=torch.long)),
        lambda: mean_cosine(torch.randn(2, 3, 4), torch.ones(2, 4)),
        lambda: angular(torch.randn(1, 3, 4), tau=0.0),
        lambda: angular(torch.randn(1, 3, 4), clamp=1.0),
        lambda: orthogonal(torch.randn(1, 3, 4), clamp=0.0),
        lambda: orthogonal(torch.randn(1, 3, 4), margin=-1.0),
        lambda: l2_repel(torch.randn(1, 3, 4), tau=math.nan),
    ],
)
def test_callers_mistakes(call: Callable[[], Tensor]) -> None:
    """Wrong shapes and constants raise ValueError, at the call."""
    with pytest.raises(ValueError):
        call()


# ---- precision and invariance ------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    """The value is that of the same numbers in float32; the gradient comes back in their type."""
    low = batch(11).to(dtype)
    value, gradient = value_and_gradient(LOSSES[name], low)
    exact = value_and_gradient(LOSSES[name], low.float())
    assert value.dtype == torch.float32
    torch.testing.assert_close((value, gradient), (exact[0], exact[1].to(dtype)), rtol=0, atol=0)


@every_loss
def test_autocast_changes_nothing(name: str) -> None:
    """Neither forward nor backward."""
    states = batch(12).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = value_and_gradient(LOSSES[name], states)
    torch.testing.assert_close(inside, value_and_gradient(LOSSES[name], states), rtol=0, atol=0)


@scale_free
def test_scale_of_each_row_is_irrelevant(name: str) -> None:
    """Also for the gradient's direction: it is orthogonal to each row, so norms are not a way down."""
    states = batch(13)
    sizes = torch.linspace(0.2, 40, 9, dtype=torch.float64)[None, :, None]
    torch.testing.assert_close(LOSSES[name](states * sizes), LOSSES[name](states))
    gradient = value_and_gradient(LOSSES[name], states)[1]
    torch.testing.assert_close((gradient * states).sum(-1), torch.zeros(2, 9).double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["angular", "orthogonal", "l2_repel", "mean_cosine"])
def test_rotation_is_irrelevant(name: str) -> None:
    """The value is unchanged and the gradient turns along."""
    states = batch(14)
    turn = torch.linalg.qr(torch.tensor(cloud(1, 12, 12)).double()).Q
    value, gradient = value_and_gradient(LOSSES[name], states)
    torch.testing.assert_close(value_and_gradient(LOSSES[name], states @ turn), (value, gradient @ turn))


def test_decorrelation_ignores_an_offset_per_row() -> None:
    """Which the cosine losses see; in turn it is not invariant to rotation."""
    states = batch(15)
    offset = torch.linspace(-3, 3, 9, dtype=torch.float64)[None, :, None]
    torch.testing.assert_close(decorrelation(states + offset), decorrelation(states))
    assert abs(mean_cosine(states + offset) - mean_cosine(states)) > 1e-2


@every_loss
def test_order_is_irrelevant(name: str) -> None:
    """Of tokens and of sequences."""
    states = batch(16, b=3)
    value, gradient = value_and_gradient(LOSSES[name], states)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffled = value_and_gradient(LOSSES[name], states[[2, 0, 1]][:, order])
    torch.testing.assert_close(shuffled, (value, gradient[[2, 0, 1]][:, order]))


# ---- what the losses are for -------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("cone", [0.7, 4.0])
def test_a_step_down_the_gradient(name: str, cone: float) -> None:
    """Opens the cone, even from where the value of the clamped losses stands still."""
    states = batch(17, n=32, d=48, cone=cone)
    value, gradient = value_and_gradient(LOSSES[name], states)
    step = states - 0.05 * states.norm() * gradient / gradient.norm()
    assert LOSSES[name](step) < value or (name in CLAMPED and cone == 4.0)
    if name != "l2_repel":
        assert mean_cosine(step) < mean_cosine(states)


@pytest.mark.parametrize("cone", [1.1, 1.5, 2.5, 5.0])
@pytest.mark.parametrize("d", [64, 576])
def test_mean_cosine_pulls_as_angular_does(cone: float, d: int) -> None:
    """On a cone of mean cosine .5 and more the two gradients are at least .998 aligned."""
    states = batch(18, n=128, d=d, cone=cone)
    value, cheap = value_and_gradient(mean_cosine, states)
    full = value_and_gradient(angular, states)[1]
    assert value >= 0.5
    assert torch.cosine_similarity(cheap.flatten(), full.flatten(), dim=0) >= 0.998


def test_mean_cosine_and_angular_part_on_two_cones() -> None:
    """The mean cosine still exceeds .5, but pairs within a cone are clamped and those across are not."""
    states = batch(2, b=1, n=128, d=256, cone=2.0)
    states[:, 64:] += 6 * torch.tensor(cloud(20, 1, 256)).double()
    value, cheap = value_and_gradient(mean_cosine, states)
    full = value_and_gradient(angular, states)[1]
    assert value >= 0.5
    assert 0.9 < torch.cosine_similarity(cheap.flatten(), full.flatten(), dim=0) < 0.99


def saved_bytes(run: Callable[[], Tensor]) -> int:
    """Bytes that wait for the backward pass, each storage once."""
    storages: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = run()
    total = sum(tensor.untyped_storage().nbytes() for tensor in storages.values())
    loss.backward()
    return total


@every_loss
def test_only_the_gradient_waits_for_backward(name: str) -> None:
    """One (B, S, d) tensor; the plain formula keeps more than twice that."""
    b, n, d = 2, 256, 128
    states = batch(19, b=b, n=n, d=d).float().requires_grad_()
    bound = 1.05 * b * n * d * 4
    assert saved_bytes(lambda: LOSSES[name](states)) <= bound
    assert saved_bytes(lambda: torch.stack([plain(name, row) for row in states]).mean()) > 2 * bound


def test_nothing_is_kept_without_a_graph() -> None:
    """Under no_grad, and for states without gradient, the loss is a bare number."""
    states = batch()
    assert not angular(states).requires_grad
    with torch.no_grad():
        assert not angular(states.requires_grad_()).requires_grad


@pytest.mark.parametrize("loss", LOSSES)
def test_products_in_tf32_keep_the_gradient_and_those_in_bfloat16_do_not(loss: str) -> None:
    """The choice for a GPU: TF32 within 1e-3 of float64 on every cloud, bfloat16 not (but where no pair is formed)."""
    from tests.benchmarks.precision import BITS, cone, gradient
    from tests.clouds import states as made

    clouds = [cone(cosine, 64, 48) for cosine in (0.0, 0.5, 0.9, 0.99)]
    clouds += [made(1, 40, 16, cone=1.0, rogue=5.0)[None], made(2, 40, 16, cone=2.0, sink=50.0)[None]]
    apart: dict[str, list[float]] = {name: [] for name in BITS}
    for states in clouds:
        right = gradient(loss, states, None)
        for name, bits in BITS.items():
            apart[name].append(float((gradient(loss, states, bits) - right).norm() / right.norm()))
    assert max(apart["float32"]) < 1e-5 and max(apart["TF32"]) < 1e-3, apart
    assert loss in ("l2_repel", "mean_cosine") or max(apart["bfloat16"]) > 1e-3, apart


def test_what_was_set_of_tf32_comes_back() -> None:
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    with losses._tf32(torch.device("cpu")):
        assert products.fp32_precision == before
    with pytest.raises(RuntimeError), losses._tf32(torch.device("cuda")):
        assert products.fp32_precision == "tf32"
        raise RuntimeError
    assert products.fp32_precision == before and not products.allow_tf32


def test_the_table_of_costs_on_a_device_has_a_row_for_every_loss(tiny) -> None:
    from tests.benchmarks import gpu

    rows = dict(gpu.table(str(tiny("llama")), [(2, 16)], [(2, 32)], rounds=1))
    assert rows["device"] and rows["  host waits per text"]
    for loss in LOSSES:
        for tokens in ("whole", "max_tokens 256"):
            assert float(rows[f"  {loss}, {tokens}"].split()[1].rstrip(",")) > 0
    assert float(rows["analyze, batch 2, 32 tokens"].rpartition("x ")[2]) > 0
    for part in ("forward", "transfer", "measuring"):
        assert float(rows[f"  {part}, nothing beside it"].rpartition("x ")[2]) >= 0
