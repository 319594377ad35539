"""Repair of broken MIDI files before a library reads them.

A pass over the bytes copies the messages that notes depend on (those of channels, tempos and names of tracks), drops
all others, and counts what is broken. It follows Standard MIDI Files 1.0 (RP-001) and MIDI 1.0;
https://midi.org/specifications.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from quintet.libraries import require

_HEADER, _TRACK = b"MThd", b"MTrk"
_META, _SYSEX, _ESCAPE = 0xFF, 0xF0, 0xF7
_NAME, _END, _TEMPO = 0x03, 0x2F, 0x51  # types of meta events
_END_OF_TRACK = bytes([0, _META, _END, 0])
_NOTHING = bytes([_META, 1, 0])  # an empty text
_DATA_BYTES = {0x8: 2, 0x9: 2, 0xA: 2, 0xB: 2, 0xC: 1, 0xD: 1, 0xE: 2}  # by the upper half of a status
_SYSTEM_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1}  # all other system messages have none
_LAST_TICK = (1 << 31) - 1  # symusic counts ticks in 32 bits
_LONGEST = (1 << 28) - 1  # ticks between two events, in the four bytes that a delta time has

ENDS_NOTES = frozenset({120, 123, 124, 125, 126, 127})
"""Controllers that end all notes of their channel (MIDI 1.0, channel mode messages)."""

WITHOUT_END = "notes_without_end"
FAULTS = {
    "midi_wrapper": "bytes around the file, as of RIFF or MacBinary",
    "midi_header": "a header of another length, or of no known type",
    "midi_track_count": "another number of tracks than the header says",
    "midi_chunks": "what stands between tracks, or after them",
    "midi_track_length": "tracks that are shorter or longer than they say, as where a file is cut",
    "midi_end_of_track": "tracks without the event that ends them",
    "midi_after_the_end": "tracks with bytes after the event that ends them",
    "midi_unreadable_rest": "tracks that are no events from some byte on, and are read up to there",
    "midi_meta_events": "meta events that cannot be decoded, such as a key with 18 flats or a tempo of 0",
    "midi_system_messages": "system messages, which have no place in a file",
    "midi_running_status": "messages whose status was left out after a meta event or an exclusive message",
    "midi_values": "values above 127: a velocity or a controller's value becomes 127, any other loses its message",
    WITHOUT_END: "notes that nothing ends",
}
"""The descriptions of all faults, by the names under which they are counted."""


class NotMidi(Exception):
    """The reason why bytes hold no piece of music."""


@dataclass
class _Findings:
    """The findings of a pass over a file: faults by `FAULTS`, and how its keys are played."""

    faults: Counter[str] = field(default_factory=Counter[str])
    channels: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])  # track and channel
    programs: int = 0
    played: bool = False  # True after a message other than a program change
    down: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])  # channel and pitch
    clear: bool = True

    def hear(self, status: int, content: bytes) -> None:
        """Record a valid message to a channel."""
        kind, channel = status >> 4, status & 15
        if kind == 0xC:
            self.programs += 1
            self.clear &= not self.played
            return
        self.played = True
        if kind == 0x9 and content[1]:
            self.clear &= (channel, content[0]) not in self.down
            self.down.add((channel, content[0]))
        elif kind in (0x8, 0x9):
            self.down.discard((channel, content[0]))
        elif kind == 0xB:
            self.clear &= content[0] not in ENDS_NOTES


@dataclass(frozen=True)
class Repaired:
    """A valid file: ``data`` has a header of 6 bytes and the same tracks; ``faults`` counts by `FAULTS`.

    ``one_voice`` is True if only one track plays, on one channel, with one program from its start, and each key is
    released before it is struck again, and not by a mode message.
    """

    data: bytes
    faults: Counter[str]
    one_voice: bool


def repaired(data: bytes) -> Repaired:
    """Return a valid file with the messages of ``data`` that notes depend on.

    A division in frames of film becomes quarter notes of one second. Raises NotMidi if nothing can be read.
    """
    findings = _Findings()
    data = _unwrapped(data, findings.faults)
    kind, count, division, first = _header(data, findings.faults)
    chunks = list(_chunks(data, first, findings.faults))
    if not chunks:
        raise NotMidi("no track follows its header")
    if kind == 2 and len(chunks) > 1:
        raise NotMidi("it holds several pieces, one a track (type 2)")
    findings.faults["midi_track_count"] += count != len(chunks)
    quarter, tempo = _clock(division)
    tracks: list[bytes] = []
    for number, chunk in enumerate(chunks):
        track = _messages(number, chunk, findings, keep_tempos=tempo is None)
        tracks.append((tempo or b"") + track if number == 0 else track)
    header = _HEADER + b"".join(value.to_bytes(size, "big") for value, size in _fields(len(tracks), quarter))
    body = b"".join(_TRACK + len(track).to_bytes(4, "big") + track for track in tracks)
    one_voice = findings.clear and not findings.down and len(findings.channels) <= 1 and findings.programs <= 1
    return Repaired(header + body, +findings.faults, one_voice)


def _fields(tracks: int, quarter: int) -> list[tuple[int, int]]:
    """Return the values of a header and their sizes in bytes: length, type, number of tracks, division."""
    return [(6, 4), (1, 2), (tracks, 2), (quarter, 2)]


def _unwrapped(data: bytes, faults: Counter[str]) -> bytes:
    """Return the bytes from the header on; of a RIFF file only its data."""
    begin = data.find(_HEADER)
    if len(data) - max(begin, 0) < 14:
        raise NotMidi("less than 14 bytes, which a header has")
    if begin < 0:
        raise NotMidi("its header is not MThd")
    faults["midi_wrapper"] += begin > 0
    size = int.from_bytes(data[max(begin - 4, 0) : begin], "little")
    riff = data[:4] == b"RIFF" and data[begin - 8 : begin - 4] == b"data" and size >= 14
    return data[begin : begin + size] if riff else data[begin:]


def _header(data: bytes, faults: Counter[str]) -> tuple[int, int, int, int]:
    """Return type, number of tracks and division of a file, and the position of its first chunk."""
    length, *values = (int.from_bytes(data[at : at + size], "big") for at, size in ((4, 4), (8, 2), (10, 2), (12, 2)))
    first = 8 + length
    if length < 6 or not _follows(data, first):
        first = max(data.find(_TRACK, 14), 14)
    faults["midi_header"] += length != 6 or values[0] > 2
    return values[0], values[1], values[2], first


def _clock(division: int) -> tuple[int, bytes | None]:
    """Return the ticks per quarter note, and the only tempo event of a file that counts in frames of film."""
    if division == 0:
        raise NotMidi("a quarter note has no ticks")
    if division < 0x8000:
        return division, None
    frames, ticks = 256 - (division >> 8), division & 0xFF
    if ticks == 0:
        raise NotMidi("a frame of film has no ticks")
    microseconds = 1_001_000 if frames == 29 else 1_000_000  # 29 means 30 / 1.001 frames a second
    return (30 if frames == 29 else frames) * ticks, bytes([0, _META, _TEMPO, 3]) + microseconds.to_bytes(3, "big")


def _follows(data: bytes, at: int) -> bool:
    """Return True if a chunk starts here that is a track or ends inside the file."""
    if data[at : at + 4] == _TRACK:
        return True
    inside = at + 8 <= len(data) and at + 8 + int.from_bytes(data[at + 4 : at + 8], "big") <= len(data)
    return inside and data[at : at + 4].isalnum()


def _chunks(data: bytes, at: int, faults: Counter[str]) -> Iterator[bytes]:
    """Yield the events of each track; what is between tracks is skipped."""
    while at < len(data):
        begin = at + 8
        end = begin + int.from_bytes(data[at + 4 : begin], "big")
        after = data.find(_TRACK, begin)
        if data[at : at + 4] != _TRACK:
            faults["midi_chunks"] += 1
            if data[at : at + 4] == _HEADER:  # of another file
                return
            at = end if _follows(data, at) else after if after >= 0 else len(data)
            continue
        ends = data[max(end - 3, begin) : end] == _END_OF_TRACK[1:]
        if end > len(data) or not (end == len(data) or ends or _follows(data, end)):
            faults["midi_track_length"] += 1
            end = after if after >= 0 else len(data)
        yield data[begin:end]
        at = end


def _messages(number: int, chunk: bytes, findings: _Findings, keep_tempos: bool) -> bytes:
    """Return the events of a track that notes depend on, each with its status."""
    out, faults = bytearray(), findings.faults
    tick = wait = end = 0
    ended = False
    for delta, status, stale, content, stop in _events(chunk):
        if (tick := tick + delta) > _LAST_TICK:
            break
        end, wait = stop, wait + delta
        if ended := status == _META and content[0] == _END:
            break
        kept = _channel(content, faults) if status < _SYSEX else _other(status, content, faults, keep_tempos)
        if not kept:
            continue
        if status < _SYSEX:
            findings.channels.add((number, status & 15))
            findings.hear(status, kept)
            faults["midi_running_status"] += stale
        while wait > _LONGEST:
            out += _variable(_LONGEST) + _NOTHING
            wait -= _LONGEST
        out += _variable(wait)
        out.append(status)
        out += kept
        wait = 0
    faults["midi_end_of_track"] += not ended and end == len(chunk)
    faults["midi_unreadable_rest"] += not ended and end < len(chunk)
    faults["midi_after_the_end"] += ended and end < len(chunk)
    return bytes(out) + _END_OF_TRACK


def _events(chunk: bytes) -> Iterator[tuple[int, int, bool, bytes, int]]:
    """Yield delta time, status, True for a running status after a meta event or exclusive message, content, and end.

    The content of a meta event is its type and its data. The events end when the bytes are cut off or are no event.
    """
    at, size, running, stale = 0, len(chunk), 0, False
    while at < size:
        delta, at, inside = (chunk[at], at + 1, True) if chunk[at] < 0x80 else _number(chunk, at)
        if not inside or at >= size:
            return
        status, explicit = chunk[at], chunk[at] >= 0x80
        if explicit:
            at += 1
        else:
            status = running
        if status < 0x80:
            return
        if status < _SYSEX:
            stale = stale and not explicit
            running, stop = status, at + _DATA_BYTES[status >> 4]
            content = chunk[at:stop]
        elif status in (_META, _SYSEX, _ESCAPE):
            stale = True
            begin = at + (status == _META)
            length, data, inside = _number(chunk, begin)
            stop = data + length
            content = chunk[at:begin] + chunk[data:stop]
            if not inside:
                return
        else:
            stop = at + _SYSTEM_BYTES.get(status, 0)
            content = chunk[at:stop]
        if stop > size:
            return
        yield delta, status, stale, content, stop
        at = stop


def _number(chunk: bytes, at: int) -> tuple[int, int, bool]:
    """Return a number of variable length, its end, and True if it ends within four bytes and the track."""
    value = 0
    for end, byte in enumerate(chunk[at : at + 4], start=at + 1):
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, end, True
    return value, at, False


def _variable(value: int) -> bytes:
    """Return ``value`` as a number of variable length."""
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F | 0x80)
    return bytes(reversed(groups))


def _channel(content: bytes, faults: Counter[str]) -> bytes:
    """Return the values of a message to a channel; empty if the message must be dropped."""
    if content.isascii():
        return content
    faults["midi_values"] += 1
    return bytes([content[0], min(content[1], 0x7F)]) if len(content) == 2 and content[0] < 0x80 else b""


def _other(status: int, content: bytes, faults: Counter[str], keep_tempos: bool) -> bytes:
    """Return the rest of a meta event that notes depend on; empty for other events."""
    meta: Any = require("mido.midifiles.meta", "piano", "a MIDI file")
    if status != _META:
        faults["midi_system_messages"] += status not in (_SYSEX, _ESCAPE)
        return b""
    kind, data = content[0], content[1:]
    if kind == _NAME:
        return bytes([kind]) + _variable(len(data)) + data
    if kind == _TEMPO and len(data) == 3 and any(data):
        return bytes([kind, 3]) + data if keep_tempos else b""
    try:
        meta.build_meta_message(kind, data)
    except Exception:  # mido raises many kinds
        faults["midi_meta_events"] += 1
    else:
        faults["midi_meta_events"] += kind == _TEMPO  # of another length, or 0
    return b""
