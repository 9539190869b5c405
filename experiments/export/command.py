"""The console script `lowbit-export`: a trained run as a folder that other libraries load."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fitting.entry import options as typed
from fitting.entry.errors import UsageError
from fitting.entry.options import command, listed, option

FORMS = ("hf", "safetensors")


def _form(text: str) -> str:
    if text not in FORMS:
        raise ValueError(f"must be one of {', '.join(FORMS)}")
    return text


@dataclass(frozen=True)
class Options:
    """Options of `lowbit-export`."""

    run: str = option("", "folder of a run that kept its weights (keep=last)", "FOLDER")
    to: str = option(
        "",
        "hf: for transformers, as a Llama with its tokenizer; safetensors: the weights under their "
        "own names; a model card with either",
        "|".join(FORMS),
        read=_form,
    )
    out: str = option("", "folder to write; a new one, or empty", "FOLDER")


HELP = """\
lowbit-export: write a trained run's model as a folder that other libraries load.

  lowbit-export run=runs/demo/nearest-E2M1-... to=hf out=exported
  lowbit-export run=runs/demo/nearest-E2M1-... to=safetensors out=weights
  lowbit-export run=/shared/runs/demo/nearest-E2M1-... to=hf out=/shared/models/fp4

A single run of lowbit-train keeps its weights; a run of a sweep does with keep=last.  In Python,
lowbit.load("runs/demo/nearest-E2M1-...") gives the module itself, which quantizes as in training.
Exit codes: 0 done, 2 a wrong request or a run without weights.

""" + listed(Options)


def main() -> None:
    """The console script."""
    command("lowbit-export", HELP, _work)


def _work(words: list[str]) -> None:
    options = parse(words)
    from experiments.export.folder import export  # torch: only once the request is read

    export(Path(options.run), options.to, Path(options.out))
    print(options.out)


def parse(words: list[str]) -> Options:
    """The options as typed.

    Raises:
        UsageError: They make no sense, or the folder to write has something in it.
    """
    options = typed.parse(Options, words)
    for key, what in (("run", "FOLDER"), ("to", "|".join(FORMS)), ("out", "FOLDER")):
        if not getattr(options, key):
            raise UsageError(f"{key}: missing; give {key}={what}")
    out = Path(options.out)
    if out.exists() and not (out.is_dir() and not os.listdir(out)):
        raise UsageError(f"out={out}: is there already; name a new folder, or an empty one")
    return options
