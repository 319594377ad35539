"""Music that a model writes, measured and written: against answers that are known, and files that others read."""

from __future__ import annotations

import json
import math
import wave
from collections import Counter
from pathlib import Path

import mido
import numpy as np
import pytest

from quintet.config.generation import GenerationSettings
from quintet.data.note_samples import NoteSamples
from quintet.piano.baselines import copied
from quintet.piano.context import ANSWER
from quintet.piano.metrics import compare
from quintet.piano.midi import read_midi, write_midi
from quintet.piano.notes import Notes
from quintet.piano.tasks import task_named
from quintet.track.console import Reporter
from quintet.train.music import evaluate_music
from quintet.train.trained import TrainedRun, own_data

GREEDY = GenerationSettings(temperature=0.0)


def in_order(table: Notes) -> list[tuple[int, float, float]]:
    return sorted(zip(table.pitch.tolist(), table.start.round(2).tolist(), table.end.round(2).tolist(), strict=True))


def notes_of(file: Path) -> int:
    """How many notes mido finds in a file."""
    return sum(one.type == "note_on" and one.velocity > 0 for track in mido.MidiFile(file).tracks for one in track)


# ---- how close to the truth


def test_answers_that_are_known_by_heart_are_right(memorised: TrainedRun) -> None:
    found = evaluate_music(memorised, own_data(memorised, Reporter()), None, 12, GREEDY)
    assert found.records == 12
    for sides in found.tasks.values():
        assert sides["model"]["note_f1"] > 0.95
        assert sides["model"]["note_offset_velocity_f1"] > 0.9
        assert sides["model"]["loss"] < 0.1 < min(found.nats.values())
        assert sides["copy"]["note_f1"] < 0.5


def test_copies_are_those_of_the_baseline(memorised: TrainedRun) -> None:
    prepared = own_data(memorised, Reporter())
    found = evaluate_music(memorised, prepared, None, 2, GREEDY)
    assert prepared.validation is not None
    samples = prepared.validation.source_samples[0]
    assert isinstance(samples, NoteSamples)
    for index, (name, sides) in enumerate(found.tasks.items()):  # the first record of each task
        ids = samples.sample(index).ids
        at = ids.tolist().index(samples.tokenizer.special(ANSWER))
        asked, target = samples.tokenizer.decode_notes(ids[:at]), samples.tokenizer.decode_notes(ids[at:])
        assert sides["copy"] == compare(copied(task_named(name), asked, len(target)), target)


def test_counts_are_those_of_the_learnt_tokens(memorised: TrainedRun) -> None:
    prepared = own_data(memorised, Reporter())
    found = evaluate_music(memorised, prepared, None, 2, GREEDY)
    train = prepared.train.source_samples[0]
    samples = [sample for sample in map(train.sample, range(train.count)) if sample.loss_mask is not None]
    loss_mask = [sample.ids[sample.loss_mask].tolist() for sample in samples]
    counts = Counter(token for one in loss_mask for token in one)
    total = sum(counts.values()) + memorised.tokenizer.vocab_size
    # All samples are validated on, and they are those that are trained on.
    nats = [-math.log((counts[token] + 1) / total) for one in loss_mask for token in one]
    assert found.nats["unigram"] == pytest.approx(np.mean(nats))
    before = [sample.ids[:-1][sample.loss_mask[1:]].tolist() for sample in samples]
    pairs = Counter(pair for one in zip(before, loss_mask, strict=True) for pair in zip(*one, strict=True))
    first = Counter(token for one in before for token in one)
    size = memorised.tokenizer.vocab_size
    nats = [-math.log((count + 1) / (first[a] + size)) for (a, _), count in pairs.items() for _ in range(count)]
    assert found.nats["bigram"] == pytest.approx(np.mean(nats))


