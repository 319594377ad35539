"""Loading of the model of a run file with ``model: {kind: huggingface}``."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quintet.config.model import HuggingFaceConfig, LoraConfig
from quintet.config.names import is_hub_name, local_path
from quintet.errors import UserError, did_you_mean, nearest, one_line
from quintet.libraries import require
from quintet.model.cache import Abilities
from quintet.model.dropout import is_dropout_rate, set_dropout
from quintet.model.hf.files import (
    Tensors,
    check_config,
    check_finite,
    check_floats,
    checkpoint_digest,
    differing,
    refuse_adapter,
    weight_files,
)
from quintet.model.hf.pretrained import PretrainedModel, arguments
from quintet.model.hf.trial import alike, find_abilities, reading
from quintet.model.typed import forked_generator
from quintet.randomness import key

_ALL_LINEAR = ("all-linear",)
_MOST_LAYERS = 10_000


def build_pretrained(config: HuggingFaceConfig, vocab_size: int, context_length: int, seed: int) -> PretrainedModel:
    """Build the model of ``config`` in fp32 on the CPU, in training mode.

    ``vocab_size`` is the number of the tokenizer's ids and ``context_length`` that of positions. Random weights or
    adapters depend only on ``seed``; PyTorch's global generator is not touched. Raises UserError for a checkpoint that
    does not exist, is of another kind or is too small.
    """
    settings = _settings(config, context_length)
    notes: list[str] = []
    with forked_generator(key(seed, "init")):
        if config.pretrained:
            causal, notes = _load(config, settings)
        else:
            causal = _construct(config, settings)
    _check_rows(config, causal, vocab_size)
    with _readable_on_a_cpu(causal.eval()):
        with reading(config, causal):
            linear_head = _has_linear_head(causal)
        abilities = find_abilities(config, causal, context_length, linear_head=linear_head)
    _check_abilities(config, type(causal).__name__, abilities)
    model = _assemble(config, causal, vocab_size, context_length, seed, linear_head, abilities).train()
    slower = abilities.slower()
    model.notes += [*notes, *([f"{type(causal).__name__} {'; it '.join(slower)}"] if slower else [])]
    return model


def outline_pretrained(config: HuggingFaceConfig, vocab_size: int, context_length: int) -> PretrainedModel:
    """Build the model on the meta device, where its parameters have names and shapes only.

    It needs the checkpoint's config.json. If the weights are on this machine, those that it calls tied are compared,
    because they can differ. Raises UserError as ``build_pretrained`` does, as far as problems show without weights.
    """
    settings = _settings(config, context_length)
    with torch.device("meta"):
        causal = _construct(config, settings).to("meta")  # torch.normal ignores the default device
        if config.pretrained and (folder := _stored(config)) and weight_files(folder):
            for name in differing(Tensors(folder), causal.all_tied_weights_keys, f"{causal.base_model_prefix}."):
                owner, _, leaf = name.rpartition(".")
                module = causal.get_submodule(owner)
                setattr(module, leaf, nn.Parameter(torch.empty_like(getattr(module, leaf))))
        _check_rows(config, causal, vocab_size)
        return _assemble(config, causal, vocab_size, context_length, 0, linear_head=False, abilities=Abilities())


def _settings(config: HuggingFaceConfig, context_length: int) -> Any:
    """Return the library's configuration of the model, with the changes in the run file."""
    settings, stored = _described(config)
    for name in config.config:
        if name not in stored and not hasattr(settings, name):
            near = nearest(name, [*stored, *settings.to_dict()])
            hint = did_you_mean(near, quoted=False) or "; its keys are those of config.json"
            raise UserError(f"model.config.{name}: a {settings.model_type} model has no such key{hint}")
    if config.config:
        with _load_errors(config):
            settings = settings.__class__.from_dict({**stored, **config.config})
    if config.dropout is not None:
        _set_rates(settings, config.dropout)
    text = settings.get_text_config(decoder=True)
    layers = getattr(text, "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > _MOST_LAYERS:  # building them would take hours
        raise UserError(f"model.config: {config.name_or_path} says {layers} layers; {_MOST_LAYERS} are the most")
    limit = getattr(text, "max_position_embeddings", None)
    # XLNet says -1, because its positions have no limit.
    if limit is not None and 0 < limit < context_length:
        raise UserError(
            f"model.context_length: {context_length} tokens are more than the {limit} positions that "
            f"{config.name_or_path} has; shorten it or data.sequence_length. Where its positions are rotary, "
            f"model.config.max_position_embeddings={context_length} trains it beyond them"
        )
    return settings


def _described(config: HuggingFaceConfig) -> tuple[Any, dict[str, Any]]:
    """Return the library's configuration of the checkpoint, or of a type of models if no weights are needed, and its
    stored values."""
    transformers = _library()
    name = config.name_or_path
    folder = local_path(name)
    refuse_adapter(folder)
    if not config.pretrained and not folder.is_dir() and name in transformers.CONFIG_MAPPING:
        settings = transformers.AutoConfig.for_model(name)
        return settings, settings.to_dict()
    if not folder.is_dir() and not is_hub_name(name):
        raise UserError(
            f"model.name_or_path: {name} does not exist; give a folder of a checkpoint, or a name on the hub"
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"model.name_or_path: {name} holds no config.json; give a folder that save_pretrained wrote")
    # Without trust_remote_code the library asks on the terminal.
    options: dict[str, Any] = {"revision": config.revision} if config.revision else {}
    options["trust_remote_code"] = config.trust_remote_code
    if folder.is_dir():
        check_config(folder)
    with _load_errors(config):
        settings = transformers.AutoConfig.from_pretrained(_source(config), **options)
        stored, _ = transformers.PretrainedConfig.get_config_dict(_source(config), **options)
    return settings, stored


def _set_rates(settings: Any, rate: float) -> None:
    """Set the ``rate`` of each dropout in the configuration ``settings``, including its parts."""
    stored: dict[str, Any] = settings.__dict__
    for name, value in stored.items():
        if hasattr(value, "to_dict"):
            _set_rates(value, rate)
        elif is_dropout_rate(name, value):
            stored[name] = rate  # without the library's check of types, which demands integers for some rates


def _load(config: HuggingFaceConfig, settings: Any) -> tuple[Any, list[str]]:
    """Return the checkpoint's model with all of its weights, and a line for each tensor that is unused and each error
    of its config.json."""
    folder = _folder(config)
    stored = Tensors(folder) if folder else None  # raises for damaged files
    notes = stored.files.notes(config.name_or_path) if stored else []
    options: dict[str, Any] = {"revision": config.revision} if config.revision else {}
    with _load_errors(config), _backend_errors(config):
        causal, report = _library().AutoModelForCausalLM.from_pretrained(
            _source(config),
            config=settings,
            dtype=torch.float32,
            attn_implementation=_backend(config),
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    if mismatched := sorted(report["mismatched_keys"]):
        name, shape, expected = mismatched[0]
        raise UserError(
            f"model.name_or_path: {config.name_or_path}: {name} has the shape {list(shape)}, not {list(expected)} as "
            f"its configuration says{f' ({len(mismatched)} tensors in all)' if len(mismatched) > 1 else ''}"
        )
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"model.name_or_path: {config.name_or_path} lacks {len(missing)} of the model's weights (the first is "
            f"{missing[0]}), which would start from random numbers; take another checkpoint, or less of model.config"
        )
    for name, value in causal.named_parameters():
        check_finite(name, value, config.name_or_path)
        if stored and name in stored and value.is_floating_point():  # the library casts any dtype
            check_floats([name], stored, config.name_or_path)
    if unused := sorted(report["unexpected_keys"]):
        notes.append(
            f"{config.name_or_path}: {len(unused)} of its tensors have no place in {type(causal).__name__} and are not "
            f"used ({', '.join(unused[:3])}{', …' if len(unused) > 3 else ''})"
        )
    return causal, notes + _untied(config, causal)


def _untied(config: HuggingFaceConfig, causal: Any) -> list[str]:
    """Correct the configuration of ``causal`` if it ties a head that is not the embedding, so that exports are right,
    and return a line about it."""
    head, table = causal.get_output_embeddings(), causal.get_input_embeddings()
    settings = causal.config.get_text_config(decoder=True)
    tied = getattr(settings, "tie_word_embeddings", False)
    if not tied or not hasattr(head, "weight") or head.weight is table.weight:
        return []
    for section in (causal.config, settings):
        section.tie_word_embeddings = False
    return [
        f"{config.name_or_path}: config.json says tie_word_embeddings: true, but the head differs from the embedding; "
        "both are kept, as two matrices"
    ]


def _construct(config: HuggingFaceConfig, settings: Any) -> Any:
    """Build the model of ``settings`` as the library initialises it, on PyTorch's default device."""
    with _load_errors(config), _backend_errors(config):
        return _library().AutoModelForCausalLM.from_config(
            settings,
            dtype=torch.float32,
            attn_implementation=_backend(config),
            trust_remote_code=config.trust_remote_code,
        )


def _assemble(
    config: HuggingFaceConfig,
    causal: Any,
    vocab_size: int,
    context_length: int,
    seed: int,
    linear_head: bool,
    abilities: Abilities,
) -> PretrainedModel:
    """Apply the dropout, frozen weights and adapters of ``config`` to ``causal``."""
    if config.dropout is not None:
        set_dropout(causal, config.dropout)
    if config.gradient_checkpointing:
        _checkpoint_layers(causal)
    if config.freeze == "core":
        causal.requires_grad_(False)
        for end in (causal.get_input_embeddings(), causal.get_output_embeddings()):
            if end is not None:
                end.requires_grad_(True)
    inner = causal
    if config.lora is not None:
        with forked_generator(key(seed, "lora")):
            inner = _with_adapters(causal, config.lora)
        linear_head = linear_head and isinstance(causal.get_output_embeddings(), nn.Linear)
    return PretrainedModel(config, inner, vocab_size, context_length, linear_head=linear_head, abilities=abilities)


def _checkpoint_layers(causal: Any) -> None:
    if not causal.supports_gradient_checkpointing:
        raise UserError(f"model.gradient_checkpointing: {type(causal).__name__} cannot do it; set it to false")
    # The reentrant kind needs an input with a gradient, which frozen embeddings do not give.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # the new name is not yet in all releases
        causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _with_adapters(causal: Any, lora: LoraConfig) -> Any:
    """Return peft's model around ``causal``, whose modules it changes in place."""
    peft = require("peft", "hf", "model.lora")
    names = [name for name, _ in causal.named_modules()]
    for target in lora.targets or ():
        if lora.targets != _ALL_LINEAR and not any(f".{name}".endswith(f".{target}") for name in names):
            leaves = sorted({n.rpartition(".")[2] for n, m in causal.named_modules() if not list(m.children()) and n})
            raise UserError(f"model.lora.targets: no module is called {target}; there are {', '.join(leaves)}")
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]  (a factor; peft only divides it)
        lora_dropout=lora.dropout,
        target_modules=_targets(lora),
    )
    try:
        with warnings.catch_warnings():
            # peft detects transposed matrices and warns each time; the other warning concerns only peft and
            # transformers.
            warnings.filterwarnings("ignore", message="fan_in_fan_out|.*is_gradient_checkpointing")
            adapted = peft.get_peft_model(causal, settings)
    except ValueError as error:
        raise UserError(f"model.lora.targets: {one_line(error, lines=1)}") from None
    ends = (causal.get_input_embeddings(), causal.get_output_embeddings())
    if ends[0].weight is ends[1].weight and any(hasattr(end, "base_layer") for end in ends):
        raise UserError(
            "model.lora.targets: embedding and head of this model are one matrix, to which an adapter of one of them "
            "cannot be added; leave them out"
        )
    return adapted


