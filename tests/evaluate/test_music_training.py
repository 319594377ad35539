"""What a run of music writes while it learns, and the weights that it begins with."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import mido
import numpy as np
import pytest
import torch
from tests.helpers import run_config

from quintet.errors import UserError
from quintet.piano.midi import read_midi
from quintet.track.jsonl import JsonlTracker, read_metrics
from quintet.train.trained import load_trained

TASKS = {"kind": "tasks", "notes_per_record": 14, "tasks": ["high_notes_masking-x4"]}


def notes_of(file: Path) -> int:
    """How many notes mido finds in a file."""
    return sum(one.type == "note_on" and one.velocity > 0 for track in mido.MidiFile(file).tracks for one in track)


# ---- samples


TWO_TASKS = TASKS | {"tasks": ["high_notes_masking-x4", "top_line_masking-x2"]}


@pytest.mark.parametrize(
    ("data", "last"),
    [({}, ("",)), ({"packing": TWO_TASKS}, ("-high_notes_masking-x4", "-top_line_masking-x2"))],
    ids=["pieces", "tasks"],
)
def test_a_sample_is_a_midi_file_and_its_picture(train_music, data: dict, last: tuple[str, ...]) -> None:
    """Of a piece one a period; of tasks the first on the way, and each of them at the last step."""
    name = f"sampled-{len(data)}"
    sample = {"every": 2, "max_tokens": 60, "temperature": 1.0}
    run = Path(train_music(name, 4, data, sample=sample, track=[{"kind": "tensorboard"}]))
    written = sorted(one.name for one in (run / "samples").iterdir())
    stems = [f"step-000002{last[0]}", *(f"step-000004{one}" for one in last)]
    assert written == sorted(f"{stem}{ending}" for stem in stems for ending in (".mid", ".png"))
    for stem in stems[1:]:
        assert notes_of(run / f"samples/{stem}.mid") == len(read_midi(run / f"samples/{stem}.mid")) > 5
    shown = pictures(run / "tensorboard", last[0].removeprefix("-") or "sample 0")
    assert [step for step, _ in shown] == [2, 4]
    assert shown[1][1].shape == (400, 1200, 3)
    assert np.unique(shown[1][1].reshape(-1, 3), axis=0).shape[0] > 20  # a picture, not one colour


def pictures(folder: Path, name: str) -> list[tuple[int, np.ndarray]]:
    """The steps and the pixels of the pictures among TensorBoard's events."""
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    images = events.Images(name)
    return [(one.step, np.asarray(Image.open(io.BytesIO(one.encoded_image_string)))) for one in images]


def test_without_prompts_nothing_is_written(train_music) -> None:
    run = Path(train_music("silent", 2, sample={"every": 1, "prompts": []}))
    assert not (run / "samples").exists()


def test_without_anything_held_out_a_piece_that_is_trained_on_goes_on(train_music) -> None:
    run = Path(train_music("all", 1, {"validation_sources": [], "validation": 0}, sample={"every": 1, "max_tokens": 4}))
    assert notes_of(run / "samples/step-000001.mid") > 5


def test_a_continued_run_drops_the_music_that_it_will_write_again(tmp_path: Path) -> None:
    first = JsonlTracker(tmp_path, 0)
    for step in (1, 2):
        first.files(step, "sample 0", {".mid": b"MThd", ".png": b"PNG"})
        first.files(step, "top_line", {".mid": b"MThd"})
        first.text(step, "sample 0", "text")
    first.close()
    JsonlTracker(tmp_path, 1).close()
    left = sorted(one.name for one in (tmp_path / "samples").iterdir())
    assert left == ["step-000001-top_line.mid", "step-000001.mid", "step-000001.png", "step-000001.txt"]


# ---- weights to begin with


def learned(run: str | None = None) -> dict:
    init = {} if run is None else {"init": {"kind": "pretrained", "path": run}}
    return {"layers": 2, "width": 64, "attention": {"heads": 2}, "position": {"kind": "learned"}, **init}


@pytest.fixture(scope="module")
def first(train_music) -> str:
    return train_music("first", 40, model=learned())


def test_tasks_begin_with_the_weights_of_a_run_on_pieces(train_music, first: str) -> None:
    run = train_music("tuned", 1, {"packing": TASKS}, model=learned(first), optimizer={"lr": 1e-12})
    start, trained = load_trained(run), load_trained(first)
    assert start.tokenizer.fingerprint == trained.tokenizer.fingerprint
    for name, weight in trained.model.state_dict().items():
        assert torch.allclose(start.model.state_dict()[name], weight, atol=1e-6), name


def test_a_shorter_context_takes_the_first_positions_and_a_longer_one_is_refused(train_music, first: str) -> None:
    run = train_music("shorter", 1, {"sequence_length": 96}, model=learned(first), optimizer={"lr": 1e-12})
    positions = [load_trained(one).model.state_dict()["position.weight"] for one in (run, first)]
    assert [len(one) for one in positions] == [96, 160]
    assert torch.allclose(positions[0], positions[1][:96], atol=1e-6)
    with pytest.raises(UserError, match=r"model\.context_length: 200 positions, but .* has learned 160"):
        train_music("longer", 1, {"sequence_length": 200}, model=learned(first))


def test_what_was_learnt_on_pieces_helps_with_tasks(train_music, first: str) -> None:
    looked = {"evaluate": {"every": None, "at_start": True, "at_end": True}}
    losses = []
    for name, model in (("helped", learned(first)), ("unhelped", learned())):
        run = Path(train_music(name, 20, {"packing": TASKS}, model=model, **looked))
        rows = {
            row["step"]: row["validation/loss"]
            for row in read_metrics(run / "metrics.jsonl")
            if "validation/loss" in row
        }
        losses.append(rows)
    assert losses[0][0] < losses[1][0] - 1
    assert losses[0][20] < losses[1][20]


def test_pictures_without_their_library_are_refused_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from quintet.train import check

    values = {"data": {"sources": [{"kind": "music21"}]}, "tokenizer": {"kind": "exponential_time"}}
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"sample\.prompts: .*matplotlib"):
        check.check_training(run_config(**values, sample={"prompts": [""]}))
    check.check_training(run_config(**values, sample={"prompts": []}))
