"""The transformer as a model of one of Hugging Face's families."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from quintet.libraries import require
from quintet.model.families.settings import huggingface_settings, obstacles
from quintet.model.families.table import FAMILIES
from quintet.model.families.weights import to_theirs
from quintet.model.transformer import Transformer


@dataclass(frozen=True)
class Exported:
    """``config`` is a ``transformers.PretrainedConfig``; ``tensors`` are its weights, those that are tied once."""

    config: Any
    tensors: dict[str, Tensor]


def export_weights(model: Transformer, special_ids: dict[str, int | None]) -> Exported | list[str]:
    """``model`` as the first family that computes the same function; if there is none, what keeps the nearest from it.

    ``special_ids`` go into the configuration (`bos_token_id`, …). Raises UserError without `transformers`.
    """
    library = require("transformers", "hf", "export")
    nearest: list[str] | None = None
    for family in FAMILIES:
        settings = huggingface_settings(family, model.config, model.vocab_size, model.context_length)
        try:
            config = library.AutoConfig.for_model(family.model_type, **settings, **special_ids)
        except ValueError as error:  # a check of its own, as that heads divide the width
            missing = [f"{family.model_type}: {str(error).strip().splitlines()[-1]}"]
        else:
            missing = obstacles(family, model.config, config.to_dict())
            if not missing:
                config.architectures = [family.architecture]
                tensors = to_theirs(family, model.config, model.state_dict(), model.vocab_size)
                return Exported(config, tensors)
        if nearest is None or len(missing) < len(nearest):
            nearest = missing
    assert nearest is not None
    return nearest
