"""Writing checkpoints in the background, and reading them.

A checkpoint is a folder ``checkpoints/step-000500`` with the files of torch.distributed.checkpoint and ``state.json``.
The latter holds the progress of the run, and the size and SHA-256 of every other file and of the weights in it. A
checkpoint is written under a temporary name and renamed when it is complete and on the disk, so that a kill at any
moment leaves a whole checkpoint or none.
"""

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
from quintet.files import NO_ROOM, remove, remove_unfinished, set_aside, sync_folder, to_json, write_text
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

# There is no process group with one process, as intended.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


def load_weights(path: Path, model: nn.Module) -> None:
    """Load the weights of the checkpoint at ``path`` into ``model``, which is not sharded; frozen weights stay."""
    weights = _select_trained(model, model.state_dict())  # get_model_state_dict would import torch._dynamo: 0.6 s
    read_state(path, {"model": weights}, together=False)
    model.load_state_dict(weights, strict=False)


def read_state(path: Path, state: dict[str, Any], *, together: bool) -> None:
    """Read the checkpoint at ``path`` into the tensors of ``state``, all processes ``together`` or each by itself."""
    state_dict_loader.load(state, checkpoint_id=path, no_dist=not together)  # pyright: ignore[reportUnknownMemberType]


def trained_weights(model: nn.Module) -> dict[str, Any]:
    """Return the trainable parameters of ``model``, each once, and its buffers, by name.

    Frozen weights are read again from their source, so that a checkpoint of adapters has only the adapters.
    """
    return _select_trained(model, get_model_state_dict(model))


def _select_trained(model: nn.Module, weights: dict[str, Any]) -> dict[str, Any]:
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: value for name, value in weights.items() if name in trained or name not in parameters}


def set_weights(model: nn.Module, weights: dict[str, Any]) -> None:
    """Load into ``model`` the weights that `trained_weights` returned."""
    # Not strict, because frozen weights and second names of tied weights are absent. Reading the checkpoint has checked
    # that all others are present.
    set_model_state_dict(model, weights, options=StateDictOptions(strict=False))


class Checkpointer:
    """Writes the checkpoints of one run in the background, one at a time, and removes those that are not kept.

    Each process writes its part, and rank 0 the rest. All processes call each method, in the same order, and wait
    ``timeout`` for each other. Training waits only while the state is copied from ``device`` to the host. A run that
    continues after step ``first`` sets aside folders of later steps, which are damaged. ``sync`` is called before each
    checkpoint, so that the records up to it are as durable as the checkpoint.
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
        # Copies each tensor once, into memory that it allocates at the first save and keeps.
        self._stager: Any = DefaultStager(options)  # PyTorch leaves its types open
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: list[Future[None]] = []
        self.saved_at = monotonic()
        # A group of its own for the thread, so that its messages do not mix with those of the training.
        self._group = new_group(timeout) if world_size() > 1 else None
        self.written = set(broadcast_from_rank0(self._prepare_folder))

    def _prepare_folder(self) -> list[int]:
        if self.folder.is_symlink() and not self.folder.exists():
            raise UserError(f"{self.folder}: is a link to {os.readlink(self.folder)}, which does not exist; restore it")
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
        """Copy the ``state`` of an engine now, and write it in the background.

        Raises UserError if the previous save failed.
        """
        self.wait()
        if progress.step in self.written:
            return
        self.written.add(progress.step)
        copied = self._stager.stage(state)
        assert not isinstance(copied, Future)  # which only asynchronous staging returns
        self._pending.append(self._thread.submit(self._write, copied, progress))
        self.saved_at = monotonic()

    def amend(self, progress: Progress) -> None:
        """Write ``progress`` into the checkpoint of its step, if there is one, in the background.

        Removes the checkpoints that are no longer kept.
        """
        if progress.step in self.written:
            self._pending.append(self._thread.submit(self._amend, progress))

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises UserError if the disk is full or cannot be written; whole checkpoints stay.
        """
        pending, self._pending = self._pending, []
        try:
            for future in pending:
                future.result()
        except (OSError, CheckpointException) as error:
            refusal = _refusal(error)
            if refusal is None:
                raise
            fault, mend = "no space left to write a checkpoint", "Free some space"
            if refusal.errno not in NO_ROOM:
                fault, mend = f"a checkpoint cannot be written ({refusal.strerror})", "Make the folder writable"
            raise UserError(
                f"{self.folder}: {fault}; the last whole one is {_last_whole(self.folder)}. {mend} and give the same "
                "command to continue from it"
            ) from error

    def close(self) -> None:
        """Wait until nothing is being written, and stop the thread."""
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
            # Nothing is copied ahead, because the state is on the host already. To copy ahead, PyTorch would wait for
            # GPU 0 in this thread, whichever GPU the process uses, so each process of the machine would take memory of
            # GPU 0.
            writer = FileSystemWriter(unfinished, thread_count=_files_of(state), per_thread_copy_ahead=0)
            state_dict_saver.save(  # pyright: ignore[reportUnknownMemberType]  (open in PyTorch)
                state, storage_writer=writer, process_group=self._group, no_dist=self._group is None
            )
            parts = all_gather(self._own_files(unfinished), self._group)
            files = dict(entry for part in parts for entry in part)
            broadcast_from_rank0(lambda: _finish(unfinished, final, progress, files), self._group)
        finally:
            if is_rank_zero():
                shutil.rmtree(unfinished, ignore_errors=True)
        broadcast_from_rank0(lambda: self._prune(progress), self._group)

    def _amend(self, progress: Progress) -> None:
        def rewrite() -> None:
            file = checkpoint_path(self.folder, progress.step) / "state.json"
            if file.is_file():  # otherwise writing it has failed, and `wait` raises
                self._sync()
                write_text(file, _state(progress, json.loads(file.read_bytes())["files"]))
                self._prune(progress)

        broadcast_from_rank0(rewrite, self._group)

    def _own_files(self, folder: Path) -> list[tuple[str, dict[str, Any]]]:
        """Return size and hashes of the files that this process has written; rank 0 adds the common files."""
        mine, ranges = f"__{rank()}_", weight_ranges(folder)

        def facts(file: Path) -> tuple[str, dict[str, Any]]:
            content, weights = hashes_of(file, ranges.get(file.name, []))
            entry: dict[str, Any] = {"bytes": file.stat().st_size, "sha256": content}
            return file.name, entry if file.name == TABLE else {**entry, "weights": weights}

        with ThreadPoolExecutor(THREADS) as threads:
            files = sorted(folder.iterdir())
            own = [file for file in files if file.name.startswith(mine) or (is_rank_zero() and file.name[:2] != "__")]
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
            # Renamed first, so that a kill during the removal leaves no damaged checkpoint under a valid name.
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
    """Return the number of files for a process's part of ``state``: one per GiB, at most one per thread."""
    parts = (leaf.to_local() if isinstance(leaf, DTensor) else leaf for leaf in tree_leaves(state))
    size = sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))
    return min(THREADS, 1 + size // 2**30)


def _last_whole(folder: Path) -> str:
    return f"step {steps[-1]}" if (steps := checkpoint_steps(folder)) else "none yet"


def _refusal(error: BaseException) -> OSError | None:
    """Return the error of the operating system that caused ``error``, None if there is none."""
    if isinstance(error, CheckpointException):
        return next(filter(None, (_refusal(failure[0]) for failure in error.failures.values())), None)
    chain = [error, error.__cause__, error.__context__]
    causes = [cause for cause in chain if isinstance(cause, OSError) and cause.errno is not None]
    return next((cause for cause in causes if cause.errno in NO_ROOM), causes[0] if causes else None)
