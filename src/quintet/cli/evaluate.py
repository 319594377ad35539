"""`quintet evaluate`: measure a trained model on what was held out from it."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def evaluate(
    run: Annotated[str, typer.Argument(help="run folder, or name of a run under runs/")],
    samples: Annotated[int | None, typer.Option(min=1, help="held-out samples to use; all when not given")] = None,
    checkpoint: Annotated[str, typer.Option(help="latest, best, or a step")] = "latest",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Measure loss, perplexity and bits per byte of a trained model on its held-out data."""
    from rich.console import Console

    from quintet.evaluate.loss import validation_loss
    from quintet.track.console import Reporter
    from quintet.train.trained import load_trained

    trained = load_trained(run, checkpoint)
    reporter = Reporter(Console(stderr=True, highlight=False, soft_wrap=True))
    result = validation_loss(trained, samples, reporter)
    figures = {"step": trained.progress.step, "tokens": result.tokens, "bytes": result.bytes, **result.metrics()}
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
        return
    typer.echo(
        f"{trained.folder} at step {trained.progress.step}: {result.bits_per_byte:.4f} bits per byte, "
        f"{result.loss:.4f} nats a token, perplexity {result.perplexity:.2f} "
        f"(over {result.tokens:,} tokens, {result.bytes:,} bytes)"
    )
    for line in result.lines():
        typer.echo(line)
