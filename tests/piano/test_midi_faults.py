"""MIDI files that are broken, cut, or hold what notes do not need."""

from __future__ import annotations

import random
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from tests.piano.midi_files import control, file_of, name, off, on, program, rows, tempo

from quintet.errors import UserError
from quintet.piano.midi import MissingTrack, midi_bytes, read_midi
from quintet.piano.midi_repair import FAULTS, WITHOUT_END

GOOD = file_of([tempo(0, 500_000)], [on(0, 60), off(10, 60)])
BROKEN = {
    "empty": (b"", "less than 14"),
    "text": (b"This is a text and has no music in it.", "not MThd"),
    "no track": (GOOD[:14], "no track follows its header"),
    "no frames": (GOOD[:12] + b"\xe7\0" + GOOD[14:], "a frame of film has no ticks"),
    "no ticks": (GOOD[:12] + b"\0\0" + GOOD[14:], "a quarter note has no ticks"),
    "patterns": (file_of([on(0, 60), off(9, 60)], [on(0, 61), off(9, 61)], kind=2), "type 2"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named_with_the_reason(kind: str, tmp_path: Path) -> None:
    data, reason = BROKEN[kind]
    path = tmp_path / f"{kind}.mid"
    path.write_bytes(data)
    with pytest.raises(UserError, match=reason) as raised:
        read_midi(path)
    (line,) = raised.value.problems
    assert line.startswith(f"{path}: is no MIDI file that can be read (")
    assert "\n" not in line


def raw(*tracks: bytes, count: int | None = None, quarter: bytes = b"\x01\xf4") -> bytes:
    """A file of these events, byte by byte; a tick is a millisecond."""
    head = b"MThd\0\0\0\6\0\1" + (len(tracks) if count is None else count).to_bytes(2, "big") + quarter
    return head + b"".join(b"MTrk" + len(track).to_bytes(4, "big") + track for track in tracks)


END = b"\0\xff\x2f\0"
C, D = b"\0\x90\x3c\x40\x0a\x80\x3c\0", b"\0\x90\x3e\x40\x0a\x80\x3e\0"  # notes of 10 ticks, one after the other
BOTH = raw(C + D + END)
RIFF = b"RIFF" + (len(BOTH) + 12).to_bytes(4, "little") + b"RMIDdata" + len(BOTH).to_bytes(4, "little") + BOTH
FAULTY = {
    "riff": (RIFF, ["wrapper"]),
    "riff with more": (RIFF + b"LIST\4\0\0\0INFO", ["wrapper"]),
    "macbinary": (bytes(128) + BOTH, ["wrapper"]),
    "long header": (BOTH[:7] + b"\x0a" + BOTH[8:14] + b"more" + BOTH[14:], ["header"]),
    "header of no length": (BOTH[:7] + b"\0" + BOTH[8:], ["header"]),
    "header of any length": (BOTH[:5] + b"\7" + BOTH[6:], ["header"]),
    "type 7": (BOTH[:9] + b"\7" + BOTH[10:], ["header"]),
    "too many tracks said": (raw(C + D + END, count=3), ["track_count"]),
    "too few tracks said": (raw(b"\0\xff\3\1a" + END, C + D + END, count=1), ["track_count"]),
    "a chunk before": (BOTH[:14] + b"XFIH\0\0\0\2MT" + BOTH[14:], ["chunks"]),
    "a chunk behind": (BOTH + b"XFKM\0\0\0\3abc", ["chunks"]),
    "another file behind": (BOTH + raw(C + C + END), ["chunks"]),
    "riff of no size": (RIFF[:16] + bytes(4) + RIFF[20:], ["wrapper"]),
    "padding": (BOTH + bytes(100), ["chunks"]),
    "a track of no length": (BOTH[:18] + bytes(4) + BOTH[22:], ["track_length"]),
    "a track without bound": (BOTH[:18] + b"\xff" * 4 + BOTH[22:], ["track_length"]),
    "lengths of two tracks": (
        (one := raw(C + END, b"\x0a" + D[1:] + END))[:18] + b"\0\0\1\0" + one[22:],
        ["track_length"],
    ),
    "cut": (BOTH[:-3], ["track_length", "unreadable_rest"]),
    "no end": (raw(C + D), ["end_of_track"]),
    "more behind the end": (raw(C + D + END + b"\0\x90\x48\x40\x0a\x80\x48\0"), ["after_the_end"]),
    "no events": (raw(C + D + b"\xff" * 9), ["unreadable_rest"]),
    "a data byte first": (raw(b"\0\x3c\x40" + END, C + D + END), ["unreadable_rest"]),
    "key of 18 flats": (raw(b"\0\xff\x59\2\xee\1" + END, C + D + END), ["meta_events"]),
    "key without a mode": (raw(C + b"\0\xff\x59\1\0" + D + END), ["meta_events"]),
    "time of one byte": (raw(C + b"\0\xff\x58\1\4" + D + END), ["meta_events"]),
    "offset of no bytes": (raw(C + b"\0\xff\x54\0" + D + END), ["meta_events"]),
    "tempo of 0": (raw(b"\0\xff\x51\3\0\0\0" + C + D + END), ["meta_events"]),
    "tempo of two bytes": (raw(b"\0\xff\x51\2\1\1" + C + D + END), ["meta_events"]),
    "a clock": (raw(C + b"\0\xf8" + D + END), ["system_messages"]),
    "a song position": (raw(C + b"\0\xf2\1\1" + D + END), ["system_messages"]),
    "undefined": (raw(C + b"\0\xf4" + D + END), ["system_messages"]),
    "status before a name": (raw(C + b"\0\x90\x3e\x40\0\xff\3\1a\x0a\x3e\0" + END), ["running_status"]),
    "status before exclusive": (raw(C + b"\0\x90\x3e\x40\0\xf0\2\1\xf7\x0a\x3e\0" + END), ["running_status"]),
    "pitch of 200": (raw(C + b"\0\x90\xc8\x40" + D + END), ["values"]),
    "program of 200": (raw(b"\0\xc0\xc8" + C + D + END), ["values"]),
    "controller of 200": (raw(b"\0\xb0\xc8\x7f" + C + D + END), ["values"]),
}


@pytest.mark.parametrize("case", FAULTY)
def test_what_notes_do_not_need_is_passed_over_and_counted(case: str) -> None:
    data, expected = FAULTY[case]
    for tracks in ("piano", "all"):
        faults: Counter[str] = Counter()
        assert rows(read_midi(data, tracks, faults=faults)) == [(60, 64, 0, 10), (62, 64, 10, 20)]
        assert faults == {f"midi_{fault}": 1 for fault in expected}
    assert set(faults) <= set(FAULTS)


def test_every_fault_is_in_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs/guide/piano.md").read_text()
    assert [fault for fault in FAULTS if f"`{fault}`" not in guide] == []
    assert {f"midi_{fault}" for _, faults in FAULTY.values() for fault in faults} | {WITHOUT_END} == set(FAULTS)


def test_values_above_127_are_the_largest_there_are() -> None:
    faults: Counter[str] = Counter()
    loud = raw(b"\0\xb0\x40\xff\0\x90\x3c\xc8\x0a\x80\x3c\xc8\x0a\xb0\x40\0" + END)
    assert rows(read_midi(loud, faults=faults)) == [(60, 127, 0, 20)]
    assert faults == {"midi_values": 3}


def test_a_file_that_is_cut_has_the_notes_before_the_cut() -> None:
    """Wherever it is cut; a note whose end is lost is left out and counted."""
    data = raw(C + D + END, C + END)
    for size in range(len(data)):
        faults: Counter[str] = Counter()
        try:
            found = rows(read_midi(data[:size], sustain=False, faults=faults))
        except UserError:
            assert size <= 14 + 8
            continue
        played = data[:size].count(b"\x80\x3c\0") + data[:size].count(b"\x80\x3e\0")
        assert len(found) == played
        assert faults["notes_without_end"] == data[:size].count(b"\x40") - played
        assert sum(faults.values()) >= 1


@pytest.mark.parametrize(
    ("frames", "ticks", "per_second"),
    [(24, 4, 96), (25, 40, 1000), (29, 80, 2400 / 1.001), (30, 80, 2400), (25, 255, 6375)],
)
def test_time_in_frames_of_film(frames: int, ticks: int, per_second: float) -> None:
    """A tick is a share of a frame, whatever tempos say; 29 stands for 30 / 1.001 (RP-001, and SMPTE 12M)."""
    events = b"\0\xff\x51\3\0\0\1" + b"\x83\x60\x90\x3c\x40\x83\x60\x80\x3c\0" + END  # 480 ticks each
    faults: Counter[str] = Counter()
    table = read_midi(raw(events, C + END, quarter=bytes([256 - frames, ticks])), faults=faults)
    assert table.start.tolist() == pytest.approx([0, 480 / per_second])
    assert table.end.tolist() == pytest.approx([10 / per_second, 960 / per_second])
    assert not faults


def test_long_silences_and_the_last_tick() -> None:
    """Delta times that are joined stay within the four bytes that one may have; ticks stay within 32 bits."""
    text = b"\xff\xff\xff\x7f\xff\1\1a"  # 2 ** 28 - 1 ticks later
    for texts in (1, 2, 7):
        (row,) = rows(read_midi(raw(text * texts + C + END)))
        assert row == (60, 64, texts * ((1 << 28) - 1), texts * ((1 << 28) - 1) + 10)
    faults: Counter[str] = Counter()
    assert rows(read_midi(raw(C + text * 9 + C + END), faults=faults)) == [(60, 64, 0, 10)]
    assert faults == {"midi_unreadable_rest": 1}


NAMES = {
    "Linke Hand (für später)": ["utf-8", "latin-1", "cp1252", "mac_roman", "cp437", "cp850", "utf-16", "utf-16-le"],
    "Левая рука": ["utf-8", "cp1251", "koi8-r", "cp866", "iso8859-5"],
    "ピアノ左": ["utf-8", "shift_jis", "euc_jp", "cp932"],
    "钢琴左手": ["utf-8", "gb18030", "gbk"],
    "鋼琴左手": ["utf-8", "big5"],
    "왼손": ["utf-8", "euc_kr", "cp949"],
    "Lewa ręka": ["utf-8", "cp1250", "iso8859-2"],
}


@pytest.mark.parametrize(("called", "charset"), [(one, charset) for one, found in NAMES.items() for charset in found])
def test_a_name_finds_its_track_in_whatever_charset_it_was_written(called: str, charset: str) -> None:
    for form, padding in (("NFC", b""), ("NFD", b" \0")):
        try:
            bytes_ = unicodedata.normalize(form, called).encode(charset)
        except UnicodeEncodeError:  # there are no accents of their own in it
            continue
        bytes_ += padding if charset not in ("utf-16", "utf-16-le") else b""
        data = raw(b"\0\xff\3\5Other" + C + END, b"\0\xff\3" + bytes([len(bytes_)]) + bytes_ + D + END)
        for asked in (called, unicodedata.normalize("NFD", called)):
            assert read_midi(data, [asked]).pitch.tolist() == [62]
        with pytest.raises(MissingTrack, match=r"has no track 'Nobody' with notes; it has 0 'Other', 1 '"):
            read_midi(data, ["Nobody"])


def test_numbers_stand_for_names_and_names_for_numbers() -> None:
    data = raw(b"\0\xff\3\0011" + C + END, b"\0\xff\3\0041812" + D + END, END)

    def read(*tracks: str | int) -> list[int]:
        return read_midi(data, tracks).pitch.tolist()

    assert [read(one) for one in (0, 1, 1812, "0", "1", "1812")] == [[60], [62], [62], [60], [60], [62]]
    assert read(0, "1812", 1) == [60, 62]
    for none in (2, "2", -1, "", "01"):
        with pytest.raises(MissingTrack, match="has no track"):
            read(none)


def test_whatever_the_bytes_are_the_answer_is_notes_or_one_error() -> None:
    draw, good = (
        random.Random(4),
        file_of(
            [tempo(0, 400_000), name("é")],
            [control(0, 90), on(0, 60), off(100, 60), program(0, 1), control(200, 0)],
            [on(0, 40, channel=1), off(300, 40, channel=1), control(20, 127, 1)],
        ),
    )
    outcomes = {"notes": 0, "error": 0}
    for _ in range(600):
        data = bytearray(good)
        for _ in range(draw.choice([1, 2, 8])):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            table = read_midi(bytes(data[: draw.choice([len(data), draw.randrange(len(data))])]), tracks="all")
        except UserError:
            outcomes["error"] += 1
        else:
            assert (table.end > table.start).all()
            outcomes["notes"] += 1
    assert min(outcomes.values()) > 50


def test_what_cannot_be_opened_and_what_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"none\.mid: cannot be read \(No such file"):
        read_midi(tmp_path / "none.mid")
    monkeypatch.setitem(sys.modules, "symusic", None)
    for use in (lambda: read_midi(GOOD), lambda: midi_bytes(read_midi(b"")[:0])):
        with pytest.raises(UserError, match=r"pip install 'quintet\[piano\]'"):
            use()
