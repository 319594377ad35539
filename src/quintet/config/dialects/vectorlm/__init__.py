"""VectorLM: fine-tuning of models of the transformers library (docs/config.md of VectorInstitute/vectorlm)."""

from __future__ import annotations

from quintet.config.dialects.table import TableDialect
from quintet.config.dialects.vectorlm.back import back
from quintet.config.dialects.vectorlm.keys import KEYS
from quintet.config.dialects.vectorlm.rules import rules

DIALECT = TableDialect(
    name="vectorlm",
    title="VectorLM",
    keys=KEYS,
    rules=rules,
    back=back,
    stand_in={
        "train_parameters.epochs": 1,
        "train_parameters.lr_scheduler_type": "constant",
        "dataset.train_ds": "missing",
        "dataset.eval_ds": "missing",
    },
)
