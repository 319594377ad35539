"""TMRC: its files as a whole, its example, its dataset and tokenizer, and its messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.dialects.conftest import Make, Said, same
from tests.dialects.tmrc_runs import EXAMPLE, write_dataset
from tests.dialects.tmrc_runs import base as base  # a fixture
from tests.dialects.tmrc_runs import dataset as dataset  # a fixture
from tests.helpers import measured, refused, train_with_translation

from quintet.config.dialects import dialect_named
from quintet.config.load import Reading, load_run_config
from quintet.errors import UserError, collect_problems
from quintet.model.count import count_parameters
from quintet.train.check import check_training

DIALECT = "tmrc"


def test_version_base_decides_the_composition(tmp_path: Path, base: dict[str, Any]) -> None:
    (tmp_path / "conf").mkdir()
    file = tmp_path / "conf/train.yaml"
    file.write_text(yaml.safe_dump({"defaults": ["_self_"], "HydraConf": {"version_base": "0.9"}, **base}))
    with pytest.raises(UserError, match="version_base"):
        load_run_config([file])
    file.write_text(yaml.safe_dump({"defaults": ["_self_"], "HydraConf": {"version_base": "1.1"}, **base}))
    assert load_run_config([file]).dialect is dialect_named("tmrc")


def test_the_default_model_has_as_many_parameters_as_the_original(make: Make, base: dict[str, Any]) -> None:
    """58,401,152 with the document's 8 layers, 52,099,456 with the 6 of its newest file (counted from TMRC's code)."""
    for model, count in ({}, 58_401_152), ({"model": {"n_layer": 6}}, 52_099_456):
        config = make(model, without=["model", "tokenizer.vocab_size"]).config
        assert count_parameters(config.model, config.model.vocab_size, config.data.sequence_length).total == count


def test_overrides_have_hydras_grammar(make: Make) -> None:
    file = make().file
    loaded = load_run_config([file], ["optimizer.lr=0.5", "++training.epochs=3", "~datasets.name"], Reading())
    assert (loaded.config.optimizer.lr, loaded.config.train.epochs) == (0.5, 3)
    assert loaded.config.data.sources[0].label is None
    assert (
        str(next(place for path, place in loaded.provenance.items() if path == ("optimizer", "lr"))) == "command line"
    )


def test_a_value_knows_its_key_and_line(make: Make) -> None:
    made = make()
    assert made.origin("model.width") == "model.d_model (line 8)"


def test_the_example_trains_by_command_and_its_translation_to_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path / "out"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "data").mkdir()
    write_dataset(tmp_path / "data/algebraic-stack", documents=400)
    monkeypatch.chdir(tmp_path)
    line = "layers: 2  # model.n_layer ("
    out = train_with_translation(command, str(EXAMPLE), "++wandb_log.name=again", line, "training.train_steps=6")
    assert "finished: 6 steps" in out
    first, second = (measured(tmp_path / "out" / name) for name in ("tmrc_log", "again"))
    assert len(first) == 6
    assert first == second
    assert f"# lines are those of {EXAMPLE}\n" in (tmp_path / "out/tmrc_log/run.yaml").read_text()


def test_a_name_that_interpolations_use_need_not_be_a_key(make: Make) -> None:
    made = make({"my": {"size": 24}, "model.d_model": "${my.size}"})
    assert made.config.model.width == 24
    assert "unknown key 'my'" in refused(make, {"my": {"size": 24}})


@pytest.mark.filterwarnings("error")
def test_missing_data_are_named_at_the_dialects_key_without_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    code, _, err = command("train", str(EXAMPLE))
    assert code == 2
    assert err.startswith(f"error: {EXAMPLE}:8: datasets.path: there is no ")
    assert len(err.splitlines()) == 1


def test_flash_attention_trains_with_dropout(make: Make) -> None:
    flash = {"model.flash": True, "model.flex": False, "model.mask": "causal", "model.dropout_p": 0.1}
    made = make({**flash, "training.train_steps": 1})
    assert len(made.metrics("train/loss")) == 1


def test_training_from_ids_needs_no_tokenizer(make: Make, dataset: Path, tmp_path: Path) -> None:
    bare = write_dataset(tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    made, whole = make({"datasets.path": str(bare)}), make({"datasets.path": str(dataset)})
    assert made.config.tokenizer.kind == "ids"
    assert same(made.batch(), whole.batch())
    assert "needs none" in "\n".join(load_run_config([made.file]).notes)
    (bare / "metadata.json").write_text((bare / "metadata.json").read_text().replace("t5-base", "gpt2"))
    other = {"datasets.path": str(bare), "datasets.tokenizer_used": "gpt2", "tokenizer.name": "gpt2"}
    assert "tokenizer.name: the id that ends a document is not known" in refused(make, other)


def test_check_refuses_fp16_on_a_cpu(make: Make) -> None:
    made = make({"model.autocast_precision": "float16", "quintet": {"train": {"device": "cpu"}}})
    with pytest.raises(UserError, match=r"train\.precision: fp16 .* a CPU, and that is the device here"):
        check_training(made.config)
    elsewhere = make({"model.autocast_precision": "float16", "quintet": {"train": {"device": "cuda"}}})
    mistakes, _ = collect_problems([lambda: check_training(elsewhere.config)])  # this machine may lack the GPU
    assert mistakes == []


TOO_SHORT = "datasets.name: words has 0 tokens to train on, fewer than the 100,001 of one sample"


@pytest.mark.parametrize(
    ("verb", "changes", "message"),
    [
        *((verb, {"model.context_length": 100_000}, TOO_SHORT) for verb in ("prepare", "show-batch", "train")),
        ("train", {"quintet.train.device": "mps"}, "quintet.train.device: this machine has no mps device"),
    ],
)
def test_every_command_names_the_keys_of_the_file(verb: str, changes: dict[str, Any], message: str, said: Said) -> None:
    assert [line for line in said(verb, changes) if line.startswith(message)]
