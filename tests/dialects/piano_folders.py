"""Files of piano-gpt: a small one on text, and its config folders in brief, a file of each group."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def write_questions(folder: Path) -> Path:
    """Sums as questions and answers."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"question": f"{a} + {b} =", "answer": str(a + b)} for a in range(12) for b in range(8)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "questions.jsonl"


def on_text(questions: Path, cache: Path) -> dict[str, Any]:
    """The section `quintet` with text instead of music."""
    document = {"kind": "answer", "prompt": "question", "answer": "answer", "between": " "}
    return {
        "tokenizer": {"kind": "byte"},
        "data": {
            "sources": [{"kind": "jsonl", "path": str(questions), "document": document}],
            "packing": {"kind": "document"},
            "validation": 0.2,
            "cache_dir": str(cache),
        },
    }


def small_file(questions: Path, cache: Path) -> dict[str, Any]:
    """A complete file that trains on text in a moment."""
    return {
        "stage": "next_token_pretraining",
        "init_from": "scratch_next_token",
        "loss_masking": "pretraining",
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.0, "bias": False},
        "system": {"device": "cpu", "dtype": "float32", "compile": False, "data_workers": 1},
        "data": {"batch_size": 3, "context_size": 16},
        "optimizer": {"gradient_accumulation_steps": 2, "max_iters": 6},
        "lr": {"learning_rate": 1e-2, "min_lr": 1e-3, "warmup_iters": 2},
        "eval_interval": 4,
        "eval_iters": 2,
        "logging": {"wandb_log": False, "log_interval": 2},
        "out_dir": "out",
        "quintet": on_text(questions, cache),
    }


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("questions"))


@pytest.fixture
def base(questions: Path, tmp_path: Path) -> dict[str, Any]:
    return small_file(questions, tmp_path / "cache")


DOCUMENT = """stage: "piano_task"
init_from: "scratch_next_token"
loss_masking: "pretraining"

tasks: TODO

model:
  n_layer: 12
  n_head: 12
  n_embd: 768
  dropout: 0.0
  bias: false
  context_size: 2048

system:
  device: 'cuda'
  dtype: 'float16'
  compile: true
  data_workers: 64

ddp:
  backend: 'nccl'

data:
  batch_size: 32
  context_size: 2048
  notes_per_record: 128

dataset:
  base_dataset_name: "epr-labs/maestro-sustain-v2"
  extra_datasets: ["epr-labs/maestro-sustain-v2"]
  pause_detection_threshold: 4
  augmentation:
    speed_change_factors: []
    max_pitch_shift: 0

optimizer:
  gradient_accumulation_steps: 16
  max_iters: 300000
  weight_decay: 0.1
  grad_clip: 1.0
  beta1: 0.9
  beta2: 0.95

lr:
  learning_rate: 8e-5
  min_lr: 8e-6
  warmup_iters: 1000
  decay_lr: true
  lr_decay_iters: ${optimizer.max_iters}

eval_interval: 500
eval_iters: 100
eval_only: false

logging:
  wandb_log: True
  wandb_project: 'piano-gpt'
  log_interval: 20
"""
"""The values of the document."""

