"""STLM's models have the original's parameters, and its byte-level files the original's loss and steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from tests.dialects.conftest import Made, Make, changes
from tests.dialects.stlm_runs import BYTES, EXPERIMENT, own, refused, shapes
from tests.dialects.stlm_runs import base as base  # a fixture
from tests.dialects.stlm_runs import place as place  # a fixture

from quintet.config.dialects import dialect_named
from quintet.config.dialects.back import translate_back
from quintet.model.count import count_parameters

DIALECT = "stlm"


@changes("model.model_shell_type")
def test_byte_shell(make: Make) -> None:
    assert EXPERIMENT in refused(make, {"model.model_shell_type": "byte_autoencoder_shell"})
    for shell, weight in (("standard", 0.0), ("byte_shell", 1.0)):
        assert own(make(BYTES | {"model.model_shell_type": shell})).head.reconstruction == weight


@changes("model.byte_context_window", "model.byte_embedding_dim")
def test_byte_sizes(make: Make) -> None:
    made = make(BYTES | {"model.byte_context_window": 7, "model.byte_embedding_dim": 24})
    for end in ("embedding", "head"):
        assert shapes(made)[f"{end}.position.weight"] == (7, 24)
    assert own(made).embedding.spelling.symbols.shape == (300, 7)


@changes("model.byte_vocab_size")
def test_byte_vocab_size(make: Make) -> None:
    assert "model.byte_vocab_size: must be 258" in refused(make, BYTES | {"model.byte_vocab_size": 300})


# Shapes of STLM's files, and the parameters of the models that STLM's code builds of them at the named revision.
GELU: dict[str, Any] = {"ffn.ffn_type": "generic", "ffn.activation": "gelu", "ffn.bias": True}
SHARED: dict[str, Any] = {"core_model_type": "ffn_lora_sharing", "lora_rank": 96, "k_interior_layers": 2}
FILES: dict[str, tuple[dict[str, Any], int]] = {
    "byte_level, 8d498b6": ({"hidden_dim": 768, **BYTES}, 55_924_736),
    "byte_level of 512 features, 8d498b6": ({"hidden_dim": 512, **BYTES}, 35_275_776),
    "byte_level with biases in attention, 8d498b6": ({"hidden_dim": 512, "attn.bias": True, **BYTES}, 35_288_576),
    "byte_level_ffn_sharing, 8d498b6": (
        {"hidden_dim": 512, "num_layers": 16, "core_model_type": "generic_ffn_sharing", **BYTES},
        17_980_416,
    ),
    "baseline_byte_encoder, f60c717": (
        {"hidden_dim": 512, "num_layers": 8, "ffn.ffn_dim": 1320, "embedding_model_type": "byte_level"},
        50_123_264,
    ),
    "baseline, 0f999a5": ({"hidden_dim": 512}, 55_888_896),
    "baseline with sines, 6914e64": (
        {"hidden_dim": 512, "num_layers": 8, "positional_encoding_type": "sincos"},
        49_857_536,
    ),
    "baseline with learned positions, 134c988": (
        {"hidden_dim": 512, "ffn.ffn_dim": 1320, "positional_encoding_type": "learned"},
        52_833_280,
    ),
    "baseline-50m with one feed-forward network, 3d18b74": (
        {"hidden_dim": 512, "num_layers": 12, "ffn.ffn_dim": 2048, "attn.bias": True, "ffn_weight_tying": True}
        | GELU
        | {"vocab_size": 10000, "context_window": 1024},
        15_112_192,
    ),
    "baseline-50m, 7b0f77f": (
        {"hidden_dim": 512, "num_layers": 12, "ffn.ffn_dim": 2048, "attn.num_q_heads": 8}
        | GELU
        | {"vocab_size": 10000, "context_window": 1024},
        39_766_528,
    ),
    "baseline-100m, 8a29326": (
        {"hidden_dim": 1024, "num_layers": 27, "ffn.ffn_dim": 4096, "attn.bias": True, "ffn_weight_tying": True}
        | GELU
        | {"vocab_size": 20000, "context_window": 4096},
        99_778_048,
    ),
    "baseline-shared, c53cb25": (
        {"hidden_dim": 640, "num_layers": 18, "ffn.ffn_dim": 1650, "vocab_size": 10000, **SHARED},
        47_522_240,
    ),
}


@pytest.mark.parametrize(("shape", "expected"), FILES.values(), ids=list(FILES))
def test_a_file_has_the_parameters_of_the_original(make: Make, shape: dict[str, Any], expected: int) -> None:
    shape = {f"model.{name.removeprefix('model.')}": value for name, value in shape.items()}
    usual = {"model.num_layers": 10, "model.ffn.ffn_dim": 1536, "model.ffn.ffn_type": "silu_ffn"}
    heads = {"model.attn.num_q_heads": 16, "model.attn.num_kv_heads": 4}
    more = {"model.vocab_size": 50257, "model.context_window": 512}
    config = make(usual | heads | more | shape).config
    assert config.model.kind == "transformer"
    assert config.model.vocab_size is not None
    assert count_parameters(config.model, config.model.vocab_size, config.data.sequence_length).total == expected


def test_the_oldest_files_have_other_names_for_their_keys(make: Make) -> None:
    """The file is configs/train/full_dict_byte_level.yaml of May 2024."""
    older = {
        "model.embedding_model_type": "byte_level_embedder",
        "model.model_head_type": "byte_level_decoder",
        "model.byte_tokenizer": "bpe",
        "model.embedding_dim": 64,
        "model.embedding_weight_tying": False,
        "training.trainer": "byte_trainer",
        "training.dataloader": "byte_pooling_dataloader",
    }
    newer = {
        "model.embedding_model_type": "byte_level",
        "model.lm_head_type": "byte_level",
        "model.byte_embedding_dim": 64,
        "model.embedding_weight_tying": False,
        "trainer.dataloader": "byte_pooling",
    }
    older_config, newer_config = make(older).config, make(newer).config
    assert older_config.model == newer_config.model
    assert older_config.model.embedding.width == 64  # pyright: ignore
    assert "64 is not the 128 of byte_embedding_dim" in refused(make, older | {"model.byte_embedding_dim": 128})


def test_the_steps_are_those_of_the_mean_over_bytes(make: Make) -> None:
    """They are those of AdamW and clipping on the mean over all places of all tokens, which is STLM's loss."""
    made = make(BYTES | {"trainer.optimizer.grad_clip": 0.01, "trainer.lr_scheduler": "constant", "quintet.seed": 3})
    model, optimizer = own(made), made.config.optimizer
    assert optimizer.kind == "adamw"
    assert (made.config.train.clip_norm, optimizer.eps) == pytest.approx((0.12, 1.2e-7))
    parameters = list(model.parameters())
    rule = torch.optim.AdamW(parameters, lr=optimizer.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    for step in range(4):
        batch = made.batch(step)
        inputs, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
        logits = model.head(model.hidden(inputs))
        loss = F.cross_entropy(logits.flatten(0, -2), model.head.spelling(targets).flatten())
        rule.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.01)
        rule.step()
        assert made.losses[step] / 12 == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("ends", "shell"),
    [(BYTES, "standard"), (BYTES, "byte_shell"), ({"model.embedding_model_type": "byte_level"}, "byte_enc_shell")],
    ids=["both ends", "read back", "embedding"],
)
def test_a_byte_level_model_is_written_back_as_one(make: Make, ends: dict[str, str], shell: str) -> None:
    config = make(ends | {"model.model_shell_type": shell, "trainer.optimizer.grad_clip": 0.5}).config
    written = translate_back(dialect_named("stlm"), config)
    values = yaml.safe_load(written.text)
    model = values["model"]
    assert {f"model.{name}": model[name] for name in ("embedding_model_type", "lm_head_type") if name in model} == ends
    assert values["trainer"]["optimizer"]["grad_clip"] == 0.5
    assert not [line for line in written.lost if line.startswith(("model", "optimizer", "train.clip", "loss"))]


