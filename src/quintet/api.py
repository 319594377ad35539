"""The functions of `import quintet`: what the command line does, for scripts and notebooks.

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

_LOADED = "_loaded"  # where a config that was read keeps the files that it is from


class Checked(NamedTuple):
    """A run in which no mistake was found: the run in a line, notes on what its user should know, and what it needs
    that is not on this machine."""

    summary: str
    notes: tuple[str, ...] = ()
    not_here: tuple[str, ...] = ()

    def __str__(self) -> str:
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([f"OK {self.summary}", *notes, *lines_not_here(self.not_here)])

    __repr__ = __str__


def lines_not_here(found: Iterable[str]) -> list[str]:
    """Return the lines that tell what a run file names and this machine lacks."""
    from quintet.errors import NOT_HERE

    return [f"{NOT_HERE}: {line}" for line in found]


def load_config(
    paths: str | Path | Sequence[str | Path],
    overrides: str | Sequence[str] | Mapping[str, Any] = (),
    *,
    dialect: str | None = None,
    config_folder: str | Path | None = None,
    purpose: Literal["train", "prepare"] = "train",
) -> RunConfig:
    """Return the config of one or more run files, merged from left to right, then changed by ``overrides``.

    A run folder stands for the run file in it, and files of a ``dialect``, found out from their keys when None, are
    translated. ``overrides`` are ``key.path=value`` as on the command line, one or several, or values by key path.
    ``config_folder`` is where a file with a Hydra `defaults` list finds the others; a file that is read to ``prepare``
    data alone may leave out what training needs. Raises UserError with every mistake, each with its file and line.

    >>> config = load_config("examples/quickstart.yaml", {"train.steps": 200})
    >>> config.name, config.train.steps
    ('quickstart', 200)
    """
    from quintet.config.load import Reading, load_run_config
    from quintet.config.names import RUN_FILE, is_run, local_path
    from quintet.files import to_json

    given = [paths] if isinstance(paths, str | Path) else paths
    files = [local_path(str(one)) for one in given]
    files = [file / RUN_FILE if is_run(file) else file for file in files]
    if isinstance(overrides, str):
        overrides = [overrides]
    elif isinstance(overrides, Mapping):
        overrides = [f"{key}={to_json(value)}" for key, value in overrides.items()]
    folder = None if config_folder is None else local_path(str(config_folder))
    loaded = load_run_config(files, list(overrides), Reading(dialect, folder, purpose))
    return remembering(loaded)


def remembering(loaded: Loaded) -> RunConfig:
    """Return the config that was ``loaded``, such that `loaded_of` finds from it what it was read from."""
    # No field of the config, for a run with the same values from another file is the same run.
    vars(loaded.config)[_LOADED] = loaded
    return loaded.config


def loaded_of(config: RunConfig) -> Loaded | None:
    """Return what ``config`` was read from: files, lines and notes; None if it was made or changed in Python."""
    loaded = vars(config).get(_LOADED)
    return loaded if loaded is not None and loaded.config is config else None


def check_here(config: RunConfig) -> None:
    """Check that ``config`` was read from a file that does without nothing that it names.

    Raises UserError where something of it is not on this machine: with all the rest that is missing here or wrong.
    """
    from quintet.config.provenance import RunFileError

    loaded = loaded_of(config)
    if loaded is None or not loaded.not_here:
        return
    mistakes, missing = _known_problems(config, on_hub=False)
    raise RunFileError([*loaded.placed(mistakes), *loaded.lacking(missing)])


def beside_mistakes(error: Refused) -> Refused:
    """Return ``error`` with what else is wrong, or not on this machine, of what its mistakes leave of the run file."""
    return error if error.left is None else error.beside(*_known_problems(error.left.config))


@contextmanager
def _in_words_of_file(config: RunConfig) -> Generator[None]:
    """Within, a UserError speaks in the keys and lines of the dialect's file that ``config`` was read from."""
    from quintet.errors import UserError

    loaded = loaded_of(config)
    try:
        yield
    except UserError as error:
        if loaded is None or loaded.dialect is None:
            raise
        raise loaded.located(error) from None


def _reporter(config: RunConfig, quiet: bool = False) -> Reporter:
    """Return what says how a run goes on: of several processes the first one speaks, and none when ``quiet``."""
    from rich.console import Console

    from quintet.processes import is_rank_zero
    from quintet.track.console import Reporter

    if quiet or not is_rank_zero():
        return Reporter(Console(quiet=True))
    loaded = loaded_of(config)
    return Reporter(words=str if loaded is None else loaded.in_words)


