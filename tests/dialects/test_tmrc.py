"""TMRC: each key changes what its document says it changes, in the run that is really built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.dialects.conftest import Made, Make, Said, changes, same
from tests.helpers import measured, refused
from tokenizers import Tokenizer, models, pre_tokenizers

from quintet.config.dialects import dialect_named
from quintet.config.load import Reading, load_run_config
from quintet.errors import UserError, gathered
from quintet.train.check import check_training

DIALECT = "tmrc"
VOCAB = 20
EXAMPLE = Path(__file__).resolve().parents[2] / "examples/tmrc/gpt.yaml"


def write_dataset(folder: Path, documents: int = 60, tokenizer: str = "t5-base") -> Path:
    """A tokenized dataset as tatm writes one: documents of 5 to 30 ids, each ended by id 1, and zeros at the end."""
    draw = np.random.default_rng(3)
    ids = [np.append(draw.integers(2, VOCAB, draw.integers(5, 30)), 1) for _ in range(documents)]
    folder.mkdir()
    (folder / "tok_0.bin").write_bytes(np.concatenate([*ids, np.zeros(50)]).astype("uint16").tobytes())
    info = {"tokenizer": tokenizer, "file_prefix": str(folder / "tok"), "dtype": "uint16"}
    (folder / "metadata.json").write_text(json.dumps({"name": "words", "tokenized_info": info}))
    words = Tokenizer(
        models.WordLevel({"<pad>": 0, "</s>": 1} | {f"w{id}": id for id in range(2, VOCAB)}, unk_token="w2")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["</s>"])
    words.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("tatm") / "words")


@pytest.fixture
def base(dataset: Path, tmp_path: Path) -> dict[str, Any]:
    return small_file(dataset, tmp_path / "cache")


def small_file(dataset: Path, cache: Path) -> dict[str, Any]:
    """A complete file that trains in a moment."""
    return {
        "datasets": {"name": "words", "path": str(dataset), "tokenizer_used": "t5-base"},
        "model": {
            "name": "gpt",
            "n_head": 2,
            "d_model": 16,
            "n_layer": 1,
            "context_length": 16,
            "autocast_precision": "float32",
        },
        "tokenizer": {"name": "t5-base", "vocab_size": 24},
        "training": {"train_steps": 4, "batch_size": 4, "artifacts_path": "artifacts", "log_interval": 2},
        "quintet": {"data": {"cache_dir": str(cache)}},
    }


def biases(made: Made) -> set[str]:
    return {name for name in made.shapes if name.endswith("bias")}


def only_in(more: Made, fewer: Made) -> set[str]:
    """The last parts of the names of the parameters that the first model has and the second lacks."""
    return {".".join(name.split(".")[-2:]) for name in more.shapes.keys() - fewer.shapes.keys()}


@changes("datasets.name")
def test_dataset_name(make: Make) -> None:
    changed = make({"datasets.name": "mine"})
    assert changed.config.data.sources[0].label == "mine"


@changes("datasets.path")
def test_dataset_path(make: Make) -> None:
    here = make()
    other = make({"datasets.path": str(write_dataset(here.file.parent / "other", documents=25))})
    assert other.run.data.epoch_samples < here.run.data.epoch_samples


@changes("datasets.tokenizer_used")
def test_tokenizer_used(make: Make) -> None:
    assert "was made with t5-base, not with gpt2" in _unbuilt(
        make({"datasets.tokenizer_used": "gpt2"}, without=["tokenizer.name"])
    )


@changes("tokenizer.name")
def test_tokenizer_name(make: Make) -> None:
    assert "they must be one" in refused(make, {"tokenizer.name": "gpt2"})
    assert "was made with t5-base, not with gpt2" in _unbuilt(
        make({"tokenizer.name": "gpt2"}, without=["datasets.tokenizer_used"])
    )


def _unbuilt(made: Made) -> str:
    with pytest.raises(UserError) as error:
        made.run  # noqa: B018
    return "\n".join(error.value.problems)


@changes("model.n_head")
def test_heads(make: Make) -> None:
    assert make().model.blocks[0].attention.heads == 2
    assert make({"model.n_head": 4}).model.blocks[0].attention.heads == 4


@changes("training.shuffle")
def test_shuffles(make: Make) -> None:
    as_it_stands, shuffled = make({"training.shuffle": False}), make()
    epoch = as_it_stands.run.data.epoch_samples // 4
    assert same(as_it_stands.batch(0), as_it_stands.batch(epoch)) == (as_it_stands.run.data.epoch_samples % 4 == 0)
    first = [
        np.concatenate([shuffled.batch(step).inputs for step in range(start, start + epoch)]) for start in (0, epoch)
    ]
    assert not np.array_equal(*first)


@changes("model.dropout_p")
def test_dropout(make: Make) -> None:
    assert not make().dropouts()
    assert set(make({"model.dropout_p": 0.25}).dropouts().values()) == {0.25}
    assert len(make({"model.dropout_p": 0.25}).dropouts()) == 2  # on the embedding and in the block
    with_attention = make({"model.dropout_p": 0.25, "model.flex": False, "model.mask": "causal"})
    assert (
        with_attention.model.blocks[0].attention.dropout.p == 0.25
        or with_attention.config.model.attention.dropout == 0.25
    )


@changes("model.context_length")
def test_context(make: Make) -> None:
    longer = make({"model.context_length": 32})
    assert longer.batch().inputs.shape == (4, 32)
    assert (32, 16) in longer.shapes.values()


@changes("model.autocast_precision")
def test_precision(make: Make) -> None:
    assert make().run.compute.precision == "fp32"
    assert make({"model.autocast_precision": "bfloat16"}).run.compute.precision == "bf16"


@changes("model.flash")
def test_flash(make: Make) -> None:
    assert "cannot be used with flash" in refused(make, {"model.flash": True, "model.flex": True})
    assert (
        make({"model.flash": True, "model.flex": False, "model.mask": "causal"}).config.model.attention.backend
        == "flash"
    )


@changes("model.flex")
def test_flex(make: Make) -> None:
    assert "needs flex: true" in refused(make, {"model.flex": False})
    assert make({"model.flex": False, "model.mask": "causal"}).config.model.attention.backend == "sdpa"


@changes("model.mask")
def test_mask(make: Make) -> None:
    """Under causal_document what a token sees of earlier documents is nothing."""
    apart, together = make(), make({"model.mask": "causal"})
    assert apart.batch().documents is not None
    assert together.batch().documents is None
    ids = torch.tensor([[5, 6, 1, 7, 8, 9]])
    other = torch.tensor([[9, 9, 1, 7, 8, 9]])
    numbers = torch.tensor([[0, 0, 0, 1, 1, 1]])
    with torch.no_grad():
        assert torch.allclose(apart.model(ids, documents=numbers)[:, 3:], apart.model(other, documents=numbers)[:, 3:])
        assert not torch.allclose(together.model(ids)[:, 3:], together.model(other)[:, 3:])


@changes("optimizer.lr")
def test_learning_rate(make: Make) -> None:
    assert make({"optimizer.lr": 3e-3}).rates == pytest.approx([3e-3] * 4)


@changes("optimizer.weight_decay")
def test_decays(make: Make) -> None:
    groups = make({"optimizer.weight_decay": 0.3}).optimizer.param_groups
    assert {group["weight_decay"] for group in groups} == {0.3}
    assert sum(len(group["params"]) for group in groups) == len(make().shapes)


@changes("optimizer.betas")
def test_averages(make: Make) -> None:
    assert make().optimizer.defaults["betas"] == (0.9, 0.999)
    assert tuple(make({"optimizer.betas": [0.8, 0.9]}).optimizer.param_groups[0]["betas"]) == (0.8, 0.9)


@changes("training.epochs")
def test_epochs(make: Make) -> None:
    many = make({"training.train_steps": 100_000})
    steps = -(-many.run.data.epoch_samples // 4)
    assert many.run.steps == steps
    assert make({"training.train_steps": 100_000, "training.epochs": 2}).run.steps == -(
        -2 * many.run.data.epoch_samples // 4
    )


@changes("training.save_model")
def test_saves(make: Make) -> None:
    assert make().checkpoints == [4]
    assert make({"training.save_model": False}).checkpoints == []


@changes("training.save_every")
def test_saves_by_the_clock(make: Make) -> None:
    assert make({"training.save_every": 1e-6}).checkpoints == [1, 2, 3, 4]


@changes("training.log_interval")
def test_logs(make: Make) -> None:
    assert make().config.train.log_every == 2
    assert make({"training.log_interval": 3}).config.train.log_every == 3


@changes("training.val_interval")
def test_validates(make: Make) -> None:
    assert list(make({"training.val_interval": 2}).metrics("validation/loss")) == [2, 4]


@changes("training.batch_size")
def test_batch_size(make: Make) -> None:
    for size in (1, 2, 5):
        one = make({"training.batch_size": size})
        assert one.run.validation.samples == size
        assert one.batch().inputs.shape == (size, 16)
    larger = make({"training.batch_size": 6})
    assert larger.batch().inputs.shape == (6, 16)
    assert larger.run.validation is not None
    assert larger.config.evaluate.samples == 6


@changes("training.use_oracle")
def test_oracle(make: Make) -> None:
    fixed = make({"training.use_oracle": True})
    assert same(fixed.batch(0), fixed.batch(3))
    assert not same(make().batch(0), make().batch(3))


@changes("wandb_log.name")
def test_run_name(make: Make) -> None:
    made = make({"wandb_log.name": "tmrc_log"})
    assert made.config.name == "tmrc_log"
    assert [track.kind for track in made.config.track] == ["wandb"]
    assert make().config.track == ()


@changes("training.artifacts_path")
def test_artifacts(make: Make) -> None:
    made = make({"training.artifacts_path": "elsewhere"})
    assert made.trained.parent == made.file.parent / "elsewhere"
    assert (made.trained / "checkpoints").is_dir()


@changes("tokenizer.vocab_size")
def test_vocab_size(make: Make) -> None:
    assert make({"tokenizer.vocab_size": 30}).shapes["embedding.weight"] == (30, 16)


@changes("model.name")
def test_name(make: Make) -> None:
    assert "must be one of gpt, Cfg" in refused(make, {"model.name": "llama"})


@changes("model.d_model")
def test_d_model(make: Make) -> None:
    assert make({"model.d_model": 32}).shapes["embedding.weight"] == (24, 32)


@changes("model.n_layer")
def test_n_layer(make: Make) -> None:
    assert len(make({"model.n_layer": 3}).model.blocks) == 3


@changes("model.compile_flex")
def test_compile_flex(make: Make) -> None:
    assert make({"model.compile_flex": False}).config.train.compile is False


@changes("model.mlp_scale_factor")
def test_mlp_scale_factor(make: Make) -> None:
    assert (48, 16) in make({"model.mlp_scale_factor": 3}).shapes.values()


@changes("model.mlp_bias")
def test_mlp_bias(make: Make) -> None:
    assert only_in(make(), make({"model.mlp_bias": False})) == {"up.bias", "down.bias"}


@changes("model.attn_bias")
def test_attn_bias(make: Make) -> None:
    assert len(biases(make({"model.attn_bias": True})) - biases(make())) == 1


@changes("model.proj_bias")
def test_proj_bias(make: Make) -> None:
    assert only_in(make(), make({"model.proj_bias": False})) == {"output.bias"}


@changes("model.ln_bias")
def test_ln_bias(make: Make) -> None:
    assert only_in(make(), make({"model.ln_bias": False})) == {
        "attention_norm.bias",
        "feedforward_norm.bias",
        "norm.bias",
    }


@changes("model.cls_head_bias")
def test_cls_head_bias(make: Make) -> None:
    assert only_in(make(), make({"model.cls_head_bias": False})) == {"head.bias"}


@changes("model.activation")
def test_activation(make: Make) -> None:
    assert [make(change).config.model.feedforward.activation for change in ({}, {"model.activation": "gelu"})] == [
        "relu",
        "gelu",
    ]


@changes("optimizer.name")
def test_optimizer_name(make: Make) -> None:
    assert "must be one of AdamW" in refused(make, {"optimizer.name": "SGD"})


@changes("optimizer.eps")
def test_eps(make: Make) -> None:
    assert make({"optimizer.eps": 1e-5}).optimizer.param_groups[0]["eps"] == 1e-5


@changes("optimizer.precision")
def test_optimizer_precision(make: Make) -> None:
    assert make({"optimizer.precision": "bfloat16"}).config.optimizer.state_precision == "bf16"


@changes("training.train_steps")
def test_train_steps(make: Make) -> None:
    assert make({"training.train_steps": 2}).run.steps == 2


def test_hydra_version_base_rules_the_composition(tmp_path: Path, base: dict[str, Any]) -> None:
    import yaml

    (tmp_path / "conf").mkdir()
    file = tmp_path / "conf/train.yaml"
    file.write_text(yaml.safe_dump({"defaults": ["_self_"], "HydraConf": {"version_base": "0.9"}, **base}))
    with pytest.raises(UserError, match="version_base"):
        load_run_config([file])
    file.write_text(yaml.safe_dump({"defaults": ["_self_"], "HydraConf": {"version_base": "1.1"}, **base}))
    assert load_run_config([file]).dialect is dialect_named("tmrc")


def test_the_default_model_has_as_many_parameters_as_the_original(make: Make, base: dict[str, Any]) -> None:
    """58,401,152 with the document's 8 layers, 52,099,456 with the 6 of its newest file (counted from its own code)."""
    from quintet.model.count import count_parameters

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
    code, out, err = command("train", str(EXAMPLE))
    assert code == 0, err
    assert "finished: 20 steps" in out
    code, native, err = command("translate", str(EXAMPLE), "++wandb_log.name=again")
    assert code == 0, err
    assert "layers: 2  # model.n_layer (" in native
    Path("native.yaml").write_text(native)
    assert command("train", "native.yaml")[0] == 0
    first, second = (measured(tmp_path / "out" / name) for name in ("tmrc_log", "again"))
    assert len(first) == 20
    assert first == second
    assert f"# lines are those of {EXAMPLE}\n" in (tmp_path / "out/tmrc_log/run.yaml").read_text()


