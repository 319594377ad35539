"""Checkpoints: written off the critical path, never half-written, checked before they are believed.

A checkpoint is a folder ``checkpoints/step-000500`` with torch.distributed.checkpoint's files and ``state.json``, which
holds the small facts of the run, and the size and SHA-256 of every other file and of the weights in it. It is written
under a temporary name and renamed when it is whole and on the disk, so that a kill at any moment leaves either a whole
checkpoint or none.
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
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from quintet.config.train import CheckpointConfig
from quintet.errors import UserError, one_line
from quintet.files import from_json, remove, remove_unfinished, set_aside, sync_folder, to_json, write_text
from quintet.processes import FailedElsewhere, all_gather, broadcast_from_rank0, is_rank_zero, rank, world_size

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
    losses: list[float] = field(default_factory=list)  # the last ones, by which a spike is found
    spikes: list[int] = field(default_factory=list)  # the steps whose batches were left out because of one

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


def newest_whole(
    folder: Path, say: Callable[[str], object], *, weights_only: bool = False, together: bool = False
) -> Progress | None:
    """The facts of the newest checkpoint in ``folder`` of which no file is damaged; None if there is no checkpoint.

    ``say`` gets a line for each newer one that is; the other arguments are those of `read_progress`. Raises UserError
    if all are.
    """
    damaged: list[str] = []
    speaks = is_rank_zero() or not together
    steps = broadcast_from_rank0(lambda: checkpoint_steps(folder)) if together else checkpoint_steps(folder)
    for step in reversed(steps):
        try:
            found = read_progress(checkpoint_path(folder, step), weights_only=weights_only, together=together)
        except UserError as error:
            damaged += [line.rpartition("; ")[0] for line in error.problems]
            continue
        for line in damaged if speaks else []:
            say(f"{line}; step {step} is used instead")
        return found
    if damaged:
        kind = UserError if speaks else FailedElsewhere
        raise kind(*(f"{line}; no other is whole; move the run's folder away to start anew" for line in damaged))
    return None


def read_progress(path: Path, *, weights_only: bool = False, together: bool = False) -> Progress:
    """The facts of the checkpoint at ``path``, every file of it checked, or with ``weights_only`` the bytes of the
    weights.

    With ``together`` all processes call this, check a part of the files each, and get the same answer. Raises UserError
    if a file is damaged.
    """
    if not together or world_size() == 1:
        facts, files = _read_state(path)
        fault = _first_fault(path, files, weights_only)
    else:
        facts, files = broadcast_from_rank0(lambda: _read_state(path))
        # The processes wait for the slowest file system that is still of use.
        patience = timedelta(seconds=600 + sum(facts["bytes"] for facts in files.values()) / _SLOWEST)
        group: Any = dist.new_group(backend="gloo", timeout=patience)
        mine = dict(sorted(files.items())[rank() :: world_size()])
        fault = next(filter(None, all_gather(_first_fault(path, mine, weights_only), group)), None)
        dist.destroy_process_group(group)
    if fault is not None:
        raise _damaged(path, fault)
    return facts


_SLOWEST = 50e6
"""Bytes a second of the slowest file system that a checkpoint is read from."""
_THREADS = 4
"""Threads that write and check the files of one process; Python lets go of its lock while it computes a hash."""


def _read_state(path: Path) -> tuple[Progress, dict[str, dict[str, Any]]]:
    """The facts in state.json of the checkpoint at ``path``, and those of each other file by its name."""
    try:
        state = from_json((path / "state.json").read_bytes())
        facts = Progress(**state["progress"])
        files = {
            name: {"bytes": int(one["bytes"]), "sha256": one["sha256"], **one} for name, one in state["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"state.json cannot be read ({one_line(error, typed=True)})") from error
    if checkpoint_path(path.parent, facts.step) != path:
        raise _damaged(path, f"state.json is that of step {facts.step}")
    return facts, files


def _first_fault(path: Path, files: dict[str, dict[str, Any]], weights_only: bool) -> str | None:
    """What is wrong with the first of ``files`` that is not as it was written, None if all are."""
    ranges: dict[str, list[tuple[int, int]]] = {}

    def fault(name: str) -> str | None:
        file, expected = path / name, files[name]
        size = file.stat().st_size if file.is_file() else -1
        if size != expected["bytes"]:
            found = "is missing" if size < 0 else f"has {size} bytes instead of {expected['bytes']}"
            return f"{name} {found}"
        kind, part = ("weights", ranges.get(name, [])) if weights_only and "weights" in expected else ("sha256", None)
        if _sha256(file, part) != expected[kind]:
            return f"{name} is not what was written: its SHA-256 differs"
        return None

    # The table that says where the weights are comes first.
    if _TABLE in files and (found := fault(_TABLE)) is not None:
        return found
    if weights_only and (path / _TABLE).is_file():
        ranges = _weight_ranges(path)
    with ThreadPoolExecutor(_THREADS) as threads:
        return next(filter(None, threads.map(fault, sorted(set(files) - {_TABLE}))), None)


_TABLE = ".metadata"
"""The file in which torch.distributed.checkpoint says what lies where."""


def _weight_ranges(folder: Path) -> dict[str, list[tuple[int, int]]]:
    """Where the weights lie in each file of the checkpoint in ``folder``: first byte and length of each, ascending."""
    found: dict[str, list[tuple[int, int]]] = {}
    for index, place in (FileSystemReader(folder).read_metadata().storage_data or {}).items():
        if index.fqn.startswith("model."):
            found.setdefault(place.relative_path, []).append((place.offset, place.length))
    return {name: sorted(ranges) for name, ranges in found.items()}


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
    and wait ``timeout`` for each other. Training stands still only while the state is copied from ``device`` to the
    host. A run that goes on after step ``first`` sets aside what stands under the name of a later one, which is
    damaged. ``sync`` is called before each: what the run has recorded up to a checkpoint is to be as durable as that.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        timeout: timedelta | None = None,
        first: int | None = None,
        device: torch.device | None = None,
        sync: Callable[[], object] = lambda: None,
    ) -> None:
        self.folder, self.config, self._first, self._sync = folder, config, first, sync
        gpu = device is not None and device.type == "cuda"
        options = StagingOptions(
            use_pinned_memory=gpu, use_non_blocking_copy=gpu, use_shared_memory=False, use_async_staging=False
        )
        # It copies each tensor once, into memory that it takes at the first save and keeps.
        self._stager = DefaultStager(options)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: list[Future[None]] = []
        self.saved_at = monotonic()
        # A thread of its own needs a group of its own, lest its messages be taken for those of the training.
        self._group: Any = dist.new_group(backend="gloo", timeout=timeout) if world_size() > 1 else None
        self.written = set(broadcast_from_rank0(self._begin))

    def _begin(self) -> list[int]:
        if self.folder.is_symlink() and not self.folder.exists():
            raise UserError(
                f"{self.folder}: is a link to {os.readlink(self.folder)}, which is not there; bring it back"
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder}: is a file where the checkpoints belong; move it away")
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".step-*"):
            remove(leftover)
        for step, path in _step_folders(self.folder):
            remove_unfinished(path)
            if self._first is not None and step > self._first:
                set_aside(path)
        return checkpoint_steps(self.folder)

    def save(self, progress: Progress, state: dict[str, Any]) -> None:
        """Copy ``state``, as an engine gives it, now and write it in the background.

        Raises UserError if the save before this one failed.
        """
        self.wait()
        if progress.step in self.written:
            return
        self.written.add(progress.step)
        copied = self._stager.stage(state)
        assert isinstance(copied, dict)  # and no promise of one, which asynchronous staging gives
        self._pending.append(self._thread.submit(self._write, copied, progress))
        self.saved_at = monotonic()

    def amend(self, progress: Progress) -> None:
        """Give the checkpoint of ``progress.step``, if there is one, these facts in the background, and remove the
        checkpoints that are no longer kept."""
        if progress.step in self.written:
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
            self._stager.close()

    def _write(self, state: dict[str, Any], progress: Progress) -> None:
        final = checkpoint_path(self.folder, progress.step)
        unfinished = self.folder / f".{final.name}"
        self._sync()
        broadcast_from_rank0(lambda: shutil.rmtree(unfinished, ignore_errors=True), self._group)
        try:
            writer = FileSystemWriter(unfinished, thread_count=_files_of(state))
            state_dict_saver.save(state, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
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
                self._sync()
                write_text(file, _state(progress, json.loads(file.read_bytes())["files"]))
                self._prune(progress)

        broadcast_from_rank0(rewrite, self._group)

    def _own_files(self, folder: Path) -> list[tuple[str, dict[str, Any]]]:
        """Size and hashes of what this process has written; the first one's are also those that are nobody's."""
        mine, ranges = f"__{rank()}_", _weight_ranges(folder)

        def facts(file: Path) -> tuple[str, dict[str, Any]]:
            found: dict[str, Any] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
            if file.name != _TABLE:
                found["weights"] = _sha256(file, ranges.get(file.name, []))
            return file.name, found

        with ThreadPoolExecutor(_THREADS) as threads:
            files = sorted(folder.iterdir())
            own = [one for one in files if one.name.startswith(mine) or (is_rank_zero() and one.name[:2] != "__")]
            return list(threads.map(facts, own))

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


def _files_of(state: Any) -> int:
    """Files into which a process writes its part of ``state``: one a GiB, up to one a thread."""
    parts = (one.to_local() if isinstance(one, DTensor) else one for one in tree_leaves(state))
    size = sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))
    return min(_THREADS, 1 + size // 2**30)


def _sha256(file: Path, ranges: list[tuple[int, int]] | None = None) -> str:
    """The SHA-256 of ``file``, or of its ``ranges``, each a first byte and a length, one after the other."""
    with file.open("rb") as stream:
        if ranges is None:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        digest = hashlib.sha256()
        for start, length in ranges:
            stream.seek(start)
            while length > 0 and (part := stream.read(min(length, 2**22))):
                digest.update(part)
                length -= len(part)
        return digest.hexdigest()


def _damaged(path: Path, fault: str) -> UserError:
    others = [step for step in checkpoint_steps(path.parent) if checkpoint_path(path.parent, step) != path]
    mend = (
        f"move it away to use step {others[-1]}"
        if others
        else "there is no other; move the run's folder away to start anew"
    )
    return UserError(f"{path}: the checkpoint is damaged: {fault}; {mend}")


def _last_whole(folder: Path) -> str:
    return f"step {steps[-1]}" if (steps := checkpoint_steps(folder)) else "none yet"


def _refusal(error: BaseException) -> OSError | None:
    """Return the error of the operating system that ``error`` comes from, None if it comes from none."""
    if isinstance(error, CheckpointException):
        return next(filter(None, (_refusal(failure[0]) for failure in error.failures.values())), None)
    causes = [error, error.__cause__, error.__context__]
    found = [cause for cause in causes if isinstance(cause, OSError) and cause.errno is not None]
    return next((one for one in found if one.errno in NO_SPACE), found[0] if found else None)
