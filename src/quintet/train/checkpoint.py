"""Checkpoints: written off the critical path, never half-written, checked before they are believed.

A checkpoint is a folder ``checkpoints/step-000500`` with torch.distributed.checkpoint's files and ``state.json``, which
holds the small facts of the run and the size and SHA-256 of every other file. It is written under a temporary name and
renamed when it is whole and on the disk, so that a kill at any moment leaves either a whole checkpoint or none.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.tensor import DTensor

from quintet.config.train import CheckpointConfig
from quintet.errors import UserError, one_line
from quintet.files import from_json, set_aside, sync_folder, to_json, write_text
from quintet.processes import all_gather, broadcast_from_rank0, is_rank_zero, rank, world_size

# Without a process group there is one process, which is what is meant here.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Progress:
    """The small facts of a run that, with the weights and the optimizer's averages, are all it takes to continue.

    ``stages`` are those of the data with which it was trained, as ``stage_facts`` gives them, and ``plateau`` is what
    the validations have done to the learning rate, as ``after_validation`` gives it. ``due`` names what is still to be
    measured after this step (see ``quintet.train.evaluation``), and ``failed`` counts the measurements that failed.
    ``precision`` is that of the matrix products; "" in a checkpoint that does not say. ``libraries`` are the versions
    of those that made the ids it was trained on.
    """

    step: int = 0
    skipped_steps: int = 0
    last_skipped: int = 0  # of these the last ones, one after the other
    tokens: int = 0
    seconds: float = 0.0
    validation_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    tokenizer: str = ""
    corpus: str = ""
    scaler: dict[str, Any] | None = None
    stages: list[list[Any]] = field(default_factory=list)
    plateau: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)  # what tells its first weights, by the key that names them
    due: list[str] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)
    precision: str = ""
    libraries: dict[str, str] = field(default_factory=dict)

    def validated(self, loss: float) -> Progress:
        """These facts with the validation ``loss`` of this step, which is the best only where it is finite."""
        best = (self.best_loss, self.best_step)
        # A checkpoint of an earlier version may hold a NaN, below which no loss is.
        if math.isfinite(loss) and (best[0] is None or not best[0] <= loss):
            best = (loss, self.step)
        return replace(self, validation_loss=loss, best_loss=best[0], best_step=best[1])


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the whole checkpoints in ``folder``, ascending."""
    return sorted(step for step, path in _step_folders(folder) if (path / "state.json").is_file())


