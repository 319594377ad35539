"""The steps after which a run validates, writes samples, saves and logs; and the limits of a trial."""

from dataclasses import dataclass
from fractions import Fraction

from quintet.config.evaluate import EvaluateConfig
from quintet.config.schema import RunConfig
from quintet.config.train import steps_of
from quintet.evaluate.harness.names import items_of


@dataclass(frozen=True)
class Trial:
    """The limits of a trial of a run (`quintet check --try`).

    It ends after ``steps``, with the batches and the learning rates of the whole run. It measures at most ``samples``
    of the validation, ``items`` of each benchmark and ``bytes`` of each topic of text.
    """

    steps: int
    samples: int = 8
    items: int = 2
    bytes: int = 2000

    def shortened(self, evaluate: EvaluateConfig) -> EvaluateConfig:
        """Return ``evaluate`` within these limits."""
        text, writing = evaluate.text_modeling, evaluate.text_generation
        counts = {
            "samples": min(evaluate.samples or self.samples, self.samples),
            "tasks": tuple(dict.fromkeys(items_of(name)[0] for name in evaluate.tasks)),
            "task_samples": min(evaluate.task_samples or self.items, self.items),
            "text_generation": writing
            and writing.model_copy(update={"max_tokens": min(writing.max_tokens, self.items)}),
            "text_modeling": text and text.model_copy(update={"max_bytes": min(text.max_bytes, self.bytes)}),
        }
        return evaluate.model_copy(update=counts)


@dataclass(frozen=True)
class Intervals:
    """The periods of a run in steps; None for what happens only at the ends, if at all."""

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
        """True after each log interval, for the progress line and the trackers of `track`."""
        return step % self.log_every == 0

    def validates(self, step: int) -> bool:
        """True if a validation is due after ``step``."""
        if step == self.steps and self.validate_at_end:
            return True
        since = step - self.validate_offset
        return self.validate_every is not None and since >= 0 and since % self.validate_every == 0

    def samples(self, step: int) -> bool:
        """True if samples are due after ``step``; with each validation if they have no period of their own."""
        if self.sample_every is None:
            return self.validates(step)
        return step == self.steps or step % self.sample_every == 0

    def saves(self, step: int) -> bool:
        """True if a checkpoint is due after ``step`` by the step's number."""
        if step == self.steps and self.save_at_end:
            return True
        return any(step % every == 0 for every in self._save_periods)

    @property
    def first_saved(self) -> int:
        """The first step after which a checkpoint is due."""
        return min([self.steps, *self._save_periods])

    def saved(self) -> int:
        """Return the number of checkpoints that are due in the run."""
        steps = {step for period in self._save_periods for step in range(period, self.steps + 1, period)}
        return len(steps | ({self.steps} if self.save_at_end else set[int]()))

    @property
    def _save_periods(self) -> list[int]:
        """The periods of checkpoints, in steps."""
        return [every for every in (self.save_every, self.save_every_part) if every is not None]


def intervals_of(config: RunConfig, steps: int, epoch_samples: int) -> Intervals:
    """Return the intervals of the run of ``config`` with ``steps`` and ``epoch_samples`` training samples."""

    def period(duration: int | float | None) -> int | None:
        return None if duration is None else steps_of(duration, steps)

    part = config.checkpoint.every_epochs
    return Intervals(
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
