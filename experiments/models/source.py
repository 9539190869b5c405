"""Where somebody else's model comes from: a folder or configuration of Hugging Face, or a function.

Of a folder, `config.json` and the safetensors are read, never code; a factory is code that the
user names by its import path.  Neither is ever taken from a record or a checkpoint.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from experiments.models.config import ModelConfig
from experiments.models.imported import ImportedError, code_digest, hash_of, imported
from fitting.entry.errors import Refusal, first_line, of_the_system, one_line

_CONFIG = "config.json"
_FACTORY = "model.factory"
_WEIGHTS = "*.safetensors"
_LONGEST_NAME = 60
"""Characters of a name made from a source and the keys that were set; a longer one is hashed."""


class ModelError(Refusal):
    """A model cannot be had as asked, with what would be right."""


def resolved(model: ModelConfig) -> ModelConfig:
    """The model with its source's path made absolute, its hash and its name filled in, in place.

    Raises:
        ModelError: There is no such source, or it is not the one that was planned.
    """
    if model.source:
        model.source = str(Path(model.source).expanduser().absolute())
    found = _sha256(model)
    if model.sha256 and model.sha256 != found:
        raise ModelError(
            f"model.sha256={model.sha256[:12]}: {model.factory or model.source} has {found[:12]} "
            "now; it was changed after the sweep was planned"
        )
    model.sha256 = found
    model.name = model.name or _name(model)
    return model


def _name(model: ModelConfig) -> str:
    """A name made from the source and the keys that were set."""
    changes = dict(sorted(model.config.items()))
    if model.factory:
        whose = model.factory.rpartition(":")[2]
    elif model.source:
        path = Path(model.source)
        whose = path.parent.name if path.name == _CONFIG else path.stem
    else:
        whose = str(changes.pop("model_type"))
    name = "-".join([whose, *(f"{key}{value}" for key, value in changes.items())])
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{whose[: _LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _sha256(model: ModelConfig) -> str:
    """Hash of the files that a model is made from; of a configuration typed in full, ""."""
    digest = hashlib.sha256()
    if model.factory:
        try:
            digest.update(code_digest(_FACTORY, model.factory))
        except ImportedError as error:
            raise ModelError(str(error)) from error.__cause__
    for path in _files(model):
        try:
            digest.update(hash_of(path))
        except OSError as error:
            raise ModelError(f"model.source={path}: {of_the_system(error)}") from None
    return digest.hexdigest() if model.source or model.factory else ""


def _files(model: ModelConfig) -> list[Path]:
    """The files of a source, whose content it is known by."""
    if not model.source:
        return []
    source = Path(model.source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ModelError(f"model.source={source}: no such file or folder")
    weights = sorted(source.glob(_WEIGHTS))
    if not (source / _CONFIG).is_file():
        raise ModelError(f"model.source={source}: has no {_CONFIG}, so it is no model's folder")
    if not weights:
        raise ModelError(
            f"model.source={source}: has no {_WEIGHTS} to start from; to draw the weights, give "
            f"{source / _CONFIG}"
        )
    return [source / _CONFIG, *weights]


def factory(model: ModelConfig) -> Callable[..., nn.Module]:
    """The function that `model.factory` names.

    Raises:
        ModelError: There is none.
    """
    try:
        return imported(_FACTORY, model.factory)
    except ImportedError as error:
        raise ModelError(str(error)) from error.__cause__


def hub_config(model: ModelConfig) -> Any:
    """The configuration of a Hugging Face model, with the user's changes.

    Raises:
        ModelError: transformers is not installed, does not know the model, or a key is not its.
    """
    try:
        from transformers import CONFIG_MAPPING
    except ImportError:
        raise ModelError(
            f"model.source={model.source}: needs transformers; pip install 'lowbit-scaling[hf]'"
        ) from None
    values = _read(model) | model.config
    kind = values.pop("model_type", None)
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(kind), list(CONFIG_MAPPING), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ModelError(f"model.config.model_type={kind}: transformers has no such model{hint}")
    made = CONFIG_MAPPING[kind]
    known = {*made().to_dict(), *made.attribute_map}
    known |= {"rope_theta"} if "rope_parameters" in known else set()  # which it is made a part of
    for key, value in model.config.items():
        if key != "model_type" and key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ModelError(f"model.config.{key}={value}: {kind} has no such key{hint}")
    try:
        return made(**values)
    except Exception as error:  # each model checks its own keys, by exceptions of its own
        whose = f"{kind}, model.config={model.config}"
        raise ModelError(f"model.source={model.source or whose}: {_said(error)}") from None


def _read(model: ModelConfig) -> dict[str, Any]:
    """The values of a source's configuration."""
    if not model.source:
        return {}
    source = Path(model.source)
    path = source / _CONFIG if source.is_dir() else source
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ModelError(f"model.source={path}: {of_the_system(error)}") from None
    except ValueError as error:
        raise ModelError(f"model.source={path}: is not JSON ({first_line(error)})") from None
    if not isinstance(values, dict):
        raise ModelError(f"model.source={path}: must hold keys and values")
    return values


