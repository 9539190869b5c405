"""Quantize the layers of any model in place: which ones, in which recipe and format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from experiments.configure import configure
from experiments.engine.attention import attentions, give_back, products_of, reach, unreached
from experiments.engine.blocks import block_numbers
from experiments.engine.convert import attend, become, do_not_attend, keep, multiply_by_layers
from experiments.engine.kinds import by_default_not, is_linear, kind, not_its_own
from experiments.engine.noise import DrawnNoise
from experiments.quant.formats import Precision
from experiments.quant.linear import NoiseClock, QuantizedGemms
from experiments.quant.overrides import DEFAULT, select, unmet
from experiments.quant.recipe import RecipeConfig, is_part
from fitting.entry.errors import Refusal

How: TypeAlias = "str | RecipeConfig | tuple[str | RecipeConfig, str | Precision] | None"
"""A recipe, or a recipe and its format; None leaves a layer in high precision."""
Filter: TypeAlias = Callable[[nn.Module, str], bool]
"""A layer and its full name -> whether to quantize it."""
MOST_LISTED = 6
"""Names of layers in a message."""
_REACHED = (
    "attention that can be reached: that of transformers which goes by its AttentionInterface, or "
    "lowbit.AttentionProducts in place of scaled_dot_product_attention"
)


class EngineError(Refusal):
    """A model cannot be quantized as asked, with what would be right."""


@dataclass(frozen=True)
class _Plan:
    """A recipe with its format, checked."""

    recipe: RecipeConfig
    precision: Precision


def quantize_(
    model: nn.Module,
    recipe: str | RecipeConfig = "nvidia_nvfp4",
    precision: str | Precision = "nvfp4",
    *,
    filter_fn: Filter | None = None,
    overrides: Mapping[str, How] | None = None,
    clock: NoiseClock | None = None,
) -> nn.Module:
    """Quantize linear layers, convolutions, experts and, if asked, attention of a model, in place.

    A layer's class changes (`QuantLinear` for `nn.Linear`, ...); it stays the same object with the
    same parameters, buffers, names, hooks, devices, dtypes, `requires_grad` and tied weights, and
    the model's `state_dict` is what it was.  Calling it again with the same arguments changes
    nothing; with others, what the layers do.

    Args:
        model: Any module.
        recipe: Which operands are quantized: a name as `lowbit-train recipe=` takes it, or a
            `RecipeConfig`.
        precision: The format of operands to which the recipe gives none: a name, or a `Precision`.
        filter_fn: Whether a layer is quantized, by the layer and its full name.  By default all
            linear layers, convolutions and experts are, except the output head of a language model
            and the router of a mixture, and so are the products of attention if the recipe says
            it (`recipe.attention`).  It is asked about embeddings, too.
        overrides: What holds for some layers instead: full names, or patterns that begin with
            "re:" and match the whole name, -> a recipe, (recipe, precision), or None for high
            precision.  A full name goes before patterns, these in their order, these before
            "_default" (which means no embedding), and any of them before `filter_fn`.  Those that
            a recipe has itself (`recipe.overrides`) come after these.
        clock: The source of noise.  By default it is drawn from torch's generator in each pass
            (`DrawnNoise`); give a `NoiseClock` to count steps yourself.

    Returns:
        The model.

    Raises:
        EngineError: There is no such recipe or format, a name or pattern meets no layer, a recipe
            needs what only a training loop of ours has, or a layer or an attention that was asked
            for cannot be quantized.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> _ = quantize_(model, "quartet_v4", "mxfp4", filter_fn=lambda layer, name: name == "0")
    >>> [type(layer).__name__ for layer in model]
    ['QuantLinear', 'ReLU', 'Linear']
    """
    plan = _planned(recipe, precision)
    said: dict[str, How] = dict(overrides or {})
    if plan is not None:
        for name, its in plan.recipe.overrides.items():
            its_own: How = (its.recipe, its.precision or precision) if its is not None else None
            said.setdefault(name, its_own)
    named = {name: _planned(how, precision) for name, how in said.items()}
    layers = {n: m for n, m in model.named_modules() if kind(m) is not None or is_linear(m)}
    plans = [each for each in (plan, *named.values()) if each is not None]
    asked = any(each.recipe.attention.quantized for each in plans)
    heads = attentions(model) if asked else {}
    hidden = unreached(model) if asked else {}
    if asked and not heads and not hidden:
        raise EngineError(f"recipe.attention: the model has no {_REACHED}")
    tables = [name for name, layer in layers.items() if isinstance(layer, nn.Embedding)]
    names = [*(name for name in layers if name not in tables), *tables, *heads, *hidden]
    _refuse_unmet(named, names)
    for each in plans:
        _refuse_unkept(each, names)
    others, left_out = not_its_own(model), by_default_not(model)
    numbers, blocks = block_numbers([*layers, *heads, *hidden])

    def planned(name: str, layer: nn.Module) -> tuple[_Plan | None, str]:
        """What somebody said of a layer, and where; ("", the recipe) if nobody did."""
        chosen, by = select(name, named)
        if by or filter_fn is None:
            return (chosen, by) if by else (plan, "")
        return (plan if filter_fn(layer, name) else None), "filter_fn"

    def decided(name: str, layer: nn.Module) -> _Plan | str:
        """What a layer becomes, or why it stays in high precision."""
        chosen, by = planned(name, layer)
        is_table = isinstance(layer, nn.Embedding)
        if layer in left_out and (not by or (is_table and by == f"override {DEFAULT}")):
            return left_out[layer]
        if chosen is None:
            return by or "recipe none"
        if not chosen.recipe.quantized:
            return "recipe none"
        if is_table and "P2" not in chosen.recipe.precisions(chosen.precision):
            return "recipe without output.weight"
        if _keeps(chosen.recipe, name, numbers[name], blocks):
            return "recipe.keep"
        if cannot := _cannot(layer, others):
            if by:
                raise EngineError(
                    f"layer {name}: {cannot}, so it cannot be quantized; leave it out"
                )
            return cannot
        return chosen

    def attended(name: str, module: nn.Module) -> _Plan | str:
        """What becomes of an attention's products, or why they stay in high precision."""
        chosen, by = planned(name, module)
        if chosen is None:
            return by or "recipe none"
        if not chosen.recipe.attention.quantized:
            return "recipe without attention"
        if _keeps(chosen.recipe, name, numbers[name], blocks):
            return "recipe.keep"
        if name in hidden:
            raise EngineError(
                f"layer {name}: {hidden[name]}, so recipe.attention cannot be had there; leave it "
                f"out by overrides={{{name!r}: None}}, or use {_REACHED}"
            )
        return chosen

    fates = {name: decided(name, layer) for name, layer in layers.items()}
    modules = {name: model.get_submodule(name) for name in hidden} | heads
    of_heads = {name: attended(name, module) for name, module in modules.items()}
    fresh = DrawnNoise(0)
    for module in model.modules():
        do_not_attend(module)
    for number, (name, module) in enumerate(heads.items()):
        if isinstance(fate := of_heads[name], str):
            do_not_attend(reach(module), fate)
            continue
        ours = getattr(products_of(module), "clock", fresh)
        attend(module, fate.recipe, fate.precision, ours if clock is None else clock, number)
    give_back(model)
    for number, (name, fate) in enumerate(fates.items()):
        layer = layers[name]
        if isinstance(fate, str):
            keep(layer, fate)
            continue
        own = layer.clock if isinstance(layer, QuantizedGemms) else fresh
        become(layer, fate.recipe, fate.precision, own if clock is None else clock, number)
    multiply_by_layers(model)
    return model


