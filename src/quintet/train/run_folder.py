"""The folder of a run: what is written when it starts, and whether a run file may continue it.

`quintet check` asks where the folder lies, so that PyTorch is imported by what needs it alone.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from itertools import dropwhile
from pathlib import Path
from typing import Any

from quintet.config.dump import LINES_OF, differences, dump_run_config, dump_with_origins
from quintet.config.load import Reading, load_run_config, read_run_config
from quintet.config.model import HuggingFaceConfig, PretrainedInitConfig
from quintet.config.names import (
    HEADING,
    INPUTS,
    ORIGINAL,
    RUN_FILE,
    is_run,
    local_path,
    run_named,
    started_in,
    working_folder,
)
from quintet.config.provenance import Original
from quintet.config.schema import RunConfig
from quintet.config.secrets import file_without_credentials
from quintet.errors import UserError
from quintet.files import files_digest, is_unfinished, new_folder, remove, remove_unfinished, write_text
from quintet.system import __version__
from quintet.train.checkpoint_files import Progress, last_checkpoint

# What may change when a run is continued, for it does not change which function is minimised on which data, or only how
# long: the losses that were there stay what an uninterrupted run would have had.
CONTINUABLE = (
    "runs_dir",
    "other_inputs",
    "data.cache_dir",
    "data.processes",
    "data.stages",  # those that lie ahead; what the checkpoint was trained with is compared with what it says
    "train.steps",
    "train.tokens",
    "train.epochs",
    "train.micro_batch_size",
    "train.accumulation",
    "train.compile",
    "train.deterministic",
    "train.activation_checkpointing",
    "train.device",
    "train.max_skipped",
    "train.on_spike",  # it judges the steps that lie ahead
    "loss.chunk",
    "model.other_base",
    "train.log_every",
    "trainer",  # every trainer takes the same steps, bit for bit
    "parallel",
    "evaluate",
    "sample",
    "checkpoint",
    "track",
)
_NAME = re.compile(r"^name: .*?(?=  # |$)", re.MULTILINE)
# Several ways to say one batch.
_BATCH = ("train.batch_size", "train.batch_tokens", "train.batch_size_per_device", "train.batch_devices")


def run_folder(config: RunConfig) -> Path:
    """Return the folder of the run of ``config``."""
    return local_path(config.runs_dir) / config.name


def settle_batch(config: RunConfig, devices: int) -> RunConfig:
    """``config`` with the batch of the run that it continues, or else of the ``devices`` on which it starts."""
    folder, each = run_folder(config), config.train.batch_size_per_device
    if each is not None and is_run(folder):
        began_on, rest = divmod(read_run_config(folder).batch.samples, each)
        if began_on and not rest:
            return config.on_devices(began_on)
    return config.on_devices(devices)


def find_run_folder(config: RunConfig) -> tuple[Path, list[str]]:
    """Return the folder of a run, new or not, and a line for each setting that changed since it was made.

    Nothing is written.

    Raises UserError when the folder holds a run that ``config`` cannot continue, with every difference.
    """
    folder = run_folder(config)
    changes: list[str] = []
    if (folder / RUN_FILE).exists():
        found, changed = _changed(folder, config)
        same_batch = found.batch.samples == config.batch.samples
        fatal = [
            change
            for change in changed
            if not _continuable(change[0], config) and not (same_batch and change[0] in _BATCH)
        ]
        if fatal:
            raise UserError(
                *(f"{folder}: holds a run with {key}: {old}, not {new}" for key, old, new in fatal),
                f"{folder}: cannot be continued with another {fatal[0][0]}; choose another name (name=…) for a new run",
            )
        changes = [f"{key}: {old} → {new}" for key, old, new in changed]
    elif folder.exists() and (others := [file.name for file in folder.iterdir() if not _is_beginning(file)]):
        raise UserError(f"{folder}: holds {sorted(others)[0]} and no run; choose another name (name=…) or runs_dir")
    return folder, changes


def _is_beginning(file: Path) -> bool:
    """True if ``file`` is what a run that was killed in its first moments leaves in its folder, before its run file."""
    if file.name == "checkpoints":
        return not file.is_dir() or not any(file.iterdir())
    # The earliest versions had the unfinished run file under a name of its own.
    return file.name in ("tokenizer", ORIGINAL, ".running", f".{RUN_FILE}") or is_unfinished(file)


def _changed(folder: Path, config: RunConfig) -> tuple[RunConfig, list[tuple[str, Any, Any]]]:
    """The config of the run in ``folder`` as it was written, and the keys at which ``config`` is another.

    A path is the same that leads to the same file, from where the run began and from here; the name is the folder's.
    """
    found = load_run_config([folder / RUN_FILE], reading=Reading(in_place=False)).config
    began = working_folder(folder) or Path.cwd()

    def same(key: str, old: Any, new: Any) -> bool:
        name = key.rpartition(".")[2]
        paths = name in (*INPUTS, "runs_dir") and isinstance(old, str) and isinstance(new, str)
        return key == "name" or (paths and os.path.abspath(began / old) == os.path.abspath(new))

    return found, [change for change in differences(found, config) if not same(*change)]


def write_run_file(
    config: RunConfig, folder: Path, original: Original | None, computes: str, inputs: Mapping[str, str] | None = None
) -> None:
    """Make ``folder`` if it is not there, and write ``config`` into it, in place of what was there.

    For a dialect's file ``original`` each value has its origin as a comment, and the files themselves are kept, also
    when the run is continued from its folder, unless something changed. ``computes`` says in which precision and on
    which device this part of the run is computed, and ``inputs`` has the digests of what it begins with, by key.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    _link_checkpoints(config, folder)
    began = Path.cwd()
    if (there := (folder / RUN_FILE).is_file()) and (before := working_folder(folder)) is not None:
        began = before
    if there and original is None and not _changed(folder, config)[1]:
        lines = (folder / RUN_FILE).read_text(encoding="utf-8").splitlines(keepends=True)
        body = "".join(dropwhile(lambda line: line.startswith("#") and not line.startswith(LINES_OF), lines))
        named = dump_run_config(config).partition("\n")[0]
        body = _NAME.sub(lambda _: named, body, count=1)
    else:
        body = dump_run_config(config) if original is None else dump_with_origins(config, original.provenance)
        _keep_original(folder / ORIGINAL, {} if original is None else original.files)
    write_text(folder / RUN_FILE, _circumstances(computes, began, inputs or {}) + body)


