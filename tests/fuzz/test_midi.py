"""MIDI files against symusic, mido and music21, whole and damaged."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintet.errors import UserError
from quintet.piano.midi import read_midi
from quintet.piano.midi_repair import FAULTS, WITHOUT_END

mido = pytest.importorskip("mido")
symusic = pytest.importorskip("symusic")

Message = tuple[int, int, int, int, int]
"""Tick, track, status, and two values; the second is 0 where there is one."""
Row = tuple[int, int, float, float]
"""Pitch, velocity, start and end in milliseconds."""
Note = tuple[int, int, int, int, int]
"""Channel, pitch, velocity, and start and end in ticks."""
NOTE_OFF, NOTE_ON, CONTROL, PROGRAM, BEND = 0x80, 0x90, 0xB0, 0xC0, 0xE0
DRUMS = 9
ALL = -1  # in the place of a velocity: a mode message
KINDS = ["note"] * 5 + ["release"] * 3 + ["pedal", "mode", "program", "bend", "meta", "tempo"]
MODES = [1, 120, 121, 122, 123, 127]
METAS = [b"\xff\x03\x02\xe9a", b"\xff\x05\x02la", b"\xff\x59\x02\xff\0", b"\xff\x58\x04\3\2\x18\x08", b"\xf0\2\1\xf7"]


@dataclass(frozen=True)
class Reading:
    """The messages of a file in the order of time, then of tracks, and its clock."""

    quarter: int
    messages: list[Message]
    tempos: list[tuple[int, int]]

    def milliseconds(self, tick: int) -> float:
        at, length, total = 0, 500_000, 0.0
        for begin, tempo in self.tempos:
            if begin >= tick:
                break
            total, at, length = total + (begin - at) * length, begin, tempo
        return (total + (tick - at) * length) / 1000 / self.quarter


def by_the_guide(file: Reading, sustain: bool) -> tuple[list[Row], int]:
    """The notes of all tracks but drums by the rules of the guide to piano, and how many notes have no end."""
    keys: dict[tuple[int, int, int], list[tuple[int, int]]] = defaultdict(list)  # tick, and velocity or 0 or ALL
    for tick, track, status, value, other in file.messages:
        kind, channel = status & 0xF0, status & 15
        if kind in (NOTE_ON, NOTE_OFF):
            keys[track, channel, value].append((tick, other if kind == NOTE_ON else 0))
        elif kind == CONTROL and value in (120, 123, 124, 125, 126, 127):
            for place in [place for place in keys if place[1] == channel]:
                keys[place].append((tick, ALL))
    found, without_end = [], 0
    for (_, channel, pitch), events in keys.items():
        groups: list[dict] = []  # what is struck in one tick, with its releases
        for tick, velocity in events:
            last = groups[-1] if groups else {"tick": -1, "struck": [], "ends": []}
            open_notes = len(last["struck"]) - len(last["ends"])
            if velocity > 0 and (last["tick"] != tick or not open_notes):
                groups.append({"tick": tick, "struck": [velocity], "ends": [], "late": open_notes})
            elif velocity > 0:
                last["struck"].append(velocity)
            elif open_notes and velocity == 0 and last["tick"] == tick and last["late"]:
                last["late"] -= 1  # of the note before
            elif open_notes:
                last["ends"] += [tick] * (open_notes if velocity == ALL else 1)
        for group, following in zip(groups, [*groups[1:], None], strict=True):
            for index, velocity in enumerate(group["struck"]):
                ends = group["ends"][index:] or group["ends"][-1:] or ([following["tick"]] if following else [])
                without_end += not ends
                found += [(channel, pitch, velocity, group["tick"], max(ends[0], group["tick"] + 1))] if ends else []
    kept = [note for note in found if note[0] != DRUMS]
    if sustain:
        kept = sounding(kept, file, max((note[4] for note in found), default=0))
    rows = [
        (pitch, velocity, file.milliseconds(start), file.milliseconds(end)) for _, pitch, velocity, start, end in kept
    ]
    return sorted(rows, key=lambda row: (row[2], row[0], row[3], row[1])), without_end


def sounding(found: list[Note], file: Reading, last: int) -> list[Note]:
    """The notes by the pedal of their channels, each pitch once at a time."""
    once: dict[tuple[int, int], tuple[int, int]] = {}
    for channel, pitch, velocity, start, end in found:
        values = pedal(file, channel)
        before, after = ([value for value in values if (value[0] <= end) == side] for side in (True, False))
        if before and before[-1][1] >= 64:
            end = next((tick for tick, value in after if value < 64), last)
        loud, late = once.get((pitch, start), (0, 0))
        once[pitch, start] = max(loud, velocity), max(late, end)
    return [
        (0, pitch, velocity, start, min([end, *(again for key, again in once if key == pitch and again > start)]))
        for (pitch, start), (velocity, end) in once.items()
    ]


def pedal(file: Reading, channel: int) -> list[tuple[int, int]]:
    """Ticks and values of a pedal. All sound off lets it go for a tick."""
    controls = [(tick, *values) for tick, _, status, *values in file.messages if status == CONTROL | channel]
    found = [(tick, value if number == 64 else 0, 1) for tick, number, value in controls if number in (64, 120, 121)]
    for tick in [tick for tick, number, _ in controls if number == 120]:
        told = [value if number == 64 else 0 for at, number, value in controls if at <= tick and number in (64, 121)]
        found.append((tick + 1, told[-1] if told else 0, 0))
    return [(tick, value) for tick, value, _ in sorted(found, key=lambda row: (row[0], row[2]))]


def by_mido(data: bytes) -> Reading:
    file, messages, tempos = mido.MidiFile(file=io.BytesIO(data)), [], []
    for number, track in enumerate(file.tracks):
        tick = 0
        for message in track:
            tick += message.time
            if message.type == "set_tempo":
                tempos.append((tick, message.tempo))
            elif not message.is_meta and hasattr(message, "channel"):
                messages.append((tick, number, *[*message.bytes(), 0][:3]))
    return reading(file.ticks_per_beat, messages, tempos)


def by_music21(data: bytes) -> Reading:
    """Its reader of events; it knows nothing of tempos that is not in them."""
    midi = pytest.importorskip("music21").midi
    file, messages, tempos = midi.MidiFile(), [], []
    file.readstr(data)
    for number, track in enumerate(file.tracks):
        tick = 0
        for event in track.events:
            if event.isDeltaTime():
                tick += event.time
            elif event.type == midi.MetaEvents.SET_TEMPO:
                tempos.append((tick, int.from_bytes(event.data, "big")))
            elif isinstance(event.type, midi.ChannelVoiceMessages):
                status, *values = event.getBytes()
                messages.append((tick, number, *[status, *values, 0][:3]))
    return reading(file.ticksPerQuarterNote, messages, tempos)


def reading(quarter: int, messages: list[Message], tempos: list[tuple[int, int]]) -> Reading:
    return Reading(quarter, sorted(messages, key=lambda row: row[:2]), sorted(tempos, key=lambda row: row[0]))


def by_symusic(data: bytes) -> list[Row]:
    """Its own notes, first struck first ended, on the clock that it has read."""
    score = symusic.Score.from_midi(data)
    clock = reading(score.ticks_per_quarter, [], [(tempo.time, tempo.mspq) for tempo in score.tempos])
    return sorted(
        (note.pitch, note.velocity, *(clock.milliseconds(tick) for tick in (note.start, max(note.end, note.start + 1))))
        for track in score.tracks
        if not track.is_drum
        for note in track.notes
    )


def ours(data: bytes, sustain: bool) -> tuple[list[Row], Counter[str]]:
    faults: Counter[str] = Counter()
    table = read_midi(data, "all", sustain, faults)
    columns = (
        table.pitch.tolist(),
        table.velocity.tolist(),
        (1000 * table.start).tolist(),
        (1000 * table.end).tolist(),
    )
    return list(zip(*columns, strict=True)), faults


def same(one: list[Row], other: list[Row]) -> bool:
    """Whether they are the same notes, but for the rounding of their times."""
    ordered = [sorted(rows, key=lambda row: (*row[:2], round(row[2], 6), row[3])) for rows in (one, other)]
    return len(one) == len(other) and all(
        a[:2] == b[:2] and a[2:] == pytest.approx(b[2:], abs=1e-6, rel=1e-9) for a, b in zip(*ordered, strict=True)
    )


def variable(value: int) -> bytes:
    return b"".join(bytes([value >> shift & 0x7F | 0x80]) for shift in (21, 14, 7) if value >> shift) + bytes(
        [value & 0x7F]
    )


@st.composite
def tracks(draw: st.DrawFn, whole: bool) -> list[list[tuple[int, bytes]]]:
    """Tracks of delta times and events; where they are ``whole``, every key comes up before it is struck again."""
    found, channels = [], st.sampled_from([0, 1, DRUMS])
    for _ in range(draw(st.integers(1, 3))):
        events, down = [], []
        lone = draw(channels)
        for kind in draw(st.lists(st.sampled_from(KINDS), max_size=24)):
            delta = draw(st.sampled_from([0, 0, 1, 5, 120, 200, 17_000]))
            channel, value = lone if whole else draw(channels), draw(st.integers(0, 127))
            pitch = draw(st.integers(58, 61))
            if kind == "note":
                if whole and (channel, pitch) in down:
                    kind = "release"
                else:
                    down.append((channel, pitch))
                    events.append((delta, bytes([NOTE_ON | channel, pitch, max(value, 1)])))
            if kind == "release" and down:
                place = down.pop(down.index((channel, pitch)) if (channel, pitch) in down else 0)
                off = draw(st.sampled_from([(NOTE_OFF, 0), (NOTE_OFF, 64), (NOTE_ON, 0)]))
                events.append((delta, bytes([off[0] | place[0], place[1], off[1]])))
            elif kind == "pedal":
                events.append((delta, bytes([CONTROL | channel, 64, value])))
            elif kind == "mode":
                events.append(
                    (delta, bytes([CONTROL | channel, draw(st.sampled_from([1, 121, 122] if whole else MODES)), 0]))
                )
            elif kind == "program":
                events.append((delta, bytes([PROGRAM | channel, value])))
            elif kind == "bend":
                events.append((delta, bytes([BEND | channel, value, pitch])))
            elif kind == "meta":
                events.append((delta, draw(st.sampled_from(METAS))))
            elif kind == "tempo":
                events.append((delta, b"\xff\x51\x03" + draw(st.integers(1, (1 << 24) - 1)).to_bytes(3, "big")))
        if whole:
            events += [(3, bytes([NOTE_OFF | channel, pitch, 0])) for channel, pitch in down]
        found.append(events)
    return found


def file_of(found: list[list[tuple[int, bytes]]], quarter: int, running: bool) -> bytes:
    """A MIDI file; with ``running``, a status is written only where it changes."""
    data = b"MThd" + b"".join(
        value.to_bytes(size, "big") for value, size in ((6, 4), (1, 2), (len(found), 2), (quarter, 2))
    )
    for events in found:
        body, status = b"", 0
        for delta, event in events:
            body += variable(delta) + (event[1:] if running and event[0] == status else event)
            status = event[0] if event[0] < 0xF0 else 0
        body += b"\0\xff\x2f\0"
        data += b"MTrk" + len(body).to_bytes(4, "big") + body
    return data


def files(whole: bool) -> st.SearchStrategy[bytes]:
    return st.builds(file_of, tracks(whole), st.sampled_from([1, 24, 96, 480, 32767]), st.booleans())


@given(files(whole=False), st.booleans())
def test_whatever_is_played_is_read_as_the_guide_says(data: bytes, sustain: bool) -> None:
    expected, without_end = by_the_guide(by_mido(data), sustain)
    found, faults = ours(data, sustain)
    assert same(found, expected)
    assert faults == Counter({WITHOUT_END: without_end} if without_end else {})


@given(files(whole=True))
def test_notes_with_ends_of_their_own_are_those_of_symusic_mido_and_music21(data: bytes) -> None:
    found, faults = ours(data, sustain=False)
    assert same(found, by_symusic(data))
    for reader in (by_mido, by_music21):
        assert same(found, by_the_guide(reader(data), sustain=False)[0])
    assert not faults


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A file of which bytes are altered, lost or put in, or whose end is cut."""
    data = bytearray(draw(files(draw(st.booleans()))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        how = draw(st.sampled_from(["alter", "alter", "alter", "lose", "put in", "cut"]))
        byte = draw(st.one_of(st.integers(0, 255), st.sampled_from([0, 0x7F, 0x80, 0x90, 0xB0, 0xF0, 0xF7, 0xFF])))
        if how == "alter":
            data[at] = byte
        elif how == "lose":
            del data[at : at + draw(st.integers(1, 4))]
        elif how == "put in":
            data[at:at] = draw(st.sampled_from([bytes([byte]), b"MTrk", b"XFIH\0\0\0\2ab", b"\0\xff\x59\2\xee\1"]))
        else:
            del data[at:]
        if not data:
            data = bytearray(b"M")
    return bytes(data)


def attempt(reader: Callable[[bytes], list[Row]], data: bytes) -> list[Row] | None:
    try:
        return reader(data)
    except Exception:  # on damaged files these libraries raise whatever comes up
        return None


@given(damaged(), st.booleans())
def test_damaged_bytes_are_notes_or_one_error_and_what_others_agree_on(data: bytes, sustain: bool) -> None:
    others = [attempt(by_symusic, data)]
    others += [attempt(lambda data, one=one: by_the_guide(one(data), False)[0], data) for one in (by_mido, by_music21)]
    read = [rows for rows in others if rows is not None]
    agreed = len(read) >= 2 and all(same(read[0], rows) for rows in read[1:])
    try:
        found, faults = ours(data, sustain)
    except UserError as error:
        (line,) = error.problems
        assert line.startswith("MIDI data: is no MIDI file that can be read (")
        assert "\n" not in line
        assert not (agreed and read[0])
        return
    assert set(faults) <= set(FAULTS)
    assert all(0 <= pitch < 128 and 0 < velocity < 128 and 0 <= start < end for pitch, velocity, start, end in found)
    # The others leave out what is not announced, and mido alone keeps the messages that end notes of other tracks.
    if agreed and others[1] is not None and not {"midi_track_count", "midi_track_length"} & faults.keys():
        assert same(ours(data, sustain=False)[0], read[0])
