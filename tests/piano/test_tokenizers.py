"""Notes to ids and back: against plain loops over the names of tokens, and within the bounds that are promised."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tests.helpers import run_config, write_jsonl

from quintet.config.tokenizer import (
    ExponentialTimeTokenizerConfig,
    MidiTokTokenizerConfig,
    NoteBPETokenizerConfig,
    TokenizerConfig,
)
from quintet.data.prepare import build_tokenizer_of
from quintet.errors import UserError
from quintet.piano.midi import read_midi
from quintet.piano.notes import Notes, from_numbers, notes, to_numbers
from quintet.piano.tokenizers.base import NoteTokenizer
from quintet.piano.tokenizers.bpe import NoteBPETokenizer, train
from quintet.piano.tokenizers.exponential import ExponentialTimeTokenizer
from quintet.piano.tokenizers.miditok import MidiTokTokenizer
from quintet.tokenize import TextStream, build_tokenizer, load_tokenizer

FAMILIES = ["REMI", "TSD", "MIDILike", "Structured", "PerTok"]
COLUMNS = ("pitch", "velocity", "start", "end")
quick = settings(max_examples=60)


def played(rows: Iterable[tuple[float, float, float, float]]) -> Notes:
    """Notes from rows of pitch, velocity, start, end."""
    return notes(*np.array(list(rows), dtype=float).reshape(-1, 4).T)


def performance(seed: int, count: int, keys: int = 40, gap: float = 0.12, length: float = 0.5) -> Notes:
    draw = np.random.default_rng(seed)
    start = np.cumsum(draw.exponential(gap, count))
    end = start + 0.02 + draw.exponential(length, count)
    return notes(draw.integers(40, 40 + keys, count), draw.integers(1, 128, count), start, end)


@cache
def exponential(**keys: Any) -> ExponentialTimeTokenizer:
    return ExponentialTimeTokenizer(ExponentialTimeTokenizerConfig(kind="exponential_time", **keys))


@cache
def miditok(family: str) -> MidiTokTokenizer:
    config = MidiTokTokenizerConfig(kind="miditok", family=family, special_tokens=3)  # pyright: ignore
    return MidiTokTokenizer(config)


@cache
def merged() -> NoteBPETokenizer:
    config = NoteBPETokenizerConfig(kind="note_bpe", vocab_size=400)
    return train(config, exponential(special_tokens=3), [performance(seed, 300) for seed in range(5)])


def every_kind() -> list[NoteTokenizer]:
    return [exponential(special_tokens=3), merged(), *(miditok(family) for family in FAMILIES)]


ANY_TIME = st.integers(0, 400).map(lambda half_steps: half_steps * 0.005) | st.floats(0, 20)
ANY_NOTE = st.tuples(st.sampled_from([21, 60, 61, 108]), st.integers(1, 127), ANY_TIME, ANY_TIME)
ANY_NOTES = st.lists(ANY_NOTE, max_size=25).map(
    lambda rows: played((pitch, loud, a, a + length + 1e-4) for pitch, loud, a, length in rows)
)


@st.composite
def pianistic(draw: st.DrawFn, pause: float = 0.05, longest: float = 30.0) -> Notes:
    """Notes of which no pitch is struck while it sounds, nor within ``pause`` seconds."""
    rows = []
    for pitch in draw(st.lists(st.integers(21, 108), unique=True, max_size=4)):
        now = 0.0
        for _ in range(draw(st.integers(1, 4))):
            now += draw(st.floats(pause, 3))
            length = draw(st.floats(1e-4, 1.0) | st.floats(1.0, longest))
            rows.append((pitch, draw(st.integers(1, 127)), now, now + length))
            now += length
    return played(rows)


def by_key(table: Notes) -> dict[str, np.ndarray]:
    """Columns of the notes, each pitch after the other, in the order of their starts."""
    order = np.lexsort((table.start, table.pitch))
    return {name: getattr(table, name)[order] for name in COLUMNS}


def same(one: Notes, other: Notes) -> bool:
    return all(np.allclose(getattr(one, name), getattr(other, name), rtol=0, atol=1e-9) for name in COLUMNS) and (
        len(one) == len(other)
    )


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


@pytest.mark.parametrize("pitch", [20, 109])
def test_pitches_that_no_piano_has_are_refused_or_left_out(pitch: int) -> None:
    table = played([(pitch, 64, 0, 1), (60, 64, 0.5, 1)])
    for tokenizer in every_kind():
        with pytest.raises(
            UserError, match=rf"1 of 2 have a pitch that no piano has .* first {pitch}; .*outside: drop"
        ):
            tokenizer.encode_notes(table)
    dropping = exponential(outside="drop")
    assert dropping.decode_notes(dropping.encode_notes(table)).pitch.tolist() == [60]


def test_times_before_the_beginning_are_refused() -> None:
    for tokenizer in every_kind():
        with pytest.raises(UserError, match=r"one starts at -0\.5 seconds; move the piece"):
            tokenizer.encode_notes(played([(60, 64, -0.5, 1)]))


# What holds for every kind.


def test_names_are_the_text_of_every_kind() -> None:
    piece = performance(1, 40)
    for tokenizer in every_kind():
        names, ids = tokenizer.names(), tokenizer.encode_notes(piece)
        assert len(set(names)) == len(names) == tokenizer.vocab_size
        text = tokenizer.decode(ids)
        assert text.split() == [names[token] for token in ids]
        assert tokenizer.encode(text) == ids.tolist()
        assert [batch.tolist() for batch in tokenizer.encode_batch([text, ""])] == [ids.tolist(), []]
        stream = TextStream(tokenizer)
        assert "".join([*map(stream.push, ids), stream.finish()]) == text
        assert tokenizer.bytes_per_token().tolist() == [0] * tokenizer.vocab_size
        assert tokenizer.decode([*ids, tokenizer.end_id]) == text, "the end writes nothing"
        assert tokenizer.encode(names[tokenizer.end_id]) == [tokenizer.end_id]
        with pytest.raises(UserError, match=r"'C4' is the name of no token; .* names of tokens, such as"):
            tokenizer.encode(f"{text} C4")


def test_no_music_is_no_ids_and_the_end_and_padding_are_silent() -> None:
    piece = performance(2, 30)
    for tokenizer in every_kind():
        assert len(tokenizer.encode_notes(piece[:0])) == 0
        assert len(tokenizer.decode_notes([])) == 0
        ids = tokenizer.encode_notes(piece)
        assert tokenizer.pad_id != tokenizer.end_id
        assert not {tokenizer.pad_id, tokenizer.end_id} & set(ids.tolist())
        silent = [tokenizer.pad_id, tokenizer.end_id, tokenizer.vocab_size, tokenizer.vocab_size + 5]
        mixed = np.insert(ids.astype(np.int64), np.arange(len(ids)), np.resize(silent, len(ids)))
        assert same(tokenizer.decode_notes(mixed), tokenizer.decode_notes(ids))


def test_special_names_take_the_free_ids_in_their_order() -> None:
    for tokenizer in every_kind():
        free = [tokenizer.names().index(f"<PLACEHOLDER_{index}>") for index in range(3)]
        named = tokenizer.with_special(["<GENAI>", "<TASK>"])
        assert named.vocab_size == tokenizer.vocab_size
        assert [named.special("<GENAI>"), named.special("<TASK>")] == free[:2]
        assert named.names()[free[2]] == "<PLACEHOLDER_2>"
        assert free == list(range(free[0], free[0] + 3))
        more = named.with_special(["<TASK>", "<MORE>"])
        assert [more.special(name) for name in ("<GENAI>", "<TASK>", "<MORE>")] == free
        assert more.special_names == ("<GENAI>", "<TASK>", "<MORE>")
        piece = performance(3, 20)
        assert np.array_equal(more.encode_notes(piece), tokenizer.encode_notes(piece))
        ids = [free[0], *tokenizer.encode_notes(piece)]
        assert same(more.decode_notes(ids), tokenizer.decode_notes(ids)), "special names are no music"
        assert len({one.fingerprint for one in (tokenizer, named, more)}) == 3
        with pytest.raises(UserError, match=r"special_tokens: 4 special names .* do not fit into 3 free ids; raise it"):
            more.with_special(["<FOURTH>"])
        with pytest.raises(UserError, match="has no special token <FOURTH>; it has <GENAI> <TASK> <MORE>"):
            more.special("<FOURTH>")
        with pytest.raises(UserError, match=r"names: .* is the name of another token already"):
            tokenizer.with_special([tokenizer.names()[5]])


def test_the_names_of_the_run_file_come_first() -> None:
    tokenizer = exponential(names=("B", "A")).with_special(["A", "C"])
    assert [tokenizer.special(name) for name in "BAC"] == [217, 218, 219]
    made = ExponentialTimeTokenizer(ExponentialTimeTokenizerConfig(kind="exponential_time", names=("B",)), ["A", "B"])
    assert made.special_names == ("B", "A")


def test_every_kind_is_saved_and_loaded(tmp_path: Path) -> None:
    piece = performance(4, 50)
    for index, made in enumerate(every_kind()):
        tokenizer = made.with_special(["<GENAI>"])
        folder = tmp_path / str(index)
        folder.mkdir()
        tokenizer.save(folder)
        loaded: Any = load_tokenizer(folder)
        assert type(loaded) is type(tokenizer)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.names() == tokenizer.names()
        assert loaded.special("<GENAI>") == tokenizer.special("<GENAI>")
        assert np.array_equal(loaded.encode_notes(piece), tokenizer.encode_notes(piece))
    fingerprints = {one.fingerprint for one in every_kind()}
    others = [exponential(special_tokens=3, **keys) for keys in ({"time_unit": 0.02}, {"outside": "drop"})]
    assert len(fingerprints | {one.fingerprint for one in others}) == len(every_kind()) + 2


@pytest.mark.parametrize(
    "changes", [{"config": None}, {"config": {"time_unit": 0}}, {"special": 3}, {"special": ["<OTHER>"]}]
)
def test_a_damaged_folder_is_said_to_be(tmp_path: Path, changes: dict[str, Any]) -> None:
    exponential(special_tokens=3).save(tmp_path)
    file = tmp_path / "quintet.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=r"quintet\.json: is damaged"):
        load_tokenizer(tmp_path)


def test_damaged_merges_are_said_to_be(tmp_path: Path) -> None:
    merged().save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: is damaged"):
        load_tokenizer(tmp_path)
    (tmp_path / "base" / "quintet.json").unlink()
    with pytest.raises(UserError, match=r"base.quintet\.json: does not exist"):
        load_tokenizer(tmp_path)


def test_the_kinds_are_known_once_the_package_is_imported_and_need_no_heavy_library(tmp_path: Path) -> None:
    exponential().save(tmp_path)
    heavy = "{'torch', 'miditok', 'symusic', 'tokenizers', 'mido', 'music21'}"
    code = (
        "import sys, pathlib, quintet.piano.tokenizers\n"
        "from quintet.tokenize.registry import load_tokenizer\n"
        "found = load_tokenizer(pathlib.Path(sys.argv[1])).vocab_size\n"
        f"print(found, sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "1241 []", done.stderr


# Byte-pair encoding of notes.


def test_merged_ids_are_the_bases_and_behind_them_pairs() -> None:
    tokenizer = merged()
    base = tokenizer.base
    assert tokenizer.vocab_size == 400
    names = tokenizer.names()
    assert names[: base.vocab_size] == base.names()
    assert all("+" in name for name in names[base.vocab_size :])
    assert (tokenizer.pad_id, tokenizer.end_id) == (base.pad_id, base.end_id)
    for token in range(base.vocab_size, 400):
        assert "+".join(base.names()[part] for part in tokenizer.unmerged([token])) == names[token]


def merged_by_hand(parts: list[tuple[str, ...]], order: dict[tuple[str, ...], int]) -> list[tuple[str, ...]]:
    """Sennrich's rule: of all pairs that stand side by side, merge the first that was learnt, at its first place."""
    while True:
        known = [(order[a + b], at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in order]
        if not known:
            return parts
        at = min(known)[1]
        parts = [*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]]


