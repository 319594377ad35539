"""PhyAGI: the keys of the model, and what each of them changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tests.dialects.conftest import Made, Make, changes, each_changes
from tests.dialects.phyagi_runs import MIXER, VOCAB, norms, says
from tests.dialects.phyagi_runs import base as base  # a fixture
from tests.dialects.phyagi_runs import data as data  # a fixture
from tests.helpers import refused
from torch import nn

from quintet import api
from quintet.errors import UserError
from quintet.model.norm import RMSNorm

DIALECT = "phyagi"


def first_block(made: Made) -> Any:
    return made.model.blocks[0]


@each_changes(
    "value expected found",
    ("model.n_head", 4, 4, lambda made: first_block(made).attention.heads),
    ("model.n_head_kv", 1, (32, 16), lambda made: made.shapes["blocks.0.attention.qkv.weight"]),
    ("model.n_embd", 32, (VOCAB, 32), lambda made: made.shapes["embedding.weight"]),
    ("model.n_layer", 3, 3, lambda made: len(made.model.blocks)),
    ("model.n_inner", 24, (24, 16), lambda made: made.shapes["blocks.0.feedforward.up.weight"]),
    ("model.embd_pdrop", 0.25, [0.25], lambda made: list(made.dropouts().values())),
    ("model.resid_pdrop", 0.25, 0.25, lambda made: first_block(made).dropout.p),
    ("model.tie_word_embeddings", True, False, lambda made: "head.weight" in made.shapes),
    ("model.use_torch_compile", True, True, lambda made: made.config.train.compile),
    ("model.architecture.head.use_bias", False, False, lambda made: "head.bias" in made.shapes),
    (f"{MIXER}.head_dim", 4, (24, 16), lambda made: made.shapes["blocks.0.attention.qkv.weight"]),
    (f"{MIXER}.dropout", 0.25, 0.25, lambda made: first_block(made).attention.dropout.p),
    (f"{MIXER}.softmax_scale", 0.5, 0.5, lambda made: first_block(made).attention.scale),
)
def test_a_part_of_the_model(make: Make, key: str, value: Any, expected: Any, found: Callable[[Made], Any]) -> None:
    assert found(make({key: value})) == expected != found(make())


@each_changes(
    "value message",
    ("model.n_positions", 8, "more than"),
    ("model.model_task", "seq_cls", "use causal_lm"),
    ("model.architecture.head.head_cls", "seq_cls", "use causal_lm"),
    ("model.architecture.loss.loss_cls", "x", "must be one of causal_lm"),
    ("model.architecture.loss.reduction", "sum", "must be one of mean"),
    (f"{MIXER}.mixer_cls", "ssm", "must be one of mha"),
)
def test_a_model_that_is_refused(make: Make, key: str, value: Any, message: str) -> None:
    assert message in refused(make, {key: value})


@changes("model.model_type")
def test_model_type(make: Make) -> None:
    own = make({"model": {"model_type": "gpt2", "vocab_size": 48, "n_positions": 16, "n_embd": 16, "n_layer": 1}})
    own = make({"model": {**yaml.safe_load(own.file.read_text())["model"], "n_head": 2}})
    assert any(type(module).__name__ == "GPT2Block" for module in own.model.modules())
    assert own.shapes[next(name for name in own.shapes if name.endswith("wte.weight"))] == (48, 16)
    assert "needs model.vocab_size" in refused(make, {"model": {"model_type": "gpt2"}})
    for name, hint in (("foo", ""), ("gpt_2", "; did you mean 'gpt2'?")):
        made = make({"model": {"model_type": name, "vocab_size": 48}})
        with pytest.raises(UserError) as caught:
            api.check(api.with_source(made.loaded))
        line = 1 + made.file.read_text().splitlines().index(f"  model_type: {name}")
        said = f"{made.file}:{line}: model.model_type: {name!r} is no type of models that transformers knows{hint}"
        assert str(caught.value).startswith(said)
    assert make().config.model.block == "parallel"


@changes("model.pretrained_model_name_or_path")
def test_pretrained(make: Make, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    theirs.save_pretrained(folder)
    key = "pretrained_model_name_or_path"
    made = make({"model": {key: str(folder), "vocab_size": VOCAB, "resid_pdrop": 0.5}})
    ids = torch.tensor([[7, 8, 9, 10]])
    made.model.eval()
    with torch.no_grad():
        assert torch.allclose(made.model(ids), theirs.eval()(ids).logits, atol=1e-5)
    assert 0.5 in made.dropouts().values()
    assert "is a placeholder" in refused(make, {"model": {key: "<pretrained_model_name_or_path>"}})
    foreign = {key: str(folder), "architecture": {"mixer": {"rotary_base": 500_000}}}
    assert "needs model_type: mixformer-sequential, which is missing" in refused(make, {"model": foreign})
    nothing = {key: str(folder), "vocab_size": VOCAB, "architecture": {"loss": {"loss_cls": "causal_lm"}}}
    assert make({"model": nothing}).config.model.kind == "huggingface"
    first = make({"training_args.max_steps": 1, "training_args.save_final_checkpoint": True})
    again = make({f"model.{key}": str(first.trained)})
    weights = first.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in again.model.state_dict().items())


@changes("model.trust_remote_code")
def test_trust(make: Make) -> None:
    code = make({"model": {"pretrained_model_name_or_path": "some/name", "trust_remote_code": True}})
    assert code.config.model.trust_remote_code
    plain = make({"model": {"pretrained_model_name_or_path": "some/name"}})
    assert not plain.config.model.trust_remote_code
    own = make({"model.trust_remote_code": True})
    assert any(note.startswith("model.trust_remote_code: not used") for note in own.loaded.notes)


@changes("model.gradient_checkpointing")
def test_checkpointing(make: Make) -> None:
    gpt2 = {"model_type": "gpt2", "vocab_size": 48, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    made = make({"model": {**gpt2, "gradient_checkpointing": True}})
    assert any(getattr(module, "gradient_checkpointing", False) for module in made.model.modules())
    assert make({"model.gradient_checkpointing": True}).config.train.activation_checkpointing == 1
    assert make().config.train.activation_checkpointing == "none"


@changes("model.vocab_size")
def test_vocabulary(make: Make) -> None:
    made = make({"model.vocab_size": 45})
    assert made.shapes["embedding.weight"] == (45, 16)
    assert made.run.tokenizer.vocab_size == 45


@changes("model.pad_vocab_size_multiple")
def test_rounded(make: Make) -> None:
    made = make({"model.vocab_size": 100, "model.pad_vocab_size_multiple": 64})
    assert made.shapes["embedding.weight"] == (128, 16)
    assert make({"model.vocab_size": 100}).shapes["embedding.weight"] == (100, 16)


def turned(made: Made) -> int:
    return made.config.model.rotary_dim


@changes("model.rotary_dim")
def test_rotary_dim(make: Make) -> None:
    assert turned(make()) == turned(make({"model.rotary_dim": 0})) == 8
    assert turned(make({"model.rotary_dim": 4})) == 4
    assert make({"model.rotary_dim": -1}).config.model.position.kind == "none"
    assert "must be an even number of at most 8" in refused(make, {"model.rotary_dim": 32})
    assert not knows_order(make({"model.rotary_dim": -1, "model.architecture": {"mixer": {"causal": False}}}))
    assert knows_order(make({"model.rotary_dim": 2, "model.architecture": {"mixer": {"causal": False}}}))


def knows_order(made: Made) -> bool:
    """Return True if exchanging two tokens changes the logits of a third, without a causal mask."""
    return not torch.allclose(says(made, 7, 8, 9)[-1], says(made, 8, 7, 9)[-1], atol=1e-6)


@changes("model.embd_layer")
def test_embd_layer(make: Make) -> None:
    assert (16, 16) not in [shape for name, shape in make().shapes.items() if name.startswith("position")]
    made = make({"model.embd_layer": "positional"})
    assert made.shapes["position.weight"] == (16, 16)
    assert made.config.model.position.kind == "rope"


@changes("model.activation_function")
def test_activation(make: Make) -> None:
    """The output of the feed-forward network is that of torch's own function."""
    found = {
        "gelu_new": nn.GELU(approximate="tanh"),
        "gelu": nn.GELU(),
        "relu": nn.ReLU(),
        "silu": nn.SiLU(),
        "tanh": nn.Tanh(),
    }
    x = torch.linspace(-3, 3, 16)
    for name, function in found.items():
        network = make({"model.activation_function": name}).model.blocks[0].feedforward
        with torch.no_grad():
            assert torch.allclose(network(x), network.down(function(network.up(x))), atol=1e-6)


