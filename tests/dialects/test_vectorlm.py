"""VectorLM: each key changes what its document says it changes, in the run that is really built."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from tests.checkpoints import tiny_llama, word_tokenizer
from tests.dialects.conftest import Made, Make, Said, changes, each_changes, same
from tests.helpers import REPOSITORY, measured

from quintet.config.dialects import detect, dialect_named
from quintet.config.dialects.back import translate_back
from quintet.config.load import Reading, load_run_config
from quintet.data.formats import write_samples
from quintet.data.prepare import prepare
from quintet.errors import UserError
from quintet.train.schedule import learning_rate

transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")
pytest.importorskip("peft")

DIALECT = "vectorlm"
BOS, EOS, NONE = 1, 2, -100
# The words of the worked examples, with the ids that they have there.
WORDS = {"<unk>": 0, "<s>": BOS, "</s>": EOS, "#": 3, "Excerpt:": 4, "Note:": 5}
WORDS |= {letter: 10 + index for index, letter in enumerate("abcdefghijklmno")}
WORDS |= {letter: 25 + index for index, letter in enumerate("pqrstuvwxyz")}
ALPHABET = list("abcdefgh")


def write_model(folder: Path, seed: int = 0, positions: int = 64) -> Path:
    """A llama of one layer with the tokenizer of the worked examples."""
    model = tiny_llama(40, max_position_embeddings=positions, bos_token_id=BOS, eos_token_id=EOS)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    words = word_tokenizer(WORDS, "<s>", "</s>")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def write_rows(folder: Path, rows: list[tuple[list[int], list[int]]], split: str = "train") -> Path:
    """A processed dataset as VectorLM writes one."""
    columns = {
        "id": list(range(len(rows))),
        "input_ids": [ids for ids, _ in rows],
        "labels": [labels for _, labels in rows],
        "attention_mask": [[1] * len(ids) for ids, _ in rows],
    }
    datasets.Dataset.from_dict(columns, split=split).save_to_disk(folder)
    return folder


def write_texts(folder: Path, **splits: list[str]) -> Path:
    """A dataset dictionary with a column of text."""
    datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": texts, "other": texts[::-1]}) for name, texts in splits.items()}
    ).save_to_disk(folder)
    return folder


def some_rows(count: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """Rows of 6 to 12 ids, the first two without a loss, the last an EOS."""
    draw = np.random.default_rng(seed)
    found = [[BOS, *draw.integers(10, 36, draw.integers(4, 11)).tolist(), EOS] for _ in range(count)]
    return [(ids, [NONE, NONE, *ids[2:]]) for ids in found]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a processed dataset to train on, one to evaluate on, and texts."""
    return write_world(tmp_path_factory.mktemp("vectorlm"))


def write_world(folder: Path) -> Path:
    """A model, a processed dataset to train on, one to evaluate on, and texts."""
    datasets.disable_progress_bars()
    write_model(folder / "model")
    write_rows(folder / "train", some_rows(32, seed=1))
    write_rows(folder / "eval", some_rows(8, seed=2), split="test")
    write_texts(folder / "texts", train=[" ".join(ALPHABET), "x y"], test=["p q r s"])
    return folder


@pytest.fixture
def base(world: Path, tmp_path: Path) -> dict[str, Any]:
    return small_file(world, tmp_path / "cache")


def small_file(world: Path, cache: Path) -> dict[str, Any]:
    """A complete file that trains in a moment."""
    return {
        "model": str(world / "model"),
        "enable_wandb_logging": False,
        "train_parameters": {
            "output_dir": "out/mine",
            "max_seq_len": 12,
            "epochs": 1,
            "seed": 11,
            "sharding_strategy": "NO_SHARD",
            "use_mp": False,
            "use_activation_checkpointing": False,
            "use_flash_attention": False,
            "max_grad_norm": 1,
            "gradient_accumulation_steps": 1,
            "optimizer": {"lr": 1e-3, "weight_decay": 0.1, "betas": [0.9, 0.95], "eps": 1e-5},
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.25,
            "checkpointing_enabled": True,
            "logging_steps": 2,
            "save_frequency": 0.25,
        },
        "dataset": {
            "ignore_index": -100,
            "eval_bs": 4,
            "train_bs": 4,
            "train_ds": str(world / "train"),
            "eval_ds": str(world / "eval"),
        },
        "quintet": {"data": {"cache_dir": str(cache)}},
    }


T, P = "train_parameters", "dataset_preprocess"


@pytest.fixture
def processed(make: Make, world: Path, tmp_path: Path) -> Callable[..., list[tuple[list[int], list[int]]]]:
    """``processed(texts, packing_type="full")``: the rows, ids and labels, that preprocessing makes of texts."""
    count = 0

    def rows(texts: list[str], length: int = 6, **keys: Any) -> list[tuple[list[int], list[int]]]:
        nonlocal count
        count += 1
        folder = write_texts(tmp_path / f"texts{count}", train=texts)
        changes = {P: {"load_path": str(folder), "split": "train", **keys}, f"{T}.max_seq_len": length}
        return rows_of(make(changes, purpose="prepare"))

    return rows


