"""The console script `lowbit-export`: a trained run, or its recipe, as other libraries read it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fitting.entry import options as typed
from fitting.entry.errors import UsageError
from fitting.entry.options import command, listed, option

FORMS = ("hf", "safetensors")
"""Folders with the trained weights."""
RECIPES = ("transformer_engine", "modelopt", "torchao")
"""Files with the recipe."""
_TO = "|".join((*FORMS, *RECIPES))


def _form(text: str) -> str:
    if text not in (*FORMS, *RECIPES):
        raise ValueError(f"must be one of {', '.join((*FORMS, *RECIPES))}")
    return text


@dataclass(frozen=True)
class Options:
    """Options of `lowbit-export`."""

    run: str = option("", "folder of a run; for weights, one that kept them (keep=last)", "FOLDER")
    recipe: str = option("", "instead of a run, a recipe, to a library's configuration", "NAME")
    precision: str = option("", "with recipe=, the format that it leaves open", "NAME")
    to: str = option(
        "",
        "hf: for transformers, as a Llama with its tokenizer; safetensors: the weights under their "
        "own names; a model card with either; the others: the recipe as a library's configuration",
        _TO,
        read=_form,
    )
    out: str = option("", "folder to write; a new one, or empty; for a recipe, a new file", "PATH")


HELP = """\
lowbit-export: write a trained run's model as a folder that other libraries load.

  lowbit-export run=runs/demo/nearest-E2M1-... to=hf out=exported
  lowbit-export run=runs/demo/nearest-E2M1-... to=safetensors out=weights
  lowbit-export run=/shared/runs/demo/nearest-E2M1-... to=hf out=/shared/models/fp4
  lowbit-export run=runs/demo/halo0-... to=torchao out=recipe.py
  lowbit-export recipe=nvidia_nvfp4 to=transformer_engine out=recipe.py

A single run of lowbit-train keeps its weights; a run of a sweep does with keep=last.  In Python,
lowbit.load("runs/demo/nearest-E2M1-...") gives the module itself, which quantizes as in training.
A file of a recipe is printed with what it leaves out, a line each; one that a library cannot
express is refused with the parts that it lacks.
Exit codes: 0 done, 2 a wrong request, a run without weights or a recipe that cannot be expressed.

""" + listed(Options)


def main() -> None:
    """The console script."""
    command("lowbit-export", HELP, _work)


def _work(words: list[str]) -> None:
    options = parse(words)
    if options.to in RECIPES:
        _recipe(options)
        return
    from experiments.export.folder import export  # torch: only once the request is read

    export(Path(options.run), options.to, Path(options.out))
    print(options.out)


def _recipe(options: Options) -> None:
    from experiments.export.recipes import export_recipe, of_run  # torch and Hydra

    if options.run:
        config = of_run(Path(options.run))
    else:
        from experiments.configure import configure

        words = [f"recipe={options.recipe}"]
        config = configure(*words, *([f"precision={options.precision}"] * bool(options.precision)))
    remarks = export_recipe(config, options.to, Path(options.out))
    print("\n".join([options.out, *remarks]))


def parse(words: list[str]) -> Options:
    """The options as typed.

    Raises:
        UsageError: They make no sense, or there is something where they say to write.
    """
    options = typed.parse(Options, words)
    whole = options.to in RECIPES
    if not options.run and not (whole and options.recipe):
        also = " or recipe=NAME" if whole else ""
        raise UsageError(f"run: missing; give run=FOLDER{also}")
    for key, what in (("to", _TO), ("out", "FILE" if whole else "FOLDER")):
        if not getattr(options, key):
            raise UsageError(f"{key}: missing; give {key}={what}")
    for key in ("recipe", "precision"):
        if (value := getattr(options, key)) and (options.run or not whole):
            raise UsageError(f"{key}={value}: is for a recipe without run=, to={'|'.join(RECIPES)}")
    out = Path(options.out)
    if whole and out.exists():
        raise UsageError(f"out={out}: is there already; name a new file")
    if out.exists() and not (out.is_dir() and not os.listdir(out)):
        raise UsageError(f"out={out}: is there already; name a new folder, or an empty one")
    return options
