"""How fast quantizing is: the compiled and the plain way, and other libraries, against a copy.

One thread, its CPU time, implementations interleaved round by round, the best round of each; shares
of the speed of `x.clone()` and of `out.copy_(x)`, and how many times as fast as the plain way and
as each other library that is installed (benchmarks/quant_peers.py).  In memory (4096 x 4096) only
the copy is a yardstick: a fresh tensor of that size is page-faulted, so a clone measures the
zeroing of pages.  The compiled way writes into memory that exists, as the copy does.  Where a
rotation happens in the same pass, "parts" is its time over that of the slower one of the two alone.

    python benchmarks/bench_quant.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import quant_peers
import torch
from torch import Tensor

from experiments.quant import hadamard
from experiments.quant.block import quantize_plain, round_elements_plain
from experiments.quant.formats import FloatFormat, IntFormat, Precision, ScaleFormat
from experiments.quant.kernels import cpu as kernels

E2M1, E4M3 = FloatFormat(2, 1), FloatFormat(4, 3, "ocp")
CASES: dict[str, tuple[Precision, int | None]] = {
    "E4M3, tensor": (Precision(E4M3, "tensor"), None),
    "E4M3, row": (Precision(E4M3, "row"), None),
    "E4M3, block 32, FP32 scale": (Precision(E4M3), None),
    "E2M1, block 32, FP32 scale": (Precision(E2M1), None),
    "MXFP4": (Precision.parse("mxfp4"), None),
    "MXFP4, stochastic": (Precision.parse("mxfp4"), 1),
    "MXFP4, QuEST": (Precision.parse("mxfp4_quest"), None),
    "MX E3M0": (Precision(FloatFormat(3, 0), scale=ScaleFormat.E8M0), None),
    "NVFP4": (Precision.parse("nvfp4"), None),
    "NVFP4, tile 16": (Precision(E2M1, "tile", 16, ScaleFormat.E4M3), None),
    "NVFP4, four over six": (Precision(E2M1, "block", 16, ScaleFormat.E4M3_4_6), None),
    "INT4 asymmetric, row": (Precision(IntFormat(4, symmetric=False), "row"), None),
    "E8M7 (bfloat16), row": (Precision(FloatFormat(8, 7), "row"), None),
}
"""Precision and the key of the noise, None for rounding to nearest."""
ELEMENTS = {
    f"{element}, elementwise": element
    for element in (FloatFormat(4, 3), FloatFormat(5, 2), FloatFormat(5, 10), FloatFormat(8, 7))
}
ROTATIONS = (16, 32, 128)
ROTATED = {
    f"Hadamard {length} + {name}": (length, name)
    for length, name in (
        (32, "MXFP4"),
        (32, "MXFP4, stochastic"),
        (128, "MXFP4"),
        (32, "MXFP4, QuEST"),
        (16, "NVFP4"),
        (32, "NVFP4"),
    )
}
"""Cases that are timed with a rotation in the same pass, too."""
SETTINGS = {512: (20, 15), 4096: (1, 15)}
"""Size: calls per round, rounds."""

Calls = dict[str, Callable[[], object]]


def compiled(x: Tensor, out: Tensor) -> Calls:
    """By the library, into `out`."""
    calls: Calls = {
        name: partial(kernels.quantize, x, precision, key, out=out)
        for name, (precision, key) in CASES.items()
    }
    for name, element in ELEMENTS.items():
        calls[name] = partial(kernels.round_elements, x, element, out=out)
    for length in ROTATIONS:
        calls[f"Hadamard {length}"] = partial(kernels.rotate, x, length, out=out)
    for both, (length, name) in ROTATED.items():
        calls[both] = partial(kernels.quantize, x, *CASES[name], hadamard=length, out=out)
    return calls


def transposed(x: Tensor, out: Tensor) -> Calls:
    """The same of the transpose: down the columns, as they lie."""
    calls: Calls = {
        f"{name}, transposed": partial(kernels.quantize, x.t(), precision, key, out=out.t())
        for name, (precision, key) in CASES.items()
    }
    for both, (length, name) in ROTATED.items():
        call = partial(kernels.quantize, x.t(), *CASES[name], hadamard=length, out=out.t())
        calls[f"{both}, transposed"] = call
    return calls


def plain(x: Tensor) -> Calls:
    """By the definitions, the noise made the way they make it."""
    calls: Calls = {name: partial(quantize_plain, x, *case) for name, case in CASES.items()}
    for name, element in ELEMENTS.items():
        calls[name] = partial(round_elements_plain, x, element)
    for length in ROTATIONS:
        calls[f"Hadamard {length}"] = partial(hadamard.rotate_plain, x, length)
    for both, (length, name) in ROTATED.items():
        calls[both] = partial(quantize_plain, x, *CASES[name], hadamard=length)
    return calls


def seconds(calls: Calls, repeat: int, rounds: int) -> dict[str, float]:
    """Best CPU time of one call of each, all of them taking turns."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.thread_time()
            for _ in range(repeat):
                call()
            best[name] = min(best[name], (time.thread_time() - start) / repeat)
    return best


def main() -> None:
    """Print one table per size, and what other libraries compute."""
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {kernels.NAME}, one thread, float32")
    for size, (repeat, rounds) in SETTINGS.items():
        x = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
        out = torch.empty_like(x)
        fast: Calls = {
            "clone": x.clone,
            "copy_": partial(out.copy_, x),
            **compiled(x, out),
            **transposed(x, out),
        }
        best = seconds(fast, repeat, rounds)
        few = max(2, rounds // 4)
        slow = seconds(plain(x), 1, few)
        heading = f"{'GB/s':>6} {'clone':>7} {'copy_':>7} {'plain':>8} {'parts':>6}"
        print(f"\n{f'{size} x {size}':<38} {heading}")
        for name, own in best.items():
            rate = f"{x.numel() * 4 / own / 1e9:6.1f}"
            clone, copy = (f"{best[other] / own:7.0%}" for other in ("clone", "copy_"))
            ratio = slow.get(name.removesuffix(", transposed"))
            last = f"{ratio / own:7.1f}x" if ratio else ""
            parts = ""
            if name in ROTATED:
                length, alone = ROTATED[name]
                parts = f"{own / max(best[f'Hadamard {length}'], best[alone]):6.2f}"
            print(f"{name:<38} {rate} {clone} {copy} {last:>8} {parts}")
            peers = quant_peers.calls(x, name)
            times = seconds({"ours": fast[name], **peers}, 1, few) if peers else {}
            for peer in peers:
                print(f"{'':<6}{times[peer] / times['ours']:7.1f}x as fast as {peer}")
    print("\nother libraries, against what they claim to compute:")
    print(*quant_peers.disagreements(), sep="\n")


if __name__ == "__main__":
    main()