def _link_checkpoints(config: RunConfig, folder: Path) -> None:
    """If `checkpoint.dir` names another folder, make the run's folder in it, and a link to that in ``folder``."""
    link = folder / "checkpoints"
    if config.checkpoint.dir is None or link.exists():
        return
    elsewhere = local_path(config.checkpoint.dir).absolute() / config.name
    if elsewhere.exists() and any(elsewhere.iterdir()):
        raise UserError(f"checkpoint.dir: {elsewhere} holds checkpoints of another run; choose another name (name=…)")
    elsewhere.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere, target_is_directory=True)


def _continuable(key: str, config: RunConfig) -> bool:
    if config.schedule.kind == "plateau" and key.startswith("evaluate."):
        return key in ("evaluate.at_start", "evaluate.at_end", "evaluate.batch_size")  # the others move the rate
    return any(key == name or key.startswith((name + ".", name + "[")) for name in CONTINUABLE)


def inputs_of(config: RunConfig) -> dict[str, str]:
    """Return digests of the files that the run of ``config`` begins with, by the key that names them: trained weights
    and chat templates. Its token stores have fingerprints of their own."""
    return _weights_of(config) | _templates_of(config)


def _templates_of(config: RunConfig) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ("sources", "validation_sources"):
        for index, source in enumerate(getattr(config.data, name)):
            template = getattr(getattr(source, "document", None), "template", None)
            if template is not None and (file := local_path(template)).is_file():
                found[f"data.{name}[{index}].document.template"] = f"sha256 {files_digest([file])}"
    return found


def tokenizer_input(folder: Path) -> dict[str, str]:
    """Return the digest of the tokenizer's files in the run's ``folder``, its chat template among them; {} while there
    is none."""
    kept = folder / "tokenizer"
    files = sorted(file for file in kept.rglob("*") if file.is_file())  # a tokenizer of notes keeps its base below
    return {"tokenizer": f"sha256 {files_digest(files)}"} if kept.is_dir() else {}


def _weights_of(config: RunConfig) -> dict[str, str]:
    model = config.model
    if isinstance(model, HuggingFaceConfig):
        from quintet.model.hf.loading import base_digest

        found = base_digest(model)
        return {} if found is None else {"model.name_or_path": found}
    if not isinstance(model.init, PretrainedInitConfig):
        return {}
    path = model.init.path
    if (folder := run_named(path)) is None:
        from quintet.model.hf.files import checkpoint_digest, find_checkpoint

        return {"model.init.path": checkpoint_digest(find_checkpoint(path, model.init.revision))}
    newest = last_checkpoint(folder / "checkpoints")
    if newest is None:
        return {}
    digest = files_digest(file for file in newest.iterdir() if file.is_file())
    return {"model.init.path": f"sha256 {digest} of {newest.name}"}