@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_notes_are_merged_by_the_rule(seed: int) -> None:
    tokenizer = merged()
    base, names = tokenizer.base, tokenizer.names()
    piece = performance(seed, 25)
    ids = tokenizer.encode_notes(piece)
    order = {tuple(name.split("+")): token for token, name in enumerate(names) if token >= base.vocab_size}
    start = [(name,) for name in base.decode(base.encode_notes(piece)).split()]
    assert [names[token] for token in ids] == ["+".join(parts) for parts in merged_by_hand(start, order)]
    assert len(ids) < len(start)
    assert np.array_equal(tokenizer.unmerged(ids), base.encode_notes(piece))
    assert same(tokenizer.decode_notes(ids), base.decode_notes(base.encode_notes(piece)))


@quick
@given(st.lists(st.integers(-3, 410), max_size=60), st.booleans())
def test_any_merged_ids_decode_as_what_they_stand_for(ids: list[int], close: bool) -> None:
    tokenizer = merged()
    words = [tokenizer.names()[token] for token in ids if 0 <= token < 400]
    base = tokenizer.base
    expected = base.decode_notes(base.encode(" ".join(words).replace("+", " ")), close=close)
    assert same(tokenizer.decode_notes(ids, close=close), expected)


def test_merges_obey_their_limits_and_are_the_same_again() -> None:
    pieces = [performance(0, 400, keys=2)] * 3
    base = exponential(special_tokens=3)

    def lengths(**keys: int) -> NoteBPETokenizer:
        return train(NoteBPETokenizerConfig(kind="note_bpe", **keys), base, pieces)  # pyright: ignore

    free, short = lengths(vocab_size=900), lengths(vocab_size=900, max_token_length=3)
    longest = [max(len(one.unmerged([token])) for token in range(one.vocab_size)) for one in (free, short)]
    assert longest[0] > 3
    assert longest[1] == 3
    assert lengths(vocab_size=900).fingerprint == free.fingerprint != short.fingerprint
    assert len(lengths(vocab_size=900, train_tokens=200).encode_notes(pieces[0])) > len(free.encode_notes(pieces[0]))
    with pytest.raises(UserError, match=r"vocab_size: 219 are fewer than the 220 ids of tokenizer.base; raise it"):
        lengths(vocab_size=219)
    with pytest.raises(UserError, match=r"no notes to train on; check data\.sources"):
        train(NoteBPETokenizerConfig(kind="note_bpe"), base, [])


