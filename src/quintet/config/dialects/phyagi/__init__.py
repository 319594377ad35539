"""PhyAGI: language models in DeepSpeed, Lightning and the transformers library (docs/guides/configuration_system.rst of
microsoft/phyagi-sdk)."""

from __future__ import annotations

from quintet.config.dialects.given import DialectFile
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.phyagi.back import back
from quintet.config.dialects.phyagi.data import data_rules
from quintet.config.dialects.phyagi.keys import DATA, TOP
from quintet.config.dialects.phyagi.model import model_rules
from quintet.config.dialects.phyagi.model_keys import MODEL
from quintet.config.dialects.phyagi.other_keys import FURTHER, HUGGINGFACE, LIGHTNING
from quintet.config.dialects.phyagi.shape import shape
from quintet.config.dialects.phyagi.training import training_rules
from quintet.config.dialects.phyagi.training_keys import DEEPSPEED, SHARED
from quintet.config.dialects.table import TableDialect


def _rules(given: DialectFile, native: NativeBuilder) -> None:
    data_rules(given, native)
    model_rules(given, native)
    training_rules(given, native)


DIALECT = TableDialect(
    name="phyagi",
    title="PhyAGI",
    keys=(*TOP, *DATA, *MODEL, *DEEPSPEED, *SHARED, *HUGGINGFACE, *LIGHTNING, *FURTHER),
    shape=shape,
    rules=_rules,
    back=back,
    stand_in={"dataset[0].cache_dir": "missing.npy"},
)
