"""Older, newer and shorter nestings of STLM's files brought into that of its table.

Most of them are aliases of the table. Here is what one key cannot say for another: a file inside a section of its own,
a name where the table has a section, a list of evaluations.
"""

from __future__ import annotations

import copy
from typing import Any

from quintet.config.dialects.recognise import wrapped_in
from quintet.config.keypath import KeyPath, lookup
from quintet.config.merge import forget, merge
from quintet.config.provenance import Origin, place_of
from quintet.config.read import YamlDocument

NAMED = ("lr_scheduler", "dataloader", "datasampling", "loss_fn")


def shape(document: YamlDocument) -> YamlDocument:
    """``document`` with the table's nesting; places move with their values."""
    document = _unwrapped(document)
    shaped = YamlDocument(copy.deepcopy(document.values), dict(document.places))
    for name in NAMED:
        if isinstance(lookup(shaped.values, ("trainer", name)), str):
            _wrap(shaped, ("trainer", name), "name")
    evaluations = lookup(shaped.values, ("trainer", "eval"))
    if isinstance(evaluations, list) and all(isinstance(one, dict) for one in evaluations):
        if len(evaluations) == 1 and "evaluator" not in evaluations[0]:
            _move(shaped, ("trainer", "eval", 0), ("trainer", "eval"))
        else:
            _wrap(shaped, ("trainer", "eval"), "evaluators")
    return shaped


def _unwrapped(document: YamlDocument) -> YamlDocument:
    """The file inside its section, with what stands beside it, from the command line, on top."""
    name = wrapped_in(document.values)
    if name is None:
        return document
    inner, beside = document.apart(name)
    inner = _unwrapped(inner)
    return merge(inner, beside) if beside.values else inner


def _wrap(document: YamlDocument, path: KeyPath, name: str) -> None:
    """Put what stands at ``path`` into a section there, under ``name``."""
    _move(document, path, (*path, name))


def _move(document: YamlDocument, source: KeyPath, target: KeyPath) -> None:
    """Move a value, and the places of all that is in it, over what was at ``target``."""
    place = place_of(source, document.places)
    value = lookup(document.values, source)
    moved: dict[KeyPath, Origin] = {
        (*target, *path[len(source) :]): found
        for path, found in document.places.items()
        if path[: len(source)] == source
    }
    shorter = min(source, target, key=len)
    forget(document.places, shorter)
    here: Any = document.values
    for step in target[:-1]:
        if not isinstance(here.get(step), dict):
            here[step] = {}
        here = here[step]
    here[target[-1]] = value
    document.places.update({shorter: place} | moved)
