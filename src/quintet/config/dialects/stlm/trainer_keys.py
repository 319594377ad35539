"""The keys of `trainer`, without those of its evaluation."""

from __future__ import annotations

from typing import Any

from quintet.config.dialects.stlm.words import OPTIMIZERS, SCHEDULES, named, names
from quintet.config.dialects.table import REQUIRED, Key
from quintet.config.dialects.values import Value, choice, flag, mapping, number, whole


def _trainer(name: str, value: Value, help: str, **more: Any) -> Key:
    """A key of the trainer; older files have it in ``trainer.training``."""
    aliases = (f"trainer.training.{name}", *more.pop("aliases", ()))
    return Key(f"trainer.{name}", value, help, aliases=aliases, **more)


OPTIMIZER = (
    Key(
        "trainer.optimizer.optimizer_name",
        choice(*OPTIMIZERS, any_case=True),
        "AdamW; nanoGPTadamW leaves biases and norms without decay; others are PyTorch's",
        default="AdamW",
        aliases=("trainer.optimizer.name", "trainer.optimizer_name"),
        affects=("optimizer.kind", "optimizer.name", "optimizer.decay"),
    ),
    Key("trainer.optimizer.lr", number(above=0), "learning rate", default=6e-4, affects=("optimizer.lr",)),
    Key(
        "trainer.optimizer.min_lr",
        number(0),
        "rate at the end of the decay",
        default=6e-6,
        affects=("schedule.min_lr",),
    ),
    Key("trainer.optimizer.weight_decay", number(0), "weight decay", default=0.01, affects=("optimizer.weight_decay",)),
    Key(
        "trainer.optimizer.beta1",
        number(0, below=1),
        "decay of the average of the gradient",
        default=0.9,
        affects=("optimizer.betas",),
    ),
    Key(
        "trainer.optimizer.beta2",
        number(0, below=1),
        "decay of the average of its square",
        default=0.999,
        affects=("optimizer.betas",),
    ),
    Key(
        "trainer.optimizer.grad_clip",
        number(0, off=0),
        "largest norm of the gradient; 0 does not clip",
        default=1.0,
        aliases=("trainer.gradient_clipping", "trainer.optimizer.gradient_clipping"),
        affects=("train.clip_norm",),
    ),
    Key(
        "trainer.optimizer.params",
        mapping(),
        "what the optimizer's class takes, by its own names",
        documented=False,
        aliases=("trainer.optimizer_params",),
        affects=("optimizer.arguments",),
    ),
)

