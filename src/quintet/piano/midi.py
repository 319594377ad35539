"""Conversion between MIDI files and notes.

`quintet.piano.midi_repair` drops what readers cannot handle. Then symusic reads files of one voice, such as recorded
performances. It reports neither the channel of a note, which decides which pedal holds it, nor a missing end of a note,
so mido reads all other files, which is much slower.
"""

import io
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from encodings.aliases import aliases
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quintet.errors import UserError
from quintet.libraries import require
from quintet.piano.midi_repair import ENDS_NOTES, FAULTS, WITHOUT_END, NotMidi, repaired
from quintet.piano.notes import Notes, held, joined, notes, pedal, seconds_at, separated

Tracks = Literal["piano", "all"] | Sequence[str | int]
Source = str | os.PathLike[str] | bytes
_Stroke = tuple[int, int, int]  # tick, velocity (0 releases) and program
_END_ALL = -1  # instead of a velocity

DRUMS = 9
"""The channel of the drums in General MIDI, counted from 0."""
_PIANOS = range(8)  # programs of General MIDI, counted from 0
_PEDAL, _SOUND_OFF, _RESET = 64, 120, 121  # controllers
_QUARTER = 500_000  # microseconds, the default tempo
_TICKS, _WRITTEN = 480, 2 * 480  # ticks of a quarter note and of a second in files that we write


class MissingTrack(UserError):
    """The file lacks a requested track."""


@dataclass(frozen=True)
class _Voice:
    """Notes of one track, channel and program: int64 [notes, 4] of start and end in ticks, pitch, velocity.

    ``name`` is in the unknown charset of the file.
    """

    track: int
    name: bytes
    channel: int
    program: int
    notes: np.ndarray


@dataclass(frozen=True)
class _File:
    """A file: its clock (ticks per quarter note; tempos, int64 [changes, 2] of tick and microseconds per quarter note),
    its voices, the pedal of each channel, int64 [values, 2] of tick and value, and the number of notes without an
    end."""

    quarter: int
    tempos: np.ndarray
    voices: list[_Voice]
    pedals: dict[int, np.ndarray]
    without_end: int = 0


def read_midi(
    source: Source,
    tracks: Tracks = "piano",
    sustain: bool = True,
    faults: Counter[str] | None = None,
    name: str = "MIDI data",
) -> Notes:
    """Return the notes of a MIDI file, or of its bytes, by the file's tempo map. ``name`` is the name of bytes in
    errors.

    ``tracks`` is ``"piano"`` for tracks with a piano's program (0 to 7) or without a program, or for all tracks if none
    has such a program; ``"all"``; or names of tracks, in any charset, or their numbers, counted from 0 in the order of
    the file. Drums are always excluded.

    A note lasts until its key is released or struck again, or until a mode message (controllers 120, 123 to 127) ends
    all notes of its channel. If a key is struck several times in a tick, each release ends one note, and the last
    release ends all of them. A note without an end is dropped; a note that ends at its start lasts one tick. With
    ``sustain`` a note lasts as long as the pedal of its channel lets it sound, and no pitch overlaps itself; a pedal
    that is never released comes up with the last key of the file.

    ``faults`` counts what was dropped, by `quintet.piano.midi_repair.FAULTS`.

    Raises UserError, with the file and the reason, if nothing can be read, and MissingTrack if a track does not exist.
    """
    name, data = (name, source) if isinstance(source, bytes) else _content(source)
    file = _read(name, data, isinstance(tracks, str), Counter() if faults is None else faults)
    tables: list[Notes] = []
    last = max((int(voice.notes[:, 1].max(initial=0)) for voice in file.voices), default=0)
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


def faults_line(faults: Counter[str]) -> str:
    """Describe what was dropped from a file; empty if nothing was."""
    return "; ".join(f"{count:,} × {FAULTS[fault]}" for fault, count in sorted(faults.items()))


