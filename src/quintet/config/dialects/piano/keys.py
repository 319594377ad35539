"""All keys of piano-gpt: those of its document, and those that its own files have besides."""

from __future__ import annotations

import re
from typing import Any

from quintet.config.dialects.piano.music_keys import EVALUATION, MUSIC, STAGE, TASKS, also
from quintet.config.dialects.table import Key
from quintet.config.dialects.values import Value, choice, flag, mapping, number, text, whole

SCRATCH = ("scratch_next_token", "scratch")
PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
COSINE, CONSTANT = "CosineDecay", "Constant"


def device() -> Value:
    """A device of PyTorch's, of which the first GPU is the only one that can be named."""

    def read(value: Any) -> str:
        found = re.fullmatch(r"cuda:(\d+)", value) if isinstance(value, str) else None
        if found and int(found[1]):
            raise ValueError(f"must be cuda; to train on GPU {found[1]}, start with CUDA_VISIBLE_DEVICES={found[1]}")
        if found:
            return "cuda"
        if value not in ("cuda", "cpu", "mps"):
            raise ValueError("must be cuda, cuda:0, cpu or mps")
        return value

    return Value("`cuda`, `cuda:0`, `cpu`, `mps`", read)


_START = (
    Key(
        "init_from",
        text(),
        "`scratch_next_token` or `scratch` for new weights, or what to start from: the folder of a run, whose model it "
        "then is, or a checkpoint of Hugging Face's",
        affects=("model.init",),
        default=SCRATCH[0],
        aliases=("checkpoint_path",),
    ),
    Key(
        "loss_masking",
        also(choice("pretraining", "finetuning"), {"pretrianing": "pretraining"}),
        "pretraining: a loss on prompts and answers; finetuning: on answers alone",
        affects=("data.learn_prompts",),
        default="pretraining",
        aliases=("training.loss_masking",),
    ),
)

_MODEL = (
    Key("model.n_layer", whole(1), "transformer layers", to="model.layers", default=12),
    Key("model.n_head", whole(1), "attention heads", to="model.attention.heads", default=12),
    Key("model.n_embd", whole(1), "hidden size", to="model.width", default=768),
    Key(
        "model.dropout",
        number(0, below=1),
        "dropout on the embedding, on attention weights, and on what attention and feed-forward add; also of a model "
        "from a checkpoint",
        default=0.0,
        affects=("model.embedding_dropout", "model.residual_dropout", "model.attention.dropout"),
    ),
    Key(
        "model.bias",
        flag(),
        "biases of the linear layers and the layer norms; the head has none",
        default=False,
        affects=("model.attention.bias", "model.feedforward.bias", "model.norm"),
    ),
    Key(
        "model.context_size",
        whole(2),
        "positions that the model has; `data.context_size` when not given",
        default=2048,
        aliases=("model.block_size",),
        affects=("model.context_length",),
    ),
)

_SYSTEM = (
    Key("system.device", device(), "where to train", to="train.device", default="cuda"),
    Key(
        "system.dtype",
        choice(by=PRECISIONS),
        "numbers of the matrix products; float16 is used on a GPU only",
        default="fp16",
        affects=("train.precision",),
    ),
    Key(
        "system.compile",
        flag(),
        "compile the blocks on a GPU; false never does",
        default=True,
        affects=("train.compile",),
    ),
    Key("system.data_workers", whole(0), "processes that prepare data", default=64, affects=("data.processes",)),
    Key(
        "ddp.backend",
        text(),
        "what connects the processes of torchrun",
        default="nccl",
        no_effect="the device decides: NCCL between GPUs, gloo between CPUs",
    ),
)

_SAMPLES = (
    Key(
        "data.batch_size",
        whole(1),
        "samples of one forward and backward pass",
        to="train.micro_batch_size",
        default=32,
        aliases=("training.microbatch_size",),
        affects=("evaluate.batch_size", "evaluate.samples"),
    ),
    Key(
        "data.context_size",
        whole(2),
        "tokens of a sample; `model.context_size` when not given",
        default=2048,
        aliases=("training.context_size", "data.sequence_length"),
        affects=("data.sequence_length",),
    ),
)

