"""The functions of `import quintet`, by which the command line, scripts and notebooks do the same.

Nothing heavy is imported before a function is called.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from quintet.config.load import Loaded, Refused
    from quintet.config.schema import RunConfig
    from quintet.data.prepare import Prepared
    from quintet.evaluate.language_model import LanguageModel
    from quintet.model.build import Weights
    from quintet.plan.device_plan import RunPlan
    from quintet.results import Run
    from quintet.track.console import Reporter
    from quintet.trial import Tried

_LOADED = "_loaded"  # the attribute of a config with the files that it was read from


class Checked(NamedTuple):
    """A run without mistakes: a summary in one line, notes for its user, and what is not on this machine."""

    summary: str
    notes: tuple[str, ...] = ()
    not_here: tuple[str, ...] = ()

    def __str__(self) -> str:
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([f"OK {self.summary}", *notes, *lines_not_here(self.not_here)])

    __repr__ = __str__


def lines_not_here(missing: Iterable[str]) -> list[str]:
    """Return the lines on what a run file names and this machine lacks."""
    from quintet.errors import NOT_HERE

    return [f"{NOT_HERE}: {line}" for line in missing]


def load_config(
    paths: str | Path | Sequence[str | Path],
    overrides: str | Sequence[str] | Mapping[str, Any] = (),
    *,
    dialect: str | None = None,
    config_folder: str | Path | None = None,
    purpose: Literal["train", "prepare"] = "train",
) -> RunConfig:
    """Return the config of one or more run files, merged from left to right, then changed by ``overrides``.

    A run folder means the run file in it. Files of a ``dialect`` are translated; it is recognised by its keys if None.
    ``overrides`` are one or several ``key.path=value`` as on the command line, or values by key path. A file with a
    Hydra `defaults` list finds the others in ``config_folder``. With the purpose ``prepare`` a file may lack what only
    training needs. Raises UserError with all mistakes, each with its file and line.

    >>> config = load_config("examples/quickstart.yaml", {"train.steps": 200})
    >>> config.name, config.train.steps
    ('quickstart', 200)
    """
    from quintet.config.load import Reading, load_run_config
    from quintet.config.names import RUN_FILE, is_run, local_path
    from quintet.files import to_json

    files = [local_path(str(path)) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    files = [file / RUN_FILE if is_run(file) else file for file in files]
    if isinstance(overrides, str):
        overrides = [overrides]
    elif isinstance(overrides, Mapping):
        overrides = [f"{key}={to_json(value)}" for key, value in overrides.items()]
    folder = None if config_folder is None else local_path(str(config_folder))
    loaded = load_run_config(files, list(overrides), Reading(dialect, folder, purpose))
    return with_source(loaded)


def with_source(loaded: Loaded) -> RunConfig:
    """Return the config that was ``loaded``, from which `loaded_of` returns ``loaded``."""
    # Not a field of the config, because a run with the same values from another file is the same run.
    vars(loaded.config)[_LOADED] = loaded
    return loaded.config


def loaded_of(config: RunConfig) -> Loaded | None:
    """Return the files, lines and notes that ``config`` was read from; None if it was made or changed in Python."""
    loaded = vars(config).get(_LOADED)
    return loaded if loaded is not None and loaded.config is config else None


def check_here(config: RunConfig) -> None:
    """Check that ``config`` was read completely, though some files that it names may not be on this machine.

    Raises UserError if it was not, with everything else that is missing here or wrong.
    """
    from quintet.config.provenance import RunFileError

    loaded = loaded_of(config)
    if loaded is None or not loaded.not_here:
        return
    mistakes, missing = _known_problems(config, on_hub=False)
    raise RunFileError([*loaded.placed(mistakes), *loaded.lacking(missing)])


def beside_mistakes(error: Refused) -> Refused:
    """Return ``error`` with further mistakes and what is not on this machine, in the valid part of its run file."""
    return error if error.left is None else error.beside(*_known_problems(error.left.config))


@contextmanager
def _in_words_of_file(config: RunConfig) -> Generator[None]:
    """Within, give a UserError the keys and lines of the dialect's file that ``config`` was read from."""
    from quintet.errors import UserError

    loaded = loaded_of(config)
    try:
        yield
    except UserError as error:
        if loaded is None or loaded.dialect is None:
            raise
        raise loaded.located(error) from None


