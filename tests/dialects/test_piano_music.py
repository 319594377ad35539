"""piano-gpt on music: whole files, the kinds of data set folders, tuning, the example, translation both ways."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tests.dialects.conftest import Made, Make
from tests.dialects.piano_folders import EXAMPLES, on_text, small_file, write_questions
from tests.dialects.piano_music import data_set as data_set  # a fixture
from tests.dialects.piano_music import music as music  # a fixture
from tests.dialects.piano_music import music_file, piece, row, samples, words, write_data_set
from tests.helpers import PEAK, measured, refused, train_with_translation

import quintet
from quintet.api import with_source
from quintet.config.dialects import dialect_named
from quintet.config.dialects.back import translate_back
from quintet.config.load import load_run_config
from quintet.errors import UserError
from quintet.piano.context import ANSWER
from quintet.piano.midi import write_midi
from quintet.track.console import Reporter
from quintet.train.setup import set_up

DIALECT = "piano"
IGNORED = -100


@pytest.fixture
def base(data_set: Path, tmp_path: Path) -> dict[str, Any]:
    return music_file(data_set, tmp_path / "cache")


def names_of(folder: Path | str) -> dict[str, Any]:
    return {"dataset.base_dataset_name": str(folder), "dataset.extra_datasets": [str(folder)]}


def write_midi_split(folder: Path, split: str, seeds: range) -> None:
    (folder / split).mkdir(parents=True)
    for seed in seeds:
        write_midi(piece(seed), folder / split / f"{'Bach' if seed % 2 else 'Chopin'}_{seed}.mid")


@pytest.mark.parametrize("masking", ["pretraining", "finetuning"])
def test_the_loss_is_on_all_tokens_or_after_the_answer_token(masking: str, music: Make) -> None:
    """The first target of finetuning is the first token of the answer, given <GENAI>; the last is the answer's end."""
    made = music({"loss_masking": masking})
    batch, tokenizer = made.batch(), samples(made).tokenizer
    for ids, targets in zip(batch.inputs, batch.targets, strict=True):
        at = int(np.flatnonzero(ids == tokenizer.special(ANSWER))[0])
        positions = np.flatnonzero(targets != IGNORED)
        assert positions[0] == (0 if masking == "pretraining" else at)
        assert tokenizer.names()[targets[positions[-1]]] == "<EOGENAI>"
        assert np.array_equal(targets[positions[:-1]], ids[positions[:-1] + 1])


def test_finetuning_has_a_loss_on_whole_stretches_of_pieces(music: Make) -> None:
    """They have no answer, so a loss on answers only would be empty."""
    batch = music({"stage": "next_token_pretraining"}).batch()
    assert (batch.targets[:, 0] != IGNORED).all()


def test_a_folder_of_parquet_files(music: Make, tmp_path: Path) -> None:
    import datasets

    folder = tmp_path / "rows"
    for split, seeds in {"train": range(4), "validation": range(10, 12)}.items():
        (folder / "data").mkdir(parents=True, exist_ok=True)
        rows = datasets.Dataset.from_list([row(piece(seed), "Bach") for seed in seeds])
        rows.to_parquet(str(folder / f"data/{split}-00000-of-00001.parquet"))
    made = music(names_of(folder))
    assert samples(made).pieces.counts.tolist() == [40] * 4
    assert samples(made, held_out=True).pieces.counts.tolist() == [40] * 2


def test_a_folder_of_midi_files_with_splits(music: Make, tmp_path: Path) -> None:
    folder = tmp_path / "midi"
    write_midi_split(folder, "train", range(4))
    write_midi_split(folder, "validation", range(10, 13))
    made = music(names_of(folder))
    assert made.config.data.sources[0].kind == "midi"
    assert samples(made).pieces.counts.tolist() == [40] * 4
    assert words(made, 0)[:2] == ["<PIANO_FOR_AI>", "<BACH>"]
    labels = dict(zip(made.run.validation.labels, made.run.validation.source_samples, strict=True))
    assert {name: one.pieces.counts.size for name, one in labels.items()} == {
        "full_val": 3,
        "bach": 1,
        "chopin": 2,
        "mozart": 0,
    }
    assert f"{folder / 'test'} does not exist" in absent(music(names_of(folder) | {"eval_splits": ["test"]}))
    write_midi_split(tmp_path / "more", "test", range(2))
    wrong = {"dataset.extra_datasets": [str(tmp_path / "more")]}
    told = absent(music(wrong))
    assert "dataset.extra_datasets: " in told
    assert str(tmp_path / "more" / "train") in told


def absent(made: Made) -> str:
    return "\n".join(quintet.check(with_source(made.loaded)).not_here)