def test_other_bases_can_be_merged() -> None:
    pieces = [performance(seed, 200) for seed in range(3)]
    base = miditok("TSD")
    tokenizer = train(NoteBPETokenizerConfig(kind="note_bpe", vocab_size=base.vocab_size + 50), base, pieces)
    ids = tokenizer.encode_notes(pieces[0])
    assert len(ids) < len(base.encode_notes(pieces[0]))
    assert same(tokenizer.decode_notes(ids), base.decode_notes(base.encode_notes(pieces[0])))


def test_a_run_trains_it_on_its_sources_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [performance(seed, 120) for seed in range(4)]
    rows = [{"notes": {name: getattr(piece, name).tolist() for name in COLUMNS}, "source": "{}"} for piece in pieces]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    source = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl"), "document": {"kind": "notes"}}
    tokenizer_config = {"kind": "note_bpe", "vocab_size": 1300, "base": {"time_unit": 0.02}}
    data = {"sources": [source], "validation": 0.01}
    config = run_config(tmp_path, data=data, tokenizer=tokenizer_config)
    tokenizer: Any = build_tokenizer_of(config)
    assert tokenizer.vocab_size == 1300
    base = exponential(time_unit=0.02)
    # The store has pieces from 0 on, and tenths of milliseconds.
    stored = [from_numbers(to_numbers(piece.moved(-piece.start[0]), 0, 0)[2:]) for piece in pieces]
    expected = train(NoteBPETokenizerConfig(kind="note_bpe", vocab_size=1300), base, stored)
    assert tokenizer.fingerprint == expected.with_special(tokenizer.special_names).fingerprint
    monkeypatch.setattr("quintet.piano.tokenizers.bpe.train", lambda *_: pytest.fail("trained again"))
    assert build_tokenizer_of(config).fingerprint == tokenizer.fingerprint


