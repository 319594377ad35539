"""Texts that the model writes while it learns."""

from __future__ import annotations

from quintet.model.generate import GenerationSettings, generate
from quintet.randomness import key
from quintet.tokenize import TextStream
from quintet.train.setup import Run


def write_samples(run: Run) -> None:
    """Continue each prompt of the run file and hand the texts to the trackers.

    The same seed is used at every step, so that two samples differ by what was learnt in between.
    """
    config, tokenizer = run.config.sample, run.tokenizer
    for index, prompt in enumerate(config.prompts):
        settings = GenerationSettings(
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            seed=key(run.config.seed, "sample", index),
        )
        ids = tokenizer.encode(prompt) or [tokenizer.end_id]
        with run.compute.autocast():
            written = list(generate(run.model, ids, settings, tokenizer.end_id, allowed_ids=tokenizer.vocab_size))
        stream = TextStream(tokenizer, continues=bool(prompt))
        text = prompt + "".join(map(stream.push, written)) + stream.finish()
        for tracker in run.trackers:
            tracker.text(run.progress.step, f"sample {index}", text)
