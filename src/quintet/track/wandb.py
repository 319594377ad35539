"""The tracker for Weights & Biases."""

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

_FINISH_SECONDS = 300  # to send the rest at the end; without a limit a dead server would block the run for ever
_START_SECONDS = 8  # for the server to answer at the start; wandb itself takes a few more
_START_ARGUMENTS = ("id", "resume", "resume_from", "fork_from")  # used at the first start only


class WandbTracker:
    """One run of Weights & Biases, with the same steps; a continued run continues the same one.

    A step that the server already has is not sent again, because it would be the same. Measurements after the last of
    these steps that a kill prevented are sent with the next step, because the server accepts no earlier step.
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
            given = {name: value for name, value in given.items() if name not in _START_ARGUMENTS}
            given |= {"id": run_id, "resume": "allow"}
        own = {"name": run.config.name, "dir": str(run.folder.resolve()), "reinit": "create_new"}
        os.environ.setdefault("WANDB_CACHE_DIR", str((run.folder / "wandb/cache").resolve()))
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", str(_FINISH_SECONDS))
        os.environ.setdefault("WANDB_FINISH_TIMEOUT_RAISES", "true")  # otherwise it prints that all was sent
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
        """Raise NotHere if wandb is missing, and UserError if wandb.init lacks one of the arguments."""
        check_arguments(f"{key}.arguments", "wandb.init", _library(key).init, config.arguments, {"config": ""})

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Queue ``metrics``; wandb sends them in a process of its own."""
        self._send(step, lambda: {} if step == self._late and self._knows(metrics) else metrics)

    def text(self, step: int, name: str, text: str) -> None:
        """Queue a text, as an HTML page that shows it as it is."""
        page = f'<meta charset="utf-8"><pre style="white-space: pre-wrap">{html.escape(text)}</pre>'
        self._send(step, lambda: {name: self._wandb.Html(page, inject=False)})

    def files(self, step: int, name: str, files: Mapping[str, bytes]) -> None:
        """Queue the picture."""
        self._send(step, lambda: {name: self._wandb.Image(picture(files[".png"]))})

    def close(self, status: RunStatus = "finished", checkpoint: Path | None = None) -> None:
        """Send the remaining records; the path of the checkpoint goes to the summary."""
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
        """Queue ``content`` of ``step`` unless the server has it.

        A thread logs it, because wandb's process may hang.
        """

        def log() -> None:
            if values := dict(content()):
                self._run.log(values, step=max(step, self._run.starting_step))

        if step >= self._run.starting_step or step == self._late:
            self._queue.put([log])

    def _knows(self, metrics: Mapping[str, float]) -> bool:
        """Return True if the server has ``metrics``, because the run was killed before it recorded that."""
        sent = self._run.summary
        return all(sent.get(name) == value for name, value in metrics.items())

    def _do(self, actions: list[Callable[[], object]]) -> None:
        for action in actions:
            try:
                action()
                self._sent += 1
            except Exception as error:  # not tried again, because wandb accepts no earlier step
                self._missed += 1
                self._failures.tell(error)


def _check_server(address: str) -> None:
    """Raise OSError with the ``address`` if no server answers there."""
    try:
        check_reachable(address)
    except OSError as error:
        raise OSError(f"{without_password(address)}: {one_line(error)}") from error


def _library(key: str) -> Any:
    return require("wandb", "wandb", f"{key}: wandb")
