"""A trial of a run, `quintet check --try`: everything that it will do, with small counts, in a folder of its own."""

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
from quintet.errors import UserError, collect_problems, one_line
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
"""The stage that a problem with a key belongs to, if it was found in one of the stages of `_WIDE`."""
_WIDE = ("run file", "training", "resume")  # stages that include others


@dataclass(frozen=True)
class TrialStage:
    """A completed stage, and what it ``did``."""

    name: str
    seconds: float
    did: str

    def __str__(self) -> str:
        return f"{self.name:10} {self.seconds:6.1f} s  {self.did}"


@dataclass
class Tried:
    """The completed stages of a trial and its failures, each once and with its stage. ``notes`` say how the trial
    differs from the run; ``folder`` is that of the trial, None if it is removed."""

    stages: list[TrialStage] = field(default_factory=list[TrialStage])
    failures: dict[tuple[str, str], None] = field(default_factory=dict[tuple[str, str], None])
    notes: list[str] = field(default_factory=list[str])
    folder: Path | None = None

    def fail(self, stage: str, error: BaseException | str) -> None:
        """Record a failure of ``stage`` for each problem of ``error``."""
        if isinstance(error, UserError):
            problems = error.problems
        else:
            problems = (error if isinstance(error, str) else one_line(error, typed=True),)
        for problem in problems:
            narrow = _stage_of(problem) if stage in _WIDE else None
            self.failures[narrow or stage, problem] = None

    @contextmanager
    def catching(self, stage: str) -> Generator[None]:
        """Within, record any error as a failure of ``stage``, and continue the trial."""
        try:
            yield
        except Exception as error:  # later stages may fail too, and all failures are reported at once
            self.fail(stage, error)

    def attempt(self, name: str, work: Callable[[], str]) -> None:
        """Call ``work``, the stage ``name``, which returns what it did."""
        start = monotonic()
        with self.catching(name):
            did = work()
            self.stages.append(TrialStage(name, monotonic() - start, did))


class _Listener(Reporter):
    """Collects the failures of a run; it shows the progress, but not the run's own lines."""

    def __init__(self, tried: Tried, console: Console) -> None:
        super().__init__(console)
        self._tried, self.prepared = tried, False

    def say(self, text: str) -> None:
        """Print nothing."""

    def failure(self, name: str, why: str, line: str = "") -> None:
        """Record the failure."""
        self._tried.fail(name, why)

    def preparing(self, stage: str, done: int, total: int) -> None:
        """Record that something had to be prepared."""
        self.prepared = True
        super().preparing(stage, done, total)


def known_problems(config: RunConfig) -> tuple[list[str], list[str]]:
    """Return the problems that are found without running anything: mistakes, as wrong arguments of a library, and what
    is not on this machine, as sources and libraries."""
    from quintet.data.sources import check_sources
    from quintet.train.check import training_checks

    return collect_problems([lambda: check_sources(config), *training_checks(config)])


def try_run(config: RunConfig, loaded: Loaded | None, *, keep: bool) -> Tried:
    """Try everything that the run of ``config`` will do: two steps with what follows them, the second after a resume,
    the report and the export. Parts with `known_problems` are skipped. ``loaded`` is the source of ``config``, None if
    it was made in Python. With ``keep`` the folder of the trial is kept.

    Raises UserError in one of several processes; failures of the trial itself are in the result.
    """
    from quintet.processes import world_size
    from quintet.train.run_folder import find_run_folder, settle_batch

    if world_size() > 1:
        raise UserError("--try: goes through the run in one process; start it without torchrun")
    mistakes, missing = known_problems(config)
    tried, known = Tried(), [*mistakes, *missing]
    with tried.catching("run folder"):  # a run that cannot be continued does not stop the trial
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
            with redirect_stdout(sys.stderr):  # other libraries may print to standard output
                _run_stages(_Trial(None if loaded is None else loaded.original, config, tried, listener, folder))
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
    peak_flops: float | None = None  # measured in the first step, for the second

    @property
    def run_folder(self) -> Path:
        return self.folder / self.config.name


def _run_stages(trial: _Trial) -> None:
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
    needs = {"report": ("matplotlib", True), "export": ("transformers", exports)}
    works: dict[str, Callable[[], str]] = {"report": lambda: _report(trial), "export": lambda: _export(trial)}
    for name, (library, possible) in needs.items():
        if not is_installed(library):
            tried.notes.append(f"{name} is not tried: {library} is not installed")
        elif possible:
            tried.attempt(name, works[name])


