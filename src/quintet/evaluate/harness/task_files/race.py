"""RACE as the harness asks it: the last question of an article, after the others with their answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lm_eval.tasks.race.preprocess_race import doc_to_choice, doc_to_target, doc_to_text

from quintet.evaluate.harness.items import by_article

__all__ = ["articles", "doc_to_choice", "doc_to_target", "doc_to_text"]


def articles(rows: Iterable[dict[str, Any]]) -> Any:
    """A ``datasets.Dataset`` of the articles of ``rows``."""
    import datasets

    return datasets.Dataset.from_list(by_article(rows))