def rows_of(made: Made) -> list[tuple[list[int], list[int]]]:
    """The samples to train on, in order, as rows of ids and labels."""
    with chdir(made.file.parent):
        streams = prepare(made.config).train.streams
    found = [stream.sample(index) for stream in streams for index in range(stream.count)]
    return [
        (one.ids.tolist(), np.where(one.loss_mask, one.ids.astype(int), NONE).tolist())
        for one in map(_with_mask, found)
    ]


def _with_mask(sample: Any) -> Any:
    if sample.loss_mask is None:
        return type(sample)(sample.ids, np.ones(sample.ids.size, bool), sample.documents)
    return sample


def refused(make: Make, changes: dict[str, Any], **more: Any) -> str:
    with pytest.raises(UserError) as error:
        _ = make(changes, **more).run
    return "\n".join(error.value.problems)


def raw(world: Path, **keys: Any) -> dict[str, Any]:
    return {"load_path": str(world / "texts"), "split": "train", **keys}


def without_processed(make: Make, world: Path, changes: dict[str, Any] | None = None, **keys: Any) -> Made:
    """A run that processes the texts on the way and holds nothing out."""
    changes = {P: raw(world, **keys), "quintet.data.validation": 0, **(changes or {})}
    return make(changes, without=["dataset.train_ds", "dataset.eval_ds"])


def texts_of(made: Made) -> list[list[int]]:
    return [ids for ids, _ in rows_of(made)]


# What each key does.


@changes("model")
def test_the_model(make: Make) -> None:
    other = write_model(make().file.parent / "other", seed=5)
    first, second = make().model.state_dict(), make({"model": str(other)}).model.state_dict()
    name = next(name for name in first if "q_proj" in name)
    assert not torch.equal(first[name], second[name])
    loaded = transformers.AutoModelForCausalLM.from_pretrained(other).state_dict()
    torch.testing.assert_close(second[name], loaded[name.removeprefix("inner.")])


@changes(f"{T}.output_dir")
def test_the_folder(make: Make) -> None:
    made = make({f"{T}.output_dir": "some/where"})
    assert made.trained == made.file.parent / "some/where"
    assert made.checkpoints
    assert "must end with a name" in refused(make, {f"{T}.output_dir": ".."})


@changes(f"{T}.max_seq_len")
def test_the_length(make: Make) -> None:
    """A row has S tokens, of which all but the last are inputs and all but the first targets."""
    assert make().batch().inputs.shape == (4, 11)
    shorter = make({f"{T}.max_seq_len": 7})
    assert max(len(ids) for ids, _ in rows_of(shorter)) == 7
    assert shorter.batch().inputs.shape == (4, 6)
    for value in (None, 0, -1):
        assert make({f"{T}.max_seq_len": value}).config.data.sequence_length == 63
    assert make(without=[f"{T}.max_seq_len"]).config.data.sequence_length == 63
    assert "65 tokens are more" not in refused(make, {f"{T}.max_seq_len": 2})
    assert "64 positions" in refused(make, {f"{T}.max_seq_len": 66})


@changes(f"{T}.epochs")
def test_the_epochs(make: Make) -> None:
    """32 rows in batches of 4; each epoch has all of them, in an order of its own."""
    assert make().run.steps == 8
    made = make({f"{T}.epochs": 3})
    assert made.run.steps == 24
    first, second = (np.concatenate([made.batch(step).inputs for step in steps]) for steps in (range(8), range(8, 16)))
    assert not np.array_equal(first, second)
    assert sorted(map(tuple, first.tolist())) == sorted(map(tuple, second.tolist()))


@changes(f"{T}.seed")
def test_the_seed(make: Make) -> None:
    assert same(make().batch(), make().batch())
    assert not same(make().batch(), make({f"{T}.seed": 12}).batch())


@changes(f"{T}.use_mp")
def test_mixed_precision(make: Make) -> None:
    """Matrix products in bf16, while weights and averages stay in fp32."""
    assert make().run.compute.precision == "fp32"
    mixed = make({f"{T}.use_mp": True})
    assert mixed.run.compute.precision == "bf16"
    assert {parameter.dtype for parameter in mixed.model.parameters()} == {torch.float32}


@changes(f"{T}.use_activation_checkpointing")
def test_checkpointing(make: Make) -> None:
    def does(made: Made) -> bool:
        return any(getattr(module, "gradient_checkpointing", False) for module in made.model.modules())

    assert not does(make())
    assert does(make({f"{T}.use_activation_checkpointing": True}))


@changes(f"{T}.use_flash_attention")
def test_flash(make: Make) -> None:
    key = f"{T}.use_flash_attention"
    assert "set use_mp: true" in refused(make, {key: True})
    fast = make({key: True, f"{T}.use_mp": True})
    if importlib.util.find_spec("flash_attn") is None:
        assert fast.model.causal.config._attn_implementation == "sdpa"
        assert any("flash_attn is not installed" in note for note in fast.loaded.notes)
    else:
        assert fast.config.model.attention_backend == "flash_attention_2"
    with mock.patch("importlib.util.find_spec", return_value=object()):
        installed = make({key: True, f"{T}.use_mp": True})
    assert installed.config.model.attention_backend == "flash_attention_2"
    assert not installed.loaded.notes
    assert make().config.model.attention_backend == "auto"