def _reporter(config: RunConfig, quiet: bool = False) -> Reporter:
    """Return the reporter of a run, which prints only in the first of several processes, and nothing if ``quiet``."""
    from rich.console import Console

    from quintet.processes import is_rank_zero
    from quintet.track.console import Reporter

    if quiet or not is_rank_zero():
        return Reporter(Console(quiet=True))
    loaded = loaded_of(config)
    return Reporter(words=str if loaded is None else loaded.in_words)


def check(config: RunConfig, *, strict: bool = False) -> Checked:
    """Check what the schema cannot know and is quick to find: missing sources, arguments of other libraries.

    The result has a summary of the run, notes, and what is not on this machine, because a run file may be written for
    another one. Raises UserError with all mistakes; if ``strict``, what is not on this machine is a mistake. `try_run`
    tries the run itself.

    >>> print(check(load_config("examples/quickstart.yaml")))
    OK quickstart: transformer of 6 layers, width 256; bpe tokenizer; python_stdlib; 700 steps, 16 × 256 tokens a step
    """
    from quintet.config.provenance import RunFileError
    from quintet.errors import NOT_HERE, UserError

    loaded = loaded_of(config)
    mistakes, missing = _known_problems(config)
    if loaded is None:
        if mistakes or (strict and missing):
            raise UserError(*mistakes, *(f"{line} ({NOT_HERE})" for line in missing))
        return Checked(summary(config), (), tuple(missing))
    absent = loaded.lacking(missing)
    if mistakes or (strict and absent):
        wrong = loaded.placed(mistakes)
        raise RunFileError([*wrong, *(line.not_here for line in absent)] if strict else wrong, () if strict else absent)
    return Checked(summary(config), loaded.notes, tuple(map(str, absent)))


def _known_problems(config: RunConfig, *, on_hub: bool = True) -> tuple[list[str], list[str]]:
    """Return the mistakes that are found without running the run, and what is not on this machine; what can be fetched
    from the hub counts only if ``on_hub``."""
    from quintet.errors import collect_problems
    from quintet.train.check import check_inputs_here
    from quintet.trial import known_problems

    mistakes, missing = known_problems(config)
    _, more = collect_problems([lambda: check_inputs_here(config, on_hub=on_hub)])
    keys = {line.partition(": ")[0] for line in missing}
    return mistakes, [*missing, *(line for line in more if line.partition(": ")[0] not in keys)]


def summary(config: RunConfig) -> str:
    """Return a line on the run: its model, its data and its length."""
    model, train, batch = config.model, config.train, config.batch
    lengths = {"steps": train.steps, "tokens": train.tokens, "epochs": train.epochs}
    length = " or ".join(f"{count:,} {unit}" for unit, count in lengths.items() if count is not None)
    sources = ", ".join(dict.fromkeys(source.kind for source in config.data.sources))
    size = f"of {model.layers} layers, width {model.width}" if model.kind == "transformer" else model.name_or_path
    per_device = train.batch_size_per_device is not None and train.batch_devices is None
    each = " on each device" if per_device else ""
    return (
        f"{config.name}: {model.kind} {size}; {config.tokenizer.kind} tokenizer; {sources}; "
        f"{length}, {batch.samples} × {batch.sequence_length} tokens a step{each}"
    )


def try_run(config: RunConfig, *, keep: bool = False) -> Tried:
    """Try everything that the run will do, with small counts, and return what was done and what failed.

    The trial takes two steps, validates, samples, measures benchmarks, writes a checkpoint, resumes, and makes the
    report and the export, in a folder of its own, which is kept if ``keep``. Failures are in the result and are not
    raised.
    """
    from quintet.trial import try_run as run_trial

    check_here(config)
    return run_trial(config, loaded_of(config), keep=keep)


def plan(
    config: RunConfig,
    *,
    devices: int | None = None,
    device_memory: str = "80GiB",
    devices_per_node: int = 8,
    peak_flops: float = 989e12,
    utilisation: float = 0.7,
    memory_bandwidth: float = 3.35e12,
    node_bandwidth: float = 450e9,
    bandwidth: float = 50e9,
) -> RunPlan:
    """Return the cost of the run: parameters, FLOPs, tokens, memory, time and disk. Nothing is trained.

    A step is simulated without numbers on this device, or on ``devices`` devices, which need not be here. The other
    arguments describe these; their defaults are an H100 with 400 Gbit/s per device between nodes. They are its FLOP/s,
    of which matrix products reach the share ``utilisation``, and the bytes/s of its memory, to devices of the same node
    and to other nodes. Raises UserError for an impossible run.

    >>> plan(load_config("examples/quickstart.yaml")).parameters
    5868800
    """
    from quintet.plan.device_plan import RunPlan
    from quintet.plan.machine import Machine, parse_bytes

    absent = [] if (loaded := loaded_of(config)) is None else list(map(str, loaded.not_here))
    with _in_words_of_file(config):
        config = config.on_devices(devices or 1)
        memory = parse_bytes(device_memory, "device_memory")
        if devices is None:
            return RunPlan.here(config).lacking(absent)
        on_accelerator = config.train.device != "cpu"
        speeds = (peak_flops, utilisation, memory_bandwidth, node_bandwidth, bandwidth)
        machine = Machine(devices, devices_per_node, memory, *speeds, accelerator=on_accelerator)
        return RunPlan.of(config, machine).lacking(absent)


