"""Whose trainer a file is for, and what aliases cannot say of its form: a DeepSpeed configuration in a file of its own,
equal blocks in a list, and arguments of another library's trainer that the schema lacks."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from quintet.config.dialects.phyagi.arguments import (
    ARGS,
    ARGUMENTS,
    PL,
    HuggingFaceArguments,
    LightningArguments,
    LightningTrainer,
    TrainingArguments,
)
from quintet.config.keypath import KeyPath, is_list, is_mapping, lookup, path_of, show
from quintet.config.names import is_path, local_path
from quintet.config.provenance import Problem, origin_of
from quintet.config.read import YamlDocument, read_document

_HUGGINGFACE_ONLY = HuggingFaceArguments.model_fields.keys() - {"fp16", "bf16"} | {"evaluation_strategy"}
_LIGHTNING_ONLY = {"trainer", "lightning_module", "strategy"}
_BLOCKS = ("model", "architecture")


def trainer_of(values: Mapping[str, Any]) -> str:
    """Whose training arguments a file has: "deepspeed", "huggingface" or "lightning"."""
    forced, arguments = values.get("trainer"), values.get(ARGS)
    if forced in ("deepspeed", "huggingface", "lightning"):
        return forced
    given: set[Any] = set(arguments) if is_mapping(arguments) else set()
    if given & _LIGHTNING_ONLY:
        return "lightning"
    return "huggingface" if given & _HUGGINGFACE_ONLY and "ds_config" not in given else "deepspeed"


def owner_of(path: str) -> str:
    """The trainer that alone has the key ``path``, "" where all have it."""
    section, name = [*path.split("."), ""][:2]
    if section != ARGS:
        return ""
    if name in HuggingFaceArguments.model_fields:
        return "huggingface"
    return "deepspeed" if name == "ds_config" else "lightning" if name in LightningArguments.model_fields else ""


def shape(document: YamlDocument) -> YamlDocument:
    """``document`` in the nesting of the schema. Raises RunFileError when a file that it names cannot be read."""
    document = YamlDocument(copy.deepcopy(document.values), dict(document.provenance))
    if isinstance(document.values.get("dataset"), dict):
        document.values["dataset"] = [document.values["dataset"]]
        _move_lines(document, ("dataset",), ("dataset", 0))
    for path in ((ARGS, "ds_config"), ("ds_config",)):
        _read_file(document, path)
    _one_block(document)
    trainer = trainer_of(document.values)
    if trainer == "huggingface":
        _gather(document, (ARGS,), {*TrainingArguments.model_fields, "evaluation_strategy", "gradient_clipping"})
    if trainer == "lightning":
        _gather(document, path_of(PL), LightningTrainer.model_fields)
    return document


def _move_lines(document: YamlDocument, old: KeyPath, new: KeyPath) -> None:
    """Let the value that was at ``old`` have its lines at ``new``, to which it was moved."""
    provenance, top = document.provenance, origin_of(old, document.provenance)
    moved = {(*new, *path[len(old) :]): provenance.pop(path) for path in list(provenance) if path[: len(old)] == old}
    provenance.update({new[:length]: top for length in range(1, len(new)) if new[:length] not in provenance} | moved)


def _read_file(document: YamlDocument, path: KeyPath) -> None:
    """Put a file in place of its name at ``path``."""
    name = lookup(document.values, path)
    if isinstance(name, str) and name:
        origin = origin_of(path, document.provenance)
        if not is_path(name):
            lookup(document.values, path[:-1])[path[-1]] = {}
            document.not_here.append(Problem(origin, show(path), f"there is no {name} in {Path.cwd()}"))
            return
        found = read_document(local_path(name), origin)
        lookup(document.values, path[:-1])[path[-1]] = found.values
        document.provenance.update({(*path, *inner): origin for inner, origin in found.provenance.items() if inner})


def _one_block(document: YamlDocument) -> None:
    """A list of equal blocks becomes one block, so many times; other lists stay, and are refused as lists."""
    blocks, provenance = lookup(document.values, _BLOCKS), document.provenance
    if not is_list(blocks) or not blocks or any(block != blocks[0] for block in blocks):
        return
    top = provenance[_BLOCKS]
    _move_lines(document, (*_BLOCKS, 0), _BLOCKS)
    for path in [path for path in provenance if path[:2] == _BLOCKS and isinstance((*path, "")[2], int)]:
        del provenance[path]
    document.values["model"] |= {"architecture": blocks[0], "n_layer": len(blocks)}
    provenance[_BLOCKS] = provenance[("model", "n_layer")] = top


def _gather(document: YamlDocument, section: KeyPath, known: Collection[str]) -> None:
    """Move what ``section`` has beside ``known`` among the further arguments."""
    inside = lookup(document.values, section)
    for name in [name for name in inside if name not in known] if is_mapping(inside) else []:
        document.values[ARGS].setdefault("arguments", {})[name] = inside.pop(name)
        _move_lines(document, (*section, name), (*path_of(ARGUMENTS), name))
