"""Quantize the layers of any model in place: which ones, in which recipe and format."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from experiments.configure import configure
from experiments.engine.layers import QuantConv1D, QuantConv1d, QuantConv2d
from experiments.engine.noise import DrawnNoise
from experiments.quant.formats import Precision
from experiments.quant.linear import NoiseClock, QuantizedGemms, QuantLinear
from experiments.quant.recipe import RecipeConfig, is_part
from fitting.entry.errors import Refusal

How: TypeAlias = "str | RecipeConfig | tuple[str | RecipeConfig, str | Precision] | None"
"""A recipe, or a recipe and its format; None leaves a layer in high precision."""
Filter: TypeAlias = Callable[[nn.Module, str], bool]
"""A layer and its full name -> whether to quantize it."""
REGULAR = "re:"
"""What a pattern among the overrides begins with."""
DEFAULT = "_default"
"""Among the overrides: what holds for layers that no name and no pattern meets."""
MOST_LISTED = 6
"""Names of layers in a message."""
WHY = "_lowbit_why"
"""Attribute of a layer that stays in high precision: the reason."""


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
    """Quantize the linear layers and convolutions of a model, in place.

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
            linear layers and convolutions are, except the output head of a language model.
        overrides: What holds for some layers instead: full names, or patterns that begin with
            "re:" and match the whole name, -> a recipe, (recipe, precision), or None for high
            precision.  A full name goes before patterns, these in their order, these before
            "_default", and any of them before `filter_fn`.
        clock: The source of noise.  By default it is drawn from torch's generator in each pass
            (`DrawnNoise`); give a `NoiseClock` to count steps yourself.

    Returns:
        The model.

    Raises:
        EngineError: There is no such recipe or format, a name or pattern meets no layer, a recipe
            needs what only a training loop of ours has, or a layer that was asked for cannot be
            quantized.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> _ = quantize_(model, "quartet_v4", "mxfp4", filter_fn=lambda layer, name: name == "0")
    >>> [type(layer).__name__ for layer in model]
    ['QuantLinear', 'ReLU', 'Linear']
    """
    plan = _planned(recipe, precision)
    named = {name: _planned(how, precision) for name, how in (overrides or {}).items()}
    layers = {n: m for n, m in model.named_modules() if _kind(m) is not None or _is_one(m)}
    _refuse_unmet(named, layers)
    others = _called_otherwise(model)
    heads = _heads(model)
    blocks = _blocks(layers)
    for each in (plan, *named.values()):
        _refuse_unkept(each, layers)
    ready: list[tuple[nn.Module, type | None, _Plan | None, str]] = []
    for name, layer in layers.items():
        chosen, why = _chosen(name, named)
        asked = why != ""
        if not asked:
            if filter_fn is not None:
                asked = wanted = filter_fn(layer, name)
                why = "" if wanted else "filter_fn"
            else:
                wanted = layer not in heads
                why = "" if wanted else "output head"
            chosen = plan if wanted else None
        if chosen is not None and (reason := _keeps(chosen.recipe, name, blocks)):
            chosen, why = None, reason
        kind = _kind(layer)
        cannot = others.get(layer, "")
        if not cannot and kind is None and not isinstance(layer, QuantizedGemms):
            cannot = f"{type(layer).__name__} is a class of its own"
        if chosen is not None and chosen.recipe.quantized and cannot:
            if asked:
                raise EngineError(
                    f"layer {name}: {cannot}, so it cannot be quantized; leave it out"
                )
            chosen, why = None, cannot
        ready.append((layer, kind, chosen, why or "recipe none"))
    fresh = DrawnNoise(0)
    for number, (layer, kind, chosen, why) in enumerate(ready):
        own = layer.clock if isinstance(layer, QuantizedGemms) else fresh
        source = own if clock is None else clock
        _become(layer, kind, chosen, why, source, number)
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
    problems = [*recipe.problems(), *(recipe.format_problems(target) if recipe.quantized else [])]
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


def _kind(layer: nn.Module) -> type | None:
    """The class that a layer becomes; None if there is none for it."""
    exact = {nn.Linear: QuantLinear, nn.Conv1d: QuantConv1d, nn.Conv2d: QuantConv2d}
    if type(layer) in exact:
        return exact[type(layer)]
    is_gpt2s = type(layer).__name__ == "Conv1D" and "transformers" in type(layer).__module__
    return _conv1d(type(layer)) if is_gpt2s else None


def _conv1d(base: type) -> type:
    """`QuantConv1D` of the class that transformers has."""
    if base not in _CONV1D:
        _CONV1D[base] = type("QuantConv1D", (QuantConv1D, base), {"__module__": __name__})
    return _CONV1D[base]


_CONV1D: dict[type, type] = {}


def _is_one(layer: nn.Module) -> bool:
    """Whether a layer is quantized already, or would be but for a class of its own."""
    return isinstance(layer, QuantizedGemms | nn.Linear | nn.Conv1d | nn.Conv2d)


def _called_otherwise(model: nn.Module) -> dict[nn.Module, str]:
    """Layers whose weights are multiplied by something else than their own forward."""
    found: dict[nn.Module, str] = {}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            found[module.out_proj] = "nn.MultiheadAttention multiplies by its weights itself"
    return found


def _heads(model: nn.Module) -> set[nn.Module]:
    """Output heads: what transformers names one, and what shares its weight with an embedding."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found = {
        m for m in model.modules() if _is_one(m) and id(getattr(m, "weight", None)) in embeddings
    }
    for module in model.modules():
        get = getattr(module, "get_output_embeddings", None)
        if callable(get) and isinstance(head := get(), nn.Module):
            found.add(head)
    return found


