"""Music on the command line: a MIDI file in, a MIDI file, a picture and a sound out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from quintet.cli.inputs import fail

if TYPE_CHECKING:
    from quintet.model.generate import GenerationSettings


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
    """Go on from the piece in ``midi``, or answer ``task`` for it; write what comes of it where it is asked for."""
    from quintet.piano.audio import available, render
    from quintet.piano.midi import read_midi, write_midi
    from quintet.piano.roll import piano_roll
    from quintet.piano.tasks import task_named
    from quintet.train.music import answer
    from quintet.train.trained import load_writer

    if not (output or roll or audio):
        fail("--midi: say what to write: --output out.mid, --roll out.png or --audio out.wav")
    for option, file in (("--output", output), ("--roll", roll), ("--audio", audio)):
        if file is not None and not file.parent.is_dir():
            fail(f"{option}: {file} cannot be written, for there is no folder {file.parent}; make it first")
    prompt = read_midi(midi)
    asked = None if task is None else task_named(task, "--task")
    found = answer(load_writer(run, checkpoint), prompt, settings, asked, about)
    if output is not None:
        write_midi(found.whole, output)
    if roll is not None:
        begin = float(found.heard.start[0])
        roll.write_bytes(piano_roll(found.heard.moved(-begin), found.notes.moved(-begin), midi.name))
    if audio is not None:
        audio.write_bytes(render(found.whole))
        typer.echo(f"sound: {available()}", err=True)
    written = ", ".join(str(file) for file in (output, roll, audio) if file is not None)
    typer.echo(f"{len(found.notes)} notes after {len(found.heard)} of the {len(prompt)} in {midi}: wrote {written}")