@changes(f"{T}.max_grad_norm")
def test_clipping(make: Make) -> None:
    """AdamW does not feel the size of a gradient but through eps, so that a large one shows it."""
    rough = {"eps": 1.0, "lr": 0.1, "weight_decay": 0}

    def validation(norm: float | None) -> dict[int, float]:
        return make({f"{T}.max_grad_norm": norm, f"{T}.optimizer": rough}).metrics("validation/loss")

    free, tight = validation(None), validation(1e-6)
    assert free[8] < free[2] - 0.01
    assert tight[8] == pytest.approx(tight[2], abs=1e-4)
    assert validation(1e6) == free


@changes(f"{T}.gradient_accumulation_steps")
def test_accumulation(make: Make) -> None:
    """Steps of 4 micro-batches of 4 rows: 2 of them in 32 rows, each with the gradient of 16 rows at once."""
    many = make({f"{T}.gradient_accumulation_steps": 4, f"{T}.warmup_ratio": 0})
    assert (many.run.steps, many.batch().inputs.shape) == (2, (16, 11))
    once = make({"dataset.train_bs": 16, f"{T}.warmup_ratio": 0})
    assert many.losses == pytest.approx(once.losses, rel=1e-5)


def learning_rates(make: Make, name: str, warmup: float, steps: int = 8, **more: Any) -> list[float]:
    config = make({f"{T}.lr_scheduler_type": name, f"{T}.warmup_ratio": warmup, **more}).config
    return [learning_rate(config.schedule, config.optimizer.lr, step, steps) for step in range(1, steps + 1)]


@changes(f"{T}.lr_scheduler_type", f"{T}.min_lr", f"{T}.lr_scheduler_kwargs")
def test_schedules(make: Make) -> None:
    """Every name of the library gives the library's own rates, which begin at 0 where there is a warm-up."""
    assert make().rates == pytest.approx(learning_rates(make, "cosine", 0.25))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    for name in ("linear", "cosine", "polynomial", "inverse_sqrt", "constant_with_warmup", "cosine_with_restarts"):
        for group in optimizer.param_groups:
            group.update(lr=1e-3, initial_lr=1e-3)
        theirs = transformers.get_scheduler(name, optimizer, 2, 8)
        expected = []
        for _ in range(8):
            expected.append(theirs.get_last_lr()[0])
            optimizer.step()
            theirs.step()
        assert learning_rates(make, name, 0.25) == pytest.approx(expected), name
    assert learning_rates(make, "constant", 0.25) == pytest.approx([1e-3] * 8)
    assert "greedy follows the loss" in refused(make, {f"{T}.lr_scheduler_type": "greedy"})
    assert "did you mean 'cosine'" in refused(make, {f"{T}.lr_scheduler_type": "cosin"})
    arguments = {"quintet.schedule": {"arguments": {"min_lr": 1e-4}}}
    for name in ("cosine_with_min_lr", "cosine_warmup_with_min_lr"):
        flat = make({f"{T}.lr_scheduler_type": name, f"{T}.warmup_ratio": 0})
        assert f"{name} without min_lr ends at 0" in "\n".join(load_run_config([flat.file]).notes)
        assert min(learning_rates(make, name, 0, steps=800)) < 1e-7
        floors = {f"{T}.min_lr": 1e-4}, {f"{T}.lr_scheduler_kwargs": {"min_lr": 1e-4}}
        for floor in floors:
            assert min(learning_rates(make, name, 0, steps=800, **floor)) == pytest.approx(1e-4, rel=1e-3)
    assert "cosine has none" in refused(make, {f"{T}.lr_scheduler_type": "cosine", f"{T}.min_lr": 1e-4})
    assert min(learning_rates(make, "cosine_with_min_lr", 0, **arguments)) > 1e-4


@changes(f"{T}.warmup_ratio")
def test_warmup(make: Make) -> None:
    """A quarter of all steps, not of an epoch's: of 3 epochs of 8 steps these are 6."""
    made = make({f"{T}.lr_scheduler_type": "constant_with_warmup", f"{T}.epochs": 3})
    assert made.run.steps == 24
    rates = learning_rates(make, "constant_with_warmup", 0.25, steps=24)
    assert rates == pytest.approx([1e-3 * min(step / 6, 1) for step in range(24)])
    assert "must be at most 1" in refused(make, {f"{T}.warmup_ratio": 1.5})


@changes(f"{T}.checkpointing_enabled")
def test_state_checkpoints(make: Make) -> None:
    assert make().checkpoints == [2, 4, 6, 8]
    assert make({f"{T}.checkpointing_enabled": False}).checkpoints == [8]
    assert saves(make({f"{T}.checkpointing_enabled": False}, without=[f"{T}.save_frequency"])) == [8]


