"""After which steps a run validates, writes samples and checkpoints, and shows where it is."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from quintet.config.duration import steps_of
from quintet.config.schema import RunConfig


@dataclass(frozen=True)
class Rhythm:
    """The periods of a run in steps; None where something never happens on the way."""

    steps: int
    log_every: int
    validate_every: int | None
    validate_offset: int
    validate_at_end: bool
    sample_every: int | None
    save_every: int | None
    save_every_part: int | None
    save_at_end: bool

    def logs(self, step: int) -> bool:
        """Whether the progress line is due after ``step``."""
        return step % self.log_every == 0

    def validates(self, step: int) -> bool:
        """Whether a validation is due after ``step``."""
        if step == self.steps and self.validate_at_end:
            return True
        since = step - self.validate_offset
        return self.validate_every is not None and since >= 0 and since % self.validate_every == 0

    def samples(self, step: int) -> bool:
        """Whether samples are due after ``step``: with each validation where they have no period of their own."""
        if self.sample_every is None:
            return self.validates(step)
        return step == self.steps or step % self.sample_every == 0

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after ``step`` by its number."""
        if step == self.steps and self.save_at_end:
            return True
        return any(every is not None and step % every == 0 for every in (self.save_every, self.save_every_part))

    def saved(self) -> int:
        """How many checkpoints are due by their number."""
        every = [period for period in (self.save_every, self.save_every_part) if period is not None]
        found = {step for period in every for step in range(period, self.steps + 1, period)}
        return len(found | ({self.steps} if self.save_at_end else set()))


def rhythm_of(config: RunConfig, steps: int, epoch_samples: int) -> Rhythm:
    """The rhythm of the run of ``config`` that has ``steps``, and ``epoch_samples`` samples to train on."""

    def period(duration: int | float | None) -> int | None:
        return None if duration is None else steps_of(duration, steps)

    part = config.checkpoint.every_epochs
    return Rhythm(
        steps=steps,
        log_every=steps_of(config.train.log_every, steps),
        validate_every=period(config.evaluate.every),
        validate_offset=config.evaluate.offset,
        validate_at_end=config.evaluate.at_end,
        sample_every=period(config.sample.every),
        save_every=period(config.checkpoint.every),
        save_every_part=None if part is None else _part_of_epoch(part, epoch_samples, config.batch.samples),
        save_at_end=config.checkpoint.at_end,
    )


def _part_of_epoch(part: float, epoch_samples: int, batch_samples: int) -> int:
    return max(1, int(Fraction(str(part)) * epoch_samples // batch_samples))
