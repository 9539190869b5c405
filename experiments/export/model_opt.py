"""A recipe's forward operands as a configuration of ModelOpt, for `modelopt.torch.quantization`.

Read in its version 0.47.0.  ModelOpt quantizes inputs and weights of the forward product; backward
products are in high precision, on the forward operands, with gradients straight through.
"""

from __future__ import annotations

from typing import Any

from experiments.export.configurations import (
    Asked,
    Operand,
    Written,
    general,
    left_to_the_caller,
    program,
)
from experiments.quant.formats import FloatFormat, IntFormat, Precision, ScaleFormat
from experiments.quant.recipe import RecipeConfig

_MX = ("E4M3-ocp", "E2M1")
"""MX elements whose scales its source computes; others are scaled by compiled code alone."""


def model_opt(recipe: RecipeConfig, run: Precision) -> Written:
    """The recipe's configuration, or why there is none."""
    if reasons := general(recipe):
        return Written(reasons=reasons)
    asked = Asked(recipe, run)
    asked.nearest("P1", "P2")
    rotation: dict[str, Any] = {}
    if size := recipe.output.hadamard:
        if recipe.output.signs != "fixed":
            asked.reasons.append(
                "P1 and P2 (recipe.output.signs): it rotates by a Hadamard matrix without signs, "
                f"this recipe with {recipe.output.signs} ones"
            )
        rotation = {"rotate": {"enable": True, "block_size": size}}
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for label, name in (("P2", "*weight_quantizer"), ("P1", "*input_quantizer")):
        if operand := asked.operands.get(label):
            attributes = _attributes(asked, label, operand)
            entries.append({"quantizer_name": name, "cfg": {**attributes, **rotation}})
    if len(entries) == 1:
        asked.reasons.append("P1 and P2: it quantizes forward operands alone, this recipe has none")
    elif rotation and len(entries) == 2:
        asked.reasons.append("P1 and P2: both are rotated, and only one is quantized")
    entries.append({"quantizer_name": "*lm_head*", "enable": False})
    if asked.reasons:
        return Written(reasons=asked.reasons)
    remarks = _remarks(asked)
    lines = ["config = {", '    "quant_cfg": [']
    lines += [f"        {entry!r}," for entry in entries]
    lines += ["    ],", '    "algorithm": "max",', "}"]
    return Written(program(f"{recipe.name} for ModelOpt", lines, remarks), [], remarks)


def _attributes(asked: Asked, label: str, operand: Operand) -> dict[str, Any]:
    """Attributes of a quantizer; refuses formats that it has none for."""
    precision, element = operand.precision, operand.precision.element
    bits: int | tuple[int, int] = (
        element.bits if isinstance(element, IntFormat) else (element.exponent, element.mantissa)
    )
    if isinstance(element, IntFormat) and not element.symmetric:
        asked.refuse(label, "it clips symmetric integers only as far as scales tell")
    eight = str(element) in ("E4M3-ocp", "INT8")
    scaled = precision.scale is ScaleFormat.FP32
    if precision.granularity == "tensor" and eight and scaled:
        dynamic = {"type": "dynamic"} if label == "P1" else {}
        return {"num_bits": bits, "axis": None, **dynamic}
    if precision.granularity == "row" and eight and scaled:
        if label == "P2":
            return {"num_bits": bits, "axis": 0}
        return {"num_bits": bits, "type": "dynamic", "block_sizes": {-1: None}}
    blocks: dict[int | str, Any] = {-1: precision.block_size, "type": "dynamic"}
    mx = precision.scale is ScaleFormat.E8M0_CEIL and precision.block_size == 32
    if precision.granularity == "block" and mx and str(element) in _MX:
        return {"num_bits": bits, "block_sizes": {**blocks, "scale_bits": (8, 0)}}
    if precision == Precision(FloatFormat(2, 1), "block", 16, ScaleFormat.E4M3):
        return {"num_bits": bits, "block_sizes": {**blocks, "scale_bits": (4, 3)}}
    asked.refuse(
        label,
        "it has E4M3-ocp and INT8 per tensor or row, E4M3-ocp and E2M1 in blocks of 32 with scales "
        f"e8m0_ceil, and nvfp4; this recipe {precision}",
    )
    return {}


def _remarks(asked: Asked) -> list[str]:
    recipe, operands = asked.recipe, asked.operands
    found = left_to_the_caller(recipe, "disable their quantizers by name")
    backward = [label for label in ("P3", "P4", "P5", "P6") if label in operands]
    as_here = all(
        operands[label].taken_over if label in operands else ahead not in operands
        for label, ahead in (("P4", "P2"), ("P6", "P1"))
    )
    if not as_here or "P3" in operands or "P5" in operands:
        kinds = " ".join(backward) or "high-precision operands"
        found.append(f"backward ({kinds}): its gradients are those of the forward operands")
    if recipe.estimators():
        found.append("gradients: it passes them straight through, this recipe does not")
    if any(operands[label].precision.scale.two_level for label in ("P1",) if label in operands):
        found.append("P1: its tensor scale is calibrated, here it is that of the tensor at hand")
    if any(
        operands[label].precision.scale is ScaleFormat.E8M0_CEIL
        for label in ("P1", "P2")
        if label in operands
    ):
        found.append(
            "E8M0 scales: ModelOpt stores weights with ceil's; its emulation is compiled code that "
            "was not compared"
        )
    return found
