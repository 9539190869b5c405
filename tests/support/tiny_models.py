"""Small models of others: a Llama by its keys, modules as a user's factory returns them."""

from __future__ import annotations

from torch import Tensor, nn

from experiments.quant.attention import AttentionProducts

LLAMA = [
    *("model=hf", "model.config.model_type=llama", "model.config.hidden_size=32"),
    *("model.config.intermediate_size=64", "model.config.num_hidden_layers=2"),
    *("model.config.num_attention_heads=4", "model.config.num_key_value_heads=2"),
    *("model.config.vocab_size=256", "model.config.max_position_embeddings=64"),
]
"""Overrides for a Llama of Hugging Face that is drawn."""


def one(width: int = 32, vocab: int = 256) -> nn.Module:
    """No attention, and no numbered blocks."""
    return nn.Sequential(
        nn.Embedding(vocab, width), nn.Linear(width, width), nn.Linear(width, vocab)
    )


def other(width: int = 32) -> nn.Module:
    """With something between the layers."""
    return nn.Sequential(
        nn.Embedding(256, width), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 256)
    )


class Fused(nn.Module):
    """Attention by torch's fused function, causal, of one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]


class Reached(Fused):
    """The same by the module that can be quantized."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.products = AttentionProducts()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        output: Tensor = self.products(q, k, v, is_causal=True)[:, 0]
        return output


def fused(width: int = 32) -> nn.Module:
    """With attention that cannot be reached, and then some that can."""
    block = nn.Sequential()
    block.add_module("attend", Fused(width))
    return nn.Sequential(nn.Embedding(256, width), block, Reached(width), nn.Linear(width, 256))


def reached(width: int = 32) -> nn.Module:
    """With attention that can."""
    return nn.Sequential(nn.Embedding(256, width), Reached(width), nn.Linear(width, 256))
