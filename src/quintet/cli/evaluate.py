"""`quintet evaluate`: measure a trained model on what was held out from it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from quintet.cli.inputs import fail


def evaluate(
    run: Annotated[str, typer.Argument(help="run folder, or name of a run under runs/")],
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="held-out samples to use; when not given all, of music as many as in the training"),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="latest, best, or a step")] = "latest",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    records: Annotated[
        int | None,
        typer.Option(min=1, help="held-out records to answer, 48 when not given", rich_help_panel="Piano"),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="of the answers: divides the logits; 0, when not given, takes the likeliest token",
            rich_help_panel="Piano",
        ),
    ] = None,
) -> None:
    """Measure loss, perplexity and bits per byte of a trained model on its held-out data; of a model of piano music
    also how near its answers come to the true ones, beside copies of the prompt and counts of tokens."""
    from rich.console import Console

    from quintet.evaluate.loss import loss_on, own_data
    from quintet.evaluate.music import evaluate_music, is_music
    from quintet.model.generate import GenerationSettings
    from quintet.track.console import Reporter
    from quintet.train.trained import load_trained

    trained = load_trained(run, checkpoint)
    music = is_music(trained)
    if not music and (records, temperature) != (None, None):
        fail("--records and --temperature are for music, and this run learnt from text")
    if music:
        samples = samples or trained.config.evaluate.samples
    prepared = own_data(trained, Reporter(Console(stderr=True, highlight=False, soft_wrap=True)))
    result = loss_on(trained, prepared, samples)
    figures = {"step": trained.progress.step, "tokens": result.tokens, "bytes": result.bytes, **result.metrics()}
    lines = result.lines()
    if music:
        settings = GenerationSettings(temperature=temperature or 0.0)
        answers = evaluate_music(trained, prepared, samples, records or 48, settings)
        figures["music"], lines = answers.figures(), [*lines, *answers.lines()]
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
        return
    typer.echo(
        f"{trained.folder} at step {trained.progress.step}: {result} "
        f"(over {result.tokens:,} tokens{f', {result.bytes:,} bytes' if result.bytes else ''})"
    )
    for line in lines:
        typer.echo(line)
