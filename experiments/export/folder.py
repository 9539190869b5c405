"""An exported folder, which appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path

import safetensors.torch

from experiments.export.card import card
from experiments.export.llama import llama_config, llama_state
from experiments.export.load import Trained, trained
from experiments.export.tokenizer import RunTokenizer, tokenizer_of
from experiments.finetune.adapters import merge
from experiments.models.foreign import ForeignModel
from experiments.models.transformer import Transformer
from experiments.store.weights import TORCH, WEIGHTS
from fitting.files.atomic import write_atomic


def export(run: Path, to: str, out: Path) -> None:
    """Write the trained model of a run for another library.

    Args:
        run: The run's folder.
        to: hf, with adapters merged, or safetensors, with the weights as the run kept them.
        out: The folder to write; must not exist, or be empty.

    Raises:
        ExportError: The run's model cannot be had; nothing was written.
        DamagedError: Its record or weights are damaged; nothing was written.
        OSError: The folder cannot be written; nothing is left behind.
    """
    found, tokens = trained(run), RunTokenizer("")
    if to == "hf":
        tokens = tokenizer_of(found.config, found.record)
        merge(found.model)
        files = {**_llama(found, tokens.end), **tokens.files}
    else:
        files = {WEIGHTS: (run / WEIGHTS).read_bytes()}
    files = {**files, "README.md": card(found, to, tokens.said)}
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    aside.mkdir()
    try:
        if to == "hf" and isinstance(found.model, ForeignModel):
            found.model.save_pretrained(aside, tokens.end)
        for name, content in files.items():
            write_atomic(content, aside / name)
        os.replace(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _llama(found: Trained, end: int | None) -> dict[str, str | bytes]:
    """The files of the built-in model by name; those of other models transformers writes."""
    if not isinstance(found.model, Transformer):
        return {}
    config = llama_config(found.model, found.config.data.seq_len, end)
    return {
        "config.json": json.dumps(config, indent=2) + "\n",
        "model.safetensors": safetensors.torch.save(llama_state(found.model), TORCH),
    }
