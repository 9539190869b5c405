"""The cost of a model, from its configuration alone: parameters, FLOPs, memory."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.model import ModelConfig
from experiments.quant.recipe import RecipeConfig

_OPERAND_COPIES = 2
"""Copies of a product's operands, laid out and rounded, while it runs.

Like those below chosen by the peaks that were measured at one shape, and held to in a test."""
_EDEN_COPIES = 3
_ESTIMATE_COPIES = 6
_LMUL_COPIES = 3


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by where they are.

    block: matrices inside the blocks, L * (4 h^2 + 3 h f): the papers' N (Sun et al. 2501.02423,
        Table 1), and what a recipe quantizes.
    head: the output matrix; zero extra parameters if it is tied, but every token multiplies it.
    """

    block: int
    head: int
    embedding: int
    norm: int
    total: int


def count_parameters(model: ModelConfig) -> ParameterCount:
    """Exact counts; tied weights are in `total` once."""
    block = model.layers * (4 * model.hidden**2 + 3 * model.hidden * model.ffn)
    matrix = model.vocab_size * model.hidden
    norm = (2 * model.layers + 1) * model.hidden
    total = block + norm + matrix * (1 if model.tied else 2)
    return ParameterCount(block, matrix, matrix, norm, total)


def flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """Training FLOPs per token, multiply and add counted as two.

    6 (block + head) for forward and backward of every matrix, plus 12 L T h for the two attention
    products over all T x T scores (Chowdhery et al. 2204.02311, appendix B, the causal half not
    deducted).  Quantization itself is not counted.
    """
    count = count_parameters(model)
    return 6.0 * (count.block + count.head) + 12.0 * model.layers * seq_len * model.hidden


def training_bytes(model: ModelConfig, rows: int, recipe: RecipeConfig) -> int:
    """An upper bound on the memory that a run takes, in bytes, without the process itself.

    Float32 weights, gradients and two AdamW moments; per token and layer about 34 activations of
    the hidden size and 6 of the ffn, and the logits three times over.  For a recipe: the rounded
    weights that the backward pass takes from the forward one, and the memory for preparing the
    operands of the largest layer.

    Args:
        model: The model.
        rows: Tokens per step of one process.
        recipe: How its layers multiply.
    """
    weights = 16 * count_parameters(model).total
    per_token = model.layers * (34 * model.hidden + 6 * model.ffn) + 3 * model.vocab_size
    return weights + 4 * rows * per_token + _recipe_bytes(model, rows, recipe)


def _recipe_bytes(model: ModelConfig, rows: int, recipe: RecipeConfig) -> int:
    """Memory that a recipe takes beyond a run without quantization."""
    if not recipe.quantized:
        return 0
    again = recipe.grad_input.weight  # P4, made from the values of P2
    kept = 4 * count_parameters(model).block * (again is not None and again.forward)
    into, out = max(
        ((model.hidden, 2 * model.ffn), (model.hidden, 3 * model.hidden)), key=lambda s: s[0] * s[1]
    )
    copies = _OPERAND_COPIES
    copies += _EDEN_COPIES * any(r.moves_scales for r in recipe.roundings().values())
    copies += _ESTIMATE_COPIES * bool(recipe.estimators())
    copies += _LMUL_COPIES * any(gemm.product == "lmul" for gemm in recipe.gemms().values())
    return kept + 4 * copies * (into * out + rows * (into + out))
