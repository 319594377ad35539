"""Training samples of piano music, each a function of its number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers import run_config, run_values

from quintet.config.schema import RunConfig
from quintet.data.manifest import Manifest
from quintet.data.note_samples import NoteSamples
from quintet.data.prepare import Prepared, prepare
from quintet.errors import UserError
from quintet.piano.context import ANSWER, END_OF_ANSWER
from quintet.piano.notes import Notes, notes

TIMED = {"kind": "exponential_time"}


def piece(seed: int, count: int = 60) -> Notes:
    draw = np.random.default_rng(seed)
    start = np.cumsum(draw.uniform(0.05, 0.4, count))
    return notes(
        draw.integers(40, 90, count), draw.integers(20, 110, count), start, start + draw.uniform(0.05, 0.9, count)
    )


def write_rows(file: Path, pieces: list[Notes], composers: list[str]) -> Path:
    """Rows of notes as in the data sets of piano-gpt."""
    with file.open("w") as out:
        for one, composer in zip(pieces, composers, strict=True):
            table = {name: getattr(one, name).tolist() for name in ("pitch", "velocity", "start", "end")}
            out.write(
                json.dumps({"notes": table, "source": json.dumps({"composer": composer, "dataset": "maestro"})}) + "\n"
            )
    return file


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    pieces = [piece(seed) for seed in range(6)]
    return write_rows(tmp_path / "rows.jsonl", pieces, ["Johann Sebastian Bach", "Chopin", "Unknown"] * 2)


def prepared(
    rows: Path, packing: dict[str, Any] | None = None, source: dict[str, Any] | None = None, **data: Any
) -> Prepared:
    own = {
        "sources": [{"kind": "jsonl", "path": str(rows), "document": {"kind": "notes", **(source or {})}}],
        "validation": 0.2,
        "sequence_length": 128,
        **({} if packing is None else {"packing": packing}),
    }
    return prepare(run_config(rows.parent, data=own | data, tokenizer=TIMED, train={"steps": 2}))


def samples_of(made: Prepared) -> NoteSamples:
    found = made.train.source_samples[0]
    assert isinstance(found, NoteSamples)
    return found


def names(samples: NoteSamples, index: int) -> list[str]:
    return [samples.tokenizer.names()[token] for token in samples.sample(index).ids.tolist()]


def test_a_sample_begins_with_the_data_set_and_the_composer_and_then_any_note(rows: Path) -> None:
    samples = samples_of(prepared(rows))
    for index in (0, 1, samples.count - 1):
        found = names(samples, index)
        assert found[0] == "<MAESTRO>"
        assert found[1] in ("<BACH>", "<CHOPIN>", "<UNKNOWN_COMPOSER>")
        assert found[2].startswith("VELOCITY_")
        assert len(found) <= 129


def test_a_sample_holds_the_notes_of_its_piece_from_its_note_on(rows: Path) -> None:
    samples = samples_of(prepared(rows, validation=0))
    first, second = (samples.tokenizer.decode_notes(samples.sample(index).ids) for index in (0, 1))
    original = piece(0)
    assert np.array_equal(first.pitch[:10], original.pitch[:10])
    assert np.array_equal(second.pitch[:10], original.pitch[1:11])
    assert np.abs(first.start[:10] - (original.start[:10] - original.start[0])).max() <= 0.011


def test_what_is_held_out_and_what_is_trained_on_are_all_notes_but_the_one_that_is_cut(rows: Path) -> None:
    made = prepared(rows)
    assert made.validation is not None
    both = samples_of(made).tokens + made.validation.tokens
    assert 360 - 1 <= both <= 360
    assert made.validation.tokens >= 0.15 * 360


def test_the_end_of_a_piece_is_told(rows: Path) -> None:
    samples = samples_of(prepared(rows, validation=0))
    ends = [index for index in range(samples.count) if samples.tokenizer.end_id in samples.sample(index).ids]
    assert ends
    assert all(samples.sample(index).ids[-1] == samples.tokenizer.end_id for index in ends)


def test_variants_change_speed_and_pitch_of_what_is_trained_on_only(rows: Path) -> None:
    made = prepared(rows, {"kind": "pieces", "speeds": [2.0], "max_pitch_shift": 2})
    samples, held_out = samples_of(made), made.validation.source_samples[0]
    assert samples.variants == 10
    assert held_out.variants == 1
    heard = [samples.tokenizer.decode_notes(samples.sample(variant).ids) for variant in range(10)]
    shifts = sorted({int(one.pitch[0] - heard[0].pitch[0]) for one in heard})
    assert shifts == [-2, -1, 0, 1, 2]
    assert heard[1].start[5] == pytest.approx(heard[0].start[5] / 2, abs=0.011)


def test_a_pitch_is_never_shifted_beyond_the_keys(tmp_path: Path) -> None:
    low = Notes(np.full(60, 22), np.full(60, 64), np.arange(60) * 0.2, np.arange(60) * 0.2 + 0.1)
    rows = write_rows(tmp_path / "rows.jsonl", [low], ["Bach"])
    samples = samples_of(prepared(rows, {"kind": "pieces", "max_pitch_shift": 3}, validation=0))
    heard = {
        int(samples.tokenizer.decode_notes(samples.sample(index).ids).pitch[0]) for index in range(samples.variants)
    }
    assert heard == {21, 22, 23, 24, 25}


@pytest.mark.parametrize("learn_prompts", [False, True])
def test_a_task_splits_a_record_and_the_answer_is_whole(rows: Path, learn_prompts: bool) -> None:
    packing = {"kind": "tasks", "notes_per_record": 16, "tasks": ["high_notes_masking-x5", "top_line_masking-x1"]}
    samples = samples_of(prepared(rows, packing, sequence_length=256, learn_prompts=learn_prompts, validation=0))
    assert len(samples.tasks) == 2
    sample, found = samples.sample(0), names(samples, 0)
    assert found[2:4] == ["<PARAMETRIC_HIGH_NOTES>", "<PARAMETER_5>"]
    assert found[-1] == END_OF_ANSWER
    at = found.index(ANSWER)
    prompt, answer = (samples.tokenizer.decode_notes(part) for part in (sample.ids[:at], sample.ids[at:]))
    assert (len(prompt), len(answer)) == (11, 5)
    assert answer.pitch.min() >= prompt.pitch.max()
    assert sorted([*prompt.pitch, *answer.pitch]) == sorted(piece(0, 60).pitch[:16].tolist())
    assert sample.loss_mask is not None
    assert sample.loss_mask.tolist() == [learn_prompts or place > at for place in range(len(found))]


def test_a_record_that_does_not_fit_is_shorter_and_its_answer_still_whole(rows: Path) -> None:
    packing = {"kind": "tasks", "notes_per_record": 60, "tasks": ["top_line_masking-x2"]}
    samples = samples_of(prepared(rows, packing, validation=0))
    for index in range(samples.count):
        found = names(samples, index)
        assert found[-1] == END_OF_ANSWER
        assert len(found) <= 129


def test_records_have_as_many_notes_as_is_drawn_for_each(rows: Path) -> None:
    packing = {"kind": "tasks", "notes_per_record": 9, "min_notes_per_record": 5, "tasks": ["random_masking-x50"]}
    samples = samples_of(prepared(rows, packing, sequence_length=256, validation=0))
    again = samples_of(prepared(rows, packing, sequence_length=256, validation=0))
    sizes = [len(samples.tokenizer.decode_notes(samples.sample(index).ids[:-1])) for index in range(120)]
    heard = [found.count("NOTE_ON") for found in (" ".join(names(samples, index)) for index in range(120))]
    assert max(sizes) <= 9
    assert {size: heard.count(size) > 10 for size in range(5, 10)} == dict.fromkeys(range(5, 10), True)
    assert sum(heard.count(size) for size in range(5, 10)) == 120
    assert [again.sample(index).ids.tolist() for index in range(9)] == [
        samples.sample(index).ids.tolist() for index in range(9)
    ]


@pytest.mark.parametrize("task", ["top_line_masking-x1", "stride_notes_masking-x1", "random_masking-x100"])
def test_a_task_on_a_part_of_a_record_leaves_the_rest_in_the_prompt(rows: Path, task: str) -> None:
    """Every note is in one of the two, and the answer lies within a run of the record's notes."""
    packing = {"kind": "tasks", "notes_per_record": 16, "min_task_notes": 6, "tasks": [task]}
    samples = samples_of(prepared(rows, packing, sequence_length=256, validation=0))
    parts = set()
    for index in range(40):
        ids = samples.sample(index).ids
        at = names(samples, index).index(ANSWER)
        prompt, answer = (samples.tokenizer.decode_notes(part) for part in (ids[:at], ids[at:]))
        record = samples.pieces.read(0, index, 16)
        assert sorted([*prompt.pitch, *answer.pitch]) == sorted(record.pitch.tolist())
        if task == "random_masking-x100":
            found = [bool(one in answer.pitch) for one in record.pitch]
            assert len(answer) >= 6
            assert sum(found) >= len(answer)
            parts.add(len(answer))
    assert len(parts) > 3 or task != "random_masking-x100"