def _targets(lora: LoraConfig) -> str | list[str] | None:
    """Return the target modules for peft; None lets it choose by the model's family."""
    if lora.targets == _ALL_LINEAR:
        return "all-linear"
    return None if lora.targets is None else list(lora.targets)


def _check_rows(config: HuggingFaceConfig, causal: Any, vocab_size: int) -> None:
    rows = causal.get_input_embeddings().weight.shape[0]
    if vocab_size > rows:
        raise UserError(
            f"tokenizer: its {vocab_size} ids are more than the {rows} rows of {config.name_or_path}, which are not "
            "added to; leave tokenizer out to take the model's own"
        )


def _check_abilities(config: HuggingFaceConfig, name: str, abilities: Abilities) -> None:
    """Raise UserError for a missing ability that no slower way of reading replaces."""
    if not abilities.causal:
        raise UserError(
            f"model.name_or_path: {config.name_or_path} sees the tokens that it is to predict, as encoders do; take a "
            "causal model (BERT and its kin become one with model.config.is_decoder=true)"
        )
    if config.documents and not abilities.documents:
        raise UserError(f"model.documents: {name} has no way to keep packed documents apart; set it to false")


@torch.no_grad()
def _has_linear_head(causal: Any) -> bool:
    """Return True if the head maps the result of the backbone to the logits, also if these are large."""
    head, backbone = causal.get_output_embeddings(), causal.base_model
    if not isinstance(head, nn.Linear) or backbone is causal:
        return False
    head_inputs: list[Tensor] = []
    head_outputs: list[Tensor] = []

    def exchange(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Return large logits of the shape and dtype of ``output`` [batch, length, rows] instead of it."""
        head_inputs.append(inputs[0])
        # A soft cap leaves small logits nearly as they are.
        head_outputs.append(torch.linspace(-1000, 1000, output.numel()).view_as(output))
        return head_outputs[-1]

    ids = _some_ids(causal, 4)
    # Not each configuration of the library has a cache with all layers.
    plain = {"use_cache": False} if "use_cache" in arguments(backbone, causal) else {}
    hook = head.register_forward_hook(exchange)
    try:
        logits = causal(input_ids=ids, **plain).logits
    finally:
        hook.remove()
    features = backbone(input_ids=ids, **plain)[0]
    return len(head_inputs) == 1 and alike(logits, head_outputs[0]) and alike(features, head_inputs[0])


def _some_ids(causal: Any, length: int) -> Tensor:
    """Return int64 ids [1, length] in the vocabulary of ``causal``."""
    rows = causal.get_input_embeddings().weight.shape[0]
    return (torch.arange(length) * 7 + 5)[None] % rows


@contextmanager
def _readable_on_a_cpu(causal: Any) -> Generator[None]:
    """Use eager attention inside the context if the model's attention needs a GPU."""
    chosen = causal.config._attn_implementation
    if chosen in ("eager", "sdpa"):
        yield
        return
    causal.set_attn_implementation("eager")
    try:
        yield
    finally:
        causal.set_attn_implementation(chosen)


@contextmanager
def _load_errors(config: HuggingFaceConfig) -> Generator[None]:
    """Turn the library's errors for a missing or unsuitable checkpoint into UserErrors of one line."""
    name = config.name_or_path
    try:
        yield
    except OSError as error:
        if (folder := _folder(config)) is not None:
            raise UserError(f"model.name_or_path: {folder} cannot be read ({one_line(error, lines=1)})") from None
        raise UserError(
            f"model.name_or_path: {name} is neither a folder nor a model that can be fetched from "
            f"the hub ({one_line(error, lines=1)}); correct the name, or fetch it once with a network"
        ) from None
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model.trust_remote_code: {name} needs the Python code that lies beside it; read that code, and set "
                "this to true to run it"
            ) from None
        if "Unrecognized" in str(error) or "model_type" in str(error):
            raise UserError(
                f"model.name_or_path: {name} is not a causal language model of the transformers library "
                f"({one_line(error, lines=1)}); take another checkpoint"
            ) from None
        raise UserError(f"model.config: {name} cannot be built ({one_line(error, lines=1)})") from None
    except Exception as error:  # a broken folder makes the library raise many kinds
        raise UserError(f"model.config: {name} cannot be built ({one_line(error, lines=1)})") from None


