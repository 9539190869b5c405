"""A decoder-only Llama-style Transformer whose block matrices are quantized.

RMSNorm before attention and MLP, rotary positions, SwiGLU, no biases (Sun et al. 2501.02423,
section 4; Quartet 2505.14669, appendix).  Quantized: the linear layers inside the blocks, and the
attention products if the recipe says so.  In high precision: embedding, head, norms.

Shapes: B batch, T positions, D hidden, H heads, K = D / H, F ffn, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from experiments.engine.kinds import EMBEDDING, HEAD
from experiments.models.config import ModelConfig
from experiments.models.next_token import NextToken
from experiments.models.shape import Matrix, ParameterCount, Shape
from experiments.quant.attention import AttentionProducts
from experiments.quant.formats import Precision
from experiments.quant.linear import NoiseClock, QuantLinear
from experiments.quant.recipe import RecipeConfig


def transformer_shape(config: ModelConfig) -> Shape:
    """The matrices and sizes of a built-in model, from its numbers alone.

    Tied weights are in the total once.

    >>> down = transformer_shape(ModelConfig()).matrices["blocks.1.mlp.down"]
    >>> down.in_features, down.out_features, down.block
    (192, 64, 1)
    """
    hidden, ffn = config.hidden, config.ffn
    parts = {
        "attention.qkv": (hidden, 3 * hidden),
        "attention.out": (hidden, hidden),
        "mlp.gate_up": (hidden, 2 * ffn),
        "mlp.down": (ffn, hidden),
    }
    matrices = {
        f"blocks.{number}.{part}": Matrix(*sizes, number)
        for number in range(config.layers)
        for part, sizes in parts.items()
    }
    block = config.layers * (4 * hidden**2 + 3 * hidden * ffn)
    matrix = config.vocab_size * hidden
    norm = (2 * config.layers + 1) * hidden
    total = block + norm + matrix * (1 if config.tied else 2)
    count = ParameterCount(block, matrix, matrix, norm, total)
    attention = {f"blocks.{number}.attention.products": number for number in range(config.layers)}
    others = {
        name: Matrix(hidden, config.vocab_size, None, left_out=what)
        for name, what in (("embedding", EMBEDDING), ("head", HEAD))
    }
    parts_of_it = matrices, config.layers, config.vocab_size, count, others, attention
    return Shape(*parts_of_it, recomputes=True)


class Attention(nn.Module):
    """Causal self-attention; one quantized matrix makes queries, keys and values."""

    def __init__(self, config: ModelConfig, make_linear: LinearFactory) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = make_linear(config.hidden, 3 * config.hidden)
        self.out = make_linear(config.hidden, config.hidden)
        self.products = AttentionProducts()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        batch, length, hidden = x.shape
        # [B, T, 3D] -> 3 x [B, H, T, K]
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        y = self.products(q, k, v, is_causal=True)
        output: Tensor = self.out(y.transpose(1, 2).reshape(batch, length, hidden))
        return output


class SwiGLU(nn.Module):
    """silu(x W_gate) * (x W_up), then W_down; gate and up are one quantized matrix."""

    def __init__(self, config: ModelConfig, make_linear: LinearFactory) -> None:
        super().__init__()
        self.gate_up = make_linear(config.hidden, 2 * config.ffn)
        self.down = make_linear(config.ffn, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        output: Tensor = self.down(F.silu(gate) * up)
        return output


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, make_linear: LinearFactory) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden, eps=1e-6)
        self.attention = Attention(config, make_linear)
        self.mlp_norm = nn.RMSNorm(config.hidden, eps=1e-6)
        self.mlp = SwiGLU(config, make_linear)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        x = x + self.attention(self.attention_norm(x), cos, sin)
        output: Tensor = x + self.mlp(self.mlp_norm(x))
        return output


class LinearFactory:
    """Makes the quantized layers of one model and numbers them in order of creation."""

    def __init__(self, recipe: RecipeConfig, precision: Precision, clock: NoiseClock) -> None:
        self.recipe, self.precision, self.clock = recipe, precision, clock
        self.count = 0

    def __call__(self, in_features: int, out_features: int) -> QuantLinear:
        layer = self.count
        self.count += 1
        return QuantLinear(
            in_features, out_features, self.recipe, self.precision, self.clock, layer
        )


class Transformer(NextToken):
    """The built-in model.

    Args:
        config: Architecture.
        recipe: Which operands of which block matrices are quantized.
        precision: The format to which they are quantized.
        seed: Seed of the stochastic rounding and the random signs (not of the weights: those come
            from `initialize`).
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self, config: ModelConfig, recipe: RecipeConfig, precision: Precision, seed: int = 0
    ) -> None:
        super().__init__(seed)
        self.config = config
        self._recomputes = False
        make_linear = LinearFactory(recipe, precision, self.clock)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden)
        self.blocks = nn.ModuleList(Block(config, make_linear) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, eps=1e-6)
        self.head = nn.Linear(config.hidden, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.embedding.weight
        self.treat(transformer_shape(config), recipe, precision)
        self.register_buffer("cos", torch.empty(0), persistent=False)
        self.register_buffer("sin", torch.empty(0), persistent=False)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw the weights: a function of the seed and the shapes alone, whatever the recipe.

        Normal with variance 1 / fan-in; matrices that write to the residual stream are divided by
        sqrt(2 layers) on top (Radford et al. 2019).
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue  # norms start at one
            std = parameter.shape[1] ** -0.5
            if name.endswith(("attention.out.weight", "mlp.down.weight")):
                std /= (2 * self.config.layers) ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    def recompute_blocks(self) -> None:
        """Recompute each block's activations in the backward pass."""
        self._recomputes = True

    def extend_tables(self, length: int) -> None:
        """Make the tables of the rotary positions long enough for sequences of `length`."""
        if self.cos.shape[0] < length:
            config, device = self.config, self.cos.device
            cos, sin = rope_tables(length, config.hidden // config.heads, config.rope_base)
            self.cos, self.sin = cos.to(device), sin.to(device)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] int64 to [B, T, V] logits."""
        length = tokens.shape[1]
        self.extend_tables(length)
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.embedding(tokens)
        for block in self.blocks:
            if self._recomputes and torch.is_grad_enabled():
                x = checkpoint(block, x, cos, sin, use_reentrant=False)
            else:
                x = block(x, cos, sin)
        logits: Tensor = self.head(self.norm(x))
        return logits


def rope_tables(length: int, head_size: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position times frequency, each [T, K]; Su et al. 2104.09864, Eq. 34."""
    frequencies = base ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().float(), angles.sin().float()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (k, k + K/2) of [B, H, T, K] by their position's angle."""
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return (x * cos + rotated * sin).to(x.dtype)
