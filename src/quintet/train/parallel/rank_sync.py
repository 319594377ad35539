"""What the processes of a run must decide alike: how many targets a batch has, whether to stop, whether to save."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from quintet.data.batch import Batch
from quintet.processes import is_rank_zero, world_size
from quintet.system import STOP_SIGNALS

# A signal may reach the processes before different steps; that of most weight counts.
SIGNALS = tuple(map(int, STOP_SIGNALS))


class RankSync:
    """One process decides by itself. Several tell each other with each batch, one step ahead, so that none waits: each
    how many targets its part of the batch has and which signal it got, the first whether a checkpoint is overdue."""

    def __init__(self, asked: Callable[[], int | None], overdue: Callable[[], bool]) -> None:
        self._asked, self._overdue = asked, overdue
        self._signal: int | None = None
        self._saving = False

    @property
    def signal(self) -> int | None:
        """The signal after which the run stops with the step at hand."""
        return self._asked() if world_size() == 1 else self._signal

    @property
    def overdue(self) -> bool:
        """Whether so much time has passed that the step at hand ends with a checkpoint."""
        return self._overdue() if world_size() == 1 else self._saving

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """``batches``, this process's parts, with ``valid`` of the whole batch."""
        if world_size() == 1:
            yield from batches
            return
        before: tuple[Batch, torch.Tensor, Any] | None = None
        for batch in batches:
            told = torch.tensor([batch.valid, *self._wishes()])
            following = (batch, told, dist.all_reduce(told, async_op=True))
            if before is not None:
                yield self._agreed(*before)
            before = following
        if before is not None:
            yield self._agreed(*before)

    def _wishes(self) -> list[int]:
        asked = self._asked()
        return [*(int(asked == one) for one in SIGNALS), int(is_rank_zero() and self._overdue())]

    def _agreed(self, batch: Batch, told: torch.Tensor, work: Any) -> Batch:
        work.wait()
        valid, *asked, overdue = told.tolist()
        self._signal = next((one for one, count in zip(SIGNALS, asked, strict=True) if count), None)
        self._saving = bool(overdue)
        return replace(batch, valid=valid)