def _prepare(trial: _Trial) -> str:
    """Prepare the tokens in the run's own cache, where they are kept."""
    from quintet.data.prepare import prepare

    prepared = prepare(trial.config, progress=trial.listener.preparing)
    how = "tokens made, which the run will find" if trial.listener.prepared else "tokens found"
    return f"{how}, in {trial.config.data.cache_dir}: {prepared.train.epoch_samples:,} samples to train on"


def _first_step(trial: _Trial) -> str:
    """Take the first step and do what follows it. If something cannot be measured, record that and try without it."""
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
    records = [record for record in read_metrics(run.folder / "metrics.jsonl") if record["step"] == run.progress.step]
    last: dict[str, Any] = {name: value for record in records for name, value in record.items()}
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
        **{name: any(f"benchmark/{name}/" in metric for metric in last) for name in trial.config.evaluate.tasks},
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
    """Return the stage that ``problem`` belongs to by the key that it begins with; None if there is none."""
    key = problem.partition(":")[0]
    if "/checkpoints" in key:
        return "checkpoint"
    return next((stage for name, stage in _STAGES.items() if re.match(rf"{re.escape(name)}(?![\w-])", key)), None)


def _small(config: RunConfig, folder: Path, checkpoints: Path | None) -> RunConfig:
    """Return ``config`` in ``folder`` with small counts, such that each step is followed by everything. The length of
    the run is kept, because batches and learning rates depend on it."""
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
            # The best checkpoint would be saved before the samples, and a failure to write it would hide theirs.
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
    """Return ``config`` for one process, and a line on what is not tried if the run asks for several."""
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
    """Return ``config`` with trackers that write only into the folder of the trial, and a line for each change."""
    trackers: list[ConfigSection] = []
    notes: list[str] = []
    for index, tracker in enumerate(config.track):
        if isinstance(tracker, WandbConfig) and tracker.arguments.get("mode") != "disabled":
            if tracker.arguments.get("mode") != "offline":
                notes.append(f"track[{index}]: wandb runs offline here: nothing is sent, and its server is not tried")
            dropped = ("dir", "id", "resume", "resume_from", "fork_from")
            arguments = {name: value for name, value in tracker.arguments.items() if name not in dropped}
            trackers.append(tracker.model_copy(update={"arguments": arguments | {"mode": "offline"}}))
        elif isinstance(tracker, MLflowConfig) and tracker.tracking_uri is not None:
            notes.append(f"track[{index}]: mlflow writes a file here: nothing is sent, and its server is not tried")
            trackers.append(tracker.model_copy(update={"tracking_uri": None}))
        else:
            trackers.append(tracker)
    changed: dict[str, Any] = {"track": tuple(trackers)}
    arguments = getattr(config.trainer, "arguments", {})
    reporting = sorted({"report_to", "logger", "default_root_dir"} & set(arguments))
    if reporting:
        kept = {name: value for name, value in arguments.items() if name not in reporting}
        changed["trainer"] = config.trainer.model_copy(update={"arguments": kept})
        notes.append(f"trainer.arguments: {' and '.join(reporting)} left out here: nothing is sent")
    return config.model_copy(update=changed), notes


def _without(config: RunConfig, problems: Sequence[str]) -> RunConfig | None:
    """Return ``config`` without the parts that ``problems`` are about; None if a run cannot do without one of them."""
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
            changed["track"] = tuple(other for other in trackers if other is not config.track[int(index[1])])
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
    """Yield the folder of the trial, and one for checkpoints if `checkpoint.dir` is set: beside the run's own folders,
    so that a disk that is full or read-only is noticed. Both are removed at the end unless ``keep``."""
    made: list[Path] = []
    folders = {"runs_dir": config.runs_dir, "checkpoint.dir": config.checkpoint.dir}
    for key, path in folders.items():
        if path is not None:
            with tried.catching("run folder"):
                made.append(_folder_near(local_path(path).absolute(), key))
                folders[key] = str(made[-1])
                continue
        folders[key] = None
    folder = Path(folders["runs_dir"] or tempfile.mkdtemp(prefix=_PREFIX))
    try:
        yield folder, None if folders["checkpoint.dir"] is None else Path(folders["checkpoint.dir"])
    finally:
        tried.folder = folder if keep else None
        if not keep:
            for path in {folder, *made}:
                shutil.rmtree(path, ignore_errors=True)


def _folder_near(path: Path, key: str) -> Path:
    """Create a new folder in ``path``, or in the nearest folder above it that exists."""
    try:
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=existing))
    except OSError as error:
        raise UserError(
            f"{key}: {path} cannot be written ({error.strerror}: {error.filename}); name another folder"
        ) from error
