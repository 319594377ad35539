"""Music on the command line: a MIDI file in, a MIDI file, a picture and a sound out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from quintet.cli.inputs import fail

if TYPE_CHECKING:
    from quintet.model.sampling import GenerationSettings


def write_music(
    run: str,
    checkpoint: str,
    midi: Path,
    settings: GenerationSettings,
    task: str | None,
    output: Path | None,
    roll: Path | None,
    audio: Path | None,
    about: dict[str, str | None],
) -> None:
    """Go on from the piece in ``midi``, or answer ``task`` for it; write what comes of it where it is asked for.

    ``about`` says composer and data set; where it names no composer, the one in the file's name is taken, as for
    training.
    """
    from quintet.evaluate.music import answer
    from quintet.piano.audio import available, render
    from quintet.piano.midi import faults_line, read_midi, write_midi
    from quintet.piano.roll import piano_roll
    from quintet.piano.tasks import task_named
    from quintet.train.trained import load_writer

    if not (output or roll or audio):
        fail("--midi: say what to write: --output out.mid, --roll out.png or --audio out.wav")
    for option, file in (("--output", output), ("--roll", roll), ("--audio", audio)):
        if file is not None and not file.parent.is_dir():
            fail(f"{option}: {file} cannot be written, for there is no folder {file.parent}; make it first")
    faults: Counter[str] = Counter()
    prompt = read_midi(midi, faults=faults)
    if faults:
        typer.echo(f"{midi}: passed over {faults_line(faults)}", err=True)
    asked = None if task is None else task_named(task, "--task")
    known = _known(about, midi)
    found = answer(load_writer(run, checkpoint), prompt, settings, asked, known)
    if output is not None:
        write_midi(found.whole, output)
    if roll is not None:
        roll.write_bytes(piano_roll(*found.from_start(), midi.name))
    if audio is not None:
        audio.write_bytes(render(found.whole))
        typer.echo(f"sound: {available()}", err=True)
    written = ", ".join(str(file) for file in (output, roll, audio) if file is not None)
    place = "after" if task is None else "for"  # an answer belongs among the notes
    typer.echo(f"{len(found.notes)} notes {place} {len(found.heard)} of the {len(prompt)} in {midi}: wrote {written}")
    if len(found.heard) < len(prompt):
        typer.echo(
            f"the model's context has room for no more than the last {len(found.heard)} notes beside --max-tokens "
            f"{settings.max_tokens}; lower that, or give a shorter piece",
            err=True,
        )


def _known(about: dict[str, str | None], midi: Path) -> dict[str, str | None]:
    """``about`` with the composer of the file's name where it has none. Refuses names that no model knows."""
    from quintet.piano.context import (
        COMPOSERS,
        DATASETS,
        UNKNOWN_COMPOSER,
        composer_token,
        dataset_token,
        surname,
        words_in,
    )

    composer, dataset = about["composer"], about["dataset"]
    nobody = surname(UNKNOWN_COMPOSER)
    if composer and composer_token(about) == UNKNOWN_COMPOSER and composer.lower() != nobody.lower():
        fail(f"--composer: no model knows {composer}; choose one of {', '.join(map(surname, COMPOSERS))}")
    if dataset and dataset_token(about)[1:-1] != dataset.upper():
        fail(f"--dataset: no model knows {dataset}; choose one of {', '.join(one[1:-1] for one in DATASETS)}")
    return {"composer": composer or words_in(midi.name), "dataset": dataset}
