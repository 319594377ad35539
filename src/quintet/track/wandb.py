"""Metrics and samples for Weights & Biases."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from quintet.config.keypath import is_mapping
from quintet.config.secrets import hidden
from quintet.config.track import WandbConfig
from quintet.errors import UserError, one_line, without_password
from quintet.libraries import check_arguments, require
from quintet.track.background import BackgroundQueue, FailureReporter, check_reachable, within_start
from quintet.track.names import RunIds, picture
from quintet.track.tracker import RunStatus, Tracked

_FINISH_SECONDS = 300  # for what is not sent at the end; without a limit a dead server would hold the run for ever
_START_SECONDS = 8  # for the server to answer at the start, besides a few that wandb takes itself
_BEGINNINGS = ("id", "resume", "resume_from", "fork_from")  # arguments that say where a run begins


class WandbTracker:
    """One run of Weights & Biases; a continued run continues the same one.

    Its steps are the run's. A step that is on the server already is not sent again: it would be the same. What a kill
    kept from being measured after the last of them is sent with the next step, for the server takes no more of a step
    that is past.
    """

    every_step: ClassVar[bool] = False

    def __init__(self, run: Tracked, config: WandbConfig, key: str) -> None:
        self.check(config, key)
        self._wandb = _library(key)
        self._failures = FailureReporter(f"{key}: wandb", run.say)
        given, ids = dict(config.arguments), RunIds(run.folder)
        project = f"wandb {given.get('entity') or ''}/{given.get('project') or ''}"
        run_id = ids.get(project)
        if run_id is not None:
            given = {name: value for name, value in given.items() if name not in _BEGINNINGS}
            given |= {"id": run_id, "resume": "allow"}
        own = {"name": run.config.name, "dir": str(run.folder.resolve()), "reinit": "create_new"}
        os.environ.setdefault("WANDB_CACHE_DIR", str((run.folder / "wandb/cache").resolve()))
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", str(_FINISH_SECONDS))
        os.environ.setdefault("WANDB_FINISH_TIMEOUT_RAISES", "true")  # else it prints that all was sent
        os.environ.setdefault("WANDB_INIT_TIMEOUT", str(_START_SECONDS))
        try:
            settings = self._wandb.setup().settings
            online = (given.get("mode") or settings.mode) in ("online", "shared")
            asked = given.get("settings")
            address = asked.get("base_url") if is_mapping(asked) else None

            def begin() -> Any:
                if online:
                    _check_server(address or settings.base_url)
                return self._wandb.init(**(own | given))

            self._run = within_start(begin) if online else begin()
            self._run.config.update({**hidden(run.config), "system": run.system}, allow_val_change=True)
            for file in run.original:
                self._run.save(str(file.resolve()), base_path=str(run.folder.resolve()), policy="now")
        except Exception as error:
            raise UserError(f"{key}: wandb cannot start: {one_line(error)}; `mode: offline` needs no server") from error
        if self._run.id != run_id:
            ids.set(project, self._run.id)
        self._finish_seconds = self._run.settings.finish_timeout or _FINISH_SECONDS
        self._queue = BackgroundQueue(self._do, self._failures, 1, self._finish_seconds + 60)
        self._sent = self._missed = 0
        self._late = run.first_step if run.due and self._run.starting_step == run.first_step + 1 else None

    @staticmethod
    def check(config: WandbConfig, key: str) -> None:
        """Raise UserError if wandb is missing or wandb.init has no argument of a given name."""
        check_arguments(f"{key}.arguments", "wandb.init", _library(key).init, config.arguments, {"config": ""})

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Hand over ``metrics``; wandb sends them in a process of its own."""
        self._send(step, lambda: {} if step == self._late and self._knows(metrics) else metrics)

    def text(self, step: int, name: str, text: str) -> None:
        """Hand over a text as a page that shows it as it is."""
        page = f'<meta charset="utf-8"><pre style="white-space: pre-wrap">{html.escape(text)}</pre>'
        self._send(step, lambda: {name: self._wandb.Html(page, inject=False)})

    def files(self, step: int, name: str, files: Mapping[str, bytes]) -> None:
        """Hand over the picture."""
        self._send(step, lambda: {name: self._wandb.Image(picture(files[".png"]))})

    def close(self, status: RunStatus = "finished", checkpoint: Path | None = None) -> None:
        """Send what is left; the path of the checkpoint is in the summary."""
        if checkpoint is not None:
            self._queue.put([lambda: self._run.summary.update({"checkpoint": str(checkpoint)})])
        self._queue.close(lambda: self._finish(1 if status == "failed" else 0))
        if self._missed:
            self._failures.lost(self._missed)

    def _finish(self, code: int) -> None:
        try:
            self._run.finish(exit_code=code)
        except TimeoutError:
            self._failures.at_end(
                f"the server has not taken all of {self._sent:,} records within {self._finish_seconds:.0f} s of the "
                f"end; `wandb sync {self._run.settings.sync_dir}` sends them"
            )

    def _send(self, step: int, content: Callable[[], Mapping[str, Any]]) -> None:
        """Log ``content`` of ``step``, unless the server has it: by a thread, since a process of wandb's that does not
        answer would hold training up."""

        def log() -> None:
            if found := dict(content()):
                self._run.log(found, step=max(step, self._run.starting_step))

        if step >= self._run.starting_step or step == self._late:
            self._queue.put([log])

    def _knows(self, metrics: Mapping[str, float]) -> bool:
        """True if the run was killed between sending ``metrics`` and noting that they were measured."""
        known = self._run.summary
        return all(known.get(name) == value for name, value in metrics.items())

    def _do(self, actions: list[Callable[[], object]]) -> None:
        for action in actions:
            try:
                action()
                self._sent += 1
            except Exception as error:  # not tried again, for wandb takes no step that is past
                self._missed += 1
                self._failures.tell(error)


def _check_server(address: str) -> None:
    """Raise OSError, which names ``address``, where nobody answers there."""
    try:
        check_reachable(address)
    except OSError as error:
        raise OSError(f"{without_password(address)}: {one_line(error)}") from error


def _library(key: str) -> Any:
    return require("wandb", "wandb", f"{key}: wandb")
