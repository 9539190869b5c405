"""Recipe: which of the six operands of a linear layer are quantized, and how.  Data, no torch.

A linear layer is three GEMMs, named by what they compute, of two operands each.  The labels
P1..P6 are those of Sun et al. (2501.02423, section 3):

    output       Y  = X W^T     P1 input         P2 weight     summed over in_features
    grad_input   dX = dY W      P3 grad_output   P4 weight     summed over out_features
    grad_weight  dW = dY^T X    P5 grad_output   P6 input      summed over rows (batch x sequence)

To what an operand is quantized is the `Precision`'s business, so that a sweep is a product.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ROUNDINGS = ("nearest_even", "nearest_away", "toward_zero", "up", "down", "stochastic")
SIGNS = ("fixed", "random")


@dataclass
class OperandConfig:
    """One quantized operand; the roundings are those of `experiments.quant.rounding`."""

    rounding: str = "nearest_even"


@dataclass
class OutputConfig:
    """Y = X W^T.  An operand that is null stays in high precision."""

    input: OperandConfig | None = None
    weight: OperandConfig | None = None
    hadamard: int = 0
    """Block length of a rotation of both operands along the summed axis; 0 for none."""
    signs: str = "fixed"
    """fixed (all +1) or random (drawn anew at every use)."""


@dataclass
class GradInputConfig:
    """dX = dY W."""

    grad_output: OperandConfig | None = None
    weight: OperandConfig | None = None
    hadamard: int = 0
    signs: str = "fixed"


@dataclass
class GradWeightConfig:
    """dW = dY^T X."""

    grad_output: OperandConfig | None = None
    input: OperandConfig | None = None
    hadamard: int = 0
    signs: str = "fixed"


GemmConfig = OutputConfig | GradInputConfig | GradWeightConfig


@dataclass
class RecipeConfig:
    """Where and how a linear layer is quantized."""

    name: str = "none"
    output: OutputConfig = field(default_factory=OutputConfig)
    grad_input: GradInputConfig = field(default_factory=GradInputConfig)
    grad_weight: GradWeightConfig = field(default_factory=GradWeightConfig)

    def slots(self) -> dict[str, OperandConfig | None]:
        """The six operands by their label in the literature."""
        return {
            "P1": self.output.input,
            "P2": self.output.weight,
            "P3": self.grad_input.grad_output,
            "P4": self.grad_input.weight,
            "P5": self.grad_weight.grad_output,
            "P6": self.grad_weight.input,
        }

    @property
    def quantized(self) -> tuple[str, ...]:
        """Labels of the quantized operands, e.g. ("P2", "P4", "P6")."""
        return tuple(label for label, operand in self.slots().items() if operand is not None)

    def gemms(self) -> dict[str, GemmConfig]:
        """The three GEMMs by name."""
        return {
            "output": self.output,
            "grad_input": self.grad_input,
            "grad_weight": self.grad_weight,
        }

    def problems(self) -> list[str]:
        """What is wrong with this recipe, each as "key=value: what would be right"."""
        found = []
        for gemm_name, gemm in self.gemms().items():
            key = f"recipe.{gemm_name}"
            size = gemm.hadamard
            if size < 0 or size & (size - 1):
                found.append(f"{key}.hadamard={size}: must be 0 (none) or a power of two")
            if gemm.signs not in SIGNS:
                found.append(f"{key}.signs={gemm.signs}: must be one of {', '.join(SIGNS)}")
            for slot, operand in vars(gemm).items():
                if isinstance(operand, OperandConfig) and operand.rounding not in ROUNDINGS:
                    found.append(
                        f"{key}.{slot}.rounding={operand.rounding}: "
                        f"must be one of {', '.join(ROUNDINGS)}"
                    )
        return found
