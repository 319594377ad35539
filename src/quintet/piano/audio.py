"""Notes to sound: fluidsynth with a soundfont where both are installed, else a plain synthesiser."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
import wave
from pathlib import Path
from typing import Literal

import numpy as np

from quintet.errors import UserError
from quintet.piano.midi import write_midi
from quintet.piano.notes import Notes

RATE = 44_100
"""Samples per second of what we render."""
_LOUDEST = 0.9  # of what a sample can be
SOUNDFONT = "QUINTET_SOUNDFONT"
"""The environment variable that names a soundfont file."""
_FOLDERS = ("/usr/share/soundfonts", "/usr/share/sounds/sf2", "/usr/share/sounds/sf3", "/opt/homebrew/share/soundfonts")
_INSTALL = "install fluidsynth and a soundfont (Debian: apt install fluidsynth fluid-soundfont-gm)"
_PARTIALS = 8  # overtones of the plain synthesiser
# Seconds: until a note is loud, of silence after the end, and the damper's time constant.
_ATTACK, _RELEASE, _FADE = 0.005, 0.08, 0.02

Synthesizer = Literal["auto", "fluidsynth", "additive"]


def soundfont() -> Path | None:
    """Return the soundfont to render with: what the environment names, or the largest that the system has.

    Raises UserError where the environment names a file that is none.
    """
    if named := os.environ.get(SOUNDFONT):
        if not (Path(named).is_file() and _is_soundfont(Path(named))):
            raise UserError(f"{SOUNDFONT}: {named} is no soundfont; name a file .sf2 or .sf3, or unset it")
        return Path(named)
    found = [file for folder in _FOLDERS for file in sorted(Path(folder).glob("*.sf[23]"))]
    return max(found, key=lambda file: file.stat().st_size, default=None)


def _is_soundfont(file: Path) -> bool:
    """By its head: fluidsynth renders silence with any other file."""
    with file.open("rb") as stream:
        head = stream.read(12)
    return head[:4] == b"RIFF" and head[8:] == b"sfbk"


def available() -> str:
    """One line on what ``synthesizer="auto"`` will use, and on how to get better."""
    font = soundfont()
    if shutil.which("fluidsynth") and font:
        return f"fluidsynth with {font}"
    return f"a plain synthesiser; for the sound of a piano, {_INSTALL}"


def render(table: Notes, synthesizer: Synthesizer = "auto") -> bytes:
    """The notes as a WAV file of 16 bits, 44.1 kHz: two channels from fluidsynth, one from the plain synthesiser.

    Raises UserError where fluidsynth is asked for and it or a soundfont is missing.
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
    """The notes as float32 [samples], made of decaying sines, the loudest sample at 0.9 of what is possible.

    Overtone k is 1/k² as loud as the first and decays k times as fast; low notes ring longer; a damper falls at the
    end.
    """
    sound = np.zeros(int(np.ceil((table.seconds + _RELEASE) * rate)), dtype=np.float32)
    for pitch in np.unique(table.pitch):
        ours = table[table.pitch == pitch]
        tone = _tone(int(pitch), float((ours.end - ours.start).max()) + _RELEASE, rate)
        for velocity, start, end in zip(ours.velocity, ours.start, ours.end, strict=True):
            begin, keyed = round(float(start) * rate), round(float(end - start) * rate)
            count = min(keyed + round(_RELEASE * rate), len(tone), len(sound) - begin)
            damper = np.exp(np.minimum(keyed - np.arange(count), 0) / (_FADE * rate))
            sound[begin : begin + count] += (velocity / 127) ** 2 * tone[:count] * damper
    return _loud(sound)


def _tone(pitch: int, seconds: float, rate: int) -> np.ndarray:
    """A string struck at 0 that nothing stops, float32 [samples]; A4 is pitch 69 and 440 Hz."""
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    time = np.arange(int(np.ceil(seconds * rate)), dtype=np.float32) / rate
    decay = 0.7 * 2 ** ((pitch - 60) / 24)  # per second
    tone = np.zeros_like(time)
    for k in range(1, _PARTIALS + 1):
        if k * frequency < rate / 2:
            tone += np.sin(2 * np.pi * k * frequency * time) * np.exp(-k * decay * time) / k**2
    return tone * np.minimum(time / _ATTACK, 1)


def _loud(sound: np.ndarray) -> np.ndarray:
    """The same sound, float32 [samples], with its loudest sample at 0.9; silence stays silence."""
    loudest = float(np.abs(sound).max(initial=0))
    return (sound * (_LOUDEST / loudest if loudest else 1.0)).astype(np.float32)


def _wav(sound: np.ndarray) -> bytes:
    """A WAV file of float samples [samples, channels] between -1 and 1."""
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
            said = " ".join(done.stderr.split())[-200:]
            raise UserError(f"fluidsynth could not render with {font} ({said}); name another in {SOUNDFONT}")
        return _wav(_loud(np.fromfile(raw, dtype="<f4").reshape(-1, 2)))
