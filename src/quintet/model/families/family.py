"""What sets one family of Hugging Face's models apart: tables of names, and the values that are always the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Names = Mapping[str, str | tuple[str, str, str]]


@dataclass(frozen=True)
class Family:
    """``model_type`` and ``architecture`` are what a `config.json` calls it.

    ``keys`` pairs keys of our `model` section with keys of the `config.json`, and ``fixed`` holds what our section says
    for every member. ``needs`` are values of the `config.json` without which the parts of the transformer do not
    suffice. ``window`` says where a window is told: nowhere, by a number, by a number and the type of each layer, or by
    these and a switch.

    ``names`` pairs the modules that have weights, ours with theirs, where ``*`` is the number of a block; three names
    are the projections to queries, keys and values, which are one matrix here. ``base`` is what the names begin with in
    a model with a head and not in one without. ``transposed`` matrices have the inputs as rows, and ``norm_offset`` is
    what is added to the factors of a norm before they multiply.
    """

    model_type: str
    architecture: str
    keys: Mapping[str, str]
    names: Names
    base: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    needs: Mapping[str, Any] = field(default_factory=dict)
    window: Literal["none", "number", "layer_types", "switch"] = "none"
    partial_rotation: bool = False
    scaled_embedding: bool = False
    transposed: bool = False
    norm_offset: float = 0.0
