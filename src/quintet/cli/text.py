"""What `quintet evaluate --text` does: how well a model models text, by topic."""

from __future__ import annotations

import typer

from quintet.cli.inputs import fail
from quintet.files import to_json

HELD_OUT = "held-out"


def model_texts(
    name: str, checkpoint: str, text: str, topic_field: str | None, as_json: bool, precision: str | None
) -> None:
    """Measure the model ``name`` on the texts at ``text``, or on those that its run holds out, and print the table.

    What the run file says in `evaluate.text_modeling` holds, but for the path and the field of the topic.
    """
    from rich.console import Console

    from quintet.config.evaluate import TextModelingConfig
    from quintet.evaluate.text_modeling import model_text
    from quintet.evaluate.texts import text_topics
    from quintet.track.console import Reporter
    from quintet.train.trained import TrainedRun, load_measured, own_data

    trained = load_measured(name, checkpoint, precision)
    run = trained if isinstance(trained, TrainedRun) else None
    if text == HELD_OUT and run is None:
        fail(f"--text {HELD_OUT}: {name} is no run and holds nothing out; name a file or folder of text")
    section = (run.config.evaluate.text_modeling if run else None) or TextModelingConfig()
    changes = {"path": None if text == HELD_OUT else text, **({"topic_field": topic_field} if topic_field else {})}
    section = section.model_copy(update=changes)
    validation, reporter = None, Reporter(Console(stderr=True, highlight=False, soft_wrap=True))
    if run is not None and text == HELD_OUT:
        validation = own_data(run, reporter).validation
    topics = text_topics(section, trained.tokenizer, validation, "--text", reporter.say)
    result = model_text(trained, topics, section.stride)
    if as_json:
        typer.echo(to_json({"precision": trained.compute.precision, **result.as_json()}, indent=2))
        return
    step = f" at step {run.progress.step}" if run else ""
    typer.echo(f"{run.folder if run else name}{step}: text modelling, in {trained.compute.precision}")
    for line in result.lines():
        typer.echo(line)
