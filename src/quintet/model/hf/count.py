"""Parameters and floating-point operations of a model of the transformers library, counted without its weights."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from quintet.config.model import HuggingFaceConfig
from quintet.errors import UserError
from quintet.model.count import Flops, ParameterCount

if TYPE_CHECKING:
    from torch import nn

    from quintet.model.hf.pretrained import PretrainedModel

_LONGEST_TRACED = 512
_READ = 4  # tokens of a text that tests if a model can read
_REPLACED = "_counts_by_matrices"
_CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_top_k", "top_k")


def count_pretrained(config: HuggingFaceConfig, vocab_size: int, context_length: int) -> ParameterCount:
    """Return the exact number of parameters of ``build_model(config, vocab_size, context_length, ...)``, with adapters.

    Raises UserError as ``outline_pretrained`` does.
    """
    model = _outline(config, vocab_size, context_length)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return ParameterCount(
        total=sum(size for size, _ in sizes),
        trainable=sum(size for size, trainable in sizes if trainable),
        embedding=sum(table.weight.numel() for table in _embeddings(model)),
    )


def check_numbers(config: HuggingFaceConfig) -> None:
    """Raise UserError if numbers of ``model.config`` do not fit one another, as far as this shows without weights: the
    model cannot be built, or cannot read a text that the same model reads without these numbers."""
    plain = config.model_copy(update={"lora": None, "gradient_checkpointing": False, "attention_backend": "auto"})
    error = _reading_error(plain)
    # A model whose operations depend on values in the text fails in either case.
    if error is not None and _reading_error(plain.model_copy(update={"config": {}})) is None:
        raise error


def _reading_error(config: HuggingFaceConfig) -> UserError | None:
    import torch

    from quintet.model.hf.trial import reading

    model = _outline(config, 1, _READ)
    ids = torch.zeros(1, _READ, dtype=torch.long, device="meta")
    first_error = None
    # Eager attention repeats key heads, which other kernels do not, and those read values of tensors more often.
    for attention in (None, "eager"):
        try:
            with reading(config, model.causal), torch.no_grad(), torch.device("meta"), _answers(), _even_splits():
                _readable(model, attention)(ids)
        except UserError as error:
            first_error = first_error or error
        else:
            return None
    return first_error


def pretrained_flops(config: HuggingFaceConfig, vocab_size: int, context_length: int, sequence_length: int) -> Flops:
    """Return the cost of a token in training on sequences of ``sequence_length``: the operations of the model on the
    meta device, counted by ``torch.utils.flop_counter``.

    The whole attention matrix counts, including what a mask or a window hides. Of a layer's experts those count that a
    token is routed to. A frozen matrix has no gradient of its own, and recomputation for ``gradient_checkpointing``
    does not count. The cost of long sequences follows from two short ones, whose linear and quadratic parts are
    separated. If a loop over tensor values routes tokens to experts, the matrices of as many experts count as the
    configuration says are chosen. If other operations depend on tensor values, each matrix of the model counts once and
    attention does not; ``note`` of the result says so. Raises UserError as ``outline_pretrained`` does.
    """
    plain = config.model_copy(update={"gradient_checkpointing": False, "attention_backend": "auto"})
    return _counted(plain.model_dump_json(), vocab_size, context_length, sequence_length)


@lru_cache(maxsize=8)
def _counted(text: str, vocab_size: int, context_length: int, sequence_length: int) -> Flops:
    model = _outline_of(text, vocab_size, context_length)
    # Operations that depend on tensor values fail on the meta device in many ways.
    refusals = (NotImplementedError, RuntimeError, TypeError, ValueError, LookupError, AttributeError)
    for attempt in (nullcontext, _experts_by_matrices):
        with suppress(*refusals), attempt(model):
            return _by_length(model, sequence_length)
    return _by_matrices(model)


def _by_length(model: PretrainedModel, sequence_length: int) -> Flops:
    if sequence_length <= _LONGEST_TRACED:
        forward, backward = _traced(model, sequence_length)
        return Flops(round(forward / sequence_length), round(backward / sequence_length))
    lengths = (_LONGEST_TRACED // 2, _LONGEST_TRACED)
    short, long = (_traced(model, length) for length in lengths)

    def at_full_length(short_cost: int, long_cost: int) -> int:
        # A token costs a + b · length.
        slope = (long_cost / lengths[1] - short_cost / lengths[0]) / (lengths[1] - lengths[0])
        return round(long_cost / lengths[1] + slope * (sequence_length - lengths[1]))

    return Flops(at_full_length(short[0], long[0]), at_full_length(short[1], long[1]))


def _traced(model: PretrainedModel, length: int) -> tuple[int, int]:
    """Return the floating-point operations of a forward and of a backward pass over one text of ``length`` tokens."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.zeros(1, length, dtype=torch.long, device="meta")
    counters = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with torch.device("meta"), counters[0], _answers(), _even_splits():
        logits = _readable(model)(ids)
    with torch.device("meta"), counters[1], _answers():
        logits.sum().backward()
    model.zero_grad(set_to_none=True)
    forward, backward = (counter.get_total_flops() for counter in counters)
    # The matrices of replaced experts are not in the trace.
    replaced = [module for module in model.modules() if hasattr(module, _REPLACED)]
    untraced = _matrix_flops(model, [parameter for module in replaced for parameter in module.parameters()])
    return forward + round(untraced[0] * length), backward + round(untraced[1] * length)


