"""The parameters of a model and the floating-point operations per token, counted without building the model.

This module does not import PyTorch, so that a plan appears at once.
"""

from dataclasses import dataclass

from quintet.config.embedding_and_head import BYTE_SYMBOLS, ByteEmbeddingConfig, ByteHeadConfig
from quintet.config.model import TransformerConfig
from quintet.config.norm import NormConfig
from quintet.config.sharing import SharedPart


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters; ``embedding`` counts the token embedding, with a tied head once, and learned positions."""

    total: int
    trainable: int
    embedding: int


@dataclass(frozen=True)
class Flops:
    """Floating-point operations for one token; a multiplication and an addition are two. ``note`` names the operations
    that are not counted; None if all are."""

    forward: int
    backward: int
    note: str | None = None

    @property
    def total(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward


def count_parameters(
    config: TransformerConfig, vocab_size: int, context_length: int, extra_rows: int = 0
) -> ParameterCount:
    """Return the exact number of parameters of ``build_model(config, vocab_size, context_length, ...)``."""
    rows = config.rows(vocab_size + extra_rows)
    positions = context_length if config.learns_positions else 0
    embedding = _embedding(config, rows) + positions * config.width
    total = (
        embedding
        + config.layers * _norms(config)
        + sum(_part(config, part, *products) for part, products in _products(config).items())
        + _norm(config.last_norm, config.width)
        + _head(config, rows)
    )
    return ParameterCount(total=total, trainable=total, embedding=embedding)


def flops_per_token(config: TransformerConfig, vocab_size: int, sequence_length: int, extra_rows: int = 0) -> Flops:
    """Return the cost of a token in training on sequences of ``sequence_length``, head and loss gradient included.

    Only matrix products count. Each use of a matrix of n parameters is 2n forward and 4n backward, for the gradients of
    its input and of its weight. The attention of a token is 4 · heads · head_dim · sequence_length per block forward
    and twice that backward: the whole attention matrix counts, including what a mask hides, and its recomputation in
    the backward pass does not. This is the convention of PaLM's model FLOPs utilisation (Chowdhery et al. 2022,
    appendix B), and agrees with ``torch.utils.flop_counter`` for the unfused attention. That counter adds the
    recomputation of a fused kernel on CUDA, 2 · heads · head_dim · sequence_length per block, and does not count the
    fused kernel on a CPU at all.
    """
    matrices = 0
    for part, (shapes, _) in _products(config).items():
        differences = sum(config.how(part, block) == "low_rank" for block in range(config.layers))
        matrices += sum(config.layers * a * b + differences * _rank(config) * (a + b) for a, b in shapes)
    attention = config.layers * 4 * config.heads * config.head_dim * sequence_length
    forward = 2 * matrices + attention + _flops_of_ends(config, config.rows(vocab_size + extra_rows))
    return Flops(forward=forward, backward=2 * forward)


def _flops_of_ends(config: TransformerConfig, rows: int) -> int:
    """Return the forward FLOPs of embedding and head per token; a lookup has none."""
    embedding, head = config.embedding, config.head
    total = 0
    if isinstance(embedding, ByteEmbeddingConfig):
        total += embedding.bytes * sum(
            2 * _byte_matrices(inputs, outputs) + 4 * embedding.bytes * inputs
            for inputs, outputs in embedding.block_widths(config.width)
        )
    if not isinstance(head, ByteHeadConfig):
        return total + 2 * rows * config.width
    once = 2 * config.width * head.bytes * head.width
    for inputs, outputs in head.block_widths():
        once += head.bytes * (2 * _byte_matrices(inputs, outputs) + 4 * head.bytes * inputs)
    once += 2 * head.bytes * head.width * BYTE_SYMBOLS
    return total + once * (2 if head.reconstruction else 1)


def _products(config: TransformerConfig) -> dict[SharedPart, tuple[list[tuple[int, int]], bool]]:
    """Return the inputs and outputs of the matrices of each part of a block, and True if they have biases."""
    width, hidden, heads = config.width, config.hidden, config.heads * config.head_dim
    up = 2 if config.feedforward.kind == "gated" else 1
    return {
        "attention_qkv": ([(width, config.qkv_width)], config.attention.bias),
        "attention_output": ([(heads, width)], config.output_bias),
        "feedforward": ([(width, hidden)] * up + [(hidden, width)], config.feedforward.bias),
    }


def _part(config: TransformerConfig, part: SharedPart, shapes: list[tuple[int, int]], bias: bool) -> int:
    """Return the parameters of ``part`` in all blocks: own ones, shared ones and low-rank differences."""
    ways = [config.how(part, block) for block in range(config.layers)]
    shared, low = config.shared_how(part), ways.count("low_rank")
    with_bias = ways.count("own") + (shared == "same")
    count = 0
    for inputs, outputs in shapes:
        count += (ways.count("own") + (shared != "own")) * inputs * outputs + with_bias * bias * outputs
        if low and config.sharing is not None:
            rank, narrow = config.sharing.rank, config.sharing.bias
            count += low * (rank * (inputs + outputs + narrow) + (narrow or bias) * outputs)
    return count


def _rank(config: TransformerConfig) -> int:
    return 0 if config.sharing is None else config.sharing.rank


def _embedding(config: TransformerConfig, rows: int) -> int:
    part = config.embedding
    if not isinstance(part, ByteEmbeddingConfig):
        return rows * config.width
    blocks = sum(_byte_block(config, inputs, outputs) for inputs, outputs in part.block_widths(config.width))
    return (BYTE_SYMBOLS + part.bytes) * part.width + blocks


def _head(config: TransformerConfig, rows: int) -> int:
    part = config.head
    if not isinstance(part, ByteHeadConfig):
        return (0 if config.tie_embeddings else rows * config.width) + (rows if part.bias else 0)
    blocks = sum(_byte_block(config, inputs, outputs) for inputs, outputs in part.block_widths())
    return (config.width * part.bytes + part.bytes + BYTE_SYMBOLS) * part.width + blocks


def _byte_block(config: TransformerConfig, inputs: int, outputs: int) -> int:
    """Return the parameters of a block over the bytes of an id."""
    return _byte_matrices(inputs, outputs) + 2 * _norm(config.norm, inputs)


def _byte_matrices(inputs: int, outputs: int) -> int:
    # Queries, keys, values and output, then up and down.
    return 4 * inputs * inputs + 4 * inputs * inputs + 4 * inputs * outputs


def _norms(config: TransformerConfig) -> int:
    """Return the parameters of all norms of one block."""
    norms = 2 if config.block == "sandwich_norm" else 1
    count = norms * _norm(config.attention_norm, config.width)
    if config.block != "parallel":
        count += norms * _norm(config.feedforward_norm, config.width)
    if config.attention.qk_norm != "none":
        together = config.attention.qk_norm == "projection"
        for heads in (config.heads, config.kv_heads):
            count += _norm(config.norm, (heads if together else 1) * config.head_dim)
    return count


def _norm(norm: NormConfig, width: int) -> int:
    if norm.kind == "none":
        return 0
    return (norm.gain + (norm.kind == "layer" and norm.bias)) * width
