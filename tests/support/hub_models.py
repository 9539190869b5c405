"""Small models of transformers, with 96 tokens; for tests that have the extra hf."""

from __future__ import annotations

from torch import nn


def llama() -> nn.Module:
    """Grouped queries; 33 positions, which no block divides."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=96, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)  # type: ignore[no-any-return]


def qwen() -> nn.Module:
    """Normed queries and keys, and a head that is the embedding's matrix."""
    import transformers

    config = transformers.Qwen3Config(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=96, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.Qwen3ForCausalLM(config)  # type: ignore[no-any-return]


def gpt2() -> nn.Module:
    """Weights stored [in, out], in a class of transformers' own."""
    import transformers

    config = transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=2, vocab_size=96, n_positions=64, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        loss_type="ForCausalLM",
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)  # type: ignore[no-any-return]


def mixtral(experts: int = 4) -> nn.Module:
    """Experts whose weights are one tensor."""
    import transformers

    config = transformers.MixtralConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=96, num_local_experts=experts,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config)  # type: ignore[no-any-return]


def vit() -> nn.Module:
    """Patches by a convolution, 17 positions."""
    import transformers

    config = transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96,
        image_size=16, patch_size=4, num_labels=10, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)  # type: ignore[no-any-return]
