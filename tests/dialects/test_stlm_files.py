"""STLM: its real files of all generations, its mistakes, its examples, and translation both ways."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.dialects.stlm_generations import G1, G2, G3, parameters
from tests.dialects.stlm_generations import read as read  # a fixture
from tests.dialects.stlm_runs import write_texts
from tests.helpers import measured, refused, train_with_translation

from quintet.config.dialects import dialect_named
from quintet.config.dialects.back import translate_back
from quintet.config.load import Loaded
from quintet.config.model import TransformerConfig
from quintet.config.position import RopeConfig
from quintet.train.schedule import learning_rate

EXAMPLES = Path(__file__).resolve().parents[2] / "examples/stlm"


def test_a_flat_file_has_the_model_of_the_original(read: Callable[..., Loaded]) -> None:
    """10,387,584 parameters, 10.39M in STLM's names of runs, counted from its own code."""
    loaded = read(G2)
    assert loaded.dialect is dialect_named("stlm")
    assert parameters(loaded) == 10_387_584
    config = loaded.config
    assert config.batch.samples == 240
    assert config.tokenizer.sources[0].name == "20231101.en"  # pyright: ignore
    assert config.track[0].arguments == {"project": "SuperTinyLanguageModels", "group": "base_group"}  # pyright: ignore


def test_grouped_heads_have_the_parameters_of_the_original(read: Callable[..., Loaded]) -> None:
    """kv 16 and q 4 is what STLM's files write for 16 query heads and 4 groups: 384 to 576 in one projection."""
    attention = read(G2, {"model.attn.num_kv_heads": 16, "model.attn.num_q_heads": 4})
    equal = read(G2, {"model.attn.num_kv_heads": 16, "model.attn.num_q_heads": 16})
    assert parameters(equal) - parameters(attention) == 5 * 384 * (3 * 384 - 576)
    assert any("has them swapped" in note for note in attention.notes)
    documented = read(G2, {"model.attn.num_kv_heads": 4, "model.attn.num_q_heads": 16})
    assert documented.config.model == attention.config.model


@pytest.mark.parametrize(
    ("width", "feedforward", "heads", "tied", "expected"),
    [(528, 1361, 16, True, 49_197_984), (528, 1361, 16, False, 75_733_680), (80, 96, 16, True, 4_308_640)],
)
def test_heads_of_an_odd_size_have_the_parameters_of_the_original(
    read: Callable[..., Loaded], width: int, feedforward: int, heads: int, tied: bool, expected: int
) -> None:
    """Counted from its own code of September 2024, which drops a feature of each head because of rotary positions."""
    changes = {
        "model.hidden_dim": width,
        "model.core_model.ffn.ffn_dim": feedforward,
        "model.core_model.attn.num_heads": heads,
        "model.embedding_weight_tying": tied,
    }
    loaded = read(G1, changes)
    assert parameters(loaded) == expected
    assert loaded.config.model.attention.head_dim == width // heads - 1  # pyright: ignore
    assert any(f"a head has {width // heads - 1}, as in STLM" in note for note in loaded.notes)
    learned = read(G1, changes | {"model.positional_encoding_type": "learned"})
    assert learned.config.model.attention.head_dim is None  # pyright: ignore[reportAttributeAccessIssue]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3), st.integers(0, 3))
def test_the_two_numbers_of_heads_may_be_exchanged(read: Callable[..., Loaded], first: int, second: int) -> None:
    one, other = (
        read(G2, {"model.attn.num_q_heads": 2**q, "model.attn.num_kv_heads": 2**kv}).config.model.attention  # pyright: ignore
        for q, kv in ((first, second), (second, first))
    )
    assert one == other
    assert (one.heads, one.kv_heads) == (2 ** max(first, second), 2 ** min(first, second))


def test_the_keys_of_an_experiment_are_refused_in_one_line(read: Callable[..., Loaded]) -> None:
    """The line names each key."""
    keys = ("model.latent_dim", "model.embedder.pooling_layers", "model.ffn.n_experts", "teachermodel")
    line = refused(read, G2, dict.fromkeys(keys, 4))
    assert "\n" not in line
    assert all(key in line for key in keys)
    assert line.count("belongs to an experiment") == 1


