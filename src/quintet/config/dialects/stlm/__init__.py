"""SuperTinyLanguageModels (STLM): the files of its document, and those before and after it.

Its document is `Non-code/documentation/README.md` of LeonGuertler/SuperTinyLanguageModels. The table has the keys of
that document; docs/dialects/stlm.md says where its code and its own files differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quintet.config.dialects import section
from quintet.config.dialects.stlm.back import back
from quintet.config.dialects.stlm.block_keys import ATTN, FFN
from quintet.config.dialects.stlm.model_keys import MODEL
from quintet.config.dialects.stlm.other_keys import EVAL, GENERAL, REFUSED
from quintet.config.dialects.stlm.rules import rules
from quintet.config.dialects.stlm.shape import shape, wrapped_in
from quintet.config.dialects.stlm.trainer_keys import OPTIMIZER, TRAINER
from quintet.config.dialects.table import Dialect

_OWN = {"core_model_type", "core_model", "embedding_model_type", "lm_head_type", "model_shell_type", "hidden_dim"}


def _recognise(values: Mapping[str, Any]) -> bool:
    wrapper = wrapped_in(values)
    inner = values[wrapper] if wrapper else values
    return not section(inner, "model").keys().isdisjoint(_OWN)


DIALECT = Dialect(
    name="stlm",
    title="SuperTinyLanguageModels",
    keys=(*MODEL, *FFN, *ATTN, *TRAINER, *OPTIMIZER, *EVAL, *GENERAL, *REFUSED),
    recognise=_recognise,
    rules=rules,
    shape=shape,
    back=back,
    hydra=True,
    stand_in={"trainer.dataset": "tinystories"},
)
