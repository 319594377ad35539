"""The cost of a run, whatever its devices: parameters, FLOPs, memory and disk."""

from dataclasses import dataclass, field

from quintet.config.model import TransformerConfig
from quintet.config.optimizer import AdamWConfig
from quintet.config.schema import RunConfig
from quintet.config.tokenizer import BPETokenizerConfig
from quintet.config.train import total_steps
from quintet.data.mixture import stage_lines
from quintet.data.prepare import Prepared, build_tokenizer_of, find_prepared, prepare
from quintet.data.sources import check_sources
from quintet.errors import NotHere, UserError, collect_problems
from quintet.model.count import Flops, ParameterCount
from quintet.plan.fake_world import fake_tokenizer
from quintet.train.check import check_inputs_here, training_checks
from quintet.train.intervals import intervals_of
from quintet.train.model import build_run_model
from quintet.train.optimizer import optimizer_bytes, state_bytes
from quintet.train.sizes import model_vocabulary, parameter_count, training_flops

FP32_BYTES = 4


@dataclass(frozen=True)
class Memory:
    """Bytes that a device holds for the whole run, without activations, which depend on the micro-batch."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint: the trained weights, which are as large as the gradients, and the optimizer."""
        return self.gradients + self.optimizer


@dataclass(frozen=True)
class Plan:
    """The cost of a run. ``flops_per_token`` counts forward and backward, ``checkpoint_bytes`` one checkpoint.

    ``left_out_documents`` counts documents that equal one of the validation data and are not trained on; ``stages``
    describes the stages of the data. Both are None before the data is prepared. ``flops_note`` says which work is not
    in the FLOPs. ``missing`` lists what is not on this machine. Without the data ``steps`` is None if `train.epochs`
    sets the length of the run; without the tokenizer ``vocab_size`` is None, without the model ``parameters``. A figure
    that depends on one of these is None as well.
    """

    name: str
    parameters: ParameterCount | None
    vocab_size: int | None
    flops_per_token: int | None
    steps: int | None
    tokens_per_step: int
    micro_batch_size: int
    accumulation: int
    tokens_total: int | None
    flops_total: int | None
    memory: Memory | None
    checkpoint_bytes: int | None
    checkpoints_kept: int | None
    left_out_documents: int | None = None
    stages: list[str] | None = None
    flops_note: str | None = None
    missing: list[str] = field(default_factory=list[str])

    def lines(self) -> list[str]:
        """Return the plan as lines of text."""
        p, m = self.parameters, self.memory
        parameters, flops, memory, disk = ("not known",) * 4
        steps = "not known" if self.steps is None else f"{self.steps:,}"
        tokens = "not known" if self.tokens_total is None else f"{self.tokens_total:,} in all"
        if p is not None and self.tokens_total is not None:
            tokens += f", {self.tokens_total / p.total:.1f} a parameter"
        if p is not None:
            parameters = f"{p.total:,} ({p.trainable:,} trainable, {p.embedding:,} of them embedding)"
        if self.flops_per_token is not None:
            flops = f"{self.flops_per_token:,} a token"
            flops += "" if self.flops_total is None else f", {self.flops_total:.3g} in all"
        if m is not None:
            memory = f"{size(m.weights)} weights + {size(m.gradients)} gradients + {size(m.optimizer)} optimizer"
        if self.checkpoint_bytes is not None:
            disk = f"{size(self.checkpoint_bytes)} a checkpoint"
        known = self.checkpoints_kept is not None
        kept = f"{self.checkpoints_kept}" if known else "as many as the run's length allows are"
        vocabulary = "not known" if self.vocab_size is None else f"{self.vocab_size:,}"
        return [
            f"{self.name}",
            f"parameters   {parameters}, vocabulary {vocabulary}",
            f"steps        {steps} of {self.tokens_per_step:,} tokens "
            f"({self.accumulation} × {self.micro_batch_size} samples)",
            f"tokens       {tokens}",
            f"FLOPs        {flops}",
            *([f"             {self.flops_note}"] if self.flops_note else []),
            f"memory       {memory}, and the activations of a micro-batch",
            f"disk         {disk}, {kept} kept at most",
            *(f"stage        {line}" for line in self.stages or []),
            f"left out     {self._left_out}",
            *(f"missing      {line}" for line in self.missing),
        ]

    @property
    def _left_out(self) -> str:
        if self.left_out_documents is None:
            return "not known before `quintet prepare`: documents that are also validated on"
        return f"{self.left_out_documents:,} documents that are also validated on"


