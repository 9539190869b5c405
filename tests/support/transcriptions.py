"""Every recipe of conf/recipe as its paper's algorithm, in float64.

A transcription gives the six operands as they are multiplied, the output and both gradients.
Scales and grids are spelled out here again; what is random comes in as the layer's own draws.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.quant.formats import FloatFormat, Precision
from experiments.quant.kernels.noise import uniform
from experiments.quant.linear import NoiseClock, QuantLinear
from experiments.quant.operand import Operand
from tests.support.golden_recipes import configuration

Quantizer = Callable[[Tensor], Tensor]
IN, OUT, ROWS = 64, 96, 128
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E4M3 = FloatFormat(4, 3, "ocp").grid()
E5M2 = FloatFormat(5, 2, "ocp").grid()
UE5M3 = FloatFormat(5, 3, "ieee").grid()
E3M0 = [0.0, *(2.0**k for k in range(-2, 5))]


# Grids and scales, in float64.


def nearest(x: Tensor, grid: list[float]) -> Tensor:
    """The nearest of +-grid, the even code of two; beyond the last, the last."""
    numbers = torch.tensor(grid, dtype=torch.float64)
    above = torch.searchsorted(numbers, x.abs().contiguous()).clamp(1, len(grid) - 1)
    low, high = numbers[above - 1], numbers[above]
    up = x.abs() - low > high - x.abs()
    up |= (x.abs() - low == high - x.abs()) & (above % 2 == 0)
    return torch.where(up, high, low).copysign(x)


def stochastic(x: Tensor, grid: list[float], draws: Tensor) -> Tensor:
    """The upper neighbour where the draw is below the distance to the lower in steps."""
    numbers = torch.tensor(grid, dtype=torch.float64)
    above = torch.searchsorted(numbers, x.abs().contiguous()).clamp(1, len(grid) - 1)
    low, high = numbers[above - 1], numbers[above]
    return torch.where(draws < (x.abs() - low) / (high - low), high, low).copysign(x)


def scaled(
    x: Tensor,
    size: int,
    scale: Callable[[Tensor], Tensor],
    grid: list[float],
    draws: Tensor | None = None,
) -> Tensor:
    """Values of scale * round(x / scale), with one scale every `size` of them."""
    blocks = x.reshape(-1, size)
    s = scale(blocks)
    if draws is None:
        return (s * nearest(blocks / s, grid)).reshape(x.shape)
    return (s * stochastic(blocks / s, grid, draws.double().reshape(blocks.shape))).reshape(x.shape)


def amax(blocks: Tensor) -> Tensor:
    return blocks.abs().amax(-1, keepdim=True)


def floor_scale(blocks: Tensor) -> Tensor:
    """OCP MX v1.0, section 6.3: the powers of two of amax and of 6."""
    return 2.0 ** (amax(blocks).log2().floor() - 2)


def quest_scale(blocks: Tensor) -> Tensor:
    """2505.14669: clips E2M1 at 2.92247856 standard deviations, exponent rounded."""
    rms = blocks.square().mean(-1, keepdim=True).sqrt()
    return 2.0 ** (2.92247856 / 6 * rms).log2().round()


def two_level_scale(blocks: Tensor, stored: list[float], top: float, largest: float = 6) -> Tensor:
    """2509.25149: amax_b / 6 in `stored`, in units that put the tensor's at `top`."""
    unit = largest * top / blocks.abs().max()
    return nearest(amax(blocks) / largest * unit, stored).clamp_min(stored[1]) / unit


mx = partial(scaled, size=32, scale=floor_scale, grid=E2M1)
mx_4_3 = partial(scaled, size=32, scale=lambda b: floor_scale(b) * 4 / 3, grid=E2M1)
mx_ceil = partial(scaled, size=32, scale=lambda b: 2.0 ** (amax(b) / 6).log2().ceil(), grid=E2M1)
mxint8 = partial(
    scaled,
    size=32,
    scale=lambda b: 2.0 ** (amax(b) / 127).log2().ceil(),
    grid=[float(k) for k in range(128)],
)
quest = partial(scaled, size=32, scale=quest_scale, grid=E2M1)
nv = partial(scaled, size=16, scale=partial(two_level_scale, stored=E4M3, top=448.0), grid=E2M1)
ue5m3 = partial(scaled, size=16, scale=partial(two_level_scale, stored=UE5M3, top=448.0), grid=E2M1)