_OPTIMIZER = (
    Key(
        "optimizer.gradient_accumulation_steps",
        whole(1),
        "passes whose gradients make one step",
        to="train.accumulation",
        default=16,
        aliases=("training.gradient_accumulation_steps",),
    ),
    Key("optimizer.max_iters", whole(1), "optimizer steps", to="train.steps", default=300_000),
    Key("optimizer.weight_decay", number(0), "decay of matrices", to="optimizer.weight_decay", default=0.1),
    Key(
        "optimizer.grad_clip",
        number(0),
        "largest norm of the gradient; 0 does not clip",
        default=1.0,
        affects=("train.clip_norm",),
    ),
    Key(
        "optimizer.beta1",
        number(0, below=1),
        "decay of the average of the gradient",
        default=0.9,
        affects=("optimizer.betas",),
    ),
    Key(
        "optimizer.beta2",
        number(0, below=1),
        "decay of the average of its square",
        default=0.95,
        affects=("optimizer.betas",),
    ),
    Key(
        "lr.learning_rate",
        number(above=0),
        "highest learning rate",
        to="optimizer.lr",
        default=8e-5,
        aliases=("optimizer.learning_rate",),
    ),
    Key("lr.min_lr", number(0), "learning rate at the end of the decay", default=8e-6, affects=("schedule.min_lr",)),
    Key(
        "lr.warmup_iters",
        whole(0),
        "steps in which the learning rate rises",
        default=1000,
        affects=("schedule.warmup_steps",),
    ),
    Key(
        "lr.decay_lr",
        flag(),
        "warm-up, then half a cosine; false keeps the rate constant, without a warm-up",
        default=True,
        affects=("schedule.kind",),
    ),
    Key(
        "lr.lr_decay_iters",
        whole(1),
        "step at which `min_lr` is reached; `optimizer.max_iters` when not given",
        affects=("schedule.decay_steps",),
    ),
    Key(
        "lr.type",
        choice(COSINE, CONSTANT),
        "the same as `decay_lr: true` or `false`",
        documented=False,
        affects=("schedule.kind",),
    ),
)

_LOGGING = (
    Key(
        "eval_interval",
        whole(1),
        "steps between validations, the first after the first step; also between checkpoints",
        default=500,
        affects=("evaluate.every", "evaluate.offset", "checkpoint.every"),
    ),
    Key(
        "eval_iters",
        whole(1),
        "batches of each split in a validation",
        default=100,
        affects=("evaluate.samples", "evaluate.samples_each"),
    ),
    Key("eval_only", flag(), "validate and do not train", to="evaluate.only", default=False),
    Key("logging.wandb_log", flag(), "log to Weights & Biases", default=True, affects=("track",)),
    Key("logging.wandb_project", text(), "project there", default="piano-gpt", affects=("track",)),
    Key(
        "logging.log_interval",
        whole(1),
        "steps between logs of training metrics: progress lines and trackers",
        to="train.log_every",
        default=20,
    ),
    Key("logging.wandb_entity", text(), "team there", documented=False, affects=("track",)),
    Key(
        "logging.wandb_run_name_suffix",
        text(),
        "name there, after midi-gpt2-",
        documented=False,
        aliases=("run_name_suffix",),
        affects=("track",),
    ),
    Key(
        "logging.wandb_time_suffix",
        text(),
        "what follows in that name, the time as a rule",
        documented=False,
        affects=("track",),
    ),
    Key(
        "out_dir",
        text(),
        "folder in which the run's folder is made",
        to="runs_dir",
        documented=False,
        aliases=("out_dir_relative",),
    ),
    Key(
        "always_save_checkpoint",
        flag(),
        "keep a checkpoint of each evaluation",
        documented=False,
        no_effect="the original never reads it; the last and the best checkpoint are kept",
    ),
)

_LATER = (
    Key(
        "command",
        choice("init", "tune", "resume"),
        "init: new weights; tune: those of `checkpoint_path`; resume is `quintet train` of the run's folder",
        documented=False,
        affects=("model.init",),
    ),
    Key(
        "training.prompt_masking",
        flag(),
        "true is `loss_masking: finetuning`",
        documented=False,
        affects=("data.learn_prompts",),
    ),
    Key(
        "training.batch_size",
        whole(1),
        "samples of a step, instead of `gradient_accumulation_steps`",
        documented=False,
        affects=("train.accumulation",),
    ),
    Key(
        "metrics",
        mapping(),
        "metrics of what an evaluation generates",
        documented=False,
        no_effect="the original never reads it",
    ),
)

KEYS = STAGE + _START + TASKS + _MODEL + _SYSTEM + _SAMPLES + MUSIC + _OPTIMIZER + _LOGGING + _LATER + EVALUATION
