"""The lowest loss on a batch, against the counts written out and against models that are free to predict anything."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.config.documents import IGNORED
from quintet.data.batch import conditional_entropy, context_ids

ROWS, LENGTH, IDS = 5, 6, 3


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets, documents and prompts of a batch in which the same beginnings come again."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    inputs = random.integers(0, IDS, (ROWS, LENGTH))
    targets = np.where(random.random((ROWS, LENGTH)) < 0.2, IGNORED, random.integers(0, IDS, (ROWS, LENGTH)))
    documents = np.cumsum(random.random((ROWS, LENGTH)) < 0.3, axis=1)
    return inputs, targets, documents, random.random((ROWS, LENGTH)) < 0.2


def view(
    ids: list[int], document: list[int] | None, prompt: list[bool] | None, place: int, ahead: bool, places: bool
) -> Hashable:
    """What the position at ``place`` sees, in words."""
    same = [one for one in range(LENGTH) if document is None or document[one] == document[place]]
    first = same[0]
    if ahead:
        text: Hashable = (tuple(ids[one] for one in same), place - first)
    else:
        text = tuple(ids[one] for one in same if one <= place)
    return text, (first if places else None), prompt and sum(prompt[one] for one in same)


def by_hand(targets: np.ndarray, views: list[list[Hashable]]) -> float:
    """-log of each target's share among those of its view, mean over the targets that count."""
    seen: dict[Hashable, Counter[int]] = defaultdict(Counter)
    for row, target in zip(views, targets.tolist(), strict=True):
        for one, label in zip(row, target, strict=True):
            if label != IGNORED:
                seen[one][label] += 1
    total = sum(counter.total() for counter in seen.values())
    return sum(-n * math.log(n / counter.total()) for counter in seen.values() for n in counter.values()) / (total or 1)


@settings(max_examples=150)
@given(batches(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_it_is_the_entropy_of_the_counts(batch, ahead: bool, places: bool, told: bool, prompted: bool) -> None:
    inputs, targets, documents, prompts = batch
    views = [
        [
            view(
                inputs[row].tolist(),
                documents[row].tolist() if told else None,
                prompts[row].tolist() if prompted else None,
                place,
                ahead,
                places,
            )
            for place in range(LENGTH)
        ]
        for row in range(ROWS)
    ]
    seen = context_ids(
        inputs, documents if told else None, prompts if prompted else None, ahead=ahead, positions=places
    )
    flat = [one for row in views for one in row]
    numbers = seen.ravel().tolist()
    assert len(set(numbers)) == len(set(flat)) == len(set(zip(numbers, flat, strict=True)))
    assert conditional_entropy(targets, seen) == pytest.approx(by_hand(targets, views), abs=1e-12)


@given(batches(), st.integers(0, 2**32))
def test_no_prediction_from_what_is_seen_is_better(batch, seed: int) -> None:
    inputs, targets, _, _ = batch
    seen, valid = context_ids(inputs), targets != IGNORED
    table = np.random.default_rng(seed).dirichlet(np.ones(IDS), int(seen.max()) + 1)
    loss = -np.log(table[seen[valid], targets[valid]]).mean() if valid.any() else 0.0
    assert conditional_entropy(targets, seen) <= loss + 1e-12


def test_known_cases() -> None:
    inputs = np.array([[0, 1], [0, 1], [0, 2], [0, 2]])
    targets = np.array([[1, 5], [1, 6], [2, 5], [2, IGNORED]])
    # After 0 come 1, 1, 2, 2: ln 2 for four targets. After 0 1 come 5 and 6: ln 2 for two. After 0 2 comes 5 alone.
    assert conditional_entropy(targets, context_ids(inputs)) == pytest.approx(6 / 7 * math.log(2))
    # Who sees what comes next is left with what is behind the end only.
    assert conditional_entropy(targets, context_ids(inputs, ahead=True)) == pytest.approx(2 / 7 * math.log(2))
    assert conditional_entropy(np.full((2, 2), IGNORED), context_ids(inputs[:2])) == 0.0