def test_a_task_that_alters_notes_is_on_the_whole_record(rows: Path) -> None:
    packing = {"kind": "tasks", "notes_per_record": 16, "min_task_notes": 6, "tasks": ["performance_task"]}
    samples = samples_of(prepared(rows, packing, sequence_length=256, validation=0))
    for index in range(10):
        ids, at = samples.sample(index).ids, names(samples, index).index(ANSWER)
        assert [len(samples.tokenizer.decode_notes(part)) for part in (ids[:at], ids[at:])] == [16, 16]


@pytest.mark.parametrize("name", ["min_notes_per_record", "min_task_notes"])
def test_the_least_is_not_above_the_most(rows: Path, name: str) -> None:
    with pytest.raises(ValueError, match="17 is more than notes_per_record = 16"):
        prepared(rows, {"kind": "tasks", "notes_per_record": 16, name: 17})


def test_a_labelled_part_to_validate_on_may_be_empty_but_not_all_of_them(rows: Path) -> None:
    def part(*composers: str, label: str | None = None) -> dict[str, Any]:
        document = {"kind": "notes", "only_by": list(composers)}
        return {"kind": "jsonl", "path": str(rows), "document": document, **({"label": label} if label else {})}

    parts = [part("bach", label="bach"), part("haydn", label="haydn")]
    more = {"validation": 0, "deduplicate_validation": False}
    made = prepared(rows, validation_sources=parts, **more)
    assert made.validation is not None
    assert [stream.count > 0 for stream in made.validation.source_samples] == [True, False]
    assert set(np.concatenate([batch.sources for batch in made.validation.batches(4, None)]).tolist()) == {0}
    assert made.validation.lines() == ["not validated on: haydn, which has nothing or too little for a sample"]
    with pytest.raises(UserError, match="0 tokens to validate on"):
        prepared(rows, validation_sources=parts[1:], **more)
    with pytest.raises(UserError, match=r"data\.validation_sources\[0\].* holds no text"):
        prepared(rows, validation_sources=[part("haydn")], **more)


