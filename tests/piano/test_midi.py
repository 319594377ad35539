"""MIDI against mido, message by message, and against files whose content is known."""

from __future__ import annotations

import csv
import io
from collections import Counter
from operator import itemgetter
from pathlib import Path
from typing import Any

import mido
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.piano.midi_files import Event, control, file_of, off, on, program, rows, tempo

from quintet.errors import UserError
from quintet.piano import midi
from quintet.piano.midi import midi_bytes, read_midi, write_midi
from quintet.piano.midi_repair import repaired
from quintet.piano.notes import HIGHEST, LOWEST, Notes, joined, notes, pitch_name, separated


def by_loop(data: bytes) -> list[list[float]]:
    """Pitch, velocity, start and end in seconds of sounding notes, by mido's own clock, message by message.

    For files of one channel: each pitch is a string, which ends when key and pedal are up or when it is struck again.
    What a pedal holds that nobody lets go ends with the last key.
    """
    now, last, down, strings, found = 0.0, 0.0, False, {}, []

    def end(pitch: int) -> None:
        start, velocity, _ = strings.pop(pitch)
        if now > start:
            found.append([pitch, velocity, start, now])

    for message in mido.MidiFile(file=io.BytesIO(data)):
        now += message.time
        if message.type == "note_on" and message.velocity:
            if message.note in strings:
                end(message.note)
            strings[message.note] = (now, message.velocity, True)
        elif message.type in ("note_on", "note_off") and message.note in strings:
            strings[message.note], last = (*strings[message.note][:2], False), now
            if not down:
                end(message.note)
        elif message.type == "control_change" and message.control == 64:
            down = message.value >= 64
            for pitch in [pitch for pitch, (*_, held) in strings.items() if not held and not down]:
                end(pitch)
    now = last
    for pitch in list(strings):
        end(pitch)
    return sorted(found, key=lambda row: (row[2], row[0], row[3]))


def test_durations_of_real_performances_are_those_of_a_loop_over_messages(shared: Path) -> None:
    """Files of all kinds of pedalling; the loop has its own pairing of keys, its own clock and its own pedal."""
    files = sorted((shared / "data/midi").glob("*.mid"), key=lambda path: path.stat().st_size)[:24:2]
    total = 0
    for path in files:
        data = path.read_bytes()
        ours, theirs = read_midi(path), by_loop(data)
        assert len(ours) == len(theirs), path.name
        expected = notes(*np.array(theirs).T)
        assert np.array_equal(ours.pitch, expected.pitch), path.name
        assert np.array_equal(ours.velocity, expected.velocity), path.name
        np.testing.assert_allclose(ours.start, expected.start, atol=1e-6, err_msg=path.name)
        np.testing.assert_allclose(ours.end, expected.end, atol=1e-6, err_msg=path.name)
        total += len(ours)
    assert total > 8000


def test_as_many_notes_as_the_metadata_say(shared: Path) -> None:
    """Counted by another program, before keys that are struck twice at the same time become one note."""
    with open(shared / "data/midi/metadata.csv") as file:
        for row in csv.DictReader(file):
            table = read_midi(shared / "data/midi" / row["file"], sustain=False)
            assert (len(table), int(table.pitch.min()), int(table.pitch.max())) == tuple(
                int(row[key]) for key in ("notes", "low", "high")
            )


def test_tracks_of_a_song(shared: Path) -> None:
    path = shared / "data/midi/pop909/001.mid"
    counts = {"MELODY": 264, "BRIDGE": 307, "PIANO": 985}
    for number, (track, count) in enumerate(counts.items(), start=1):
        assert len(read_midi(path, [track], sustain=False)) == count
        assert rows(read_midi(path, [number])) == rows(read_midi(path, [track]))
    assert len(read_midi(path, ["MELODY", 3], sustain=False)) == 264 + 985
    assert len(read_midi(path, "all", sustain=False)) == sum(counts.values())
    with pytest.raises(
        UserError, match=r"001\.mid: has no track 'VIOLIN' with notes; it has 1 'MELODY', 2 'BRIDGE', 3 'PIANO'"
    ):
        read_midi(path, ["VIOLIN"])


def test_the_clock_follows_every_change_of_tempo() -> None:
    """A quarter note of 500 ticks lasts 0.5 s, then 1 s, then 0.25 s; changes may stand in any track."""
    data = file_of(
        [tempo(1000, 1_000_000), tempo(2000, 900_000), tempo(2000, 250_000)],
        [on(500, 60), off(1500, 60), on(2000, 62), off(4000, 62)],
    )
    assert rows(read_midi(data)) == [(60, 64, 500, 2000), (62, 64, 3000, 4000)]
    second = file_of([on(0, 60), off(1000, 60)], [tempo(500, 1_000_000), on(0, 72), off(500, 72)])
    assert rows(read_midi(second)) == [(60, 64, 0, 1500), (72, 64, 0, 500)]


