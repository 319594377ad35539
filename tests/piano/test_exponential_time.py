"""The tokenizer of exponential time, against plain loops over the names of its tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.piano.note_tokenizers import ANY_NOTES, by_key, exponential, pianistic, played, quick, same

from quintet.piano.midi import read_midi
from quintet.piano.notes import Notes
from quintet.piano.tokenizers.exponential import ExponentialTimeTokenizer

# The tokenizer of exponential time.


def test_the_vocabulary_is_piano_gpts() -> None:
    tokenizer = exponential()
    names = tokenizer.names()
    assert tokenizer.vocab_size == len(names) == 217 + 1024
    assert names[:6] == ["<PAD>", "<CLS>", "NOTE_ON_21", "NOTE_OFF_21", "NOTE_ON_22", "NOTE_OFF_22"]
    assert all(names[2 + 2 * (p - 21)] == f"NOTE_ON_{p}" for p in range(21, 109))
    assert all(names[3 + 2 * (p - 21)] == f"NOTE_OFF_{p}" for p in range(21, 109))
    assert names[178:210] == [f"VELOCITY_{index}" for index in range(32)]
    assert names[210:217] == ["1T", "2T", "4T", "8T", "16T", "32T", "64T"]
    assert names[217:219] == ["<PLACEHOLDER_0>", "<PLACEHOLDER_1>"]
    assert exponential(special_tokens=2048).vocab_size == 2265
    assert (tokenizer.pad_id, tokenizer.end_id) == (0, 1)


@pytest.mark.parametrize(
    ("unit", "longest", "steps"), [(0.01, 0.64, 6), (0.01, 0.65, 7), (0.02, 1.0, 6), (0.5, 0.6, 1), (0.001, 1, 10)]
)
def test_steps_of_time_double_below_the_longest(unit: float, longest: float, steps: int) -> None:
    names = exponential(time_unit=unit, max_time_step=longest).names()
    assert names[210:][: steps + 1] == [*(f"{2**power}T" for power in range(steps)), "<PLACEHOLDER_0>"]


def test_a_chord_by_hand() -> None:
    chord = played([(64, 80, 0.25, 0.5), (60, 64, 0.0, 0.5), (60, 1, 0.5, 2.0)])
    assert exponential().decode(exponential().encode_notes(chord)) == (
        "VELOCITY_16 NOTE_ON_60 16T 8T 1T VELOCITY_20 NOTE_ON_64 16T 8T 1T NOTE_OFF_60 NOTE_OFF_64 "
        "VELOCITY_0 NOTE_ON_60 64T 64T 16T 4T 2T NOTE_OFF_60"
    )


def steps_by_hand(table: Notes, unit: float) -> list[list[int]]:
    """Rows of pitch, velocity, start, end in steps, each pitch sounding once at a time, in a plain loop."""
    rows: dict[tuple[int, int], list[int]] = {}
    for pitch, velocity, start, end in zip(table.pitch, table.velocity, table.start, table.end, strict=True):
        first = round(start / unit)
        last = max(round(end / unit), first + 1)
        old = rows.setdefault((int(pitch), first), [int(pitch), int(velocity), first, last])
        old[1], old[3] = max(old[1], int(velocity)), max(old[3], last)
    for pitch, first in rows:
        later = [start for other, start in rows if other == pitch and start > first]
        rows[pitch, first][3] = min([rows[pitch, first][3], *later])
    return sorted(rows.values(), key=lambda row: (row[2], row[0]))


def encoded_by_hand(table: Notes, unit: float, bins: int, sizes: list[int]) -> str:
    events = []
    for pitch, velocity, start, end in steps_by_hand(table, unit):
        loud = int(np.digitize(velocity, np.linspace(0, 128, bins + 1))) - 1
        events.append((start, 1, pitch, f"VELOCITY_{loud} NOTE_ON_{pitch}"))
        events.append((end, 0, pitch, f"NOTE_OFF_{pitch}"))
    written, now = [], 0
    for time, _, _, name in sorted(events):
        while now < time:
            size = max(size for size in sizes if size <= time - now)
            written.append(f"{size}T")
            now += size
        written.append(name)
    return " ".join(written)


@quick
@given(ANY_NOTES, st.sampled_from([(0.01, 1.0, 32), (0.05, 0.3, 128), (0.003, 0.004, 5)]))
def test_encoding_is_what_a_plain_loop_writes(table: Notes, shape: tuple[float, float, int]) -> None:
    unit, longest, bins = shape
    tokenizer = exponential(time_unit=unit, max_time_step=longest, velocity_bins=bins)
    sizes = [2**power for power in range(20) if unit * 2**power < longest]
    ids = tokenizer.encode_notes(table)
    assert ids.dtype == np.uint32
    assert tokenizer.decode(ids) == encoded_by_hand(table, unit, bins, sizes)


def decoded_by_hand(names: list[str], unit: float, bins: int, close: bool) -> list[tuple[float, ...]]:
    now, loud, open_notes, rows = 0, 64, {}, []

    def shut(pitch: int) -> None:
        velocity, start = open_notes.pop(pitch)
        if now > start:
            rows.append((start * unit, pitch, now * unit, velocity))

    for name in names:
        if name.startswith("VELOCITY_"):
            loud = max(1, int((int(name[9:]) + 0.5) * 128 / bins))
        elif name.startswith("NOTE_"):
            pitch = int(name.rsplit("_", 1)[1])
            if pitch in open_notes:
                shut(pitch)
            if name.startswith("NOTE_ON"):
                open_notes[pitch] = (loud, now)
        elif name.endswith("T"):
            now += int(name[:-1])
    for pitch in list(open_notes) if close else []:
        shut(pitch)
    return sorted(rows)


@quick
@given(
    st.lists(st.integers(-2, 300) | st.sampled_from([78, 79, 80, 81, 178, 209, 210, 216]), max_size=60),
    st.booleans(),
    st.sampled_from([(0.01, 32), (0.1, 128)]),
)
def test_decoding_any_ids_is_what_a_plain_loop_reads(ids: list[int], close: bool, shape: tuple[float, int]) -> None:
    unit, bins = shape
    tokenizer = exponential(time_unit=unit, velocity_bins=bins, special_tokens=20)
    names = [tokenizer.names()[token] for token in ids if 0 <= token < tokenizer.vocab_size]
    expected = decoded_by_hand(names, unit, bins, close)
    found = tokenizer.decode_notes(ids, close=close)
    rows = zip(found.start, found.pitch, found.end, found.velocity, strict=True)
    assert [tuple(map(float, row)) for row in rows] == [pytest.approx(row) for row in expected]


def test_a_note_without_a_velocity_is_of_a_middle_one() -> None:
    found = exponential().decode_notes(exponential().encode("NOTE_ON_60 1T NOTE_OFF_60 VELOCITY_31 NOTE_ON_61 1T"))
    assert found.velocity.tolist() == [64, 126]


@quick
@given(ANY_NOTES)
def test_overlapping_notes_come_back_as_a_piano_plays_them(table: Notes) -> None:
    tokenizer = exponential(velocity_bins=128)
    expected = played((pitch, loud, a * 0.01, b * 0.01) for pitch, loud, a, b in steps_by_hand(table, 0.01))
    once = tokenizer.decode_notes(tokenizer.encode_notes(table))
    assert same(once, expected)
    assert same(tokenizer.decode_notes(tokenizer.encode_notes(once)), once)


@quick
@given(pianistic(), st.sampled_from([0.01, 0.004, 0.02]), st.integers(1, 128))
def test_the_bounds_of_exponential_time(table: Notes, unit: float, bins: int) -> None:
    tokenizer = exponential(time_unit=unit, velocity_bins=bins)
    check_exponential(table, tokenizer)


def check_exponential(table: Notes, tokenizer: ExponentialTimeTokenizer) -> None:
    unit, bins = tokenizer.config.time_unit, tokenizer.config.velocity_bins
    found, wanted = by_key(tokenizer.decode_notes(tokenizer.encode_notes(table))), by_key(table)
    assert np.array_equal(found["pitch"], wanted["pitch"])
    assert np.all(abs(found["start"] - wanted["start"]) <= unit / 2 + 1e-9)
    none = np.rint(wanted["start"] / unit) == np.rint(wanted["end"] / unit)
    assert np.all(abs(found["end"] - wanted["end"]) <= np.where(none, 1.5, 0.5) * unit + 1e-9)
    assert np.all(abs(found["velocity"] - wanted["velocity"]) <= np.ceil(64 / bins))


def test_recorded_performances_come_back_within_the_bounds(shared: Path) -> None:
    tokenizer, count = exponential(), 0
    files = sorted((shared / "data" / "midi").glob("*.mid"))[:12]
    for file in files:
        table = read_midi(file)
        check_exponential(table, tokenizer)
        count += len(table)
    assert count > 10_000
