"""The sizes of a run's model and its training FLOPs, computed without building it and without PyTorch."""

from quintet.config.loss import MaskedLossConfig
from quintet.config.model import HuggingFaceConfig
from quintet.config.schema import RunConfig
from quintet.errors import UserError
from quintet.model.count import Flops, ParameterCount, count_parameters, flops_per_token
from quintet.model.hf.count import count_pretrained, pretrained_flops
from quintet.tokenize import Tokenizer


def context_length(config: RunConfig) -> int:
    """Return the maximum number of positions of the model of ``config``."""
    return config.model.context_length or config.data.sequence_length


def extra_rows(config: RunConfig) -> int:
    """Return the rows of the embedding that are never predicted: one for the mask of the masked loss."""
    return int(isinstance(config.loss, MaskedLossConfig) and config.loss.mask_id is None)


def model_vocabulary(config: RunConfig, tokenizer: Tokenizer) -> int:
    """Return the number of ids that the model predicts. Raises UserError if the tokenizer has more."""
    if isinstance(config.model, HuggingFaceConfig):
        return tokenizer.vocab_size
    rows = config.model.vocab_size or tokenizer.vocab_size
    if rows < tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size: {rows} rows are fewer than the tokenizer's {tokenizer.vocab_size} ids; raise it, or "
            "leave it out to take the tokenizer's"
        )
    return rows


def parameter_count(config: RunConfig, vocab_size: int) -> ParameterCount:
    """Count the parameters of the model of ``config`` with ``vocab_size`` ids."""
    if isinstance(config.model, HuggingFaceConfig):
        return count_pretrained(config.model, vocab_size, context_length(config))
    return count_parameters(config.model, vocab_size, context_length(config), extra_rows(config))


def training_flops(config: RunConfig, vocab_size: int) -> Flops:
    """Return the FLOPs per token of training ``config``."""
    if isinstance(config.model, HuggingFaceConfig):
        return pretrained_flops(config.model, vocab_size, context_length(config), config.data.sequence_length)
    return flops_per_token(config.model, vocab_size, config.data.sequence_length, extra_rows(config))
