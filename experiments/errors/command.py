"""The console script `lowbit-error`: errors of precisions and recipes on tensors, as tables."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.errors.options import HELP, FormatOptions, RecipeOptions
from experiments.quant.formats import Precision
from experiments.quant.modes import Rounding
from fitting.entry.errors import Refusal, UsageError
from fitting.entry.options import command, keys, parse


def error() -> None:
    """`lowbit-error`.  Exit codes: 0 done, 2 a wrong request (one line says what)."""
    command("lowbit-error", HELP, _work)


def _work(words: list[str]) -> None:
    typed = {word.partition("=")[0]: word for word in words}
    if "recipe" in typed:
        from experiments.errors.recipes import show  # Hydra and the models: only where needed

        show(words)
        return
    for key in keys(RecipeOptions):
        if key in typed:
            raise UsageError(f"{typed[key]}: needs recipe=..., e.g. recipe=quartet_v4")
    options = parse(FormatOptions, words, also=keys(RecipeOptions))
    if not options.precision:
        raise UsageError("precision: missing; give precision=<format> or recipe=<recipe>")
    _show(options)


def _show(options: FormatOptions) -> None:
    """One table per rounding."""
    from experiments.measure.error import gaussian_error  # torch: only once the request is read

    rows, columns = options.rows, options.columns
    for how in options.rounding:
        rounding = Rounding.parse(how)
        table = Table(
            title=f"{how}, {rows} x {columns} normal values",
            box=SIMPLE_HEAD,
            collapse_padding=True,
            pad_edge=False,
        )
        table.add_column("precision", overflow="fold")
        for heading in ("bits", "rMSE", "QSNR dB", "misaligned", "crest", "clipped", "to zero"):
            table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
        for name in options.precision:
            precision = Precision.parse(name)
            try:
                found = gaussian_error(
                    precision,
                    rounding,
                    rows=rows,
                    columns=columns,
                    seed=options.seed,
                    hadamard=options.hadamard,
                    sigma=options.sigma,
                )
            except ValueError as problem:  # combinations that cannot work
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
