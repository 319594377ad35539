"""The tracker for MLflow."""

import math
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

from quintet.config.keypath import is_list, is_mapping
from quintet.config.load import dump_run_config
from quintet.config.names import ORIGINAL
from quintet.config.secrets import hidden
from quintet.config.track import MLflowConfig
from quintet.errors import UserError, one_line, without_password
from quintet.files import to_json
from quintet.libraries import require
from quintet.track.background import BackgroundQueue, FailureReporter, check_reachable, within_start
from quintet.track.names import RunIds, UsableNames, file_name, picture, usable_name
from quintet.track.tracker import RunStatus, Tracked

# What MLflow accepts (mlflow.utils.validation).
_PARAM_LENGTH, _TAG_LENGTH = 6000, 8000
_PARAMS_AT_ONCE, _METRICS_AT_ONCE = 100, 1000
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_SETTINGS = {  # defaults of MLflow's environment variables; a value that the user has set is kept
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # notices a dead server after seconds, not minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class MLflowTracker:
    """One run of MLflow; a continued run continues the same one.

    The values of the run file are its parameters. MLflow never changes a parameter, so a value that changed when the
    run was continued becomes a tag ``now.<name>``. The artifact ``run.yaml`` is always the current run file, and
    ``original/`` has the files of a dialect as they were written. Threads send metrics and samples, so that a slow
    server does not delay training.
    """

    every_step: ClassVar[bool] = False

    def __init__(self, run: Tracked, config: MLflowConfig, key: str) -> None:
        self._mlflow = _library(key)
        self._sent: set[tuple[str, int]] = set()
        self._names, self._files = UsableNames(usable_name), UsableNames(file_name)
        uri = config.tracking_uri or f"sqlite:///{(run.folder / 'mlflow.db').resolve()}"
        failures = FailureReporter(f"{key}: mlflow", run.say)
        try:
            check_reachable(uri)
            self._client = self._mlflow.MlflowClient(uri)
            if uri.startswith(("http:", "https:")):
                within_start(lambda: self._client.get_experiment_by_name(config.experiment))
            self._id = self._start(run, config)
            self._describe(run)
        except Exception as error:
            raise UserError(f"{key}: mlflow cannot use {without_password(uri)}: {one_line(error)}") from error
        self._metrics = BackgroundQueue(self._send_metrics, failures, _METRICS_AT_ONCE)
        self._texts = BackgroundQueue(self._send_texts, failures, 1)

    @staticmethod
    def check(config: MLflowConfig, key: str) -> None:
        """Raise NotHere if MLflow, or a library that it needs for a database, is missing."""
        _library(key)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Queue ``metrics``, except those that the server has from before the run was continued.

        MLflow stores NaN, but the largest float for an infinity, so NaN is sent for both.
        """
        now = int(time.time() * 1000)
        named = {
            self._names.of(name): float(value) if math.isfinite(value) else math.nan for name, value in metrics.items()
        }
        self._metrics.put(
            self._mlflow.entities.Metric(name, value, now, step)
            for name, value in named.items()
            if (name, step) not in self._sent
        )

    def text(self, step: int, name: str, text: str) -> None:
        """Queue a text, an artifact in ``samples/``."""
        self._texts.put([(f"samples/step-{step:06d}/{self._files.of(name)}.txt", text)])

    def files(self, step: int, name: str, files: Mapping[str, bytes]) -> None:
        """Queue the picture, an artifact in ``samples/``."""
        self._texts.put([(f"samples/step-{step:06d}/{self._files.of(name)}.png", files[".png"])])

    def close(self, status: RunStatus = "finished", checkpoint: Path | None = None) -> None:
        """Send the remaining records, the status, and the path of the checkpoint as a tag."""
        self._texts.close()
        self._metrics.close(lambda: self._end(status, checkpoint))

    def _start(self, run: Tracked, config: MLflowConfig) -> str:
        """Create the run or set it to running; return its id."""
        ids, server = RunIds(run.folder), f"mlflow {without_password(config.tracking_uri or 'mlflow.db')}"
        run_id = ids.get(server)
        if run_id is not None:
            if not config.tracking_uri:
                _follow_move(run.folder, run_id)
            self._client.update_run(run_id, status="RUNNING")
            self._sent = {
                (name, metric.step)
                for name in self._client.get_run(run_id).data.metrics
                for metric in self._client.get_metric_history(run_id, name)
                if metric.step >= run.first_step
            }
            return run_id
        experiment = self._client.get_experiment_by_name(config.experiment)
        artifacts = None if config.tracking_uri else _artifacts(run.folder)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(config.experiment, artifact_location=artifacts)
        )
        run_id = self._client.create_run(experiment_id, run_name=config.run_name or run.config.name).info.run_id
        ids.set(server, run_id)
        return run_id

    def _describe(self, run: Tracked) -> None:
        """Send the run file as parameters and as an artifact, a dialect's files as artifacts, the system as tags."""
        entities = self._mlflow.entities
        sent = self._client.get_run(self._id).data.params
        values = parameters(hidden(run.config))
        params = [entities.Param(name, value) for name, value in values.items() if name not in sent]
        changed = {f"now.{name}": value for name, value in values.items() if sent.get(name, value) != value}
        tags = {usable_name(name): value for name, value in changed.items()}
        tags |= {f"system.{name}": value[:_TAG_LENGTH] for name, value in run.system.items()}
        for chunk in _chunks(params):
            self._client.log_batch(self._id, params=chunk)
        for chunk in _chunks([entities.RunTag(name, value) for name, value in tags.items()]):
            self._client.log_batch(self._id, tags=chunk)
        self._client.log_text(self._id, dump_run_config(run.config), "run.yaml")
        if run.original:
            self._client.log_artifacts(self._id, str(run.folder / ORIGINAL), ORIGINAL)

    def _send_metrics(self, metrics: list[Any]) -> None:
        self._client.log_batch(self._id, metrics=metrics)

    def _send_texts(self, texts: list[tuple[str, str | bytes]]) -> None:
        for path, content in texts:
            if isinstance(content, str):
                self._client.log_text(self._id, content, path)
            else:
                self._client.log_image(self._id, picture(content), path)

    def _end(self, status: RunStatus, checkpoint: Path | None) -> None:
        if checkpoint is not None:
            self._client.set_tag(self._id, "checkpoint", str(checkpoint)[:_TAG_LENGTH])
        self._client.set_terminated(self._id, _STATUS[status])


def _artifacts(folder: Path) -> str:
    """Return the URI of the artifacts of a run folder's own database."""
    return (folder / "mlflow").resolve().as_uri()


def _follow_move(folder: Path, run_id: str) -> None:
    """Set the artifact paths in the database of ``folder``, which are absolute, in case the folder was moved."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        database.execute("UPDATE experiments SET artifact_location = ? WHERE name != 'Default'", (_artifacts(folder),))
        database.execute(
            "UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (f"{_artifacts(folder)}/{run_id}/artifacts", run_id)
        )


def parameters(values: Any) -> dict[str, str]:
    """Flatten the ``values`` of a run file to names such as ``data.sources.0.path``, within the lengths of MLflow."""
    names = UsableNames(usable_name)
    return {names.of(".".join(path), path): text[:_PARAM_LENGTH] for path, text in _leaves(values, ())}


def _leaves(values: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    pairs: Iterable[tuple[object, Any]] = ()
    if is_mapping(values) or is_list(values):
        pairs = values.items() if is_mapping(values) else enumerate(values)
    inner = [leaf for step, element in pairs for leaf in _leaves(element, (*path, str(step)))]
    yield from inner
    if not inner and path:
        in_json = values is None or isinstance(values, int | float) or is_list(values) or is_mapping(values)
        yield path, to_json(values, ascii=False) if in_json else str(values)


def _chunks(entities: list[Any]) -> Iterator[list[Any]]:
    return (entities[at : at + _PARAMS_AT_ONCE] for at in range(0, len(entities), _PARAMS_AT_ONCE))


def _library(key: str) -> Any:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    *_, mlflow = (require(module, "mlflow", f"{key}: mlflow") for module in ("sqlalchemy", "alembic", "mlflow"))
    return mlflow
