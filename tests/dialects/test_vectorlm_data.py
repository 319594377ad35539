"""VectorLM: the keys of the preprocessing and what each of them changes, and worked examples."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from tests.dialects.conftest import Make, changes
from tests.dialects.vectorlm_runs import (
    ALPHABET,
    BOS,
    EOS,
    NONE,
    P,
    T,
    raw,
    refused,
    rows_of,
    texts_of,
    without_processed,
    write_rows,
    write_texts,
)
from tests.dialects.vectorlm_runs import base as base  # a fixture
from tests.dialects.vectorlm_runs import processed as processed  # a fixture
from tests.dialects.vectorlm_runs import world as world  # a fixture

import quintet
from quintet.api import with_source
from quintet.data.formats import write_samples
from quintet.data.prepare import prepare
from quintet.errors import UserError

datasets = pytest.importorskip("datasets")

DIALECT = "vectorlm"


@changes(f"{P}.ignore_index")
def test_written_labels(make: Make, world: Path) -> None:
    keys = raw(world, save_path="new", ignore_index=-7, seperator="c")
    made = make({P: keys}, purpose="prepare")
    target = made.loaded.prepare_to
    assert target is not None
    with chdir(made.file.parent):
        write_samples(prepare(made.config), Path(target.folder), target.ignore_index)
        labels = datasets.load_from_disk(target.folder)["labels"]
    assert list(labels) == [[-7, -7, -7, -7, *range(13, 18), 2]]
    both = {P: raw(world, save_path=str(world / "train"), ignore_index=-7)}
    assert "make them equal" in refused(make, both)


@changes(f"{P}.data_field")
def test_field(make: Make, world: Path) -> None:
    assert texts_of(without_processed(make, world, add_bos_eos_tokens=False)) == [list(range(10, 18)), [33, 34]]
    other = without_processed(make, world, add_bos_eos_tokens=False, data_field="other")
    assert texts_of(other) == [[33, 34], list(range(10, 18))]


@changes(f"{P}.packing_type")
def test_packing(make: Make, world: Path) -> None:
    six = {f"{T}.max_seq_len": 6}
    expected = {
        "partial": [[1, 10, 11, 12, 13, 2], [1, 14, 15, 16, 17, 2], [1, 33, 34, 2]],
        "full": [[1, 10, 11, 12, 13, 2], [1, 14, 15, 16, 17, 2], [1, 33, 34, 2]],
        None: [[1, 10, 11, 12, 13, 2], [1, 33, 34, 2]],
    }
    for kind, rows in expected.items():
        assert texts_of(without_processed(make, world, six, packing_type=kind)) == rows
    seven = {f"{T}.max_seq_len": 7}
    joined = texts_of(without_processed(make, world, seven, packing_type="full"))
    assert joined == [[1, 10, 11, 12, 13, 14, 2], [1, 15, 16, 17, 33, 34, 2]]


@changes(f"{P}.overlap")
def test_overlap(make: Make, world: Path) -> None:
    six = {f"{T}.max_seq_len": 6}
    rows = texts_of(without_processed(make, world, six, packing_type="partial", overlap=1))
    assert rows == [[1, 10, 11, 12, 13, 2], [1, 13, 14, 15, 16, 2], [1, 16, 17, 2], [1, 33, 34, 2]]
    without = ["dataset.train_ds", "dataset.eval_ds"]
    much = {P: raw(world, packing_type="partial", overlap=4), **six}
    assert "leave no room" in refused(make, much, without=without)
    assert "packing_type" in refused(make, {P: raw(world, overlap=1)}, without=without)


@changes(f"{P}.add_bos_eos_tokens")
def test_bos_eos(make: Make, world: Path) -> None:
    assert texts_of(without_processed(make, world))[1] == [1, 33, 34, 2]
    assert texts_of(without_processed(make, world, add_bos_eos_tokens=False))[1] == [33, 34]


@changes(f"{P}.from_disk")
def test_from_disk(make: Make, world: Path) -> None:
    without = ["dataset.train_ds", "dataset.eval_ds"]
    assert "set it to true" in refused(make, {P: raw(world, from_disk=False)}, without=without)
    folder = make().file.parent / "files"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "x y z"}\n{"text": "a b c"}\n')
    files = {"load_path": str(folder), "split": "train"}
    assert "set from_disk: false" in refused(make, {P: files}, without=without)
    made = without_processed(make, world, from_disk=False, **files)
    assert texts_of(made) == [[1, 33, 34, 35, 2], [1, 10, 11, 12, 2]]
    assert "there is no folder" in refused(make, {P: {"load_path": "squad"}}, without=without)


@changes(f"{P}.seperator")
def test_separator(make: Make, world: Path) -> None:
    texts = write_texts(make().file.parent / "texts", train=["a b # c d", "no sep", "p q # r # s"])
    made = without_processed(make, world, load_path=str(texts), seperator="#")
    first, second = rows_of(made)
    assert first == ([1, 10, 11, 3, 12, 13, 2], [NONE, NONE, NONE, NONE, 12, 13, 2])
    assert second == ([1, 25, 26, 3, 27, 3, 28, 2], [NONE, NONE, NONE, NONE, 27, 3, 28, 2])


@changes(f"{P}.load_path")
def test_load_path(make: Make, world: Path) -> None:
    other = write_texts(make().file.parent / "texts", train=["q q q"])
    assert texts_of(without_processed(make, world, load_path=str(other))) == [[1, 26, 26, 26, 2]]


@changes(f"{P}.split")
def test_split(make: Make, world: Path) -> None:
    assert texts_of(without_processed(make, world, split="test")) == [[1, 25, 26, 27, 28, 2]]
    without = ["dataset.train_ds", "dataset.eval_ds"]
    assert ": train, test" in refused(make, {P: raw(world, split=None)}, without=without)


@changes(f"{P}.save_path")
def test_save_path(make: Make, world: Path) -> None:
    made = make({P: raw(world, save_path="new")}, purpose="prepare")
    assert made.loaded.prepare_to is not None
    assert made.loaded.prepare_to.folder == "new"
    assert make({P: raw(world)}, purpose="prepare").loaded.prepare_to is None
    assert make({P: raw(world, save_path="new")}).loaded.prepare_to is None


@changes(f"{P}.truncate")
def test_truncate(make: Make, world: Path) -> None:
    six = {f"{T}.max_seq_len": 6}
    made = without_processed(make, world, six, truncate=True)
    assert texts_of(made) == [[1, 10, 11, 12, 13, 2], [1, 33, 34, 2]]
    assert not any("truncate" in note for note in made.loaded.notes)
    assert any("as with truncate: true" in note for note in without_processed(make, world, six).loaded.notes)
    without = ["dataset.train_ds", "dataset.eval_ds"]
    both = {P: raw(world, packing_type="full", truncate=True)}
    assert "keep one of the two" in refused(make, both, without=without)


@changes(f"{P}.pre_pend")
def test_pre_pend(make: Make, world: Path) -> None:
    assert texts_of(without_processed(make, world, pre_pend="z "))[1] == [1, 35, 33, 34, 2]


# Worked examples of the preprocessing; comments tell where VectorLM's own code has another result.


def as_the_original(ids: list[int], labels: str | None = None) -> tuple[list[int], list[int]]:
    """Return a row, without a loss where ``labels`` has "-". The first label means nothing: it is never a target."""
    marks = labels.split() if labels else ["x"] * len(ids)
    return ids, [NONE if mark == "-" else token for token, mark in zip(ids, marks, strict=True)]


def targets(rows: list[tuple[list[int], list[int]]]) -> list[tuple[list[int], list[int]]]:
    """Return ``rows`` with the labels of the targets only."""
    return [(ids, labels[1:]) for ids, labels in rows]


LETTERS = " ".join(ALPHABET)
CASES: dict[str, tuple[list[str], dict[str, Any], list[tuple[list[int], list[int]]]]] = {
    "no packing": (["x y"], {}, [as_the_original([1, 33, 34, 2])]),
    "truncated": ([LETTERS], {"truncate": True}, [as_the_original([1, 10, 11, 12, 13, 2])]),
    # The original writes an EOS over the last token here, though none is asked for.
    "truncated, no bos and eos": (
        [LETTERS],
        {"truncate": True, "add_bos_eos_tokens": False},
        [as_the_original([10, 11, 12, 13, 14, 15])],
    ),
    "pre_pend": (["a b"], {"pre_pend": "z "}, [as_the_original([1, 35, 10, 11, 2])]),
    "separator": (["a b # c"], {"seperator": "#"}, [as_the_original([1, 10, 11, 3, 12, 2], "- - - - x x")]),
    "separator twice": (["p # r # s"], {"seperator": "#"}, [as_the_original([1, 25, 3, 27, 3, 2], "- - - x x x")]),
    "separator missing": (["no sep", "x # y"], {"seperator": "#"}, [as_the_original([1, 33, 3, 34, 2], "- - - x x")]),
    # The original trains the EOS of a row of which nothing else has a loss.
    "separator cut off": (["a b c d e f g # h i", "x # y"], {"seperator": "#", "truncate": True}, [
        as_the_original([1, 33, 3, 34, 2], "- - - x x")]),
    "partial": ([LETTERS, "x y"], {"packing_type": "partial"}, [
        as_the_original([1, 10, 11, 12, 13, 2]),
        as_the_original([1, 14, 15, 16, 17, 2]),
        as_the_original([1, 33, 34, 2])]),
    "partial, overlap 1": ([LETTERS, "x y"], {"packing_type": "partial", "overlap": 1}, [
        as_the_original([1, 10, 11, 12, 13, 2]),
        as_the_original([1, 13, 14, 15, 16, 2]),
        as_the_original([1, 16, 17, 2]),
        as_the_original([1, 33, 34, 2])]),
    # The original has one more row, [1 16 17 2], whose tokens are all in the row before.
    "partial, overlap 2": ([LETTERS, "x y"], {"packing_type": "partial", "overlap": 2}, [
        as_the_original([1, 10, 11, 12, 13, 2]),
        as_the_original([1, 12, 13, 14, 15, 2]),
        as_the_original([1, 14, 15, 16, 17, 2]),
        as_the_original([1, 33, 34, 2])]),
    # The original has one more row, [1 13 2].
    "partial, exact fit": (["a b c d"], {"packing_type": "partial", "overlap": 1}, [
        as_the_original([1, 10, 11, 12, 13, 2])]),
    "partial, no bos and eos": ([LETTERS, "x y"], {"packing_type": "partial", "add_bos_eos_tokens": False}, [
        as_the_original([10, 11, 12, 13, 14, 15]), as_the_original([16, 17]), as_the_original([33, 34])]),
    # The original has a first row of which only the EOS has a loss.
    "partial, separator": (["a b c d e f # g h"], {"packing_type": "partial", "seperator": "#"}, [
        as_the_original([1, 14, 15, 3, 16, 2], "- - - - x x"), as_the_original([1, 17, 2])]),
    "partial, empty": (["", "x y"], {"packing_type": "partial"}, [as_the_original([1, 33, 34, 2])]),
    # What the original intended; its last version writes no rows at all.
    "full": ([LETTERS, "x y"], {"packing_type": "full"}, [
        as_the_original([1, 10, 11, 12, 13, 2]),
        as_the_original([1, 14, 15, 16, 17, 2]),
        as_the_original([1, 33, 34, 2])]),
    "full, joined": (["a b c", "x y"], {"packing_type": "full"}, [
        as_the_original([1, 10, 11, 12, 33, 2]), as_the_original([1, 34, 2])]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_preprocessing_is_that_of_the_worked_examples(case: str, processed: Callable[..., Any]) -> None:
    texts, keys, rows = CASES[case]
    assert targets(processed(texts, **keys)) == targets(rows)


@pytest.mark.parametrize("path", ["partial", "full", None])
def test_preparing_and_then_training_is_training_on_the_texts(
    path: str | None, make: Make, world: Path, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """The dataset that `quintet prepare` writes has the rows and losses of a run that processes on the fly."""
    keys = raw(world, packing_type=path, save_path=str(tmp_path / "new"), pre_pend="z ")
    six = {f"{T}.max_seq_len": 6, P: keys, "dataset.train_ds": str(tmp_path / "new")}
    six |= {"quintet.data.validation": 0, f"{T}.logging_steps": 1000}
    on_the_fly = make(six, without=["dataset.eval_ds"])
    assert any("processed on the fly" in note for note in on_the_fly.loaded.notes)
    rows, losses = rows_of(on_the_fly), on_the_fly.losses
    with chdir(on_the_fly.file.parent):
        code, out, errors = command("prepare", str(on_the_fly.file))
    assert (code, out.splitlines()[0], errors) == (0, f"wrote {tmp_path / 'new'}", "")
    written = datasets.load_from_disk(tmp_path / "new")
    assert isinstance(written, datasets.Dataset)
    assert written["id"] == list(range(len(rows)))
    assert [(row["input_ids"], row["labels"]) for row in written] == rows
    made = make(six, without=["dataset.eval_ds"])
    assert made.config.data.sources[0].path == str(tmp_path / "new")
    assert rows_of(made) == rows
    assert made.losses == losses


def test_a_file_with_a_plateau_can_be_prepared(make: Make, world: Path) -> None:
    """Nothing is held out then, whose loss the schedule would need."""
    keys = {P: raw(world, save_path="new"), f"{T}.lr_scheduler_type": "plateau-with-warmup"}
    assert texts_of(make(keys, purpose="prepare"))[1] == [1, 33, 34, 2]


def test_preparing_again_does_not_overwrite(
    make: Make, world: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    file = make({P: raw(world, save_path=str(world / "train"))}).file
    code, _, error = command("prepare", str(file))
    assert (code, "is there already" in error) == (2, True)


def test_a_processed_row_without_an_eos_learns_none(make: Make, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows", [([10, 11, 12], [10, 11, 12]), ([BOS, 13, EOS], [BOS, 13, EOS])])
    made = make({"dataset.train_ds": str(rows)})
    assert sorted(rows_of(made)) == [([BOS, 13, EOS], [BOS, 13, EOS]), ([10, 11, 12, EOS], [10, 11, 12, NONE])]


def test_one_processed_dataset_of_two_is_refused(make: Make, world: Path) -> None:
    """The two would be processed differently."""
    gone = {P: raw(world), "dataset.train_ds": "gone"}
    assert "run `quintet prepare`" in refused(make, gone)
    same_data = make({**gone, "dataset.eval_ds": "gone", "quintet.data.validation": 0})
    assert same_data.config.data.validation_sources == same_data.config.data.sources
    both = {P: raw(world, save_path="gone"), "dataset.eval_ds": "gone"}
    (absent,) = make(both).loaded.not_here
    assert (absent.key, "there is no gone yet" in absent.message) == ("dataset.eval_ds", True)


def test_without_the_model_the_length_is_missing_on_this_machine(make: Make, tmp_path: Path) -> None:
    loaded = make({"model": str(tmp_path / "absent"), "train_parameters.max_seq_len": -1}).loaded
    (absent,) = loaded.not_here
    assert (absent.key, "1,024 are assumed" in absent.message) == ("train_parameters.max_seq_len", True)
    assert loaded.config.data.sequence_length == 1024
    with pytest.raises(UserError, match=r"train_parameters\.max_seq_len: is not given"):
        quintet.train(with_source(loaded))
    told = quintet.check(with_source(loaded)).not_here
    assert [sum(f" {key}: " in line for line in told) for key in ("train_parameters.max_seq_len", "model")] == [1, 1]
    plan = quintet.plan(with_source(loaded))
    assert (plan.run.parameters, plan.run.vocab_size, plan.devices) == (None, None, None)
    assert any("train_parameters.max_seq_len: is not given" in line for line in plan.lines())


def test_without_an_evaluation_dataset_part_of_the_training_data_is_held_out(make: Make) -> None:
    made = make({"quintet.data.validation": 0.25}, without=["dataset.eval_ds"])
    assert made.run.validation is not None
    assert made.run.data.epoch_samples < 32
    assert any("held out" in note for note in made.loaded.notes)
