"""The functions of `race_middle.yaml`: RACE as the harness asks it, the last question of an article after the others
with their answers."""

from collections.abc import Iterable
from typing import Any

from lm_eval.tasks.race.preprocess_race import (  # pyright: ignore[reportMissingTypeStubs]
    doc_to_choice,  # pyright: ignore[reportUnknownVariableType]
    doc_to_target,  # pyright: ignore[reportUnknownVariableType]
    doc_to_text,  # pyright: ignore[reportUnknownVariableType]
)

from quintet.evaluate.harness.items import by_article
from quintet.libraries import require

__all__ = ["articles", "doc_to_choice", "doc_to_target", "doc_to_text"]


def articles(rows: Iterable[dict[str, Any]]) -> Any:
    """Return the articles of ``rows`` as a ``datasets.Dataset``."""
    return require("datasets", "eval", "race_middle").Dataset.from_list(by_article(rows))
