"""A small copy of a model of the transformers library: the same kinds of layers, but few, narrow, with large
weights."""

import copy
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from quintet.config.keypath import is_list, is_mapping
from quintet.model.hf.files import POSITIONS
from quintet.model.typed import named_modules

VOCABULARY = 64  # rows of the copy's embedding
RESERVED = 8  # ids below are special tokens
BOUNDARY = 10  # tokens after which a copy changes its positions, if the model does so within its context
WINDOW = 6  # tokens of a copy's window, chunk or block, if the model's is shorter than the context

_GAIN = 1.5  # standard deviation of weights times the square root of the number of inputs
_MOST = 300_000_000  # parameters of a copy, at most
_WIDTH = re.compile(
    r"(hidden_size|hidden_dim|hidden_sizes|width|n_embd|n_embed|d_model|dim_model|embed_dim|embedding_size|"
    r"embedding_dim|emb_dim|intermediate_size|dim|ffn\w*|dim_ff|d_ff|n_inner|d_inner|inner_dim|d_ssm|"
    r"heads|n_heads?|n_kv|"
    r"num_head|lora_rank|lora_dim|rank|size_per_layer_input)$"
)
_INNER = re.compile(r"^((\w+_)?intermediate_size|ffn_dim|\w+_ffn_dim|n_inner|d_ff)$")
_INNER_OR_STREAM = re.compile(f"{_INNER.pattern}|^hidden_size$")
_THIN = 64  # the smallest width
_KEPT = re.compile(r"vocab|head_?dim|rope|rotary|kernel|conv|latent_dim")  # sizes that stay as they are
_LAYERS = re.compile(r"(hidden_layers|num_layers|n_layers?|coder_layers)$")
_LENGTH = re.compile(r"(window\w*|chunk_size|chunk_length|block_size|index_topk)$")
_FAR = 64  # tokens, more than a trial's texts have
_EXPERTS = re.compile(r"(num_\w*experts|n_routed_experts)$")
_CHOSEN = re.compile(r"(experts_per_tok\w*|moe_topk|moe_top_?k|moe_k|top_k_experts)$")
_GROUPS = re.compile(r"(n_groups?|ngroups|topk_group|expert_groups?)$")
_SPECIAL = re.compile(r"(_token_ids?|_token_index)$")
_NUMBER = re.compile(r"(idx|index|layer_id|layer_num\w*)$|^_")  # attributes that count the layers


def small_copies(causal: Any, context_length: int) -> Iterator[Any]:
    """Yield configurations of small copies of ``causal``, the smallest first; the first that can read a text is used.

    A copy has the first layers, as many as are needed to have one of each kind, and is as narrow as the library's
    configuration allows. If a text of ``context_length`` tokens exceeds the model's window, or the length at which its
    positions change, these are so short in the copy that the trial's texts exceed them.
    """
    original = causal.config.to_dict()
    total, needed = _layers(causal)
    for layers in dict.fromkeys((needed, total)):
        for heads, thin in ((2, True), (2, False), (4, False), (8, False), (None, False)):
            values = _shortened(original, context_length)
            _cut(values, total, layers)
            if heads is not None:
                _narrow(values, heads, thin)
            try:
                yield causal.config.__class__.from_dict(values)
            except Exception:  # the numbers no longer fit one another, which only the library knows
                continue
    yield causal.config


def with_large_weights(causal: Any, settings: Any, generator: torch.Generator) -> Any:
    """Build a model of ``settings`` and of the class of ``causal``, in fp32 on the CPU, in evaluation mode.

    Its matrices have random weights that keep the scale of the activations, and its vectors get noise of 0.3, so that
    each token that another one sees changes its logits. Raises ValueError if the copy would be too large or lacks a
    kind of layer, and the library's errors if the settings do not fit one another.
    """
    make: Callable[..., nn.Module] = causal._from_config
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in make(settings).parameters())
    if size > _MOST:
        raise ValueError(f"{size} parameters are too many to try")
    backend = causal.config._attn_implementation
    with torch.device("cpu"):
        small = make(
            settings,
            attn_implementation=backend if backend in ("eager", "sdpa") else "eager",
            dtype=torch.float32,
        )
    missing = {_structure(layer) for layer in _stack(causal)} - {_structure(layer) for layer in _stack(small)}
    if missing:
        raise ValueError(f"{len(missing)} kinds of layers are not in the copy")
    for parameter in small.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.data = noise * (_GAIN / math.sqrt(parameter.shape[-1]))
        else:
            parameter.data = parameter.data + 0.3 * noise
    for table in (module for module in small.modules() if isinstance(module, nn.Embedding)):
        table.weight.data = torch.randn(table.weight.shape, generator=generator)
    return small.eval()


def original_lengths(values: dict[str, Any]) -> Iterator[int]:
    """Yield the lengths, in tokens, for which the model was first built according to its configuration ``values``."""
    for part in _parts(values):
        for rope in _ropes(part):
            if rope.get("original_max_position_embeddings"):
                yield rope["original_max_position_embeddings"]


def _layers(causal: Any) -> tuple[int, int]:
    """Return the number of layers, and the number of first layers that include each kind, at least two."""
    kinds = [(_structure(layer), _settings(layer)) for layer in _stack(causal)]
    total = max(1, len(kinds))
    return total, min(total, max(2, 1 + max((kinds.index(kind) for kind in kinds), default=0)))