def whole(x: Tensor, grid: list[float], draws: Tensor | None = None) -> Tensor:
    return scaled(x, x.numel(), lambda b: amax(b) / grid[-1], grid, draws)


def rows_of(x: Tensor, grid: list[float]) -> Tensor:
    return scaled(x, x.shape[-1], lambda b: amax(b) / grid[-1], grid)


def tiles(x: Tensor, quantizer: Callable[..., Tensor]) -> Tensor:
    """16 x 16 values share a scale."""
    r, c = x.shape[0] // 16, x.shape[1] // 16
    flat = x.reshape(r, 16, c, 16).transpose(1, 2).reshape(r * c, 256)
    return quantizer(flat, size=256).reshape(r, c, 16, 16).transpose(1, 2).reshape(x.shape)


def four_over_six(x: Tensor) -> Tensor:
    """2601.22813: each block with amax on 6 or on 4, whichever errs less; tensor amax at 256."""
    blocks, choices = x.reshape(-1, 16), []
    unit = 6 * 256 / x.abs().max()
    for target in (6.0, 4.0):
        s = nearest(amax(blocks) / target * unit, E4M3).clamp_min(E4M3[1]) / unit
        choices.append(s * nearest(blocks / s, E2M1))
    errors = [(choice - blocks).square().sum(-1, keepdim=True) for choice in choices]
    return torch.where(errors[1] < errors[0], choices[1], choices[0]).reshape(x.shape)


def eden(x: Tensor, key: int) -> Tensor:
    """2601.22813, MS-EDEN: nearest elements, each block's scale corrected and rounded at random."""
    blocks, s = x.reshape(-1, 16), 6 * 16 / 17 / 0.93
    unit = x.abs().max() / (s * 256)
    stored = nearest(amax(blocks) / (unit * s), E4M3).clamp_min(E4M3[1])
    elements = nearest(blocks / (stored * unit), E2M1)
    projected = (blocks * elements * stored * unit).sum(-1, keepdim=True)
    factor = blocks.square().sum(-1, keepdim=True) / projected
    draws = uniform(key, (len(blocks), 1)).double()
    return (elements * stochastic(stored * factor, E4M3, draws) * unit).reshape(x.shape)


