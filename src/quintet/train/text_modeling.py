"""How well a model in training models text, by topic."""

from __future__ import annotations

from quintet.evaluate.text_modeling import TextModeling, model_text
from quintet.evaluate.texts import text_topics
from quintet.train.setup import Run


def measure_text(run: Run) -> TextModeling | None:
    """Measure what `evaluate.text_modeling` asks for, say and track it; None where it asks for nothing.

    Raises UserError where there is no text.
    """
    section = run.config.evaluate.text_modeling
    if section is None:
        return None
    topics = text_topics(section, run.tokenizer, run.validation, "evaluate.text_modeling", run.reporter.say)
    result = model_text(run, topics, section.stride)
    for tracker in run.trackers:
        tracker.log(run.progress.step, result.metrics())
    run.reporter.say(f"step {run.progress.step}: text modelling")
    for line in result.lines():
        run.reporter.say(f"  {line}")
    return result
