"""The cost of a model, from its configuration alone: parameters, FLOPs, memory."""

from __future__ import annotations

import math

from experiments.finetune.config import AdapterConfig
from experiments.models.build import shape_of
from experiments.models.config import ModelConfig
from experiments.models.language import language_cost
from experiments.models.shape import Cost, ParameterCount, Shape
from experiments.quant.recipe import RecipeConfig

_OPERAND_COPIES = 2
"""Copies of a product's operands, laid out and rounded, while it runs.

Like those below chosen by the peaks that were measured at one shape, and held to in a test."""
_EDEN_COPIES = 3
_ESTIMATE_COPIES = 6
_LMUL_COPIES = 3
_NONE = AdapterConfig()
_PROBABILITIES_KEPT = 3
"""Copies of attention's probabilities that every layer keeps: before and after dropout, rounded."""
_PROBABILITIES_AT_ONCE = 6
"""Copies of those of one layer while its gradient is computed."""
_FOREIGN_SHARE = 1.5
"""All activations that are there at the peak, over those that a forward pass keeps."""


def count_parameters(model: ModelConfig) -> ParameterCount:
    """Exact counts; tied weights are in `total` once."""
    return shape_of(model).parameters


def adapter_parameters(model: ModelConfig, adapter: AdapterConfig) -> int:
    """Parameters of the adapters beside a model's layers."""
    chosen = adapter.matrices(shape_of(model)).values()
    return sum(adapter.parameters(m.in_features, m.out_features) for m in chosen)


def flops_per_token(model: ModelConfig, seq_len: int, adapter: AdapterConfig = _NONE) -> float:
    """Training FLOPs per token, multiply and add counted as two.

    6 (block + head) for forward and backward of every matrix, plus 12 L T h for the two attention
    products over all T x T scores (Chowdhery et al. 2204.02311, appendix B, the causal half not
    deducted).  Somebody else's model is counted product by product on tensors without values.
    Quantization itself is not counted.  With an adapter 6 times its parameters are added, and the
    2 per weight that made the gradients of frozen matrices are not there: what its method takes,
    more than which is computed here where `experiments.finetune.sparse` emulates it densely.
    """
    shape = shape_of(model)
    count = shape.parameters
    if model.foreign:
        every = language_cost(model, seq_len).flops_per_token
    else:
        every = 6.0 * (count.block + count.head) + 12.0 * model.layers * seq_len * model.hidden
    if not adapter.there:
        return every
    seen = sum(m.in_features * m.out_features * m.copies * m.share for m in shape.matrices.values())
    return every - 2.0 * (seen + count.head) + 6.0 * adapter_parameters(model, adapter)


def training_bytes(
    model: ModelConfig,
    rows: int,
    recipe: RecipeConfig,
    seq_len: int,
    adapter: AdapterConfig = _NONE,
    recomputed: bool = False,
) -> int:
    """An upper bound on the memory that a run takes, in bytes, without the process itself.

    Float32 weights, gradients and two AdamW moments; per token and layer about 34 activations of
    the hidden size and 6 of the ffn, and the logits three times over; in somebody else's model what
    one sequence keeps for the backward pass, and half as much again.  For a recipe: the rounded
    weights that the backward pass takes from the forward one, and the memory for preparing the
    operands of the largest layer; for attention with quantized operands its probabilities.

    Args:
        model: The model.
        rows: Tokens per step of one process.
        recipe: How its layers multiply.
        seq_len: Tokens per sequence.
        adapter: What alone is trained; the model's own weights then have no gradients and moments.
        recomputed: Whether blocks are recomputed: only their inputs are kept, and one whole block.
    """
    shape = shape_of(model)
    weights = 16 * shape.parameters.total
    if adapter.there:
        weights = 4 * shape.parameters.total + 16 * adapter_parameters(model, adapter)
    if model.foreign:
        cost = language_cost(model, seq_len)
        per_token = cost.recomputed_per_token if recomputed else cost.saved_per_token
        per_token *= _FOREIGN_SHARE
        probabilities = cost.probabilities_per_token
    else:
        inputs, whole = (model.layers, 1) if recomputed else (0, model.layers)
        per_token = inputs * model.hidden + whole * (34 * model.hidden + 6 * model.ffn)
        per_token = 4 * (per_token + 3 * model.vocab_size)
        probabilities = 4.0 * model.layers * model.heads * seq_len
    per_token += _attention_bytes(shape, recipe, probabilities, recomputed)
    of_recipes = max(_recipe_bytes(shape, rows, each) for each in recipe.recipes())
    return weights + math.ceil(rows * per_token) + of_recipes