def saves(made: Made) -> list[int]:
    return [step for step in range(1, made.run.steps + 1) if made.run.intervals.saves(step)]


@changes(f"{T}.save_frequency")
def test_save_frequency(make: Make) -> None:
    """A part of an epoch, of 8 steps here, whatever the number of epochs."""
    assert saves(make({f"{T}.save_frequency": 0.5, f"{T}.epochs": 2})) == [4, 8, 12, 16]
    assert "must be above 0" in refused(make, {f"{T}.save_frequency": 0})
    assert "must be at most 1" in refused(make, {f"{T}.save_frequency": 2})
    assert "is missing" in refused(make, {}, without=[f"{T}.save_frequency"])


@changes(f"{T}.logging_steps")
def test_evaluations(make: Make) -> None:
    """Every 4 micro-batches are every 4 steps of one, and every 2 steps of two."""
    assert list(make({f"{T}.logging_steps": 4}).metrics("validation/loss")) == [4, 8]
    two = {f"{T}.logging_steps": 4, f"{T}.gradient_accumulation_steps": 2}
    assert list(make(two).metrics("validation/loss")) == [2, 4]
    uneven = make({f"{T}.logging_steps": 5, f"{T}.gradient_accumulation_steps": 2})
    assert uneven.config.evaluate.every == 3
    assert any("no whole number of steps" in note for note in uneven.loaded.notes)
    assert make({f"{T}.logging_steps": 1, f"{T}.gradient_accumulation_steps": 8}).config.evaluate.every == 1


def group(made: Made) -> dict[str, Any]:
    assert type(made.optimizer) is torch.optim.AdamW
    (only,) = (group for group in made.optimizer.param_groups if group["params"])
    return only


@each_changes(
    "value default",
    (f"{T}.optimizer.lr", 0.5, 1e-3),
    (f"{T}.optimizer.weight_decay", 0.3, 0.01),
    (f"{T}.optimizer.betas", [0.7, 0.8], (0.9, 0.999)),
    (f"{T}.optimizer.eps", 1e-3, 1e-8),
    (f"{T}.optimizer.amsgrad", True, False),
    (f"{T}.optimizer.maximize", True, False),
    (f"{T}.optimizer.foreach", True, None),
)
def test_an_argument_of_the_optimizer(make: Make, key: str, value: Any, default: Any) -> None:
    changed, name = make({key: value}), key.rpartition(".")[2]
    found = group(changed)
    assert len(found["params"]) == len(changed.shapes)  # norms and embeddings are in the one group, too
    found = {**found, "lr": changed.config.optimizer.lr}
    assert found[name] == (tuple(value) if isinstance(value, list) else value)
    left_out = make({f"{T}.optimizer": {}})
    assert {**group(left_out), "lr": left_out.config.optimizer.lr}[name] == default


LORA = {"task_type": "CAUSAL_LM", "inference_mode": False, "r": 2, "lora_alpha": 6, "lora_dropout": 0.25}


def adapted(make: Make, **keys: Any) -> Made:
    return make({f"{T}.lora_peft_config": {**LORA, **keys}})


def adapters(made: Made) -> set[str]:
    """The modules that have an adapter."""
    return {name.split(".")[-4] for name in made.shapes if ".lora_A." in name}


@changes(f"{T}.lora_peft_config.task_type")
def test_task_type(make: Make) -> None:
    made = adapted(make)
    trained = {name for name, parameter in made.model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in made.shapes if "lora_" in name} != set()
    assert "must be CAUSAL_LM" in refused(make, {f"{T}.lora_peft_config": {"task_type": "SEQ_CLS"}})
    assert not adapters(make({f"{T}.lora_peft_config": None}))


@changes(f"{T}.lora_peft_config.r")
def test_rank(make: Make) -> None:
    for keys, expected in (({"r": 3}, 3), ({"r": None}, 8)):
        sizes = {shape[0] for name, shape in adapted(make, **keys).shapes.items() if ".lora_A." in name}
        assert sizes == {expected}


@changes(f"{T}.lora_peft_config.lora_alpha")
def test_alpha(make: Make) -> None:
    def scale(made: Made) -> float:
        return next(module.scaling["default"] for module in made.model.modules() if hasattr(module, "lora_A"))

    assert scale(adapted(make)) == 6 / 2
    assert scale(adapted(make, lora_alpha=10)) == 10 / 2
    assert scale(adapted(make, lora_alpha=None)) == 8 / 2


@changes(f"{T}.lora_peft_config.lora_dropout")
def test_lora_dropout(make: Make) -> None:
    assert set(adapted(make).dropouts().values()) == {0.25}
    assert not adapted(make, lora_dropout=0).dropouts()


@changes(f"{T}.lora_peft_config.target_modules")
def test_lora_targets(make: Make) -> None:
    """Those that peft takes for a llama, or those that are named."""
    assert adapters(adapted(make)) == {"q_proj", "v_proj"}
    assert adapters(adapted(make, target_modules=["k_proj"])) == {"k_proj"}
    assert "down_proj" in adapters(adapted(make, target_modules="all-linear"))