def test_pieces_are_cut_at_pauses_and_chosen_by_composer(tmp_path: Path) -> None:
    first, second = piece(1), piece(2).moved(60.0)
    both = notes(
        *(
            np.concatenate([getattr(first, name), getattr(second, name)])
            for name in ("pitch", "velocity", "start", "end")
        )
    )
    rows = write_rows(tmp_path / "rows.jsonl", [both, piece(3)], ["Franz Liszt", "Haydn"])
    whole, cut = (prepared(rows, source=source, validation=0) for source in ({}, {"pauses": 4.0}))
    assert [made.stores[0].document_count for made in (whole, cut)] == [2, 3]
    assert samples_of(whole).tokens == samples_of(cut).tokens == 180  # the part after the pause is included
    liszt = prepared(rows, source={"only_by": ["liszt"]}, validation=0)
    assert samples_of(liszt).tokens == 120
    assert liszt.stores[0].manifest.dropped == {"another_composer": 1}


def test_files_that_are_no_midi_are_counted_and_named(tmp_path: Path) -> None:
    from quintet.piano.midi import write_midi

    (tmp_path / "music").mkdir()
    for seed in range(3):
        write_midi(piece(seed), tmp_path / f"music/Mozart {seed}.mid")
    (tmp_path / "music/broken.mid").write_bytes(b"MThd no more")
    data = {"sources": [{"kind": "midi", "path": str(tmp_path / "music")}], "validation": 0, "sequence_length": 64}
    made = prepare(run_config(tmp_path, data=data, tokenizer=TIMED))
    manifest = made.stores[0].manifest
    assert manifest.dropped == {"no_midi": 1}
    assert manifest.left_out_files == ("broken.mid",)
    samples = samples_of(made)
    assert names(samples, 0)[:2] == ["<PIANO_FOR_AI>", "<MOZART>"]
    data["sources"][0]["on_error"] = "stop"
    with pytest.raises(UserError, match=r"broken\.mid"):
        prepare(run_config(tmp_path, data=data, tokenizer=TIMED))


def test_files_at_an_address_are_read_as_those_on_this_disk(tmp_path: Path) -> None:
    from quintet.piano.midi import midi_bytes

    elsewhere = pytest.importorskip("fsspec").filesystem("memory")
    (tmp_path / "music").mkdir()
    for seed in range(2):
        (tmp_path / f"music/Mozart {seed}.mid").write_bytes(midi_bytes(piece(seed)))
        elsewhere.pipe(f"/music/Mozart {seed}.mid", midi_bytes(piece(seed)))

    def made(path: str) -> Prepared:
        data = {"sources": [{"kind": "midi", "path": path}], "validation": 0, "sequence_length": 64, "processes": 1}
        return prepare(run_config(tmp_path, data=data, tokenizer=TIMED))

    here, there = made(str(tmp_path / "music")), made("memory://music")
    assert there.stores[0].document_count == 2
    assert there.fingerprint == here.fingerprint