def test_a_pedal_holds_its_channel_in_every_track() -> None:
    """Symusic is not enough, because it drops tracks without notes and does not report channels."""
    pedals = [control(0, 127), control(800, 0)]
    right, left = [on(0, 72), off(100, 72)], [on(0, 48, channel=1), off(200, 48, channel=1)]
    lower = [on(0, 48), off(200, 48)]
    assert rows(read_midi(file_of(pedals, right))) == [(72, 64, 0, 800)]
    assert rows(read_midi(file_of(pedals + right, lower))) == [(48, 64, 0, 800), (72, 64, 0, 800)]
    assert rows(read_midi(file_of(pedals + right, left))) == [(48, 64, 0, 200), (72, 64, 0, 800)]
    one_track = file_of(pedals + right + left, kind=0)
    assert rows(read_midi(one_track)) == [(48, 64, 0, 200), (72, 64, 0, 800)]
    assert rows(read_midi(file_of(pedals + right), sustain=False)) == [(72, 64, 0, 100)]
    assert rows(read_midi(file_of([control(0, 127), control(300, 0, number=121), *right]))) == [(72, 64, 0, 300)]


def test_which_tracks_are_a_piano() -> None:
    def read(*tracks: list[Event], **options: Any) -> list[int]:
        return read_midi(file_of(*tracks), **options).pitch.tolist()

    piano, violin = [on(0, 60), off(9, 60)], [program(0, 40, 1), on(0, 70, channel=1), off(9, 70, channel=1)]
    drums = [on(0, 36, channel=9), off(9, 36, channel=9)]
    honky_tonk = [program(0, 3, 2), on(0, 50, channel=2), off(9, 50, channel=2)]
    assert read(piano, violin, drums, honky_tonk) == [50, 60]
    assert read(piano, violin, drums, tracks="all") == [60, 70]
    assert read(violin, drums) == [70]
    assert read(drums) == []
    assert read(drums, tracks=[0]) == []
    assert read([program(0, 40), program(0, 0, 1)], piano, [on(0, 70, channel=1), off(9, 70, channel=1)]) == [70]
    assert read([program(0, 40), *piano, program(20, 0), on(30, 61), off(40, 61)]) == [61]


def test_notes_that_are_odd() -> None:
    assert rows(read_midi(file_of([on(0, 60), on(10, 61), off(20, 61)]))) == [(61, 64, 10, 20)]  # never ends
    assert rows(read_midi(file_of([on(5, 60), off(5, 60)]))) == [(60, 64, 5, 6)]
    assert rows(read_midi(file_of([on(0, 60), on(10, 60, 0)]))) == [(60, 64, 0, 10)]
    twice = file_of([on(0, 60, 50), on(0, 60, 90), off(10, 60), off(20, 60)])
    assert rows(read_midi(twice)) == [(60, 90, 0, 20)]
    assert rows(read_midi(twice, sustain=False)) == [(60, 50, 0, 10), (60, 90, 0, 20)]
    assert rows(read_midi(file_of([], []))) == []
    lyrics = [(at, mido.MetaMessage("lyrics", text="la")) for at in (0, 10)]
    assert rows(read_midi(file_of(lyrics))) == rows(read_midi(file_of([on(0, 60), *lyrics]))) == []


def test_a_table_of_notes_is_in_order_and_is_moved_quickened_transposed_and_joined() -> None:
    """By start, then pitch, then end."""
    table = notes(*np.array([(62, 1, 2, 4), (60, 2, 2, 5), (60, 3, 2, 3), (70, 4, 0, 6)], dtype=float).T)
    expected = [(70, 4, 0, 6000), (60, 3, 2000, 3000), (60, 2, 2000, 5000), (62, 1, 2000, 4000)]
    assert rows(table) == expected
    assert (len(table), table.seconds, table.pitch.dtype, table.start.dtype) == (4, 6.0, np.int64, np.float64)
    assert rows(table[1:3]) == expected[1:3]
    assert rows(table[table.pitch > 60]) == [expected[0], expected[3]]
    assert rows(table.moved(0.5)) == [(p, v, start + 500, end + 500) for p, v, start, end in expected]
    assert rows(table.faster(2)) == [(p, v, start / 2, end / 2) for p, v, start, end in expected]
    assert rows(table.transposed(-3)) == [(p - 3, v, start, end) for p, v, start, end in expected]
    assert rows(joined(table[2:], table[:2])) == expected
    assert (rows(joined()), joined().seconds) == ([], 0.0)
    assert HIGHEST - LOWEST + 1 == 88
    assert round(440 * 2 ** ((LOWEST - 69) / 12), 1) == 27.5  # the lowest A of a piano
    named = {21: "A0", 59: "B3", 60: "C4", 69: "A4", 108: "C8"}  # in scientific pitch notation
    assert {pitch: pitch_name(pitch) for pitch in named} == named


