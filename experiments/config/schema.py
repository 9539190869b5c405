"""The configuration of one run: a tree of dataclasses, filled from Hydra, checked before any work.

`from_hydra` is the one door: a typo, a wrong type, a value out of range or a combination that
cannot run raises `ConfigError`, one line that names the key, the value and what would be right.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config import demands
from experiments.config.precision import ConfigError, PrecisionConfig
from experiments.config.running import BudgetConfig, ResourcesConfig, TrackingConfig, TrainerConfig
from experiments.data.batches import DataConfig
from experiments.measure.diagnostics import DiagnosticsConfig
from experiments.measure.ptq import PtqConfig
from experiments.model import ModelConfig, block_linears
from experiments.optim import OptimConfig
from experiments.quant.formats import BFLOAT16_DIGITS, Precision
from experiments.quant.recipe import RecipeConfig
from fitting.entry.errors import one_line

COMPUTE_DTYPES = ("float32", "bfloat16")
TRACKING_MODES = ("offline", "online", "none")
DEVICES = ("cpu", "cuda")
ISOLATION = ("none", "process")
ON_FAILURE = ("continue", "stop")


@dataclass
class StudyConfig:
    """What a run belongs to: the folder of its results and the design of a sweep."""

    name: str = "scratch"
    title: str = ""
    description: str = ""
    grids: list[dict[str, Any]] = field(default_factory=list)
    """Each a product of choices, {key: [values]}; a sweep is their union."""
    fit: dict[str, Any] = field(default_factory=dict)
    """Defaults of `lowbit-fit` for this study, e.g. {law: floating_point}."""


@dataclass
class TrainConfig:
    """One run, wholly."""

    study: StudyConfig = field(default_factory=StudyConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ptq: PtqConfig = field(default_factory=PtqConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    tokens: int = 1_000_000
    """Training tokens, rounded down to whole steps."""
    batch_size: int = 8
    """Sequences a step."""
    compute_dtype: str = "float32"
    seed: int = 0
    """Of the weights, the data order and the rounding noise."""
    runs: str = "runs"
    """Folder of all studies' results."""
    checkpoint_seconds: float = 60.0
    lease_seconds: float = 60.0
    """Without a sign of life after which another machine may take a run over."""
    timeout_seconds: float = 0.0
    """Of training after which a run has failed; 0: none."""
    plan_only: bool = False
    plan_file: str = ""
    """Where the plan goes as a table of runs without losses; "": nowhere."""
    retry_failed: bool = False
    on_failure: str = "continue"
    """stop: once a run failed start no other, and let those that run write a checkpoint."""

    @property
    def batch_tokens(self) -> int:
        """Tokens a step."""
        return self.batch_size * self.data.seq_len

    @property
    def rows(self) -> int:
        """Tokens a step that one process has: what its products sum over, and its scales span."""
        return self.batch_tokens // self.trainer.num_workers

    @property
    def rows_name(self) -> str:
        """The keys that `rows` comes from."""
        shared = " / trainer.num_workers" if self.trainer.num_workers > 1 else ""
        return f"batch_size x data.seq_len{shared}"

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.tokens // self.batch_tokens


def from_hydra(cfg: DictConfig) -> TrainConfig:
    """Check a composed configuration and turn it into dataclasses.

    Raises:
        ConfigError: The first thing that is wrong, in one line.
    """
    return from_typed(typed(cfg))


_RESOLVER = re.compile(r"(?<!\\)\$\{[^}]*:")


