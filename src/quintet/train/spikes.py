"""Loss spikes: finding a step with a loss far above those before it, and going back to the last checkpoint.

The run continues from there without the batch of that step, as if it had no target. Decisions follow from the losses
and the checkpoint, so that a run that is killed and continued finds the same spikes.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from quintet.config.train import SpikeConfig
from quintet.errors import UserError
from quintet.processes import broadcast_from_rank0
from quintet.train.build import load_training
from quintet.train.checkpoint_files import checkpoint_path, newest_whole
from quintet.train.run import Run

_NORMAL = 1.4826  # the standard deviation of a normal distribution over its median deviation from the median
_LEAST = 0.01  # smallest deviation, as a fraction of the median: almost equal losses would all be spikes


@dataclass(frozen=True)
class Spike:
    """A ``step`` whose ``loss`` is ``deviations`` above the ``median`` of the losses before it."""

    step: int
    loss: float
    median: float
    deviations: float


def find_spike(
    config: SpikeConfig, before: Sequence[float], losses: Iterable[tuple[int, float]], after: int
) -> tuple[Spike | None, list[float]]:
    """Return the first spike in ``losses``, pairs of step and loss, and the losses that the next one is compared with.

    ``before`` are the losses of earlier steps. A step is judged if it is later than ``after`` and `config.window`
    losses precede it. A loss that is not finite is ignored: its step was skipped.
    """
    known = deque(before, maxlen=config.window)
    for step, loss in losses:
        if not math.isfinite(loss):
            continue
        if step > after and len(known) == config.window:
            middle = median(known)
            deviation = max(_NORMAL * median(abs(other - middle) for other in known), _LEAST * abs(middle))
            if loss > middle + config.threshold * deviation:
                return Spike(step, loss, middle, (loss - middle) / max(deviation, 1e-300)), list(known)
        known.append(loss)
    return None, list(known)


def look_for_spike(run: Run, records: Sequence[tuple[int, dict[str, float]]]) -> Spike | None:
    """Return the loss spike in ``records``, the same in all processes, None without `train.on_spike`.

    If there is none, the run's progress gets the losses.
    """
    config = run.config.train.on_spike
    if config is None:
        return None
    losses = [(step, metrics["train/loss"]) for step, metrics in records]
    # The first checkpoint of an uninterrupted run. A run that was stopped has also written one when it stopped, which
    # must not change the steps at which a spike is looked for.
    first = run.intervals.first_saved
    spike, known = broadcast_from_rank0(lambda: find_spike(config, run.progress.losses, losses, first))
    if spike is None:
        run.progress = replace(run.progress, losses=known)
    return spike


def roll_back(run: Run, spike: Spike) -> None:
    """Return ``run`` to its last checkpoint, and skip the batch of ``spike`` from now on.

    Raises UserError after `train.on_spike.max_rollbacks` rollbacks, and if there is no checkpoint.
    """
    config, before = run.config.train.on_spike, run.progress
    assert config is not None
    place = run.checkpointer.folder
    told = (
        f"the loss of step {spike.step:,} is {spike.loss:.4g}, {spike.deviations:.1f} deviations above "
        f"{spike.median:.4g}, the median of the {config.window:,} before"
    )
    if len(before.spikes) >= config.max_rollbacks:
        raise UserError(
            f"train.on_spike: {told}, and the run has gone back {len(before.spikes)} times (max_rollbacks); lower "
            f"optimizer.lr, or raise threshold or max_rollbacks. {run.samples_line(spike.step)}"
        )
    run.checkpointer.wait()
    found = newest_whole(place, run.reporter.say, together=True)
    if found is None:
        raise UserError(f"train.on_spike: {told}, and {place} holds no checkpoint any more to go back to")
    load_training(checkpoint_path(place, found.step), run.engine)
    run.scaler.load_state_dict(found.scaler or {})
    run.progress = replace(
        found,
        stages=before.stages,
        inputs=before.inputs,
        precision=before.precision,
        libraries=before.libraries,
        spikes=sorted({*before.spikes, spike.step}),
    )
    # A later checkpoint that was damaged is written again.
    run.checkpointer.written = {step for step in run.checkpointer.written if step <= found.step}
    run.tracker.go_back(found.step)
    # Last, because it syncs the trackers' files, which go_back has cut.
    run.checkpointer.amend(run.progress)
    run.reporter.say(
        f"loss spike: {told}; back to step {found.step:,}, from where the run goes on without the batch of step "
        f"{spike.step:,} ({len(run.progress.spikes)} of at most {config.max_rollbacks}). {run.samples_line(spike.step)}"
    )