# The MidiTok library's.


def length_steps(family: str, seconds: np.ndarray) -> np.ndarray:
    """What a note's length is rounded to, in seconds, as the documentation of the defaults says."""
    if family == "MIDILike":
        return np.full(len(seconds), 0.5 / 24)
    if family == "Structured":
        return np.full(len(seconds), 0.5 / 24)
    fine, middle, coarse = (12, 4, 1) if family == "PerTok" else (24, 8, 2)
    return 0.5 / np.select([seconds < 2 - 0.5 / fine, seconds < 6 - 0.5 / middle], [fine, middle], coarse)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40)
@given(data=st.data())
def test_the_bounds_of_the_families(family: str, data: st.DataObject) -> None:
    table = data.draw(pianistic(longest=1.5 if family == "Structured" else 30.0))
    tokenizer = miditok(family)
    found, wanted = by_key(tokenizer.decode_notes(tokenizer.encode_notes(table))), by_key(table)
    assert np.array_equal(found["pitch"], wanted["pitch"])
    tick = 0.5 / (480 if family == "PerTok" else 24)
    early = 2.5 * tick if family == "PerTok" else 0.5 * tick
    assert np.all(abs(found["start"] - wanted["start"]) <= early + 1e-9)
    late = early + tick + length_steps(family, wanted["end"] - wanted["start"]) * (1 if family == "PerTok" else 0.5)
    assert np.all(abs(found["end"] - wanted["end"]) <= late + 1e-9)
    assert np.all(abs(found["velocity"] - wanted["velocity"]) <= 127 / 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_a_model_writes_can_be_heard(family: str) -> None:
    tokenizer, draw = miditok(family), np.random.default_rng(0)
    music = tokenizer.encode_notes(performance(5, 400))
    heard = 0
    for turn in range(300):
        ids = draw.integers(-3, tokenizer.vocab_size + 3, 60)
        if turn % 2:  # mostly music
            at = draw.integers(0, len(music) - 60)
            ids = np.where(draw.random(60) < 0.2, ids, music[at : at + 60].astype(np.int64))
        found = tokenizer.decode_notes(ids, close=turn % 3 > 0)
        assert np.all(found.end > found.start)
        assert np.all((found.pitch >= 21) & (found.pitch <= 108) & (found.velocity >= 1) & (found.velocity <= 127))
        assert np.all(found.start >= 0)
        columns = by_key(found)
        again = np.diff(columns["pitch"]) == 0
        assert np.all(columns["end"][:-1][again] <= columns["start"][1:][again]), "a pitch sounds twice at a time"
        heard += len(found)
    assert heard > 1000


def test_an_open_note_ends_with_the_last_id_or_is_left_out() -> None:
    for tokenizer, text in (
        (miditok("MIDILike"), "NoteOn_60 Velocity_63 TimeShift_1.0.24"),
        (exponential(), "VELOCITY_15 NOTE_ON_60 32T 16T 2T"),
    ):
        ids = tokenizer.encode(text)
        closed = tokenizer.decode_notes(ids)
        assert (closed.pitch.tolist(), closed.start.tolist(), closed.end.tolist()) == ([60], [0.0], [0.5])
        assert len(tokenizer.decode_notes(ids, close=False)) == 0


def test_structured_cannot_be_silent_for_long() -> None:
    tokenizer = miditok("Structured")
    quiet = played([(60, 64, 0, 1), (62, 64, 7.9, 8)])
    assert tokenizer.decode_notes(tokenizer.encode_notes(quiet)).start == pytest.approx([0, 7.9], abs=0.5 / 48)
    with pytest.raises(UserError, match=r"8\.1 seconds pass before the note at 8\.1 s, and .* can let 8\.0 pass; cut"):
        tokenizer.encode_notes(played([(60, 64, 0, 1), (62, 64, 8.1, 9)]))


def test_arguments_go_to_the_library() -> None:
    def made(family: str, **arguments: Any) -> MidiTokTokenizer:
        config = MidiTokTokenizerConfig(kind="miditok", family=family, arguments=arguments)  # pyright: ignore
        return MidiTokTokenizer(config)

    fine = made("TSD", beat_res={"0_8": 50}, num_velocities=127)
    table = played([(60, 33, 0.1, 0.35), (60, 34, 0.36, 2.0)])
    found = fine.decode_notes(fine.encode_notes(table))
    assert found.start == pytest.approx(table.start)
    assert found.end == pytest.approx(table.end)
    assert found.velocity.tolist() == [33, 34]
    programs = made("MIDILike", use_programs=True)
    assert same(programs.decode_notes(programs.encode_notes(table[:1])), played([(60, 35, 5 / 48, 17 / 48)]))
    odd = programs.decode_notes(programs.encode("Program_0 NoteOn_60 Program_0 TimeShift_1.0.24"))
    assert odd.velocity.tolist() == [1], "a program in the place of a velocity"
    assert not any(name.startswith("Velocity") for name in made("REMI", use_velocities=False).names())
    for arguments, problem in (
        ({"beat_rse": {}}, "arguments.beat_rse: MidiTok's TSD has no such argument; did you mean beat_res"),
        ({"max_duration": 3}, "arguments.max_duration: MidiTok's TSD has no such"),
        ({"special_tokens": []}, "arguments.special_tokens: is set by tokenizer.special_tokens"),
        ({"beat_res": {"0": 3}}, r"arguments.beat_res: .* must say steps for ranges of beats"),
        ({"beat_res": 8}, r"arguments.beat_res: 8 must say steps"),
        ({"num_velocities": "many"}, "arguments: MidiTok's TSD refuses them"),
    ):
        with pytest.raises(UserError, match=problem):
            made("TSD", **arguments)
    with pytest.raises(UserError, match="beat_res: must be one range for family Structured"):
        made("Structured", beat_res={"0_4": 24, "4_8": 12})


def test_the_library_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "miditok", None)
    config = MidiTokTokenizerConfig(kind="miditok")
    with pytest.raises(UserError, match=r"needs miditok, which is not installed; pip install 'quintet\[miditok\]'"):
        build_tokenizer(config, list, "", Path())