@contextmanager
def _backend_errors(config: HuggingFaceConfig) -> Generator[None]:
    try:
        yield
    except (ImportError, ValueError) as error:
        if config.attention_backend == "auto" or not _about_attention(str(error)):
            raise
        raise UserError(
            f"model.attention_backend: {config.attention_backend} cannot be used here ({one_line(error, lines=1)}); "
            "leave it out"
        ) from None


def _about_attention(message: str) -> bool:
    return any(word in message.lower() for word in ("attention", "attn", "flash", "flex", "sdpa"))


def _backend(config: HuggingFaceConfig) -> str | None:
    return None if config.attention_backend == "auto" else config.attention_backend


def _source(config: HuggingFaceConfig) -> str:
    return str(_folder(config) or config.name_or_path)


def _folder(config: HuggingFaceConfig) -> Path | None:
    """Return the checkpoint's folder; None for a name on the hub."""
    folder = local_path(config.name_or_path)
    return folder if folder.is_dir() else None


def base_digest(config: HuggingFaceConfig) -> str | None:
    """Return the identity of the checkpoint of ``config`` (see ``checkpoint_digest``); None if it is not on this
    machine, or is only a type of models.

    Raises UserError if its folder is damaged.
    """
    folder = _stored(config)
    return None if folder is None or not (folder / "config.json").is_file() else checkpoint_digest(folder)


def _stored(config: HuggingFaceConfig) -> Path | None:
    """Return the checkpoint's folder, which may be in the hub's cache; None if there is none yet."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if (folder := _folder(config)) is not None:
        return folder
    try:
        hub = require("huggingface_hub", "hf", "model.kind: huggingface")
        return Path(hub.snapshot_download(config.name_or_path, revision=config.revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _library() -> Any:
    return require("transformers", "hf", "model.kind: huggingface")