def hadamard(x: Tensor, size: int, signs: Tensor | None = None) -> Tensor:
    """The product x S H, H by Sylvester's construction."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < size:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1))) / 2**0.5
    x = x if signs is None else x * signs.double()
    return (x.reshape(-1, size) @ h).reshape(x.shape)


# The recipes.


class Case:
    """One layer, its data in float64, and its draws."""

    def __init__(self, recipe: str) -> None:
        generator = torch.Generator().manual_seed(3)
        run = Precision.parse("E2M1-block32-fp32")
        self.config = configuration(recipe).recipe
        self.layer = QuantLinear(IN, OUT, self.config, run, NoiseClock(seed=5, counter=2), layer=3)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(OUT, IN, generator=generator) / 8)
        self.x = torch.randn(2, ROWS // 2, IN, generator=generator)
        self.dy = torch.randn(2, ROWS // 2, OUT, generator=generator) * 1e-3
        self.x[0, :, 7] *= 20  # an outlier channel

    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        """X [rows, in], W [out, in], dY [rows, out]."""
        x, dy = self.x.flatten(0, 1).double(), self.dy.flatten(0, 1).double()
        return x, self.layer.weight.detach().double(), dy

    def key(self, stream: int) -> int:
        return self.layer.clock.key(self.layer.clock.counter, self.layer.layer, stream)

    def draws(self, label: str, like: Tensor) -> Tensor:
        return uniform(self.key(int(label[1])), tuple(like.shape))

    def signs(self, gemm: str, like: Tensor) -> Tensor:
        counter = self.layer.clock.counter
        found = self.layer.rotation(gemm, like.shape[-1], like.device, counter)
        assert found is not None
        assert found.signs is not None
        assert set(found.signs.tolist()) == {-1.0, 1.0}
        return found.signs

    def run(self) -> dict[str, Tensor]:
        """Output, gradients and the operands at the GEMMs."""
        seen: dict[str, Tensor] = {}

        def listen(_: QuantLinear, label: str, given: Operand, ready: Operand) -> None:
            seen[label] = ready.values.detach()

        self.layer.clock.watch = listen
        self.layer.zero_grad()
        x = self.x.clone().requires_grad_()
        y = self.layer(x)
        y.backward(self.dy)
        self.layer.clock.watch = None
        assert x.grad is not None
        assert self.layer.weight.grad is not None
        return {
            **seen,
            "y": y.detach().flatten(0, 1),
            "dx": x.grad.flatten(0, 1),
            "dw": self.layer.weight.grad,
        }


def gemms(p1: Tensor, p2: Tensor, p3: Tensor, p4: Tensor, p5: Tensor, p6: Tensor) -> Any:
    operands = {"P1": p1, "P2": p2, "P3": p3, "P4": p4, "P5": p5, "P6": p6}
    return operands | {"y": p1 @ p2.t(), "dx": p3 @ p4.t(), "dw": p5 @ p6.t()}


def six(case: Case, q: Callable[..., Tensor]) -> Any:
    x, w, dy = case.data()
    return gemms(q(x), q(w), q(dy), q(w.t()), q(dy.t()), q(x.t()))


def run_precision(x: Tensor, draws: Tensor | None = None) -> Tensor:
    return scaled(x, 32, lambda b: amax(b) / 6, E2M1, draws)


def rotated_six(case: Case) -> Any:
    x, w, dy = case.data()
    a, b = (case.signs(g, t) for g, t in (("grad_input", dy), ("grad_weight", dy.t())))
    q = run_precision
    return gemms(
        *(q(hadamard(t, 32)) for t in (x, w)),
        *(q(hadamard(t, 32, a)) for t in (dy, w.t())),
        *(q(hadamard(t, 32, b)) for t in (dy.t(), x.t())),
    )


def stochastic_six(case: Case) -> Any:
    x, w, dy = case.data()
    backward = {"P3": dy, "P4": w.t(), "P5": dy.t(), "P6": x.t()}
    rounded = (run_precision(t, case.draws(label, t)) for label, t in backward.items())
    return gemms(run_precision(x), run_precision(w), *rounded)


def sun(case: Case) -> Any:
    x, w, dy = case.data()
    q = run_precision
    return gemms(x, q(w), dy, q(w.t()), dy.t(), q(x.t()))


def none(case: Case) -> Any:
    x, w, dy = case.data()
    return {"y": x @ w.t(), "dx": dy @ w, "dw": dy.t() @ x}


def same_values(case: Case, forward: Quantizer, gradient: Callable[[Tensor, str], Tensor]) -> Any:
    """Weight and input quantized once, for both directions."""
    x, w, dy = case.data()
    xq, wq = forward(x), forward(w)
    return gemms(xq, wq, gradient(dy, "P3"), wq.t(), gradient(dy.t(), "P5"), xq.t())


def fp8_hybrid(case: Case) -> Any:
    return same_values(case, lambda t: whole(t, E4M3), lambda t, _: whole(t, E5M2))


def luq(case: Case) -> Any:
    """2112.10769: a power of two below or above; below the smallest, it or zero."""
    ints = [float(k) for k in range(8)]
    return same_values(
        case, lambda t: whole(t, ints), lambda t, label: whole(t, E3M0, case.draws(label, t))
    )


def quest_forward(case: Case) -> tuple[Tensor, ...]:
    """Rotated and rounded input and weight, and their trust masks."""
    x, w, _ = case.data()
    xh, wh = hadamard(x, 32), hadamard(w, 32)
    masks = [
        ((t.reshape(-1, 32) / quest_scale(t.reshape(-1, 32))).abs() < 6).reshape(t.shape)
        for t in (xh, wh)
    ]
    assert all(0.9 < mask.double().mean() < 1 for mask in masks)
    return quest(xh), quest(wh), masks[0], masks[1]


def quest_recipe(case: Case) -> Any:
    xq, wq, mx_, mw = quest_forward(case)
    _, _, dy = case.data()
    found = gemms(xq, wq, dy, wq.t(), dy.t(), xq.t())
    return found | {"dx": hadamard(found["dx"] * mx_, 32), "dw": hadamard(found["dw"] * mw, 32)}


def quartet(case: Case, random: bool) -> Any:
    """2505.14669, Algorithm 1, with its 3/4 and 16/9 where the paper has them."""
    xq, wq, mx_, mw = quest_forward(case)
    _, _, dy = case.data()

    def rounded(label: str, t: Tensor) -> Tensor:
        signs = case.signs("grad_input" if label in ("P3", "P4") else "grad_weight", t)
        blocks = hadamard(t, 32, signs).reshape(-1, 32)
        s = floor_scale(blocks)  # of the values before the factor
        if random:
            draws = case.draws(label, t).double().reshape(blocks.shape)
            return (s * stochastic(3 / 4 * blocks / s, E2M1, draws)).reshape(t.shape)
        return (s * nearest(3 / 4 * blocks / s, E2M1)).reshape(t.shape)

    backward = {"P3": dy, "P4": wq.t(), "P5": dy.t(), "P6": xq.t()}
    found = gemms(xq, wq, *(rounded(label, t) for label, t in backward.items()))
    found["dx"] = 16 / 9 * hadamard(found["dx"] * mx_, 32)
    found["dw"] = 16 / 9 * hadamard(found["dw"] * mw, 32)
    return found | {label: found[label] * 4 / 3 for label in backward}


def quartet2(case: Case) -> Any:
    x, w, dy = case.data()
    xq, wq = four_over_six(x), four_over_six(w)
    a, b = case.signs("grad_input", dy), case.signs("grad_weight", dy.t())
    return gemms(
        xq,
        wq,
        eden(hadamard(dy, 32, a), case.key(3)),
        eden(hadamard(wq.t(), 32, a), case.key(4)),
        eden(hadamard(dy.t(), 128, b), case.key(5)),
        eden(hadamard(xq.t(), 128, b), case.key(6)),
    )


def nvidia(case: Case) -> Any:
    x, w, dy = case.data()
    signs = case.signs("grad_weight", dy.t())
    assert torch.equal(signs, signs[:16].repeat(ROWS // 16)), "one vector of 16"
    wq = tiles(w, nv)
    dy_t = hadamard(dy.t(), 16, signs)
    return gemms(
        nv(x),
        wq,
        nv(dy, draws=case.draws("P3", dy)),
        wq.t(),
        nv(dy_t, draws=case.draws("P5", dy_t)),
        nv(hadamard(x.t(), 16, signs)),
    )


def all_the_way(case: Case) -> Any:
    x, w, dy = case.data()
    random = {
        label: nv(t, draws=case.draws(label, t))
        for label, t in (("P3", dy), ("P5", dy.t()), ("P6", x.t()))
    }
    return gemms(nv(x), nv(w), random["P3"], nv(w.t()), random["P5"], random["P6"])


def graphcore(case: Case) -> Any:
    x, w, dy = case.data()
    a, b = case.signs("grad_input", dy), case.signs("grad_weight", dy.t())
    dy_a, dy_b = hadamard(dy, 16, a), hadamard(dy.t(), 16, b)
    return gemms(
        ue5m3(hadamard(x, 16)),
        ue5m3(hadamard(w, 16)),
        ue5m3(dy_a, draws=case.draws("P3", dy_a)),
        ue5m3(hadamard(w.t(), 16, a)),
        ue5m3(dy_b, draws=case.draws("P5", dy_b)),
        ue5m3(hadamard(x.t(), 16, b)),
    )


def ue5m3_recipe(case: Case) -> Any:
    """2609.02846: up iff the fraction and (2r + 1) / 512 reach 1, r of 8 bits."""
    x, w, dy = case.data()
    wq = tiles(w, ue5m3)

    def fast(label: str, t: Tensor) -> Tensor:
        r = 255 - (case.draws(label, t).double() * 256).floor()
        # Up iff fraction >= threshold: the draw just below it, for `stochastic` asks draw < f.
        threshold = 1 - (2 * r + 1) / 512
        return ue5m3(t, draws=threshold - 1e-12)

    return gemms(ue5m3(x), wq, fast("P3", dy), wq.t(), fast("P5", dy.t()), ue5m3(x.t()))


def halo(case: Case, level: int) -> Any:
    x, w, dy = case.data()
    ints = [float(k) for k in range(128)]
    q = (lambda t: rows_of(t, ints)) if level else (lambda t: whole(t, E4M3))
    rotate = (lambda t: hadamard(t, 32)) if level else (lambda t: t)
    left = hadamard(dy.t(), 128).t() if level == 2 else dy
    found = gemms(q(rotate(x)), q(rotate(w)), q(left), q(w.t()), q(dy.t()), q(x.t()))
    if level == 2:
        found["dx"] = hadamard(found["dx"].t(), 128).t()
    return found


def dge(case: Case) -> Any:
    """2501.17116: f' = min(|2 (x - left) / d - 1|^(1/k - 1) / k, 3) of the weight, k = 5."""
    x, w, dy = case.data()
    xq, wq = rows_of(x, E2M1), rows_of(w, E2M1)
    unit = (w / (amax(w) / 6)).abs()
    grid = torch.tensor(E2M1, dtype=torch.float64)
    above = torch.searchsorted(grid, unit, right=True).clamp(max=7)
    left, d = grid[above - 1], grid[above] - grid[above - 1]
    slope = ((2 * (unit - left) / d - 1).abs() ** (1 / 5 - 1) / 5).clamp(max=3.0)
    found = gemms(xq, wq, dy, wq.t(), dy.t(), xq.t())
    return found | {"dw": found["dw"] * slope, "slope": slope}


