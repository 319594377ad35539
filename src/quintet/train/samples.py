"""Texts that the model writes while it learns."""

from __future__ import annotations

from quintet.model.generate import GenerationSettings
from quintet.randomness import key
from quintet.train.continuation import prompt_ids, write_continuations
from quintet.train.setup import Run


def write_samples(run: Run) -> None:
    """Continue each prompt of the run file and hand the texts to the trackers.

    The same seed is used at every step, so that two samples differ by what was learnt in between. A model that learns
    to fill in hidden tokens writes no texts, which is said the first time.
    """
    config, step = run.config.sample, run.progress.step
    if run.config.loss.kind == "masked":
        every = config.every or run.config.evaluate.every
        if config.prompts and (every is None or step <= every):
            run.reporter.say("no samples: with loss.kind: masked the model learns to fill in tokens, not to write on")
        return
    settings = GenerationSettings(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        seed=key(run.config.seed, "sample"),
    )
    prompts = [prompt_ids(run.tokenizer, prompt) for prompt in config.prompts]
    texts = write_continuations(run.model, run.tokenizer, run.compute, prompts, settings)
    for index, (prompt, text) in enumerate(zip(config.prompts, texts, strict=True)):
        for tracker in run.trackers:
            tracker.text(step, f"sample {index}", prompt + text.text)