STROKES = {  # of one key: when it is struck (with a velocity) and released (None), and the notes that follow
    "released twice": ([(0, 50), (10, None), (20, None)], [(50, 0, 10)]),
    "a lost release": (
        [(0, 50), (10, 60), (20, None), (30, 70), (40, None)],
        [(50, 0, 10), (60, 10, 20), (70, 30, 40)],
    ),
    "two lost": ([(0, 50), (10, 60), (20, 70), (30, None)], [(50, 0, 10), (60, 10, 20), (70, 20, 30)]),
    "a release too many": ([(0, 50), (10, 60), (20, None), (30, None)], [(50, 0, 10), (60, 10, 20)]),
    "the release after the next stroke": ([(0, 50), (10, 60), (10, None), (20, None)], [(50, 0, 10), (60, 10, 20)]),
    "no time between": ([(0, 50), (10, None), (10, 60), (20, None)], [(50, 0, 10), (60, 10, 20)]),
    "struck twice at once": ([(0, 50), (0, 60), (10, None), (20, None)], [(50, 0, 10), (60, 0, 20)]),
    "and released once": (
        [(0, 50), (0, 60), (10, None), (20, 70), (30, None)],
        [(50, 0, 10), (60, 0, 10), (70, 20, 30)],
    ),
    "never released": ([(0, 50), (10, 60)], [(50, 0, 10)]),
}


@pytest.mark.parametrize("case", STROKES)
@pytest.mark.parametrize("others", [[], [on(3, 72, channel=1), off(4, 72, channel=1)]])
def test_a_key_is_down_until_it_is_released_or_struck_again(case: str, others: list[Event]) -> None:
    strokes, expected = STROKES[case]
    events = [off(tick, 60) if velocity is None else on(tick, 60, velocity) for tick, velocity in strokes]
    faults: Counter[str] = Counter()
    found = rows(read_midi(file_of(events + others), sustain=False, faults=faults))
    assert [row[1:] for row in found if row[0] == 60] == expected
    assert len(found) == len(expected) + bool(others)
    assert faults == ({"notes_without_end": 1} if case == "never released" else {})


@pytest.mark.parametrize("number", [120, 123, 124, 125, 126, 127])
def test_a_mode_message_ends_all_notes_of_its_channel(number: int) -> None:
    """MIDI 1.0: all sound off silences what the pedal holds; after the others the pedal holds as after releases."""
    stop = control(300, 0, number=number)
    keys = [on(0, 60), on(0, 64, channel=1), off(900, 64, channel=1), on(500, 67), off(600, 67)]
    expected = [(60, 64, 0, 300), (64, 64, 0, 900), (67, 64, 500, 600)]
    assert rows(read_midi(file_of([*keys, stop]))) == expected
    assert rows(read_midi(file_of([stop], keys))) == expected
    held = [*keys, on(100, 62), off(200, 62), control(50, 127), control(800, 0)]
    ends = {60: 800, 62: 800, 64: 900, 67: 800}
    if number == 120:
        ends |= {60: 300, 62: 300}
    assert {row[0]: row[3] for row in rows(read_midi(file_of([*held, stop])))} == ends
    for harmless in (121, 122):
        assert rows(read_midi(file_of([on(0, 60), control(300, 0, number=harmless), off(400, 60)])))[0][3] == 400


def test_a_pedal_is_as_it_was_after_all_sound_off() -> None:
    keys = [on(0, 60), off(10, 60), on(400, 62), off(410, 62)]
    stop = control(300, 0, number=120)

    def ends(*pedals: Event) -> list[float]:
        return [row[3] for row in rows(read_midi(file_of([*keys, *pedals])))]

    assert ends(control(5, 100), stop, control(800, 0)) == [300, 800]
    assert ends(stop, control(800, 0)) == [10, 410]
    assert ends(control(5, 100), stop, control(300, 0)) == [300, 410]
    assert ends(control(5, 100), control(200, 0), stop, control(350, 64), control(500, 63)) == [200, 500]
    assert ends(control(5, 100), stop, control(301, 0), control(350, 64), control(500, 63)) == [300, 500]


PLAYED = st.lists(
    st.tuples(st.integers(0, 1), st.integers(58, 60), st.integers(0, 40), st.integers(0, 12), st.integers(1, 127)),
    max_size=8,
)
CONTROLS = st.lists(
    st.tuples(
        st.integers(0, 2), st.integers(0, 1), st.integers(0, 60), st.integers(0, 127), st.sampled_from([64, 121, 1])
    ),
    max_size=6,
)
PROGRAMS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 60), st.sampled_from([0, 40])), max_size=2
)
TEMPOS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(100_000, 2_000_000)), max_size=3)