def tetrajet(case: Case) -> Any:
    x, w, dy = case.data()
    xq, wq = mx_ceil(x), mx_ceil(w)
    backward = {"P3": dy, "P4": wq.t(), "P5": dy.t(), "P6": xq.t()}
    rounded = (mx_ceil(t, draws=case.draws(label, t)) for label, t in backward.items())
    return gemms(xq, wq, *rounded)


def lmul_product(left: Tensor, right: Tensor, mantissa: int) -> Tensor:
    """2410.00907, Eq. 1, one product at a time: sums over k of [i, k] and [j, k] to [i, j]."""
    low = {1: 1, 2: 2, 3: 3, 4: 3}.get(mantissa, 4)
    x, y = left[:, None, :], right[None, :, :]
    (fx, ex), (fy, ey) = torch.frexp(x.abs()), torch.frexp(y.abs())  # |x| = fx 2^ex, fx below 1
    xm, ym = 2 * fx - 1, 2 * fy - 1
    product = (1 + xm + ym + 2.0**-low) * 2.0 ** (ex + ey - 2).double()
    return torch.where((x == 0) | (y == 0), 0.0, product * x.sign() * y.sign()).sum(-1)


def lmul_recipe(case: Case) -> Any:
    wanted = six(case, lambda t: scaled(t, t.numel(), e4m3_ceil_scale, E4M3))
    for name, left, right in (("y", "P1", "P2"), ("dx", "P3", "P4"), ("dw", "P5", "P6")):
        wanted[name] = lmul_product(wanted[left], wanted[right], 3)
    return wanted