@changes("dataset.train_ds")
def test_train_dataset(make: Make) -> None:
    other = write_rows(make().file.parent / "other", some_rows(12, seed=9), split="anything")
    assert sorted(rows_of(make({"dataset.train_ds": str(other)}))) == sorted(some_rows(12, seed=9))
    assert "there is no folder" in refused(make, {"dataset.train_ds": "./nowhere"})
    assert "dataset.train_ds: is missing" in refused(make, {}, without=["dataset.train_ds"])


@changes("dataset.eval_ds")
def test_eval_dataset(make: Make, world: Path) -> None:
    """All of it is evaluated on: the loss of the library's own model over every label."""
    made = make({f"{T}.optimizer.lr": 1e-12})
    model = transformers.AutoModelForCausalLM.from_pretrained(world / "model").eval()
    total = count = 0.0
    for ids, labels in some_rows(8, seed=2):
        with torch.no_grad():  # the model has more rows than the tokenizer ids
            logits = model(torch.tensor([ids])).logits[0, :-1, : max(WORDS.values()) + 1]
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum").item()
        count += sum(label != NONE for label in labels[1:])
    assert made.metrics("validation/loss")[8] == pytest.approx(total / count, rel=1e-5)
    other = write_rows(made.file.parent / "other", some_rows(3, seed=4))
    assert make({"dataset.eval_ds": str(other), f"{T}.optimizer.lr": 1e-12}).metrics("validation/loss") != made.metrics(
        "validation/loss"
    )


@changes("dataset.ignore_index")
def test_ignored(make: Make) -> None:
    """Other values mean no loss, in both datasets."""
    place = make().file.parent
    seven = [(ids, [-7 if label == NONE else label for label in labels]) for ids, labels in some_rows(8, seed=1)]
    both = {f"dataset.{name}": str(write_rows(place / name, seven)) for name in ("train_ds", "eval_ds")}
    made = make({**both, "dataset.ignore_index": -7})
    assert sorted(rows_of(made)) == sorted(some_rows(8, seed=1))
    assert made.run.validation is not None
    assert "ignore_index" in refused(make, both)


@changes("dataset.eval_bs")
def test_eval_batch(make: Make) -> None:
    assert make({"dataset.eval_bs": 3}).config.evaluate.batch_size == 3
    one, eight = (make({"dataset.eval_bs": size}).metrics("validation/loss") for size in (1, 8))
    assert one == pytest.approx(eight, rel=1e-5)


@changes("enable_wandb_logging")
def test_logging(make: Make) -> None:
    assert make().config.track == ()
    pytest.importorskip("wandb")
    on = {"enable_wandb_logging": True, "wandb_config": {"project": "MedGPT", "name": "tiny", "mode": "offline"}}
    made = make({**on, f"{T}.epochs": 1})
    assert list((made.trained / "wandb").glob("offline-run-*"))
    off = make({"wandb_config": on["wandb_config"]})
    assert off.config.track == ()


@changes("wandb_config")
def test_wandb_arguments(make: Make) -> None:
    pytest.importorskip("wandb")
    made = make({"enable_wandb_logging": True, "wandb_config": {"project": "MedGPT", "tags": ["a"]}})
    assert made.config.track[0].arguments == {"project": "MedGPT", "tags": ["a"]}
    misspelt = {"enable_wandb_logging": True, "wandb_config": {"projct": "x"}}
    assert "did you mean project" in refused(make, misspelt)


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
    assert "make them one" in refused(make, both)


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
    assert "has train, test" in refused(make, {P: raw(world, split=None)}, without=without)


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


@changes("dataset.train_bs")
def test_train_batch(make: Make) -> None:
    assert make({"dataset.train_bs": 8}).batch().inputs.shape == (8, 11)
    assert make({"dataset.train_bs": 8}).run.steps == 4


@changes(f"{T}.lora_peft_config.inference_mode")
def test_inference_mode(make: Make) -> None:
    assert "cannot be trained" in refused(make, {f"{T}.lora_peft_config": {**LORA, "inference_mode": True}})
    assert adapters(adapted(make, inference_mode=False))


@changes(f"{T}.sharding_strategy")
def test_sharding(make: Make) -> None:
    """Each strategy of torch's FSDP is one of `parallel`, and the run's model is spread by it."""
    names = {
        "NO_SHARD": ("ddp", None),
        "FULL_SHARD": ("fsdp", "full"),
        "SHARD_GRAD_OP": ("fsdp", "grad_op"),
        "HYBRID_SHARD": ("hsdp", "full"),
        "_HYBRID_SHARD_ZERO2": ("hsdp", "grad_op"),
    }
    for name, spread in names.items():
        parallel = make({f"{T}.sharding_strategy": name}).config.parallel
        assert (parallel.kind, getattr(parallel, "shard", None)) == spread
    assert make(without=[f"{T}.sharding_strategy"]).config.parallel.kind == "auto"


# Worked examples of the preprocessing, with what VectorLM's own code makes of them where it is not cured.


