"""Recognise the dialect of a file from keys that no other framework has.

The rules of all dialects are in this one file, so that reading a native run file imports no dialect.
"""

from collections.abc import Callable, Mapping
from typing import Any

from quintet.config.keypath import is_list

_STLM_SECTIONS = ("model", "trainer", "general", "teachermodel")


def recognised(values: Mapping[str, Any]) -> list[str]:
    """Return the names of the dialects that the keys of ``values`` belong to, none for a native run file."""
    return [name for name, fits in _RULES.items() if fits(values)]


def wrapped_in(values: Mapping[str, Any]) -> str | None:
    """Return the section that holds a whole file of STLM, as Hydra names one after the file's folder; None if there is
    not exactly one."""
    names = [
        name
        for name, inner in values.items()
        if name not in _STLM_SECTIONS and isinstance(inner, dict) and {"model", "trainer"} <= inner.keys()
    ]
    return names[0] if len(names) == 1 else None


def _has(values: Any, *names: str) -> bool:
    """Return True if ``values`` is a section with one of the keys ``names``."""
    return isinstance(values, Mapping) and not values.keys().isdisjoint(names)


def _phyagi(values: Mapping[str, Any]) -> bool:
    top = ("training_args", "ds_config", "dataset_concat", "dataset_provider", "dataset_collator", "output_root")
    entry = ("cache_dir", "train_file", "seq_len", "dataset_path", "shift_labels")
    dataset = values.get("dataset")
    datasets = dataset if is_list(dataset) else [dataset]
    return _has(values, *top) or any(_has(inner, *entry) for inner in datasets)


def _vectorlm(values: Mapping[str, Any]) -> bool:
    top = ("train_parameters", "dataset_preprocess", "enable_wandb_logging", "wandb_config", "sharding_strategy")
    if _has(values, *top) or _has(values.get("dataset"), "train_ds", "eval_ds"):
        return True
    return _has(values.get("train"), "hf_training_arguments")


def _stlm(values: Mapping[str, Any]) -> bool:
    names = ("core_model_type", "core_model", "embedding_model_type", "lm_head_type", "model_shell_type", "hidden_dim")
    wrapper = wrapped_in(values)
    return _has((values[wrapper] if wrapper else values).get("model"), *names)


def _tmrc(values: Mapping[str, Any]) -> bool:
    return _has(values, "datasets") or _has(values.get("model"), "d_model", "mlp_scale_factor")


def _piano(values: Mapping[str, Any]) -> bool:
    if _has(values, "stage", "loss_masking", "model_task", "out_dir_relative", "eval_splits"):
        return True
    if values.get("command") in ("init", "tune", "resume") or _has(values.get("dataset"), "base_dataset_name"):
        return True
    return _has(values, "init_from") and _has(values.get("model"), "n_embd", "n_layer", "context_size")


_RULES: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "phyagi": _phyagi,
    "vectorlm": _vectorlm,
    "stlm": _stlm,
    "tmrc": _tmrc,
    "piano": _piano,
}
NAMES = tuple(_RULES)
"""The names of all dialects."""
