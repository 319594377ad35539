"""Texts and music that a run wrote on its way, from the files in its folder ``samples/``."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quintet.track.jsonl import read_samples

_FILE = re.compile(r"step-(?P<step>\d+)(-(?P<name>.+))?(?P<ending>\.[a-z0-9]+)")
_SHOWN = 6  # steps of a sample of music: a picture takes tens of kilobytes


@dataclass(frozen=True)
class TextSample:
    """Texts of one prompt by step, the last step first."""

    name: str
    texts: Sequence[tuple[int, str]]


@dataclass(frozen=True)
class Played:
    """Music of one step: a picture, a MIDI file and a sound as data addresses (RFC 2397), "" for what is not there."""

    step: int
    picture: str
    midi: str
    sound: str
    file: str


@dataclass(frozen=True)
class MusicSample:
    """Music of one piece or task by step, the last step first; ``steps`` counts those that are in the folder."""

    name: str
    played: Sequence[Played]
    steps: int


def text_samples(folder: Path) -> list[TextSample]:
    """The texts in ``folder``."""
    found: dict[str, list[tuple[int, str]]] = {}
    for step, _, file in _files(folder, ".txt"):
        for name, text in read_samples(file):
            found.setdefault(name, []).append((step, text))
    return [TextSample(name, sorted(texts, reverse=True)) for name, texts in found.items()]


def music_samples(folder: Path, *, sound: bool = False) -> list[MusicSample]:
    """The music in ``folder``: of each sample the last step and a few before it, spread evenly. With ``sound`` the last
    one of each is rendered where there is no file of it."""
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
    heard = _address(files.get(".wav"), "audio/wav")
    if sound and not heard and midi is not None:
        from quintet.piano.midi import read_midi
        from quintet.piano.rendering import render

        heard = _encoded(render(read_midi(midi)), "audio/wav")
    return Played(
        step, _address(files.get(".png"), "image/png"), _address(midi, "audio/midi"), heard, midi.name if midi else ""
    )


def _files(folder: Path, ending: str) -> Iterable[tuple[int, str, Path]]:
    """Step, name of the sample and file, in the order of the names."""
    for file in sorted(folder.glob(f"step-*{ending}")):
        match = _FILE.fullmatch(file.name)
        if match is not None:
            yield int(match["step"]), match["name"] or "", file


def _spread(steps: list[int]) -> list[int]:
    """At most `_SHOWN` of ``steps``, the first and the last among them."""
    if len(steps) <= _SHOWN:
        return steps
    return [steps[round(index * (len(steps) - 1) / (_SHOWN - 1))] for index in range(_SHOWN)]


def _address(file: Path | None, kind: str) -> str:
    return "" if file is None else _encoded(file.read_bytes(), kind)


def _encoded(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
