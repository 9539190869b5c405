"""The model card of an exported folder, README.md: what was trained, how, and what is left out."""

from __future__ import annotations

from pathlib import Path

from experiments.config.schema import TrainConfig
from experiments.export.load import Trained
from experiments.export.recipes import LIBRARIES, verdict
from experiments.models.config import ModelConfig
from experiments.run.identity import quantization
from fitting.entry.errors import one_line

_HEAD = """\
---
{front}tags:
- lowbit-scaling
---
# {title}

{what}

| | |
|---|---|
"""
_WEIGHTS = """
## The weights

`weights.safetensors` holds the weights in float32 as training left them, under the names that they
have in lowbit-scaling; a tied head is stored as the embedding, as the file's metadata say.
The SHA-256 above is over names in alphabetical order, each followed by the bytes of its tensor.
"""
_LLAMA = """
## The weights

`transformers.AutoModelForCausalLM` loads this folder as a `LlamaForCausalLM` with the logits of the
trained model without quantization: the weights are in float32 as training left them, the fused
matrices of queries, keys and values and of gate and up are split, and the head is {head}.  The
SHA-256 above is of the weights under their own names, as the run kept them.
"""
_FOREIGN = """
## The weights

`transformers.AutoModelForCausalLM` loads this folder as the model that was trained, without
quantization: the weights are in float32 as training left them.  The SHA-256 above is of the weights
under the names that the run kept them by.
"""
_MERGED = """
What the adapter adds is in these weights; its own two matrices per layer are not in this folder.
"""
_ROUNDED = """
The losses above were computed with the operands above quantized.  Nothing is quantized in this
folder: a program that loads it computes another loss.  `lowbit.load` on the folder of the run gives
the model that quantizes as in training.
"""
_TOKENIZER = """
## The tokenizer
"""


def card(trained: Trained, to: str, tokenizer: str) -> str:
    """The text of README.md.

    Args:
        trained: The run.
        to: hf or safetensors.
        tokenizer: What to say of the tokenizer, where the folder is for one.
    """
    record, config = trained.record, trained.config
    model = config.model
    how = "trained in low precision by" if record.operands else "trained unquantized by"
    what = f"A language model of {record.params_total:,} parameters, {how} lowbit-scaling."
    front = "library_name: transformers\npipeline_tag: text-generation\n" if to == "hf" else ""
    rows = {
        "run": record.run_id,
        "recipe and precision": quantization(config),
        "quantized operands": record.operands or "none",
        "compute dtype": config.compute_dtype,
        "status": f"{record.status} {record.reason}".strip(),
        "validation loss": _nats(record.loss),
        "bits per byte": "not known" if record.bits_per_byte is None else record.bits_per_byte,
        "training tokens": f"{record.tokens:,} ({record.unique_tokens:,} of them different)",
        "data": record.corpus,
        "model": f"{_model(model)}, windows of {config.data.seq_len}",
        "optimizer": f"AdamW, learning rate {config.optim.lr:g}, "
        f"batches of {config.batch_tokens:,} tokens, seed {config.seed}",
        **_fine_tuning(trained),
        "SHA-256 of the weights": record.weights_sha256,
        "numerics version": record.numerics_version,
    }
    text = _HEAD.format(front=front, title=_cell(record.run_id), what=what)
    text += "".join(f"| {name} | {_cell(value)} |\n" for name, value in rows.items())
    if to == "safetensors":
        return text + _WEIGHTS
    head = "the embedding" if model.tied else "a matrix of its own"
    text += _FOREIGN if model.foreign else _LLAMA.format(head=head)
    text += _MERGED if config.adapter.there else ""
    text += _rounded(config) if record.operands else ""
    return text + _TOKENIZER + tokenizer


def _rounded(config: TrainConfig) -> str:
    """What the losses were computed with, and which libraries can express it."""
    lines = [f"- {_cell(verdict(config, to))}" for to in LIBRARIES]
    return "\n".join([_ROUNDED, "The recipe as a configuration of others:", "", *lines]) + "\n"


def _fine_tuning(trained: Trained) -> dict[str, object]:
    """The rows about the base and the adapter of a run that has them."""
    base, adapter = trained.config.base, trained.config.adapter
    found: dict[str, object] = {}
    if trained.config.init_from:
        found["base"] = f"{base.label}, weights {base.sha256}"
    if adapter.there:
        which = ", ".join(adapter.target_modules) or "all matrices that a recipe may quantize"
        how = adapter.precision or "float32"
        found["adapter"] = (
            f"{adapter.name} of rank {adapter.r}, scaled by {adapter.scaling:g}, in {how}: {which}"
        )
        found["validation loss with it merged"] = _nats(trained.record.merged_loss)
    return found


def _model(model: ModelConfig) -> str:
    """The model's name and sizes, or where it comes from."""
    if model.foreign:
        return f"{model.name}: {Path(model.source).name} {model.config} of transformers"
    return (
        f"{model.name}: blocks {model.layers}, hidden {model.hidden}, ffn {model.ffn}, "
        f"heads {model.heads}, vocabulary {model.vocab_size}"
    )


def _nats(loss: float | None) -> str:
    return "none" if loss is None else f"{loss} nats per token"


def _cell(value: object) -> str:
    """A text in one cell of a table: names come from files that people write."""
    return one_line(value).replace("|", "\\|").replace("<", "&lt;")
