"""Rules for PhyAGI's models: the transformer of mixformer-sequential, and models of the transformers library."""

from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.phyagi.schema import File
from quintet.config.dialects.phyagi.values import ARCHITECTURE, MIXER, MIXFORMER, PRETRAINED
from quintet.config.keypath import lookup, path_of, show
from quintet.config.names import local_path

_NOT_IN_CONFIG = (
    *("model_type", "pretrained_model_name_or_path", "model_task", "use_torch_compile", "torch_dtype", "use_cache"),
    *("trust_remote_code", "gradient_checkpointing", "cross_sample_token_id", "pad_vocab_size_multiple"),
    *("embd_layer", "cp_size", "tp_size"),
)
"""Keys of `model` that are no settings of a transformers configuration."""


def model_rules(theirs: File, native: NativeBuilder) -> None:
    """Set the model."""
    model = theirs.model
    for key, task in (
        ("model.model_task", model.model_task),
        (f"{ARCHITECTURE}.head.head_cls", model.architecture.head.head_cls),
    ):
        if task == "seq_cls":
            native.refuse(key, "seq_cls labels whole texts, and models here predict tokens; use causal_lm")
    if (model.pretrained_model_name_or_path or "").startswith("<"):
        native.refuse(PRETRAINED, "is a placeholder; give the folder of a model, or its name on the hub")
    if model.use_torch_compile:
        native.set("train.compile", True, "model.use_torch_compile")
    if model.model_type == MIXFORMER and (native.has("model.model_type") or not native.has(PRETRAINED)):
        _mixformer(theirs, native)
    else:
        _huggingface(theirs, native)


def _mixformer(theirs: File, native: NativeBuilder) -> None:
    model, parts = theirs.model, theirs.model.architecture
    native.set("model.kind", "transformer", "model.model_type")
    if model.trust_remote_code:
        native.say(f"model.trust_remote_code: not used, because {MIXFORMER} is a transformer of Quintet")
    native.set("model.feedforward.bias", parts.mlp.mlp_cls != "gated", f"{ARCHITECTURE}.mlp.mlp_cls")
    native.set("model.feedforward.width", model.n_inner or 4 * model.n_embd, "model.n_inner", "model.n_embd")
    if parts.mixer.out_bias is None:
        native.set("model.attention.output_bias", parts.mixer.bias, f"{MIXER}.bias")
    else:
        native.set("model.attention.output_bias", parts.mixer.out_bias, f"{MIXER}.out_bias")
    if model.pretrained_model_name_or_path is not None:
        native.set("model.init", {"kind": "pretrained", "path": model.pretrained_model_name_or_path}, PRETRAINED)
    else:
        native.set("model.init.kind", "normal", "model.model_type")
        native.set("model.init.std", model.initializer_range, "model.initializer_range")
        native.set("model.init.scale_residual", False, "model.model_type")
    causal = parts.mixer.causal == "causal"
    if model.cross_sample_token_id is None:
        native.set("model.attention.mask", "causal" if causal else "full")
    else:
        mask = "causal_document" if causal else "document"
        native.set("model.attention.mask", mask, "model.cross_sample_token_id")
    _positions(theirs, native)
    if model.gradient_checkpointing:
        native.set("train.activation_checkpointing", 1, "model.gradient_checkpointing")


def _positions(theirs: File, native: NativeBuilder) -> None:
    """Set rotary positions of the first features of each head, learned positions, or both."""
    model, mixer, key = theirs.model, theirs.model.architecture.mixer, "model.rotary_dim"
    rotary_dim, learned = model.rotary_dim, model.embd_layer == "positional"
    if rotary_dim is not None and rotary_dim < 0:
        native.set("model.position.kind", "learned" if learned else "none", key)
        return
    head_dim = mixer.head_dim or model.n_embd // model.n_head
    if rotary_dim and (rotary_dim > head_dim or rotary_dim % 2):
        native.refuse(key, f"must be an even number of at most {head_dim}, the size of a head, and not {rotary_dim}")
        return
    native.set("model.position.kind", "rope", key)
    native.set("model.position.theta", mixer.rotary_base, f"{MIXER}.rotary_base")
    if rotary_dim and rotary_dim != head_dim:
        native.set("model.position.fraction", rotary_dim / head_dim, key)
    if learned:
        native.set("model.position.learned", True, "model.embd_layer")
    _scaling(theirs, native)


def _scaling(theirs: File, native: NativeBuilder) -> None:
    """Set how the wavelengths of rotary positions are stretched."""
    mixer, key = theirs.model.architecture.mixer, f"{MIXER}.rope_scaling"
    scaling = dict(mixer.rope_scaling or {})
    kind = scaling.pop("rope_type", scaling.pop("type", None))
    factor = scaling.pop("factor", mixer.rotary_scale_base or 1.0)
    if kind in ("yarn", "linear"):
        original = scaling.pop("original_max_position_embeddings", theirs.model.n_positions)
        context = {"original_context": original} if kind == "yarn" else {}
        native.set("model.position.scaling", {"kind": kind, "factor": factor, **context, **scaling}, key)
    elif mixer.rope_scaling or mixer.rotary_scale_base is not None:
        wrong = key if mixer.rope_scaling is not None else f"{MIXER}.rotary_scale_base"
        native.refuse(wrong, "needs rope_scaling.rope_type, which is yarn or linear")


def _huggingface(theirs: File, native: NativeBuilder) -> None:
    """Set a model of the transformers library, whose configuration has the file's values in place of its own."""
    model, name = theirs.model, PRETRAINED if native.has(PRETRAINED) else "model.model_type"
    path = model.pretrained_model_name_or_path or model.model_type
    native.clear("model")
    native.set("model.kind", "huggingface", name)
    native.set("model.name_or_path", path, name)
    native.set("model.pretrained", name == PRETRAINED, name)
    if name != PRETRAINED and not local_path(path).is_dir():
        native.set("model.config.model_type", path, name)
    if name != PRETRAINED and not native.has("model.vocab_size"):
        native.refuse("model.model_type", f"{path} needs model.vocab_size: how many ids the data has")
    for info, steps, value in native.given.items():
        key = show(steps)
        if steps[0] != "model" or key.removeprefix("model.") in _NOT_IN_CONFIG:
            continue
        spelling = (native.given.origin(key).key or "").split(", ")[0]
        if not spelling.startswith(ARCHITECTURE):
            written = lookup(native.given.document.values, path_of(spelling))
            native.set(f"model.config.{spelling.removeprefix('model.')}", written, key)
        elif not info.role.no_effect and value not in ("causal_lm", "mean") and info.write(value) != info.default:
            native.refuse(key, _belongs_to_mixformer(native, name, path))
    if model.trust_remote_code:
        native.set("model.trust_remote_code", True, "model.trust_remote_code")
    if model.gradient_checkpointing:
        native.set("model.gradient_checkpointing", True, "model.gradient_checkpointing")
    if model.cross_sample_token_id is not None:
        native.set("model.documents", True, "model.cross_sample_token_id")
    if model.embd_layer != "default":
        native.refuse("model.embd_layer", f"belongs to model_type: {MIXFORMER}; leave it out")


def _belongs_to_mixformer(native: NativeBuilder, name: str, path: str) -> str:
    """The reason why a key of the section `architecture` is refused."""
    if name == PRETRAINED and not native.has("model.model_type"):
        return f"needs model_type: {MIXFORMER}, which is missing; add it if {path} is such a model"
    return f"belongs to model_type: {MIXFORMER}, and {path} is none; leave it out"
