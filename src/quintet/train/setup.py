"""A run built from its run file, in an order that finds mistakes before expensive work."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from quintet.config.provenance import Original
from quintet.config.schedule import dropout_changes
from quintet.config.schema import RunConfig
from quintet.config.train import total_steps
from quintet.data.build import encoding_libraries
from quintet.data.mixture import stage_facts, stage_lines
from quintet.data.prepare import Prepared, prepare
from quintet.errors import UserError
from quintet.files import new_folder, remove
from quintet.processes import broadcast_from_rank0, rank_zero_first, world_size
from quintet.tokenize import Tokenizer, load_tokenizer
from quintet.track.composite import CompositeTracker
from quintet.track.console import Reporter
from quintet.track.tracker import Tracked, system_figures
from quintet.train.build import Built, build_engine, load_training
from quintet.train.check import check_training
from quintet.train.checkpoint import Checkpointer
from quintet.train.checkpoint_files import Progress, checkpoint_path, newest_whole
from quintet.train.compute import (
    Compute,
    choose_compute,
    is_deterministic,
    keep_freed_memory,
    keep_precision,
    make_deterministic,
    measure_peak_flops,
    set_products,
)
from quintet.train.dry_run import dry_run
from quintet.train.engine import TorchEngine
from quintet.train.evaluation import introduction
from quintet.train.integrations.deepspeed import stays_eager
from quintet.train.intervals import Trial, intervals_of
from quintet.train.loss import Objective, build_objective
from quintet.train.model import spelling_notes
from quintet.train.parallel.group import timeout
from quintet.train.run import Run
from quintet.train.run_folder import (
    check_inputs,
    check_stages,
    check_tokens,
    find_run_folder,
    inputs_of,
    settle_batch,
    tokenizer_input,
    write_run_file,
)
from quintet.train.run_lock import RunLock
from quintet.train.schedule import learning_rate
from quintet.train.sizes import training_flops
from quintet.train.weights import seen_before, starting_weights


def set_up(
    config: RunConfig,
    reporter: Reporter,
    original: Original | None = None,
    trial: Trial | None = None,
    lock: RunLock | None = None,
    peak_flops: float | None = None,
) -> Run:
    """Build the run of ``config``, from its last checkpoint if there is one; a ``trial`` ends after its steps.

    Rank 0 takes the ``lock`` on the folder. ``peak_flops`` of the device, in FLOP/s, is measured if None. Raises
    UserError for each mistake that the user can fix: data, tokenizer, memory, another run in the folder.
    """
    check_training(config)
    config = broadcast_from_rank0(lambda: settle_batch(config, world_size()))
    folder, changes = broadcast_from_rank0(lambda: _take_folder(config, lock, reporter))
    compute = _choose_compute(config)
    prepared = rank_zero_first(lambda: prepare(config, progress=reporter.preparing))
    objective = build_objective(config, prepared.tokenizer)
    total = _schedule_steps(config, prepared)
    steps = total if trial is None else min(total, trial.steps)
    found = newest_whole(folder / "checkpoints", reporter.say, together=True)
    progress = broadcast_from_rank0(lambda: _progress(config, folder, prepared, compute.precision, found))
    compute = _apply_compute(compute, config, progress.precision)
    progress = broadcast_from_rank0(lambda: _write_folder(config, folder, original, prepared, progress, compute))
    start = starting_weights(config, prepared.tokenizer) if progress.step == 0 else None
    built = build_engine(config, prepared.tokenizer, objective, compute, start.weights if start else None)
    _dry_run(config, built, objective, prepared, trains=progress.step < steps)
    _resume(built, folder, progress)
    checkpointer, tracker = _writers(config, folder, progress, compute, reporter)
    flops = training_flops(config, prepared.tokenizer.vocab_size)
    run = Run(
        config=config,
        folder=folder,
        steps=steps,
        schedule_steps=total,
        compute=compute,
        tokenizer=prepared.tokenizer,
        data=prepared.train,
        validation=prepared.validation,
        objective=objective,
        model=built.model,
        loss_module=built.loss_module,
        engine=built.engine,
        optimizer=built.optimizer,
        scaler=built.scaler,
        checkpointer=checkpointer,
        tracker=tracker,
        reporter=reporter,
        bytes_per_token=prepared.tokenizer.bytes_per_token(),
        flops_per_token=flops.total,
        peak_flops=measure_peak_flops(compute) if peak_flops is None else peak_flops,
        peak_flops_is_measured=peak_flops is None,
        progress=progress,
        intervals=intervals_of(config, steps, prepared.train.epoch_samples),
        trial=trial,
    )
    notes = _notes_on_data(run, prepared) + (start.notes if start else getattr(built.model, "notes", []))
    _introduce(run, built, [*notes, *([f"share of peak: {flops.note}"] if flops.note else []), *changes])
    return run


def _take_folder(config: RunConfig, lock: RunLock | None, reporter: Reporter) -> tuple[Path, list[str]]:
    """Find and lock the folder of the run; return it with a line for each setting that changed."""
    folder, changes = find_run_folder(config)
    if lock is not None:
        lock.take(folder, reporter.say)
    return folder, [f"changed since the run began: {line}" for line in changes]


def _dry_run(config: RunConfig, built: Built, objective: Objective, prepared: Prepared, *, trains: bool) -> None:
    """Try two steps and a validation if the run ``trains``, so that an out-of-memory error comes at once."""
    if not isinstance(built.engine, TorchEngine):
        return
    # Sharded weights are tried in any case: the forward pass finds the outermost sharded module.
    if built.strategy.sharded or (trains and not config.evaluate.only):
        held_out = 0 if prepared.validation is None or config.evaluate.never else prepared.validation.samples
        dry_run(built.engine, objective, held_out)


def _schedule_steps(config: RunConfig, prepared: Prepared) -> int:
    """Return the steps of the whole run. Raises UserError if its schedule does not take that number."""
    total = total_steps(config.train, config.batch.samples, config.data.sequence_length, prepared.train.epoch_samples)
    for step in (1, total):  # a library may refuse its arguments here
        learning_rate(config.schedule, config.optimizer.lr, step, total)
    return total


def _resume(built: Built, folder: Path, progress: Progress) -> None:
    """Load the checkpoint that ``progress`` is from, if it is from one."""
    if progress.step:
        load_training(checkpoint_path(folder / "checkpoints", progress.step), built.engine)
        built.scaler.load_state_dict(progress.scaler or {})


def _choose_compute(config: RunConfig) -> Compute:
    compute = choose_compute(config.train)
    # A model of the transformers library has its dropout rate as a number, and each new number would recompile it.
    recompiles = dropout_changes(config.dropout_schedule) and config.model.kind == "huggingface"
    return replace(compute, compile=False) if recompiles or stays_eager(config.parallel) else compute


def _apply_compute(compute: Compute, config: RunConfig, precision: str) -> Compute:
    """Return ``compute`` in the ``precision`` of the run so far, and configure PyTorch and the C library for it."""
    make_deterministic(config.train.deterministic, compute.device)
    if compute.device.type == "cpu":
        keep_freed_memory()
    compute = keep_precision(compute, config.train, precision)
    set_products(compute)
    return compute


def _notes_on_data(run: Run, prepared: Prepared) -> list[str]:
    """Return lines about the data to print before the first step."""
    notes = prepared.lines() + spelling_notes(run.config, prepared.tokenizer)
    notes += stage_lines(run.config, prepared.train.order)
    if not run.progress.step:
        notes += broadcast_from_rank0(lambda: seen_before(run.config, prepared))
    if run.config.data.fixed_batch:
        notes.append(introduction(run.config, run.whole_batch(1)))
    return notes


def _write_folder(
    config: RunConfig,
    folder: Path,
    original: Original | None,
    prepared: Prepared,
    progress: Progress,
    compute: Compute,
) -> Progress:
    """Write the tokenizer and the run file into ``folder``; return ``progress`` with the tokenizer's digest."""
    if progress.step == 0:
        _save_tokenizer(prepared.tokenizer, folder / "tokenizer")
        progress = replace(progress, inputs=progress.inputs | tokenizer_input(folder))
    computes = f"{compute.precision} on {compute.device.type}, compile {compute.compile}"
    made_by = " ".join(f"{name} {version}" for name, version in prepared.libraries.items())
    stores = ", ".join(dict.fromkeys(store.manifest.key for store in prepared.stores))
    facts = {"stores": f"{stores}{f' by {made_by}' if made_by else ''}", **progress.inputs}
    write_run_file(config, folder, original, computes, facts)
    return progress