def _planned(how: How, precision: str | Precision) -> _Plan | None:
    """A recipe and a format as objects.

    Raises:
        EngineError: One of them does not exist, or they do not go together.
    """
    if how is None:
        return None
    if isinstance(how, tuple):
        how, precision = how
    recipe = configure(f"recipe={how}").recipe if isinstance(how, str) else how
    target = Precision.parse(precision) if isinstance(precision, str) else precision
    problems = [*recipe.problems(), *(recipe.format_problems(target) if recipe.quantizes else [])]
    if recipe.high_precision_share:
        problems.append(
            f"recipe.high_precision_share={recipe.high_precision_share:g}: needs a loop that knows "
            "how many steps there are; set it to 0, and the layers' clock.quantizing to False then"
        )
    if recipe.word_length.lookback:
        problems.append(
            f"recipe.word_length.lookback={recipe.word_length.lookback}: needs the training loop "
            "of lowbit-train; set it to 0"
        )
    if problems:
        raise EngineError("; ".join(problems))
    return _Plan(recipe, target)


def _cannot(layer: nn.Module, others: Mapping[nn.Module, str]) -> str:
    """Why a layer cannot be quantized; "" if it can."""
    if layer in others:
        return others[layer]
    if kind(layer) is None and not isinstance(layer, QuantizedGemms):
        return f"{type(layer).__name__} is a class of its own"
    return ""


def _keeps(recipe: RecipeConfig, name: str, block: int | None, blocks: int) -> bool:
    """Whether a recipe keeps a layer in high precision.

    Raises:
        EngineError: The recipe keeps first or last blocks, and the model has no numbered ones.
    """
    if (recipe.keep_first or recipe.keep_last) and not blocks:
        raise EngineError(
            f"recipe.keep_first={recipe.keep_first} and keep_last={recipe.keep_last}: the model "
            "has no numbered blocks; set them to 0 and name layers in overrides"
        )
    return recipe.keeps(name, block, blocks)


def _refuse_unmet(named: Mapping[str, object], layers: Collection[str]) -> None:
    """Refuse names and patterns that meet no layer: they were meant for one.

    Raises:
        EngineError: There is one.
    """
    for pattern, wrong in unmet(named, layers).items():
        hint = f"; there are {_first_of(layers)}" if wrong == "meets no layer" else ""
        raise EngineError(f"overrides[{pattern!r}]: {wrong}{hint}")


def _refuse_unkept(plan: _Plan, layers: Collection[str]) -> None:
    """Refuse names of layers that a recipe keeps and the model does not have.

    Raises:
        EngineError: There is one.
    """
    for part in plan.recipe.keep:
        if not any(is_part(part, name) for name in layers):
            known = _first_of(layers)
            raise EngineError(f"recipe.keep={part}: the model has no such layer; it has {known}")


def _first_of(layers: Collection[str]) -> str:
    """Some names of layers, for a message."""
    names = [*layers]
    return ", ".join(names[:MOST_LISTED]) + (", ..." if len(names) > MOST_LISTED else "")
