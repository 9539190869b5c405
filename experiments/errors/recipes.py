"""`lowbit-error recipe=...`: errors of recipes on normal and real tensors, as tables and a CSV."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.config.schema import TrainConfig
from experiments.configure import configure
from experiments.errors.capture import SOURCES
from experiments.errors.options import RECIPES, RecipeOptions
from experiments.measure.recipe_error import (
    OPERANDS,
    PRODUCTS,
    Estimate,
    TensorError,
    is_random,
    recipe_error,
)
from fitting.entry import options as typed
from fitting.entry.errors import Refusal, of_the_system
from fitting.files.atomic import write_atomic

TRAINING = [
    *("precision=mxfp4", "model=ladder/b", "tokens=262144", "batch_size=8", "data.seq_len=128"),
    *("data.validation_windows=64", "diagnostics.points=0", "tracking=none"),
]
"""Settings that differ from the defaults of lowbit-train."""
MEASURES = ("relative_mse", "misalignment", "cosine", "norm_ratio", "cosine_of_mean")
COLUMNS = (
    *("source", "model", "precision", "recipe", "tensor", "layers", "draws"),
    *(column for measure in MEASURES for column in (measure, f"{measure}_se")),
)


@dataclass(frozen=True)
class Row:
    """A row of the table: one recipe on one source."""

    source: str
    model: str
    precision: str
    """Format of operands to which the recipe gives no format of their own."""
    recipe: str
    layers: int
    draws: int
    """1 if nothing is random."""
    tensors: Mapping[str, TensorError]


@dataclass(frozen=True)
class Request:
    """The request, checked."""

    sources: list[str]
    recipes: dict[str, TrainConfig]
    training: TrainConfig
    draws: int
    out: Path | None


def show(words: Sequence[str]) -> None:
    """Measure, print, write.

    Args:
        words: The command line: words of `RecipeOptions`, and any of lowbit-train.

    Raises:
        Refusal: Something is wrong with them, one line per problem; nothing was done.
    """
    request = read(words)
    if request.out:
        try:
            request.out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refusal(f"out={request.out}: {of_the_system(error)}") from None
    torch.set_num_threads(1)  # sums in one order, however many cores
    console = Console()
    rows: list[Row] = []
    for source in request.sources:
        training = request.training
        if source == "trained":
            text = f"training {training.model.name} on {training.tokens:,} tokens ..."
            print(text, file=sys.stderr)
        layers = SOURCES[source](training)
        found = []
        for name, config in request.recipes.items():
            precision = config.precision.build()
            errors = recipe_error(layers, config.recipe, precision, request.draws, config.seed)
            draws = request.draws if is_random(config.recipe) else 1
            found.append(
                Row(
                    source,
                    config.model.name,
                    config.precision.label,
                    name,
                    len(layers),
                    draws,
                    errors,
                )
            )
        for table in tables(found):
            console.print(table)
        rows += found
    if request.out:
        write(rows, request.out)
        print(request.out)


def read(words: Sequence[str]) -> Request:
    """The request behind a command line; raises as `show` does."""
    known = typed.keys(RecipeOptions)
    own = [word for word in words if word.partition("=")[0] in known]
    others = [word for word in words if word not in own]
    options = typed.parse(RecipeOptions, own)
    for source in options.source:
        if source not in SOURCES:
            raise Refusal(f"source={source}: must be one of {', '.join(SOURCES)}")
    names, folder = options.recipe, options.folder
    if names == ("all",):
        names = RECIPES
    plain = [word for word in others if not word.lstrip("+~").startswith("recipe.")]
    return Request(
        list(options.source),
        {name: configure(*TRAINING, *others, f"recipe={name}", folder=folder) for name in names},
        configure(*TRAINING, *plain, "recipe=none", folder=folder),
        options.draws,
        Path(options.out) if options.out else None,
    )


def write(rows: Sequence[Row], path: Path) -> None:
    """The CSV: a line per source, recipe and tensor; empty where a measure is not defined."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in rows:
        for tensor, error in row.tensors.items():
            run = (row.source, row.model, row.precision, row.recipe)
            start = (*run, tensor, row.layers, row.draws)
            estimates = [getattr(error, measure) for measure in MEASURES]
            table.writerow([*start, *(cell for e in estimates for cell in _cells(e))])
    write_atomic(text.getvalue(), path)


def _cells(estimate: Estimate | None) -> tuple[str, str]:
    if estimate is None:
        return "", ""
    return f"{estimate.mean:.7g}", f"{estimate.standard_error:.2g}"


def tables(rows: Sequence[Row]) -> list[Table]:
    """Three tables of one source's rows: operands by error and by misalignment, and products."""
    first = rows[0]
    where = f"{first.source} tensors of {first.layers} layers"
    found = [_table(f"{name}, {where}", OPERANDS) for name in ("rMSE", "misalignment")]
    found.append(
        _table(
            f"products, {where}: cosine, norm ratio, cosine of mean (E)",
            ("cos Y", "cos dX", "cos dW", "|Y|", "|dX|", "|dW|", "E dX", "E dW"),
        )
    )
    for row in rows:
        operands = [row.tensors[label] for label in OPERANDS]
        found[0].add_row(row.recipe, *(f"{e.relative_mse.mean:.2e}" for e in operands))
        found[1].add_row(row.recipe, *(f"{e.misalignment.mean:.1e}" for e in operands))
        products = [row.tensors[product] for product in PRODUCTS]
        means = [e.cosine_of_mean for e in products[1:]]
        found[2].add_row(
            row.recipe,
            *(f"{e.cosine.mean:.4f}" for e in products),
            *(f"{e.norm_ratio.mean:.3f}" for e in products),
            *(f"{e.mean:.4f}" for e in means if e is not None),
        )
    return found


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("recipe", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    return table
