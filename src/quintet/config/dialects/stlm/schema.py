"""The keys of an STLM file, in the nesting of its document; ``nestings`` are those of older and newer files."""

from typing import Annotated, Any, Literal

from quintet.config.dialects.dialect import DialectSection
from quintet.config.dialects.stlm import values
from quintet.config.dialects.stlm.schema_model import Model, Names, refuses, unlisted
from quintet.config.dialects.stlm.values import EXPERIMENT
from quintet.config.dialects.types import Count, Device, FalseIsZero, Fraction, NotNegative, Positive, Share, Text
from quintet.config.section import key

_TASKS = ("evaluate.tasks", "evaluate.tasks_every")
_OF_ADAM_MINI = "only adam_mini asks for it"


class LrScheduler(DialectSection):
    """How the learning rate changes; or `lr_scheduler: NAME`."""

    nestings = ("training.lr_scheduler", "trainer.scheduler")
    shorthand = "name"

    name: values.Scheduler = key(
        "cosine",
        "cosine; constant has no warm-up; others are PyTorch's",
        affects=("schedule.kind", "schedule.name"),
        aliases="lr_scheduler",
    )
    params: dict[str, Any] | None = unlisted(None, "arguments of its class", affects="schedule.arguments")


class Dataloader(DialectSection):
    """One stream of documents, cut into samples; or `dataloader: NAME`."""

    nestings = ("training.dataloader",)
    shorthand = "name"

    name: values.Dataloader = key(
        "standard",
        "how documents become samples, and which tokens mlm hides",
        affects=("data.packing", "loss.kind", "loss.predict_at"),
        aliases="trainer.dataloader_name",
    )
    tokenized_data_dir: Text | None = unlisted(None, "tokenized data", no_effect="STLM reads general.paths.data_dir")


class Datasampling(DialectSection):
    """The order of the samples; or `datasampling: NAME`."""

    shorthand = "name"

    name: values.Datasampling = key("standard", "a random order of the samples", affects="data.shuffle")


class LossFn(DialectSection):
    """The loss; or `loss_fn: NAME`."""

    nestings = ("training.loss_fn",)
    shorthand = "name"

    name: values.Loss = key(
        "cross_entropy", "cross_entropy of the next token; next_token_mlm hides tokens to predict", to="loss.kind"
    )


class DropoutScheduler(DialectSection):
    """How the rate of every dropout changes."""

    nestings = ("training.dropout_scheduler",)
    documented = False

    dropout_type: Literal["constant", "linear", "triangle"] | None = key(
        None,
        "how the rate of every dropout changes; the first step counts as 0",
        to="dropout_schedule.kind",
        affects="dropout_schedule.first",
        aliases="name",
    )
    dropout: Fraction | None = key(None, "constant: the rate", to="dropout_schedule.rate", aliases="dropout_p")
    start_dropout_p: Fraction | None = key(None, "linear: the rate up to start_iter", to="dropout_schedule.start")
    end_dropout_p: Fraction | None = key(None, "linear: the rate from end_iter on", to="dropout_schedule.end")
    start_iter: Count | None = key(None, "linear: first step of the line", to="dropout_schedule.first_step")
    end_iter: Positive | None = key(None, "linear: last step of the line", to="dropout_schedule.last_step")
    dropout_trough: Fraction | None = key(None, "triangle: the lowest rate", to="dropout_schedule.low")
    dropout_peak: Fraction | None = key(None, "triangle: the highest rate", to="dropout_schedule.high")
    num_iterations: Positive | None = key(None, "triangle: steps of all cycles", to="dropout_schedule.steps")
    num_cycles: Positive | None = key(None, "triangle: cycles", to="dropout_schedule.cycles")
    cycle_factor: float | None = key(
        None,
        "triangle",
        unsupported="STLM never reads it; give dropout_trough, dropout_peak, num_iterations and num_cycles",
    )


