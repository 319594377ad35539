"""Conversion between the `model` section of a run file and the `config.json` of a family.

``architecture`` lists all values that decide the function of a transformer apart from its weights, and ``differences``
compares two such lists.
"""

import math
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import ValidationError

from quintet.config.embedding_and_head import EmbeddingConfig, HeadConfig
from quintet.config.keypath import ABSENT, is_list, is_mapping, lookup
from quintet.config.model import AttentionConfig, CausalAttentionConfig, TransformerConfig
from quintet.config.position import (
    LinearScalingConfig,
    Llama3ScalingConfig,
    NoScalingConfig,
    NTKScalingConfig,
    RopeConfig,
    YarnScalingConfig,
)
from quintet.config.sharing import SharedPart
from quintet.errors import UserError
from quintet.model.hf.table import FAMILIES, Family

ADAPTABLE = (
    "attention.kind",
    "attention.mask",
    "attention.window",
    "position.theta",
    "position.scaling",
    "embedding_scale",
)
"""Keys that may change while the weights stay usable: which tokens see which, how far positions reach."""


def architecture(config: TransformerConfig) -> dict[str, Any]:
    """Return the values, by key under `model`, that decide the function of the transformer, defaults included.

    Sizes of the vocabulary and of the context, dropout, initialisation and kernels are not among them.
    """
    attention, feedforward, position = config.attention, config.feedforward, config.position
    facts: dict[str, Any] = {
        "layers": config.layers,
        "width": config.width,
        "block": config.block,
        "attention.kind": attention.kind,
        "attention.mask": attention.mask,
        "attention.heads": config.heads,
        "attention.kv_heads": config.kv_heads,
        "attention.head_dim": config.head_dim,
        "attention.bias": attention.bias,
        "attention.output_bias": config.output_bias,
        "attention.qk_norm": attention.qk_norm,
        "attention.scale": attention.scale or config.head_dim**-0.5,
        "attention.window": attention.window,
        "feedforward.kind": feedforward.kind,
        "feedforward.width": config.hidden,
        "feedforward.activation": feedforward.activation,
        "feedforward.bias": feedforward.bias,
        **{f"embedding.{name}": value for name, value in _end_facts(config.embedding).items()},
        **{f"head.{name}": value for name, value in _end_facts(config.head).items()},
        "embedding_scale": config.embedding_scale,
        "tie_embeddings": config.tie_embeddings,
        "tie_feedforward": config.tie_feedforward,
        "tie_attention_output": config.tie_attention_output,
        "sharing": config.sharing and config.sharing.model_dump(),
        "position.kind": position.kind,
    }
    if isinstance(position, RopeConfig):
        facts["position.theta"] = position.theta
        facts["position.fraction"] = config.rotary_dim / config.head_dim
        facts["position.pairs"] = position.pairs
        facts["position.learned"] = position.learned
        facts["position.scaling"] = position.scaling.model_dump()
    elif position.kind == "sinusoidal":
        facts["position.theta"] = position.theta
    norms = {"attention.norm": config.attention_norm, "head.norm": config.last_norm}
    if config.block != "parallel":
        norms["feedforward.norm"] = config.feedforward_norm
    if attention.qk_norm != "none" or config.byte_parts:
        norms["norm"] = config.norm
    for part, norm in norms.items():
        facts |= {f"{part}.{name}": value for name, value in norm.model_dump().items()}
    return facts


def _end_facts(part: EmbeddingConfig | HeadConfig) -> dict[str, Any]:
    """Return the facts of an embedding or a head, except its norm, whose default `architecture` resolves."""
    return part.model_dump(exclude={"norm", "dropout", "reconstruction"})


def portable(config: TransformerConfig) -> TransformerConfig:
    """Return an architecture that computes the same function of a single document and is more common in other software.

    ``portable_weights`` converts the weights: each block has its own copy of shared modules, with its low-rank
    difference added, and the two features of a rotated pair are half a head apart.
    """
    attention, position = config.attention, config.position
    if isinstance(attention, CausalAttentionConfig) and attention.mask == "causal_document":
        attention = attention.model_copy(update={"mask": "causal", "restart_positions": False})
    if isinstance(position, RopeConfig):
        update: dict[str, Any] = {"pairs": "halves"}
        if isinstance(position.scaling, NTKScalingConfig):
            features = config.rotary_dim
            larger = position.scaling.factor ** (features / (features - 2)) if features > 2 else 1.0
            update |= {"theta": position.theta * larger, "scaling": NoScalingConfig()}
        position = position.model_copy(update=update)
    update = {
        "position": position,
        "tie_feedforward": False,
        "tie_attention_output": False,
        "sharing": None,
    }
    update |= _biases(config, attention)
    return config.model_copy(update=update)