def test_a_name_that_interpolations_use_need_not_be_a_key(make: Make) -> None:
    made = make({"my": {"size": 24}, "model.d_model": "${my.size}"})
    assert made.config.model.width == 24
    assert "unknown key 'my'" in refused(make, {"my": {"size": 24}})


@pytest.mark.filterwarnings("error")
def test_what_the_data_lack_is_said_at_the_dialects_key_and_hydra_is_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    code, _, err = command("train", str(EXAMPLE))
    assert code == 2
    assert err.startswith(f"error: {EXAMPLE}:8: datasets.path: there is no ")
    assert len(err.splitlines()) == 1


def test_flash_attention_trains_with_dropout_where_its_kernel_cannot_drop(make: Make) -> None:
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


def test_check_says_that_a_cpu_does_not_train_in_fp16(make: Make) -> None:
    made = make({"model.autocast_precision": "float16", "quintet": {"train": {"device": "cpu"}}})
    with pytest.raises(UserError, match=r"train\.precision: fp16 .* a CPU, and that is the device here"):
        check_training(made.config)
    elsewhere = make({"model.autocast_precision": "float16", "quintet": {"train": {"device": "cuda"}}})
    mistakes, _ = gathered([lambda: check_training(elsewhere.config)])  # this machine may lack the GPU
    assert mistakes == []


TOO_SHORT = "datasets.name: words has 0 tokens to train on, fewer than the 100,001 of one sample"


@pytest.mark.parametrize(
    ("verb", "changes", "message"),
    [
        *((verb, {"model.context_length": 100_000}, TOO_SHORT) for verb in ("prepare", "show-batch", "train")),
        ("train", {"quintet.train.device": "mps"}, "quintet.train.device: this machine has no mps device"),
    ],
)
def test_every_verb_speaks_of_the_keys_of_the_file(
    verb: str, changes: dict[str, Any], message: str, said: Said
) -> None:
    assert [line for line in said(verb, changes) if line.startswith(message)]
