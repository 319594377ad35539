"""The document's nesting, and short forms, brought into that of PhyAGI's real files; and whose trainer a file is for.

The document has the keys of training at the top and those beside `dataset` inside it; the table knows both places of a
key. What is left to do here: a single dataset becomes a list of one, a DeepSpeed configuration in a file of its own is
read, and arguments of another library's trainer that the table lacks are put together.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from quintet.config.dialects.phyagi.other_keys import ARGUMENTS, HUGGINGFACE, LIGHTNING, PL
from quintet.config.dialects.phyagi.training_keys import ARGS, DEEPSPEED, SHARED
from quintet.config.dialects.table import Key
from quintet.config.keypath import KeyPath, lookup
from quintet.config.names import local_path
from quintet.config.provenance import place_of
from quintet.config.read import YamlDocument, read_document

_HUGGINGFACE_ONLY = {key.name for key in HUGGINGFACE} - {"fp16", "bf16"} | {"max_grad_norm", "evaluation_strategy"}
_LIGHTNING_ONLY = {"trainer", "lightning_module", "strategy"}
_BLOCKS = ("model", "architecture")


def trainer_of(values: Mapping[str, Any]) -> str:
    """Whose training arguments a file has: "deepspeed", "huggingface" or "lightning"."""
    forced, arguments = values.get("trainer"), values.get(ARGS)
    if forced in ("deepspeed", "huggingface", "lightning"):
        return forced
    given = set(arguments) if isinstance(arguments, dict) else set()
    if given & _LIGHTNING_ONLY:
        return "lightning"
    return "huggingface" if given & _HUGGINGFACE_ONLY and "ds_config" not in given else "deepspeed"


def shape(document: YamlDocument) -> YamlDocument:
    """``document`` in the nesting of the table. Raises RunFileError when a file that it names cannot be read."""
    moves = _Moves(document)
    if isinstance(document.values.get("dataset"), dict):
        moves.move(("dataset",), ("dataset", 0))
    for path in ((ARGS, "ds_config"), ("ds_config",)):
        moves.read_file(path)
        for name in ("fp16", "bf16"):
            if isinstance(moves.get((*path, name)), bool):
                moves.move((*path, name), (*path, name, "enabled"))
    moves.one_block()
    trainer = trainer_of(document.values)
    if trainer == "huggingface":
        moves.gather((ARGS,), _names(ARGS, (*SHARED, *HUGGINGFACE)) | _names(ARGS, (*LIGHTNING, *DEEPSPEED)))
    if trainer == "lightning":
        moves.gather(tuple(PL.split(".")), _names(PL, LIGHTNING))
    return moves.document


class _Moves:
    """A document whose values are moved together with their places."""

    def __init__(self, document: YamlDocument) -> None:
        self.document = YamlDocument(_copy(document.values), dict(document.places))

    def get(self, path: KeyPath) -> Any:
        return lookup(self.document.values, path)

    def _around(self, path: KeyPath) -> Any:
        """The section that ``path`` stands in."""
        return lookup(self.document.values, path[: len(path) - 1])

    def move(self, old: KeyPath, new: KeyPath) -> None:
        """Move the value at ``old`` to ``new``, which is ``old`` with further steps or lies elsewhere."""
        value = self.get(old)
        places = self.document.places
        moved = {(*new, *path[len(old) :]): place for path, place in places.items() if path[: len(old)] == old}
        top = place_of(old, places)
        for path in [path for path in places if path[: len(old)] == old]:
            del places[path]
        del self._around(old)[old[len(old) - 1]]
        here: Any = self.document.values
        for position, (step, following) in enumerate(pairwise(new)):
            places.setdefault(new[: position + 1], top)
            if isinstance(here, dict):
                here.setdefault(step, [] if isinstance(following, int) else {})
            here = here[step]
        if isinstance(here, list):
            here.append(value)
        else:
            here[new[len(new) - 1]] = value
        places.update(moved)

    def read_file(self, path: KeyPath) -> None:
        """Put a file in place of its name at ``path``."""
        name = self.get(path)
        if not isinstance(name, str) or not name:
            return
        found = read_document(local_path(name), place_of(path, self.document.places))
        self._around(path)[path[len(path) - 1]] = found.values
        self.document.places.update({(*path, *inner): place for inner, place in found.places.items() if inner})

    def one_block(self) -> None:
        """A list of equal blocks becomes one block, so many times; other lists stay, and are refused as lists."""
        blocks = self.get(_BLOCKS)
        if not isinstance(blocks, list) or not blocks or any(block != blocks[0] for block in blocks):
            return
        places, first = self.document.places, (*_BLOCKS, 0)
        kept = {
            path[: len(_BLOCKS)] + path[len(first) :]: place
            for path, place in places.items()
            if path[: len(first)] == first
        }
        for path in [path for path in places if path[: len(first) - 1] == _BLOCKS and len(path) > len(_BLOCKS)]:
            del places[path]
        self.document.values["model"]["architecture"] = blocks[0]
        self.document.values["model"]["n_layer"] = len(blocks)
        places.update(kept)
        places[("model", "n_layer")] = places[_BLOCKS]

    def gather(self, section: KeyPath, known: set[str]) -> None:
        """Move what ``section`` has beside ``known`` among the further arguments."""
        inside = self.get(section)
        for name in [name for name in inside if name not in known] if isinstance(inside, dict) else []:
            self.move((*section, name), (*ARGUMENTS.split("."), name))


def _names(section: str, keys: tuple[Key, ...]) -> set[str]:
    """What stands directly inside ``section`` of the paths and aliases of ``keys``."""
    paths = [path for key in keys for path in (key.path, *key.aliases)]
    inside = {path.removeprefix(f"{section}.").split(".")[0] for path in paths if path.startswith(f"{section}.")}
    return inside | {ARGUMENTS.rpartition(".")[2]}


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copy(inner) for name, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value