def _writers(
    config: RunConfig, folder: Path, progress: Progress, compute: Compute, reporter: Reporter
) -> tuple[Checkpointer, CompositeTracker]:
    """Return the checkpointer of the run and its trackers, which start after the checkpoint folder is known to work."""
    first = None if config.evaluate.only else progress.step  # checkpoints of later steps are damaged
    tracker = CompositeTracker(say=lambda line: reporter.failure("trackers", line, line))
    place, wait = folder / "checkpoints", timeout(config)
    checkpointer = Checkpointer(place, config.checkpoint, wait, first, compute.device, tracker.sync)
    system = system_figures(compute.device, compute.precision)
    # A run that starts again also drops the records of step 0.
    tracker.start(Tracked(config, folder, progress.step or -1, system, tracker.say, progress.due))
    return checkpointer, tracker


def _progress(config: RunConfig, folder: Path, prepared: Prepared, precision: str, found: Progress | None) -> Progress:
    """Return the progress of the run in ``folder``: that of the checkpoint ``found``, or of a new run in ``precision``.

    Raises UserError if the run was so far trained on other tokens, from other weights or with other stages than those
    of ``config``.
    """
    stages = stage_facts(config, prepared.train.order)
    fresh = Progress(
        tokenizer=prepared.tokenizer.fingerprint,
        corpus=prepared.fingerprint,
        stages=stages,
        inputs=inputs_of(config),
        precision=precision,
        libraries=prepared.libraries,
    )
    if found is None:
        return fresh
    check_inputs(config, found.inputs, folder, trains=True)
    check_tokens(folder, found, fresh, encoding_libraries(config, prepared.tokenizer))
    check_stages(folder, found, stages)
    precision = found.precision or precision
    return replace(found, stages=stages, precision=precision, libraries=prepared.libraries)


