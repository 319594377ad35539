"""The folder of a run: the run file and its versions, and the check that a run file may continue the run.

`quintet check` uses this module, so it imports PyTorch only in functions.
"""

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

# Keys that may change when a run is continued: they do not change what is minimised on which data, or only how long.
# The losses so far stay those of an uninterrupted run.
CONTINUABLE = (
    "runs_dir",
    "other_inputs",
    "data.cache_dir",
    "data.processes",
    "data.stages",  # future stages; those of the checkpoint are compared
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
    "train.on_spike",  # it judges future steps
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
# Several ways to set one batch size.
_BATCH = ("train.batch_size", "train.batch_tokens", "train.batch_size_per_device", "train.batch_devices")


def run_folder(config: RunConfig) -> Path:
    """Return the folder of the run of ``config``."""
    return local_path(config.runs_dir) / config.name


def settle_batch(config: RunConfig, devices: int) -> RunConfig:
    """Return ``config`` with the batch of the run that it continues, or of the ``devices`` on which it starts."""
    folder, each = run_folder(config), config.train.batch_size_per_device
    if each is not None and is_run(folder):
        began_on, rest = divmod(read_run_config(folder).batch.samples, each)
        if began_on and not rest:
            return config.on_devices(began_on)
    return config.on_devices(devices)


def find_run_folder(config: RunConfig) -> tuple[Path, list[str]]:
    """Return the folder of a run, new or not, and a line for each setting that changed since it started.

    Writes nothing. Raises UserError with all differences if the folder holds a run that ``config`` cannot continue.
    """
    folder = run_folder(config)
    changes: list[str] = []
    if (folder / RUN_FILE).exists():
        before, changed = _changed(folder, config)
        same_batch = before.batch.samples == config.batch.samples
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
    elif folder.exists() and (others := [file.name for file in folder.iterdir() if not _is_leftover(file)]):
        raise UserError(f"{folder}: holds {sorted(others)[0]} and no run; choose another name (name=…) or runs_dir")
    return folder, changes


def _is_leftover(file: Path) -> bool:
    """Return True if a run may leave ``file`` in its folder when it is killed before it has written its run file."""
    if file.name == "checkpoints":
        return not file.is_dir() or not any(file.iterdir())
    # The earliest versions gave the unfinished run file this other name.
    return file.name in ("tokenizer", ORIGINAL, ".running", f".{RUN_FILE}") or is_unfinished(file)


def _changed(folder: Path, config: RunConfig) -> tuple[RunConfig, list[tuple[str, Any, Any]]]:
    """Return the config of the run in ``folder`` and its differences from ``config``: key, old and new value.

    Two paths are equal if they name the same file, the old one relative to the folder where the run started. The name
    is not compared, because it is that of the folder.
    """
    written = load_run_config([folder / RUN_FILE], reading=Reading(in_place=False)).config
    began = working_folder(folder) or Path.cwd()

    def same(key: str, old: Any, new: Any) -> bool:
        name = key.rpartition(".")[2]
        paths = name in (*INPUTS, "runs_dir") and isinstance(old, str) and isinstance(new, str)
        return key == "name" or (paths and os.path.abspath(began / old) == os.path.abspath(new))

    return written, [change for change in differences(written, config) if not same(*change)]


def write_run_file(
    config: RunConfig, folder: Path, original: Original | None, computes: str, inputs: Mapping[str, str] | None = None
) -> None:
    """Write ``config`` as the run file of ``folder``, which is created if need be.

    For a file of a dialect, ``original``, each value gets its origin as a comment, and the files themselves are kept;
    so they are when the run is continued from its folder, unless a value changed. ``computes`` names precision and
    device of this part of the run, and ``inputs`` has the digests of its inputs by key.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    _link_checkpoints(config, folder)
    began = Path.cwd()
    if (exists := (folder / RUN_FILE).is_file()) and (before := working_folder(folder)) is not None:
        began = before
    if exists and original is None and not _changed(folder, config)[1]:
        lines = (folder / RUN_FILE).read_text(encoding="utf-8").splitlines(keepends=True)
        body = "".join(dropwhile(lambda line: line.startswith("#") and not line.startswith(LINES_OF), lines))
        named = dump_run_config(config).partition("\n")[0]
        body = _NAME.sub(lambda _: named, body, count=1)
    else:
        body = dump_run_config(config) if original is None else dump_with_origins(config, original.provenance)
        _keep_original(folder / ORIGINAL, {} if original is None else original.files)
    write_text(folder / RUN_FILE, _circumstances(computes, began, inputs or {}) + body)


def _link_checkpoints(config: RunConfig, folder: Path) -> None:
    """Link the checkpoints in ``folder`` to a folder of the run in `checkpoint.dir`, if that is set."""
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
        return key in (
            "evaluate.at_start",
            "evaluate.at_end",
            "evaluate.batch_size",
        )  # the others affect the learning rate
    return any(key == name or key.startswith((name + ".", name + "[")) for name in CONTINUABLE)


def inputs_of(config: RunConfig) -> dict[str, str]:
    """Return digests of the trained weights and chat templates of ``config``, by their keys.

    Token stores have fingerprints of their own.
    """
    return _weights_of(config) | _templates_of(config)


def _templates_of(config: RunConfig) -> dict[str, str]:
    digests: dict[str, str] = {}
    for name in ("sources", "validation_sources"):
        for index, source in enumerate(getattr(config.data, name)):
            template = getattr(getattr(source, "document", None), "template", None)
            if template is not None and (file := local_path(template)).is_file():
                digests[f"data.{name}[{index}].document.template"] = f"sha256 {files_digest([file])}"
    return digests


def tokenizer_input(folder: Path) -> dict[str, str]:
    """Return the digest of the tokenizer's files in the run's ``folder``, chat template included; {} without files."""
    saved = folder / "tokenizer"
    files = sorted(file for file in saved.rglob("*") if file.is_file())  # a tokenizer of notes has a folder inside
    return {"tokenizer": f"sha256 {files_digest(files)}"} if saved.is_dir() else {}


def _weights_of(config: RunConfig) -> dict[str, str]:
    model = config.model
    if isinstance(model, HuggingFaceConfig):
        from quintet.model.hf.loading import base_digest

        digest = base_digest(model)
        return {} if digest is None else {"model.name_or_path": digest}
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
    """Raise UserError if an input of the run in ``folder`` is not the one that it ``began_with``.

    Checked are its base model and the tokenizer in its folder, and if it ``trains`` also its chat templates. Weights
    from ``model.init`` are in the run's checkpoints and are not read again.
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
    """Replace the content of ``folder`` by ``files``; without files there is no folder."""
    remove(folder)
    if files:
        with new_folder(folder) as path:
            for name, content in files.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(file_without_credentials(content))


def _circumstances(computes: str, began: Path, inputs: Mapping[str, str]) -> str:
    """Return the comments above the run file: versions, git state, first working folder, and the choices of `auto`."""
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
    """Return the commit of the working directory's repository and a note if it has changes; "" outside of one."""
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
    """Raise UserError unless the run in ``folder`` gets the token ids that it was trained on.

    Token stores have a fingerprint. Ids that the ``encoding`` libraries make during training are known only by the
    versions of these libraries.
    """
    versions = {name: (version, now.libraries.get(name, version)) for name, version in found.libraries.items()}
    changed = {name: f"{name} {then} then, {here} now" for name, (then, here) in versions.items() if then != here}
    remedy = f"install the versions it began with ({', '.join(changed.values())})" if changed else "restore the sources"
    for name in ("tokenizer", "corpus"):
        if getattr(found, name) != getattr(now, name):
            raise UserError(
                f"{folder}: cannot be continued: the {name} is not the one it was trained with "
                f"({getattr(found, name)} then, {getattr(now, name)} now); {remedy}, or choose another name (name=…)"
            )
    if any(name in changed for name in encoding):
        raise UserError(
            f"{folder}: cannot be continued: its tokens are made by another version of a library; {remedy}, or choose "
            "another name (name=…)"
        )


def check_stages(folder: Path, found: Progress, stages: list[list[Any]]) -> None:
    """Raise UserError if a stage changed that the run has started; future stages may change."""
    begun, now = ([stage for stage in entries if stage[0] < found.step] for entries in (found.stages, stages))
    if begun == now:
        return
    ends = ", ".join(f"until: {start:,}" for start, _ in begun[1:])
    then = f"stages with {ends}" if ends else "one stage" if begun else "no stages"
    raise UserError(
        f"data.stages: {folder} was trained up to step {found.step:,} with {then}, and this run file has others before "
        "that step (fractions move with the run's steps); write `until` in steps, or choose another name (name=…)"
    )
