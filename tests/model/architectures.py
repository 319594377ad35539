"""Small models of the transformers library, one for each difference between its families in reading texts."""

from __future__ import annotations

from typing import Any

import torch
import transformers

ROWS = 72
SIZES: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
ENCODER = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"} | {"is_decoder": True}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.5],
    "long_factor": [1.2, 2.0, 3.5, 5.0],
    "original_max_position_embeddings": 16,
    "factor": 6.0,
}
BART = {
    "vocab_size": ROWS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 96,
    "pad_token_id": 1,
    "eos_token_id": 3,
    "is_encoder_decoder": False,
    "is_decoder": True,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": ROWS, "n_positions": 96},
    # A window in every other layer, and a cap on the logits.
    "gemma2": SIZES | {"head_dim": 8, "sliding_window": 7},
    "mixtral": SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2},
    # Other positions beyond 16 tokens.
    "phi3": SIZES | {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16},
    # Positions from the padding id + 1 on.
    "roberta": ENCODER | {"type_vocab_size": 1},
    "bert": ENCODER,
    # Positions that cannot be told.
    "bart": BART,
    "bloom": {"vocab_size": ROWS, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    # Convolutions, recurrences and attention.
    "lfm2": SIZES | {"layer_types": ["conv", "full_attention"]},
    "bamba": SIZES | MAMBA | {"attn_layer_indices": [1]},
    "jamba": SIZES
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 4, "mamba_d_state": 8, "num_experts": 2},
    "falcon_h1": SIZES | MAMBA | {"mamba_d_ssm": 64},
    "minimax": SIZES
    | {"layer_types": ["linear_attention", "full_attention"], "block_size": 8, "num_local_experts": 2, "head_dim": 8},
    "recurrent_gemma": SIZES | {"lru_width": 32, "attention_window_size": 7, "num_hidden_layers": 3, "head_dim": 8},
    "qwen3_next": SIZES
    | {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "head_dim": 8,
    },
    # Recurrences alone.
    "mamba": {"vocab_size": ROWS, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2},
}


def library_model(name: str) -> Any:
    """The library's model of ``ARCHITECTURES[name]``, with weights so large that each visible token matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(name, **ARCHITECTURES[name])
        )
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.float().eval()