def as_the_original(ids: list[int], labels: str | None = None) -> tuple[list[int], list[int]]:
    """A row; of its labels "-" has no loss. The first token is never a target, so that its label means nothing."""
    marks = labels.split() if labels else ["x"] * len(ids)
    return ids, [NONE if mark == "-" else token for token, mark in zip(ids, marks, strict=True)]


def targets(rows: list[tuple[list[int], list[int]]]) -> list[tuple[list[int], list[int]]]:
    """``rows`` with the labels of targets alone."""
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
    """The dataset that `quintet prepare` writes has the rows of the run that processes on the way, and trains alike."""
    keys = raw(world, packing_type=path, save_path=str(tmp_path / "new"), pre_pend="z ")
    six = {f"{T}.max_seq_len": 6, P: keys, "dataset.train_ds": str(tmp_path / "new")}
    six |= {"quintet.data.validation": 0, f"{T}.logging_steps": 1000}
    on_the_way = make(six, without=["dataset.eval_ds"])
    assert any("processed on the way" in note for note in on_the_way.loaded.notes)
    rows, losses = rows_of(on_the_way), on_the_way.losses
    with chdir(on_the_way.file.parent):
        code, out, errors = command("prepare", str(on_the_way.file))
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
    """Nothing is held out then, of which the schedule of a training would need the loss."""
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
    """They would be cut differently."""
    gone = {P: raw(world), "dataset.train_ds": "gone"}
    assert "run `quintet prepare`" in refused(make, gone)
    same_data = make({**gone, "dataset.eval_ds": "gone", "quintet.data.validation": 0})
    assert same_data.config.data.validation_sources == same_data.config.data.sources
    both = {P: raw(world, save_path="gone"), "dataset.eval_ds": "gone"}
    assert "is not there yet" in refused(make, both)


def test_without_an_evaluation_dataset_part_of_the_training_data_is_held_out(make: Make) -> None:
    made = make({"quintet.data.validation": 0.25}, without=["dataset.eval_ds"])
    assert made.run.validation is not None
    assert made.run.data.epoch_samples < 32
    assert any("held out" in note for note in made.loaded.notes)


# Spellings and nestings.


@pytest.mark.parametrize("spelling", ["plataeu-with-warmup", "plateau-with-warmup"])
def test_a_plateau_lowers_the_rate_after_a_warm_up(make: Make, spelling: str) -> None:
    """With a rate that is far too high the loss rises, and the patience of 0 is gone at once."""
    changes = {f"{T}.lr_scheduler_type": spelling, f"{T}.logging_steps": 1, f"{T}.optimizer.lr": 3.0}
    made = make({**changes, "quintet.schedule": {"patience": 0}})
    assert made.rates[:2] == pytest.approx([1.5, 3.0])
    assert made.rates[-1] <= 0.3
    config = made.config.schedule
    assert (config.factor, config.threshold, config.min_lr) == (0.1, 1e-4, 0.0)
    assert make(changes).config.schedule.patience == 10


def test_reduce_lr_on_plateau_has_no_warm_up(make: Make) -> None:
    made = make({f"{T}.lr_scheduler_type": "reduce_lr_on_plateau"})
    assert (made.config.schedule.kind, made.config.schedule.warmup_steps) == ("plateau", 0)
    assert any("plateau-with-warmup has one" in note for note in made.loaded.notes)


def test_flat_keys_are_those_of_the_sections(base: dict[str, Any], make: Make, tmp_path: Path) -> None:
    """The headings of the document suggest them."""
    flat = {**{name: value for name, value in base.items() if name != T}, **base[T]}
    file = tmp_path / "their.yaml"
    file.write_text(yaml.safe_dump(flat))
    assert load_run_config([file]).config == make().config
    file.write_text(yaml.safe_dump({**flat, T: {"epochs": 7}}))
    with pytest.raises(UserError, match="keep one"):
        load_run_config([file])


def test_both_spellings_of_the_separator(make: Make, world: Path) -> None:
    without = ["dataset.train_ds", "dataset.eval_ds"]
    made = make({P: raw(world, separator="#")}, without=without)
    assert made.config == make({P: raw(world, seperator="#")}, without=without).config
    with pytest.raises(UserError, match="says otherwise; keep one"):
        make({P: raw(world, separator="#", seperator="##")}, without=without)


def test_numbers_that_yaml_1_1_takes_for_text_are_numbers(make: Make, base: dict[str, Any]) -> None:
    made = make({f"{T}.optimizer.lr": "2e-5", f"{T}.optimizer.eps": "1e-5"})
    assert made.config.optimizer.lr == 2e-5
    assert made.config.optimizer.arguments["eps"] == 1e-5


def test_another_optimizer_is_a_native_key(make: Make) -> None:
    changes = {f"{T}.optimizer": {"lr": 0.5}, "quintet.optimizer": {"name": "SGD", "arguments": {"momentum": 0.9}}}
    made = make(changes)
    assert type(made.optimizer) is torch.optim.SGD
    assert made.optimizer.param_groups[0]["momentum"] == 0.9
    assert "betas: SGD has no such argument" in refused(make, {"quintet.optimizer": {"name": "SGD"}})


