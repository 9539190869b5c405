"""All that is forbidden in a configuration: a line for each thing, before any work."""

from __future__ import annotations

import re

from experiments.config import callbacks, demands
from experiments.config.precision import ConfigError
from experiments.config.schema import (
    COMPUTE_DTYPES,
    DEVICES,
    ISOLATION,
    KEEP,
    MOST_LISTED,
    TRACKING_MODES,
    TrainConfig,
    leaves,
)
from experiments.data.windows import WINDOWS
from experiments.finetune.config import IN_THE_WEIGHT, BaseConfig, ends_in
from experiments.models.build import shape_of
from experiments.models.source import ModelError, is_folder
from experiments.quant.formats import BFLOAT16_DIGITS, Precision
from experiments.quant.overrides import treatment, unmet
from experiments.quant.recipe import RecipeConfig, is_part
from fitting.entry.errors import one_line


def check(config: TrainConfig) -> None:
    """Check everything that can be known to be wrong before any work.

    Raises:
        ConfigError: One line per problem, joined by newlines.
    """
    found = [
        *config.model.problems(),
        *config.task.problems(config.data, config.model),
        *config.recipe.problems(),
        *config.optim.problems(),
        *config.diagnostics.problems(),
        *config.adapter.problems(),
        *callbacks.problems(config.trainer),
        *_scalar_problems(config),
    ]
    named = tuple(line.partition("=")[0] for line in found)
    alone = demands.problems(leaves(config))
    found += [line for line in alone if line.partition("=")[0] not in named]
    if not found and config.model.foreign:
        found += _foreign_problems(config)
    if not found and config.trainer.checkpointing and not shape_of(config.model).recomputes:
        found.append(
            f"trainer.checkpointing=true: model.name={config.model.name} has no blocks that can be "
            "recomputed: a model of transformers that supports activation checkpointing, without "
            "batch norms, has; use false"
        )
    if not found:
        found += _finetune_problems(config)
    if not found and config.recipe.overrides:
        found += _override_problems(config)
    if not found and config.ptq.formats and not config.recipe.quantizes:
        found += _keep_problems(config)
    if not found:
        features = {"model.hidden": config.model.hidden, "model.ffn": config.model.ffn}
        if config.model.foreign:
            sizes = shape_of(config.model).matrices.items()
            features = {f"model.{name}.in_features": matrix.in_features for name, matrix in sizes}
        found += config.ptq.problems({**features, "data.seq_len": config.data.seq_len})
        for name, precision in config.ptq.precisions().items() if not found else ():
            found += _too_fine(f"ptq.formats={name}", precision, config.compute_dtype)
    if not found and config.recipe.quantizes:
        try:
            config.precision.build()
            found += _fit_problems(config)
        except ConfigError as error:
            found.append(str(error))
    if found:
        raise ConfigError("\n".join(map(one_line, found)))


def _scalar_problems(config: TrainConfig) -> list[str]:
    """Errors of single keys, except for ranges of numbers (`experiments.config.demands`)."""
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
        ("keep", config.keep or KEEP[0], KEEP),
        ("data.windows", config.data.windows, WINDOWS),
    ):
        demand(value in choices, key, value, f"must be one of {', '.join(choices)}")
    workers = config.trainer.num_workers
    demand(
        workers >= 1 and config.batch_size % max(1, workers) == 0,
        "trainer.num_workers",
        workers,
        f"must be 1 or more and divide batch_size={config.batch_size}",
    )
    accumulate, share = config.accumulate, config.batch_size // max(1, workers)
    shared = f"batch_size={config.batch_size}" + f" / trainer.num_workers={workers}" * (workers > 1)
    demand(
        accumulate < 1 or share % accumulate == 0,
        "accumulate",
        accumulate,
        f"must divide {shared}: each of its micro-batches has as many sequences",
    )
    demand(
        bool(re.fullmatch(r"[\w.-]+", config.study.name)) and config.study.name.strip(".") != "",
        "study.name",
        config.study.name,
        "must be letters, digits, - _ . only, and not dots alone: it names a folder",
    )
    return found


def _too_fine(where: str, precision: Precision, compute_dtype: str) -> list[str]:
    """Errors of elements that the compute dtype cannot hold, whatever their scale."""
    digits = precision.element.significant_bits
    if compute_dtype != "bfloat16" or digits <= BFLOAT16_DIGITS:
        return []
    return [
        f"{where}: compute_dtype=bfloat16 holds {BFLOAT16_DIGITS} significant bits and "
        f"{precision.element} has {digits}; use compute_dtype=float32, or a mantissa of 7 or less"
    ]