def test_a_folder_of_midi_files_without_splits(music: Make, tmp_path: Path) -> None:
    """The folder is for training, or for validation, or `quintet:` holds out a part of it."""
    for name, seeds in {"one": range(4), "two": range(10, 12)}.items():
        write_midi_split(tmp_path, name, seeds)
    apart = {"dataset.base_dataset_name": str(tmp_path / "two"), "dataset.extra_datasets": [str(tmp_path / "one")]}
    made = music(apart)
    assert [samples(made, held_out=held).pieces.counts.size for held in (False, True)] == [4, 2]
    same = names_of(tmp_path / "one")
    assert "is validated on, too; make folders 'train' and 'validation' in it" in refused(music, same)
    held = music(same | {"quintet.data.validation": 0.25})
    assert samples(held).tokens + samples(held, held_out=True).tokens == pytest.approx(160, abs=1)
    assert "dataset.base_dataset_name: not used" in "\n".join(held.loaded.notes)


def test_native_sources_of_music_take_the_rest_from_the_file(music: Make, tmp_path: Path) -> None:
    write_midi_split(tmp_path, "one", range(4))
    sources = [{"kind": "midi", "path": str(tmp_path / "one")}]
    values = {"quintet.data.sources": sources, "quintet.data.validation": 0.3, "data.notes_per_record": 12}
    made = music(values | {"tasks": ["top_line"]})
    packing = made.config.data.packing
    assert (packing.kind, packing.notes_per_record, packing.tasks) == ("tasks", 12, ("top_line",))
    assert words(made, 0)[2] == "<PARAMETRIC_TOP_LINE>"
    unused = "dataset.base_dataset_name, dataset.extra_datasets: not used, because quintet.data.sources replaces it"
    assert unused in made.loaded.notes
    pieces = music(values | {"quintet.data.packing": {"kind": "pieces"}})
    assert pieces.config.data.packing.kind == "pieces"
    unused = "stage, data.notes_per_record: not used, because quintet.data.packing replaces it"
    assert unused in pieces.loaded.notes


def test_a_split_without_pieces_is_skipped_with_a_note_and_none_at_all_is_an_error(
    music: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    made = music()
    _ = made.run
    assert made.run.validation is not None
    assert [stream.count > 0 for stream in made.run.validation.source_samples] == [True, True, True, False]
    said: list[str] = []
    reporter = Reporter()
    reporter.say = said.append  # type: ignore[method-assign]
    with chdir(made.file.parent):
        set_up(made.config, reporter, peak_flops=PEAK)
    assert [line for line in said if line.startswith("not validated on: mozart")]
    with pytest.raises(UserError, match="0 tokens to validate on"):
        _ = music({"eval_splits": ["mozart", "haydn"]}).run


def test_the_best_checkpoint_is_that_of_the_whole_split(music: Make) -> None:
    """It is not by the mean over all samples, in which the pieces of three composers count twice."""
    from quintet.train.checkpoint_files import read_progress

    several = {"optimizer.max_iters": 4, "eval_interval": 1, "lr.learning_rate": 0.05}
    made = music(several)
    whole = made.metrics("validation/full_val/loss")
    progress = read_progress(made.trained / f"checkpoints/step-{4:06}")
    assert progress.best_loss == min(whole.values())
    assert progress.best_loss != made.metrics("validation/loss")[progress.best_step]
    assert music(several | {"eval_splits": ["bach", "chopin"]}).config.evaluate.best_by is None


def test_best_by_must_be_a_label_of_the_run(music: Make) -> None:
    found = refused(music, {"quintet.evaluate.best_by": "nobody"})
    assert "quintet.evaluate.best_by: no held-out source in " in found
    assert "has this label; there are full_val, bach, chopin, mozart" in found


def test_tuning_takes_the_tokenizer_of_the_run_and_trains_tasks_that_are_new_to_it(music: Make) -> None:
    own = {"stage": "next_token_pretraining", "tokenizer.config": {"n_velocity_bins": 16}}
    first = music(own)
    tuned = music({"init_from": str(first.trained), "tasks": ["loud_prediction"]})
    assert tuned.run.tokenizer.fingerprint == first.run.tokenizer.fingerprint
    assert tuned.origin("tokenizer").startswith("init_from")
    weights = load_weights(first)
    assert all(torch.equal(value, weights[name]) for name, value in tuned.model.state_dict().items())
    assert words(tuned, 0)[2:4] == ["<SOFT>", "<LOUD>"]
    other = music({"init_from": str(first.trained), "tokenizer.config": {"n_velocity_bins": 8}})
    assert other.run.tokenizer.fingerprint == first.run.tokenizer.fingerprint
    assert "tokenizer.config: not used, because the tokenizer is that of" in "\n".join(other.loaded.notes)


def test_tuning_on_other_music_keeps_the_merges_of_the_run(music: Make, tmp_path: Path) -> None:
    merged = {"tokenizer.name": "AwesomeMidiTokenizer", "tokenizer.parameters": {"max_vocab_size": 1300}}
    first = music({"stage": "next_token_pretraining", **merged})
    other = str(write_data_set(tmp_path / "other", seed=500))
    elsewhere = {"dataset.base_dataset_name": other, "dataset.extra_datasets": [other]}
    assert music(elsewhere | merged).run.tokenizer.fingerprint != first.run.tokenizer.fingerprint
    tuned = music(elsewhere | {"init_from": str(first.trained)})
    assert tuned.run.tokenizer.fingerprint == first.run.tokenizer.fingerprint


def load_weights(made: Made) -> dict[str, torch.Tensor]:
    from quintet.train.trained import load_trained

    return load_trained(str(made.trained)).model.state_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stage": "next_token_pretraining", "dataset.augmentation.max_pitch_shift": 3},
        {"tasks": ["top_line_masking-x2"], "dataset.augmentation.speed_change_factors": [0.9, 1.1]},
        {"tasks": [{"class": "TopLineMasking", "params": {"n_repetitions": 2}}], "data.notes_per_record": 20},
        {"training.min_notes_per_record": 8, "training.min_n_task_notes": 4, "eval_splits": ["full_val", "test"]},
        {"tokenizer.name": "AwesomeMidiTokenizer", "tokenizer.base_tokenizer_parameters": {"min_time_unit": 0.02}},
        {"tokenizer.config": {"time_unit": 0.02, "n_special_ids": 600}, "dataset.pause_detection_threshold": 2.5},
        {"quintet.data.validation": 0.2, "dataset.pause_detection_threshold": 2},
        {"quintet.data.sources": [{"kind": "music21"}], "quintet.data.validation": 0.1},
        {"quintet.tokenizer": {"kind": "miditok", "family": "TSD"}},
        {"quintet.tokenizer": {"kind": "note_bpe", "vocab_size": 2000, "train_tokens": 1000}},
    ],
)
def test_there_and_back(changes: dict[str, Any], music: Make) -> None:
    made = music(changes)
    written = translate_back(dialect_named("piano"), made.config)
    assert written.lost == ()
    values = yaml.safe_load(written.text)
    if not any(key.startswith("quintet") for key in changes):
        assert values["quintet"] == {"data": {"cache_dir": made.config.data.cache_dir}}
    file = made.file.with_name("back.yaml")
    file.write_text(written.text)
    assert load_run_config([file], ["quintet.name=their"]).config == made.config