class Optimizer(DialectSection):
    """The optimizer and its learning rate."""

    nestings = ("training.optimizer",)
    gradient_filter: Literal["None", "none", "grokfast_ema", False] | None = unlisted(
        None,
        "grokfast_ema: AdamW sees the clipped gradient plus twice its average over about 50 steps",
        affects=("optimizer.name", "optimizer.arguments"),
    )
    optimizer_name: values.Optimizers = key(
        "AdamW",
        "AdamW; nanoGPTadamW does not decay biases and norms; others are PyTorch's or pytorch_optimizer's",
        affects=("optimizer.kind", "optimizer.name", "optimizer.decay"),
        aliases=("name", "trainer.optimizer_name"),
    )
    lr: float = key(6e-4, "learning rate", ge=0, affects="optimizer.lr")
    min_lr: NotNegative = key(6e-6, "rate at the end of the decay", affects="schedule.min_lr")
    weight_decay: NotNegative = key(0.01, "weight decay", affects="optimizer.weight_decay")
    beta1: Share = key(0.9, "decay of the average of the gradient", affects="optimizer.betas")
    beta2: Share = key(0.999, "decay of the average of its square", affects="optimizer.betas")
    grad_clip: Annotated[NotNegative, FalseIsZero] = key(
        1.0,
        "largest norm of the gradient; 0 does not clip",
        affects="train.clip_norm",
        aliases=("gradient_clipping", "trainer.gradient_clipping"),
    )
    betas: tuple[Share, Share] | None = unlisted(None, "beta1 and beta2", affects="optimizer.betas")
    momentum: Share | None = unlisted(None, "SGD, SGDP, RMSprop, Shampoo", affects="optimizer.arguments")
    decoupled_weight_decay: bool = unlisted(
        False, "Lion: weight_decay is the decay at the highest rate", affects="optimizer.weight_decay"
    )
    hidden_dim: Positive | None = unlisted(None, "size of the model", no_effect=_OF_ADAM_MINI)
    n_heads: Positive | None = unlisted(None, "size of the model", no_effect=_OF_ADAM_MINI)
    n_kv_heads: Positive | None = unlisted(None, "size of the model", no_effect=_OF_ADAM_MINI)
    params: dict[str, Any] | None = unlisted(
        None, "arguments of the optimizer's class", affects="optimizer.arguments", aliases="trainer.optimizer_params"
    )
    warmup_iters: Count | None = unlisted(
        None, "warm-up, if trainer.warmup_iters is not given", affects="schedule.warmup_steps"
    )


class Evaluator(DialectSection):
    """A set of benchmarks in older files."""

    documented = False

    evaluator: values.Evaluator = key("mcq", "how the benchmarks are asked", affects="evaluate.tasks")
    benchmarks: values.Benchmarks = key((), "mcq, ft_qa: benchmarks", affects="evaluate.tasks")
    num_samples: Positive | None = key(None, "samples of each; else those of trainer.eval", affects="evaluate.tasks")
    max_train_samples: Positive | None = key(
        None, "samples to fit a classifier to", no_effect="no classifier is fitted to the features of the model"
    )
    max_eval_samples: Positive | None = key(None, "glue: samples", affects="evaluate.tasks")


class Evaluation(DialectSection):
    """Validations, and the benchmarks with them."""

    mcq_benchmarks: values.Benchmarks = key((), "multiple-choice benchmarks", affects=_TASKS)
    benchmarks: values.Benchmarks = unlisted((), "benchmarks, newer name", affects=_TASKS, aliases="trainer.benchmarks")
    num_samples: Positive = key(1000, "samples of a benchmark", to="evaluate.task_samples", aliases="mcq_num_samples")
    dataset_loss_eval_iters: Positive = key(
        1000,
        "micro-batches of held-out data that a validation reads",
        affects="evaluate.samples",
        aliases=("eval_iters", "trainer.eval_iters", "trainer.training.eval_iters"),
    )
    val_loss_iters: Positive | None = unlisted(None, "instead of dataset_loss_eval_iters", affects="evaluate.samples")
    text_modeling_eval: bool = key(True, "text modelling of held-out documents", affects="evaluate.text_modeling")
    text_generation_eval: bool = unlisted(
        False, "metrics of texts that the model generates", affects=("evaluate.text_generation", "evaluate.tasks_every")
    )
    evaluator: values.Evaluator | None = unlisted(None, "how the benchmarks are asked", affects="evaluate.tasks")
    evaluators: tuple[Evaluator, ...] = unlisted((), "older list of benchmarks")
    eval_byte_metrics: bool | None = unlisted(None, "loss per byte", no_effect="every validation reports bits per byte")
    text_modeling_topics: tuple[Text, ...] | None = unlisted(
        None, "topics of text_modeling_eval", no_effect="STLM never reads it"
    )


