"""Slots of a recipe: one operand, and the four of attention.  Data, no torch.

Attention is two products of two operands each, per head:

    scores  S = Q K^T    query          key      summed over head_dim
    output  O = P V      probabilities  value    summed over the keys

P is what the second product takes: softmax(S), after dropout if there is any.  The backward
products (dP = dO V^T, dV = P^T dO, dQ = dS K, dK = dS^T Q) are in high precision, on the operands
as they were rounded; the gradient passes the rounding as each operand's `gradient` says.

Queries, keys and probabilities are quantized along the axis that their product sums over, so that a
query's row, a key's row (what a KV cache stores of a token) and a query's row of probabilities have
scales of their own.  For values there are two ways, `value_along`:

- head_dim: each token by itself, as KV caches store values (KIVI 2402.02750, section 3).  A token
  is rounded once, when it comes, and no scale knows of a later one.  No GEMM can apply such scales
  to its sums, so a kernel multiplies the values as they were restored.
- keys: the axis that the product sums over, as a GEMM of block-scaled operands needs it (MXFP8
  attention of TransformerEngine; SageAttention2 2411.10958 has one scale per channel).  A block
  holds several tokens, so that the scale under which one is rounded depends on later ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.quant.formats import FormatError, Precision, ScaleFormat
from experiments.quant.modes import Estimator, Rounding
from fitting.entry.errors import Refusal

ATTENTION = ("query", "key", "probabilities", "value")
"""The operands of attention, those of its first product before those of its second."""
VALUE_ALONG = ("head_dim", "keys")


@dataclass
class OperandConfig:
    """One quantized operand."""

    rounding: str = "nearest_even"
    """A name that `Rounding.parse` reads; none: taken as the forward product rounded it."""
    precision: str = ""
    """A name that `Precision.parse` reads; "" is the run's."""
    forward: bool = False
    """For grad_input.weight and grad_weight.input: take what the forward product multiplied, as it
    was rotated there, instead of the high-precision tensor."""
    gradient: str = "straight_through"
    """For output.input, output.weight and attention: how the gradient passes the rounding, a name
    that `Estimator.parse` reads."""

    @property
    def taken_over(self) -> bool:
        """Whether it is the forward product's rounded operand, not rounded again."""
        return self.rounding == "none"

    def format_of(self, run: Precision) -> Precision:
        """Its format: its own, or the run's."""
        return Precision.parse(self.precision) if self.precision else run

    def problems(self, key: str, forward: str, differentiated: bool) -> list[str]:
        """Errors of one operand, each as "key=value: what would be right".

        Args:
            key: Where it stands.
            forward: What would be right where it may not be taken over from the forward product,
                "" where it may.
            differentiated: Whether its gradient may be other than straight through.
        """
        found = []

        def refuse(name: str, right: str) -> None:
            found.append(f"{key}.{name}={str(getattr(self, name)).lower()}: {right}")

        if not self.taken_over:
            try:
                Rounding.parse(self.rounding)
            except Refusal as error:
                refuse("rounding", f"{error}, none")
        elif not self.forward:
            refuse("rounding", "is for forward=true; null leaves an operand in high precision")
        if self.precision:
            if self.taken_over:
                refuse("precision", "must be empty with rounding=none, the forward product's holds")
            try:
                Precision.parse(self.precision)
            except FormatError as error:
                refuse("precision", str(error))
        if self.forward and forward:
            refuse("forward", forward)
        try:
            estimator = Estimator.parse(self.gradient)
            if not estimator.straight_through and not differentiated:
                refuse("gradient", "only output.input, output.weight and attention have another")
        except Refusal as error:
            refuse("gradient", str(error))
        return found


@dataclass
class AttentionConfig:
    """S = Q K^T and O = P V.  An operand that is null stays in high precision."""

    query: OperandConfig | None = None
    key: OperandConfig | None = None
    probabilities: OperandConfig | None = None
    value: OperandConfig | None = None
    value_along: str = "head_dim"
    """One of `VALUE_ALONG`: the axis along which values are quantized."""

    def operands(self) -> dict[str, OperandConfig]:
        """The quantized operands by name."""
        every = {name: getattr(self, name) for name in ATTENTION}
        return {name: operand for name, operand in every.items() if operand is not None}

    @property
    def quantized(self) -> tuple[str, ...]:
        """The names of the quantized operands."""
        return tuple(self.operands())

    def roundings(self) -> dict[str, Rounding]:
        """Roundings of the quantized operands, by name.

        Raises:
            Refusal: A name that no rounding has; `problems` says so first.
        """
        return {name: Rounding.parse(each.rounding) for name, each in self.operands().items()}

    def estimators(self) -> dict[str, Estimator]:
        """Gradient estimators of those that are not straight through, by name.

        Raises:
            Refusal: A name that no estimator has; `problems` says so first.
        """
        found = {name: Estimator.parse(each.gradient) for name, each in self.operands().items()}
        return {name: each for name, each in found.items() if not each.straight_through}

    def precisions(self, run: Precision) -> dict[str, Precision]:
        """Formats of the quantized operands, by name.

        Raises:
            FormatError: A name that no format has; `problems` says so first.
        """
        return {name: each.format_of(run) for name, each in self.operands().items()}

    def problems(self) -> list[str]:
        """Errors, each as "key=value: what would be right"."""
        found = []
        if self.value_along not in VALUE_ALONG:
            right = f"must be one of {', '.join(VALUE_ALONG)}"
            found.append(f"recipe.attention.value_along={self.value_along}: {right}")
        for name, operand in self.operands().items():
            key = f"recipe.attention.{name}"
            if operand.taken_over:
                found.append(f"{key}.rounding=none: there is no product to take it over from")
                continue
            own = operand.problems(key, "attention's products have no other forward product", True)
            if not own and Rounding.parse(operand.rounding).moves_scales:
                own = [f"{key}.rounding={operand.rounding}: is for operands of linear layers"]
            found += own
        return found

    def format_problems(self, run: Precision) -> list[str]:
        """Formats that cannot do what is asked, each as "key=value: what would be right"."""
        precisions = self.precisions(run)
        return [
            f"recipe.attention.{name}.gradient={self.operands()[name].gradient}: needs one scale "
            f"rule along the summed axis, which {precisions[name]} does not have"
            for name in self.estimators()
            if not has_gradient(precisions[name])
        ]


def has_gradient(precision: Precision) -> bool:
    """Whether a gradient through its rounding may be other than straight through."""
    return precision.scale is not ScaleFormat.E4M3_4_6 and not precision.tile
