"""Other libraries' quantizers on the cases of bench_quant.py: what they compute, and how they err.

`make bench-quant` installs them into a venv of their own, .venv-peers.  One that cannot be imported
or does not run here is left out, with the reason.  Each is compared with the plain definition of
what it claims to compute, which is not always ours: see the notes.

    .venv-peers/bin/python benchmarks/quant_peers.py     notes and disagreements, no timing
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata

import torch
from torch import Tensor

from experiments.quant.block import quantize_plain
from experiments.quant.formats import FloatFormat, Precision
from experiments.quant.rounding import round_to

Quantizer = Callable[[Tensor], Tensor]
LIBRARIES = ("torchao", "qtorch", "pychop", "fouroversix")
ELEMENTWISE = "E4M3, elementwise"
STOCHASTIC = "MXFP4, stochastic"


@dataclass(frozen=True)
class Peer:
    """One library's way to compute one case."""

    case: str
    """A key of `bench_quant.CASES`, or ELEMENTWISE: no scale."""
    library: str
    way: str
    call: Quantizer
    definition: Quantizer | None
    """What it claims to compute, by our plain definition; None where it draws at random."""
    note: str
    largest: int = 2**24
    """Elements up to which it is timed: beyond, one call takes minutes."""

    @property
    def name(self) -> str:
        """Library, version and way."""
        return f"{self.library} {metadata.version(self.library)} {self.way}".strip()


def by_precision(name: str) -> Quantizer:
    """Our definition of a precision."""
    return partial(quantize_plain, precision=Precision.parse(name))


def by_element(element: FloatFormat, rounding: str) -> Quantizer:
    """Our definition without a scale."""
    return partial(round_to, element=element, rounding=rounding)


def torchao() -> list[Peer]:
    """Eager and, where a compiler works, torch.compile of the same."""
    from torchao.float8.config import ScalingGranularity
    from torchao.float8.float8_utils import tensor_to_scale, to_fp8_saturated
    from torchao.prototype.custom_fp_utils import _f32_to_floatx_unpacked, _floatx_unpacked_to_f32
    from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    e4m3, e2m1 = torch.float8_e4m3fn, torch.float4_e2m1fn_x2

    def tensor(x: Tensor) -> Tensor:
        scale = tensor_to_scale(x, e4m3)
        return to_fp8_saturated(x * scale, e4m3).float() / scale

    def row(x: Tensor) -> Tensor:
        scale = tensor_to_scale(
            x, e4m3, scaling_granularity=ScalingGranularity.AXISWISE, axiswise_dim=-1
        )
        return to_fp8_saturated(x * scale, e4m3).float() / scale

    def mxfp4(x: Tensor) -> Tensor:
        scale, codes = to_mx(x, e2m1, 32)
        return to_dtype(codes, scale, e2m1, 32, torch.float32)

    def nvfp4(x: Tensor) -> Tensor:
        scale = per_tensor_amax_to_scale(x.abs().amax())
        return NVFP4Tensor.to_nvfp4(x, 16, scale).dequantize(torch.float32)

    def elementwise(x: Tensor) -> Tensor:
        return _floatx_unpacked_to_f32(_f32_to_floatx_unpacked(x, 4, 3), 4, 3)

    reciprocal = "multiplies by a reciprocal scale: results an ulp of float32 off, codes equal"
    cases: list[tuple[str, Quantizer, Quantizer, str]] = [
        ("E4M3, tensor", tensor, by_precision("fp8_e4m3"), reciprocal),
        ("E4M3, row", row, by_precision("E4M3-ocp-row"), reciprocal),
        ("MXFP4", mxfp4, by_precision("mxfp4"), "halves blocks whose scale is 2^-127"),
        ("NVFP4", nvfp4, by_precision("nvfp4"), "block scales below 2^-6 become 2^-6"),
        (
            ELEMENTWISE,
            elementwise,
            by_element(FloatFormat(4, 3), "nearest_even"),
            "nothing reserved (max 480); NaN becomes 1.5 times a power of two",
        ),
    ]
    eager = [Peer(case, "torchao", "eager", call, right, note) for case, call, right, note in cases]
    compiled = [
        Peer(case, "torchao", "compiled", torch.compile(call, dynamic=False), right, note)
        for case, call, right, note in cases
    ]
    return eager + compiled


def qtorch() -> list[Peer]:
    """QPyTorch; builds its extension at the first import."""
    from qtorch.quant import float_quantize

    away = by_element(FloatFormat(4, 3), "nearest_away")
    call = partial(float_quantize, exp=4, man=3, rounding="nearest")
    note = "nothing reserved (max 480), ties away; NaN becomes 480; below normal rounds twice"
    return [Peer(ELEMENTWISE, "qtorch", "", call, away, note)]


