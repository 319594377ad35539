"""Tiny models and tokenizers of Hugging Face's libraries, for tests that need a checkpoint."""

from __future__ import annotations

from typing import Any

import tokenizers
import torch
from tokenizers import models, pre_tokenizers


def tiny_llama(vocab_size: int, **settings: Any) -> Any:
    """Return a Llama of one narrow layer and 64 positions; ``settings`` are those of `LlamaConfig`."""
    import transformers

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(
        **{"vocab_size": vocab_size, "max_position_embeddings": 64} | shape | settings  # pyright: ignore[reportArgumentType]
    )
    return transformers.LlamaForCausalLM(config)


def word_tokenizer(vocabulary: dict[str, int], *special: str) -> tokenizers.Tokenizer:
    """Return a tokenizer of the words between spaces; ``special`` are its special tokens."""
    library = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(list(special))
    return library


def causal_kinds() -> list[str]:
    """Return every model type for which transformers has a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def build_outline(kind: str, **settings: Any) -> Any:
    """Return a causal model of this type on the meta device, in its published size but with two layers if possible.

    None if the library cannot build it from its type and ``settings``.
    """
    import transformers

    for layers in ({"num_hidden_layers": 2}, {}):
        try:
            config = transformers.AutoConfig.for_model(kind, **settings | layers)
            with torch.device("meta"):
                return transformers.AutoModelForCausalLM.from_config(config)
        except Exception:  # each type refuses settings in its own way
            continue
    return None