def make_plan(config: RunConfig) -> Plan:
    """Compute the plan of ``config``.

    The vocabulary of a BPE tokenizer that is not trained yet comes from the run file. A char tokenizer and
    ``train.epochs`` need the sources: their characters and their number of samples. If sources, tokenizer or model are
    not on this machine, the plan lists them as missing, and the figures that depend on them are None. Raises UserError
    for mistakes in ``config``.
    """
    mistakes, _ = collect_problems(training_checks(config))
    if mistakes:
        raise UserError(*mistakes)
    keep, (model, without) = config.checkpoint.keep, _model_cost(config)
    prepared, missing = _prepared(config)
    samples = prepared.train.epoch_samples if prepared is not None else 0
    batch = config.batch
    steps = None
    if not missing:
        steps = total_steps(config.train, batch.samples, batch.sequence_length, samples)
    tokens = None if steps is None else steps * batch.tokens
    memory, flops = model.memory, model.flops
    due = None if steps is None else intervals_of(config, steps, samples).saved()
    return Plan(
        name=config.name,
        parameters=model.parameters,
        vocab_size=model.vocab_size,
        flops_per_token=None if flops is None else flops.total,
        steps=steps,
        tokens_per_step=batch.tokens,
        micro_batch_size=batch.micro_batch_size,
        accumulation=batch.accumulation,
        tokens_total=tokens,
        flops_total=None if tokens is None or flops is None else tokens * flops.total,
        memory=memory,
        checkpoint_bytes=None if memory is None else memory.checkpoint,
        checkpoints_kept=due if keep is None else keep + config.checkpoint.keep_best,
        left_out_documents=None if prepared is None else prepared.left_out,
        stages=None if prepared is None else stage_lines(config, prepared.train.order),
        flops_note=None if flops is None else flops.note,
        missing=list(dict.fromkeys([*without, *missing])),
    )


def checkpoint_bytes(config: RunConfig) -> int:
    """Return the bytes of a checkpoint of ``config``: trained weights and optimizer state. Raises UserError if
    vocabulary or model need something that is not on this machine."""
    vocab_size = _vocabulary(config)
    return _memory(config, vocab_size, parameter_count(config, vocab_size)).checkpoint


@dataclass(frozen=True)
class _ModelCost:
    """The cost of the model; a figure is None if it needs something that is not on this machine."""

    vocab_size: int | None = None
    parameters: ParameterCount | None = None
    flops: Flops | None = None
    memory: Memory | None = None


def _model_cost(config: RunConfig) -> tuple[_ModelCost, list[str]]:
    """Return the cost of the model, and lines on what is missing on this machine. Raises UserError for mistakes."""
    vocab_size = None
    try:
        vocab_size = _vocabulary(config)
        parameters, flops = parameter_count(config, vocab_size), training_flops(config, vocab_size)
    except UserError as error:
        missing = _not_here(config)
        if not missing:
            raise
        own = vocab_size is None and isinstance(config.model, TransformerConfig)
        return _ModelCost(vocab_size), [*error.problems, *missing, *([_SET_VOCABULARY] if own else [])]
    return _ModelCost(vocab_size, parameters, flops, _memory(config, vocab_size, parameters)), []


_SET_VOCABULARY = "model.vocab_size: is not set; it gives the vocabulary if the tokenizer is not on this machine"


def _prepared(config: RunConfig) -> tuple[Prepared | None, list[str]]:
    """Return the data of the run if it is prepared, and what is missing to prepare it. Prepare it if the length of the
    run depends on it."""
    checkpoints_by_epoch = config.checkpoint.keep is None and config.checkpoint.every_epochs is not None
    if config.train.epochs is None and not checkpoints_by_epoch:
        return find_prepared(config), []
    try:
        return prepare(config), []
    except UserError as error:
        missing = _not_here(config)
        if not missing and not isinstance(error, NotHere):
            raise
        return None, [*error.problems, *missing]


def _not_here(config: RunConfig) -> list[str]:
    """Return lines on the sources, tokenizer and model of ``config`` that are not on this machine."""
    _, missing = collect_problems([lambda: check_sources(config), lambda: check_inputs_here(config)])
    return missing


def _memory(config: RunConfig, vocab_size: int, parameters: ParameterCount) -> Memory:
    return Memory(
        weights=FP32_BYTES * parameters.total,
        gradients=FP32_BYTES * parameters.trainable,
        optimizer=round(_optimizer_bytes(config, vocab_size, parameters)),
    )


def _optimizer_bytes(config: RunConfig, vocab_size: int, parameters: ParameterCount) -> float:
    """Return the bytes of the optimizer state; for AdamW they follow from the number of ``parameters``."""
    if isinstance(config.optimizer, AdamWConfig):
        return state_bytes(config.optimizer) * parameters.trainable
    return optimizer_bytes(config.optimizer, build_run_model(config, fake_tokenizer(vocab_size), meta=True))


def _vocabulary(config: RunConfig) -> int:
    if isinstance(config.model, TransformerConfig) and config.model.vocab_size is not None:
        return config.model.vocab_size
    if isinstance(config.tokenizer, BPETokenizerConfig):
        return config.tokenizer.vocab_size
    return model_vocabulary(config, build_tokenizer_of(config))


def size(count: float) -> str:
    """Return ``count`` bytes with a unit, as 1.5 GB."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        shown = float(f"{count:.3g}")
        if shown < 1000:
            return f"{shown:g} {unit}"
        count /= 1000
    return f"{count:,.0f} PB"