# Files of the project, condensed, with what its later versions have.

SHIPPED = """
model: /model-weights/Llama-2-7b-chat-hf
enable_wandb_logging: True
wandb_config: {project: MedGPT, name: Llama-2-7B-chat}
train_parameters:
  output_dir: your/output/dir
  max_seq_len: 1024
  epochs: 1
  seed: 11
  sharding_strategy: FULL_SHARD
  use_mp: True
  use_activation_checkpointing: True
  use_flash_attention: True
  max_grad_norm: 1
  gradient_accumulation_steps: 4
  optimizer: {lr: 2.0e-5, weight_decay: 0.1, betas: [0.9, 0.95], eps: 1.0e-5}
  lr_scheduler_type: cosine
  warmup_ratio: 0.05
  checkpointing_enabled: True
  logging_steps: 500
  save_frequency: 0.25
dataset: {ignore_index: -100, eval_bs: 8, train_bs: 8, train_ds: your/train/ds, eval_ds: your/eval/ds}
dataset_preprocess:
  ignore_index: -100
  dataset_format: hf
  data_field: text
  packing_type: partial
  add_bos_eos_tokens: True
  from_disk: True
  load_path: your/unprocessed/dataset
  split: train
  save_path: dir/to/save/processed/dataset
  truncate: False
"""
LATER = ["train_parameters.low_cpu_mem_usage=True", "train_parameters.max_seq_len=4096"]
ADAPTERS = "{task_type: CAUSAL_LM, inference_mode: False, r: 8, lora_alpha: 32, lora_dropout: 0.1}"
ONE_DEVICE = "train_parameters.sharding_strategy=NO_SHARD"


def shipped(tmp_path: Path, *overrides: str, text: str = SHIPPED, purpose: Any = "train") -> Any:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return load_run_config([file], overrides, Reading(purpose=purpose))


@pytest.mark.parametrize("overrides", [[], LATER], ids=["the document's version", "the last version"])
def test_the_file_of_the_project_is_read(tmp_path: Path, overrides: list[str]) -> None:
    config = shipped(tmp_path, *overrides).config
    assert config.model.name_or_path == "/model-weights/Llama-2-7b-chat-hf"
    assert (config.runs_dir, config.name, config.seed) == ("your/output", "dir", 11)
    assert config.data.sequence_length == (4095 if overrides else 1023)
    assert (config.data.sources[0].path, config.data.validation_sources[0].path) == ("your/train/ds", "your/eval/ds")
    assert (config.batch.micro_batch_size, config.batch.accumulation, config.evaluate.every) == (8, 4, 125)
    assert config.track[0].arguments == {"project": "MedGPT", "name": "Llama-2-7B-chat"}
    assert (config.train.precision, config.model.gradient_checkpointing) == ("bf16", True)
    assert config.checkpoint.every_epochs == 0.25
    assert (config.parallel.kind, config.parallel.shard) == ("fsdp", "full")


def test_the_batch_is_that_of_all_gpus(tmp_path: Path) -> None:
    config = shipped(tmp_path).config
    for gpus in (1, 4, 8):
        assert config.on_devices(gpus).batch.samples == gpus * 8 * 4


def test_the_same_file_says_how_to_preprocess(tmp_path: Path) -> None:
    loaded = shipped(tmp_path, purpose="prepare")
    assert loaded.config.data.sources[0].path == "./your/unprocessed/dataset"
    assert loaded.config.data.packing.join is False
    assert loaded.prepare_to.folder == "dir/to/save/processed/dataset"


def test_the_files_of_the_benchmarks_lack_the_model_and_the_length(tmp_path: Path) -> None:
    values = yaml.safe_load(SHIPPED)
    del values["model"], values[T]["max_seq_len"], values[T]["use_flash_attention"]
    values[T]["lora_peft_config"] = yaml.safe_load(ADAPTERS)
    text = yaml.safe_dump(values)
    with pytest.raises(UserError, match="model: is missing"):
        shipped(tmp_path, ONE_DEVICE, text=text)
    config = shipped(tmp_path, ONE_DEVICE, "model=m", "train_parameters.max_seq_len=2048", text=text).config
    assert (config.model.lora.rank, config.model.lora.alpha, config.model.lora.targets) == (8, 32, None)


def test_a_section_of_adapters_with_all_its_keys_commented_out_is_none(tmp_path: Path) -> None:
    text = SHIPPED.replace("  max_grad_norm", "  lora_peft_config:\n    # r: 8\n  max_grad_norm")
    assert shipped(tmp_path, ONE_DEVICE, text=text).config.model.lora is None


def test_settings_of_peft_that_are_not_built_are_refused_by_name(make: Make) -> None:
    assert "lora_peft_config.use_dora: Quintet's adapters" in refused(
        make, {f"{T}.lora_peft_config": {**LORA, "use_dora": True}}
    )
    assert "did you mean 'lora_alpha'" in refused(make, {f"{T}.lora_peft_config": {**LORA, "lora_alhpa": 3}})


# The examples.