def test_what_is_left_out_is_counted_under_its_reason(tmp_path: Path) -> None:
    """Files with no note, with one, with lyrics only, without the track, with several pieces; and what is skipped."""
    events = {
        "lone": b"\0\x90\x3c\x40",
        "lyrics": b"\0\xff\5\2la",
        "one": b"\0\xff\3\4Left\0\x90\x3c\x40\x60\x80\x3c\0",
        "right": b"\0\xff\3\5Right\0\x90\x3c\x40\x60\x80\x3c\0",
        "left": b"\0\xff\3\4Left\0\xff\x59\2\xee\1" + 2 * b"\0\x90\x3c\x40\x60\x80\x3c\0",
    }
    for name, content in events.items():
        track = content + b"\0\xff\x2f\0"
        head = b"MThd\0\0\0\6\0\0\0\1\1\xe0MTrk"
        (tmp_path / f"{name}.mid").write_bytes(head + len(track).to_bytes(4, "big") + track)
    (tmp_path / "pieces.mid").write_bytes(b"MThd\0\0\0\6\0\2\0\2\1\xe0" + 2 * b"MTrk\0\0\0\4\0\xff\x2f\0")

    def made(**source: object) -> Manifest:
        own = {"kind": "midi", "path": str(tmp_path / "*.mid"), **source}
        data = {"sources": [own], "validation": 0, "sequence_length": 8}
        return prepare(run_config(tmp_path, data=data, tokenizer=TIMED)).stores[0].manifest

    passed_over = {"midi_meta_events": 1, "notes_without_end": 1}
    everything = made()
    assert everything.dropped == {"no_midi": 1, "too_few_notes": 4, **passed_over}
    assert (everything.left_out_files, everything.documents) == (("pieces.mid",), 1)
    left = made(tracks=["Left"])
    assert left.dropped == {"no_midi": 1, "missing_track": 3, "too_few_notes": 1, **passed_over}
    assert left.left_out_files == ("lone.mid", "lyrics.mid", "pieces.mid", "right.mid")
    assert left.documents == made(tracks=[0]).documents == 1
    with pytest.raises(UserError, match=r"lone\.mid: has no track 'Left' with notes; it has none"):
        made(tracks=["Left"], on_error="stop")
    with pytest.raises(UserError, match=r"holds no text; .*dropped: 5 of 6 documents \(missing_track\)"):
        made(tracks=["Middle"])


@pytest.mark.parametrize(
    ("note", "reason"),
    [
        ((60, 200, 0.0, 1.0), "velocity 200"),
        ((60, -1, 0.0, 1.0), "velocity -1"),
        ((60, 0.5, 0.0, 1.0), "velocity 0.5"),
        ((128, 64, 0.0, 1.0), "pitch 128"),
        ((60, 64, 2.0, 1.0), "start 2, end 1"),
        ((60, 64, 0.0, float("nan")), "end nan"),
        ((60, 64, 0.0, float("inf")), "end inf"),
    ],
)
def test_a_row_of_notes_that_cannot_be_is_refused_with_its_place(tmp_path: Path, note: tuple, reason: str) -> None:
    columns = zip(("pitch", "velocity", "start", "end"), zip((60, 64, 0.0, 0.0), note, strict=True), strict=True)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"notes": dict(columns), "source": ""}) + "\n")
    with pytest.raises(UserError, match=rf"rows\.jsonl:1: a note in field 'notes' has .*{reason}"):
        prepared(tmp_path / "rows.jsonl", validation=0)


def test_a_piece_of_119_hours_is_left_out(tmp_path: Path) -> None:
    long = notes(*(np.array(column) for column in ([60, 62], [64, 64], [0.0, 430_000.0], [1.0, 430_001.0])))
    rows = write_rows(tmp_path / "rows.jsonl", [piece(1), long], ["Haydn", "Haydn"])
    assert prepared(rows, validation=0).stores[0].manifest.dropped == {"too_long": 1}
    assert prepared(rows, source={"pauses": 4.0}, validation=0).stores[0].manifest.dropped == {"too_few_notes": 1}


@pytest.mark.parametrize(
    ("data", "tokenizer", "message"),
    [
        ({"packing": {"kind": "stream"}}, "exponential_time", "pieces or tasks"),
        ({}, "byte", "must be one of notes"),
    ],
)
def test_music_wants_its_own_packing_and_tokenizer(rows: Path, data: dict, tokenizer: str, message: str) -> None:
    source = {"kind": "jsonl", "path": str(rows), "document": {"kind": "notes"}}
    values = {"sources": [source], "sequence_length": 64, "cache_dir": str(rows.parent / "cache"), **data}
    with pytest.raises((UserError, ValueError), match=message):
        prepare(RunConfig.model_validate(run_values(tokenizer={"kind": tokenizer}) | {"data": values}))
