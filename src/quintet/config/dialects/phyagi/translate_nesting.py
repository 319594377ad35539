"""A PhyAGI file brought into the nesting of the schema, as far as aliases cannot, and the trainer that it is for."""

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from quintet.config.describe import KeyInfo
from quintet.config.dialects.phyagi.schema_arguments import (
    HuggingFaceArguments,
    LightningArguments,
    LightningTrainer,
    TrainingArguments,
)
from quintet.config.dialects.phyagi.values import ARGS, ARGUMENTS, PL
from quintet.config.keypath import ABSENT, KeyPath, is_list, is_mapping, lookup, path_of, show
from quintet.config.names import is_path, local_path
from quintet.config.provenance import Problem, origin_of
from quintet.config.read import YamlDocument, read_document

_HUGGINGFACE_ONLY = HuggingFaceArguments.model_fields.keys() - {"fp16", "bf16"} | {"evaluation_strategy"}
_LIGHTNING_ONLY = {"trainer", "lightning_module", "strategy"}
_BLOCKS = ("model", "architecture")


def trainer_of(values: Mapping[str, Any]) -> str:
    """Return the trainer that the file ``values`` is for: "deepspeed", "huggingface" or "lightning"."""
    chosen, arguments = values.get("trainer"), values.get(ARGS)
    if chosen in ("deepspeed", "huggingface", "lightning"):
        return chosen
    names: set[Any] = set(arguments) if is_mapping(arguments) else set()
    if names & _LIGHTNING_ONLY:
        return "lightning"
    return "huggingface" if names & _HUGGINGFACE_ONLY and "ds_config" not in names else "deepspeed"


def owner_of(path: str) -> str:
    """Return the only trainer that has the key ``path``, "" if all have it."""
    section, name = [*path.split("."), ""][:2]
    if section != ARGS:
        return ""
    if name in HuggingFaceArguments.model_fields:
        return "huggingface"
    return "deepspeed" if name == "ds_config" else "lightning" if name in LightningArguments.model_fields else ""


def applies(values: Mapping[str, Any], key: KeyInfo) -> bool:
    """Return True if the trainer that the file ``values`` is for has ``key``."""
    return owner_of(key.path) in ("", trainer_of(values))


def normalize(document: YamlDocument) -> YamlDocument:
    """Return ``document`` in the nesting of the schema. Raises RunFileError if a file that it names cannot be read."""
    document = YamlDocument(copy.deepcopy(document.values), dict(document.provenance))
    if isinstance(document.values.get("dataset"), dict):
        document.values["dataset"] = [document.values["dataset"]]
        _move_lines(document, ("dataset",), ("dataset", 0))
    for path in ((ARGS, "ds_config"), ("ds_config",)):
        _read_file(document, path)
    _merge_equal_blocks(document)
    trainer = trainer_of(document.values)
    if trainer == "huggingface":
        _pass_on(document, (ARGS,), {*TrainingArguments.model_fields, "evaluation_strategy", "gradient_clipping"})
    if trainer == "lightning":
        _pass_on(document, path_of(PL), LightningTrainer.model_fields)
    return document


def _move_lines(document: YamlDocument, old: KeyPath, new: KeyPath) -> None:
    """Move the lines of the value at ``old`` to ``new``."""
    provenance, top = document.provenance, origin_of(old, document.provenance)
    moved = {(*new, *path[len(old) :]): provenance.pop(path) for path in list(provenance) if path[: len(old)] == old}
    provenance.update({new[:length]: top for length in range(1, len(new)) if new[:length] not in provenance} | moved)


def _read_file(document: YamlDocument, path: KeyPath) -> None:
    """Replace the name of a file at ``path`` by the content of that file."""
    name = lookup(document.values, path)
    if not isinstance(name, str) or not name:
        return
    section, origin = lookup(document.values, path[:-1]), origin_of(path, document.provenance)
    if is_path(name):
        content = read_document(local_path(name), origin)
        section[path[-1]] = content.values
        document.provenance.update({(*path, *inner): line for inner, line in content.provenance.items() if inner})
    else:
        section[path[-1]] = {}
        document.not_here.append(Problem(origin, show(path), f"there is no {name} in {Path.cwd()}"))


def _merge_equal_blocks(document: YamlDocument) -> None:
    """Replace a list of N equal blocks by one block and `n_layer: N`; another list stays, and is refused later."""
    blocks, provenance = lookup(document.values, _BLOCKS), document.provenance
    if not is_list(blocks) or not blocks or any(block != blocks[0] for block in blocks):
        return
    top = provenance[_BLOCKS]
    _move_lines(document, (*_BLOCKS, 0), _BLOCKS)
    for path in [path for path in provenance if path[:2] == _BLOCKS and isinstance((*path, "")[2], int)]:
        del provenance[path]
    document.values["model"] |= {"architecture": blocks[0], "n_layer": len(blocks)}
    provenance[_BLOCKS] = provenance[("model", "n_layer")] = top


def _pass_on(document: YamlDocument, section: KeyPath, known: Collection[str]) -> None:
    """Move the keys of ``section`` that are not ``known`` to the arguments for another library's trainer."""
    inside, arguments = lookup(document.values, section), lookup(document.values, path_of(ARGUMENTS))
    if arguments in (ABSENT, None):
        arguments = dict[str, Any]()
    for name in [name for name in inside if name not in known] if is_mapping(inside) else []:
        value = inside.pop(name)
        if is_mapping(arguments):  # else the schema refuses `arguments`
            arguments[name] = value
            document.values[ARGS]["arguments"] = arguments
            _move_lines(document, (*section, name), (*path_of(ARGUMENTS), name))