def pychop() -> list[Peer]:
    """Elementwise in torch; its MX formats by way of numpy."""
    os.environ["chop_backend"] = "torch"  # noqa: SIM112 (their spelling)
    from pychop import Chop
    from pychop.mx_formats import mx_quantize

    def mxfp4(x: Tensor) -> Tensor:
        quantized: Tensor = mx_quantize(x, format="mxfp4_e2m1", block_size=32, backend="torch")
        return quantized

    ieee = by_element(FloatFormat(4, 3, "ieee"), "nearest_even")
    return [
        Peer(
            ELEMENTWISE,
            "pychop",
            "Chop(4, 3)",
            Chop(4, 3, rmode=1),
            ieee,
            "IEEE range: max 240, then infinity; near ties of subnormals misrounded",
        ),
        Peer(
            "MXFP4",
            "pychop",
            "",
            mxfp4,
            by_precision("mxfp4"),
            "a Python loop over blocks; float32 log2: twice the scale just below a power of two",
            largest=2**18,
        ),
    ]


def fouroversix() -> list[Peer]:
    """Its PyTorch backend, the one that runs without a Blackwell GPU."""
    from fouroversix import QuantizationConfig, dequantize, quantize_to_fp4

    def way(**options: object) -> Quantizer:
        config = QuantizationConfig(backend="pytorch", **options)

        def call(x: Tensor) -> Tensor:
            quantized = quantize_to_fp4(x, config)
            result: Tensor = dequantize(
                quantized, torch.float32, backend="pytorch", intermediate_dtype=torch.float32
            )
            return result

        return call

    library, ceil = "fouroversix", by_precision("mxfp4_ceil")
    fp4 = way(dtype="mxfp4", scale_rule="static_6")
    stochastic = way(dtype="mxfp4", scale_rule="static_6", round_style="stochastic")
    nvfp4, six = way(dtype="nvfp4", scale_rule="static_6"), by_precision("nvfp4")
    order = "scales multiplied in another order: an ulp, or another code beside a tie; -0 becomes 0"
    return [
        Peer("MXFP4", library, "", fp4, ceil, "scale rounded up; a block with a NaN becomes 0"),
        Peer(STOCHASTIC, library, "", stochastic, None, "scale rounded up; draws of its own"),
        Peer("NVFP4", library, "static_6", nvfp4, six, order),
    ]


@cache
def peers() -> tuple[tuple[Peer, ...], tuple[str, ...]]:
    """All that work here, and for each that does not a line with the reason."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")  # theirs, about their own dependencies
    working: list[Peer] = []
    missing: list[str] = []
    probe = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    for library, make in zip(LIBRARIES, (torchao, qtorch, pychop, fouroversix), strict=True):
        try:
            found = make()
        except Exception as error:
            missing.append(f"{library}: {_reason(error)}")
            continue
        for peer in found:
            try:
                peer.call(probe)
            except Exception as error:
                missing.append(f"{peer.name}, {peer.case}: {_reason(error)}")
            else:
                working.append(peer)
    return tuple(working), tuple(missing)


def calls(x: Tensor, case: str) -> dict[str, Callable[[], object]]:
    """The peers of one case, ready to be timed on `x`; by name."""
    return {
        peer.name: partial(peer.call, x)
        for peer in peers()[0]
        if peer.case == case and x.numel() <= peer.largest
    }


def hostile(size: int = 512) -> Tensor:
    """Normal rows over 60 binades; ties; largest values next below a power of two; signed zeros."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, size, generator=generator)
    x *= 2.0 ** (torch.rand(size, 1, generator=generator) * 60 - 30)
    x[: size // 4] = (x[: size // 4].frexp().mantissa * 16).round() / 4
    x[size // 4 : size // 2] = x[size // 4 : size // 2].clamp(-1, 1) * (1 - 2.0**-24) * 16
    x[:, 7] = -0.0
    return x


def disagreements() -> list[str]:
    """A line a peer: how many results are not those of its definition, and why."""
    inputs = {"normal": torch.randn(512, 512, generator=torch.Generator().manual_seed(0))}
    inputs["hostile"] = hostile()
    lines = []
    for peer in peers()[0]:
        found = ["draws at random"] if peer.definition is None else []
        for name, x in inputs.items():
            if peer.definition is not None:
                expected, got = peer.definition(x), peer.call(x)
                off = (got - expected).abs() > expected.abs() * 2.0**-22
                off |= got.isfinite() != expected.isfinite()
                share = (got != expected).double().mean()
                found.append(f"{name} {off.double().mean():.2%} wrong, {share:.0%} not to the bit")
        lines.append(f"{peer.case}, {peer.name}: {'; '.join(found)}.  {peer.note}")
    return lines + [f"left out: {line}" for line in peers()[1]]


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:160]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("\n".join(disagreements()))