def refuse_resolvers(cfg: DictConfig) -> None:
    """Hold a configuration to references to its own keys, ${a.b}.

    Files are passed on, and what ${oc.env:NAME} stands for would end up in results, records and
    W&B.

    Raises:
        ConfigError: A value asks for something from outside.
    """

    def look(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                look(inner, f"{key}.{name}" if key else str(name))
        elif isinstance(value, list):
            for inner in value:
                look(inner, key)
        elif isinstance(value, str) and _RESOLVER.search(value):
            raise ConfigError(f"{key}={value}: may refer to other keys only, as ${{tokens}} does")

    look(OmegaConf.to_container(cfg, resolve=False), "")


@functools.cache
def plain_keys() -> dict[str, bool | int | float | str]:
    """The default of each key that holds a number, a word or a truth value."""
    kinds = bool | int | float | str
    return {key: value for key, value in leaves(TrainConfig()) if isinstance(value, kinds)}


def _misread(value: Any, default: str | bool) -> str:
    """What is wrong with what YAML read for such a key, of which OmegaConf would make the type."""
    truth, number = isinstance(value, bool), type(value) in (int, float)
    if isinstance(default, bool):
        return "must be true or false" if number else ""
    if truth or (isinstance(value, float) and not default.isdecimal()):  # "1" may be typed 0.5
        return f"was read as {'a truth value' if truth else 'a number'}; put the text in quotes"
    return ""


def _refuse_misread(cfg: DictConfig) -> None:
    """Refuse what YAML read as something else than the text or truth value that the key holds."""
    values = OmegaConf.to_container(cfg, resolve=False)
    for key, default in plain_keys().items():
        if not isinstance(default, str | bool):
            continue
        value: Any = values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if wrong := _misread(value, default):
            raise ConfigError(f"{key}={value}: {wrong}")


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each key of a tree of dataclasses, dotted, that holds a value, with that value."""
    for f in fields(tree):
        value = getattr(tree, f.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, value


def typed(cfg: DictConfig) -> DictConfig:
    """A composed configuration whose keys and values have the types of `TrainConfig`.

    Raises:
        ConfigError: One does not, in one line.
    """
    refuse_resolvers(cfg)
    _refuse_misread(cfg)
    try:
        merged = OmegaConf.merge(schema(), cfg)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, cfg)) from error
    assert isinstance(merged, DictConfig)
    return merged


def from_typed(merged: DictConfig) -> TrainConfig:
    """Check what `typed` made and turn it into dataclasses; raises as `from_hydra` does."""
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, merged)) from error
    assert isinstance(config, TrainConfig)
    return checked(config)


def checked(config: TrainConfig) -> TrainConfig:
    """The configuration, its paths made absolute in place; raises as `from_hydra` does."""
    if config.data.path:  # a worker's working folder is another one
        config.data.path = str(Path(config.data.path).expanduser().absolute())
    config.runs = str(Path(config.runs).expanduser().absolute())
    check(config)
    return config


@functools.cache
def schema() -> DictConfig:
    """The tree with its types; takes longer to make than to use, and is only read."""
    schema = OmegaConf.structured(TrainConfig)
    assert isinstance(schema, DictConfig)
    return schema


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """A configuration back from its `asdict`, as it travels to a worker."""
    return from_hydra(OmegaConf.create(values))


def check(config: TrainConfig) -> None:
    """Everything that can be known to be wrong before any work.

    Raises:
        ConfigError: One line a problem, joined by newlines.
    """
    found = [
        *config.model.problems(),
        *config.recipe.problems(),
        *config.optim.problems(),
        *config.diagnostics.problems(),
        *_scalar_problems(config),
    ]
    named = tuple(line.partition("=")[0] for line in found)
    alone = demands.problems(leaves(config))
    found += [line for line in alone if line.partition("=")[0] not in named]
    if not found and config.ptq.formats and not config.recipe.quantized:
        found += _keep_problems(config)
    if not found:
        found += config.ptq.problems(
            {
                "model.hidden": config.model.hidden,
                "model.ffn": config.model.ffn,
                "data.seq_len": config.data.seq_len,
            }
        )
        for name, precision in config.ptq.precisions().items() if not found else ():
            found += _too_fine(f"ptq.formats={name}", precision, config.compute_dtype)
    if not found and config.recipe.quantized:
        try:
            config.precision.build()
            found += _fit_problems(config)
        except ConfigError as error:
            found.append(str(error))
    if found:
        raise ConfigError("\n".join(map(one_line, found)))


def _scalar_problems(config: TrainConfig) -> list[str]:
    """What is wrong with single keys, but for ranges of numbers (`experiments.config.demands`)."""
    found = []

    def demand(holds: bool, key: str, value: object, right: str) -> None:
        if not holds:
            found.append(f"{key}={value}: {right}")

    tracking, resources = config.tracking, config.resources
    if config.batch_tokens > 0:
        demand(
            config.steps >= 1,
            "tokens",
            config.tokens,
            f"must be at least one step, {config.batch_tokens} tokens",
        )
    for key, value, choices in (
        ("compute_dtype", config.compute_dtype, COMPUTE_DTYPES),
        ("tracking.mode", tracking.mode, TRACKING_MODES),
        ("resources.device", resources.device, DEVICES),
        ("resources.isolate", resources.isolate, ISOLATION),
        ("on_failure", config.on_failure, ON_FAILURE),
    ):
        demand(value in choices, key, value, f"must be one of {', '.join(choices)}")
    workers = config.trainer.num_workers
    demand(
        workers >= 1 and config.batch_size % max(1, workers) == 0,
        "trainer.num_workers",
        workers,
        f"must be 1 or more and divide batch_size={config.batch_size}",
    )
    demand(
        bool(re.fullmatch(r"[\w.-]+", config.study.name)) and config.study.name.strip(".") != "",
        "study.name",
        config.study.name,
        "must be letters, digits, - _ . only, and not dots alone: it names a folder",
    )
    return found


def _too_fine(where: str, precision: Precision, compute_dtype: str) -> list[str]:
    """Elements that the compute dtype cannot hold, whatever their scale."""
    digits = precision.element.significant_bits
    if compute_dtype != "bfloat16" or digits <= BFLOAT16_DIGITS:
        return []
    return [
        f"{where}: compute_dtype=bfloat16 holds {BFLOAT16_DIGITS} significant bits and "
        f"{precision.element} has {digits}; use compute_dtype=float32, or a mantissa of 7 or less"
    ]


def _fit_problems(config: TrainConfig) -> list[str]:
    """What the recipe, the formats and the model cannot do together."""
    model, recipe, run = config.model, config.recipe, config.precision.build()
    rows = {config.rows_name: config.rows}
    features = {"model.hidden": model.hidden, "model.ffn": model.ffn}
    axes = {
        "output": features,
        "grad_input": {"model.hidden": model.hidden, "2 x model.ffn": 2 * model.ffn},
        "grad_weight": rows,
    }
    found = _keep_problems(config) + recipe.format_problems(run)
    precisions = recipe.precisions(run)
    for label, key, operand in recipe.rounded():
        name, precision = key.split(".")[1], precisions[label]
        own = f"{key}.precision={operand.precision}"
        where = own if operand.precision else f"precision.mantissa={config.precision.mantissa}"
        found += _too_fine(where, precision, config.compute_dtype)
        own = f"{key}.precision={operand.precision}: its block size {precision.block_size} "
        start = own if operand.precision else f"precision.block_size={precision.block_size}: "
        if precision.granularity == "tile":
            for axis, size in {**features, **rows}.items():
                if size % precision.block_size:
                    found.append(f"{start}must divide {axis}={size} for granularity=tile")
        elif precision.granularity == "block":
            for axis, size in axes[name].items():
                if size % precision.block_size:
                    found.append(
                        f"{start}must divide {axis}={size}, over which the {name} product sums"
                    )
    rotated = {key.split(".")[1] for key in recipe.keys().values()}
    for name, gemm in recipe.gemms().items():
        for axis, size in axes[name].items():
            if name in rotated and gemm.hadamard and size % gemm.hadamard:
                found.append(
                    f"recipe.{name}.hadamard={gemm.hadamard}: must divide {axis}={size}, "
                    f"over which the {name} product sums"
                )
    block = recipe.grad_input.row_hadamard
    if block and config.rows % block:
        found.append(
            f"recipe.grad_input.row_hadamard={block}: must divide {config.rows_name}={config.rows}"
        )
    return list(dict.fromkeys(found))


def _keep_problems(config: TrainConfig) -> list[str]:
    """Layers that the recipe keeps and the model has not, or nothing left to quantize."""
    recipe, blocks = config.recipe, config.model.layers
    layers = list(block_linears(config.model))
    found = [
        f"recipe.keep={part}: no such layer; there are blocks.0 to blocks.{blocks - 1} and in each "
        + ", ".join(name.removeprefix("blocks.0.") for name in layers if ".0." in name)
        for part in recipe.keep
        if not any(f".{part}." in f".{layer}." for layer in layers)
    ]
    if not found and all(recipe.keeps(layer, blocks) for layer in layers):
        found.append(
            f"recipe.keep={','.join(recipe.keep)}: with keep_first={recipe.keep_first} and "
            f"keep_last={recipe.keep_last} of model.layers={blocks} no layer is left to quantize"
        )
    return found


def explain(error: BaseException, cfg: DictConfig | None = None) -> str:
    """One line for an error of Hydra or OmegaConf: the key, the value, the nearest right key."""
    text = str(error)
    match = re.search(r"full_key: (\S+)", text)
    key = match[1] if match else ""
    first = text.splitlines()[0].strip()
    override = re.search(r"Could not override '([^']+)'", text)
    missing = re.search(r"Key '([^']+)' (?:is )?not in", text)
    if (override or missing) and (name := key or (override[1] if override else "")):
        near = difflib.get_close_matches(name, known_keys(), n=1)
        hint = f"; did you mean {near[0]}?" if near else "; see lowbit-train --help"
        return f"{name}: no such key{hint}"
    unread = re.search(r"Error parsing override '(.*)'", text)
    if unread:
        return f"{unread[1]}: cannot be read as key=value; put quotes around special characters"
    choice = re.search(r"In '[^']+': Could not find '([^']+)'", text) or re.search(
        r"Could not find '([^']+)'", text
    )
    if choice:
        options = re.search(r"Available options in '[^']+':\n((?:\s+\S+\n?)+)", text)
        group, _, option = choice[1].rpartition("/")
        known = " ".join(options[1].split()) if options else ""
        return f"{group}={option}: no such choice" + (f"; there are: {known}" if known else "")
    inside = re.match(r"In '([^']+)': \w+ raised while composing config", first)
    if inside and "Cannot merge" in text:
        return (
            f"{inside[1]}.yaml: one of its keys holds a list where keys and values belong, or keys "
            "and values where a list does"
        )
    if inside:
        return f"{inside[1]}.yaml: must be keys and values, key: value ({text.splitlines()[-1]})"
    if key and "is not a ListConfig" in text:
        return f"{key}: must be a list, as {key}=[a,b]"
    if key and re.match(r"Cannot assign \w+ to Dict", text):
        return f"{key}: must be keys and values, as {key}={{a: 1}}"
    return f"{key}: {first}" if key and key not in first else first


def told(error: BaseException) -> str | None:
    """One line for an exception of Hydra, OmegaConf or YAML; None for any other."""
    from hydra.errors import HydraException
    from yaml import MarkedYAMLError  # type: ignore[import-untyped]

    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark
        where = f"{mark.name}, line {mark.line + 1}" if mark else "a YAML file"
        what = " ".join(part for part in (error.context, error.problem) if part)
        return f"{where}: not YAML ({one_line(what)})"
    return explain(error) if isinstance(error, (HydraException, OmegaConfBaseException)) else None


def known_keys() -> list[str]:
    """Every key of the configuration, dotted."""

    def walk(kind: Any, prefix: str) -> list[str]:
        keys = []
        for f in fields(kind):
            keys.append(prefix + f.name)
            default = f.default_factory() if callable(f.default_factory) else f.default
            if is_dataclass(default):
                keys += walk(default, f"{prefix}{f.name}.")
        return keys

    return walk(TrainConfig, "")