def test_back_and_there_with_midi_folders(music: Make, tmp_path: Path) -> None:
    write_midi_split(tmp_path / "midi", "train", range(2))
    write_midi_split(tmp_path / "midi", "validation", range(2))
    config = music(names_of(tmp_path / "midi")).config
    written = translate_back(dialect_named("piano"), config)
    assert written.lost == ()
    assert yaml.safe_load(written.text)["dataset"]["extra_datasets"] == [str(tmp_path / "midi")]


def test_text_in_the_section_replaces_the_music(make: Make, tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "text")
    text = small_file(questions, tmp_path / "cache") | {"tasks": ["no such task"], "tokenizer": {"config": {}}}
    made = make(text | {"dataset": {"extra_datasets": ["nowhere"]}})
    assert (made.config.tokenizer.kind, made.config.data.packing.kind) == ("byte", "document")
    notes = "\n".join(made.loaded.notes)
    assert "stage, tasks, dataset.extra_datasets, tokenizer.config: not used, because quintet.data.sources" in notes
    assert on_text(questions, tmp_path)["data"]["sources"][0]["path"] == made.config.data.sources[0].path


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path / "out"))
    write_data_set(tmp_path / "data/notes")
    monkeypatch.chdir(tmp_path)
    return str(EXAMPLES / "document.yaml")


def test_the_example_trains_by_command_and_its_translation_to_the_same_losses(
    example: str, command: Callable[..., tuple[int, str, str]]
) -> None:
    assert command("check", example)[0] == 0
    line = "notes_per_record: 24  # data.notes_per_record ("
    out = train_with_translation(command, example, "+quintet.name=again", line)
    assert "finished: 12 steps" in out
    assert "not validated on: mozart" in out
    assert "(best of full_val " in out
    for name in ("train/loss", "validation/loss", "validation/full_val/loss", "validation/bach/loss"):
        first, second = (measured(Path("out") / run, name) for run in ("document", "again"))
        assert first
        assert first == second
    code, back, err = command("translate", "native.yaml", "--to", "piano")
    assert code == 0, err
    assert "quintet:" not in back
    assert "lost" not in err
    assert yaml.safe_load(back)["dataset"]["extra_datasets"] == [str(Path("data/notes").absolute())]


def test_the_example_learns_in_process(example: str) -> None:
    from quintet.train.loop import train

    steps = ["optimizer.max_iters=30", "eval_iters=1", "eval_interval=30", "lr.learning_rate=1e-2"]
    config = load_run_config([Path(example)], steps).config
    folder = train(config, Reporter(), peak_flops=PEAK).run.folder
    found = measured(folder)
    assert found[-1] < 0.8 * found[0]
