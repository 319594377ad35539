"""A trial of a run: everything that it will do, with small counts, in a folder of its own."""

from __future__ import annotations

import gc
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich.console import Console

from quintet.config.names import local_path
from quintet.config.parallel import HSDPConfig
from quintet.config.schema import RunConfig
from quintet.config.section import ConfigSection
from quintet.config.track import MLflowConfig, WandbConfig
from quintet.errors import UserError, gathered, one_line
from quintet.libraries import is_installed
from quintet.track.console import Reporter

if TYPE_CHECKING:
    from quintet.config.load import Loaded
    from quintet.config.provenance import Original

STEPS = 2
_SAMPLE_TOKENS = 32
_PREFIX = ".quintet-try-"
_STAGES = {
    "sample.prompts": "samples",
    "evaluate.text_modeling": "text modelling",
    "evaluate.tasks": "benchmarks",
    "evaluate.data_dir": "benchmarks",
    "evaluate": "validation",
    "track": "trackers",
    "checkpoint": "checkpoint",
    "data": "data",
    "tokenizer": "data",
}
"""The stage that a problem at a key belongs to, where it is found in one of those that hold several."""
_WIDE = ("run file", "training", "resume")


@dataclass(frozen=True)
class TrialStage:
    """A stage that was gone through, and what it did."""

    name: str
    seconds: float
    did: str

    def __str__(self) -> str:
        return f"{self.name:10} {self.seconds:6.1f} s  {self.did}"


@dataclass
class Tried:
    """The stages of a trial, and what failed on the way, each once, with its stage; ``notes`` say where the trial
    is not the run, and ``folder`` is its own, None where it is removed."""

    stages: list[TrialStage] = field(default_factory=list[TrialStage])
    failures: dict[tuple[str, str], None] = field(default_factory=dict[tuple[str, str], None])
    notes: list[str] = field(default_factory=list[str])
    folder: Path | None = None

    def fail(self, stage: str, error: BaseException | str) -> None:
        """Note that ``stage`` failed, a failure for each problem of ``error``."""
        if isinstance(error, UserError):
            problems = error.problems
        else:
            problems = (error if isinstance(error, str) else one_line(error, typed=True),)
        for problem in problems:
            found = _stage_of(problem) if stage in _WIDE else None
            self.failures[found or stage, problem] = None

    @contextmanager
    def catching(self, stage: str) -> Generator[None]:
        """Within, whatever is raised is noted as a failure of ``stage``, and the trial goes on."""
        try:
            yield
        except Exception as error:  # the next stage may fail, too, and all of it is told at once
            self.fail(stage, error)

    def attempt(self, name: str, work: Callable[[], str]) -> None:
        """Go through the stage ``name``, which ``work`` does and says."""
        began = monotonic()
        with self.catching(name):
            did = work()
            self.stages.append(TrialStage(name, monotonic() - began, did))


class _Listener(Reporter):
    """Collects what fails while the run goes on; shows a moving line, and none of the run's own lines."""

    def __init__(self, tried: Tried, console: Console) -> None:
        super().__init__(console)
        self._tried, self.prepared = tried, False

    def say(self, text: str) -> None:
        """Leave it out: `quintet train` says it."""

    def failure(self, name: str, why: str, line: str = "") -> None:
        """Note the failure."""
        self._tried.fail(name, why)

    def preparing(self, stage: str, done: int, total: int) -> None:
        """Note that something had to be prepared."""
        self.prepared = True
        super().preparing(stage, done, total)


def known_problems(config: RunConfig) -> tuple[list[str], list[str]]:
    """Return the problems that are found without running anything: mistakes, as arguments that another library does not
    take, and what is not on this machine, as sources and libraries."""
    from quintet.data.sources import check_sources
    from quintet.train.check import training_checks

    return gathered([lambda: check_sources(config), *training_checks(config)])