def test_the_command_says_all_figures(memorised: TrainedRun, command) -> None:
    code, out, err = command("evaluate", str(memorised.folder), "--records", "4", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["music"]["records"] == 4
    assert set(found["music"]["tasks"]) == {"high_notes_masking-x4", "stride_notes_masking-x2"}
    assert {"note_f1", "sounding_f1", "pitch_class", "velocity", "loss"} <= set(
        found["music"]["tasks"]["stride_notes_masking-x2"]["model"]
    )
    assert found["validation/loss"] < 0.1 < found["music"]["nats"]["bigram"]
    code, out, err = command("evaluate", str(memorised.folder), "--records", "4")
    assert code == 0, err
    assert "unigram" in out
    assert "mean" in out.splitlines()[-1]


def test_a_model_that_goes_on_has_no_tasks_to_answer(continuing: str, command) -> None:
    code, out, err = command("evaluate", continuing, "--samples", "8", "--json")
    assert code == 0, err
    music = json.loads(out)["music"]
    assert music["tasks"] == {}
    assert 3 < music["nats"]["unigram"] < math.log(1241)


def test_a_run_of_text_has_no_music(train, command) -> None:
    run = train(model={}, tokenizer={"kind": "byte"})
    code, out, _ = command("evaluate", run, "--json")
    assert code == 0
    assert set(json.loads(out)) == {
        *(
            "step",
            "precision",
            "tokens",
            "bytes",
            "validation/loss",
            "validation/perplexity",
            "validation/bits_per_byte",
        ),
    }
    code, _, err = command("evaluate", run, "--records", "4")
    assert code == 2
    assert "this run was trained on text" in err


# ---- music in, music out


def test_an_answer_by_command_is_the_one_that_was_learnt(
    memorised: TrainedRun, folder: Path, tmp_path: Path, command
) -> None:
    whole = read_midi(folder / "music/Bach 0.mid")[:14]
    whole = whole.moved(-float(whole.start[0]))
    task = task_named("high_notes_masking-x4")
    asked, target = task.split(whole, np.random.default_rng(0))
    write_midi(asked, tmp_path / "in.mid")
    files = [str(tmp_path / name) for name in ("out.mid", "out.png", "out.wav")]
    code, out, err = command(
        *("generate", str(memorised.folder), "--midi", str(tmp_path / "in.mid"), "--task", "high_notes-x4"),
        *(
            "-o",
            files[0],
            "--roll",
            files[1],
            "--audio",
            files[2],
            "--temperature",
            "0",
            "--max-tokens",
            "60",
            "--composer",
            "bach",
        ),
    )
    assert code == 0, err
    assert "4 notes for 10 of the 10" in out
    assert notes_of(tmp_path / "out.mid") == 14
    assert compare(read_midi(tmp_path / "out.mid"), whole)["note_f1"] == 1
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    with wave.open(files[2]) as sound:
        assert sound.getnframes() / sound.getframerate() >= target.seconds


def test_a_piece_goes_on_where_it_ends(continuing: str, folder: Path, tmp_path: Path, command) -> None:
    prompt = read_midi(folder / "music/Bach 0.mid")
    code, _, err = command(
        *("generate", continuing, "--midi", str(folder / "music/Bach 0.mid"), "-o", str(tmp_path / "out.mid")),
        *("--max-tokens", "60", "--seed", "3"),
    )
    assert code == 0, err
    whole = read_midi(tmp_path / "out.mid")
    assert in_order(whole[: len(prompt)]) == in_order(prompt)
    assert notes_of(tmp_path / "out.mid") == len(whole)


def test_of_a_long_piece_the_end_is_heard(continuing: str, folder: Path, tmp_path: Path, command) -> None:
    one = read_midi(folder / "music/Bach 0.mid")
    tables = [one.moved(index * one.seconds) for index in range(12)]
    long = Notes(
        *(np.concatenate([getattr(table, name) for table in tables]) for name in ("pitch", "velocity", "start", "end"))
    )
    write_midi(long, tmp_path / "long.mid")
    code, out, err = command(
        "generate",
        continuing,
        "--midi",
        str(tmp_path / "long.mid"),
        "-o",
        str(tmp_path / "out.mid"),
        "--max-tokens",
        "300",
    )
    assert code == 0, err
    heard = int(out.split(" after ")[1].split()[0])
    assert f"no more than the last {heard} notes beside --max-tokens 300" in err
    assert 5 <= heard < 80 < len(long)  # half of a context of 160 tokens, at more than two tokens a note
    whole = read_midi(tmp_path / "out.mid")
    assert len(whole) >= len(long)
    assert in_order(whole[: len(long)]) == in_order(read_midi(tmp_path / "long.mid"))


def test_without_temperature_the_same_is_written_and_with_it_what_the_seed_says(
    continuing: str, folder: Path, tmp_path: Path, command
) -> None:
    def written(*options: str) -> bytes:
        file = tmp_path / "out.mid"
        code, _, err = command(
            *(
                "generate",
                continuing,
                "--midi",
                str(folder / "music/Bach 0.mid"),
                "-o",
                str(file),
                "--max-tokens",
                "40",
            ),
            *options,
        )
        assert code == 0, err
        return file.read_bytes()

    greedy = [written("--temperature", "0", "--seed", seed) for seed in ("1", "2")]
    assert greedy[0] == greedy[1]
    warm = [written("--temperature", "2", "--seed", seed) for seed in ("1", "1", "2")]
    assert warm[0] == warm[1] != warm[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--midi", "broken.mid", "-o", "out.mid"), "broken.mid"),
        (("--midi", "missing.mid", "-o", "out.mid"), "missing.mid"),
        (("--midi", "empty.mid", "-o", "out.mid"), "no notes"),
        (("--midi", "good.mid"), "say what to write"),
        (("--midi", "good.mid", "-o", "nowhere/out.mid"), "nowhere/out.mid"),
        (("--midi", "good.mid", "-o", "out.mid", "--task", "top_lime"), "top_line"),
        (("-o", "out.mid"), "--midi"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    continuing: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command, options, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.mid").write_bytes(b"MThd no more")
    Path("good.mid").write_bytes((folder / "music/Bach 0.mid").read_bytes())
    write_midi(read_midi("good.mid")[:0], "empty.mid")
    code, _, err = command("generate", continuing, *options)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_model_of_text_plays_nothing(train, folder: Path, command) -> None:
    run = train(model={}, tokenizer={"kind": "byte"})
    code, _, err = command("generate", run, "--midi", str(folder / "music/Bach 0.mid"), "-o", "out.mid")
    assert code == 2
    assert "tokenizer.kind" in err
