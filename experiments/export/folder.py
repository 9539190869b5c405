"""An exported folder, which appears whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from pathlib import Path

import safetensors.torch

from experiments.export.card import card
from experiments.export.llama import llama_config, llama_state
from experiments.export.load import Trained, trained
from experiments.export.tokenizer import END_OF_TEXT, tokenizer_config, tokenizer_json
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
    found, of_bytes = trained(run), False
    if to == "hf":
        of_bytes = _is_of_bytes(found)
        merge(found.model)
        files = _hugging_face(found, of_bytes)
    else:
        files = {WEIGHTS: (run / WEIGHTS).read_bytes()}
    files = {**files, "README.md": card(found, to, of_bytes)}
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    aside.mkdir()
    try:
        if to == "hf" and isinstance(found.model, ForeignModel):
            found.model.save_pretrained(aside)
        for name, content in files.items():
            write_atomic(content, aside / name)
        os.replace(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _hugging_face(found: Trained, of_bytes: bool) -> dict[str, str | bytes]:
    """The files of a folder for transformers by name, but for those that its own models write."""
    model, length = found.model, found.config.data.seq_len
    files: dict[str, str | bytes] = {}
    if isinstance(model, Transformer):
        config = llama_config(model, length, END_OF_TEXT if of_bytes else None)
        files["config.json"] = _json(config)
        files["model.safetensors"] = safetensors.torch.save(llama_state(model), TORCH)
    if of_bytes:
        files["tokenizer.json"] = _json(tokenizer_json())
        files["tokenizer_config.json"] = _json(tokenizer_config(length))
    return files


def _is_of_bytes(found: Trained) -> bool:
    """Whether tokens are the bytes of text: of the built-in text, and of a user's, but not tokens.

    Both losses of a record say how many bytes there are to a token, if that is known.
    """
    record = found.record
    if found.config.data.name == "techdocs":
        return True
    if not record.loss or not record.bits_per_byte:
        return False
    return math.isclose(record.bits_per_byte * math.log(2), record.loss, rel_tol=1e-9)


def _json(content: object) -> str:
    return json.dumps(content, indent=2) + "\n"