def try_run(config: RunConfig, loaded: Loaded | None, *, keep: bool) -> Tried:
    """Go through all that the run of ``config`` will do: two steps with what follows them, the second after a resume,
    the report and the export. What `known_problems` are about is left out. ``loaded`` is what ``config`` was read from,
    None for one that was not. With ``keep`` the folder of the trial stays.

    Raises UserError in one of several processes; what fails in the trial itself is told in its result.
    """
    from quintet.processes import world_size
    from quintet.train.run_folder import find_run_folder, settle_batch

    if world_size() > 1:
        raise UserError("--try: goes through the run in one process; start it without torchrun")
    mistakes, missing = known_problems(config)
    tried, known = Tried(), [*mistakes, *missing]
    with tried.catching("run folder"):  # what the run cannot go on from says nothing of the trial
        config = settle_batch(config, 1)
        find_run_folder(config)
    if known:
        tried.fail("run file", UserError(*known))
        shorter = _without(config, known)
        if shorter is None:
            return tried
        config = shorter
    with _folders(config, tried, keep=keep) as (folder, checkpoints):
        for change in (_alone, _offline):
            config, notes = change(config)
            tried.notes += notes if loaded is None else map(loaded.in_words, notes)
        config = _small(config, folder, checkpoints)
        listener = _Listener(tried, Console(stderr=True, highlight=False, soft_wrap=True))
        try:
            with redirect_stdout(sys.stderr):  # what other libraries print is no part of the answer
                _go_through(_Trial(None if loaded is None else loaded.original, config, tried, listener, folder))
        finally:
            listener.close()
    return tried


@dataclass
class _Trial:
    original: Original | None
    config: RunConfig
    tried: Tried
    listener: _Listener
    folder: Path
    peak_flops: float | None = None  # of the first step, so that the second need not measure again

    @property
    def run_folder(self) -> Path:
        return self.folder / self.config.name


def _go_through(trial: _Trial) -> None:
    from quintet.train.checkpoint_files import last_checkpoint

    tried, before = trial.tried, len(trial.tried.stages)
    tried.attempt("data", lambda: _prepare(trial))
    if len(tried.stages) == before:
        return
    tried.attempt("training", lambda: _first_step(trial))
    gc.collect()
    saved = last_checkpoint(trial.run_folder / "checkpoints")
    if saved is not None:
        tried.attempt("resume", lambda: _take_steps(trial, STEPS))
        gc.collect()
    elif not trial.config.evaluate.only:
        tried.notes.append("resume and export are not tried: there is no checkpoint")
    if (trial.run_folder / "run.yaml").is_file():
        _after_training(trial, exports=saved is not None)


def _after_training(trial: _Trial, *, exports: bool) -> None:
    tried = trial.tried
    wanted = {"report": ("matplotlib", True), "export": ("transformers", exports)}
    works: dict[str, Callable[[], str]] = {"report": lambda: _report(trial), "export": lambda: _export(trial)}
    for name, (library, possible) in wanted.items():
        if not is_installed(library):
            tried.notes.append(f"{name} is not tried: {library} is not installed")
        elif possible:
            tried.attempt(name, works[name])


def _prepare(trial: _Trial) -> str:
    """Prepare the tokens in the run's own cache, where they stay."""
    from quintet.data.prepare import prepare

    prepared = prepare(trial.config, progress=trial.listener.preparing)
    how = "tokens made, which the run will find" if trial.listener.prepared else "tokens found"
    return f"{how}, in {trial.config.data.cache_dir}: {prepared.train.epoch_samples:,} samples to train on"


def _first_step(trial: _Trial) -> str:
    """Take the first step and do what follows it. What cannot be measured is noted and left out of another attempt."""
    while True:
        try:
            return _take_steps(trial, 1)
        except UserError as error:
            shorter = _without(trial.config, error.problems)
            if shorter is None:
                raise
            trial.tried.fail("training", error)
            trial.config = shorter
            shutil.rmtree(trial.run_folder, ignore_errors=True)
            gc.collect()