def _biases(config: TransformerConfig, attention: AttentionConfig) -> dict[str, Any]:
    """Return ``attention`` and the feed-forward network of ``config`` with a bias in all blocks if the low-rank
    differences of some blocks have one."""
    biased = {part: config.difference_bias(part) for part in get_args(SharedPart)}
    if not any(biased.values()):
        return {"attention": attention}
    bias = {
        "bias": attention.bias or biased["attention_qkv"],
        "output_bias": config.output_bias or biased["attention_output"],
    }
    network = config.feedforward.model_copy(update={"bias": config.feedforward.bias or biased["feedforward"]})
    return {"attention": attention.model_copy(update=bias), "feedforward": network}


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the values in ``one`` and in ``other`` of each key in which they differ; None if one lacks the key.

    >>> differences({"width": 64, "block": "pre_norm"}, {"width": 32, "block": "pre_norm"})
    {'width': (64, 32)}
    """
    return {
        name: (one.get(name), other.get(name)) for name in {**one, **other} if not _same(one.get(name), other.get(name))
    }


def _same(one: Any, other: Any) -> bool:
    if is_mapping(one) and is_mapping(other):
        return not differences(one, other)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other


_ACTIVATIONS = {  # theirs to ours; an export uses the first of theirs for one of ours
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "leaky_relu": "leaky_relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "linear": "none",
}
_ATTENTION_FACTOR, _FULL, _SLIDING = "attention_factor", "full_attention", "sliding_attention"


def model_section(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the `model` section for ``settings``, the values of a `config.json` as `transformers` completes them.

    It holds only values that differ from the defaults. Raises UserError, which starts with ``where``, for a family that
    is not in the table and for each value that our transformer cannot express.
    """
    family = family_of(settings.get("model_type", "none"), where)
    problems: list[str] = []
    values = dict(family.fixed)
    for ours, theirs in family.keys.items():
        value = settings.get(theirs)
        if ours == "feedforward.activation":
            value = _known(_ACTIVATIONS, theirs, value, problems)
        elif ours == "attention.scale":
            value = _root_inverse(theirs, value, problems)
        if value is not None:
            values[ours] = value
    values |= _rotation(settings, family, problems) | _window(settings, family, problems)
    huge = [name for name, value in values.items() if isinstance(value, int) and abs(value) >= 2**63]
    if huge:
        theirs = (family.keys.get(name, name) for name in huge)
        raise UserError(*(f"{where}: config.json: {name}: the number is beyond 64 bits; correct it" for name in theirs))
    if family.scaled_embedding and isinstance(width := values.get("width"), int) and width > 0:
        values["embedding_scale"] = math.sqrt(width)
    for name, value in family.needs.items():
        if settings.get(name, value) != value:
            problems.append(f"{name}: {settings[name]} (only {value} can be expressed)")
    if settings.get("quantization_config"):
        problems.append("quantization_config: the weights are quantised")
    if problems:
        raise UserError(*(f"{where}: {problem}; kind: huggingface trains the model as it is" for problem in problems))
    try:
        config = TransformerConfig.model_validate(_nested(values))
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, ('model', *one['loc'])))}: {one['msg']}" for one in error.errors())
        raise UserError(*(f"{where}: config.json gives {problem}" for problem in wrong)) from None
    return _nested(_without_defaults(values, config))


def family_of(model_type: str, where: str) -> Family:
    """Return the family of that name. Raises UserError, which starts with ``where``, if there is none."""
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise UserError(
        f"{where}: model_type: {model_type} is none of those that the transformer expresses ({known}); "
        "kind: huggingface trains the model as it is"
    )


def huggingface_settings(
    family: Family, config: TransformerConfig, vocab_size: int, context_length: int
) -> dict[str, Any]:
    """Return the values of a `config.json` of ``family`` nearest to ``config``, which ``obstacles`` then compares."""
    config = portable(config)
    values = architecture(config) | {
        "vocab_size": vocab_size,
        "context_length": context_length,
        "norm.eps": getattr(config.norm, "eps", None),
        "attention.dropout": config.attention.dropout,
        "embedding_dropout": config.embedding_dropout,
        "residual_dropout": config.residual_dropout,
        "attention.scale": round((config.attention.scale or config.head_dim**-0.5) ** -2),
        "feedforward.activation": next(
            theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.feedforward.activation
        ),
    }
    settings = {theirs: values[ours] for ours, theirs in family.keys.items()} | dict(family.needs)
    if isinstance(config.position, RopeConfig):
        settings["rope_parameters"] = _rope_parameters(config, config.position, family.partial_rotation)
    window = config.attention.window
    if family.window == "number":
        settings["sliding_window"] = window
    if family.window in ("layer_types", "switch"):
        # A number is needed even if no layer uses it.
        settings["sliding_window"] = window or context_length
        settings["layer_types"] = [_FULL if window is None else _SLIDING] * config.layers
    if family.window == "switch":
        settings["use_sliding_window"] = window is not None
    return settings


