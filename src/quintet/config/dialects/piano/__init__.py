"""piano-gpt: GPT-2 on piano music (docs/configuration.md of Nospoko/piano-gpt)."""

from __future__ import annotations

from quintet.config.dialects.piano.back import back
from quintet.config.dialects.piano.keys import KEYS
from quintet.config.dialects.piano.rules import rules
from quintet.config.dialects.piano.shape import shape
from quintet.config.dialects.table import TableDialect

DIALECT = TableDialect(
    name="piano",
    title="piano-gpt",
    keys=KEYS,
    rules=rules,
    shape=shape,
    back=back,
    hydra=True,
)