TRAINER = (
    _trainer(
        "trainer_type",
        named({"base_trainer": "base_trainer"}, ("mock_trainer", "cascade_trainer")),
        "what trains",
        default="base_trainer",
        affects=("trainer.kind",),
    ),
    _trainer(
        "dataset",
        names(),
        "a dataset of STLM's by its name, a path, or OWNER/NAME on the hub; several in a list",
        default=REQUIRED,
        aliases=("trainer.dataset_names",),
        affects=("data.sources",),
    ),
    _trainer(
        "batch_size",
        whole(1),
        "samples in one forward and backward pass",
        default=REQUIRED,
        to="train.micro_batch_size",
    ),
    _trainer(
        "gradient_accumulation_steps",
        whole(1),
        "passes whose gradients make one step",
        default=REQUIRED,
        to="train.accumulation",
    ),
    _trainer("max_iters", whole(1), "steps", default=REQUIRED, to="train.steps"),
    _trainer(
        "decay_lr",
        flag(),
        "false keeps the rate after the warm-up",
        default=True,
        aliases=("trainer.optimizer.decay_lr",),
        affects=("schedule.kind",),
    ),
    _trainer(
        "lr_decay_iters",
        whole(1),
        "steps from the end of the warm-up to min_lr; max_iters when not given",
        aliases=("trainer.lr_scheduler.lr_decay_iters",),
        affects=("schedule.decay_steps",),
    ),
    _trainer(
        "warmup_iters",
        whole(0),
        "steps in which the rate rises from 0; none when not given",
        aliases=("trainer.lr_scheduler.warmup_iters",),
        affects=("schedule.warmup_steps",),
    ),
    Key(
        "trainer.optimizer.warmup_iters",
        whole(0),
        "warm-up where trainer.warmup_iters is not given",
        documented=False,
        affects=("schedule.warmup_steps",),
    ),
    _trainer(
        "eval_interval",
        whole(1),
        "steps between validations, the first before any step",
        default=2000,
        aliases=("trainer.eval.eval_interval",),
        to="evaluate.every",
    ),
    _trainer(
        "log_interval",
        whole(1),
        "steps between logs of training metrics: progress lines and trackers",
        default=10,
        to="train.log_every",
    ),
    _trainer("checkpoint_interval", whole(1), "steps between checkpoints", default=10_000, to="checkpoint.every"),
    Key(
        "trainer.lr_scheduler.name",
        choice(*SCHEDULES, any_case=True),
        "cosine; constant has no warm-up; others are PyTorch's (lr_scheduler: NAME says the same)",
        default="cosine",
        affects=("schedule.kind", "schedule.name"),
    ),
    Key(
        "trainer.lr_scheduler.params",
        mapping(),
        "what the scheduler's class takes, by its own names",
        documented=False,
        affects=("schedule.arguments",),
    ),
    Key(
        "trainer.dataloader.name",
        named(
            {"standard": "standard", "random": "standard", "next_token_mlm": "mlm"},
            (
                "byte_pooling",
                "dual_byte_pooling",
                "autoencoder",
                "conversational",
                "prm800k",
                "text_classification",
            ),
        ),
        "how documents become samples: one stream, cut where a sample is full (dataloader: NAME says the same)",
        default="standard",
        aliases=("trainer.dataloader_name",),
        affects=("data.packing",),
    ),
    Key(
        "trainer.datasampling.name",
        named({"standard": "standard"}),
        "which samples come when: in a random order (datasampling: NAME says the same)",
        default="standard",
        affects=("data.shuffle",),
    ),
    Key(
        "trainer.preprocessor_name",
        named({"text_preprocessor": "standard"}, ("text_classification_preprocessor", "prm800k_preprocessor")),
        "what is done to a text",
        documented=False,
        no_effect="the only one there is: texts are read as they are",
    ),
    Key(
        "trainer.loss_fn.name",
        named({"cross_entropy": "next_token", "next_token_mlm": "masked"}, ("pass_through", "masked_cross_entropy")),
        "cross_entropy of each next token; next_token_mlm hides tokens and predicts those (loss_fn: NAME says the "
        "same)",
        default="next_token",
        to="loss.kind",
    ),
    Key(
        "trainer.run_eval",
        flag(),
        "whether there are validations at all",
        documented=False,
        affects=("evaluate.every", "evaluate.at_start"),
    ),
    _trainer(
        "run_profiler",
        flag(),
        "profile of the first steps",
        documented=False,
        no_effect="a profile changes nothing that is trained; none is made",
    ),
    _trainer(
        "load_prev_optimizer_state",
        flag(),
        "with checkpoint_path",
        documented=False,
        no_effect="read with model.checkpoint_path alone; a run of Quintet is continued whole",
    ),
    Key(
        "trainer.dropout_scheduler.dropout_type",
        choice("constant", "linear", "triangle"),
        "how the rate of every dropout changes",
        documented=False,
        affects=("dropout_schedule.kind",),
    ),
    *(
        Key(f"trainer.dropout_scheduler.{name}", value, help, documented=False, to=to)
        for name, value, help, to in (
            ("dropout", number(0, below=1), "constant: the rate", "dropout_schedule.rate"),
            ("start_dropout_p", number(0, below=1), "linear: the rate up to start_iter", "dropout_schedule.start"),
            ("end_dropout_p", number(0, below=1), "linear: the rate from end_iter on", "dropout_schedule.end"),
            ("start_iter", whole(0), "linear: where the line begins", "dropout_schedule.first_step"),
            ("end_iter", whole(1), "linear: where the line ends", "dropout_schedule.last_step"),
            ("dropout_trough", number(0, below=1), "triangle: the lowest rate", "dropout_schedule.low"),
            ("dropout_peak", number(0, below=1), "triangle: the highest rate", "dropout_schedule.high"),
            ("num_iterations", whole(1), "triangle: steps of all cycles", "dropout_schedule.steps"),
            ("num_cycles", whole(1), "triangle: cycles", "dropout_schedule.cycles"),
        )
    ),
)
