"""Experts of a mixture that are stored as one tensor per matrix, each expert's products as GEMMs.

transformers keeps all experts of a layer in parameters of three axes and lets a decorator choose
how they are multiplied.  It says of each such class how its matrices lie (`is_transposed`), whether
there are biases, a gate and a norm; this forward goes by that, so it holds for all of them, and
multiplies expert by expert: what an expert rounds depends on the tokens that came to it only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from experiments.quant.compiled import compiled_products
from experiments.quant.formats import Precision
from experiments.quant.linear import NoiseClock, QuantizedGemms, compute_dtype
from experiments.quant.recipe import RecipeConfig

if TYPE_CHECKING:
    _Module = nn.Module
else:
    _Module = object

_FLAGS = ("is_transposed", "has_bias", "has_gate", "has_post_expert_norm", "_is_expert_parallel")
"""What the decorator of transformers says of a layer of experts."""
_MATRICES = ("gate_up_proj", "up_proj", "down_proj")
"""The parameters that hold one matrix per expert; no layer has both of the first two."""
_ADDRESSES = 32
"""Bits that number the matrices of one layer in the address of their noise."""


def are_experts(layer: nn.Module) -> bool:
    """Whether a layer is what transformers' `use_experts_implementation` decorates."""
    return all(hasattr(layer, flag) for flag in _FLAGS) and hasattr(layer, "_apply_gate")


def matrices(experts: nn.Module) -> list[str]:
    """The names of the parameters that hold one matrix per expert."""
    return [name for name in _MATRICES if isinstance(getattr(experts, name, None), nn.Parameter)]


class ExpertGemms(QuantizedGemms):
    """The products with one matrix of one expert, which have an address of noise of their own."""


class QuantExperts(QuantizedGemms, _Module):
    """A layer of experts; mixed into the class that transformers has."""

    num_experts: int
    is_transposed: bool
    has_gate: bool
    has_bias: bool
    has_post_expert_norm: bool
    act_fn: Callable[[Tensor], Tensor]
    post_expert_norm: Callable[[Tensor], Tensor]
    _apply_gate: Callable[[Tensor], Tensor]

    def quantized_as(
        self, recipe: RecipeConfig, precision: Precision, clock: NoiseClock, layer: int
    ) -> None:
        """Set what is quantized, and how, for every matrix of every expert."""
        super().quantized_as(recipe, precision, clock, layer)
        self.products: dict[str, list[ExpertGemms]] = {}
        """By parameter, then by expert."""
        number = (layer + 1) << _ADDRESSES  # beyond what any layer of the model has
        for name in matrices(self):
            self.products[name] = [ExpertGemms() for _ in range(self.num_experts)]
            for product in self.products[name]:
                product.quantized_as(recipe, precision, clock, number)
                number += 1
        self._know_products()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of another layer, of which this is a copy, but not its handles."""
        super().__setstate__(state)
        self._know_products()

    def _know_products(self) -> None:
        self.handles = {
            name: torch.cat([product.handle for product in products])
            for name, products in self.products.items()
        }
        """What compiled graphs know the products by."""

    def parts(self) -> Iterator[tuple[str, QuantizedGemms]]:
        """The products of each expert, by the parameter that holds their matrices."""
        for name, products in self.products.items():
            for product in products:
                yield name, product

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of the outputs of each token's experts.

        Args:
            hidden_states: [tokens, in].
            top_k_index: The experts of each token, [tokens, k].
            top_k_weights: Their weights, [tokens, k].
        """
        nothing = hidden_states.numel() == 0 or hidden_states.is_meta
        if self.kept or not self.clock.quantizing or nothing:
            output: Tensor = super().forward(hidden_states, top_k_index, top_k_weights)
            return output
        chosen, experts = top_k_index.shape[1], top_k_index.flatten()
        order = experts.argsort(stable=True)  # by expert, then by token
        experts = experts[order]
        ones = torch.ones_like(experts)
        tokens = experts.new_zeros(self.num_experts).scatter_add(0, experts, ones)
        up, down = self.products
        x = self._multiplied(up, hidden_states[order // chosen], experts, tokens)
        x = self._apply_gate(x) if self.has_gate else self.act_fn(x)
        x = self._multiplied(down, x, experts, tokens)
        if self.has_post_expert_norm:
            x = self.post_expert_norm(x)
        weighted = x * top_k_weights.flatten()[order, None]
        by_token = weighted[order.argsort()].view(-1, chosen, weighted.shape[1])
        return by_token.sum(1).to(hidden_states.dtype)

    def _multiplied(self, name: str, x: Tensor, experts: Tensor, tokens: Tensor) -> Tensor:
        """Rows times the matrices of their experts: [rows, in] to [rows, out].

        Args:
            name: The parameter.
            x: The rows, expert by expert.
            experts: The expert of each.
            tokens: How many rows each expert has.
        """
        weights: Tensor = getattr(self, name)
        weights = weights.mT if self.is_transposed else weights
        if torch.compiler.is_compiling():
            dtype = compute_dtype(x, weights)
            how = self.handles[name], tokens, bool(self.estimators), dtype
            output = compiled_products(x, weights, *how)
        else:
            parts = zip(
                self.products[name], torch.split(x, tokens.tolist()), weights.unbind(), strict=True
            )
            output = torch.cat([gemms.transform(t, w, None) for gemms, t, w in parts if len(t)])
        if not self.has_bias:
            return output
        bias: Tensor = getattr(self, f"{name}_bias")
        return output + bias[experts].to(output.dtype)
