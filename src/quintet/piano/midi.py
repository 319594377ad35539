"""MIDI files to notes and back.

symusic reads a file of one voice, which is what a recorded performance is. It does not tell the channel of a note, so
what a pedal in another track holds; mido reads all other files, much slower.
"""

from __future__ import annotations

import io
import os
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quintet.errors import UserError
from quintet.piano.clock import seconds
from quintet.piano.notes import Notes, joined, notes
from quintet.piano.pedal import held, pedal, separated

Tracks = Literal["piano", "all"] | Sequence[str | int]
Source = str | os.PathLike[str] | bytes

DRUMS = 9
"""The channel of the drums in General MIDI, counted from 0."""
_PIANOS = range(8)  # programs of General MIDI, counted from 0
_PEDAL, _RESET = 64, 121  # controllers
_QUARTER = 500_000  # microseconds, where no tempo is given
_TICKS, _WRITTEN = 480, 2 * 480  # ticks of a quarter note and of a second in files that we write


@dataclass(frozen=True)
class _Voice:
    """Notes of one track, channel and program: int64 [notes, 4] of start and end in ticks, pitch, velocity."""

    track: int
    name: str
    channel: int
    program: int
    notes: np.ndarray


@dataclass(frozen=True)
class _File:
    """What a file holds: its clock (ticks of a quarter note; tempos int64 [changes, 2] of tick and microseconds of a
    quarter note), its voices, and for each channel the values of its pedal, int64 [values, 2] of tick and value."""

    quarter: int
    tempos: np.ndarray
    voices: list[_Voice]
    pedals: dict[int, np.ndarray]


def read_midi(source: Source, tracks: Tracks = "piano", sustain: bool = True) -> Notes:
    """The notes of a MIDI file, or of its bytes, by the file's tempo map.

    ``tracks``: ``"piano"`` for what a piano plays (programs 0 to 7, and where no program was chosen), or all where no
    track has such a program; ``"all"``; or names and numbers of tracks, counted from 0 as they stand in the file. Drums
    are never among them. With ``sustain`` a note lasts as long as it sounds, by the pedal of its channel, and no pitch
    overlaps itself; without, as long as its key was held. A note without an end is left out; one that ends where it
    starts lasts for a tick; what a pedal holds that is never released ends with the last key of the file.

    Raises UserError, with the file and the reason, where the file is broken, and where a track is not in it.
    """
    name, data = _bytes(source)
    file = _read(name, data, simple=isinstance(tracks, str))
    tables, last = [], max((int(voice.notes[:, 1].max()) for voice in file.voices), default=0)
    voices = [voice for voice in _picked(file.voices, tracks, name) if voice.channel != DRUMS]
    for channel in sorted({voice.channel for voice in voices}):
        ticks = np.concatenate([voice.notes for voice in voices if voice.channel == channel])
        start, end = (_seconds(file, ticks[:, column]) for column in (0, 1))
        played = notes(ticks[:, 2], ticks[:, 3], start, end)
        values = file.pedals.get(channel)
        if sustain and values is not None:
            played = held(played, pedal(_seconds(file, values[:, 0]), values[:, 1], _seconds(file, last)))
        tables.append(played)
    return separated(joined(*tables)) if sustain else joined(*tables)


def midi_bytes(table: Notes) -> bytes:
    """The notes as a MIDI file of one piano track: 480 ticks to a quarter note, 120 quarter notes a minute.

    Times are within 0.53 ms. A note lasts for at least a tick (1.04 ms), a velocity is at least 1 (0 is the end of a
    note in MIDI), and a note ends where its pitch is struck again, as a channel cannot say otherwise.
    """
    symusic, _ = _libraries()
    table = separated(table)
    start = np.rint(table.start * _WRITTEN).astype(np.int32)
    end = np.maximum(np.rint(table.end * _WRITTEN).astype(np.int32), start + 1)
    score = symusic.Score(_TICKS)
    score.tempos.append(symusic.Tempo(time=0, mspq=_QUARTER))
    track = symusic.Track(name="Piano", program=0)
    pitch, velocity = table.pitch.astype(np.int8), np.clip(table.velocity, 1, 127).astype(np.int8)
    track.notes = symusic.Note.from_numpy(start, end - start, pitch, velocity)
    score.tracks.append(track)
    return score.dumps_midi()


