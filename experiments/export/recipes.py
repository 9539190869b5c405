"""What other libraries can express of a recipe: a file for each, a line, a table of all recipes."""

from __future__ import annotations

from pathlib import Path

from experiments.config.schema import TrainConfig
from experiments.export.configurations import Writer, Written
from experiments.export.load import ExportError, configuration
from experiments.export.model_opt import model_opt
from experiments.export.torch_ao import torch_ao
from experiments.export.transformer_engine import transformer_engine
from fitting.files.atomic import write_atomic

LIBRARIES: dict[str, tuple[str, Writer]] = {
    "transformer_engine": ("TransformerEngine", transformer_engine),
    "modelopt": ("ModelOpt", model_opt),
    "torchao": ("torchao", torch_ao),
}
"""Name and writer of each, by the word that `to=` takes."""


def written(config: TrainConfig, to: str) -> Written:
    """The recipe of a run as a library's configuration, or the reasons why there is none."""
    return LIBRARIES[to][1](config.recipe, config.precision.build())


def verdict(config: TrainConfig, to: str) -> str:
    """One line: whether a library can express the recipe, and what it leaves out, or why not."""
    found = written(config, to)
    name = LIBRARIES[to][0]
    if found.reasons:
        return f"{name}: not expressible. {'; '.join(found.reasons)}"
    return f"{name}: expressible" + "".join(f"; not in it: {each}" for each in found.remarks)


def export_recipe(config: TrainConfig, to: str, out: Path) -> list[str]:
    """Write the recipe as a Python file.

    Args:
        config: The run's configuration, or one without a run.
        to: A word of `LIBRARIES`.
        out: The file to write.

    Returns:
        What the file leaves to its reader, a line each.

    Raises:
        ExportError: The library cannot express the recipe; one line says which parts.
        OSError: The file cannot be written.
    """
    found, name = written(config, to), LIBRARIES[to][0]
    if found.reasons:
        raise ExportError(f"recipe={config.recipe.name}: {verdict(config, to)}; nothing written")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(found.text, out)
    return [f"{name}: not in {out.name}: {remark}" for remark in found.remarks]


def of_run(run: Path) -> TrainConfig:
    """The configuration of a run that has ended, with or without weights.

    Raises:
        ExportError: There is none.
    """
    return configuration(run)[1]


def table(configs: dict[str, TrainConfig]) -> str:
    """A table in Markdown: each recipe, and what each library can express of it."""
    heads = [name for name, _ in LIBRARIES.values()]
    rows = [f"| recipe | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for recipe, config in configs.items():
        cells = []
        for to in LIBRARIES:
            found = written(config, to)
            first = found.reasons[0] if found.reasons else "; ".join(found.remarks)
            more = f" (and {len(found.reasons) - 1} more)" if len(found.reasons) > 1 else ""
            word = "no" if found.reasons else "yes"
            cells.append(f"{word}: {first}{more}" if first else word)
        rows.append(f"| {recipe} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"