REFUSED = [
    ({"model.model_shell_type": "byte_shell"}, "byte_shell needs lm_head_type: byte_level"),
    ({"model.model_shell_type": "byte_enc_shell"}, "byte_enc_shell needs embedding_model_type: byte_level"),
    ({"trainer.dataloader": "byte_pooling"}, "byte_pooling needs lm_head_type: byte_level"),
    ({"trainer.dataloader": "dual_byte_pooling"}, "dual_byte_pooling needs embedding_model_type: byte_level"),
    ({"trainer.loss_fn": "masked_cross_entropy"}, "masked_cross_entropy needs lm_head_type: byte_level"),
    ({"model.byte_embedding_dim": 64}, "model.byte_embedding_dim: is for byte-level parts"),
    (BYTES | {"model.byte_embedding_dim": 20}, "must be a multiple of 8, the heads of STLM's byte-level blocks"),
    (BYTES | {"model.embedding_weight_tying": True}, "has no row per token to share; set it to false"),
    (BYTES | {"trainer.optimizer.optimizer_name": "SGD"}, "set AdamW or nanoGPTadamW"),
    (BYTES | {"model.byte_tokenizer_type": "gpt2"}, "model.byte_tokenizer_type: must be bpe"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_keys_that_contradict_byte_level_parts_are_refused(make: Make, changes: dict[str, Any], message: str) -> None:
    assert message in refused(make, changes)


def test_byte_level_blocks_have_the_rms_norm_whatever_the_others_have(make: Make) -> None:
    made: Made = make(BYTES | {"model.attn.normalization": "layer_norm", "model.ffn.normalization": "layer_norm"})
    model = own(made)
    names = {"embedding": model.embedding.blocks[0].attention_norm, "core": model.blocks[0].attention_norm}
    assert {name: type(norm).__name__ for name, norm in names.items()} == {"embedding": "RMSNorm", "core": "LayerNorm"}
    assert type(model.blocks[0].feedforward_norm).__name__ == "LayerNorm"
    assert type(model.norm).__name__ == "Identity"
