"""MIDI files of messages at ticks, and tables of notes as rows."""

from __future__ import annotations

import io

import mido
import numpy as np

from quintet.piano.notes import Notes

Event = tuple[int, mido.Message | mido.MetaMessage]


def on(tick: int, pitch: int, velocity: int = 64, channel: int = 0) -> Event:
    return tick, mido.Message("note_on", note=pitch, velocity=velocity, channel=channel)


def off(tick: int, pitch: int, channel: int = 0) -> Event:
    return tick, mido.Message("note_off", note=pitch, channel=channel)


def control(tick: int, value: int, channel: int = 0, number: int = 64) -> Event:
    return tick, mido.Message("control_change", control=number, value=value, channel=channel)


def program(tick: int, number: int, channel: int = 0) -> Event:
    return tick, mido.Message("program_change", program=number, channel=channel)


def tempo(tick: int, microseconds: int) -> Event:
    return tick, mido.MetaMessage("set_tempo", tempo=microseconds)


def name(text: str) -> Event:
    return 0, mido.MetaMessage("track_name", name=text)


def file_of(*tracks: list[Event], quarter: int = 500, kind: int = 1) -> bytes:
    """A MIDI file of these events; with the default, a tick is a millisecond until a tempo is set."""
    file = mido.MidiFile(ticks_per_beat=quarter, type=kind)
    for events in tracks:
        now, track = 0, mido.MidiTrack()
        for tick, message in sorted(events, key=lambda event: event[0]):
            track.append(message.copy(time=tick - now))
            now = tick
        file.tracks.append(track)
    stream = io.BytesIO()
    file.save(file=stream)
    return stream.getvalue()


def rows(table: Notes) -> list[tuple[int, int, float, float]]:
    """Pitch, velocity, start and end of each note, in milliseconds."""
    times = [np.round(1000 * times, 3).tolist() for times in (table.start, table.end)]
    return list(zip(table.pitch.tolist(), table.velocity.tolist(), *times, strict=True))
