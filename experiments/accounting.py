"""What a model costs, from its configuration alone: parameters, FLOPs, memory."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.model import ModelConfig


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
    """Training FLOPs a token, multiply and add counted as two.

    6 (block + head) for forward and backward of every matrix, plus 12 L T h for the two attention
    products over all T x T scores (Chowdhery et al. 2204.02311, appendix B, the causal half not
    deducted).  Quantization itself is not counted.
    """
    count = count_parameters(model)
    return 6.0 * (count.block + count.head) + 12.0 * model.layers * seq_len * model.hidden


def training_bytes(model: ModelConfig, batch_tokens: int, seq_len: int) -> int:
    """A rough upper bound of the memory a run takes, in bytes, without the process itself.

    Float32 weights, gradients and two AdamW moments; per token and layer about 34 activations of
    the hidden size and 6 of the ffn, and the logits three times over.
    """
    weights = 16 * count_parameters(model).total
    per_token = model.layers * (34 * model.hidden + 6 * model.ffn) + 3 * model.vocab_size
    return weights + 4 * batch_tokens * per_token