def test_the_rate_of_a_flat_file_is_that_of_the_original(read: Callable[..., Loaded]) -> None:
    """nanoGPT's cosine with a decay that is not shortened by the warm-up; the last of 50,000 steps has 1.61e-5."""
    run = read(G2).config

    def rate(step: int) -> float:
        return learning_rate(run.schedule, run.optimizer.lr, step + 1, 50_000)

    assert rate(0) == 0
    assert rate(1250) == pytest.approx(5e-4)
    assert rate(2500) == pytest.approx(1e-3)
    for step in (2501, 20_000, 49_999):
        expected = 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * (step - 2500) / 50_000))
        assert rate(step) == pytest.approx(expected)
    assert rate(49_999) == pytest.approx(1.61e-5, rel=2e-3)


def test_an_older_nested_file_is_read(read: Callable[..., Loaded]) -> None:
    loaded = read(G1, {"trainer.eval": []})
    config = loaded.config
    attention, feedforward = config.model.attention, config.model.feedforward  # pyright: ignore
    assert (attention.heads, attention.kv_heads, attention.kind) == (16, 4, "causal")
    assert (feedforward.kind, feedforward.activation, feedforward.width) == ("gated", "silu", 1320)
    layer = 512 * (512 + 2 * 128) + 512 * 512 + 3 * 512 * 1320 + 2 * 512
    assert parameters(loaded) == 50257 * 512 + 8 * layer + 512
    assert config.dropout_schedule.kind == "constant"
    assert (config.schedule.warmup_steps, config.schedule.decay_steps) == (5000, 35_000)  # pyright: ignore
    assert config.optimizer.decay == "matrices"
    assert config.evaluate.samples == 500 * 24
    assert config.checkpoint.every == 10**9


def test_a_newer_file_is_read(read: Callable[..., Loaded]) -> None:
    loaded = read(G3)
    config = loaded.config
    attention = config.model.attention  # pyright: ignore
    assert (attention.heads, attention.kv_heads, attention.bias) == (8, 4, True)
    assert config.model.position.kind == "rope"  # pyright: ignore
    assert [source.label for source in config.data.sources] == ["fineweb_edu_10B", "simple_en_wiki"]
    assert (config.tokenizer.vocab_size, config.model.vocab_size) == (3980, 4000)  # pyright: ignore
    optimizer, schedule = config.optimizer, config.schedule
    assert (optimizer.kind, optimizer.name, optimizer.arguments) == ("torch", "AdamW", {"betas": [0.9, 0.98]})  # pyright: ignore
    assert (schedule.name, schedule.warmup_steps, schedule.arguments) == ("ExponentialLR", 100, {"gamma": 0.999})  # pyright: ignore
    assert (config.train.clip_norm, config.evaluate.samples) == (0.5, 2400)


def test_generations_may_be_mixed_section_by_section(read: Callable[..., Loaded]) -> None:
    mixed = {"model": G1["model"], "trainer": copy.deepcopy(G3["trainer"]), "general": G2["general"]}
    config = read(mixed).config
    assert config.model.layers == 8  # pyright: ignore
    assert config.optimizer.kind == "torch"


def test_learned_positions_may_be_added_to_rotary_attention(read: Callable[..., Loaded]) -> None:
    model = read(G3, {"model.embedding_positional_encoding": "learned"}).config.model
    assert isinstance(model, TransformerConfig)
    assert isinstance(model.position, RopeConfig)
    assert model.position.learned is True
    assert "sincos does not work with" in refused(read, G3, {"model.embedding_positional_encoding": "sincos"})


def test_a_file_inside_one_section_is_unwrapped(read: Callable[..., Loaded]) -> None:
    loaded = read({"baseline-vocab-size": G2}, None, "++trainer.max_iters=7000")
    assert loaded.dialect is dialect_named("stlm")
    assert loaded.config.train.steps == 7000
    assert loaded.config.model == read(G2).config.model
    assert loaded.origins["model.layers"].endswith("their.yaml:4")