def _take_steps(trial: _Trial, steps: int) -> str:
    """Train as `quintet train` does, up to ``steps``."""
    from quintet.track.jsonl import read_metrics
    from quintet.train.checkpoint_files import checkpoint_steps
    from quintet.train.intervals import Trial
    from quintet.train.loop import train

    outcome = train(trial.config, trial.listener, trial.original, Trial(steps), trial.peak_flops)
    if outcome.signal is not None:
        raise KeyboardInterrupt
    run = outcome.run
    trial.peak_flops = run.peak_flops
    done = [] if outcome.validation is None else [f"validation: {outcome.validation}"]
    if trial.config.evaluate.only:
        return "; ".join(["evaluate.only, so that nothing is trained", *done])
    records = [one for one in read_metrics(run.folder / "metrics.jsonl") if one["step"] == run.progress.step]
    last: dict[str, Any] = {name: value for one in records for name, value in one.items()}
    taken = f"step {run.progress.step} of {run.schedule_steps:,}"
    if "train/loss" in last:
        taken += f" at learning rate {last['train/lr']:.3g}, loss {last['train/loss']:.4f}"
    saved = checkpoint_steps(run.folder / "checkpoints")[-1:] == [run.progress.step]
    counts = {
        "checkpoint": saved,
        "validation": outcome.validation is not None,
        "samples": any((run.folder / "samples").glob(f"step-{run.progress.step:06d}*")),
        "text modelling": any(name.startswith("text/") for name in last),
        "text generation": any(name.startswith("generation/") for name in last),
        **{name: any(f"benchmark/{name}/" in one for one in last) for name in trial.config.evaluate.tasks},
    }
    return "; ".join([taken, *(name for name, there in counts.items() if there)])


def _report(trial: _Trial) -> str:
    from quintet.report.page import write_report

    return f"{write_report(trial.run_folder).stat().st_size / 1e6:,.1f} MB"


def _export(trial: _Trial) -> str:
    from quintet.export.huggingface import export_huggingface
    from quintet.train.trained import load_trained

    exported = export_huggingface(load_trained(str(trial.run_folder)), trial.folder / "export")
    return f"{exported.architecture} with {exported.parameters:,} parameters"


def _stage_of(problem: str) -> str | None:
    """The stage that ``problem`` belongs to by the key that it begins with, None where it says none."""
    key = problem.partition(":")[0]
    if "/checkpoints" in key:
        return "checkpoint"
    return next((stage for name, stage in _STAGES.items() if re.match(rf"{re.escape(name)}(?![\w-])", key)), None)


def _small(config: RunConfig, folder: Path, checkpoints: Path | None) -> RunConfig:
    """``config`` in ``folder``, with everything that follows a step after each of them. The length of the run stays,
    for batches and learning rates follow from it."""
    evaluate, sample, checkpoint = config.evaluate, config.sample, config.checkpoint
    changed = {
        "runs_dir": str(folder),
        "train": config.train.model_copy(update={"log_every": 1}),
        "evaluate": evaluate.model_copy(
            update={"every": evaluate.every and 1, "offset": 0, "tasks_every": None, "required": False}
        ),
        "sample": sample.model_copy(
            update={"every": sample.every and 1, "max_tokens": min(sample.max_tokens, _SAMPLE_TOKENS)}
        ),
        "checkpoint": checkpoint.model_copy(
            # A best one is saved before the samples, which a checkpoint that cannot be written is not to hide.
            update={
                "every": 1,
                "every_epochs": None,
                "keep_best": False,
                "dir": None if checkpoints is None else str(checkpoints),
            }
        ),
    }
    return config.model_copy(update=changed)


