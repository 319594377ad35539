"""Samples that the model writes during training: texts, or music."""

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

_ONLY = "sample 0"  # the name of a continued piece; an answer has the name of its task
_ROWS = 16  # answers in a batch
_Music = tuple[str, Notes, Notes, Notes]  # name, prompt, continuation, both joined


def write_samples(run: Run) -> None:
    """Continue each prompt of the run file and pass the texts to the trackers.

    A model of music continues a held-out piece instead, or answers a task about it. The seed is the same at each step,
    so that two samples differ only by the training in between. A model that fills in hidden tokens writes none. If
    documents have no end token, an empty prompt starts no document and is skipped.
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
    """Raise UserError for prompts that the tokenizer cannot encode."""
    config = run.config
    if config.loss.kind == "masked" or isinstance(config.data.packing, MusicPackingConfig):
        return
    problems: list[str] = []
    for index, prompt in enumerate(config.sample.prompts):
        if not _can_continue(run, prompt):
            continue
        try:
            with named(f"sample.prompts[{index}]"):
                prompt_ids(run.tokenizer, run.bounds, prompt)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)


def _can_continue(run: Run, prompt: str) -> bool:
    """Return False for an empty prompt without a token that starts a document."""
    return bool(prompt.strip() or run.bounds.before)


def _write_texts(run: Run, settings: GenerationSettings) -> None:
    prompts = [text for text in run.config.sample.prompts if _can_continue(run, text)]
    if not prompts:
        return
    ids = [prompt_ids(run.tokenizer, run.bounds, prompt) for prompt in prompts]
    texts = write_continuations(run.model, run.tokenizer, run.compute, ids, settings, run.bounds)
    for index, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        run.tracker.text(run.progress.step, f"sample {index}", prompt + text.text)


def _write_music(run: Run, settings: GenerationSettings) -> None:
    """Write music as a MIDI file and a picture: the continuation of a piece, or the answer to a task.

    After the last step all tasks are answered. The pieces are held-out data, or training data if none is held out.
    """
    step = run.progress.step
    streams = (run.validation or run.data).source_samples
    samples = next(one for one in streams if isinstance(one, NoteSamples) and one.count)
    if samples.tasks:
        tasks = samples.tasks if step == run.steps else samples.tasks[:1]
        played = _answers(run, samples, tasks, settings)
    else:
        played = [_continued(run, samples, settings)]
    for name, prompt, written, joint in played:
        title = f"step {step}" if name == _ONLY else f"{name} at step {step}"
        files = {".mid": midi_bytes(joint), ".png": piano_roll(prompt, written, title)}
        run.tracker.files(step, name, files)


def _answers(
    model: ModelAndTokenizer, samples: NoteSamples, tasks: Sequence[Task], settings: GenerationSettings
) -> list[_Music]:
    """Answer the first record of each of ``tasks``, which are the first tasks of ``samples``."""
    tokenizer = samples.tokenizer
    records = [samples.sample(index).ids.tolist() for index in range(len(tasks))]
    asked = [ids[: ids.index(tokenizer.special(ANSWER)) + 1] for ids in records]
    played: list[_Music] = []
    for first in range(0, len(asked), _ROWS):
        part = asked[first : first + _ROWS]
        for task, ids, written in zip(tasks[first:], part, write(model, tokenizer, part, settings), strict=False):
            prompt, answer = (tokenizer.decode_notes(np.array(tokens)) for tokens in (ids, written))
            played.append((task.name, prompt, answer, task.whole(prompt, answer)))
    return played


def _continued(model: ModelAndTokenizer, samples: NoteSamples, settings: GenerationSettings) -> _Music:
    """Continue the first half of the first sample."""
    tokenizer, ids = samples.tokenizer, samples.sample(0).ids.tolist()
    notes = tokenizer.decode_notes(np.array(ids), close=False)
    prompt = notes[: max(1, len(notes) // 2)]
    # The first two ids are data set and composer.
    asked = [*ids[:2], *tokenizer.encode_notes(prompt).tolist()]
    written = notes_after(tokenizer, asked, write(model, tokenizer, [asked], settings)[0])
    return _ONLY, prompt, written, joined(prompt, written)