def write_midi(table: Notes, path: str | os.PathLike[str]) -> None:
    """Write `midi_bytes` of the notes to ``path``."""
    Path(path).write_bytes(midi_bytes(table))


def _libraries() -> tuple[Any, Any]:
    """symusic and mido."""
    try:
        import mido
        import symusic
    except ImportError:
        raise UserError("reading and writing MIDI needs the 'piano' extra: pip install 'quintet[piano]'") from None
    return symusic, mido


def _bytes(source: Source) -> tuple[str, bytes]:
    """What to call the source, and its content."""
    if isinstance(source, bytes):
        return "MIDI data", source
    try:
        return os.fspath(source), Path(source).read_bytes()
    except OSError as error:
        raise UserError(f"{os.fspath(source)}: cannot be read ({error.strerror})") from None


def _read(name: str, data: bytes, simple: bool) -> _File:
    """The file by the fast reader if that is enough, else by the other."""
    symusic, mido = _libraries()
    score = _parsed(name, symusic.Score.from_midi, data)
    if data[8:10] == b"\0\2":
        raise _broken(name, "it holds several pieces, one a track (type 2)")
    if score.ticks_per_quarter < 1:
        raise _broken(name, "a quarter note has no ticks")
    if simple and len(score.tracks) <= 1 and _one_plays(name, _chunks(data)):
        file = _one_voice(score)
    else:
        file = _any_voices(_parsed(name, mido.MidiFile, file=io.BytesIO(data)))
    if len(file.tempos) and file.tempos[:, 1].min() < 1:
        raise _broken(name, "a tempo is 0")
    return file


def _parsed(name: str, parse: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return parse(*arguments, **options)
    except Exception as error:  # on damaged files both libraries raise whatever comes up
        raise _broken(name, " ".join(str(error).split()) or type(error).__name__) from None


def _broken(name: str, reason: str) -> UserError:
    reason = reason.removesuffix(": iostream error")
    return UserError(f"{name}: is no MIDI file that can be read ({reason}); export it again or leave it out")


def _chunks(data: bytes) -> list[bytes]:
    """The tracks of data that a reader accepted, each with its head of 8 bytes."""
    found, at = [], 14
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "big")
        if data[at : at + 4] == b"MTrk":
            found.append(data[at:end])
        at = end
    return found


def _one_plays(name: str, chunks: list[bytes]) -> bool:
    """Whether one track alone holds messages to a channel, and all of them for one program."""
    in_order = sorted(chunks, key=len)
    return not any(_plays(name, one) for one in in_order[:-1]) and not any(map(_changes_program, in_order[-1:]))


def _changes_program(chunk: bytes) -> bool:
    """Whether a track may change its program on the way; the fast reader leaves out the pedal behind such a change.

    A change begins with a byte from 0xC0 to 0xCF. Other bytes may look like it, which costs the fast way alone.
    """
    values = np.frombuffer(chunk, np.uint8, offset=8)
    changes = np.flatnonzero(values & 0xF0 == 0xC0)
    before = values[: changes[0]] if len(changes) else values[:0]
    return len(changes) > 1 or bool(((before >= 0x80) & (before < 0xF0)).any())


def _plays(name: str, chunk: bytes) -> bool:
    """Whether a track holds messages to a channel. They begin with a byte from 0x80 to 0xEF, but so may others."""
    _, mido = _libraries()
    if not any(0x80 <= byte < 0xF0 for byte in chunk[8:]):
        return False
    header = b"MThd" + bytes([0, 0, 0, 6, 0, 0, 0, 1, 0, 96])
    file = _parsed(name, mido.MidiFile, file=io.BytesIO(header + chunk))
    return any(hasattr(message, "channel") for message in file.tracks[0])


