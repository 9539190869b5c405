"""The built-in Transformer as Hugging Face's Llama: the same numbers under other names.

Both rotate the pairs (k, k + K/2) of queries and keys, scale their products by 1 / sqrt(K), and
norm by the root mean square; Llama has a matrix each for what is fused here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from experiments.models.transformer import Transformer

_RENAMED = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_OF_A_BLOCK = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.out.weight": "self_attn.o_proj.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp.down.weight": "mlp.down_proj.weight",
}
_FUSED = {
    "attention.qkv.weight": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up.weight": ("mlp.gate_proj", "mlp.up_proj"),
}


def llama_state(model: Transformer) -> dict[str, Tensor]:
    """The weights under Llama's names; a tied head is left out, as it is there."""
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name in _RENAMED:
            found[_RENAMED[name]] = value
            continue
        _, number, part = name.split(".", 2)
        if part in _OF_A_BLOCK:
            found[f"model.layers.{number}.{_OF_A_BLOCK[part]}"] = value
        else:
            names = _FUSED[part]
            for other, rows in zip(names, value.chunk(len(names)), strict=True):
                found[f"model.layers.{number}.{other}.weight"] = rows.clone()
    if model.config.tied:
        del found[_RENAMED["head.weight"]]
    return found


def llama_config(model: Transformer, length: int, end_of_text: int | None) -> dict[str, Any]:
    """The file config.json; `rope_theta` and `torch_dtype` are for transformers before version 5.

    Args:
        model: The model.
        length: Tokens in a window of its training.
        end_of_text: The token that ends a document; None if it is not known.
    """
    config = model.config
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "head_dim": config.hidden // config.heads,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm.eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "rope_theta": config.rope_base,
        "max_position_embeddings": length,
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": end_of_text,
        "pad_token_id": None,
        "dtype": "float32",
        "torch_dtype": "float32",
    }