def _attention_bytes(
    shape: Shape, recipe: RecipeConfig, probabilities: float, recomputed: bool = False
) -> float:
    """Memory per token of attention that is written out, because its operands are quantized.

    Args:
        shape: The model's.
        recipe: How it multiplies.
        probabilities: Bytes per token of the probabilities of all its attention.
        recomputed: Whether those of one block are there at a time.
    """
    if not any(treated.recipe is not None for treated in shape.attended(recipe).values()):
        return 0.0
    count = len(shape.attention)
    kept = _PROBABILITIES_KEPT * (1 if recomputed else count)
    return probabilities / count * (kept + _PROBABILITIES_AT_ONCE)


def training_bytes_of(
    shape: Shape, cost: Cost, examples: int, recipe: RecipeConfig, recomputed: bool = False
) -> int:
    """The same bound for a model that is trained on examples, not on text.

    A quantized convolution keeps what each of its outputs sees, not its input, for the backward
    pass: as much for every tap.

    Args:
        shape: The model's matrices and sizes.
        cost: What an example costs.
        examples: Those in a step of one process.
        recipe: How its layers multiply.
        recomputed: Whether blocks are recomputed.
    """
    saved = cost.recomputed_per_token if recomputed else cost.saved_per_token
    activations = examples * (
        _FOREIGN_SHARE * saved
        + _attention_bytes(shape, recipe, cost.probabilities_per_token, recomputed)
    )
    rows = {n: math.ceil(examples * cost.rows_per_token.get(n, 1.0)) for n in shape.matrices}
    if any(each.quantized for each in recipe.recipes()):
        convolutions = {n: m for n, m in shape.matrices.items() if m.conv}
        activations += sum(4 * rows[n] * m.in_features for n, m in convolutions.items())
    largest = max(rows, key=lambda n: sum(_of_product(*_sizes(shape, n), rows[n])), default=None)
    together = 0
    if largest is not None:
        of_each = (_recipe_bytes(shape, rows[largest], each, largest) for each in recipe.recipes())
        together = max(of_each)
    return 16 * shape.parameters.total + math.ceil(activations) + together


def _sizes(shape: Shape, name: str) -> tuple[int, int]:
    return shape.matrices[name].in_features, shape.matrices[name].out_features


def _of_product(into: int, out: int, rows: int) -> tuple[int, int]:
    """Elements of a product's weight, and of its input and output."""
    return into * out, rows * (into + out)


def _recipe_bytes(shape: Shape, rows: int, recipe: RecipeConfig, largest: str = "") -> int:
    """Memory that a recipe takes beyond a run without quantization.

    The layer whose operands take most is that of the largest matrix, if none is given.
    """
    if not recipe.quantized:
        return 0
    again = recipe.grad_input.weight  # P4, made from the values of P2
    kept = 4 * shape.parameters.block * (again is not None and again.forward)
    sizes = [_sizes(shape, name) for name in shape.matrices]
    into, out = _sizes(shape, largest) if largest else max(sizes, key=lambda s: s[0] * s[1])
    copies = _OPERAND_COPIES
    copies += _EDEN_COPIES * any(r.moves_scales for r in recipe.roundings().values())
    copies += _ESTIMATE_COPIES * bool(recipe.estimators())
    copies += _LMUL_COPIES * any(gemm.product == "lmul" for gemm in recipe.gemms().values())
    return kept + 4 * copies * sum(_of_product(into, out, rows))