def obstacles(family: Family, config: TransformerConfig, settings: Mapping[str, Any]) -> list[str]:
    """Return a line for each difference between ``config`` and ``settings`` as `transformers` completes them.

    ``settings`` are read like those of a checkpoint, so that each export can be imported.
    """
    try:
        back = TransformerConfig.model_validate(model_section(settings, family.model_type))
    except ValueError as error:
        return [str(error)]
    except UserError as error:
        return list(error.problems)
    differing = differences(architecture(portable(config)), architecture(back))
    return [f"model.{name}: {ours} here, {theirs} in {family.model_type}" for name, (ours, theirs) in differing.items()]


def _known(table: Mapping[str, Any], name: str, value: Any, problems: list[str]) -> Any:
    """Return the entry of ``table`` for ``value`` of ``name``, which has any type in a damaged file."""
    if not isinstance(value, str) or value not in table:
        problems.append(f"{name}: {value} is none of {', '.join(table)}")
        return None
    return table[value]


def _root_inverse(name: str, value: Any, problems: list[str]) -> float | None:
    if not isinstance(value, int | float) or not 0 < value < 2**63:
        problems.append(f"{name}: {value} is no number above 0")
        return None
    return value**-0.5


def _rotation(settings: Mapping[str, Any], family: Family, problems: list[str]) -> dict[str, Any]:
    """Return the keys of `position` for rotary positions."""
    if family.fixed["position.kind"] != "rope":
        return {}
    given = settings.get("rope_parameters")
    if not is_mapping(given):
        problems.append(f"rope_parameters: must be an object with rope_theta, found {given}")
        return {}
    # The schema refuses missing values and values of another type.
    rope = {name: value for name, value in given.items() if value is not None}
    values: dict[str, Any] = {"position.theta": rope.get("rope_theta")}
    if family.partial_rotation:
        values["position.fraction"] = rope.get("partial_rotary_factor", 1.0)
    match rope.get("rope_type", "default"):
        case "default":
            return values
        case "linear":
            scaling = {"kind": "linear", "factor": rope.get("factor")}
        case "llama3":
            kept = ("factor", "low_freq_factor", "high_freq_factor")
            scaling = {"kind": "llama3", **{name: rope.get(name) for name in kept}}
            scaling["original_context"] = rope.get("original_max_position_embeddings")
        case "yarn" if not {"mscale", "mscale_all_dim"} & rope.keys() and rope.get("truncate", True):
            kept = ("factor", "beta_fast", "beta_slow", _ATTENTION_FACTOR)
            scaling = {"kind": "yarn", **{name: rope[name] for name in kept if name in rope}}
            trained = settings.get("max_position_embeddings")
            scaling["original_context"] = rope.get("original_max_position_embeddings", trained)
        case other:
            problems.append(f"rope_parameters: rope_type {other} with {', '.join(sorted(rope))} cannot be expressed")
            return values
    return values | {f"position.scaling.{name}": value for name, value in scaling.items()}


def _rope_parameters(config: TransformerConfig, position: RopeConfig, partial: bool) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": position.theta}
    if partial:
        fraction = config.rotary_dim / config.head_dim
        # transformers multiplies the fraction with the size of a head and rounds down.
        exact = fraction * config.head_dim >= config.rotary_dim
        rope["partial_rotary_factor"] = fraction if exact else math.nextafter(fraction, 1.0)
    scaling = position.scaling
    if isinstance(scaling, LinearScalingConfig | Llama3ScalingConfig | YarnScalingConfig):
        values = scaling.model_dump(exclude_none=True)
        rope |= {"rope_type": values.pop("kind")}
        if "original_context" in values:
            rope["original_max_position_embeddings"] = values.pop("original_context")
        rope |= values
    return rope


def _window(settings: Mapping[str, Any], family: Family, problems: list[str]) -> dict[str, Any]:
    if family.window == "none":
        return {}
    if family.window != "number":
        types = settings.get("layer_types")
        different = sorted(set(map(str, types))) if is_list(types) else [str(types)]
        if different == [_FULL]:
            return {}
        if different != [_SLIDING]:
            problems.append(f"layer_types: {' and '.join(different)} in one model")
            return {}
    return {"attention.window": settings.get("sliding_window")}


def _without_defaults(values: dict[str, Any], config: TransformerConfig) -> dict[str, Any]:
    """Return ``values`` without those that are derived from others or are the default."""
    derived = {
        "attention.kv_heads": config.heads,
        "attention.head_dim": config.width / config.heads,
        "attention.scale": config.head_dim**-0.5,
        "attention.output_bias": config.attention.bias,
    }
    kept = {name: value for name, value in values.items() if name not in derived or value != derived[name]}
    # A kind that is not the default one has to be named, and its keys have defaults of their own.
    explicit = config.model_dump(exclude_defaults=True)
    return {name: value for name, value in kept.items() if lookup(explicit, tuple(name.split("."))) is not ABSENT}


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"a": {"b": 1}} for {"a.b": 1}."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        section = nested
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return nested
