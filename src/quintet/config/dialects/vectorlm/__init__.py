"""VectorLM: fine-tuning of models of the transformers library (docs/config.md of VectorInstitute/vectorlm)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quintet.config.dialects import section
from quintet.config.dialects.table import Dialect
from quintet.config.dialects.vectorlm.back import back
from quintet.config.dialects.vectorlm.keys import KEYS
from quintet.config.dialects.vectorlm.rules import rules

_OWN = {"train_parameters", "dataset_preprocess", "enable_wandb_logging", "wandb_config", "sharding_strategy"}


def _recognise(values: Mapping[str, Any]) -> bool:
    return not _OWN.isdisjoint(values) or not {"train_ds", "eval_ds"}.isdisjoint(section(values, "dataset"))


DIALECT = Dialect(
    name="vectorlm",
    title="VectorLM",
    keys=KEYS,
    recognise=_recognise,
    rules=rules,
    back=back,
    stand_in={
        "train_parameters.epochs": 1,
        "train_parameters.lr_scheduler_type": "constant",
        "dataset.train_ds": "missing",
        "dataset.eval_ds": "missing",
    },
)
