"""A recipe as one of `transformer_engine.common.recipe`, for its linear layers.

Read in its version 2.20.2: inputs and weights are quantized anew along each axis, or once where a
scale is shared along both; the gradient of the output is rounded in the same way for both of its
products; NVFP4 rotates the operands of the weight's gradient alone, by 16.
"""

from __future__ import annotations

from experiments.export.configurations import (
    Asked,
    Written,
    general,
    left_to_the_caller,
    program,
)
from experiments.quant.formats import Precision
from experiments.quant.recipe import RecipeConfig

_FAMILIES = {
    "fp8_e4m3": ("Float8CurrentScaling", ("fp8_e4m3",), ("fp8_e4m3", "fp8_e5m2")),
    "E4M3-ocp-block32-e8m0_ceil": (
        "MXFP8BlockScaling",
        ("E4M3-ocp-block32-e8m0_ceil",),
        ("E4M3-ocp-block32-e8m0_ceil", "E5M2-ocp-block32-e8m0_ceil"),
    ),
    "E4M3-ocp-block128-e8m0_ceil": (
        "Float8BlockScaling",
        ("E4M3-ocp-tile128-e8m0_ceil",),
        ("E4M3-ocp-block128-e8m0_ceil", "E5M2-ocp-block128-e8m0_ceil"),
    ),
    "nvfp4": ("NVFP4BlockScaling", ("nvfp4_tile", "nvfp4"), ("nvfp4",)),
}
"""By the input's format: the class, formats of the weight, formats of the output's gradient."""


def transformer_engine(recipe: RecipeConfig, run: Precision) -> Written:
    """The recipe's class with its arguments, or why there is none."""
    if reasons := general(recipe):
        return Written(reasons=reasons)
    asked = Asked(recipe, run)
    operands = asked.operands
    for label in ("P1", "P2"):
        if label not in operands:
            asked.refuse(label, "it quantizes both forward operands, this recipe leaves it")
    if asked.reasons:
        return Written(reasons=asked.reasons)
    families = {Precision.parse(name): family for name, family in _FAMILIES.items()}
    first = operands["P1"].precision
    if first not in families:
        known = ", ".join(_FAMILIES)
        asked.refuse("P1", f"it has inputs in {known}, this recipe in {first}")
        return Written(reasons=asked.reasons)
    name, weights, gradients = families[first]
    asked.nearest("P1", "P2")
    asked.straight_through()
    asked.unrotated("output")
    if operands["P2"].precision not in map(Precision.parse, weights):
        asked.refuse("P2", f"{name} has it in {', '.join(weights)}")
    arguments = _forward(name, operands["P2"].precision)
    override = _override(asked)
    if override:
        arguments["backward_override"] = f'"{override}"'
        if name == "NVFP4BlockScaling":
            arguments |= {"disable_rht": "True", "disable_stochastic_rounding": "True"}
        elif name != "Float8BlockScaling":
            arguments["fp8_format"] = "Format.E4M3"
    else:
        arguments |= _backward(asked, name, gradients)
    if asked.reasons:
        return Written(reasons=asked.reasons)
    remarks = left_to_the_caller(recipe, "leave these layers outside its autocast")
    inner = ", ".join(f"{key}={value}" for key, value in arguments.items())
    imported = f"Format, {name}" if "Format." in inner else name
    lines = [
        f"from transformer_engine.common.recipe import {imported}",
        "",
        f"recipe = {name}({inner})",
    ]
    return Written(program(f"{recipe.name} for TransformerEngine", lines, remarks), [], remarks)


def _forward(name: str, weight: Precision) -> dict[str, str]:
    if name == "NVFP4BlockScaling":
        return {"disable_2d_quantization": str(weight.granularity != "tile")}
    return {}


def _override(asked: Asked) -> str:
    """What makes the backward products those of high precision; "" if they are quantized."""
    if "P3" in asked.operands or "P5" in asked.operands:
        return ""
    ahead = [asked.operands.get(label) for label in ("P4", "P6")]
    if not any(ahead):
        return "high_precision"
    if all(operand and operand.taken_over for operand in ahead):
        return "dequantized"
    asked.reasons.append(
        "P4 and P6: with gradients in high precision it takes both from high precision, or both "
        "as they were multiplied forward"
    )
    return "high_precision"


def _backward(asked: Asked, name: str, gradients: tuple[str, ...]) -> dict[str, str]:
    operands = asked.operands
    for label in ("P3", "P4", "P5", "P6"):
        if label not in operands:
            asked.refuse(label, "it quantizes all operands of both backward products, or none")
    if asked.reasons:
        return {}
    asked.nearest("P4", "P6")
    asked.as_rounded_once("P4", "P6")
    for label, ahead in (("P4", "P2"), ("P6", "P1")):
        if not operands[label].taken_over and (
            operands[label].precision != operands[ahead].precision
        ):
            asked.refuse(label, f"{name} has it in the format of {ahead}")
    gradient = operands["P3"]
    if gradient.precision not in map(Precision.parse, gradients):
        asked.refuse("P3", f"{name} has it in {', '.join(gradients)}")
    if (operands["P5"].precision, operands["P5"].rounding) != (
        gradient.precision,
        gradient.rounding,
    ):
        asked.refuse("P5", "it rounds the output's gradient as in P3")
    asked.unrotated("grad_input")
    if name != "NVFP4BlockScaling":
        asked.unrotated("grad_weight")
        asked.nearest("P3", "P5")
        wide = gradient.precision.element == Precision.parse("fp8_e5m2").element
        return {"fp8_format": "Format.HYBRID" if wide else "Format.E4M3"}
    if gradient.rounding not in ("nearest_even", "stochastic"):
        asked.refuse("P3", f"it rounds to nearest or stochastic, this recipe {gradient.rounding}")
    rotation = asked.recipe.grad_weight
    if (rotation.hadamard, rotation.signs) not in ((16, "shared"), (0, rotation.signs)):
        asked.reasons.append(
            "P5 and P6 (recipe.grad_weight): it rotates them by 16 with one vector of signs "
            f"(shared) or not at all, this recipe by {rotation.hadamard} with {rotation.signs} ones"
        )
    return {
        "disable_rht": str(not rotation.hadamard),
        "disable_stochastic_rounding": str(gradient.rounding == "nearest_even"),
    }
