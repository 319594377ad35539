"""A picture and a sound of notes: a piano roll, and audio by fluidsynth or by a plain synthesiser."""

import io
import os
import shutil
import subprocess
import tempfile
import wave
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quintet.errors import UserError, printable
from quintet.libraries import require
from quintet.piano.midi import write_midi
from quintet.piano.notes import Notes, pitch_name

PROMPT_COLOUR, ANSWER_COLOUR = "#3465a4", "#e8770a"
"""Distinct for any colour vision."""
_MARGIN = 2  # semitones above the highest and below the lowest note
_NAMED = 16  # with at most this many semitones each key has its name, with more only each C
RATE = 44_100
"""Samples per second of rendered sound."""
_LOUDEST = 0.9  # of the largest sample of 16 bits
SOUNDFONT = "QUINTET_SOUNDFONT"
"""The environment variable that names a soundfont file."""
_FOLDERS = ("/usr/share/soundfonts", "/usr/share/sounds/sf2", "/usr/share/sounds/sf3", "/opt/homebrew/share/soundfonts")
_INSTALL = "install fluidsynth and a soundfont (Debian: apt install fluidsynth fluid-soundfont-gm)"
_PARTIALS = 8  # overtones of the plain synthesiser
# Seconds: from the start of a note to its full volume, of silence after the end, and the damper's time constant.
_ATTACK, _RELEASE, _FADE = 0.005, 0.08, 0.02

Synthesizer = Literal["auto", "fluidsynth", "additive"]