def _step_folders(folder: Path) -> list[tuple[int, Path]]:
    """The folders of checkpoints in ``folder``, whole or not, each with its step."""
    found = ((path.name.removeprefix("step-"), path) for path in folder.glob("step-*"))
    steps = ((int(number), path) for number, path in found if number.isdecimal())
    return [(step, path) for step, path in steps if path == checkpoint_path(folder, step)]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of ``step``."""
    return folder / f"step-{step:06d}"


def last_checkpoint(folder: Path) -> Path | None:
    """The absolute path of the newest checkpoint in ``folder``, None when there is none."""
    steps = checkpoint_steps(folder)
    return checkpoint_path(folder.resolve(), steps[-1]) if steps else None


def newest_whole(folder: Path, say: Callable[[str], object]) -> Progress | None:
    """The facts of the newest checkpoint in ``folder`` of which no file is damaged; None if there is no checkpoint.

    ``say`` gets a line for each newer one that is. Raises UserError if all are.
    """
    damaged: list[str] = []
    for step in reversed(checkpoint_steps(folder)):
        try:
            found = read_progress(checkpoint_path(folder, step))
        except UserError as error:
            damaged += [line.rpartition("; ")[0] for line in error.problems]
            continue
        for line in damaged:
            say(f"{line}; step {step} is used instead")
        return found
    if damaged:
        raise UserError(*(f"{line}; no other is whole; move the run's folder away to start anew" for line in damaged))
    return None


def read_progress(path: Path) -> Progress:
    """The facts of the checkpoint at ``path``, every file of it checked. Raises UserError if one is damaged."""
    try:
        state = from_json((path / "state.json").read_bytes())
        facts, files = Progress(**state["progress"]), state["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"state.json cannot be read ({one_line(error, typed=True)})") from error
    if checkpoint_path(path.parent, facts.step) != path:
        raise _damaged(path, f"state.json is that of step {facts.step}")
    for name, expected in files.items():
        file = path / name
        size = file.stat().st_size if file.is_file() else -1
        if size != expected["bytes"]:
            found = "is missing" if size < 0 else f"has {size} bytes instead of {expected['bytes']}"
            raise _damaged(path, f"{name} {found}")
        if _sha256(file) != expected["sha256"]:
            raise _damaged(path, f"{name} is not what was written: its SHA-256 differs")
    return facts


def load_weights(path: Path, model: nn.Module) -> None:
    """Put the weights of the checkpoint at ``path`` into ``model``; those that were frozen stay as they are."""
    weights = trained_weights(model)
    state_dict_loader.load({"model": weights}, checkpoint_id=path, no_dist=True)
    set_weights(model, weights)


def trained_weights(model: nn.Module) -> dict[str, Any]:
    """The trainable parameters of ``model``, each once, and its buffers, by name.

    Frozen weights are read again from where the run took them, so that a checkpoint of adapters is as small as they.
    """
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    weights = get_model_state_dict(model)
    return {name: value for name, value in weights.items() if name in trained or name not in every}


def set_weights(model: nn.Module, weights: dict[str, Any]) -> None:
    """Give ``model`` the weights that `trained_weights` returned."""
    # Not strict, for frozen weights and second names of tied ones are not among them; that the others are all there
    # was checked when they were read.
    set_model_state_dict(model, weights, options=StateDictOptions(strict=False))


class Checkpointer:
    """Writes the checkpoints of one run in the background, one at a time, and removes those that are not kept.

    In several processes each writes its part and the first one the rest; all of them call each method, in one order,
    and wait ``timeout`` for each other. A run that goes on after step ``first`` sets aside what stands under the name
    of a later one, which is damaged.
    """

    def __init__(
        self, folder: Path, config: CheckpointConfig, timeout: timedelta | None = None, first: int | None = None
    ) -> None:
        self.folder, self.config, self._first = folder, config, first
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: list[Future[None]] = []
        self.saved_at = monotonic()
        # A thread of its own needs a group of its own, lest its messages be taken for those of the training.
        self._group: Any = dist.new_group(backend="gloo", timeout=timeout) if world_size() > 1 else None
        self._written = set(broadcast_from_rank0(self._begin))

    def _begin(self) -> list[int]:
        if self.folder.is_symlink() and not self.folder.exists():
            raise UserError(
                f"{self.folder}: is a link to {os.readlink(self.folder)}, which is not there; bring it back"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover)
        for step, path in _step_folders(self.folder):
            if self._first is not None and step > self._first:
                set_aside(path)
        return checkpoint_steps(self.folder)

    def save(self, progress: Progress, state: dict[str, Any]) -> None:
        """Copy ``state``, as an engine gives it, now and write it in the background.

        Raises UserError if the save before this one failed.
        """
        self.wait()
        if progress.step in self._written:
            return
        self._written.add(progress.step)
        self._pending.append(self._thread.submit(self._write, copied(state), progress))
        self.saved_at = monotonic()

    def amend(self, progress: Progress) -> None:
        """Give the checkpoint of ``progress.step``, if there is one, these facts in the background, and remove the
        checkpoints that are no longer kept."""
        if progress.step in self._written:
            self._pending.append(self._thread.submit(self._amend, progress))

    def wait(self) -> None:
        """Return when nothing is being written. Raises UserError when the disk is full or refuses to be written; what
        was whole stays."""
        pending, self._pending = self._pending, []
        try:
            for one in pending:
                one.result()
        except (OSError, CheckpointException) as error:
            refusal = _refusal(error)
            if refusal is None:
                raise
            fault, mend = "no space left to write a checkpoint", "Free some space"
            if refusal.errno not in NO_SPACE:
                fault, mend = f"a checkpoint cannot be written ({refusal.strerror})", "Make the folder writable"
            raise UserError(
                f"{self.folder}: {fault}; the last whole one is {_last_whole(self.folder)}. {mend} and give the same "
                "command to continue from it"
            ) from error

    def close(self) -> None:
        """Finish what is being written and stop."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _write(self, state: dict[str, Any], progress: Progress) -> None:
        final = checkpoint_path(self.folder, progress.step)
        unfinished = self.folder / f".{final.name}"
        broadcast_from_rank0(lambda: shutil.rmtree(unfinished, ignore_errors=True), self._group)
        try:
            state_dict_saver.save(
                state, checkpoint_id=unfinished, process_group=self._group, no_dist=self._group is None
            )
            files = {
                name: facts for part in all_gather(self._own_files(unfinished), self._group) for name, facts in part
            }
            broadcast_from_rank0(lambda: _finish(unfinished, final, progress, files), self._group)
        finally:
            if is_rank_zero():
                shutil.rmtree(unfinished, ignore_errors=True)
        broadcast_from_rank0(lambda: self._prune(progress), self._group)

    def _amend(self, progress: Progress) -> None:
        def rewrite() -> None:
            file = checkpoint_path(self.folder, progress.step) / "state.json"
            if file.is_file():  # else writing it has failed, which `wait` says
                write_text(file, _state(progress, json.loads(file.read_bytes())["files"]))
                self._prune(progress)

        broadcast_from_rank0(rewrite, self._group)

    def _own_files(self, folder: Path) -> list[tuple[str, dict[str, Any]]]:
        """Size and hash of what this process has written; the first one's are also those that are nobody's."""
        mine = f"__{rank()}_"
        return [
            (file.name, {"bytes": file.stat().st_size, "sha256": _sha256(file)})
            for file in sorted(folder.iterdir())
            if file.name.startswith(mine) or (is_rank_zero() and not file.name.startswith("__"))
        ]

    def _prune(self, progress: Progress) -> None:
        if self.config.keep is None:
            return
        steps = checkpoint_steps(self.folder)
        kept = set(steps[-self.config.keep :])
        if self.config.keep_best:
            kept.add(progress.best_step or -1)
        for step in set(steps) - kept:
            doomed = checkpoint_path(self.folder, step)
            # Renamed first, so that a kill in the middle of the removal leaves no half checkpoint under a good name.
            shutil.rmtree(doomed.rename(doomed.with_name(f".{doomed.name}")))