def _save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Save the tokenizer in the folder of a new run, so that the folder is enough to use the model."""
    with suppress(UserError):  # an earlier start may have left damaged files
        if folder.exists() and load_tokenizer(folder).fingerprint == tokenizer.fingerprint:
            return
    remove(folder)
    with new_folder(folder) as whole:
        tokenizer.save(whole)


def _parameters(total: int, trained: int) -> str:
    some = "" if trained == total else f", {trained / 1e6:.2f} M of them trained"
    return f"{total / 1e6:.2f} M parameters{some}"


def _spread(config: RunConfig) -> str:
    """Return in words the devices that the batch size was computed for, and those that there are now."""
    counted = config.train.batch_devices
    there = "device" if counted == 1 else "devices"
    if counted == world_size():
        return f"{counted} {there}"
    now = f"the {world_size()} that there are do" if world_size() > 1 else "the one that there is does"
    return f"the {counted} {there} of train.batch_devices; {now} the same batch"


def _introduce(run: Run, built: Built, notes: list[str]) -> None:
    """Print the choices for this run, before the first step."""
    say, config, compute = run.reporter.say, run.config, run.compute
    say(f"{config.name}: {_parameters(*built.parameters)}, vocabulary {run.tokenizer.vocab_size}, in {run.folder}")
    epochs = run.steps * config.batch.samples / run.data.epoch_samples
    say(
        f"data: {run.data.epoch_samples:,} samples of {config.data.sequence_length} tokens; "
        f"{run.steps:,} steps of {config.batch.tokens:,} tokens are {epochs:.2f} epochs"
    )
    if (each := config.train.batch_size_per_device) is not None:
        say(f"batch: {config.batch.samples:,} samples a step, {each:,} on each of {_spread(config)}")
    mode = "compiled" if compute.compile else "eager"
    say(
        f"compute: {compute.device} in {compute.precision} ({compute.reason}), {mode}; "
        f"matmul {run.peak_flops / 1e9:,.0f} GFLOP/s"
    )
    if not is_deterministic(config.train.deterministic, compute.device):
        say(
            "deterministic: no; a run that is stopped and continued is the same to rounding, and with "
            "train.deterministic=true, which is slower, bit for bit"
        )
    if world_size() > 1 or built.strategy.kind != "none":
        each = f"{built.shape.accumulation} × {built.shape.micro_batch_size} samples each"
        over = f"over {world_size()} processes" if world_size() > 1 else "in one process"
        say(f"parallel: {built.strategy.kind} {over} ({built.strategy.reason}), {each} a step")
    model = config.model
    bidirectional = model.kind == "transformer" and model.attention.kind == "bidirectional"
    if bidirectional and config.loss.kind == "next_token":
        say(
            "model.attention.kind: bidirectional lets each position see the token that it predicts, so the loss is "
            "meaningless; loss.kind: masked hides the tokens to predict"
        )
    if config.loss.kind == "masked" and config.sample.prompts:
        say("no samples: with loss.kind: masked the model learns to fill in tokens, not to continue texts")
    for note in notes:
        say(note)
    if run.progress.step:
        say(f"continuing from step {run.progress.step}")
