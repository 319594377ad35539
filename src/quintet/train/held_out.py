"""Loss of a trained run on what was held out from it."""

from __future__ import annotations

from quintet.data.prepare import Prepared, prepare
from quintet.errors import UserError
from quintet.track.console import Reporter
from quintet.train.trained import TrainedRun
from quintet.train.validation import ValidationResult, validate


def own_data(run: TrainedRun, reporter: Reporter) -> Prepared:
    """The data that ``run`` was trained on. Raises UserError when the sources are no longer the same."""
    prepared = prepare(run.config, progress=reporter.preparing)
    if prepared.fingerprint != run.progress.corpus or prepared.tokenizer.fingerprint != run.tokenizer.fingerprint:
        raise UserError(
            f"{run.folder}: its sources, or what the libraries that read and encode them make of them, have changed "
            "since it was trained, and what was held out with them"
        )
    return prepared


def loss_on(run: TrainedRun, prepared: Prepared, samples: int | None) -> ValidationResult:
    """Loss on ``samples`` samples of what ``prepared`` holds out. Raises UserError when that is nothing."""
    if prepared.validation is None:
        raise UserError(f"{run.folder}: holds nothing out; set data.validation or data.validation_sources")
    found = validate(
        run.model,
        run.objective,
        prepared.validation.batches(run.config.validation_batch_size, samples),
        run.compute,
        bytes_per_token=run.tokenizer.bytes_per_token(),
        labels=prepared.validation.labels,
    )
    if not found.tokens:
        raise UserError(f"{run.folder}: no token that it holds out has a loss, so that nothing can be measured on them")
    return found