def _one_voice(score: Any) -> _File:
    voices, pedals = [], {}
    for track in score.tracks:
        found, values = track.notes.numpy(), track.controls.numpy()
        channel = DRUMS if track.is_drum else 0
        start, length = found["time"].astype(np.int64), found["duration"].astype(np.int64)
        columns = (start, start + np.maximum(length, 1), found["pitch"], found["velocity"])
        voices.append(_Voice(0, track.name, channel, track.program, np.stack(columns, axis=1)))
        columns = [values[name].astype(np.int64) for name in ("time", "number", "value")]
        pedals[channel] = _pedal_values(np.stack(columns, axis=1))
    tempos = score.tempos.numpy()
    return _File(score.ticks_per_quarter, np.stack([tempos["time"], tempos["mspq"]], axis=1), voices, pedals)


def _any_voices(file: Any) -> _File:
    """All tracks of a `mido.MidiFile` in the order of time, as a program or a pedal holds for its channel in each."""
    names, tempos = [track.name.strip() for track in file.tracks], []
    programs, controls, voices = defaultdict(int), defaultdict(list), defaultdict(list)
    sounding: dict[tuple[int, int, int], deque] = defaultdict(deque)
    for tick, track, message in _merged(file):
        if message.type == "set_tempo":
            tempos.append((tick, message.tempo))
        elif message.type == "program_change":
            programs[message.channel] = message.program
        elif message.type == "control_change":
            controls[message.channel].append((tick, message.control, message.value))
        elif message.type in ("note_on", "note_off"):
            channel, pitch = message.channel, message.note
            if message.type == "note_on" and message.velocity:
                sounding[track, channel, pitch].append((tick, message.velocity, programs[channel]))
            elif sounding[track, channel, pitch]:  # the first that was struck ends first
                start, velocity, program = sounding[track, channel, pitch].popleft()
                voices[track, channel, program].append((start, max(tick, start + 1), pitch, velocity))
    return _File(
        file.ticks_per_beat,
        np.array(tempos, dtype=np.int64).reshape(-1, 2),
        [
            _Voice(track, names[track], channel, program, np.array(rows))
            for (track, channel, program), rows in sorted(voices.items())
        ],
        {channel: _pedal_values(np.array(rows)) for channel, rows in controls.items()},
    )


def _merged(file: Any) -> list[tuple[int, int, Any]]:
    """Tick, number of the track and message of everything in a file, in the order of time, then of the tracks."""
    events = []
    for number, track in enumerate(file.tracks):
        tick = 0
        for message in track:
            tick += message.time
            events.append((tick, number, message))
    return sorted(events, key=lambda event: event[:2])


def _pedal_values(controls: np.ndarray) -> np.ndarray:
    """Tick and value of the pedal, of int64 [values, 3] of tick, controller, value; a reset of all lets it go."""
    ours = controls[np.isin(controls[:, 1], (_PEDAL, _RESET))]
    return np.stack([ours[:, 0], np.where(ours[:, 1] == _PEDAL, ours[:, 2], 0)], axis=1)


def _picked(voices: list[_Voice], tracks: Tracks, name: str) -> list[_Voice]:
    if tracks == "all":
        return voices
    if tracks == "piano":
        return [voice for voice in voices if voice.program in _PIANOS and voice.channel != DRUMS] or voices
    wanted = [tracks] if isinstance(tracks, str) else tracks
    known = {one for voice in voices for one in (voice.track, voice.name)}
    if missing := [one for one in wanted if one not in known]:
        have = ", ".join(dict.fromkeys(f"{voice.track} {voice.name!r}" for voice in voices)) or "none"
        raise UserError(f"{name}: has no track {missing[0]!r} with notes; it has {have}")
    return [voice for voice in voices if voice.track in wanted or voice.name in wanted]


def _seconds(file: _File, tick: np.ndarray | int) -> Any:
    """When these ticks are, float64 of their shape."""
    tempos = file.tempos[np.argsort(file.tempos[:, 0], kind="stable")]
    ticks, lengths = (np.concatenate([[first], tempos[:, i]]) for i, first in enumerate((0, _QUARTER)))
    return seconds(tick, ticks, lengths / 1e6 / file.quarter)