@contextmanager
def _experts_by_matrices(model: PretrainedModel) -> Generator[None]:
    """Inside the context, modules that own the matrices of all experts return their input, and their matrices are
    counted without being traced."""
    import torch

    def pass_on(hidden: torch.Tensor, *routing: object) -> torch.Tensor:
        """Return ``hidden`` [..., width] such that each float tensor of ``routing`` gets a gradient, as from
        experts."""
        weights = [value for value in routing if isinstance(value, torch.Tensor) and value.is_floating_point()]
        return sum((weight.sum() for weight in weights), hidden * 1)

    owners = [
        module
        for module in model.causal.modules()
        if any(parameter.dim() == 3 for parameter in module.parameters(recurse=False))
    ]
    if not owners:
        raise NotImplementedError("no module owns the matrices of experts")
    for module in owners:
        module.forward = pass_on
        setattr(module, _REPLACED, True)
    try:
        yield
    finally:
        for module in owners:
            del module.forward
            delattr(module, _REPLACED)


def _readable(model: PretrainedModel, attention: str | None = "eager") -> PretrainedModel:
    """Return ``model`` with ``attention``, or its own, and with an implementation of experts that does not depend on
    tensor values, if the model has one."""
    causal = model.eval().causal
    for choose, name in (
        (causal.set_attn_implementation, attention),
        (causal.set_experts_implementation, "batched_mm"),
    ):
        with suppress(ValueError, AttributeError):
            if name is not None:
                choose(name)
    return model


def _answers() -> Any:
    """A context in which the value of a meta tensor is True or 1: no text is padded, nothing is empty."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Answers(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
                return True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
            return func(*args, **(kwargs or {}))

    return Answers()


def _even_splits() -> Any:
    """A context in which a meta tensor as a list of sizes is zeros, and a split by such a list is even, so that all
    experts together have as many tokens as in a real pass."""
    import torch
    from torch.overrides import TorchFunctionMode

    tensor: Any = torch.Tensor  # whose methods lack types

    class EvenSplits(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            options: dict[str, Any] = kwargs or {}
            if func is tensor.tolist and args[0].is_meta and args[0].dim() == 1:
                return [0] * len(args[0])
            if func is tensor.split and not isinstance(args[1], int) and not any(args[1]):
                return torch.tensor_split(args[0], len(args[1]), **options)
            return func(*args, **options)

    return EvenSplits()


def _by_matrices(model: PretrainedModel) -> Flops:
    """Count each matrix once per token, except embeddings, which are only looked up."""
    head = getattr(model.causal.get_output_embeddings(), "weight", None)  # multiplies even if it is tied
    embeddings = {id(table.weight) for table in _embeddings(model) if table.weight is not head}
    matrices = [parameter for parameter in model.parameters() if id(parameter) not in embeddings]
    forward, backward = _matrix_flops(model, matrices)
    name = type(model.causal).__name__
    note = f"counted from the matrices of {name}, attention left out: what it does depends on numbers in the text"
    return Flops(round(forward), round(backward), note)


def _matrix_flops(model: PretrainedModel, parameters: Iterable[nn.Parameter]) -> tuple[float, float]:
    """Return the operations per token: 2 per number forward, and 2 per gradient, of which a frozen matrix has one."""
    settings = model.causal.config.get_text_config(decoder=True)
    forward = backward = 0.0
    for parameter in parameters:
        used = _share_of_experts(tuple(parameter.shape), settings) * parameter.numel()
        forward += 2 * used
        backward += (4 if parameter.requires_grad else 2) * used
    return forward, backward


def _share_of_experts(shape: tuple[int, ...], settings: object) -> float:
    """Return the share of a parameter that a token is multiplied with: 1 for a matrix, 0 for a vector, and for the
    matrices of all experts, which the library stores in one tensor, the share of the chosen experts. Experts that
    compute nothing are chosen as often as the others."""
    if len(shape) == 2:
        return 1.0
    chosen = next((getattr(settings, name) for name in _CHOSEN if getattr(settings, name, None)), None)
    if len(shape) != 3 or not chosen:
        return 0.0
    idle = getattr(settings, "zero_expert_num", None) or 0
    working = getattr(settings, "n_routed_experts", shape[0])
    return min(1.0, chosen / shape[0]) * working / (working + idle)


def _embeddings(model: PretrainedModel) -> list[nn.Embedding]:
    """Return the embeddings of tokens and of learned positions, which are looked up and not multiplied with."""
    from torch import nn

    return [module for module in model.modules() if isinstance(module, nn.Embedding)]


@lru_cache(maxsize=2)
def _outline_of(text: str, vocab_size: int, context_length: int) -> PretrainedModel:
    from quintet.model.hf.loading import outline_pretrained

    return outline_pretrained(HuggingFaceConfig.model_validate_json(text), vocab_size, context_length)


def _outline(config: HuggingFaceConfig, vocab_size: int, context_length: int) -> PretrainedModel:
    # The configuration holds a dict and is not hashable, so that its JSON is the key of the cache.
    return _outline_of(config.model_dump_json(), vocab_size, context_length)