def _alone(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """``config`` for one process, and a line on what it leaves untried where the run asks for several."""
    parallel, devices = config.parallel, config.train.batch_devices or 1
    key = "parallel.kind" if parallel.kind not in ("auto", "none") else "train.batch_devices" if devices > 1 else None
    if key is None:
        return config, []
    if isinstance(parallel, HSDPConfig) and parallel.shard_size is not None:  # one process is a group of one
        config = config.model_copy(update={"parallel": parallel.model_copy(update={"shard_size": 1})})
    value = parallel.kind if key == "parallel.kind" else f"{devices} devices"
    return config, [
        f"{key}: {value} tried in one process, which holds the whole model and takes the whole batch; the start of "
        "several, what they send each other and the memory of each are not tried"
    ]


def _offline(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """``config`` with trackers that write into the trial's folder alone, and a line for each that is changed."""
    trackers: list[ConfigSection] = []
    notes: list[str] = []
    for index, one in enumerate(config.track):
        if isinstance(one, WandbConfig) and one.arguments.get("mode") != "disabled":
            if one.arguments.get("mode") != "offline":
                notes.append(f"track[{index}]: wandb runs offline here: nothing is sent, and its server is not tried")
            left_out = ("dir", "id", "resume", "resume_from", "fork_from")
            arguments = {name: value for name, value in one.arguments.items() if name not in left_out}
            trackers.append(one.model_copy(update={"arguments": arguments | {"mode": "offline"}}))
        elif isinstance(one, MLflowConfig) and one.tracking_uri is not None:
            notes.append(f"track[{index}]: mlflow writes a file here: nothing is sent, and its server is not tried")
            trackers.append(one.model_copy(update={"tracking_uri": None}))
        else:
            trackers.append(one)
    changed: dict[str, Any] = {"track": tuple(trackers)}
    asked = getattr(config.trainer, "arguments", {})
    told = sorted({"report_to", "logger", "default_root_dir"} & set(asked))
    if told:
        arguments = {name: value for name, value in asked.items() if name not in told}
        changed["trainer"] = config.trainer.model_copy(update={"arguments": arguments})
        notes.append(f"trainer.arguments: {' and '.join(told)} left out here: nothing is sent")
    return config.model_copy(update=changed), notes


def _without(config: RunConfig, problems: Sequence[str]) -> RunConfig | None:
    """``config`` without the parts that ``problems`` are about, None where one is about what no run does without."""
    evaluate: dict[str, Any] = {}
    changed: dict[str, Any] = {}
    for problem in problems:
        key, _, why = problem.partition(":")
        index = re.search(r"\[(\d+)\]", key)
        if key.startswith("sample.prompts"):
            texts = changed.get("sample", config.sample).prompts
            gone = None if index is None else config.sample.prompts[int(index[1])]
            kept = () if gone is None else tuple(text for text in texts if text != gone)
            changed["sample"] = config.sample.model_copy(update={"prompts": kept})
        elif key.startswith("track") and index is not None:
            trackers = changed.get("track", config.track)
            changed["track"] = tuple(one for one in trackers if one is not config.track[int(index[1])])
        elif key.startswith("evaluate.text_modeling"):
            evaluate["text_modeling"] = None
        elif key == "evaluate.best_by":
            evaluate["best_by"] = None
        elif key in ("evaluate.tasks", "evaluate.data_dir"):
            tasks = evaluate.get("tasks", config.evaluate.tasks)
            named = [task for task in tasks if re.search(rf"(?<![\w-]){re.escape(task)}(?![\w-])", why)]
            evaluate["tasks"] = tuple(task for task in tasks if task not in (named or tasks))
        else:
            return None
    changed["evaluate"] = config.evaluate.model_copy(update=evaluate)
    shorter = config.model_copy(update=changed)
    return None if shorter == config else shorter


@contextmanager
def _folders(config: RunConfig, tried: Tried, *, keep: bool) -> Generator[tuple[Path, Path | None]]:
    """The folder of the trial and, where checkpoints are to lie elsewhere, one for them: where the run's own will be,
    so that a disk that is full or cannot be written is noticed. Both are removed at the end unless ``keep``."""
    made: list[Path] = []
    asked = {"runs_dir": config.runs_dir, "checkpoint.dir": config.checkpoint.dir}
    for key, path in asked.items():
        if path is not None:
            with tried.catching("run folder"):
                made.append(_folder_near(local_path(path).absolute(), key))
                asked[key] = str(made[-1])
                continue
        asked[key] = None
    folder = Path(asked["runs_dir"] or tempfile.mkdtemp(prefix=_PREFIX))
    try:
        yield folder, None if asked["checkpoint.dir"] is None else Path(asked["checkpoint.dir"])
    finally:
        tried.folder = folder if keep else None
        if not keep:
            for one in {folder, *made}:
                shutil.rmtree(one, ignore_errors=True)


def _folder_near(path: Path, key: str) -> Path:
    """A new folder in ``path``, or in the nearest folder above it that is there."""
    try:
        there = next(one for one in (path, *path.parents) if one.exists())
        return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=there))
    except OSError as error:
        raise UserError(
            f"{key}: {path} cannot be written ({error.strerror}: {error.filename}); name another folder"
        ) from error
