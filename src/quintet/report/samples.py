"""Texts and music that a run wrote during training, from the files in its folder ``samples/``."""

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quintet.track.jsonl import read_samples

_FILE = re.compile(r"step-(?P<step>\d+)(-(?P<name>.+))?(?P<ending>\.[a-z0-9]+)")
_SHOWN = 6  # steps of each sample of music, because a picture takes tens of kilobytes


@dataclass(frozen=True)
class TextSample:
    """Texts of one prompt by step, the last step first."""

    name: str
    texts: Sequence[tuple[int, str]]


@dataclass(frozen=True)
class Played:
    """Music of one step: picture, MIDI file and sound as data URLs (RFC 2397), "" for one that does not exist."""

    step: int
    picture: str
    midi: str
    sound: str
    file: str


@dataclass(frozen=True)
class MusicSample:
    """Music of one piece or task by step, the last step first; ``steps`` counts all that are in the folder."""

    name: str
    played: Sequence[Played]
    steps: int


def text_samples(folder: Path) -> list[TextSample]:
    """Return the texts in ``folder``."""
    samples: dict[str, list[tuple[int, str]]] = {}
    for step, _, file in _files(folder, ".txt"):
        for name, text in read_samples(file):
            samples.setdefault(name, []).append((step, text))
    return [TextSample(name, sorted(texts, reverse=True)) for name, texts in samples.items()]


def music_samples(folder: Path, *, sound: bool = False) -> list[MusicSample]:
    """Return the music in ``folder``: the last step of each sample and a few before it, spread evenly. With ``sound``
    the last one of each is rendered if it has no sound file."""
    files: dict[str, dict[int, dict[str, Path]]] = {}
    for ending in (".png", ".mid", ".wav"):
        for step, name, file in _files(folder, ending):
            files.setdefault(name, {}).setdefault(step, {})[ending] = file
    samples: list[MusicSample] = []
    for name, steps in sorted(files.items()):
        chosen = _spread(sorted(steps, reverse=True))
        played = [_played(step, steps[step], sound=sound and step == chosen[0]) for step in chosen]
        samples.append(MusicSample(name, played, len(steps)))
    return samples


def _played(step: int, files: dict[str, Path], *, sound: bool) -> Played:
    midi = files.get(".mid")
    audio = _data_url(files.get(".wav"), "audio/wav")
    if sound and not audio and midi is not None:
        from quintet.piano.midi import read_midi
        from quintet.piano.rendering import render

        audio = _encoded(render(read_midi(midi)), "audio/wav")
    picture = _data_url(files.get(".png"), "image/png")
    return Played(step, picture, _data_url(midi, "audio/midi"), audio, midi.name if midi else "")


def _files(folder: Path, ending: str) -> Iterable[tuple[int, str, Path]]:
    """Yield step, name of the sample and file, in the order of the file names."""
    for file in sorted(folder.glob(f"step-*{ending}")):
        match = _FILE.fullmatch(file.name)
        if match is not None:
            yield int(match["step"]), match["name"] or "", file


def _spread(steps: list[int]) -> list[int]:
    """Return at most `_SHOWN` of ``steps``, with the first and the last."""
    if len(steps) <= _SHOWN:
        return steps
    return [steps[round(index * (len(steps) - 1) / (_SHOWN - 1))] for index in range(_SHOWN)]


def _data_url(file: Path | None, kind: str) -> str:
    return "" if file is None else _encoded(file.read_bytes(), kind)


def _encoded(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