def e4m3_ceil_scale(blocks: Tensor) -> Tensor:
    """The smallest power of two with which 448 clips nothing."""
    return 2.0 ** (amax(blocks) / 448).log2().ceil()


def fixed_adaptive(case: Case) -> Any:
    """Before any word length has moved: 8 bits, the largest value below a power of two."""
    words = [float(k) for k in range(128)]
    forward = partial(scaled, grid=words)
    return same_values(
        case,
        lambda t: forward(t, t.numel(), lambda b: 2.0 ** (amax(b) / 127).log2().ceil()),
        lambda t, _: t,
    )


TRANSCRIPTIONS: dict[str, Callable[[Case], Any]] = {
    "none": none,
    "nearest": partial(six, q=run_precision),
    "stochastic": stochastic_six,
    "hadamard": rotated_six,
    "sun": sun,
    "mx_baseline": partial(six, q=mx),
    "int_symmetric": partial(six, q=mxint8),
    "fp8_hybrid": fp8_hybrid,
    "luq": luq,
    "quest": quest_recipe,
    "quartet_v1": partial(quartet, random=True),
    "quartet_v4": partial(quartet, random=False),
    "quartet2": quartet2,
    "nvidia_nvfp4": nvidia,
    "fp4_all_the_way": all_the_way,
    "graphcore": graphcore,
    "ue5m3": ue5m3_recipe,
    "halo0": partial(halo, level=0),
    "halo1": partial(halo, level=1),
    "halo2": partial(halo, level=2),
    "dge": dge,
    "tetrajet": tetrajet,
    "lmul": lmul_recipe,
    "fixed_adaptive": fixed_adaptive,
}
