"""The tempo map: from positions in a score to seconds."""

from __future__ import annotations

from typing import Any

import numpy as np


def seconds(position: np.ndarray | float, change: np.ndarray, length: np.ndarray) -> Any:
    """When ``position`` is, float64 of its shape, in a piece that begins at position 0.

    From ``change[i]`` on, a unit of position lasts ``length[i]`` seconds; ``change`` is ascending and begins with 0. Of
    several changes at one position the last holds.
    """
    begin = np.concatenate([[0.0], np.cumsum(np.diff(change) * length[:-1])])
    which = np.searchsorted(change, position, side="right") - 1
    return begin[which] + (position - change[which]) * length[which]