def test_names_and_sections_with_a_name_are_equal(read: Callable[..., Loaded]) -> None:
    bare = {f"trainer.{name}": G2["trainer"][name]["name"] for name in ("dataloader", "datasampling", "loss_fn")}
    changes = bare | {"trainer.lr_scheduler": "cosine", "trainer.warmup_iters": 2500}
    assert read(G2, changes).config == read(G2).config


def test_the_oldest_list_of_evaluations_is_read(read: Callable[..., Loaded]) -> None:
    one = read(G2, {"trainer.eval": [{"mcq_benchmarks": [], "num_samples": 1000, "text_modeling_eval": False}]})
    assert one.config == read(G2).config
    several = [{"evaluator": "mcq", "benchmarks": ["winograd"]}, {"evaluator": "glue"}]
    assert read(G2, {"trainer.eval": several}).config.evaluate.tasks == ("winogrande", "glue")


BOTH = [
    ("model.cproj_weight_tying", False, "model.c_proj_weight_tying", True),
    ("model.freeze", False, "model.freeze_core", True),
    ("model.tokenizer_simplify_data", True, "model.tokenizer_simplify", False),
    ("model.ffn.dropout", 0.0, "model.ffn.ffn_dropout", 0.1),
    ("model.attn.dropout", False, "model.attn.attn_dropout", 0.1),
    ("trainer.eval_iters", 1000, "trainer.eval.dataset_loss_eval_iters", 5),
    ("trainer.lr_scheduler.warmup_iters", 2500, "trainer.warmup_iters", 5),
    ("general.logging.run_name", "a", "general.logging.wandb_run_name", "b"),
]


@pytest.mark.parametrize(("alias", "value", "key", "other"), BOTH)
def test_two_spellings_may_not_disagree(
    read: Callable[..., Loaded], alias: str, value: Any, key: str, other: Any
) -> None:
    assert "; keep one" in refused(read, G2, {alias: value, key: other})