@changes("model.layer_norm_epsilon")
def test_epsilon(make: Make) -> None:
    found = norms(make({"model.layer_norm_epsilon": 1e-3}))
    assert [norm.eps for norm in found] == [1e-3, 1e-3]
    both = {"model.layer_norm_epsilon": 1e-3, "model.architecture": {"norm": {"eps": 1e-4}}}
    assert "keep one" in refused(make, both)


@changes("model.initializer_range")
def test_spread(make: Make) -> None:
    weights = make({"model.initializer_range": 0.5, "model.n_embd": 64}).model.state_dict()
    for name in ("embedding.weight", "blocks.0.attention.output.weight", "blocks.0.feedforward.down.weight"):
        assert weights[name].std().item() == pytest.approx(0.5, rel=0.1)
    assert not weights["head.bias"].any()


@changes("model.cross_sample_token_id")
def test_cross_sample(make: Make) -> None:
    """A token does not see earlier documents; positions go on."""
    made = make({"model.cross_sample_token_id": 9})
    documents = made.batch().documents
    assert documents is not None
    ends = (made.batch().inputs == 9)[:, :-1].sum()
    assert (np.diff(documents, axis=1) > 0).sum() == ends > 0
    ids, other = torch.tensor([[7, 8, 9, 10, 11]]), torch.tensor([[30, 31, 9, 10, 11]])
    numbers = torch.tensor([[0, 0, 0, 1, 1]])
    with torch.no_grad():
        assert torch.allclose(made.model(ids, documents=numbers)[:, 3:], made.model(other, documents=numbers)[:, 3:])
    assert make().batch().documents is None


