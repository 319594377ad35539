"""How many parameters a model has and how many floating-point operations a token costs, without building it.

This module does not import PyTorch, so that a plan appears at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from quintet.config.model import TransformerConfig


@dataclass(frozen=True)
class ParameterCount:
    """``embedding`` counts the token embedding, with which a tied head is one and the same, and learned positions."""

    total: int
    trainable: int
    embedding: int


@dataclass(frozen=True)
class Flops:
    """Floating-point operations for one token; a multiplication and an addition are two."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward


def count_parameters(config: TransformerConfig, vocab_size: int, context_length: int) -> ParameterCount:
    """The parameters of ``build_model(config, vocab_size, context_length, ...)``, exactly."""
    positions = context_length if config.position.kind == "learned" else 0
    embedding = (vocab_size + positions) * config.width
    head = 0 if config.tie_embeddings else vocab_size * config.width
    head_bias = vocab_size if config.head_bias else 0
    block = _block_matrices(config) + _block_biases(config) + 2 * _norm(config)
    total = embedding + config.layers * block + _norm(config) + head + head_bias
    return ParameterCount(total=total, trainable=total, embedding=embedding)


def flops_per_token(config: TransformerConfig, vocab_size: int, sequence_length: int) -> Flops:
    """What a token costs in training on sequences of ``sequence_length``, head and loss gradient included.

    Only matrix products count. A product with a matrix of n parameters is 2n forward and 4n backward, for the gradients
    of its input and of its weight. The attention of a token is 4 · heads · head_dim · sequence_length forward a block,
    twice that backward: the attention matrix counts whole although the causal mask voids half of it, and a kernel that
    computes it a second time in the backward pass earns nothing by it. This is the convention of PaLM's model FLOPs
    utilisation (Chowdhery et al. 2022, appendix B), and what ``torch.utils.flop_counter`` counts with the unfused
    attention. With a fused one on CUDA the counter adds the recomputation, 2 · heads · head_dim · sequence_length a
    block; the fused one on a CPU it does not count at all.
    """
    matrices = config.layers * _block_matrices(config) + vocab_size * config.width
    attention = config.layers * 4 * config.heads * config.head_dim * sequence_length
    forward = 2 * matrices + attention
    return Flops(forward=forward, backward=2 * forward)


def _block_matrices(config: TransformerConfig) -> int:
    queries, pairs = config.heads * config.head_dim, 2 * config.kv_heads * config.head_dim
    projections = 3 if config.feedforward.kind == "gated" else 2
    return config.width * (queries + pairs) + queries * config.width + projections * config.width * config.hidden


def _block_biases(config: TransformerConfig) -> int:
    count = 0
    if config.attention.bias:
        count += (config.heads + 2 * config.kv_heads) * config.head_dim + config.width
    if config.feedforward.bias:
        count += (2 if config.feedforward.kind == "gated" else 1) * config.hidden + config.width
    return count


def _norm(config: TransformerConfig) -> int:
    if config.norm.kind == "none":
        return 0
    return 2 * config.width if config.norm.kind == "layer" and config.norm.bias else config.width
