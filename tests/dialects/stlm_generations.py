"""Files of STLM of three generations, and a fixture that reads them with some values changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from quintet.config.load import Loaded, load_run_config
from quintet.model.count import count_parameters

# configs/train/baseline-10m.yaml of the branch self-play-rework, without benchmarks.
G2: dict[str, Any] = {
    "model": {
        "core_model_type": "generic",
        "num_layers": 5,
        "ffn": {
            "ffn_type": "generic",
            "ffn_dim": 1536,
            "activation": "gelu",
            "normalization": "rms_norm",
            "bias": False,
            "dropout": 0.0,
        },
        "attn": {
            "attn_type": "causal",
            "num_kv_heads": 8,
            "num_q_heads": 8,
            "normalization": "rms_norm",
            "bias": False,
            "dropout": False,
        },
        "embedding_model_type": "generic",
        "tokenizer_type": "bpe",
        "tokenizer_dataset_name": "en_wiki",
        "tokenizer_simplify_data": True,
        "vocab_size": 4000,
        "hidden_dim": 384,
        "context_window": 2048,
        "lm_head_type": "generic",
        "lm_head_normalization": "rms_norm",
        "lm_head_bias": False,
        "lm_head_dropout": 0.0,
        "model_shell_type": "standard",
        "embedding_weight_tying": True,
        "ffn_weight_tying": False,
        "cproj_weight_tying": False,
        "positional_encoding_type": "rope",
    },
    "trainer": {
        "trainer_type": "base_trainer",
        "dataset": "openwebtext",
        "batch_size": 24,
        "gradient_accumulation_steps": 10,
        "max_iters": 50000,
        "eval_interval": 5000,
        "log_interval": 10,
        "checkpoint_interval": 10000,
        "eval_iters": 1000,
        "eval": {"mcq_num_samples": 1000, "eval_byte_metrics": True, "text_modeling_eval": False},
        "optimizer": {
            "optimizer_name": "adamW",
            "lr": 1.0e-3,
            "min_lr": 1.0e-5,
            "weight_decay": 0.01,
            "beta1": 0.9,
            "beta2": 0.98,
            "grad_clip": 1.0,
        },
        "lr_scheduler": {"name": "cosine", "warmup_iters": 2500},
        "dataloader": {"name": "standard"},
        "datasampling": {"name": "standard"},
        "loss_fn": {"name": "cross_entropy"},
    },
    "general": {
        "logging": {
            "wandb_log": True,
            "wandb_project": "SuperTinyLanguageModels",
            "wandb_run_name": None,
            "group_name": "base_group",
        },
        "paths": {"output_dir": "outputs", "data_dir": "data", "checkpoint_dir": "checkpoints", "eval_dir": "evals"},
        "seed": 489,
        "device": "cuda",
    },
}

# configs/full_configs/baseline.yaml of the branch main, with its nested sections.
G1: dict[str, Any] = {
    "model": {
        "core_model": {
            "core_model_type": "generic",
            "num_layers": 8,
            "ffn": {"ffn_type": "swiglu", "ffn_dim": 1320, "normalization": "rms_norm", "bias": False},
            "attn": {
                "attn_type": "generic",
                "num_heads": 16,
                "normalization": "rms_norm",
                "group_size": 4,
                "bias": False,
                "is_causal": True,
            },
        },
        "embedder": {"tokenizer_type": "gpt2", "embedding_model_type": "generic", "dataset_name": "stlm"},
        "lm_head": {"normalization": "rms_norm", "bias": False, "lm_head_type": "generic"},
        "hidden_dim": 512,
        "context_window": 512,
        "vocab_size": 50257,
        "model_shell_type": "standard",
        "embedding_weight_tying": True,
        "positional_encoding_type": "rope",
    },
    "trainer": {
        "dropout_scheduler": {"dropout_type": "constant", "dropout": 0.1},
        "dataset": "openwebtext",
        "training": {
            "trainer_type": "base_trainer",
            "batch_size": 24,
            "gradient_accumulation_steps": 20,
            "max_iters": 30000,
            "lr_decay_iters": 30000,
            "warmup_iters": 5000,
            "eval_interval": 2000,
            "log_interval": 10,
            "eval_iters": 500,
            "checkpoint_interval": 1e9,
            "run_profiler": False,
        },
        "optimizer": {
            "name": "nanoGPTadamW",
            "lr": 6e-4,
            "min_lr": 6e-5,
            "weight_decay": 0.1,
            "beta1": 0.9,
            "beta2": 0.95,
            "grad_clip": 1.0,
            "decay_lr": True,
            "warmup_iters": 10,
        },
        "lr_scheduler": {"name": "cosine"},
        "dataloader": {"name": "standard"},
        "loss_fn": {"name": "cross_entropy"},
    },
}

# configs/train/baseline-10m.yaml of the branch rewrite, where it differs from the flat files.
G3: dict[str, Any] = copy.deepcopy(G2)
G3["model"] |= {
    "attn": {
        "name": "rope_attention",
        "params": {"num_kv_heads": 4, "num_q_heads": 8, "bias": True, "dropout": 0.0, "normalization": "rms_norm"},
        "normalization": "rms_norm",
    },
    "ffn": {"name": "generic", "params": {"ffn_dim": 1536, "activation": "gelu", "bias": True, "dropout": 0.0}},
    "embedding_positional_encoding": "none",
    "tokenizer_dataset_names": ["simple_en_wiki"],
    "tokenizer_num_reserved_tokens": 20,
}
for _name in ("positional_encoding_type", "tokenizer_dataset_name"):
    del G3["model"][_name]
G3["trainer"] |= {
    "dataset_names": ["fineweb_edu_10B", "simple_en_wiki"],
    "preprocessor_name": "text_preprocessor",
    "dataloader_name": "random",
    "gradient_clipping": 0.5,
    "eval": {"val_loss_iters": 100},
    "optimizer": {"name": "AdamW", "params": {"lr": 5e-4, "weight_decay": 0.1, "betas": [0.9, 0.98]}},
    "lr_scheduler": {"name": "exponentiallr", "params": {"gamma": 0.999, "warmup_steps": 100}},
}
for _name in ("dataset", "dataloader", "eval_iters"):
    del G3["trainer"][_name]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Loaded]:
    """``read(G2, {"model.num_layers": 3})``: the run of a file with some values changed."""

    def load(values: dict[str, Any], changes: dict[str, Any] | None = None, *overrides: str) -> Loaded:
        values = copy.deepcopy(values)
        for path, value in (changes or {}).items():
            *sections, last = path.split(".")
            here = values
            for step in sections:
                here = here.setdefault(step, {})
            here[last] = value
        file = tmp_path / "their.yaml"
        file.write_text(yaml.safe_dump(values, sort_keys=False))
        return load_run_config([file], overrides)

    return load


def parameters(loaded: Loaded) -> int:
    config = loaded.config
    assert config.model.vocab_size is not None  # pyright: ignore[reportAttributeAccessIssue]
    return count_parameters(config.model, config.model.vocab_size, config.data.sequence_length).total  # pyright: ignore
