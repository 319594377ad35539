"""SuperTinyLanguageModels (STLM): the files of its document, and those before and after it.

Its document is `Non-code/documentation/README.md` of LeonGuertler/SuperTinyLanguageModels. The table has the keys of
that document; docs/dialects/stlm.md says where its code and its own files differ.
"""

from __future__ import annotations

from quintet.config.dialects.stlm.back import back
from quintet.config.dialects.stlm.block_keys import ATTN, FFN
from quintet.config.dialects.stlm.model_keys import MODEL
from quintet.config.dialects.stlm.other_keys import EVAL, GENERAL, REFUSED
from quintet.config.dialects.stlm.rules import rules
from quintet.config.dialects.stlm.shape import shape
from quintet.config.dialects.stlm.trainer_keys import OPTIMIZER, TRAINER
from quintet.config.dialects.table import TableDialect

DIALECT = TableDialect(
    name="stlm",
    title="SuperTinyLanguageModels",
    keys=(*MODEL, *FFN, *ATTN, *TRAINER, *OPTIMIZER, *EVAL, *GENERAL, *REFUSED),
    rules=rules,
    shape=shape,
    back=back,
    hydra=True,
    stand_in={"trainer.dataset": "tinystories"},
)