def block(path: str, value: Any) -> dict[str, Any]:
    """A change of the key ``path`` in `model.architecture`."""
    section, _, leaf = path.rpartition(".")
    return {"model.architecture": {section: {leaf: value}} if section else {leaf: value}}


@changes("model.architecture.block_cls")
def test_block_class(make: Make) -> None:
    found = [norms(make(block("block_cls", name))) for name in ("parallel", "sequential")]
    assert [len(some) for some in found] == [2, 3]  # one for both, or one each; and that of the head


@changes(f"{MIXER}.window_size")
def test_window(make: Make) -> None:
    """With a window of 2 earlier positions the fourth token does not depend on the first."""
    for value in (2, "(2, 0)"):
        made = make(block("mixer.window_size", value))
        assert torch.allclose(says(made, 7, 8, 9, 10)[3], says(made, 30, 8, 9, 10)[3], atol=1e-6)
    assert "later positions" in refused(make, block("mixer.window_size", "(2, 2)"))


@changes(f"{MIXER}.bias", f"{MIXER}.out_bias")
def test_attention_biases(make: Make) -> None:
    names = {"qkv.bias": make(block("mixer.bias", False)), "output.bias": make(block("mixer.out_bias", False))}
    assert not any(name.endswith(("qkv.bias", "output.bias")) for name in names["qkv.bias"].shapes)
    assert any(name.endswith("qkv.bias") for name in names["output.bias"].shapes)
    assert not any(name.endswith("output.bias") for name in names["output.bias"].shapes)


@changes(f"{MIXER}.qk_norm")
def test_normed_heads(make: Make) -> None:
    extra = make(block("mixer.qk_norm", True)).shapes.keys() - make().shapes.keys()
    assert len(extra) == 4  # gain and bias of queries and of keys
    assert {make(block("mixer.qk_norm", True)).shapes[name] for name in extra} == {(8,)}


@changes(f"{MIXER}.rope_scaling")
def test_rope_scaling(make: Make) -> None:
    yarn = {"rope_type": "yarn", "beta_fast": 16.0, "factor": 4.0}
    found = make(block("mixer.rope_scaling", yarn)).config.model.position.scaling
    assert (found.kind, found.factor, found.beta_fast, found.original_context) == ("yarn", 4.0, 16.0, 16)
    assert "yarn or linear" in refused(make, block("mixer.rope_scaling", {"factor": 2.0}))
    plain, scaled = (says(made, 7, 8, 9, 10) for made in (make(), make(block("mixer.rope_scaling", yarn))))
    assert not torch.allclose(plain, scaled)


@changes(f"{MIXER}.rotary_scale_base")
def test_rotary_scale_base(make: Make) -> None:
    mixer = {"rotary_scale_base": 8.0, "rope_scaling": {"rope_type": "yarn"}}
    assert make({"model.architecture": {"mixer": mixer}}).config.model.position.scaling.factor == 8.0
    assert "needs rope_scaling" in refused(make, block("mixer.rotary_scale_base", 8.0))


@changes(f"{MIXER}.rotary_base")
def test_rotary_base(make: Make) -> None:
    found = [says(make(block("mixer.rotary_base", base)), 7, 8, 9, 10) for base in (10_000.0, 100.0)]
    assert not torch.allclose(*found)


@changes("model.architecture.mlp.mlp_cls")
def test_gated(make: Make) -> None:
    """glu has two input matrices of 4 × the width, and no biases."""
    made = make(block("mlp.mlp_cls", "glu"))
    shapes = {name: shape for name, shape in made.shapes.items() if "feedforward" in name and "norm" not in name}
    assert sorted(shapes.values()) == [(16, 64), (64, 16), (64, 16)]


@changes("model.architecture.norm.norm_cls")
def test_norm_class(make: Make) -> None:
    assert len(norms(make(block("norm.norm_cls", "rms")), RMSNorm)) == 2
    assert len(norms(make(block("norm.norm_cls", "low_precision")))) == 2


@changes("model.architecture.loss.shift_labels")
def test_loss_shift(make: Make) -> None:
    off = {"loss": {"shift_labels": False}}
    made = make({"model.architecture": off, "dataset.0.shift_labels": True})
    assert made.config.data.packing.predict_next
    assert "predict itself" in refused(make, {"model.architecture": off})


@changes(f"{MIXER}.causal")
def test_causal(make: Make) -> None:
    for flag in (True, False):
        made = make(block("mixer.causal", flag))
        assert torch.allclose(says(made, 7, 8, 9)[0], says(made, 7, 8, 30)[0], atol=1e-6) is flag