def piano_roll(prompt: Notes, answer: Notes | None = None, title: str = "") -> bytes:
    """Return a PNG of the notes, louder ones darker; prompt and ``answer`` have different colours and a legend."""
    figure = roll_figure(prompt, answer, title)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def roll_figure(prompt: Notes, answer: Notes | None = None, title: str = "") -> Any:
    """Return `piano_roll` as a matplotlib Figure, 12 inches wide."""
    drawing: Any = require("matplotlib.figure", "piano", "a piano roll")
    patches: Any = require("matplotlib.patches", "piano", "a piano roll")
    figure = drawing.Figure(figsize=(12, 4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, prompt, PROMPT_COLOUR)
    if answer is not None:
        _draw(axes, answer, ANSWER_COLOUR)
        parts = {"prompt": PROMPT_COLOUR, "answer": ANSWER_COLOUR}
        keys = [patches.Patch(color=colour, label=label) for label, colour in parts.items()]
        figure.legend(handles=keys, loc="outside upper right", ncols=2)
    tables = [prompt] if answer is None else [prompt, answer]
    pitches = np.concatenate([table.pitch for table in tables])
    low, high = (int(pitches.min()), int(pitches.max())) if len(pitches) else (60, 72)
    axes.set_ylim(low - _MARGIN, high + _MARGIN)
    axes.set_xlim(0, max(table.seconds for table in tables) or 1.0)
    named = [pitch for pitch in range(low - 1, high + 2) if high - low <= _NAMED or pitch % 12 == 0]
    axes.set_yticks(named, [pitch_name(pitch) for pitch in named])
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel("seconds")
    axes.set_title(printable(title), parse_math=False)
    return figure


def _draw(axes: Any, table: Notes, colour: str) -> None:
    """Draw a bar for each note, one semitone high."""
    library: Any = require("matplotlib.colors", "piano", "a piano roll")
    colours = np.tile(library.to_rgba(colour), (len(table), 1))
    colours[:, 3] = 0.35 + 0.65 * table.velocity / 127
    axes.barh(table.pitch, table.end - table.start, left=table.start, height=0.8, color=colours)


def soundfont() -> Path | None:
    """Return the soundfont that the environment names, or the largest on the system, or None.

    Raises UserError if the file that the environment names is no soundfont.
    """
    if named := os.environ.get(SOUNDFONT):
        if not (Path(named).is_file() and _is_soundfont(Path(named))):
            raise UserError(f"{SOUNDFONT}: {named} is no soundfont; name a file .sf2 or .sf3, or unset it")
        return Path(named)
    fonts = [file for folder in _FOLDERS for file in sorted(Path(folder).glob("*.sf[23]"))]
    return max(fonts, key=lambda file: file.stat().st_size, default=None)


def _is_soundfont(file: Path) -> bool:
    """Look at the head of ``file``, because fluidsynth renders silence with any other file."""
    with file.open("rb") as stream:
        head = stream.read(12)
    return head[:4] == b"RIFF" and head[8:] == b"sfbk"


def available() -> str:
    """One line that names the synthesiser of ``synthesizer="auto"``, and how to get a better one."""
    font = soundfont()
    if shutil.which("fluidsynth") and font:
        return f"fluidsynth with {font}"
    return f"a plain synthesiser; for the sound of a piano, {_INSTALL}"


def render(table: Notes, synthesizer: Synthesizer = "auto") -> bytes:
    """Return the notes as a WAV file of 16 bits, 44.1 kHz: two channels from fluidsynth, one from our own synthesiser.

    Raises UserError if ``synthesizer`` is "fluidsynth" and it or a soundfont is missing.
    """
    font = soundfont() if synthesizer != "additive" else None
    program = shutil.which("fluidsynth")
    if font and program:
        return _fluidsynth(table, program, font)
    if synthesizer == "fluidsynth":
        missing = "a soundfont" if program else "fluidsynth"
        raise UserError(f"audio: {missing} was not found; {_INSTALL}, or name a soundfont in {SOUNDFONT}")
    return _wav(synthesize(table)[:, None])


def synthesize(table: Notes, rate: int = RATE) -> np.ndarray:
    """Return the notes as float32 [samples], made of decaying sines, with the loudest sample at 0.9.

    Overtone k is 1/k² as loud as the first and decays k times as fast; low notes ring longer; a damper ends each note.
    """
    sound = np.zeros(int(np.ceil((table.seconds + _RELEASE) * rate)), dtype=np.float32)
    for pitch in np.unique(table.pitch):
        same_pitch = table[table.pitch == pitch]
        tone = _tone(int(pitch), float((same_pitch.end - same_pitch.start).max()) + _RELEASE, rate)
        for velocity, start, end in zip(same_pitch.velocity, same_pitch.start, same_pitch.end, strict=True):
            begin, keyed = round(float(start) * rate), round(float(end - start) * rate)
            count = min(keyed + round(_RELEASE * rate), len(tone), len(sound) - begin)
            damper = np.exp(np.minimum(keyed - np.arange(count), 0) / (_FADE * rate))
            sound[begin : begin + count] += (velocity / 127) ** 2 * tone[:count] * damper
    return _loud(sound)


def _tone(pitch: int, seconds: float, rate: int) -> np.ndarray:
    """Return the sound of an undamped string struck at 0, float32 [samples]; A4 is pitch 69 and 440 Hz."""
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    time = np.arange(int(np.ceil(seconds * rate)), dtype=np.float32) / rate
    decay = 0.7 * 2 ** ((pitch - 60) / 24)  # per second
    tone = np.zeros_like(time)
    for k in range(1, _PARTIALS + 1):
        if k * frequency < rate / 2:
            tone += np.sin(2 * np.pi * k * frequency * time) * np.exp(-k * decay * time) / k**2
    return tone * np.minimum(time / _ATTACK, 1)


def _loud(sound: np.ndarray) -> np.ndarray:
    """Scale ``sound``, float32 [samples] or [samples, channels], so that its loudest sample is 0.9; silence stays."""
    loudest = float(np.abs(sound).max(initial=0))
    return (sound * (_LOUDEST / loudest if loudest else 1.0)).astype(np.float32)


def _wav(sound: np.ndarray) -> bytes:
    """Return a WAV file of ``sound``, floats [samples, channels] between -1 and 1."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(sound.shape[1])
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.rint(sound * 32767).astype("<i2").tobytes())
    return stream.getvalue()


def _fluidsynth(table: Notes, program: str, font: Path) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        midi, raw = Path(folder, "notes.mid"), Path(folder, "notes.raw")
        write_midi(table, midi)
        options = ["-n", "-i", "-q", "-F", str(raw), "-T", "raw", "-O", "float", "-E", "little", "-r", str(RATE)]
        done = subprocess.run([program, *options, str(font), str(midi)], capture_output=True, text=True)
        if done.returncode or not raw.exists():
            reason = " ".join(done.stderr.split())[-200:]
            raise UserError(f"fluidsynth could not render with {font} ({reason}); name another in {SOUNDFONT}")
        return _wav(_loud(np.fromfile(raw, dtype="<f4").reshape(-1, 2)))