def _foreign_problems(config: TrainConfig) -> list[str]:
    """Errors of somebody else's model: it cannot be made, or is not what a setting asks for."""
    try:
        shape = shape_of(config.model)
    except ModelError as error:
        return [str(error)]
    of_linear = {
        "optim.weights": config.optim.weights,
        "optim.state": config.optim.state,
        "recipe.word_length.lookback": config.recipe.word_length.lookback,
    }
    others = [name for name, matrix in shape.matrices.items() if not matrix.linear]
    found = [
        f"{key}={value}: is there for nn.Linear alone, and the model's {others[0]} is another layer"
        for key, value in of_linear.items()
        if value and others
    ]
    if config.ptq.formats and others:
        convolutions = all(shape.matrices[name].conv for name in others)
        kinds = "nn.Linear alone, and the model's {} is another layer"
        if not convolutions:
            name = next(name for name in others if not shape.matrices[name].conv)
            found.append(f"ptq.formats={config.ptq.formats}: is there for {kinds.format(name)}")
        # What a convolution's product takes is not its input, and its weight is cast in bfloat16.
        for key, value, plain in (
            ("ptq.operands", config.ptq.operands, "weights"),
            ("compute_dtype", config.compute_dtype, "float32"),
        ):
            if convolutions and value != plain:
                found.append(
                    f"{key}={value}: with ptq.formats is there for {kinds.format(others[0])}; "
                    f"use {plain}"
                )
    return found


def _finetune_problems(config: TrainConfig) -> list[str]:
    """Errors of a base and of an adapter, together with the rest."""
    adapter, optim = config.adapter, config.optim
    if adapter.there and config.task.name != "language_model":
        return [
            f"adapter.name={adapter.name}: is there for task=language_model, not yet for "
            f"task={config.task.name}"
        ]
    if not config.init_from and config.base != BaseConfig():
        return [f"base.label={config.base.label}: is filled in from init_from, which is empty"]
    if not adapter.there:
        return []
    found = []
    if not (config.init_from or is_folder(config.model)):
        found.append(
            f"adapter.name={adapter.name}: needs trained weights beside it; give init_from=RUN, or "
            "model=hf and a model.source with weights"
        )
    for key, value in (("optim.weights", optim.weights), ("optim.state", optim.state)):
        if value:
            found.append(
                f"{key}={value}: is for the matrices of the model, which are frozen with "
                f"adapter.name={adapter.name}"
            )
    if adapter.name in IN_THE_WEIGHT and config.ptq.formats:
        found.append(
            f"ptq.formats={','.join(config.ptq.formats)}: would round the base without what "
            f"adapter.name={adapter.name} changed in it; score the run's export instead"
        )
    if adapter.init == "error" and config.recipe.output.hadamard:
        found.append(
            f"adapter.init=error: recipe.output.hadamard={config.recipe.output.hadamard} rounds "
            "the weight after a rotation, whose error another adapter would have to undo; use zero"
        )
    if config.recipe.word_length.lookback:
        found.append(
            f"recipe.word_length.lookback={config.recipe.word_length.lookback}: moves by gradients "
            f"of weights, which are frozen with adapter.name={adapter.name}"
        )
    shape = shape_of(config.model)
    matrices = shape.matrices
    for end in adapter.target_modules:
        met = [name for name in matrices if ends_in(name, end)]
        if not met:
            names = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in matrices))
            found.append(
                f"adapter.target_modules={end}: no layer's name ends so; there are {names}"
            )
        elif any(not adapter.suits(matrices[name]) for name in met):
            found.append(
                f"adapter.target_modules={end}: {met[0]} is no nn.Linear, beside which an adapter "
                "could stand"
            )
    chosen = adapter.matrices(shape).values()
    narrow = min((m.in_features for m in chosen), default=0)
    if not found and not chosen:
        found.append(f"adapter.name={adapter.name}: the model has no nn.Linear to put it beside")
    elif adapter.name == "paca" and adapter.r > narrow:
        found.append(f"adapter.r={adapter.r}: must be at most {narrow}, the columns that there are")
    return found


def _axes(config: TrainConfig) -> dict[str, dict[str, int]]:
    """The axes over which each product sums, by the keys that set them.

    In somebody else's model an axis that a block does not divide is filled up with zeros, as every
    layer of `experiments.quant.linear` does it; the built-in one asks for sizes that fit, so that
    a format is what its name says.
    """
    if config.model.foreign:
        return {"output": {}, "grad_input": {}, "grad_weight": {}}
    model = config.model
    return {
        "output": {"model.hidden": model.hidden, "model.ffn": model.ffn},
        "grad_input": {"model.hidden": model.hidden, "2 x model.ffn": 2 * model.ffn},
        "grad_weight": {config.rows_name: config.rows},
    }


def _fit_problems(config: TrainConfig) -> list[str]:
    """Errors of combinations of recipe, formats and model."""
    recipe, run = config.recipe, config.precision.build()
    found = _keep_problems(config) + _attention_problems(config)
    if recipe.name == "none":
        found.append("recipe.name=none: is that of runs without quantization; set another name")
    found += recipe.format_problems(run) + _size_problems(config, recipe, run)
    for pattern, override in recipe.overridden().items():
        target = Precision.parse(override.precision) if override.precision else run
        inner = _size_problems(config, override.recipe, target)
        found += [f"recipe.overrides[{pattern}]: {problem}" for problem in inner]
    return list(dict.fromkeys(found))


