"""Tiny models and tokenizers of Hugging Face's libraries, for tests that need a checkpoint."""

from __future__ import annotations

from typing import Any

import tokenizers
import torch
from tokenizers import models, pre_tokenizers


def tiny_llama(vocab_size: int, **settings: Any) -> Any:
    """A Llama of one narrow layer with 64 positions, with ``settings`` of its `LlamaConfig` instead."""
    import transformers

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(
        **{"vocab_size": vocab_size, "max_position_embeddings": 64} | shape | settings  # pyright: ignore[reportArgumentType]
    )
    return transformers.LlamaForCausalLM(config)


def word_tokenizer(vocabulary: dict[str, int], *special: str) -> tokenizers.Tokenizer:
    """A tokenizer whose tokens are the words between spaces; those of ``special`` are never part of a text."""
    library = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(list(special))
    return library
