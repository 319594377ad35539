"""piano-gpt: each key of the music changes what its document says, in samples, tokenizer and metrics of real runs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tests.dialects.conftest import Made, Make, changes
from tests.dialects.piano_folders import base as base  # a fixture
from tests.dialects.piano_folders import questions as questions  # a fixture
from tests.dialects.piano_music import data_set as data_set  # a fixture
from tests.dialects.piano_music import music as music  # a fixture
from tests.dialects.piano_music import piece, row, samples, words, write_data_set
from tests.helpers import refused

from quintet import api
from quintet.errors import UserError
from quintet.piano.context import ANSWER, END_OF_ANSWER
from quintet.piano.notes import Notes
from quintet.piano.tasks import DEFAULT_TASKS
from quintet.piano.tokenizers.bpe import NoteBPETokenizer
from quintet.piano.tokenizers.exponential import ExponentialTimeTokenizer

DIALECT = "piano"


def halves(made: Made, index: int) -> tuple[Notes, Notes]:
    """Prompt and answer of a record."""
    one, at = samples(made), words(made, index).index(ANSWER)
    ids = one.sample(index).ids
    return one.tokenizer.decode_notes(ids[:at]), one.tokenizer.decode_notes(ids[at:])


@changes("stage")
def test_stage(music: Make) -> None:
    """Records with an answer, or stretches of pieces without one."""
    record, stretch = words(music(), 0), words(music({"stage": "next_token_pretraining"}), 0)
    assert record[:3] == ["<MAESTRO>", "<BACH>", "<PARAMETRIC_TOP_LINE>"]
    assert record.count(ANSWER) == 1
    assert record[-1] == END_OF_ANSWER
    assert stretch[:2] == ["<MAESTRO>", "<BACH>"]
    assert stretch[2].startswith("VELOCITY_")
    assert ANSWER not in stretch
    third = music({"model_task": "next_token_prediction"}, without=["stage"])
    assert words(third, 0) == stretch


@changes("tasks")
def test_tasks(music: Make) -> None:
    assert samples(music()).tasks == DEFAULT_TASKS
    assert samples(music({"tasks": "TODO"})).tasks == DEFAULT_TASKS
    named = music({"tasks": ["top_line_masking-x2", "velocity_denoising"]})
    assert words(named, 0)[2:4] == ["<PARAMETRIC_TOP_LINE>", "<PARAMETER_2>"]
    assert words(named, 1)[2:4] == ["<NOISY_VOLUME>", "<CLEAN_VOLUME>"]
    older = music({"tasks": {"list": ["above_median_prediction", "performance_task"]}})
    assert [task.name for task in samples(older).tasks] == ["above_median_prediction", "performance_task"]
    newest = [
        {"class": "TopLineMasking", "param_range": [{"n_repetitions": 1}, {"n_repetitions": 3}]},
        {"class": "HighNotesMasking", "params": {"mask_percentage": 20}},
        {"class": "ChordMasking", "params": {"n_notes_threshold": 4}},
        {"class": "RandomMasking"},
    ]
    found = [task.name for task in samples(music({"tasks": newest})).tasks]
    assert found[:3] == ["top_line_masking-x1", "top_line_masking-x3", "high_notes_masking-x20%"]
    assert found[3:] == ["chord_masking-x4", "random_masking-x50"]
    wrong = {
        "top_lime_masking": "did you mean 'top_line_masking'?",
        "TopLineMasking-n_notes=2": "top_line_masking has n_repetitions",
    }
    for name, message in wrong.items():
        made = music({"tasks": [name]})
        with pytest.raises(UserError, match=r"their\.yaml:\d+: tasks: .*") as error:
            api.check(api.with_source(made.loaded))
        assert message in str(error.value)
        with pytest.raises(UserError, match=r"data\.packing\.tasks\[0\]"):
            _ = made.run
    for wrong_entry in ({"class": "RandomMasking", "param": {}}, {"class": "A", "params": {"a": 1, "b": 2}}, 3):
        assert "tasks: must have" in refused(music, {"tasks": [wrong_entry]})


@changes("data.notes_per_record")
def test_notes_per_record(music: Make) -> None:
    for count in (16, 10):
        made = music({"data.notes_per_record": count, "tasks": ["top_line_masking", "high_notes_masking"]})
        assert {sum(map(len, halves(made, index))) for index in range(8)} == {count}


@changes("dataset.base_dataset_name")
def test_base(music: Make) -> None:
    """The run validates on its split `validation`, whole and by composer, and trains on none of it."""
    made = music()
    other = write_data_set(made.file.parent / "other", seed=50)
    changed = music({"dataset.base_dataset_name": str(other)})
    assert np.array_equal(made.batch().inputs, changed.batch().inputs)
    for one, seed in ((made, 100), (changed, 150)):
        held = samples(one, held_out=True)
        assert held.pieces.counts.tolist() == [40, 40, 40]
        assert held.pieces.read(0, 0, 40).pitch.tolist() == piece(seed).pitch.tolist()


@changes("dataset.extra_datasets")
def test_extra(music: Make) -> None:
    """The split `train` of each data set."""
    made = music()
    folder = str(made.file.parent)
    other = write_data_set(made.file.parent / "other", train=[row(piece(7), "Mozart", "giantmidi")])
    both = music({"dataset.extra_datasets": [made.config.data.sources[0].path, str(other)]})
    assert [samples(both, source).pieces.counts.size for source in (0, 1)] == [6, 1]
    assert words(both, 0, source=1)[1] == "<MOZART>"
    assert samples(both, 1).pieces.read(0, 0, 40).pitch.tolist() == piece(7).pitch.tolist()
    for nothing in ([], None):
        assert "names nothing to train on" in refused(music, {"dataset.extra_datasets": nothing})
    missing = music({"dataset.extra_datasets": [f"{folder}/nowhere"]})
    with pytest.raises(UserError, match=r"dataset\.extra_datasets.*there is no folder"):
        api.check(api.with_source(missing.loaded), strict=True)


@changes("dataset.pause_detection_threshold")
def test_pauses(music: Make) -> None:
    """A piece with 5 seconds of silence is two, and the part after the silence is kept."""
    first, second = piece(1), piece(2)
    later = second.moved(first.seconds + 5.0)
    both = Notes(*(np.concatenate([getattr(first, name), getattr(later, name)]) for name in vars(first)))
    folder = music().file.parent / "paused"
    write_data_set(folder, train=[row(both, "Bach")], validation=[row(piece(3), "Bach")])
    names = {"dataset.base_dataset_name": str(folder), "dataset.extra_datasets": [str(folder)]}
    cut, whole = (samples(music(names | {"dataset.pause_detection_threshold": value})) for value in (4, 6.5))
    assert cut.pieces.counts.tolist() == [40, 40]
    assert whole.pieces.counts.tolist() == [80]
    assert samples(music(names)).pieces.counts.tolist() == [40, 40]
    assert "must be above 0, found 0" in refused(music, {"dataset.pause_detection_threshold": 0})


@changes("dataset.augmentation.speed_change_factors")
def test_speeds(music: Make) -> None:
    """Each record is repeated at each speed; validation has no copies."""
    made = music({"dataset.augmentation.speed_change_factors": [2.0, 0.5], "tasks": ["high_notes_masking-x1"]})
    one = samples(made)
    assert one.variants == 3
    assert samples(made, held_out=True).variants == 1
    seconds = [one.tokenizer.decode_notes(one.sample(index).ids).seconds for index in range(3)]
    assert seconds == pytest.approx([seconds[0], seconds[0] / 2, seconds[0] * 2], rel=0.02)
    assert samples(music({"dataset.augmentation.speed_change_factors": None})).variants == 1
    assert "must be above 0" in refused(music, {"dataset.augmentation.speed_change_factors": [0.9, 0]})


@changes("dataset.augmentation.max_pitch_shift")
def test_shift(music: Make) -> None:
    made = music({"dataset.augmentation.max_pitch_shift": 2, "tasks": ["high_notes_masking-x1"]})
    assert samples(made).variants == 5
    lowest = [int(halves(made, index)[0].pitch.min()) for index in range(5)]
    assert sorted(found - lowest[0] for found in lowest) == [-2, -1, 0, 1, 2]  # piano-gpt's builder keeps only ±1


@changes("training.min_notes_per_record")
def test_fewest(music: Make) -> None:
    made = music({"training.min_notes_per_record": 6, "tasks": ["high_notes_masking-x1"]})
    sizes = [sum(map(len, halves(made, index))) for index in range(60)]
    assert set(sizes) == set(range(6, 17))
    assert "17 is more than notes_per_record = 16" in refused(music, {"training.min_notes_per_record": 17})


@changes("training.max_notes_per_record")
def test_most(music: Make) -> None:
    made = music({"training.max_notes_per_record": 12}, without=["data.notes_per_record"])
    assert sum(map(len, halves(made, 0))) == 12
    assert "keep one of the two" in refused(music, {"training.max_notes_per_record": 12})


@changes("training.min_n_task_notes")
def test_fewest_of_a_task(music: Make) -> None:
    """The answer is a run of at least as many notes of the record; the prompt has the notes before and after it."""
    made = music({"training.min_n_task_notes": 5, "tasks": ["random_masking-x100"]})
    sizes, begins = set(), set()
    for index in range(60):
        prompt, answer = halves(made, index)
        record = samples(made).pieces.read(0, index, 16) if index < 25 else None
        assert len(prompt) + len(answer) == 16
        sizes.add(len(answer))
        if record is not None:
            before = int((prompt.start < answer.start[0]).sum())
            assert answer.pitch.tolist() == record.pitch[before : before + len(answer)].tolist()
            begins.add(before)
    assert min(sizes) >= 5
    assert len(sizes) > 5
    assert len(begins) > 3
    assert {len(halves(music({"tasks": ["random_masking-x100"]}), index)[1]) for index in range(4)} == {16}


@changes("tokenizer.class_name")
def test_tokenizer_class(music: Make) -> None:
    assert isinstance(music().run.tokenizer, ExponentialTimeTokenizer)
    merged = music({"tokenizer.class_name": "AwesomeMidiTokenizer", "tokenizer.parameters": {"max_vocab_size": 1300}})
    assert isinstance(merged.run.tokenizer, NoteBPETokenizer)
    assert samples(merged).sample(0).ids.size < 0.95 * samples(music()).sample(0).ids.size
    assert "belongs to AwesomeMidiTokenizer" in refused(music, {"tokenizer.base_tokenizer_parameters": {}})
    wrong = {"tokenizer.class_name": "AwesomeMidiTokenizer", "tokenizer.config": {"time_unit": 0.01}}
    assert "belongs to ExponentialTimeTokenizer" in refused(music, wrong)


def _settings(music: Make, key: str, more: dict[str, Any], unit: str) -> None:
    values = {unit: 0.02, "n_velocity_bins": 16, "max_time_step": 0.5, "n_special_ids": 600}
    found = music({key: values, **more}).run.tokenizer.names()
    bins = [name for name in found if name.startswith("VELOCITY_") and "+" not in name]
    steps = [name for name in found if name.endswith("T") and name[:-1].isdecimal()]
    assert len(bins) == 16
    assert steps == ["1T", "2T", "4T", "8T", "16T"]  # 0.02 s to below 0.5 s
    assert "has no setting 'colour'; there are time_unit" in refused(music, {key: {"colour": 1}, **more})


@changes("tokenizer.config")
def test_tokenizer_settings(music: Make) -> None:
    _settings(music, "tokenizer.config", {}, "time_unit")
    made = music({"tokenizer.config": {"n_special_ids": 700}})
    assert made.shapes["embedding.weight"][0] == 217 + 700  # as piano-gpt counts
    with pytest.raises(UserError, match=r"tokenizer\.config: .*must be a number"):
        music({"tokenizer.config": {"time_unit": "fast"}})


_AWESOME = {"tokenizer.name": "AwesomeMidiTokenizer"}


@changes("tokenizer.base_tokenizer_parameters")
def test_base_settings(music: Make) -> None:
    more = _AWESOME | {"tokenizer.parameters": {"max_vocab_size": 900}}
    _settings(music, "tokenizer.base_tokenizer_parameters", more, "min_time_unit")


@changes("tokenizer.base_tokenizer")
def test_base_tokenizer(music: Make) -> None:
    """There is only one, whose ids are what the merged ids stand for."""
    made = music(_AWESOME | {"tokenizer.base_tokenizer": "ExponentialTimeTokenizer"}).run.tokenizer
    plain = music().run.tokenizer
    assert isinstance(made, NoteBPETokenizer)
    assert made.names()[: plain.vocab_size] == plain.names()
    assert made.unmerged(made.encode_notes(piece(4))).tolist() == plain.encode_notes(piece(4)).tolist()
    assert "must be ExponentialTimeTokenizer" in refused(music, _AWESOME | {"tokenizer.base_tokenizer": "REMI"})


@changes("tokenizer.parameters")
def test_merges(music: Make) -> None:
    for size in (1245, 1260):
        parameters = {"max_vocab_size": size, "max_token_length": 3}
        tokenizer = music(_AWESOME | {"tokenizer.parameters": parameters}).run.tokenizer
        assert tokenizer.vocab_size == size
        assert max(name.count("+") for name in tokenizer.names()) <= 2


@changes("eval_splits")
def test_splits(music: Make) -> None:
    """The metrics are of the whole split and of the composers in eval_splits that have pieces."""
    made = music()
    found = {name for name in _names_of(made) if name.endswith("/loss")}
    assert found == {f"validation/{part}loss" for part in ("", "full_val/", "bach/", "chopin/")}
    chosen = music({"eval_splits": ["full_val", "liszt", "test"]})
    assert chosen.run.validation is not None
    assert chosen.run.validation.labels == ("full_val", "liszt", "test")
    assert [samples(chosen, source, held_out=True).pieces.counts.size for source in range(3)] == [3, 1, 2]
    read = samples(chosen, 2, held_out=True).pieces.read(0, 0, 40)
    assert read.pitch.tolist() == piece(200).pitch.tolist()
    assert "must be one of full_val, test, bach" in refused(music, {"eval_splits": ["salieri"]})


def _names_of(made: Made) -> set[str]:
    lines = (made.trained / "metrics.jsonl").read_text().splitlines()
    return {name for line in lines for name in json.loads(line) if name.startswith("validation")}
