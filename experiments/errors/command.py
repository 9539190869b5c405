"""The console script `lowbit-error`: what precisions and recipes do to tensors, as tables."""

from __future__ import annotations

import difflib
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.paths import conf_dir
from experiments.quant.formats import PRECISIONS, FormatError, Precision
from experiments.quant.modes import Rounding
from fitting.entry.answer import answer
from fitting.entry.errors import Refusal, refuse_twice


def _indented(names: Iterable[str]) -> str:
    indent = " " * 13
    return textwrap.fill(", ".join(names), 96, initial_indent=indent, subsequent_indent=indent)


_NAMES = _indented(PRECISIONS)
_RECIPES = _indented(sorted(path.stem for path in (conf_dir() / "recipe").glob("*.yaml")))

HELP = f"""lowbit-error: the error of number formats on normal data, and of recipes on layers.

  lowbit-error precision=mxfp4
  lowbit-error precision=mxfp4,nvfp4,mxint8,INT4-row rounding=nearest_even,stochastic
  lowbit-error precision=E3M2-block16-e8m0_ceil sigma=1
  lowbit-error precision=nvfp4 rounding=ms_eden hadamard=128

Keys (default), lists separated by commas:
  precision  published:
{_NAMES}
             or spelt out: element (E4M3, E4M3-ocp, E4M3-ieee, INT8, INT8-asymmetric), who shares
             a scale (block32, tile16, row, tensor), scale (fp32, e8m0, e8m0_ceil, e4m3, ...)
  rounding   (nearest_even) nearest_away, toward_zero, up, down, stochastic, stochastic_8 (with 8
             random bits; 1 to 23), ms_eden
  sigma      standard deviation; (octave) averages over one where scales are powers of two
  hadamard   (0) rotates blocks of that many values with random signs first
  rows, columns, seed   (4096, 1024, 0) of the data

Columns: bits per value with its share of the scales; rMSE = ||x - Q(x)||^2 / ||x||^2; QSNR =
-10 log10 rMSE; misalignment = 1 - E[<x, Q(x)> / <x, x>]; crest = mean of max |x| / rms of what
shares a scale; shares of values beyond the largest number, and of values that became zero.

  lowbit-error recipe=quartet_v4,nearest
  lowbit-error recipe=nearest,hadamard source=trained precision=nvfp4
  lowbit-error recipe=all source=normal,trained out=errors.csv
  lowbit-error recipe=mine --config-dir=. recipe.output.hadamard=32

Keys (default), lists separated by commas:
  recipe     all, a file of yours in --config-dir, or
{_RECIPES}
  source     (normal) values in the shapes of a model's layers, their standard deviations over an
             octave; trained: inputs, weights and output gradients of that model, trained
             unquantized, on the batch that comes next
  draws      (16) passes of a recipe that is random; 3 or more
  out        a .csv file for all numbers, with standard errors over the draws
  and any of lowbit-train; (precision=mxfp4 model=ladder/b tokens=262144 data.seq_len=128): the
  model and its training, and to what operands are quantized without a format of their own

Columns: rMSE and misalignment of what the products multiply (P1 input, P2 weight; P3 output
gradient, P4 weight; P5 output gradient, P6 input), rotations undone; cosine and norm ratio of each
layer's output Y and gradients dX, dW; cosine of the mean gradient over draws, without its noise.
Means over the layers.  Layers that a recipe keeps are quantized here."""

_DEFAULTS = {
    "precision": "",
    "rounding": "nearest_even",
    "sigma": "octave",
    "hadamard": "0",
    "rows": "4096",
    "columns": "1024",
    "seed": "0",
}
_DIGITS = 18
"""Digits of a whole number that fits 64 bits."""
_OF_RECIPES = ("source", "draws", "out", "--config-dir")


def error() -> None:
    """`lowbit-error`.  Exit codes: 0 done, 2 a wrong request (one line says what)."""
    answer("lowbit-error", lambda: _answer(sys.argv[1:]))


def _answer(words: list[str]) -> None:
    if not words or {"-h", "--help", "help"} & set(words):
        print(HELP)
        return
    if any(word.startswith("recipe=") for word in words):
        from experiments.errors.recipes import show  # Hydra and the models: only where needed

        show(words)
    else:
        _show(_read(words))


def _read(words: list[str]) -> dict[str, str]:
    """The request, every key with its value."""
    request = dict(_DEFAULTS)
    refuse_twice(words)
    for word in words:
        key, equals, value = word.partition("=")
        if key not in _DEFAULTS:
            if key in _OF_RECIPES:
                raise Refusal(f"{word}: needs recipe=..., e.g. recipe=quartet_v4")
            near = difflib.get_close_matches(key, (*_DEFAULTS, "recipe"), n=1)
            raise Refusal(f"{word}: no such key{f'; did you mean {near[0]}?' if near else ''}")
        if not equals or not value:
            raise Refusal(f"{word}: write it as {key}=value")
        request[key] = value
    if not request["precision"]:
        raise Refusal("precision: is missing, e.g. precision=mxfp4, or recipe=...; see --help")
    return request


def _number(request: dict[str, str], key: str, smallest: int) -> int:
    text = request[key]
    if not text.isdecimal() or len(text) > _DIGITS or int(text) < smallest:
        raise Refusal(
            f"{key}={text}: must be a whole number, {smallest} or more, of {_DIGITS} digits or less"
        )
    return int(text)


def _sigma(text: str) -> float | None:
    if text == "octave":
        return None
    try:
        sigma = float(text)
    except ValueError:
        sigma = 0.0
    if not 1e-30 < sigma < 1e30:
        raise Refusal(f"sigma={text}: must be octave or a number from 1e-30 to 1e30")
    return sigma


def _show(request: dict[str, str]) -> None:
    """One table a rounding."""
    precisions = []
    for name in request["precision"].split(","):
        try:
            precisions.append((name, Precision.parse(name)))
        except FormatError as problem:
            raise Refusal(f"precision={name}: {problem}") from None
    roundings = []
    for name in request["rounding"].split(","):
        try:
            roundings.append((name, Rounding.parse(name)))
        except Refusal as problem:
            raise Refusal(f"rounding={name}: {problem}") from None
    rows, columns = _number(request, "rows", 1), _number(request, "columns", 1)
    settings: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "seed": _number(request, "seed", 0),
        "hadamard": _number(request, "hadamard", 0),
        "sigma": _sigma(request["sigma"]),
    }
    from experiments.measure.error import gaussian_error  # torch: not before the request is read

    for how, rounding in roundings:
        table = Table(
            title=f"{how}, {rows} x {columns} normal values",
            box=SIMPLE_HEAD,
            collapse_padding=True,
            pad_edge=False,
        )
        table.add_column("precision", overflow="fold")
        for heading in ("bits", "rMSE", "QSNR dB", "misaligned", "crest", "clipped", "to zero"):
            table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
        for name, precision in precisions:
            try:
                found = gaussian_error(precision, rounding, **settings)
            except ValueError as problem:  # what these values cannot do together
                raise Refusal(str(problem)) from problem
            table.add_row(
                name,
                f"{precision.bits_per_element(rows, columns):.4g}",
                f"{found.mse:.3e}",
                f"{found.qsnr:.2f}",
                f"{found.misalignment:.1e}",
                f"{found.crest:.2f}",
                "-" if found.clipped is None else f"{found.clipped:.2%}",
                f"{found.underflown:.2%}",
            )
        Console().print(table)