@pytest.fixture
def example_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the examples name by DATA_ROOT, and a working directory for what they write."""
    draw = np.random.default_rng(0)
    letters = [word for word in WORDS if len(word) == 1]

    def text() -> str:
        before, behind = (" ".join(draw.choice(letters, draw.integers(3, 9))) for _ in range(2))
        return f"{before} Excerpt: {behind}"

    write_model(tmp_path / "data/tiny-llama")
    write_texts(tmp_path / "data/raw", train=[text() for _ in range(40)], validation=[text() for _ in range(8)])
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path / "out"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["config", "lora"])
def test_an_example_trains_and_its_translation_trains_alike(
    name: str, example_data: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    file = str(REPOSITORY / f"examples/vectorlm/{name}.yaml")
    if name == "config":
        assert command("prepare", file)[0] == 0
        more = [
            "dataset_preprocess.split=validation",
            f"dataset_preprocess.save_path={example_data}/data/processed-eval",
        ]
        assert command("prepare", file, *more)[0] == 0
    more = ["quintet.data.validation=0.2"] if name == "lora" else []
    code, _, error = command("train", file, *more)
    assert code == 0, error
    folder = example_data / "out" / ("vectorlm" if name == "config" else "vectorlm-lora")
    losses = measured(folder)
    assert len(losses) >= 5
    assert all(math.isfinite(float(loss)) for loss in losses)
    translated = command("translate", file, *more)[1]
    (example_data / "native.yaml").write_text(translated)
    assert command("train", "native.yaml", "name=again")[0] == 0
    assert measured(folder.parent / "again") == losses


@pytest.mark.parametrize("name", ["config", "lora"])
def test_an_example_there_and_back_is_the_same_run(name: str, example_data: Path) -> None:
    if name == "config":
        for folder in ("processed", "processed-eval"):
            write_rows(example_data / "data" / folder, some_rows(4, seed=0))
    loaded = load_run_config([REPOSITORY / f"examples/vectorlm/{name}.yaml"])
    written = translate_back(dialect_named(DIALECT), loaded.config)
    (example_data / "again.yaml").write_text(written.text)
    again = load_run_config([example_data / "again.yaml"], [], Reading(DIALECT))
    assert written.lost == ()
    assert again.config == loaded.config


THERE_AND_BACK: dict[str, dict[str, Any]] = {
    "processed": {},
    "a plateau": {f"{T}.lr_scheduler_type": "plateau-with-warmup", f"{T}.gradient_accumulation_steps": 2},
    "adapters": {f"{T}.lora_peft_config": {**LORA, "target_modules": ["k_proj"]}},
    "adapters where peft puts them": {f"{T}.lora_peft_config": LORA},
    "bf16, attention and logging": {
        f"{T}.use_mp": True,
        f"{T}.use_flash_attention": True,
        f"{T}.use_activation_checkpointing": True,
        "enable_wandb_logging": True,
        "wandb_config": {"project": "p", "mode": "offline"},
    },
    "no clipping, no checkpoints": {f"{T}.max_grad_norm": None, f"{T}.checkpointing_enabled": False},
    "chunks behind a separator": {P: {"packing_type": "partial", "overlap": 1, "seperator": "#", "pre_pend": "z "}},
    "one stream": {P: {"packing_type": "full", "add_bos_eos_tokens": False, "data_field": "other"}},
    "truncated": {P: {"truncate": True, "split": "test"}},
}


@pytest.mark.parametrize("case", THERE_AND_BACK)
def test_a_run_there_and_back_is_the_same_run(case: str, make: Make, world: Path) -> None:
    changes = THERE_AND_BACK[case]
    without = ["quintet"]
    if P in changes:
        changes = {P: raw(world, **changes[P])}
        without += ["dataset.train_ds", "dataset.eval_ds"]
    assert translate_back(dialect_named(DIALECT), make(changes, without=without).config).lost == ()


def test_a_file_is_recognised_by_its_sections() -> None:
    assert detect(yaml.safe_load(SHIPPED)) is dialect_named(DIALECT)
    assert detect({"dataset": {"train_ds": "x"}}) is dialect_named(DIALECT)
    assert detect({"model": {"kind": "huggingface"}, "train": {"epochs": 1}}) is None


def test_a_value_knows_its_key_and_line(make: Make) -> None:
    made = make()
    assert made.origin("train.epochs").startswith("train_parameters.epochs (line ")
    assert made.origin("data.sources[0].path").startswith("dataset.train_ds (line ")


TOO_LONG = f"{T}.max_seq_len: 99999 tokens are more than the 64 positions"


@pytest.mark.parametrize(
    ("verb", "changes", "message"),
    [
        *((verb, {f"{T}.max_seq_len": 100000}, TOO_LONG) for verb in ("train", "plan")),
        ("train", {"quintet.train.device": "mps"}, "quintet.train.device: this machine has no mps device"),
    ],
)
def test_every_verb_speaks_of_the_keys_of_the_file(
    verb: str, changes: dict[str, Any], message: str, said: Said
) -> None:
    assert [line for line in said(verb, changes) if line.startswith(message)]
