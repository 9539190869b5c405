"""A recipe as a training configuration of torchao: float8, MXFP8 or INT8 linear layers.

Read in its version 0.18.0.  Float8 has a scale per tensor or per row and rounds each operand from
high precision; both operands of a GEMM are quantized or neither.
"""

from __future__ import annotations

from experiments.export.configurations import (
    Asked,
    Operand,
    Written,
    general,
    left_to_the_caller,
    program,
)
from experiments.quant.formats import Precision, ScaleFormat
from experiments.quant.recipe import FORWARD_OF, GEMMS, RecipeConfig

_DTYPES = {"E4M3-ocp": "torch.float8_e4m3fn", "E5M2-ocp": "torch.float8_e5m2"}
_ARGUMENTS = {
    "P1": "cast_config_input",
    "P6": "cast_config_input_for_grad_weight",
    "P2": "cast_config_weight",
    "P4": "cast_config_weight_for_grad_input",
    "P3": "cast_config_grad_output",
    "P5": "cast_config_grad_output_for_grad_weight",
}
_MX, _INT8 = Precision.parse("E4M3-ocp-block32-e8m0_ceil"), Precision.parse("INT8-row-fp32")


def torch_ao(recipe: RecipeConfig, run: Precision) -> Written:
    """The recipe's configuration, or why there is none."""
    if reasons := general(recipe):
        return Written(reasons=reasons)
    asked = Asked(recipe, run)
    asked.nearest(*asked.operands)
    asked.straight_through()
    asked.unrotated(*GEMMS)
    asked.as_rounded_once("P4", "P6")
    for name, labels in GEMMS.items():
        if len({label in asked.operands for label in labels}) > 1:
            asked.reasons.append(
                f"{' and '.join(labels)} (recipe.{name}): it quantizes both operands or neither"
            )
    formats = {operand.precision for operand in asked.operands.values()}
    if formats == {_MX}:
        lines = _mx(asked)
    elif formats == {_INT8}:
        lines = _int8(asked)
    else:
        lines = _float8(asked)
    if asked.reasons:
        return Written(reasons=asked.reasons)
    remarks = left_to_the_caller(recipe, "leave these layers out by a filter of modules")
    return Written(program(f"{recipe.name} for torchao", lines, remarks), [], remarks)


def _quantized(asked: Asked) -> dict[str, bool]:
    return {name: labels[0] in asked.operands for name, labels in GEMMS.items()}


def _mx(asked: Asked) -> list[str]:
    which = _quantized(asked)
    if not (which["output"] and which["grad_input"]):
        asked.reasons.append("MXFP8 quantizes the products of output and grad_input always")
    name = "MXFP8_RCEIL" if which["grad_weight"] else "MXFP8_RCEIL_WGRAD_WITH_HP"
    return [
        "from torchao.prototype.moe_training.config import (",
        "    MXFP8TrainingOpConfig,",
        "    MXFP8TrainingRecipe,",
        ")",
        "",
        f"config = MXFP8TrainingOpConfig.from_recipe(MXFP8TrainingRecipe.{name})",
    ]


def _int8(asked: Asked) -> list[str]:
    inner = ", ".join(f"{name}={found}" for name, found in _quantized(asked).items())
    return [
        "from torchao.prototype.quantized_training import Int8MixedPrecisionTrainingConfig",
        "",
        f"config = Int8MixedPrecisionTrainingConfig({inner})",
    ]


def _in_float8(precision: Precision) -> bool:
    return (
        str(precision.element) in _DTYPES
        and precision.granularity in ("tensor", "row")
        and precision.scale in (ScaleFormat.FP32, ScaleFormat.E8M0_CEIL)
    )


def _float8(asked: Asked) -> list[str]:
    unknown: dict[str, list[str]] = {}
    for label, each in asked.operands.items():
        if not _in_float8(each.precision):
            unknown.setdefault(str(each.precision), []).append(label)
    for found, labels in unknown.items():
        asked.reasons.append(
            f"{' '.join(labels)}: it has E4M3-ocp and E5M2-ocp per tensor or row with scales fp32 "
            f"or e8m0_ceil, all operands in {_MX}, or all in {_INT8}; this recipe {found}"
        )
    for later, earlier in {**FORWARD_OF, "P5": "P3"}.items():
        pair = [asked.operands.get(label) for label in (earlier, later)]
        if len({str(each.precision.element) for each in pair if each}) > 1:
            asked.refuse(later, f"its element format is that of {earlier}")
    if len({operand.precision.scale for operand in asked.operands.values()}) > 1:
        asked.reasons.append("all scales are powers of two, or none are")
    if asked.reasons:
        return []
    twos = any(o.precision.scale.power_of_two for o in asked.operands.values())
    partner = {"P1": "P6", "P2": "P4", "P3": "P5"}
    partner |= {later: earlier for earlier, later in partner.items()}
    lines = [
        "import torch",
        "from torchao.float8.config import (",
        "    CastConfig,",
        "    Float8LinearConfig,",
        "    ScalingGranularity,",
        "    ScalingType,",
        ")",
        "",
        "config = Float8LinearConfig(",
    ]
    for label, argument in _ARGUMENTS.items():
        operand: Operand | None = asked.operands.get(label)
        if operand:
            by = "TENSORWISE" if operand.precision.granularity == "tensor" else "AXISWISE"
            inner = f"ScalingType.DYNAMIC, ScalingGranularity.{by}"
        else:  # its element format must still be that of the same tensor's other use
            operand, inner = asked.operands.get(partner[label]), "ScalingType.DISABLED"
        dtype = f", target_dtype={_DTYPES[str(operand.precision.element)]}" if operand else ""
        lines += [f"    {argument}=CastConfig(", f"        {inner}{dtype}", "    ),"]
    return [*lines, f"    round_scales_to_power_of_2={twos},", ")"]
