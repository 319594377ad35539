"""TMRC: each key changes what its document says, in the run that is really built."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.dialects.conftest import Made, Make, changes, same
from tests.dialects.tmrc_runs import base as base  # a fixture
from tests.dialects.tmrc_runs import dataset as dataset  # a fixture
from tests.dialects.tmrc_runs import write_dataset
from tests.helpers import refused

DIALECT = "tmrc"


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
    assert "was made with t5-base, not with gpt2" in refused(
        lambda: make({"datasets.tokenizer_used": "gpt2"}, without=["tokenizer.name"]).run
    )


@changes("tokenizer.name")
def test_tokenizer_name(make: Make) -> None:
    assert "keep one of them" in refused(make, {"tokenizer.name": "gpt2"})
    assert "was made with t5-base, not with gpt2" in refused(
        lambda: make({"tokenizer.name": "gpt2"}, without=["datasets.tokenizer_used"]).run
    )


@changes("model.n_head")
def test_heads(make: Make) -> None:
    assert make().model.blocks[0].attention.heads == 2
    assert make({"model.n_head": 4}).model.blocks[0].attention.heads == 4


@changes("training.shuffle")
def test_shuffles(make: Make) -> None:
    ordered, shuffled = make({"training.shuffle": False}), make()
    epoch = ordered.run.data.epoch_samples // 4
    assert same(ordered.batch(0), ordered.batch(epoch)) == (ordered.run.data.epoch_samples % 4 == 0)
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
    """Under causal_document a token sees no earlier document."""
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
