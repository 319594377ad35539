"""Notes to ids and back: against plain loops over names of tokens, and within the documented bounds."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tests.helpers import run_config, write_jsonl
from tests.piano.note_tokenizers import (
    COLUMNS,
    FAMILIES,
    by_key,
    every_kind,
    exponential,
    merged,
    miditok,
    performance,
    pianistic,
    played,
    quick,
    same,
)

from quintet.config.tokenizer import (
    ExponentialTimeTokenizerConfig,
    MidiTokTokenizerConfig,
    NoteBPETokenizerConfig,
    TokenizerConfig,
)
from quintet.data.prepare import build_tokenizer_of
from quintet.errors import UserError
from quintet.piano.notes import from_numbers, to_numbers
from quintet.piano.tokenizers.bpe import NoteBPETokenizer, train
from quintet.piano.tokenizers.exponential import ExponentialTimeTokenizer
from quintet.piano.tokenizers.miditok import MidiTokTokenizer
from quintet.tokenize import TextStream, build_tokenizer, load_tokenizer


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
    """Sennrich's rule: of all neighbouring pairs merge the one that was learned first, at its first place."""
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
    """The step to which a note's length is rounded, in seconds, by the documentation of the defaults."""
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