def midi_bytes(table: Notes) -> bytes:
    """Return the notes as a MIDI file of one piano track: 480 ticks per quarter note, 120 quarter notes per minute.

    Times are exact to 0.53 ms. A note lasts at least one tick (1.04 ms), a velocity is at least 1 (in MIDI 0 ends a
    note), and a note ends when its pitch is struck again, because a channel cannot express overlaps.
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
    """Return symusic and mido."""
    purpose = "reading and writing MIDI"
    return require("symusic", "piano", purpose), require("mido", "piano", purpose)


def _content(file: str | os.PathLike[str]) -> tuple[str, bytes]:
    """Return the name and the bytes of a file."""
    try:
        return os.fspath(file), Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"{os.fspath(file)}: cannot be read ({error.strerror})") from None


def _read(name: str, data: bytes, simple: bool, faults: Counter[str]) -> _File:
    """Read the file with symusic if it has one voice, otherwise with mido."""
    symusic, mido = _libraries()
    try:
        valid = repaired(data)
    except NotMidi as reason:
        raise UserError(
            f"{name}: is no MIDI file that can be read ({reason}); export it again or leave it out"
        ) from None
    faults.update(valid.faults)
    if simple and valid.one_voice:
        return _one_voice(symusic.Score.from_midi(valid.data))
    file = _any_voices(mido.MidiFile(file=io.BytesIO(valid.data)))
    if file.without_end:
        faults[WITHOUT_END] += file.without_end
    return file


def _one_voice(score: Any) -> _File:
    voices: list[_Voice] = []
    pedals: dict[int, np.ndarray] = {}
    for track in score.tracks:
        played, values = track.notes.numpy(), track.controls.numpy()
        channel = DRUMS if track.is_drum else 0
        start, length = played["time"].astype(np.int64), played["duration"].astype(np.int64)
        columns = (start, start + np.maximum(length, 1), played["pitch"], played["velocity"])
        voices.append(_Voice(0, b"", channel, track.program, np.stack(columns, axis=1)))
        columns = [values[name].astype(np.int64) for name in ("time", "number", "value")]
        pedals[channel] = _pedal_values(np.stack(columns, axis=1))
    tempos = score.tempos.numpy()
    return _File(score.ticks_per_quarter, np.stack([tempos["time"], tempos["mspq"]], axis=1), voices, pedals)


def _any_voices(file: Any) -> _File:
    """Read all tracks of a `mido.MidiFile` in the order of time, because programs and pedals apply to all tracks of
    their channel."""
    names: list[bytes] = [track.name.encode("latin-1") for track in file.tracks]
    tempos: list[tuple[int, int]] = []
    programs: dict[int, int] = defaultdict(int)  # by channel
    controls: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    strokes: dict[tuple[int, int, int], list[_Stroke]] = defaultdict(list)
    voices: dict[tuple[int, int, int], list[tuple[int, int, int, int]]] = defaultdict(list)
    for tick, track, message in _merged(file):
        if message.type == "set_tempo":
            tempos.append((tick, message.tempo))
        elif message.type == "program_change":
            programs[message.channel] = message.program
        elif message.type == "control_change":
            controls[message.channel].append((tick, message.control, message.value))
            if message.control in ENDS_NOTES:
                for (_, channel, _), key in strokes.items():
                    if channel == message.channel:
                        key.append((tick, _END_ALL, 0))
        elif message.type in ("note_on", "note_off"):
            velocity = message.velocity if message.type == "note_on" else 0
            strokes[track, message.channel, message.note].append((tick, velocity, programs[message.channel]))
    without_end = 0
    for (track, channel, pitch), key in strokes.items():
        ended, left = _paired(key)
        without_end += left
        for start, velocity, program, end in ended:
            voices[track, channel, program].append((start, max(end, start + 1), pitch, velocity))
    return _File(
        file.ticks_per_beat,
        np.array(tempos, dtype=np.int64).reshape(-1, 2),
        [
            _Voice(track, names[track], channel, program, np.array(rows))
            for (track, channel, program), rows in sorted(voices.items())
        ],
        {channel: _pedal_values(np.array(rows)) for channel, rows in controls.items()},
        without_end,
    )


def _paired(strokes: list[_Stroke]) -> tuple[list[tuple[int, int, int, int]], int]:
    """Return start, velocity, program and end of each note of one key, track and channel, and the number without an
    end.

    A release may come after the next stroke in the same tick; it then belongs to the note before.
    """
    ended: list[tuple[int, int, int, int]] = []
    struck: list[_Stroke] = []
    released: int | None = None
    late = 0
    for tick, velocity, program in strokes:
        if velocity > 0:
            if struck and struck[0][0] < tick:  # struck again
                ended += [(*note, tick if released is None else released) for note in struck]
                late, struck = len(struck), []
            elif not struck:
                late = 0
            released = released if struck else None
            struck.append((tick, velocity, program))
        elif struck and velocity == 0 and late and struck[0][0] == tick:
            late -= 1
        elif struck:
            count = len(struck) if velocity == _END_ALL else 1
            ended += [(*note, tick) for note in struck[:count]]
            struck, released = struck[count:], tick
    if released is not None:
        ended += [(*note, released) for note in struck]
        struck = []
    return ended, len(struck)


def _merged(file: Any) -> list[tuple[int, int, Any]]:
    """Return tick, track number and message of all events of a file, in the order of time, then of tracks."""
    events: list[tuple[int, int, Any]] = []
    for number, track in enumerate(file.tracks):
        tick = 0
        for message in track:
            tick += message.time
            events.append((tick, number, message))
    return sorted(events, key=lambda event: event[:2])


def _pedal_values(controls: np.ndarray) -> np.ndarray:
    """Return tick and value of the pedal from ``controls``, int64 [values, 3] of tick, controller, value.

    A reset of all controllers releases the pedal. "All sound off" silences the held notes; the pedal is down again a
    tick later.
    """
    relevant = controls[np.isin(controls[:, 1], (_PEDAL, _RESET, _SOUND_OFF))]
    number, value = relevant[:, 1], np.where(relevant[:, 1] == _PEDAL, relevant[:, 2], 0)
    silenced = np.flatnonzero(number == _SOUND_OFF)
    ticks: np.ndarray = relevant[:, 0]
    last = np.searchsorted(ticks, ticks[silenced], side="right") - 1  # of the same tick
    latest = np.maximum.accumulate(np.where(number == _SOUND_OFF, -1, np.arange(len(relevant))))[last]
    restored = np.stack([ticks[silenced] + 1, np.where(latest >= 0, value[latest], 0)], axis=1)
    table = np.concatenate([restored, np.stack([ticks, value], axis=1)])
    return table[np.argsort(table[:, 0], kind="stable")]


def _picked(voices: list[_Voice], tracks: Tracks, name: str) -> list[_Voice]:
    if tracks == "all":
        return voices
    if tracks == "piano":
        return [voice for voice in voices if voice.program in _PIANOS and voice.channel != DRUMS] or voices
    numbers: set[int] = set()
    for track in [tracks] if isinstance(tracks, str) else tracks:
        matching = _matching_tracks(voices, track)
        if not matching:
            have = ", ".join(dict.fromkeys(f"{voice.track} {_shown(voice.name)!r}" for voice in voices)) or "none"
            raise MissingTrack(f"{name}: has no track {track!r} with notes; it has {have}")
        numbers |= matching
    return [voice for voice in voices if voice.track in numbers]


def _matching_tracks(voices: list[_Voice], track: str | int) -> set[int]:
    """Return the numbers of the tracks of this number or name; an int can also be a name, and a text a number."""
    by_number = {voice.track for voice in voices if str(voice.track) == str(track)}
    names = {voice.track: voice.name for voice in voices}
    wanted = _plain(str(track))
    by_name = {number for number, name in names.items() if _shown(name) == wanted}
    by_name = by_name or {number for number, name in names.items() if wanted in _readings(name)}
    return (by_number or by_name) if isinstance(track, int) else (by_name or by_number)


def _shown(name: bytes) -> str:
    """Return a name as UTF-8, or as Latin-1 if it is no UTF-8."""
    try:
        return _plain(name.decode())
    except UnicodeDecodeError:
        return _plain(name.decode("latin-1"))


def _readings(name: bytes) -> Iterator[str]:
    """Yield a name in each charset in which it can be read, because a MIDI file does not name its charset."""
    for charset in dict.fromkeys(aliases.values()):
        try:
            yield _plain(name.decode(charset))
        except (ValueError, LookupError):  # cannot be read in it, or is no charset
            continue


def _plain(name: str) -> str:
    """Strip a name and compose its letters with their accents."""
    return unicodedata.normalize("NFC", name.strip("\0\ufeff \t\r\n"))


def _seconds(file: _File, tick: np.ndarray | int) -> Any:
    """Return the times of ``tick`` in seconds, float64 of its shape."""
    tempos = file.tempos[np.argsort(file.tempos[:, 0], kind="stable")]
    ticks, lengths = (np.concatenate([[first], tempos[:, i]]) for i, first in enumerate((0, _QUARTER)))
    return seconds_at(tick, ticks, lengths / 1e6 / file.quarter)
