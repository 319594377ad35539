"""Training metrics: kept on the device until a log point, then read and passed to the trackers."""

import math
import time
from dataclasses import dataclass, field, replace
from itertools import takewhile

import torch
from torch import Tensor

from quintet.errors import UserError
from quintet.model.typed import as_list
from quintet.processes import world_size
from quintet.train.compute import peak_memory
from quintet.train.run import Run
from quintet.train.spikes import Spike, look_for_spike


@dataclass(frozen=True)
class LogWindow:
    """The steps since the last log point: a record for each, their mean ``loss`` (NaN over none), and the speed.

    ``last_skipped`` is the number of steps at the end of the window without a finite gradient.
    """

    records: list[tuple[int, dict[str, float]]]
    loss: float
    skipped_steps: int
    tokens: int
    seconds: float
    last_skipped: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of training, without the time of validations and samples."""
        return self.tokens / max(self.seconds, 1e-9)


@dataclass
class MetricsBuffer:
    """Collects device scalars step by step. The host waits for the device only when it reads them."""

    _steps: list[int] = field(default_factory=list[int])
    _rates: list[float] = field(default_factory=list[float])
    _scalars: list[Tensor] = field(default_factory=list[Tensor])
    _tokens: int = 0
    _masked: int = 0
    _since: float = field(default_factory=time.perf_counter)

    def add(self, step: int, rate: float, loss: Tensor, norm: Tensor, skipped: Tensor, tokens: int) -> None:
        """Record an optimizer step: its learning rate, and float scalars on the device: its loss, its gradient norm and
        1.0 if it was skipped."""
        self._steps.append(step)
        self._rates.append(rate)
        self._scalars.append(torch.stack([loss.float(), norm.float(), skipped.float()]))
        self._tokens += tokens

    def add_without_target(self) -> None:
        """Record a batch without a valid target."""
        self._masked += 1

    def restart(self) -> None:
        """Restart the clock, after work that is not training."""
        self._since = time.perf_counter()

    def read(self) -> LogWindow:
        """Return the steps since the last call."""
        rows: list[list[float]] = as_list(torch.stack(self._scalars)) if self._scalars else []
        seconds = time.perf_counter() - self._since
        records = [
            (step, {"train/loss": loss, "train/lr": rate, "train/grad_norm": norm})
            for step, rate, (loss, norm, _) in zip(self._steps, self._rates, rows, strict=True)
        ]
        bad = [bool(skipped) for _, _, skipped in rows]
        last = sum(1 for _ in takewhile(bool, reversed(bad)))
        loss = sum(row[0] for row in rows) / len(rows) if rows else math.nan
        window = LogWindow(records, loss, sum(bad) + self._masked, self._tokens, seconds, last)
        self.__init__()
        return window


def log_metrics(run: Run, buffer: MetricsBuffer) -> Spike | None:
    """Track and print the metrics since the last call; if there is a loss spike among them, only return that.

    Raises UserError after `train.max_skipped` consecutive steps without a finite gradient.
    """
    window = buffer.read()
    if (spike := look_for_spike(run, window.records)) is not None:
        return spike
    progress = run.progress
    # The consecutive skipped steps reach back beyond this window only if all steps of this window were skipped.
    before = progress.last_skipped if window.last_skipped == len(window.records) else 0
    run.progress = replace(
        progress,
        seconds=progress.seconds + window.seconds,
        skipped_steps=progress.skipped_steps + window.skipped_steps,
        last_skipped=before + window.last_skipped,
    )
    speed = {
        "speed/tokens_per_second": window.tokens_per_second,
        "speed/mfu": window.tokens_per_second * run.flops_per_token / (run.peak_flops * world_size()),
        "train/skipped_steps": float(run.progress.skipped_steps),
    }
    if run.config.train.on_spike is not None:
        speed["train/rollbacks"] = float(sum(step <= progress.step for step in progress.spikes))
    if (memory := peak_memory(run.compute.device)) is not None:
        speed["speed/memory_bytes"] = float(memory)
    for step, metrics in window.records:
        record = metrics | (speed if step == progress.step else {})
        run.tracker.log(step, record, log_point=run.intervals.logs(step))
    run.reporter.step(progress.step, run.steps, window.loss, speed)
    if window.last_skipped and run.progress.last_skipped >= min(run.config.train.max_skipped, max(2, run.steps)):
        raise UserError(_divergence(run))
    return None


def _divergence(run: Run) -> str:
    """Return the message that all last steps were skipped, with the samples of the first of them."""
    return (
        f"optimizer.lr: no gradient was finite in the last {run.progress.last_skipped} steps "
        f"(train.max_skipped), so training cannot go on; lower optimizer.lr, lengthen schedule.warmup_steps, or set "
        f"train.precision=fp32. {run.samples_line(run.progress.step - run.progress.last_skipped + 1)}"
    )