def _override_problems(config: TrainConfig) -> list[str]:
    """Errors of overrides: no layer has the name, or something else would need layers alike."""
    recipe, shape = config.recipe, shape_of(config.model)
    hidden = (*shape.attention, *shape.unreached) if recipe.attends else ()
    layers = [*shape.layers(), *shape.others, *hidden]
    there = ", ".join(layers[:MOST_LISTED]) + (", ..." if len(layers) > MOST_LISTED else "")
    found = [
        f"recipe.overrides[{pattern}]: {wrong}" + f"; there are {there}" * ("meets" in wrong)
        for pattern, wrong in unmet(recipe.overrides, layers).items()
    ]
    treated = {} if found else shape.treated(recipe)
    of_others = [n for n, m in shape.others.items() if treated and treated[n].recipe is not None]
    of_blocks = {
        "ptq.formats": config.ptq.formats,
        "optim.weights": config.optim.weights,
        "optim.state": config.optim.state,
    }
    return found + [
        f"{key}={value}: is for the layers that are quantized by default; leave {of_others[0]} out "
        "of recipe.overrides"
        for key, value in of_blocks.items()
        if value and of_others
    ]


def _size_problems(config: TrainConfig, recipe: RecipeConfig, run: Precision) -> list[str]:
    """Errors of blocks and rotations that do not suit the model's sizes."""
    found, axes = [], _axes(config)
    precisions = recipe.precisions(run)
    for name, operand in recipe.attention.operands().items():
        precision = recipe.attention.precisions(run)[name]
        where = f"recipe.attention.{name}.precision={operand.precision or precision}"
        found += _too_fine(where, precision, config.compute_dtype)
    for label, key, operand in recipe.rounded():
        name, precision = key.split(".")[1], precisions[label]
        own = f"{key}.precision={operand.precision}"
        where = own if operand.precision else f"precision.mantissa={config.precision.mantissa}"
        found += _too_fine(where, precision, config.compute_dtype)
        own = f"{key}.precision={operand.precision}: its block size {precision.block_size} "
        start = own if operand.precision else f"precision.block_size={precision.block_size}: "
        if precision.granularity == "tile":
            for axis, size in {**axes["output"], **axes["grad_weight"]}.items():
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
    if block and config.rows % block and not config.model.foreign:
        found.append(
            f"recipe.grad_input.row_hadamard={block}: must divide {config.rows_name}={config.rows}"
        )
    return list(dict.fromkeys(found))


def _attention_problems(config: TrainConfig) -> list[str]:
    """Errors of a recipe for attention: it cannot be reached."""
    recipe, shape = config.recipe, shape_of(config.model)
    asked = [each.attention.quantized for each in recipe.recipes() if each.attention.quantized]
    if not asked:
        return []
    key, found = f"recipe.attention.{asked[0][0]}", []
    for name, why in shape.unreached.items():
        treated = treatment(recipe, name, None, shape.blocks).recipe
        if treated is not None and treated.attention.quantized:
            found.append(
                f"{key}: {name} cannot be quantized: {why}; it must be null, or "
                f"recipe.keep=[{name}] keep this module in high precision"
            )
    if not found and not shape.attention:
        found.append(f"{key}: the model has no attention that can be reached; it must be null")
    return found


def _keep_problems(config: TrainConfig) -> list[str]:
    """Errors of kept layers: the model does not have one, or none is left to quantize."""
    recipe, shape = config.recipe, shape_of(config.model)
    layers, blocks = shape.layers(), shape.blocks
    others = (*shape.attention, *shape.unreached) if recipe.attends else ()
    there = f"blocks.0 to blocks.{blocks - 1} and in each " + ", ".join(
        name.removeprefix("blocks.0.") for name in layers if ".0." in name
    )
    if config.model.foreign:
        there = ", ".join(layers[:MOST_LISTED]) + (", ..." if len(layers) > MOST_LISTED else "")
    found = [
        f"recipe.keep={part}: no such layer; there are {there}"
        for part in recipe.keep
        if not any(is_part(part, layer) for layer in (*layers, *others))
    ]
    if (recipe.keep_first or recipe.keep_last) and not blocks:
        found.append(
            f"recipe.keep_first={recipe.keep_first}, keep_last={recipe.keep_last}: the model has "
            "no numbered blocks; name its layers in recipe.keep"
        )
    attended = any(treated.recipe for treated in shape.attended(recipe).values())
    left = attended or set(layers) - shape.kept(recipe) or shape.quantized(recipe)
    if not found and not left:
        keep = ",".join(recipe.keep) + " and recipe.overrides" * bool(recipe.overrides)
        found.append(
            f"recipe.keep={keep}: with keep_first={recipe.keep_first} and "
            f"keep_last={recipe.keep_last} of model.layers={blocks} no layer is left to quantize"
        )
    return found