@settings(max_examples=150)
@given(PLAYED, CONTROLS, PROGRAMS, TEMPOS, st.booleans(), st.booleans())
@example([(0, 58, 0, 0, 1)] * 8, [(0, 0, 0, 64, 64), (0, 0, 2, 0, 64)], [(0, 0, 0, 40)], [], False, True)
def test_both_readers_say_the_same(
    played: list, controls: list, programs: list, tempos: list, one: bool, lone: bool
) -> None:
    """If symusic reads a file, mido would have read the same notes."""
    tracks: list[list[Event]] = [[], [], []]
    for channel, pitch, tick, length, velocity in played:
        channel *= not one
        tracks[1 if lone else 1 + channel] += [on(tick, pitch, velocity, channel), off(tick + length, pitch, channel)]
    for track, channel, tick, value, number in controls:
        tracks[1 if lone else track].append(control(tick, value, channel * (not one), number))
    for track, channel, tick, number in programs:
        tracks[1 if lone else track].append(program(tick, number, channel * (not one)))
    for track, tick, microseconds in tempos:
        tracks[track].append(tempo(tick, microseconds))
    valid = repaired(file_of(*tracks))
    assert not valid.faults
    slow = midi._any_voices(mido.MidiFile(file=io.BytesIO(valid.data)))
    fast = midi._read("a", valid.data, True, Counter())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(midi, "_read", lambda *_: slow)
        expected = [rows(read_midi(valid.data, sustain=sustain)) for sustain in (True, False)]
        patch.setattr(midi, "_read", lambda *_: fast)
        assert [rows(read_midi(valid.data, sustain=sustain)) for sustain in (True, False)] == expected


def test_performances_go_the_fast_way(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, by_mido = [], midi._any_voices
    monkeypatch.setattr(midi, "_any_voices", lambda file: slow.append(file) or by_mido(file))
    assert sum(len(read_midi(path)) for path in (shared / "data/midi").glob("*.mid")) > 90_000
    assert len(slow) == 1  # keys of one are struck while they are down


TABLE = st.lists(
    st.tuples(st.integers(0, 127), st.integers(1, 127), st.floats(0, 4000), st.floats(0.002, 20)), max_size=12
).map(lambda rows: notes(*np.array([(p, v, s, s + d) for p, v, s, d in rows], dtype=float).reshape(-1, 4).T))


@given(TABLE.map(separated))
def test_what_is_written_is_read_by_mido_within_a_millisecond(table: Notes) -> None:
    """At most one of a pitch sounds at a time; notes that overlap are `separated` first."""
    played = table[table.end - table.start > 0.002]
    played = played[np.array([not _close(played, i) for i in range(len(played))], dtype=bool)]
    file = mido.MidiFile(file=io.BytesIO(midi_bytes(played)))
    assert file.ticks_per_beat == 480
    assert {message.tempo for track in file.tracks for message in track if message.type == "set_tempo"} == {500_000}
    found, open_notes, now = [], {}, 0.0
    for message in file:
        now += message.time
        if message.type == "note_on" and message.velocity:
            assert message.note not in open_notes
            open_notes[message.note] = (message.velocity, now)
        elif message.type in ("note_on", "note_off"):
            velocity, start = open_notes.pop(message.note)
            found.append((message.note, velocity, start, now))
    assert not open_notes
    ours = sorted(
        zip(*(getattr(played, one).tolist() for one in ("pitch", "velocity", "start", "end")), strict=True),
        key=itemgetter(0, 2),
    )
    assert len(found) == len(ours)
    for a, b in zip(sorted(found, key=itemgetter(0, 2)), ours, strict=True):
        assert a[:2] == b[:2]
        assert abs(a[2] - b[2]) < 1e-3
        assert abs(a[3] - b[3]) < 1e-3


def _close(table: Notes, i: int) -> bool:
    """Return True if the same pitch is struck within two milliseconds before."""
    return bool(((table.pitch[:i] == table.pitch[i]) & (table.start[i] - table.start[:i] < 0.002)).any())


@given(TABLE)
def test_written_and_read_back(table: Notes) -> None:
    again, expected = read_midi(midi_bytes(table)), separated(table)
    assert len(again) <= len(expected)
    assert set(again.pitch.tolist()) == set(expected.pitch.tolist())
    assert again.seconds == pytest.approx(expected.seconds, abs=2.1e-3)


def test_write_to_a_file_and_overlaps(tmp_path: Path) -> None:
    table = notes(*np.array([(60, 0, 0, 2), (60, 200, 1, 3)], dtype=float).T)
    write_midi(table, tmp_path / "a.mid")
    assert rows(read_midi(tmp_path / "a.mid", sustain=False)) == [(60, 1, 0, 1000), (60, 127, 1000, 3000)]
