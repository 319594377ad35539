"""PhyAGI: the keys of the data and of the run's folder, and what each of them changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.dialects.conftest import Made, Make, changes
from tests.dialects.phyagi_runs import VOCAB, every_window, tokens, write_tokens
from tests.dialects.phyagi_runs import base as base  # a fixture
from tests.dialects.phyagi_runs import data as data  # a fixture
from tests.helpers import refused

from quintet.config.documents import IGNORED

DIALECT = "phyagi"


@changes("data_root")
def test_data_root(make: Make, data: Path) -> None:
    made = make({"data_root": str(data), "dataset.0.train_file": "${data_root}/code/train.npy"})
    assert made.run.data.epoch_samples == 499 // 16


@changes("output_root")
def test_output_root(make: Make) -> None:
    """A relative folder is inside it, unless it names it already."""
    for output in ("mine", "elsewhere/mine"):
        made = make({"output_root": "elsewhere", "output_dir": output, "training_args.max_steps": 1})
        assert made.trained == made.file.parent / "elsewhere/mine"


@changes("output_dir")
def test_output_dir(make: Make) -> None:
    made = make({"output_dir": "here/mine", "training_args.max_steps": 1})
    assert made.trained == made.file.parent / "here/mine"
    assert contains_run(made.trained)


def contains_run(folder: Path) -> bool:
    return (folder / "metrics.jsonl").is_file() and (folder / "run.yaml").is_file()


@changes("trainer")
def test_trainer(make: Make) -> None:
    kinds = {"deepspeed": "quintet", "huggingface": "transformers", "lightning": "lightning"}
    for name, kind in kinds.items():
        arguments = {"max_steps": 2} if name != "lightning" else {"trainer": {"max_steps": 2}}
        assert make({"trainer": name, "training_args": arguments}).config.trainer.kind == kind


@changes("dataset[].cache_dir")
def test_cache_dir(make: Make, data: Path) -> None:
    folder = make({"dataset.0": {"cache_dir": str(data / "stories"), "seq_len": 16}})
    assert folder.run.data.epoch_samples == 999 // 16
    assert folder.run.validation is not None
    assert folder.run.tokenizer.decode([6, 7]).split() == ["w6", "w7"]
    file = make({"dataset.0": {"cache_dir": str(data / "code/train.npy"), "seq_len": 16}})
    assert file.run.data.epoch_samples == 499 // 16
    assert file.run.validation is None
    both = {"cache_dir": str(data / "stories"), "validation_file": "v.npy", "train_file": "t.npy"}
    message = refused(make, {"dataset.0": both})
    assert "cannot be given together with cache_dir" in message
    assert message.count("keep one") >= 2


@changes("dataset[].train_file")
def test_train_file(make: Make, data: Path) -> None:
    made = make({"dataset.0.train_file": str(data / "code/train.npy")})
    windows = tokens(data / "code/train.npy")[: 499 // 16 * 16].reshape(-1, 16)
    assert np.array_equal(every_window(made), windows[np.lexsort(windows.T[::-1])])
    assert "names no data" in refused(make, {}, without=("dataset.0.train_file",))


@changes("dataset[].validation_file")
def test_validation_file(make: Make, data: Path) -> None:
    assert held_out(make()) == 199 // 16
    assert held_out(make({"dataset.0.validation_file": str(data / "code/train.npy")})) == 499 // 16
    assert make(without=["dataset.0.validation_file"]).run.validation is None


def held_out(made: Made) -> int:
    assert made.run.validation is not None
    return made.run.validation.samples


@changes("dataset[].validation_split")
def test_validation_split(make: Make, data: Path) -> None:
    """The first tokens are held out and the rest is trained on: 1 is one token, 0.25 a quarter."""
    ids = tokens(data / "stories/train.npy")
    for split, cut in ((0.25, 250), (100, 100)):
        made = make({"dataset.0.validation_split": split}, without=["dataset.0.validation_file"])
        assert held_out(made) == (cut - 1) // 16
        windows = ids[cut : cut + (999 - cut) // 16 * 16].reshape(-1, 16)
        assert np.array_equal(every_window(made), windows[np.lexsort(windows.T[::-1])])
    assert "nothing to train on" in refused(make, {"dataset.0.validation_split": 1.0})
    assert "1 tokens hold no sample of seq_len" in refused(make, {"dataset.0.validation_split": 1})
    both = make({"dataset.0.validation_split": 0.25})
    assert any("is not read" in note for note in both.loaded.notes)
    assert held_out(both) == 249 // 16


@changes("dataset[].tokenizer_file")
def test_tokenizer_file(make: Make, data: Path) -> None:
    assert make().run.tokenizer.decode([6, 7]).split() == ["6", "7"]
    named = make({"dataset.0.tokenizer_file": str(data / "stories/tokenizer.pkl")})
    assert named.run.tokenizer.decode([6, 7]).split() == ["w6", "w7"]
    second = {"train_file": "x.npy", "seq_len": 16, "tokenizer_file": "b.pkl"}
    message = refused(make, {"dataset.0.tokenizer_file": "a.pkl", "dataset.1": second})
    assert "a run has one tokenizer" in message


@changes("dataset[].seq_len")
def test_seq_len(make: Make, data: Path) -> None:
    assert make({"dataset.0.seq_len": 8}).batch().inputs.shape == (4, 8)
    second = {"train_file": str(data / "code/train.npy"), "seq_len": 8}
    assert "make them equal" in refused(make, {"dataset.1": second})
    assert "more than" in refused(make, {"dataset.0.seq_len": 32})


@changes("dataset[].shift_labels")
def test_shift_labels(make: Make) -> None:
    kept, shifted = make(), make({"dataset.0.shift_labels": True})
    assert np.array_equal(kept.batch().inputs, shifted.batch().inputs)
    assert (kept.batch().targets[:, -1] == IGNORED).all()
    assert (shifted.batch().targets[:, -1] != IGNORED).all()
    assert np.array_equal(kept.batch().targets[:, :-1], kept.batch().inputs[:, 1:])


@changes("dataset[].weight")
def test_weight(make: Make, data: Path) -> None:
    """An epoch has ceil(samples × weight) samples of each dataset."""
    second = {"train_file": str(data / "code/train.npy"), "seq_len": 16, "weight": 0.5}
    made = make({"dataset.0.weight": 1.5, "dataset.1": second})
    assert made.run.data.epoch_samples == 93 + 16  # ceil(62 · 1.5) and ceil(31 / 2)
    assert "above 0" in refused(make, {"dataset.0.weight": 0})


@changes("dataset[].label")
def test_label(make: Make, data: Path) -> None:
    second = {"train_file": "${dataset[0].validation_file}", "validation_split": 50, "seq_len": 16}
    made = make({"dataset.0.label": "stories", "dataset.1": second, "training_args.do_final_eval": True})
    assert list(made.metrics("validation/stories/loss")) == list(made.metrics("validation/1/loss")) == [4]


@changes("dataset[].dataset_path")
def test_dataset_path(make: Make, data: Path) -> None:
    streamed = {"dataset_path": str(data / "code/train.npy"), "seq_len": 16}
    made = make({"dataset.0": streamed, "dataset_provider": "stream_lm"})
    assert np.array_equal(made.batch(0).inputs.ravel(), tokens(data / "code/train.npy")[:64])


@changes("dataset_concat")
def test_dataset_concat(make: Make, data: Path) -> None:
    second = {"train_file": str(data / "code/train.npy"), "seq_len": 16}
    one_by_one = make({"dataset.1": second, "dataset_concat": "sequential"})
    order = np.concatenate([one_by_one.batch(step).sources for step in range(40)])[: 62 + 31 + 62]
    assert np.array_equal(order, np.repeat([0, 1, 0], [62, 31, 62]))
    for name in ("random", "random_iterable"):
        mixed = make({"dataset.1": second, "dataset_concat": name})
        assert len(set(np.concatenate([mixed.batch(step).sources for step in range(5)]))) == 2
    assert "use random" in refused(make, {"dataset_concat": "random_chat"})


@changes("eval_dataset_concat")
def test_eval_dataset_concat(make: Make, data: Path) -> None:
    second = {"train_file": str(data / "code/train.npy"), "seq_len": 16, "validation_split": 50}
    changes = {"dataset.1": second, "training_args.do_final_eval": True, "training_args.max_steps": 1}
    apart = make(changes)
    together = make({**changes, "eval_dataset_concat": "random"})
    assert apart.metrics("validation/0/loss").keys() == apart.metrics("validation/1/loss").keys() == {1}
    assert together.metrics("validation/1/loss") == {}
    assert together.metrics("validation/loss") == pytest.approx(apart.metrics("validation/loss"))


@changes("dataset_provider")
def test_dataset_provider(make: Make, data: Path) -> None:
    assert not np.array_equal(make().batch(0).inputs.ravel(), tokens(data / "stories/train.npy")[:64])
    streamed = make({"dataset_provider": "stream_lm"})
    assert np.array_equal(streamed.batch(1).inputs.ravel(), tokens(data / "stories/train.npy")[64:128])
    assert "use lm" in refused(make, {"dataset_provider": "chat"})


@changes("dataset_global_weight")
def test_dataset_global_weight(make: Make) -> None:
    assert make({"dataset.0.weight": 1.5, "dataset_global_weight": 2}).run.data.epoch_samples == 186


def loss_mask(made: Made) -> set[int]:
    """The ids that count in the loss in the first epoch."""
    found = np.concatenate([made.batch(step).targets.ravel() for step in range(16)])
    return set(found.tolist()) - {IGNORED}


@changes("dataset_collator.cls")
def test_collator_class(make: Make) -> None:
    assert loss_mask(make({"dataset_collator": {"cls": "lm"}})) == set(range(6, VOCAB))
    assert "use lm" in refused(make, {"dataset_collator": {"cls": "chat"}})


@changes("dataset_collator.ignore_token_ids")
def test_ignore_token_ids(make: Make) -> None:
    made = make({"dataset_collator": {"cls": "lm", "ignore_token_ids": [6, 39]}})
    assert loss_mask(made) == set(range(7, 39))
    assert 6 in made.batch(0).inputs or 6 in made.batch(1).inputs


@changes("dataset_collator.ignore_token_range")
def test_ignore_token_range(make: Make) -> None:
    assert loss_mask(make({"dataset_collator": {"ignore_token_range": [10, 20]}})) == {*range(6, 10), *range(21, VOCAB)}
    both = {"ignore_token_range": [1, 2], "ignore_token_id_range": [1, 3]}
    assert "keep one" in refused(make, {"dataset_collator": both})
    same_twice = make({"dataset_collator": {"ignore_token_range": [1, 2], "ignore_token_id_range": [1, 2]}})
    assert same_twice.config.loss.ignore_token_range == (1, 2)


@changes("dataset_collator.ignore_index")
def test_ignore_index(make: Make, tmp_path: Path) -> None:
    """Labels beside the tokens have no loss if they have this value; from 0 on, no token of that id has one."""
    file = write_tokens(tmp_path / "labelled/train.npy")
    ids = tokens(file)
    for index in (-7, 9):
        np.save(file.with_name("train_labels.npy"), np.where(ids < 20, index, ids))
        made = make({"dataset.0.train_file": str(file), "dataset_collator": {"ignore_index": index}})
        assert loss_mask(made) == set(range(20, VOCAB))
    assert loss_mask(make({"dataset_collator": {"ignore_index": 9}})) == set(range(6, VOCAB)) - {9}


@pytest.mark.parametrize("name", ["ignore_token_range", "ignore_token_id_range"])
@pytest.mark.parametrize(
    ("span", "left"),
    [
        ([0, 10], range(11, VOCAB)),
        ([10, None], range(6, 10)),
        ([0, 0], range(6, VOCAB)),
        ([None, 7], range(8, VOCAB)),
    ],
)
def test_both_bounds_of_a_range_count_and_0_is_a_bound(make: Make, name: str, span: list[Any], left: range) -> None:
    assert loss_mask(make({"dataset_collator": {"cls": "lm", name: span}})) == set(left)