MISTAKES = [
    ({"model.num_layer": 3}, "unknown key 'num_layer'; did you mean 'num_layers'?"),
    ({"model.attn.num_kv_head": 3}, "did you mean 'num_kv_heads'?"),
    ({"model.core_model_type": "conv"}, "'conv' belongs to an experiment"),
    ({"model.embedding_model_type": "byte_patch"}, "'byte_patch' belongs to an experiment"),
    ({"model.num_byte_decoder_layers": 2}, "model.num_byte_decoder_layers: belongs to an experiment"),
    ({"model.checkpoint_path": "x.pt"}, "is a pickle, which cannot be read safely"),
    ({"model.gain": 2.0}, "is for initialization_fn: xavier, and it is kaiming"),
    ({"model.freeze_core": True}, "is for core_model_type: hf_core"),
    ({"trainer.dataset": "openwebtxt"}, "did you mean 'openwebtext'?"),
    ({"trainer.dataset": "the_pile"}, "has a name that the hub does not know"),
    ({"trainer.eval.mcq_benchmarks": ["helaswag"]}, "did you mean 'hellaswag'?"),
    ({"trainer.eval.benchmarks": ["Ewoks"]}, "did you mean 'Ewok'?"),
    ({"trainer.eval.benchmarks": "Ewoks"}, "trainer.eval.benchmarks: must be one of winogrande"),
    ({"trainer.run_eval": 0}, "trainer.run_eval: must be true or false, found 0"),
    ({"trainer.optimizer.grad_clip": True}, "trainer.optimizer.grad_clip: must be a number, found true"),
    ({"model.ffn.dropout": True}, "model.ffn.dropout: must be a number"),
    (
        {"trainer.eval.evaluators": [{"evaluator": "mcqs"}]},
        "evaluators[0].evaluator: must be one of mcq, prog, glue, ft_qa",
    ),
    ({"trainer.dataloader.name": "next_token_mlm"}, "needs loss_fn: next_token_mlm"),
    ({"trainer.optimizer.min_lr": 1.0}, "trainer.optimizer.min_lr: is above trainer.optimizer.lr"),
    ({"trainer.lr_scheduler.params": {"gamma": 1}}, "are for PyTorch's schedulers"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_a_mistake_is_named_in_the_words_of_the_file(
    read: Callable[..., Loaded], changes: dict[str, Any], message: str
) -> None:
    assert message in refused(read, G2, changes)


def test_keys_of_kaiming_with_another_initialization_are_named_as_unread(read: Callable[..., Loaded]) -> None:
    start = {"model.initialization_fn": "none"}
    plain, kept = read(G2, start), read(G2, start | {"model.mode": "fan_out", "model.nonlinearity": "relu"})
    assert kept.config.model == plain.config.model
    for key in ("mode", "nonlinearity"):
        assert f"model.{key}: not read; it is for initialization_fn: kaiming, and it is none" in kept.notes


def test_missing_keys_are_named(read: Callable[..., Loaded]) -> None:
    bare = {"model": {"core_model_type": "generic", "context_window": 16}, "trainer": {"dataset": "openwebtext"}}
    found = refused(read, bare, {})
    for key in ("batch_size", "gradient_accumulation_steps", "max_iters"):
        assert f"trainer.{key}: is missing" in found
    trainer = {"dataset": "openwebtext", "batch_size": 1, "gradient_accumulation_steps": 1, "max_iters": 1}
    found = refused(read, bare | {"trainer": trainer}, {})
    for key in ("num_layers", "hidden_dim", "ffn.ffn_dim", "tokenizer_type", "attn.num_kv_heads"):
        assert f"model.{key}: is missing: core_model_type: generic needs it" in found


def test_defaults_are_those_of_the_document(read: Callable[..., Loaded]) -> None:
    small = {
        "model": {
            "core_model_type": "generic",
            "num_layers": 1,
            "hidden_dim": 16,
            "context_window": 16,
            "tokenizer_type": "gpt2",
            "positional_encoding_type": "none",
            "ffn": {"ffn_dim": 8},
            "attn": {"num_kv_heads": 2},
        },
        "trainer": {"dataset": "openwebtext", "batch_size": 2, "gradient_accumulation_steps": 1, "max_iters": 100},
    }
    loaded = read(small)
    config = loaded.config
    model = config.model
    assert (model.norm.kind, model.norm.eps, model.tie_embeddings, model.init.kind) == ("rms", 1e-6, True, "kaiming")  # pyright: ignore
    assert (config.evaluate.every, config.train.log_every, config.checkpoint.every) == (2000, 10, 10_000)
    assert (config.optimizer.lr, config.schedule.min_lr, config.optimizer.weight_decay) == (6e-4, 6e-6, 0.01)  # pyright: ignore
    assert config.optimizer.betas == (0.9, 0.999)  # pyright: ignore
    assert (config.train.clip_norm, config.train.device, config.evaluate.samples) == (1.0, "auto", 2000)
    assert config.schedule.decay_steps == 100  # pyright: ignore
    assert any(note.startswith("trainer.eval.text_modeling_eval: not given") for note in loaded.notes)


@pytest.mark.parametrize("values", [G1, G2, G3], ids=["nested", "flat", "params"])
def test_a_real_file_translated_there_and_back_is_the_same_run(
    read: Callable[..., Loaded], values: dict[str, Any]
) -> None:
    config = read(values, {"trainer.eval": {"text_modeling_eval": False}, "general.logging": {}}).config
    lost = [line for line in translate_back(dialect_named("stlm"), config).lost if "dropout_schedule" not in line]
    assert lost == []


@pytest.mark.parametrize("name", ["base", "silu_mlm"])
def test_the_example_trains_by_command_and_its_translation_to_the_same_losses(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    monkeypatch.setenv("OUTPUT_ROOT", "out")
    write_texts(tmp_path / "texts.jsonl", 5)
    monkeypatch.chdir(tmp_path)
    file = str(EXAMPLES / f"{name}.yaml")
    out = train_with_translation(command, file, "general.logging.wandb_run_name=again", "# model.num_layers (")
    assert "finished: 20 steps" in out
    run = {"base": "tiny_stlm", "silu_mlm": "tiny_mlm"}[name]
    first, second = (measured(tmp_path / "out" / one) for one in (run, "again"))
    assert len(first) == 20
    assert first == second