def check(config: RunConfig, *, strict: bool = False) -> Checked:
    """Check what costs little to find and the schema cannot know: missing sources, arguments of other libraries.

    The result says the run in a line, with notes on it and with what is not on this machine, for a run file may be
    written for another. Raises UserError with every mistake, which is also what is not here if ``strict``. `try_run`
    goes through the run itself.

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
        raise RunFileError([*wrong, *(one.not_here for one in absent)] if strict else wrong, () if strict else absent)
    return Checked(summary(config), loaded.notes, tuple(map(str, absent)))


def _known_problems(config: RunConfig, *, on_hub: bool = True) -> tuple[list[str], list[str]]:
    """The mistakes of a run that are found without running it, and what it needs that is not on this machine; what can
    still be fetched counts only ``on_hub``."""
    from quintet.errors import gathered
    from quintet.train.check import check_inputs_here
    from quintet.trial import known_problems

    mistakes, missing = known_problems(config)
    _, more = gathered([lambda: check_inputs_here(config, on_hub=on_hub)])
    keys = {line.partition(": ")[0] for line in missing}
    return mistakes, [*missing, *(line for line in more if line.partition(": ")[0] not in keys)]


def summary(config: RunConfig) -> str:
    """Return the run in one line: what is trained, on what, how long."""
    model, train, batch = config.model, config.train, config.batch
    lengths = {"steps": train.steps, "tokens": train.tokens, "epochs": train.epochs}
    length = " or ".join(f"{count:,} {unit}" for unit, count in lengths.items() if count is not None)
    sources = ", ".join(dict.fromkeys(source.kind for source in config.data.sources))
    size = f"of {model.layers} layers, width {model.width}" if model.kind == "transformer" else model.name_or_path
    settled = train.batch_size_per_device is None or train.batch_devices is not None
    each = "" if settled else " on each device"
    return (
        f"{config.name}: {model.kind} {size}; {config.tokenizer.kind} tokenizer; {sources}; "
        f"{length}, {batch.samples} × {batch.sequence_length} tokens a step{each}"
    )


def try_run(config: RunConfig, *, keep: bool = False) -> Tried:
    """Go through all that the run will do, with small counts, and return what was done and what failed.

    That is two steps, validation, samples, benchmarks, a checkpoint, a resume, the report and the export, in a folder
    of their own, which stays if ``keep``. What fails is in the result and is not raised.
    """
    from quintet.trial import try_run as go_through

    check_here(config)
    return go_through(config, loaded_of(config), keep=keep)


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
    """Return what the run costs: parameters, FLOPs, tokens, memory, time and disk. Nothing is trained.

    A step is simulated without numbers on this device, or on as many ``devices`` as you name, which need not be here.
    The other arguments describe those; their defaults are an H100 with 400 Gbit/s a device between machines: its
    FLOP/s, of which matrix products reach ``utilisation``, and bytes/s of its memory, to the devices of its machine and
    to others. Raises UserError for a run that cannot be.

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

    A second call, or one after a kill, does only what is left. Raises UserError for sources that are missing, damaged
    or too small.
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
    """Train the run of ``config``, or continue it from its last checkpoint; on a finished run nothing is done.

    The run folder is the one that `quintet train` writes, byte for byte. An interrupt stops the run with a checkpoint,
    and the same call continues it. ``quiet`` says nothing on the way, and without a ``report`` no page is
    written at the end. The share of peak refers to ``peak_flops`` of a device, in FLOP/s; they are measured if None.
    Raises UserError for everything that you can mend: data, tokenizer, memory, another run in the same folder.
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
    """Write the page about the run in ``folder``, where what draws it is installed, and say where it is."""
    from quintet.errors import one_line
    from quintet.libraries import is_installed

    if not is_installed("matplotlib"):
        return
    from quintet.report.page import write_report

    try:
        reporter.say(f"report: {write_report(folder)}")
    except Exception as error:  # the training is done, and no page is worth its exit code
        reporter.say(f"no report: {one_line(error)}; quintet report {folder}")


def load(
    run: Run | str | Path,
    checkpoint: str | int = "latest",
    *,
    precision: Literal["fp32", "tf32", "bf16", "fp16", "auto"] | None = None,
    weights: Weights = "wide",
) -> LanguageModel:
    """Return the model of a run, of a checkpoint of it, of an exported folder or of a Hugging Face checkpoint.

    ``run`` is a `Run`, a run folder or the name of a run under runs/, a folder `checkpoints/step-…` in one, or a folder
    of Hugging Face's form or its name on the hub. ``checkpoint`` is latest, best (lowest validation loss) or a step.
    Without a ``precision`` it is computed in that of its training, and a checkpoint of others in fp32; auto takes for
    these the fastest that is safe here, as `quintet generate` does. ``weights`` of matrix products are wide (fp32),
    narrow (in the precision of the products, as `quintet generate` holds them: no result changes, and ``model`` called
    by itself then needs ``compute.autocast()``), or rounded to a byte each, int8 or float8. Raises UserError where
    there is no such run or checkpoint.
    """
    from quintet.results import Run
    from quintet.train.trained import load_model

    return load_model(str(run.folder if isinstance(run, Run) else run), str(checkpoint), precision, weights=weights)