# The section of the run file.


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"kind": "exponential_time", "time_unit": 1.0}, "must be above time_unit = 1.0"),
        ({"kind": "exponential_time", "velocity_bins": 129}, "velocity_bins"),
        ({"kind": "exponential_time", "names": ["a b"]}, "must be one word without spaces"),
        ({"kind": "exponential_time", "names": ["a", "a"]}, "a name is given twice"),
        ({"kind": "miditok", "names": ["a", "b"], "special_tokens": 1}, "2 names are more than special_tokens = 1"),
        ({"kind": "miditok", "family": "Octuple"}, "family"),
        ({"kind": "note_bpe", "base": {"kind": "byte"}}, "base"),
    ],
)
def test_what_cannot_be_is_refused(section: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        TypeAdapter(TokenizerConfig).validate_python(section)


def test_the_defaults_are_piano_gpts() -> None:
    config: Any = TypeAdapter(TokenizerConfig).validate_python({"kind": "note_bpe"})
    assert (config.vocab_size, config.max_token_length) == (10_000, 128)
    assert config.base.model_dump() == {
        "kind": "exponential_time",
        "time_unit": 0.01,
        "max_time_step": 1.0,
        "velocity_bins": 32,
        "special_tokens": 1024,
        "names": (),
        "outside": "refuse",
    }