def prepare(config: RunConfig, *, quiet: bool = False, reporter: Reporter | None = None) -> Prepared:
    """Tokenise the sources of the run into its cache, and return its tokenizer and data.

    A second call, or one after a kill, does only what is missing. Raises UserError for sources that are missing,
    damaged or too small.
    """
    from quintet.data.prepare import prepare as prepare_data

    check_here(config)
    with _in_words_of_file(config):
        reporter = reporter or _reporter(config, quiet)
        try:
            return prepare_data(config, progress=reporter.preparing)
        finally:
            reporter.close()


def train(config: RunConfig, *, quiet: bool = False, report: bool = True, peak_flops: float | None = None) -> Run:
    """Train the run of ``config``, or continue it from its last checkpoint; a finished run stays as it is.

    The run folder is the same as that of `quintet train`, byte for byte. An interrupt stops the run with a checkpoint,
    and the same call continues it. ``quiet`` prints no progress; without ``report`` no page is written at the end. The
    model FLOPs utilisation refers to ``peak_flops`` of a device, in FLOP/s, which are measured if None. Raises
    UserError for everything that you can mend: data, tokenizer, memory, another run in the same folder.
    """
    from quintet.errors import UserError, printable
    from quintet.processes import is_rank_zero
    from quintet.results import Run
    from quintet.train.check import check_training
    from quintet.train.loop import train as train_run

    check_here(config)
    loaded = loaded_of(config)
    try:
        check_training(config)
    except UserError as error:
        raise error if loaded is None else loaded.located(error) from None
    reporter = _reporter(config, quiet)
    for note in () if loaded is None else loaded.notes:  # in the words of the file
        reporter.console.print(printable(f"note: {note}", lines=True), markup=False)
    with _in_words_of_file(config):
        try:
            outcome = train_run(config, reporter, None if loaded is None else loaded.original, peak_flops=peak_flops)
        finally:
            reporter.close()
        run = Run.ended(outcome, reporter)
        if report and run.signal is None and not config.evaluate.only and is_rank_zero():
            write_page(run.folder, reporter)
        return run


def write_page(folder: Path, reporter: Reporter) -> None:
    """Write the report of the run in ``folder`` and print its path; do nothing without matplotlib."""
    from quintet.errors import one_line
    from quintet.libraries import is_installed

    if not is_installed("matplotlib"):
        return
    from quintet.report.page import write_report

    try:
        reporter.say(f"report: {write_report(folder)}")
    except Exception as error:  # the training has succeeded, whatever becomes of its report
        reporter.say(f"no report: {one_line(error)}; quintet report {folder}")


def load(
    run: Run | str | Path,
    checkpoint: str | int = "latest",
    *,
    precision: Literal["fp32", "tf32", "bf16", "fp16", "auto"] | None = None,
    weights: Weights = "wide",
) -> LanguageModel:
    """Return the model of a run, of one of its checkpoints, of an exported folder or of a Hugging Face checkpoint.

    ``run`` is a `Run`, a run folder or the name of a run under runs/, a folder `checkpoints/step-…` in one, the folder
    of a Hugging Face checkpoint or its name on the hub. ``checkpoint`` is latest, best (lowest validation loss) or a
    step. If ``precision`` is None, a run is computed in the precision of its training, another checkpoint in fp32; auto
    takes the fastest safe precision for the latter, as `quintet generate` does.

    The ``weights`` of matrix products are wide (fp32), narrow (in the precision of the products, as in `quintet
    generate`), int8 or float8 (rounded to a byte each). With narrow weights all results are the same, but a direct call
    of ``model`` needs ``compute.autocast()``. Raises UserError if there is no such run or checkpoint.
    """
    from quintet.results import Run
    from quintet.train.trained import load_model

    return load_model(str(run.folder if isinstance(run, Run) else run), str(checkpoint), precision, weights=weights)
