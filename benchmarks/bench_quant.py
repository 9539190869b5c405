"""How fast quantizing is: the compiled and the plain way, as shares of a copy's speed.

One thread, implementations interleaved round by round, the best round of each; shares of the
speed of `x.clone()` and of `out.copy_(x)`, and how many times as fast as the plain way.  In memory
(4096 x 4096) only the copy is a yardstick: a fresh tensor of that size is page-faulted, so a clone
measures the zeroing of pages.  The compiled way writes into memory that exists, as the copy does.

    python benchmarks/bench_quant.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from experiments.quant import hadamard
from experiments.quant.block import quantize_plain
from experiments.quant.formats import FloatFormat, Precision, ScaleFormat
from experiments.quant.kernels import cpu as kernels
from experiments.quant.kernels.noise import uniform

E2M1, E4M3 = FloatFormat(2, 1), FloatFormat(4, 3, "ocp")
CASES: dict[str, tuple[Precision, int | None]] = {
    "E4M3, tensor": (Precision(E4M3, "tensor"), None),
    "E4M3, row": (Precision(E4M3, "row"), None),
    "E4M3, block 32, FP32 scale": (Precision(E4M3), None),
    "E2M1, block 32, FP32 scale": (Precision(E2M1), None),
    "MXFP4": (Precision.parse("mxfp4"), None),
    "MXFP4, stochastic": (Precision.parse("mxfp4"), 1),
    "MX E3M0": (Precision(FloatFormat(3, 0), scale=ScaleFormat.E8M0), None),
    "NVFP4": (Precision.parse("nvfp4"), None),
    "E8M7 (bfloat16), row": (Precision(FloatFormat(8, 7), "row"), None),
}
SETTINGS = {512: (20, 15), 4096: (1, 7)}
"""Size: calls a round, rounds."""


def plain(x: Tensor, precision: Precision, key: int | None) -> Tensor:
    """By the definition, its noise made the way the definition makes it."""
    return quantize_plain(x, precision, None if key is None else uniform(key, tuple(x.shape)))


def seconds(calls: dict[str, Callable[[], object]], repeat: int, rounds: int) -> dict[str, float]:
    """Best time of one call of each, all of them taking turns."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            best[name] = min(best[name], (time.perf_counter() - start) / repeat)
    return best


def main() -> None:
    """Print one table a size."""
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {kernels.NAME}, one thread, float32")
    for size, (repeat, rounds) in SETTINGS.items():
        x = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
        out, transposed = torch.empty_like(x), x.t()
        calls: dict[str, Callable[[], object]] = {
            "clone": x.clone,
            "copy_": partial(out.copy_, x),
            "copy_ of the transpose": partial(out.copy_, transposed),
        }
        for name, (precision, key) in CASES.items():
            calls[name] = partial(kernels.quantize, x, precision, key, out=out)
            calls[f"{name}, transposed"] = partial(
                kernels.quantize, transposed, precision, key, out=out
            )
        for length in (32, 128):
            calls[f"Hadamard {length}"] = partial(kernels.rotate, x, length, out=out)
        best = seconds(calls, repeat, rounds)
        slow: dict[str, Callable[[], object]] = {
            f"{name}, plain": partial(plain, x, *case) for name, case in CASES.items()
        }
        slow |= {f"Hadamard {n}, plain": partial(hadamard.rotate_plain, x, n) for n in (32, 128)}
        best |= seconds(slow, 1, max(2, rounds // 4))
        print(f"\n{f'{size} x {size}':<38} {'GB/s':>6} {'clone':>7} {'copy_':>7} {'plain':>8}")
        for name in calls:
            shares = [f"{best[other] / best[name]:7.0%}" for other in ("clone", "copy_")]
            speed = x.numel() * 4 / best[name] / 1e9
            ratio = best.get(f"{name.removesuffix(', transposed')}, plain")
            last = f"{ratio / best[name]:7.1f}x" if ratio else ""
            print(f"{name:<38} {speed:6.1f} {' '.join(shares)} {last:>8}")


if __name__ == "__main__":
    main()