def _finish(unfinished: Path, final: Path, progress: Progress, files: dict[str, Any]) -> None:
    write_text(unfinished / "state.json", _state(progress, files))
    if final.exists():
        set_aside(final)
    unfinished.rename(final)
    sync_folder(final.parent)


def _state(progress: Progress, files: dict[str, Any]) -> str:
    return to_json({"progress": asdict(progress), "files": files}, indent=1)


def copied(state: Any) -> Any:
    """``state`` with every tensor copied to the host, so that training may go on changing the original."""
    if isinstance(state, DTensor):
        part = state.to_local().detach().to("cpu", copy=True)
        return DTensor.from_local(
            part, state.device_mesh, state.placements, run_check=False, shape=state.shape, stride=state.stride()
        )
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {name: copied(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(copied(value) for value in state)
    return state


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _damaged(path: Path, fault: str) -> UserError:
    others = [step for step in checkpoint_steps(path.parent) if checkpoint_path(path.parent, step) != path]
    mend = (
        f"move it away to use step {others[-1]}"
        if others
        else "there is no other; move the run's folder away to start anew"
    )
    return UserError(f"{path}: the checkpoint is damaged: {fault}; {mend}")


def _last_whole(folder: Path) -> str:
    steps = checkpoint_steps(folder)
    return f"step {steps[-1]}" if steps else "none yet"


def _refusal(error: BaseException) -> OSError | None:
    """Return the error of the operating system that ``error`` comes from, None if it comes from none."""
    if isinstance(error, CheckpointException):
        return next(filter(None, (_refusal(failure[0]) for failure in error.failures.values())), None)
    causes = [error, error.__cause__, error.__context__]
    found = [cause for cause in causes if isinstance(cause, OSError) and cause.errno is not None]
    return next((one for one in found if one.errno in NO_SPACE), found[0] if found else None)
