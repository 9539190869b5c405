"""The command line of `lowbit-error`: its two sets of options, and its help.  No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from experiments.config.precision import PRESETS
from experiments.paths import conf_dir
from experiments.quant.formats import Precision
from experiments.quant.modes import Rounding
from fitting.entry.options import at_least, listed, option, words_of

RECIPES = tuple(sorted(path.stem for path in (conf_dir() / "recipe").glob("*.yaml")))


def _precisions(text: str) -> tuple[str, ...]:
    for name in words_of(text):
        Precision.parse(name)
    return words_of(text)


def _roundings(text: str) -> tuple[str, ...]:
    for name in text.split(","):
        Rounding.parse(name)
    return words_of(text)


def _sigma(text: str) -> float | None:
    right = "must be octave or a number from 1e-30 to 1e30"
    try:
        sigma = None if text == "octave" else float(text)
    except ValueError:
        raise ValueError(right) from None
    if sigma is not None and not 1e-30 < sigma < 1e30:
        raise ValueError(right)
    return sigma


def _csv(text: str) -> str:
    if Path(text).suffix != ".csv" or Path(text).is_dir():
        raise ValueError("must be the name of a .csv file")
    return text


@dataclass(frozen=True)
class FormatOptions:
    """Options of `lowbit-error precision=...`, lists separated by commas."""

    precision: tuple[str, ...] = option(
        (),
        f"published: {', '.join(PRESETS)}; or spelt out: element (E4M3, E4M3-ocp, E4M3-ieee, INT8, "
        "INT8-asymmetric), what shares a scale (block32, tile16, row, tensor), scale (fp32, e8m0, "
        "e8m0_ceil, e4m3, ...)",
        "NAME,...",
        read=_precisions,
    )
    rounding: tuple[str, ...] = option(
        ("nearest_even",),
        "or nearest_away, toward_zero, up, down, stochastic, stochastic_8 (with 8 random bits; 1 "
        "to 23), ms_eden",
        "nearest_even",
        read=_roundings,
    )
    sigma: float | None = option(
        None,
        "standard deviation; octave averages over one where scales are powers of two",
        "octave",
        read=_sigma,
    )
    hadamard: int = option(
        0, "rotates blocks of that many values with random signs first", read=at_least(0)
    )
    rows: int = option(4096, "of the data", read=at_least(1))
    columns: int = option(1024, "of the data", read=at_least(1))
    seed: int = option(0, "of the data", read=at_least(0))


@dataclass(frozen=True)
class RecipeOptions:
    """Options of `lowbit-error recipe=...`, lists separated by commas."""

    recipe: tuple[str, ...] = option(
        (),
        f"all, one of your own in --config-dir, or {', '.join(RECIPES)} (none: no quantization)",
        "NAME,...",
    )
    source: tuple[str, ...] = option(
        ("normal",),
        "normal values in the shapes of a model's layers, with standard deviations over an octave; "
        "trained: inputs, weights and output gradients of that model, trained unquantized, on its "
        "next batch",
        "normal",
    )
    draws: int = option(16, "passes for a random recipe; 3 or more", read=at_least(3, 10**6))
    out: str = option(
        "",
        "a .csv file for all numbers, with standard errors over the draws",
        "FILE.CSV",
        read=_csv,
    )
    folder: str = option("", "folder of your own files", "FOLDER", key="--config-dir")


HELP = (
    """\
lowbit-error: the error of number formats on normal data, and of recipes on layers.

  lowbit-error precision=mxfp4
  lowbit-error precision=mxfp4,nvfp4,mxint8,INT4-row rounding=nearest_even,stochastic
  lowbit-error precision=E3M2-block16-e8m0_ceil sigma=1
  lowbit-error precision=nvfp4 rounding=ms_eden hadamard=128

"""
    + listed(FormatOptions)
    + """
Columns: bits per value with its share of the scales; rMSE = ||x - Q(x)||^2 / ||x||^2; QSNR =
-10 log10 rMSE; misalignment = 1 - E[<x, Q(x)> / <x, x>]; crest = mean of max |x| / rms of what
shares a scale; shares of values beyond the largest number, and of values that became zero.

  lowbit-error recipe=quartet_v4,nearest
  lowbit-error recipe=nearest,hadamard source=trained precision=nvfp4
  lowbit-error recipe=all source=normal,trained out=errors.csv
  lowbit-error recipe=mine --config-dir=. recipe.output.hadamard=32

"""
    + listed(RecipeOptions)
    + """  and any key of lowbit-train, by default precision=mxfp4 model=ladder/b tokens=262144
  data.seq_len=128: the model, its training, and the format of operands that have none of their own

Columns: rMSE and misalignment of the operands as multiplied (P1 input, P2 weight; P3 output
gradient, P4 weight; P5 output gradient, P6 input), rotations undone; cosine and norm ratio of each
layer's output Y and gradients dX, dW; cosine of the mean gradient over draws, without its noise.
Means over the layers.  Layers that a recipe keeps in high precision are quantized here.
"""
)
