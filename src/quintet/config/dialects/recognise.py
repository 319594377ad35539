"""Whose run file it is, told from keys that no other framework has.

The rules of all dialects are here and not beside their tables, so that reading a native run file imports no table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from quintet.config.keypath import is_list, is_mapping

_STLM_SECTIONS = ("model", "trainer", "general", "teachermodel")


def recognised(values: Mapping[str, Any]) -> list[str]:
    """The names of the dialects that the keys of ``values`` are of, none for a native run file."""
    return [name for name, fits in _RULES.items() if fits(values)]


def wrapped_in(values: Mapping[str, Any]) -> str | None:
    """The only section that holds a whole file of STLM, as Hydra makes one of a file's folder; None where there is
    none."""
    found = [
        name
        for name, inner in values.items()
        if name not in _STLM_SECTIONS and isinstance(inner, dict) and {"model", "trainer"} <= inner.keys()
    ]
    return found[0] if len(found) == 1 else None


def _has(values: Mapping[str, Any], *names: str, section: str = "") -> bool:
    """True if one of ``names`` is a key of ``values``, or of the ``section`` in it."""
    found = values.get(section) if section else values
    return isinstance(found, Mapping) and not found.keys().isdisjoint(names)


def _phyagi(values: Mapping[str, Any]) -> bool:
    top = ("training_args", "ds_config", "dataset_concat", "dataset_provider", "dataset_collator", "output_root")
    entry = ("cache_dir", "train_file", "seq_len", "dataset_path", "shift_labels")
    dataset = values.get("dataset")
    entries = dataset if is_list(dataset) else [dataset]
    return _has(values, *top) or any(is_mapping(one) and _has(one, *entry) for one in entries)


def _vectorlm(values: Mapping[str, Any]) -> bool:
    top = ("train_parameters", "dataset_preprocess", "enable_wandb_logging", "wandb_config", "sharding_strategy")
    sections = {"dataset": ("train_ds", "eval_ds"), "train": ("hf_training_arguments",)}
    return _has(values, *top) or any(_has(values, *names, section=name) for name, names in sections.items())


def _stlm(values: Mapping[str, Any]) -> bool:
    names = ("core_model_type", "core_model", "embedding_model_type", "lm_head_type", "model_shell_type", "hidden_dim")
    wrapper = wrapped_in(values)
    return _has(values[wrapper] if wrapper else values, *names, section="model")


def _tmrc(values: Mapping[str, Any]) -> bool:
    return _has(values, "datasets") or _has(values, "d_model", "mlp_scale_factor", section="model")


def _piano(values: Mapping[str, Any]) -> bool:
    if _has(values, "stage", "loss_masking", "model_task", "out_dir_relative", "eval_splits"):
        return True
    if values.get("command") in ("init", "tune", "resume") or _has(values, "base_dataset_name", section="dataset"):
        return True
    return _has(values, "init_from") and _has(values, "n_embd", "n_layer", "context_size", section="model")


_RULES: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "phyagi": _phyagi,
    "vectorlm": _vectorlm,
    "stlm": _stlm,
    "tmrc": _tmrc,
    "piano": _piano,
}
NAMES = tuple(_RULES)
"""The names of all dialects."""
