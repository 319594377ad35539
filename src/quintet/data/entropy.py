"""The lowest loss that is possible on a batch: what its targets leave open, given what each position sees."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from quintet.config.documents import IGNORED


def context_ids(
    inputs: np.ndarray,
    documents: np.ndarray | None = None,
    prompts: np.ndarray | None = None,
    *,
    ahead: bool = False,
    places: bool = False,
) -> np.ndarray:
    """A number for what each of ``inputs`` [samples, length] sees, int64 of the same shape: equal where they see equal.

    A position sees the ids up to itself, or with ``ahead`` those behind it too, and where among them it stands. With
    ``documents`` of the same shape these are the ids of its own document; where that begins in the sample is seen with
    ``places`` only. ``prompts``, bool of the same shape, are seen as well: how many tokens of a document see one
    another backwards.
    """
    known: dict[object, int] = {}
    found = np.empty(inputs.shape, dtype=np.int64)
    for row, ids in enumerate(inputs.tolist()):
        for start, stop in _spans(None if documents is None else documents[row], len(ids)):
            prompt = None if prompts is None else int(prompts[row, start:stop].sum())
            beginning = (start if places else 0, prompt, tuple(ids[start:stop]) if ahead else ())
            seen = known.setdefault(beginning, len(known))
            for place in range(start, stop):
                if ahead:
                    found[row, place] = known.setdefault((seen, place - start), len(known))
                else:
                    found[row, place] = seen = known.setdefault((seen, ids[place]), len(known))
    return found


def conditional_entropy(targets: np.ndarray, seen: np.ndarray) -> float:
    """Entropy of ``targets`` among those that see the same, in nats, mean over the targets with a loss.

    ``seen`` is of the same shape. The cross-entropy of no function of what is seen is lower: within a group it predicts
    the same for all, and Gibbs' inequality holds. 0.0 without any target.
    """
    valid = targets != IGNORED
    pairs, counts = np.unique(np.stack([seen[valid], targets[valid]]), axis=1, return_counts=True)
    if not counts.size:
        return 0.0
    groups = np.bincount(pairs[0], weights=counts)[pairs[0]]
    return float(np.abs((counts * np.log(groups / counts)).sum() / counts.sum()))


def _spans(documents: np.ndarray | None, length: int) -> Iterator[tuple[int, int]]:
    """Where each document of a sample begins and ends."""
    borders = [] if documents is None else (np.flatnonzero(np.diff(documents)) + 1).tolist()
    yield from zip([0, *borders], [*borders, length], strict=True)
