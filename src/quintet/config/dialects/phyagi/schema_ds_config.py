"""The keys of PhyAGI's section ``ds_config``: DeepSpeed's configuration."""

from typing import Annotated, Any

from pydantic import ConfigDict

from quintet.config.dialects.dialect import DialectSection
from quintet.config.dialects.phyagi.values import DS_SCHEDULES
from quintet.config.dialects.types import AboveZero, Arguments, Count, NotNegative, Positive, Share, Text, one_of
from quintet.config.section import key

Schedule = Annotated[str, one_of(*DS_SCHEDULES)]


def undocumented(default: Any, help: str, **more: Any) -> Any:
    """A key that PhyAGI's own files have and its document does not."""
    return key(default, help, documented=False, **more)


def _zero(help: str = "setting of ZeRO") -> Any:
    return undocumented(None, help, affects="parallel.config")


def _loss_scale() -> Any:
    return _zero("setting of the loss scale, with ZeRO")


def _optimizer_argument() -> Any:
    return undocumented(None, "argument of optimizers other than AdamW", affects="optimizer.arguments")


def _report() -> Any:
    return key(None, "setting of DeepSpeed's reports", no_effect="changes what DeepSpeed prints, and no result")


class OptimizerParams(DialectSection):
    """Parameters of the optimizer."""

    documented = False

    lr: NotNegative | None = key(None, "learning rate; most schedules set their own", affects="optimizer.lr")
    betas: tuple[Share, Share] | None = key(
        None, "decay of the averages of the gradient and of its square", affects="optimizer.betas"
    )
    eps: AboveZero | None = key(None, "added to the root of the second average", affects="optimizer.eps")
    weight_decay: NotNegative | None = key(None, "decay of all weights", affects="optimizer.weight_decay")
    momentum: float | None = _optimizer_argument()
    dampening: float | None = _optimizer_argument()
    alpha: float | None = _optimizer_argument()
    rho: float | None = _optimizer_argument()
    lr_decay: float | None = _optimizer_argument()
    lambd: float | None = _optimizer_argument()
    t0: float | None = _optimizer_argument()
    nesterov: bool | None = _optimizer_argument()
    centered: bool | None = _optimizer_argument()
    amsgrad: bool | None = undocumented(
        None,
        "the AMSGrad variant of Adam and AdamW; DeepSpeed's AdamW has it only with torch_adam",
        affects=("optimizer.kind", "optimizer.name", "optimizer.arguments"),
    )


class DeepSpeedOptimizerParams(OptimizerParams):
    """Parameters of the optimizer, with DeepSpeed's own."""

    documented = True
    nestings = ("ds_config.optimizer.params",)

    adam_w_mode: bool | None = undocumented(
        None, "false: the decay is part of the gradient, as in Adam", affects="optimizer.kind"
    )
    torch_adam: bool | None = undocumented(
        None, "PyTorch's implementation, which AdamW with amsgrad needs", no_effect="PyTorch's is always used"
    )


class DeepSpeedOptimizer(DialectSection):
    """The optimizer."""

    nestings = ("ds_config.optimizer",)

    type: Text | None = key(None, "AdamW, or a class of torch.optim", affects=("optimizer.kind", "optimizer.name"))
    params: DeepSpeedOptimizerParams


class DeepSpeedScheduler(DialectSection):
    """The schedule of the learning rate."""

    nestings = ("ds_config.scheduler",)

    type: Schedule | None = key(
        None, "schedule of the learning rate; constant if not given", affects=("schedule.kind", "schedule.name")
    )
    params: Arguments | None = key(None, "parameters of the schedule, by name", affects="schedule.arguments")


class Fp16(DialectSection):
    """Mixed precision with fp16."""

    nestings = ("ds_config.fp16",)
    shorthand = "enabled"

    enabled: bool | None = key(None, "matrix products in fp16; weights stay in fp32", affects="train.precision")
    initial_scale_power: NotNegative | None = _loss_scale()
    loss_scale: NotNegative | None = _loss_scale()
    loss_scale_window: NotNegative | None = _loss_scale()
    hysteresis: NotNegative | None = _loss_scale()
    min_loss_scale: NotNegative | None = _loss_scale()
    consecutive_hysteresis: NotNegative | None = _loss_scale()


class Bf16(DialectSection):
    """Mixed precision with bf16."""

    documented = False
    nestings = ("ds_config.bf16",)
    shorthand = "enabled"

    enabled: bool | None = key(None, "matrix products in bf16; weights stay in fp32", affects="train.precision")


class ZeroOptimization(DialectSection):
    """ZeRO: what DeepSpeed shards over devices."""

    nestings = ("ds_config.zero_optimization",)

    stage: Count = key(
        0,
        "what is sharded over devices: 1 the optimizer's state, 2 gradients too, 3 weights too; above 0 DeepSpeed's "
        "engine takes the steps",
        affects=("parallel.kind", "parallel.config"),
    )
    offload_param: Arguments | None = _zero("offload of the weights, as to the memory of the CPU")
    offload_optimizer: Arguments | None = _zero("offload of the optimizer's state, as to the memory of the CPU")
    overlap_comm: bool | None = _zero()
    contiguous_gradients: bool | None = _zero()
    reduce_scatter: bool | None = _zero()
    allgather_partitions: bool | None = _zero()
    round_robin_gradients: bool | None = _zero()
    stage3_gather_16bit_weights_on_model_save: bool | None = _zero()
    sub_group_size: Count | None = _zero()
    reduce_bucket_size: Count | None = _zero()
    allgather_bucket_size: Count | None = _zero()
    stage3_max_live_parameters: Count | None = _zero()
    stage3_max_reuse_distance: Count | None = _zero()
    stage3_prefetch_bucket_size: Count | None = _zero()
    stage3_param_persistence_threshold: Count | None = _zero()


class DataTypes(DialectSection):
    """Data types of DeepSpeed's buffers."""

    nestings = ("ds_config.data_types",)

    grad_accum_dtype: Text | None = _zero("dtype of accumulated gradients, with ZeRO")


class DeepSpeedConfig(DialectSection):
    """DeepSpeed's configuration, or the name of a file that holds it."""

    model_config = ConfigDict(json_schema_extra={"type": ["object", "string"]})
    documented = False
    nestings = ("ds_config",)

    fp16: Fp16
    bf16: Bf16
    optimizer: DeepSpeedOptimizer
    scheduler: DeepSpeedScheduler
    zero_optimization: ZeroOptimization
    gradient_clipping: NotNegative = key(
        0.0,
        "largest norm of the gradient; 0 does not clip",
        affects="train.clip_norm",
        aliases=(".gradient_clipping", "training_args.gradient_clipping"),
        documented=True,
    )
    train_batch_size: Positive | None = key(None, "samples of a step, over all devices", affects="train.batch_size")
    train_micro_batch_size_per_gpu: Positive | None = key(
        None, "samples of a pass on a device", affects=("train.micro_batch_size", "train.batch_size_per_device")
    )
    gradient_accumulation_steps: Positive | None = key(
        None, "passes of a step on each device", affects=("train.accumulation", "train.batch_size_per_device")
    )
    steps_per_print: int | None = _report()
    wall_clock_breakdown: bool | None = _report()
    dump_state: bool | None = _report()
    zero_allow_untested_optimizer: bool | None = _zero("with ZeRO: allow optimizers that DeepSpeed has not tested")
    data_types: DataTypes