def _blocks(layers: Mapping[str, nn.Module]) -> tuple[str, int]:
    """The prefix of the numbered blocks with the most layers, and how many blocks there are."""
    numbers: dict[str, list[int]] = {}
    for name in layers:
        if match := re.search(r"(?:^|\.)(\d+)\.", name):  # the outermost one
            numbers.setdefault(name[: match.start(1)], []).append(int(match[1]))
    if not numbers:
        return "", 0
    prefix = max(numbers, key=lambda each: len(numbers[each]))
    return prefix, max(numbers[prefix]) + 1


def _keeps(recipe: RecipeConfig, name: str, blocks: tuple[str, int]) -> str:
    """Why a recipe keeps a layer in high precision; "" if it does not.

    Raises:
        EngineError: The recipe keeps first or last blocks, and the model has no numbered ones.
    """
    if not (recipe.keep_first or recipe.keep_last or recipe.keep):
        return ""
    prefix, count = blocks
    if (recipe.keep_first or recipe.keep_last) and not count:
        raise EngineError(
            f"recipe.keep_first={recipe.keep_first} and keep_last={recipe.keep_last}: the model "
            "has no numbered blocks; set them to 0 and name layers in overrides"
        )
    inside = name.startswith(prefix) and re.match(r"\d+\.", name[len(prefix) :])
    numbered = f"blocks.{name[len(prefix) :]}" if inside else f"blocks.{recipe.keep_first}.{name}"
    if not inside and not recipe.keep:
        return ""
    kept = recipe.keeps(numbered, max(count, recipe.keep_first + recipe.keep_last + 1))
    return "recipe.keep" if kept else ""


def _chosen(name: str, named: Mapping[str, _Plan | None]) -> tuple[_Plan | None, str]:
    """What the overrides say of a layer, and which does; (None, "") if none does."""
    if name in named:
        return named[name], f"override {name}"
    for pattern, plan in named.items():
        if pattern.startswith(REGULAR) and re.fullmatch(pattern[len(REGULAR) :], name):
            return plan, f"override {pattern}"
    if DEFAULT in named:
        return named[DEFAULT], f"override {DEFAULT}"
    return None, ""


def _refuse_unmet(named: Mapping[str, object], layers: Mapping[str, nn.Module]) -> None:
    """Refuse names and patterns that meet no layer: they were meant for one.

    Raises:
        EngineError: There is one.
    """
    for pattern in named:
        if pattern == DEFAULT or pattern in layers:
            continue
        try:
            expression = re.compile(pattern.removeprefix(REGULAR))
        except re.error as error:
            raise EngineError(f"overrides[{pattern!r}]: is no pattern ({error})") from error
        if pattern.startswith(REGULAR) and any(expression.fullmatch(name) for name in layers):
            continue
        raise EngineError(f"overrides[{pattern!r}]: meets no layer; there are {_first_of(layers)}")


def _refuse_unkept(plan: _Plan | None, layers: Mapping[str, nn.Module]) -> None:
    """Refuse names of layers that a recipe keeps and the model does not have.

    Raises:
        EngineError: There is one.
    """
    for part in plan.recipe.keep if plan is not None else ():
        if not any(is_part(part, name) for name in layers):
            known = _first_of(layers)
            raise EngineError(f"recipe.keep={part}: the model has no such layer; it has {known}")


def _first_of(layers: Mapping[str, nn.Module]) -> str:
    """Some names of layers, for a message."""
    names = [*layers]
    return ", ".join(names[:MOST_LISTED]) + (", ..." if len(names) > MOST_LISTED else "")


def _become(
    layer: nn.Module,
    kind: type | None,
    plan: _Plan | None,
    why: str,
    clock: NoiseClock,
    number: int,
) -> None:
    """Make a layer what was chosen for it."""
    layer.__dict__.pop(WHY, None)
    if plan is None or not plan.recipe.quantized:
        if isinstance(layer, QuantizedGemms):
            layer.kept = True
        layer.__dict__[WHY] = why
        return
    if isinstance(layer, QuantizedGemms):
        now = layer.recipe, layer.precision, layer.layer
        same = now == (plan.recipe, plan.precision, number) and layer.clock is clock
        if same and not layer.kept:
            return
    else:
        assert kind is not None
        layer.__class__ = kind
    assert isinstance(layer, QuantizedGemms)
    layer.quantized_as(plan.recipe, plan.precision, clock, number)
