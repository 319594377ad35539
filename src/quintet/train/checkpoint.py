"""Checkpoints: written off the critical path, never half-written, checked before they are believed.

A checkpoint is a folder ``checkpoints/step-000500`` with torch.distributed.checkpoint's files and ``state.json``, which
holds the small facts of the run, and the size and SHA-256 of every other file and of the weights in it. It is written
under a temporary name and renamed when it is whole and on the disk, so that a kill at any moment leaves either a whole
checkpoint or none.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from quintet.config.train import CheckpointConfig
from quintet.errors import UserError
from quintet.files import remove, remove_unfinished, set_aside, sync_folder, to_json, write_text
from quintet.processes import all_gather, broadcast_from_rank0, is_rank_zero, new_group, rank, world_size
from quintet.train.checkpoint_files import (
    TABLE,
    THREADS,
    Progress,
    checkpoint_path,
    checkpoint_steps,
    hashes_of,
    step_folders,
    weight_ranges,
)

# Without a process group there is one process, which is what is meant here.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def load_weights(path: Path, model: nn.Module) -> None:
    """Load the checkpoint at ``path`` into ``model``, which is whole in this process; frozen weights stay as they
    are."""
    weights = _select_trained(model, model.state_dict())  # get_model_state_dict would import torch._dynamo: 0.6 s
    read_state(path, {"model": weights}, together=False)
    model.load_state_dict(weights, strict=False)


def read_state(path: Path, state: dict[str, Any], *, together: bool) -> None:
    """Read what the checkpoint at ``path`` has for each tensor of ``state`` into it, all processes ``together`` or each
    by itself."""
    state_dict_loader.load(state, checkpoint_id=path, no_dist=not together)  # pyright: ignore[reportUnknownMemberType]


def trained_weights(model: nn.Module) -> dict[str, Any]:
    """The trainable parameters of ``model``, each once, and its buffers, by name.

    Frozen weights are read again from where the run took them, so that a checkpoint of adapters is as small as they.
    """
    return _select_trained(model, get_model_state_dict(model))


def _select_trained(model: nn.Module, weights: dict[str, Any]) -> dict[str, Any]:
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
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
        self._stager: Any = DefaultStager(options)  # whose types PyTorch leaves open
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: list[Future[None]] = []
        self.saved_at = monotonic()
        # A thread of its own needs a group of its own, lest its messages be taken for those of the training.
        self._group = new_group(timeout) if world_size() > 1 else None
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
        for step, path in step_folders(self.folder):
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
        assert not isinstance(copied, Future)  # the promise of one, which asynchronous staging gives
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
            # The state is on the host. To copy ahead, PyTorch would wait in this thread for the first GPU, whichever
            # the process has, and so take memory of it for each process of the machine.
            writer = FileSystemWriter(unfinished, thread_count=_files_of(state), per_thread_copy_ahead=0)
            state_dict_saver.save(  # pyright: ignore[reportUnknownMemberType]  (open in PyTorch)
                state, storage_writer=writer, process_group=self._group, no_dist=self._group is None
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
                self._sync()
                write_text(file, _state(progress, json.loads(file.read_bytes())["files"]))
                self._prune(progress)

        broadcast_from_rank0(rewrite, self._group)

    def _own_files(self, folder: Path) -> list[tuple[str, dict[str, Any]]]:
        """Size and hashes of what this process has written; the first one's are also those that are nobody's."""
        mine, ranges = f"__{rank()}_", weight_ranges(folder)

        def facts(file: Path) -> tuple[str, dict[str, Any]]:
            whole, weights = hashes_of(file, ranges.get(file.name, []))
            found: dict[str, Any] = {"bytes": file.stat().st_size, "sha256": whole}
            return file.name, found if file.name == TABLE else {**found, "weights": weights}

        with ThreadPoolExecutor(THREADS) as threads:
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
    return min(THREADS, 1 + size // 2**30)


def _last_whole(folder: Path) -> str:
    return f"step {steps[-1]}" if (steps := checkpoint_steps(folder)) else "none yet"


def _refusal(error: BaseException) -> OSError | None:
    """Return the error of the operating system that ``error`` comes from, None if it comes from none."""
    if isinstance(error, CheckpointException):
        return next(filter(None, (_refusal(failure[0]) for failure in error.failures.values())), None)
    causes = [error, error.__cause__, error.__context__]
    found = [cause for cause in causes if isinstance(cause, OSError) and cause.errno is not None]
    return next((one for one in found if one.errno in NO_SPACE), found[0] if found else None)