def check_inputs(config: RunConfig, began_with: Mapping[str, str], folder: Path, *, trains: bool = False) -> None:
    """Raise UserError when an input that the run in ``folder`` reads each time is not the one that it ``began_with``:
    its base, and the tokenizer in its folder; while it ``trains`` also chat templates.

    What ``model.init`` named is in the run's own checkpoints and is not read again.
    """
    model, now = config.model, tokenizer_input(folder)
    named = {"tokenizer": (f"{folder / 'tokenizer'} does not hold the files", "other_inputs")}
    if isinstance(model, HuggingFaceConfig) and not model.other_base and "model.name_or_path" in began_with:
        now |= _weights_of(config)
        named["model.name_or_path"] = (f"{model.name_or_path} is not the checkpoint", "model.other_base")
    if trains:
        now |= _templates_of(config)
    problems: list[str] = []
    for key, digest in now.items():
        if config.other_inputs or began_with.get(key, digest) == digest:
            continue
        what, allowing = named.get(key, ("the file is not the one", "other_inputs"))
        problems.append(
            f"{key}: {what} that {folder} began with ({began_with[key]} then, {digest} now); restore it, or set "
            f"{allowing}: true in {folder}/run.yaml to take it all the same"
        )
    if problems:
        raise UserError(*problems)


def _keep_original(folder: Path, files: Mapping[str, bytes]) -> None:
    """``files``, and nothing else, in ``folder``; no folder where there are none."""
    remove(folder)
    if files:
        with new_folder(folder) as whole:
            for name, content in files.items():
                (whole / name).parent.mkdir(parents=True, exist_ok=True)
                (whole / name).write_bytes(file_without_credentials(content))


def _circumstances(computes: str, began: Path, inputs: Mapping[str, str]) -> str:
    """Versions, the state of the code, the folder in which the run ``began`` and what `auto` became, as comments before
    the run file."""
    import torch

    from quintet.data.build import library_versions

    libraries = {name: version for name, version in library_versions().items() if name != "quintet"}
    rows = {
        "quintet": f"{__version__}{_git_state()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "python": f"{sys.version.split()[0]} on {platform.platform()}",
        "computes": computes,
        "libraries": ", ".join(f"{name} {version}" for name, version in libraries.items()),
        **inputs,
    }
    return f"{HEADING}\n{started_in(began)}" + "".join(f"# {name}: {value}\n" for name, value in rows.items())


def _git_state() -> str:
    """Commit of the working directory's repository, and whether it has changes; empty outside of one."""
    answers: list[str] = []
    for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            answer = subprocess.run(["git", *command], capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        if answer.returncode:
            return ""
        answers.append(answer.stdout.strip())
    return f", git {answers[0]}{' with changes' if answers[1] else ''}"


def check_tokens(folder: Path, found: Progress, now: Progress, encoding: tuple[str, ...]) -> None:
    """Raise UserError unless the run in ``folder`` sees the ids that it was trained on. Those of stores have a
    fingerprint; what ``encoding`` libraries make while it trains has their versions alone."""
    versions = {name: (version, now.libraries.get(name, version)) for name, version in found.libraries.items()}
    other = {name: f"{name} {then} then, {here} now" for name, (then, here) in versions.items() if then != here}
    remedy = f"install the versions it began with ({', '.join(other.values())})" if other else "restore the sources"
    for name in ("tokenizer", "corpus"):
        if getattr(found, name) != getattr(now, name):
            raise UserError(
                f"{folder}: cannot be continued: the {name} is not the one it was trained with "
                f"({getattr(found, name)} then, {getattr(now, name)} now); {remedy}, or choose another name (name=…)"
            )
    if any(name in other for name in encoding):
        raise UserError(
            f"{folder}: cannot be continued: its tokens are made by another version of a library; {remedy}, or choose "
            "another name (name=…)"
        )


def check_stages(folder: Path, found: Progress, stages: list[list[Any]]) -> None:
    """Raise UserError if a stage changed that the run has been through; stages that lie ahead may change."""
    begun, now = ([one for one in some if one[0] < found.step] for some in (found.stages, stages))
    if begun == now:
        return
    ends = ", ".join(f"until: {start:,}" for start, _ in begun[1:])
    then = f"stages with {ends}" if ends else "one stage" if begun else "no stages"
    raise UserError(
        f"data.stages: {folder} was trained up to step {found.step:,} with {then}, and this run file has others before "
        "that step (fractions move with the run's steps); write `until` in steps, or choose another name (name=…)"
    )