def _stack(causal: Any) -> list[nn.Module]:
    """Return the layers; [] if they cannot be found."""
    lists = [module for module in causal.modules() if isinstance(module, nn.ModuleList) and len(module)]
    count = getattr(causal.config.get_text_config(decoder=True), "num_hidden_layers", None)
    longest = max(lists, key=len, default=nn.ModuleList())
    return list(next((layers for layers in lists if len(layers) == count), longest))


def _structure(layer: nn.Module) -> tuple[object, ...]:
    """Return the parts of a layer, without their widths."""
    return tuple((name, type(part), getattr(part, "kernel_size", None)) for name, part in named_modules(layer))


def _settings(layer: nn.Module) -> tuple[object, ...]:
    """Return the plain settings of a layer's parts and the shapes of their weights, except indices of layers."""
    settings: list[tuple[str, object]] = []
    for part in layer.modules():
        settings += ((name, tuple(weight.shape)) for name, weight in part.named_parameters(recurse=False))
        settings += sorted((name, value) for name, value in vars(part).items() if not _NUMBER.search(name))
    return tuple(pair for pair in settings if isinstance(pair[1], bool | int | str | tuple | None))


def _parts(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the ``values`` of a configuration, and those of each configuration inside it."""
    yield values
    for value in values.values():
        if is_mapping(value) and "model_type" in value:
            yield from _parts(value)


def _shortened(original: dict[str, Any], context_length: int) -> dict[str, Any]:
    """Return a copy of ``original`` with few rows of the embedding. Lengths that a text of ``context_length`` tokens
    exceeds become so short that the trial's texts exceed them, and others so long that they do not."""
    values = copy.deepcopy(original)

    def adapted(length: int, short: int) -> int:
        return min(length, short) if length < context_length else max(length, _FAR)

    for part in _parts(values):
        for name, value in part.items():
            if _SPECIAL.search(name):
                part[name] = _special(value)
            elif type(value) is not int:
                continue
            elif _LENGTH.search(name) and value > 0:
                part[name] = adapted(value, WINDOW)
            elif name in POSITIONS:
                part[name] = max(value, _FAR)
            elif "vocab_size" in name:
                part[name] = min(value, VOCABULARY)
        for rope in _ropes(part):
            if rope.get("original_max_position_embeddings"):
                rope["original_max_position_embeddings"] = adapted(rope["original_max_position_embeddings"], BOUNDARY)
    return values


def _ropes(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the sections of ``part`` of a configuration that can hold the original number of positions."""
    yield part
    for name in ("rope_parameters", "rope_scaling"):
        section = part.get(name)
        if is_mapping(section):
            yield section
            yield from filter(is_mapping, section.values())


def _special(value: Any) -> Any:
    """Return ids of special tokens, moved into the copy's vocabulary."""
    if is_list(value):
        return [_special(element) for element in value]
    return VOCABULARY - 1 if type(value) is int and value >= VOCABULARY else value


def _cut(values: dict[str, Any], total: int, layers: int) -> None:
    """Keep the first ``layers`` of ``total``, also in each list with one value per layer."""
    for part in _parts(values):
        for name, value in part.items():
            if is_list(value) and len(value) == total and total > 1:
                part[name] = value[:layers]
            elif type(value) is int and _LAYERS.search(name) and value > 1:
                # A part that has fewer or more layers than the others still does.
                part[name] = layers + (value > total) - (value < total)


def _narrow(values: dict[str, Any], heads: int, thin: bool) -> None:
    """Divide all widths and numbers of heads by one number, so that they still fit one another and ``heads`` remain,
    and keep few experts. The width of a head stays, because positions depend on it. With ``thin``, widths that rarely
    have to fit others are as small as possible."""
    for part in _parts(values):
        divisor = _divisor(part, heads)
        free = _INNER if part.get("head_dim") is None else _INNER_OR_STREAM
        for name, value in part.items():
            if is_list(value) and _WIDTH.search(name) and all(type(width) is int for width in value):
                part[name] = [_part_of(width, divisor) for width in value]
            if type(value) is not int or _KEPT.search(name):
                continue
            if _WIDTH.search(name) and value > 1:
                part[name] = min(_part_of(value, divisor), _THIN if thin and free.search(name) else value)
            elif _EXPERTS.search(name):
                part[name] = min(value, 4)
            elif _CHOSEN.search(name):
                part[name] = min(value, 2)
            elif _GROUPS.search(name):
                part[name] = 1


def _part_of(width: int, divisor: int) -> int:
    """Return ``width`` / ``divisor``, or the multiple of 8 just below."""
    exact = width % divisor == 0 or width < 8 * divisor
    return max(1, width // divisor) if exact else width // divisor // 8 * 8


def _divisor(part: dict[str, Any], least: int) -> int:
    """Return the number by which a configuration's widths can be divided so that ``least`` heads and 32 dimensions
    remain, or one head if the number of heads has no such divisor."""
    names = ("hidden_size", "n_embd", "d_model", "dim_model", "embed_dim", "emb_dim")
    width = next((part[name] for name in names if type(part.get(name)) is int), 1)
    names = ("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "num_heads", "attention_heads")
    heads = next((part[name] for name in names if type(part.get(name)) is int), width)
    divisors = [
        number
        for number in range(1, heads + 1)
        if heads % number == 0 and width % (8 * number) == 0 and width // number >= 32
    ]
    divisor = max((number for number in divisors if heads // number >= least), default=1)
    return divisor if divisor > 1 else max(divisors, default=1)