EXAMPLES = Path(__file__).resolve().parents[2] / "examples/piano"
FIRST = {
    "gpt2_pretraining.yaml": """
defaults:
  - model: gpt2
  - data: default
  - tokenizer: exponential
  - dataset: tokenized
  - logging: pretraining
  - lr: pretraining
  - optimizer: default
  - _self_
out_dir: 'tmp/checkpoints'
eval_interval: 500
eval_iters: 100
eval_only: false
always_save_checkpoint: false
init_from: 'scratch_next_token'
stage: next_token_pretraining
loss_masking: pretraining
ddp: {backend: 'nccl'}
system: {device: 'cuda', dtype: 'float16', compile: true, data_workers: 4}
""",
    "gpt2_piano.yaml": """
defaults:
  - model: gpt2_10M
  - data: default
  - tokenizer: exponential
  - dataset: tokenized
  - logging: pretraining
  - lr: finetuning
  - optimizer: default
  - tasks: denoising
  - _self_
out_dir: 'tmp/checkpoints'
eval_interval: 500
init_from: 'scratch'
stage: piano_task
loss_masking: finetuning
""",
    "model/gpt2.yaml": (EXAMPLES / "model/gpt2.yaml").read_text(encoding="utf-8"),
    "model/gpt2_10M.yaml": (EXAMPLES / "model/gpt2_10M.yaml").read_text(encoding="utf-8"),
    "model/finetuning.yaml": {"dropout": 0.01},
    "data/default.yaml": {"batch_size": 32, "context_size": 2048, "notes_per_record": 128},
    "tokenizer/exponential.yaml": {
        "class_name": "ExponentialTimeTokenizer",
        "config": {"time_unit": 0.01, "max_time_step": 1.0, "n_velocity_bins": 32, "n_special_ids": 1024},
    },
    "tokenizer/awesome.yaml": {
        "class_name": "AwesomeMidiTokenizer",
        "base_tokenizer": "ExponentialTimeTokenizer",
        "parameters": {"max_vocab_size": 10000},
    },
    "dataset/tokenized.yaml": {
        "base_dataset_name": "epr-labs/maestro-sustain-v2",
        "extra_datasets": ["epr-labs/maestro-sustain-v2", "epr-labs/giant-midi-sustain-v2"],
        "pause_detection_threshold": 4,
        "augmentation": {"speed_change_factors": [], "max_pitch_shift": 0},
    },
    "logging/pretraining.yaml": """
wandb_log: True
wandb_project: 'piano-gpt'
wandb_time_suffix: ${now:%Y-%m-%d-%H-%M}
wandb_run_name_suffix: pretraining
log_interval: 20
""",
    "lr/pretraining.yaml": """
decay_lr: true
warmup_iters: 1000
lr_decay_iters: ${optimizer.max_iters}
min_lr: 8e-6
learning_rate: 8e-5
""",
    "lr/finetuning.yaml": """
decay_lr: false
warmup_iters: 1000
lr_decay_iters: ${optimizer.max_iters}
min_lr: 3e-5
learning_rate: 3e-5
""",
    "optimizer/default.yaml": """
gradient_accumulation_steps: 16
max_iters: 300000
learning_rate: ${lr.learning_rate}
weight_decay: 0.1
beta1: 0.9
beta2: 0.95
grad_clip: 1.0
""",
    "tasks/denoising.yaml": {"list": ["velocity_denoising", "pitch_denoising"]},
}
"""The config folder of the document's generation, with one file of each group."""

THIRD = FIRST | {
    "gpt2_pretraining.yaml": """
defaults:
  - model: gpt2_10M
  - tokenizer: exponential
  - dataset: tokenized
  - lr: cosine_decay
  - optimizer: default
  - tasks: piano_default
  - _self_
command: init
run_name_suffix: pretraining-${now:%Y-%m-%d-%H-%M}
model_task: piano_task
out_dir_relative: 'tmp/checkpoints'
out_dir:
eval_interval: 500
eval_iters: 150
training:
  prompt_masking: false
  context_size: 1024
  min_n_task_notes: 24
  min_notes_per_record: 64
  max_notes_per_record: 168
  batch_size: 64
  microbatch_size: 8
  gradient_accumulation_steps:
ddp: {backend: 'nccl'}
system: {device: 'cuda', dtype: 'float16', compile: true, data_workers: 16}
logging: {wandb_log: True, wandb_entity: 'epr-labs', wandb_project: 'piano-gpt-mte', log_interval: 20}
""",
    "model_tuning.yaml": """
command: tune
checkpoint_path:
defaults:
  - dataset: tokenized
  - tasks: piano_default
  - _self_
overrides:
  run_name_suffix: tuning
  dataset: ${dataset}
  tasks: ${tasks}
  eval_iters: 150
  training: {prompt_masking: true}
  lr: {warmup_iters: 1000, lr_decay_iters: 80000, learning_rate: 6e-6, min_lr: 1e-5}
""",
    "resume_training.yaml": "command: resume\ncheckpoint_path:\n",
    "eval.yaml": """
defaults:
  - dataset: tokenized
  - metrics: default
  - _self_
n_eval_samples: 30
eval_splits: [full_val]
checkpoint_path:
temperature: 1
""",
    "metrics/default.yaml": {"configs": {"f1": {"velocity_threshold": 30}}},
    "model/gpt2_10M.yaml": FIRST["model/gpt2_10M.yaml"].replace("data.context", "training.context"),  # type: ignore[union-attr]
    "lr/cosine_decay.yaml": """
type: CosineDecay
decay_lr: true
warmup_iters: 1000
lr_decay_iters: 10000
min_lr: 8e-6
learning_rate: 8e-5
""",
    "lr/constant_lr.yaml": "type: Constant\nlearning_rate: 3e-5\n",
    "optimizer/default.yaml": {"weight_decay": 0.1, "max_iters": 300000, "beta1": 0.9, "beta2": 0.95, "grad_clip": 1.0},
    "tasks/piano_default.yaml": [
        {"class": "TopLineMasking", "param_range": [{"n_repetitions": 1}, {"n_repetitions": 2}]},
        {"class": "ChordMasking", "params": {"n_notes_threshold": 3}},
    ],
}
"""The config folder of the newest generation."""
