"""Samples that the model writes while it learns: texts, or music."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quintet.config.generation import GenerationSettings
from quintet.config.packing import MusicPackingConfig
from quintet.data.note_samples import NoteSamples
from quintet.errors import UserError, named
from quintet.evaluate.continuation import prompt_ids, write_continuations
from quintet.evaluate.model_and_tokenizer import ModelAndTokenizer
from quintet.evaluate.music import notes_after, write
from quintet.piano.context import ANSWER
from quintet.piano.midi import midi_bytes
from quintet.piano.notes import Notes, joined
from quintet.piano.rendering import piano_roll
from quintet.piano.tasks import Task
from quintet.randomness import key
from quintet.train.run import Run

_ONLY = "sample 0"  # what is not the answer to a task
_ROWS = 16  # answers that are written together
_Music = tuple[str, Notes, Notes, Notes]  # name, prompt, what the model wrote, both


def write_samples(run: Run) -> None:
    """Continue each prompt of the run file and give the texts to the trackers; a model of music continues a held-out
    piece instead, or answers about it.

    The seed is the same at every step, so that two samples differ by what was learnt in between. A model that learns to
    fill in hidden tokens writes no texts; a line says so when it is set up. Where documents do not end, an empty prompt
    begins none and is left out.
    """
    config = run.config.sample
    if run.config.loss.kind == "masked" or not config.prompts:
        return
    settings = GenerationSettings.from_section(config, key(run.config.seed, "sample"))
    if isinstance(run.config.data.packing, MusicPackingConfig):
        _write_music(run, settings)
    else:
        _write_texts(run, settings)


def check_prompts(run: Run) -> None:
    """Raise UserError for prompts that the tokenizer cannot write."""
    config = run.config
    if config.loss.kind == "masked" or isinstance(config.data.packing, MusicPackingConfig):
        return
    problems: list[str] = []
    for index, prompt in enumerate(config.sample.prompts):
        if not _begins(run, prompt):
            continue
        try:
            with named(f"sample.prompts[{index}]"):
                prompt_ids(run.tokenizer, run.bounds, prompt)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)


def _begins(run: Run, prompt: str) -> bool:
    """True if there is something to continue: documents that do not end do not begin either."""
    return bool(prompt.strip() or run.bounds.before)


def _write_texts(run: Run, settings: GenerationSettings) -> None:
    beginnings = [text for text in run.config.sample.prompts if _begins(run, text)]
    if not beginnings:
        return
    prompts = [prompt_ids(run.tokenizer, run.bounds, prompt) for prompt in beginnings]
    texts = write_continuations(run.model, run.tokenizer, run.compute, prompts, settings, run.bounds)
    for index, (prompt, text) in enumerate(zip(beginnings, texts, strict=True)):
        run.tracker.text(run.progress.step, f"sample {index}", prompt + text.text)


def _write_music(run: Run, settings: GenerationSettings) -> None:
    """Write a continued piece as a MIDI file and as a picture, or an answer to a task, after the last step to each
    task, from held-out data, or from training data where nothing is held out."""
    step, trained = run.progress.step, run
    streams = (run.validation or run.data).source_samples
    samples = next(one for one in streams if isinstance(one, NoteSamples) and one.count)
    if samples.tasks:
        tasks = samples.tasks if step == run.steps else samples.tasks[:1]
        played = _answers(trained, samples, tasks, settings)
    else:
        played = [_continued(trained, samples, settings)]
    for name, prompt, found, whole in played:
        title = f"step {step}" if name == _ONLY else f"{name} at step {step}"
        files = {".mid": midi_bytes(whole), ".png": piano_roll(prompt, found, title)}
        run.tracker.files(step, name, files)


def _answers(
    trained: ModelAndTokenizer, samples: NoteSamples, tasks: Sequence[Task], settings: GenerationSettings
) -> list[_Music]:
    """Answer each of ``tasks``, the first ones of ``samples``, about the first record of each."""
    tokenizer = samples.tokenizer
    records = [samples.sample(index).ids.tolist() for index in range(len(tasks))]
    asked = [ids[: ids.index(tokenizer.special(ANSWER)) + 1] for ids in records]
    played: list[_Music] = []
    for first in range(0, len(asked), _ROWS):
        part = asked[first : first + _ROWS]
        for task, ids, written in zip(tasks[first:], part, write(trained, tokenizer, part, settings), strict=False):
            prompt, found = (tokenizer.decode_notes(np.array(one)) for one in (ids, written))
            played.append((task.name, prompt, found, task.whole(prompt, found)))
    return played


def _continued(trained: ModelAndTokenizer, samples: NoteSamples, settings: GenerationSettings) -> _Music:
    """Continue the first half of the first sample."""
    tokenizer, ids = samples.tokenizer, samples.sample(0).ids.tolist()
    notes = tokenizer.decode_notes(np.array(ids), close=False)
    prompt = notes[: max(1, len(notes) // 2)]
    # In front of the notes, data set and composer.
    asked = [*ids[:2], *tokenizer.encode_notes(prompt).tolist()]
    found = notes_after(tokenizer, asked, write(trained, tokenizer, [asked], settings)[0])
    return _ONLY, prompt, found, joined(prompt, found)
