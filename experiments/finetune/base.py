"""The run whose weights another one starts from: found, described, and read.

What is read is JSON and safetensors, and a base is known by the hash of its weights: where they
lie is not part of a run's identity, and a base that was trained again to other bits is refused.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from experiments.finetune.config import BaseConfig
from experiments.models.config import ModelConfig
from experiments.models.next_token import NextToken
from experiments.store.weights import WEIGHTS, read_weights
from fitting.entry.errors import Refusal
from fitting.files.own_json import DamagedError
from fitting.results import swept
from fitting.results.record import RESULT, RunRecord, read_record

PREFIX = "model."
"""The model's place in the names of a run's weights."""
_BESIDE = ("name", "source")
"""Keys of a model that do not change what it is."""
_MOST_LISTED = 3


class BaseError(Refusal):
    """A run that another one cannot start from, with what would be right."""


def find_run(init_from: str) -> Path:
    """The run's folder, absolute.

    Args:
        init_from: The folder, or a pattern (`*`, `?`, `[...]`) that the folder of one run matches.

    Raises:
        BaseError: There is none, or more than one.
    """
    path = Path(init_from).expanduser().absolute()
    if path.is_dir():
        return path
    matches = sorted(Path(match) for match in glob.glob(str(path)))
    runs = [match for match in matches if (match / RESULT).is_file()]
    if len(runs) == 1:
        return runs[0]
    if runs:
        names = ", ".join(run.name for run in runs[:_MOST_LISTED])
        more = ", ..." if len(runs) > _MOST_LISTED else ""
        raise BaseError(
            f"init_from={init_from}: must be one run, and {len(runs)} match: {names}{more}"
        )
    of_others = f"; {len(matches)} folders match, in none of them a run has ended"
    raise BaseError(
        f"init_from={init_from}: no such run{of_others if matches else ''}; give "
        "runs/<study>/<run_id> of one that was trained with keep=last"
    )


def base_of(folder: Path, model: ModelConfig) -> BaseConfig:
    """What is to know of a base.

    Args:
        folder: The run's.
        model: The model that is to start from it, resolved.

    Raises:
        BaseError: No run has finished there, it did not keep its weights, or it is of another
            model.
        DamagedError: Its record is damaged.
    """
    record = read_record(folder)
    if record is None:
        raise BaseError(f"init_from={folder}: no run has ended here; there is no {RESULT}")
    if record.status != "finished":
        raise BaseError(f"init_from={folder}: {record.status} ({record.reason}); give another run")
    if not (folder / WEIGHTS).exists():
        raise BaseError(
            f"init_from={folder}: its weights were not kept; train it again with keep=last and "
            "another runs=FOLDER, to the same bits"
        )
    _refuse_another_model(folder, record, model)
    adapter = record.config.get("adapter")
    if isinstance(adapter, dict) and adapter.get("name") != "none":
        raise BaseError(
            f"init_from={folder}: its adapter is not merged; lowbit-export to=hf merges it, and "
            "model=hf model.source=FOLDER starts from that"
        )
    return BaseConfig(_label(record), record.bits_with_scales, record.tokens, record.weights_sha256)


def _refuse_another_model(folder: Path, record: RunRecord, model: ModelConfig) -> None:
    theirs, ours = record.config.get("model"), asdict(model)
    theirs = theirs if isinstance(theirs, dict) else {}
    for key, value in ours.items():
        if key not in _BESIDE and theirs.get(key, value) != value:
            name = f"; it is {theirs['name']}" if theirs.get("name") else ""
            raise BaseError(
                f"model.{key}={value}: init_from={folder} has {theirs[key]}{name}; give the model "
                "of the base"
            )
    if not theirs:
        raise BaseError(f"init_from={folder}: its record does not say of which model it is")


def _label(record: RunRecord) -> str:
    """The run's name without its seed, and a hash of what its result depends on but the seed."""
    said = swept.science(record.config) | {
        "corpus": record.corpus,
        "tokens": record.tokens,
        "numerics_version": record.numerics_version,
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:6]
    return f"{re.sub(r'-s[0-9]+-[0-9a-f]+$', '', record.run_id)}-{digest}"


def start_from(model: NextToken, folder: Path, base: BaseConfig, config: ModelConfig) -> None:
    """Give a model the weights of a base.

    Args:
        model: Built, without adapters.
        folder: The run's.
        base: What was planned to be there.
        config: The model, resolved.

    Raises:
        BaseError: Something else is there now.
        DamagedError: The weights are not those of the record.
    """
    now = base_of(folder, config)
    if now != base:
        raise BaseError(
            f"init_from={folder}: was {base.label} with weights {base.sha256[:12]} when this run "
            f"was planned, is {now.label} with {now.sha256[:12]}"
        )
    fill(model, read_weights(folder, base.sha256), folder)


def fill(model: NextToken, state: Mapping[str, Tensor], folder: Path) -> None:
    """Put the weights of a run into a model; their names, shapes and types must be its own.

    Raises:
        DamagedError: They are not.
    """
    own = {f"{PREFIX}{name}": value for name, value in model.state_dict().items()}
    held = {name: (value.shape, value.dtype) for name, value in state.items()}
    if held != {name: (value.shape, value.dtype) for name, value in own.items()}:
        why = f"its weights do not suit the model of {RESULT}"
        raise DamagedError(folder / WEIGHTS, why, "restore both from a copy")
    model.load_state_dict({name.removeprefix(PREFIX): value for name, value in state.items()})
