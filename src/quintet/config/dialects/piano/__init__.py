"""piano-gpt: GPT-2 on piano music (docs/configuration.md of Nospoko/piano-gpt)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quintet.config.dialects import section
from quintet.config.dialects.piano.back import back
from quintet.config.dialects.piano.keys import KEYS
from quintet.config.dialects.piano.rules import rules
from quintet.config.dialects.piano.shape import shape
from quintet.config.dialects.table import Dialect

_OWN = {"stage", "loss_masking", "model_task", "out_dir_relative", "eval_splits"}
_COMMANDS = {"init", "tune", "resume"}


def _recognise(values: Mapping[str, Any]) -> bool:
    if not _OWN.isdisjoint(values) or values.get("command") in _COMMANDS:
        return True
    return "init_from" in values and not {"n_embd", "n_layer", "context_size"}.isdisjoint(section(values, "model"))


DIALECT = Dialect(
    name="piano",
    title="piano-gpt",
    keys=KEYS,
    recognise=_recognise,
    rules=rules,
    shape=shape,
    back=back,
    hydra=True,
)