@refuses("use_collate_fn")
class Trainer(DialectSection):
    """Data, length and batches of the run, and the steps of its validations, logs and checkpoints."""

    nestings = ("trainer.training", "training")

    trainer_type: values.TrainerType = key(
        "base_trainer",
        "base_trainer; mock_trainer validates the initial weights and does not train",
        affects=("trainer.kind", "evaluate.only"),
        aliases="trainer",
    )
    dataset: Names = key(
        ..., "datasets: STLM's names, paths or OWNER/NAME on the hub", affects="data.sources", aliases="dataset_names"
    )
    batch_size: Positive = key(..., "samples in one forward and backward pass", to="train.micro_batch_size")
    gradient_accumulation_steps: Positive = key(..., "passes whose gradients make one step", to="train.accumulation")
    max_iters: Positive = key(..., "steps", to="train.steps", aliases="max_iter")
    decay_lr: bool = key(
        True,
        "false keeps the rate after the warm-up",
        affects="schedule.kind",
        aliases=("trainer.optimizer.decay_lr", "training.optimizer.decay_lr"),
    )
    lr_decay_iters: Positive | None = key(
        None,
        "steps from the end of the warm-up to min_lr; max_iters when not given",
        affects="schedule.decay_steps",
        aliases="trainer.lr_scheduler.lr_decay_iters",
    )
    warmup_iters: Count | None = key(
        None, "steps of the warm-up", affects="schedule.warmup_steps", aliases="trainer.lr_scheduler.warmup_iters"
    )
    eval_interval: Positive = key(
        2000, "steps between validations, from step 0 on", to="evaluate.every", aliases="trainer.eval.eval_interval"
    )
    log_interval: Positive = key(10, "steps between logs of training metrics", to="train.log_every")
    checkpoint_interval: Positive = key(
        10_000, "steps between checkpoints", to="checkpoint.every", aliases="trainer.optimizer.checkpoint_interval"
    )
    lr_scheduler: LrScheduler
    dataloader: Dataloader
    datasampling: Datasampling
    preprocessor_name: values.Preprocessor | None = unlisted(
        None, "what is done to a text", no_effect="the only one there is: texts are read as they are"
    )
    loss_fn: LossFn
    run_eval: bool | None = unlisted(None, "false: no validations", affects=("evaluate.every", "evaluate.at_start"))
    run_profiler: bool | None = unlisted(
        None, "profile of the first steps", no_effect="a profile does not change the training; none is made"
    )
    load_prev_optimizer_state: bool | None = unlisted(
        None, "optimizer too", no_effect="STLM reads it with model.checkpoint_path only; Quintet continues a whole run"
    )
    dropout_scheduler: DropoutScheduler
    optimizer: Optimizer
    eval: Evaluation


class Logging(DialectSection):
    """Weights & Biases."""

    wandb_log: bool = key(False, "metrics to Weights & Biases", affects="track")
    wandb_project: Text = key("SuperTinyLanguageModels", "project there", affects="track")
    wandb_run_name: Text | None = key(
        None, "name of the run and its folder; else the file's", to="name", affects="track", aliases="run_name"
    )
    group_name: Text | None = unlisted(None, "group there", affects="track")


class Paths(DialectSection):
    """Folders."""

    output_dir: Text | None = key(None, "folder in which the run's folder is made", to="runs_dir")
    data_dir: Text | None = key(None, "cache of tokens and tokenizers", to="data.cache_dir", aliases="data_path")
    checkpoint_dir: Text | None = key(None, "folder of checkpoints; else in the run's", to="checkpoint.dir")
    tokenizer_dir: Text | None = unlisted(
        None, "folder of trained tokenizers", no_effect="a trained tokenizer is in data_dir, with the tokens"
    )
    eval_dir: Text | None = key(
        None,
        "folder of evaluation files",
        no_effect="nothing reads it: STLM's own benchmarks have moved to the hub since the document",
    )


class General(DialectSection):
    """Logging, folders, seed and device."""

    logging: Logging
    paths: Paths
    seed: Count | None = key(None, "seed of everything random", to="seed")
    device: Device = key("cuda", "device; by default CUDA where there is one", affects="train.device")
    max_num_cores: Positive | None = unlisted(None, "processes that tokenize", to="data.processes")


class File(DialectSection):
    """A run file of SuperTinyLanguageModels."""

    model: Model
    trainer: Trainer
    general: General
    teachermodel: Any = unlisted(None, "distillation", unsupported=EXPERIMENT)
    model_ckpt: Any = unlisted(None, "distillation: its weights", unsupported=EXPERIMENT)