def make(model: ModelConfig, seed: int) -> nn.Module:
    """The bare module, its weights drawn by its own code from a seed, or read.

    The same seed gives the same weights, and all generators are left as they were.

    Raises:
        ModelError: It cannot be made.
    """
    others = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            module = _from_factory(model) if model.factory else _from_transformers(model)
        finally:
            random.setstate(others[0])
            np.random.set_state(others[1])
    return module.train()


def without_values(model: ModelConfig) -> nn.Module:
    """The module for counting alone: under a `FakeTensorMode` its parameters take no memory.

    A factory is run for real first, since its code may look at values.
    """
    with unset_fake_temporarily():
        if model.factory:
            module = make(model, 0)
        else:
            with torch.device("meta"):
                module = make(_drawn(model) if is_folder(model) else model, 0)
    empty: dict[int, Tensor] = {}

    def emptied(tensor: Tensor) -> Tensor:
        if id(tensor) not in empty:  # what is tied stays tied
            like = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            is_weight = isinstance(tensor, nn.Parameter)
            empty[id(tensor)] = nn.Parameter(like, tensor.requires_grad) if is_weight else like
        return empty[id(tensor)]

    for part in module.modules():
        held: Any
        for held in (part._parameters, part._buffers):
            held.update({name: emptied(t) for name, t in held.items() if t is not None})
    return module


def _said(error: BaseException) -> str:
    """An exception of somebody else's code in a line."""
    return f"{type(error).__name__}: {one_line(error)}"


def is_folder(model: ModelConfig) -> bool:
    """Whether a model is a folder of Hugging Face, whose weights are taken."""
    return bool(model.source) and Path(model.source).is_dir()


def _drawn(model: ModelConfig) -> ModelConfig:
    """The model of a folder, without the folder's weights."""
    return ModelConfig(source=str(Path(model.source) / _CONFIG), config=model.config)


def _from_factory(model: ModelConfig) -> nn.Module:
    build = factory(model)
    try:
        made = build(**model.config)
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"model.factory={model.factory}: with {model.config} it raised {_said(error)}"
        ) from error
    if not isinstance(made, nn.Module):
        found = type(made).__name__
        raise ModelError(f"model.factory={model.factory}: returned {found}, no torch.nn.Module")
    for name, parameter in made.named_parameters():
        if parameter.dtype is not torch.float32:
            raise ModelError(
                f"model.factory={model.factory}: its {name} is {parameter.dtype}; weights are kept "
                "in torch.float32, whatever the compute_dtype of the products"
            )
    return made


def _from_transformers(model: ModelConfig) -> nn.Module:
    config = hub_config(model)
    from transformers import AutoModelForCausalLM

    made: Any = AutoModelForCausalLM  # whose methods have no types
    try:
        if not is_folder(model):
            drawn: nn.Module = made.from_config(config, dtype=torch.float32)
            return drawn
        loaded, found = made.from_pretrained(
            model.source,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # from deep inside: a model that is no causal one, other sizes, ...
        whose = f"source={model.source}" if model.source else f"config={model.config}"
        raise ModelError(f"model.{whose}: {_said(error)}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, found.get(what, ()))):
            raise ModelError(
                f"model.source={model.source}: its weights do not suit its configuration: "
                f"{what.replace('_', ' ')} {', '.join(names[:3])}"
            )
    module: nn.Module = loaded
    return module


def vocabulary(model: ModelConfig) -> int:
    """The number of tokens that a model knows."""
    if model.factory:
        return model.vocab_size
    return int(hub_config(model).get_text_config().vocab_size)
